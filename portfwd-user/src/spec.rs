//! SPEC: what is to be published, as it was typed. Nothing here does I/O.
//!
//! ```text
//! [HOSTIP:][HOSTPORT[-END]]:CONTAINERPORT[-END][/tcp|udp|sctp]
//! CONTAINERPORT[-END][/tcp|udp|sctp]          the host port is chosen
//! ```
//!
//! An IPv6 address stands in brackets. An IPv4-mapped one (`::ffff:192.0.2.1`) is the IPv4 address.

mod error;
mod parse;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portfwd_common::net::Protocol;

pub use error::{Meant, Port, SpecError, SpecErrorKind};
pub use parse::host_address;

/// One port or several in a row; never empty, never with port 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// `first` to `last`, both within; `None` if `first` is 0 or comes after `last`.
    #[must_use]
    pub const fn new(first: u16, last: u16) -> Option<Self> {
        if first == 0 || first > last {
            return None;
        }
        Some(Self { first, last })
    }

    /// `count` ports from `first` on; `None` if that is empty, starts at 0 or goes beyond 65535.
    #[must_use]
    pub const fn from_count(first: u16, count: u16) -> Option<Self> {
        if count == 0 {
            return None;
        }
        match first.checked_add(count - 1) {
            Some(last) => Self::new(first, last),
            None => None,
        }
    }

    /// A single port; `None` for 0.
    #[must_use]
    pub const fn single(port: u16) -> Option<Self> {
        Self::new(port, port)
    }

    /// The lowest port.
    #[must_use]
    pub const fn first(self) -> u16 {
        self.first
    }

    /// The highest port.
    #[must_use]
    pub const fn last(self) -> u16 {
        self.last
    }

    /// How many ports: 1 to 65535.
    #[must_use]
    pub const fn count(self) -> u16 {
        self.last - self.first + 1
    }

    /// Whether `port` is one of them.
    #[must_use]
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    /// The ports that both have.
    #[must_use]
    pub fn intersection(self, other: Self) -> Option<Self> {
        Self::new(self.first.max(other.first), self.last.min(other.last))
    }

    /// Every port, ascending.
    pub fn ports(self) -> impl Iterator<Item = u16> {
        self.first..=self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// The host's side of a SPEC.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum HostPorts {
    /// None given: as many in a row as the container's side has, chosen.
    Chosen,
    /// Exactly these, as many as the container's side has.
    Fixed(PortRange),
    /// The first free one of these, for a single container port.
    Pool(PortRange),
}

/// A parsed SPEC.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Spec {
    /// The host address; `None` for every one of both families, `0.0.0.0` or `::` for every one of
    /// one family.
    pub host: Option<IpAddr>,
    /// The host's ports.
    pub ports: HostPorts,
    /// The container's ports.
    pub container: PortRange,
    /// The protocol.
    pub protocol: Protocol,
}

impl Spec {
    /// The same, with `host` where the SPEC gave no host address.
    #[must_use]
    pub fn or_host(mut self, host: Option<IpAddr>) -> Self {
        self.host = self.host.or(host);
        self
    }

    /// The host addresses to hold: both wildcards where none was given, IPv4 first.
    pub fn hosts(&self) -> impl Iterator<Item = IpAddr> + use<> {
        const BOTH: [IpAddr; 2] = [
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        ];
        let wildcards = if self.host.is_none() { &BOTH[..] } else { &[] };
        self.host.into_iter().chain(wildcards.iter().copied())
    }

    /// Whether a forward from `host` and `ports` to the container's `container` is one that this SPEC
    /// published: what `detach -p` takes away. A SPEC without a host port names every such forward,
    /// and without a host address too, on every address.
    #[must_use]
    pub fn selects(
        &self,
        protocol: Protocol,
        host: IpAddr,
        ports: PortRange,
        container: PortRange,
    ) -> bool {
        let any_host = self.host.is_none() && self.ports == HostPorts::Chosen;
        let ports_match = match self.ports {
            HostPorts::Chosen => true,
            HostPorts::Fixed(fixed) => fixed == ports,
            HostPorts::Pool(pool) => pool.intersection(ports) == Some(ports),
        };
        ports_match
            && self.protocol == protocol
            && self.container == container
            && (any_host || self.hosts().any(|own| own == host))
    }
}

