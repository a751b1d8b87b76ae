//! Rules of other tools that give packets to the host another destination: Docker's, those of CNI plugins, of
//! netavark or firewalld, and what people write themselves. A port that such a rule takes is not free, although no
//! socket is bound to it. And rules that deny packets, which published ports may pass by: [`firewall`].
//!
//! What is read is the kernel's own form of the rules, of nf_tables and of the older ip_tables: no program
//! is run. Of a rule's conditions the family, the protocol, the destination address and the destination port
//! are understood. All others (interface, mark, source, state of the connection, ipset) are taken as met,
//! and rules that let packets pass beforehand are left out: what is found is what may be taken.

pub mod firewall;
mod intervals;
mod legacy;
mod nftables;
mod region;
mod sought;
mod walk;
mod wire;
mod xtables;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portfwd_common::net::Protocol;

pub use sought::Hook;
pub use wire::Malformed;

use super::netns::{Netns, NetnsError};
use crate::collision::{Addresses, Family, Place, Rule};
use crate::spec::PortRange;
use intervals::Intervals;
use region::{Families, Field, Region};

/// How often rules are read again that changed meanwhile.
const ATTEMPTS: usize = 8;

/// Why the rules are not known.
#[derive(Debug, thiserror::Error)]
pub enum ForeignError {
    /// The namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The kernel refused, or the connection to it failed.
    #[error("cannot {request}: {source}")]
    Failed {
        /// What was asked for, as words that follow "cannot".
        request: String,
        /// The reason.
        source: io::Error,
    },
    /// The kernel's answer makes no sense.
    #[error("cannot read {what}: {detail}")]
    Malformed {
        /// What it should have been.
        what: String,
        /// What is wrong with it.
        detail: Malformed,
    },
    /// Somebody kept changing them.
    #[error("cannot read {what}: changed during each of {ATTEMPTS} readings")]
    Changing {
        /// What was read.
        what: String,
    },
}

/// Every rule of the namespace that may take packets to a port.
///
/// # Errors
/// When the namespace cannot be entered or the kernel does not tell (which needs CAP_NET_ADMIN), or when the
/// rules change all the time.
pub fn rules(host: &Netns) -> Result<Vec<Rule>, ForeignError> {
    host.run_in(rules_here)?
}

/// As [`rules`], of the calling thread's namespace.
///
/// # Errors
/// The same.
pub fn rules_here() -> Result<Vec<Rule>, ForeignError> {
    let mut all = nftables::rules_here()?;
    all.extend(legacy::rules_here()?);
    Ok(all)
}

/// What `attempt` reads, once it reads without a change meanwhile (which is None).
fn unchanged<T>(
    what: &str,
    mut attempt: impl FnMut() -> Result<Option<T>, ForeignError>,
) -> Result<T, ForeignError> {
    for _ in 0..ATTEMPTS {
        if let Some(read) = attempt()? {
            return Ok(read);
        }
    }
    Err(ForeignError::Changing {
        what: what.to_owned(),
    })
}

/// The rules that take the packets of a region; none if nobody could publish what it takes.
fn rules_of(region: &Region, place: &Place) -> Vec<Rule> {
    let family = family(region.families);
    let ports = ports(&region.ports);
    if ports.is_empty() {
        return Vec::new();
    }
    let rule = |protocol| Rule {
        protocol,
        family,
        addresses: addresses(family, &region.addresses),
        ports: ports.clone(),
        place: place.clone(),
    };
    let all = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let takes = |protocol: &Protocol| region.protocols.contains(protocol.number().into());
    if all.iter().all(takes) {
        return vec![rule(None)];
    }
    let some = all.into_iter().filter(takes);
    some.map(|protocol| rule(Some(protocol))).collect()
}

fn family(families: Families) -> Family {
    match families {
        Families { v4: true, v6: true } => Family::Both,
        Families { v6: false, .. } => Family::V4,
        Families { v6: true, .. } => Family::V6,
    }
}

fn ports(ports: &Intervals) -> Vec<PortRange> {
    let published = ports.intersection(&Intervals::range(1, Field::Port.max()));
    let ranges = published.ranges().iter();
    ranges
        .filter_map(|(first, last)| {
            PortRange::new(u16::try_from(*first).ok()?, u16::try_from(*last).ok()?)
        })
        .collect()
}

fn addresses(family: Family, addresses: &Intervals) -> Addresses {
    let (all, of): (_, fn(u128) -> Option<IpAddr>) = match family {
        Family::Both => return Addresses::Any,
        Family::V4 => (Field::AddressV4.max(), |number| {
            Some(Ipv4Addr::from_bits(u32::try_from(number).ok()?).into())
        }),
        Family::V6 => (Field::AddressV6.max(), |number| {
            Some(Ipv6Addr::from_bits(number).into())
        }),
    };
    let all = Intervals::range(0, all);
    if addresses.covers(&all) {
        return Addresses::Any;
    }
    let within = addresses.intersection(&all);
    let ranges = within.ranges().iter();
    Addresses::Within(
        ranges
            .filter_map(|(first, last)| Some(of(*first)?..=of(*last)?))
            .collect(),
    )
}