impl fmt::Display for Spec {
    /// The shortest text that parses to the same SPEC, but with the protocol always named.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host {
            Some(IpAddr::V4(v4)) => write!(f, "{v4}:")?,
            Some(IpAddr::V6(v6)) => write!(f, "[{v6}]:")?,
            None => {}
        }
        match self.ports {
            HostPorts::Fixed(ports) | HostPorts::Pool(ports) => write!(f, "{ports}:")?,
            HostPorts::Chosen if self.host.is_some() => f.write_str(":")?,
            HostPorts::Chosen => {}
        }
        write!(f, "{}/{}", self.container, self.protocol.name())
    }
}

/// What `portfwd port CONTAINER PORT[/PROTO]` asks for; TCP unless another protocol is named, as with
/// `docker port`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PortQuery {
    /// The container's port.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

impl fmt::Display for PortQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.port, self.protocol.name())
    }
}

/// Whether two host addresses have a local address in common; `None` is every address of both families.
#[must_use]
pub fn hosts_overlap(a: Option<IpAddr>, b: Option<IpAddr>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => {
            let one_is_any = a.is_unspecified() || b.is_unspecified();
            a == b || (a.is_ipv4() == b.is_ipv4() && one_is_any)
        }
        _ => true,
    }
}

/// Refuses a list of which two SPECs are equal or hold a host port together. Chosen ports and pools
/// find their own way round the others, so only an equal one is in their way.
///
/// # Errors
/// Names the first such pair, after the position of the second of them.
pub fn check_list(specs: &[Spec]) -> Result<(), (usize, SpecError)> {
    let pairs = equal_pairs(specs).chain(overlapping_pairs(specs));
    let Some((position, first)) = pairs.min() else {
        return Ok(());
    };
    let (first, second) = (&specs[first], &specs[position]);
    let kind = match shared_port(first, second) {
        Some(port) if first != second => SpecErrorKind::Overlap {
            first: first.to_string(),
            port,
        },
        _ => SpecErrorKind::Twice,
    };
    let error = SpecError::new(Meant::Spec, &second.to_string(), kind);
    Err((position, error))
}

/// Positions of SPECs that are equal to an earlier one, each before the position of that one.
fn equal_pairs(specs: &[Spec]) -> impl Iterator<Item = (usize, usize)> {
    let mut seen = HashMap::new();
    specs.iter().enumerate().filter_map(move |(second, spec)| {
        let first = *seen.entry(spec).or_insert(second);
        (first != second).then_some((second, first))
    })
}

/// The same for SPECs that share a host port. Sorted by port, a SPEC has to be compared with its
/// neighbours only, so that ten thousand single ports are no work.
fn overlapping_pairs(specs: &[Spec]) -> impl Iterator<Item = (usize, usize)> {
    let mut fixed: Vec<(Protocol, PortRange, usize)> = specs
        .iter()
        .enumerate()
        .filter_map(|(position, spec)| match spec.ports {
            HostPorts::Fixed(ports) => Some((spec.protocol, ports, position)),
            HostPorts::Pool(_) | HostPorts::Chosen => None,
        })
        .collect();
    fixed.sort_unstable();
    let mut pairs = Vec::new();
    for (place, (protocol, ports, one)) in fixed.iter().enumerate() {
        let neighbours = fixed[place + 1..]
            .iter()
            .take_while(|(other, next, _)| other == protocol && next.first() <= ports.last());
        for (_, _, other) in neighbours {
            if hosts_overlap(specs[*one].host, specs[*other].host) {
                pairs.push((*one.max(other), *one.min(other)));
            }
        }
    }
    pairs.into_iter()
}

fn shared_port(a: &Spec, b: &Spec) -> Option<u16> {
    let (HostPorts::Fixed(one), HostPorts::Fixed(other)) = (a.ports, b.ports) else {
        return None;
    };
    if a.protocol != b.protocol || !hosts_overlap(a.host, b.host) {
        return None;
    }
    one.intersection(other).map(PortRange::first)
}
