//! Datagrams in fragments: only the first tells the ports, so it decides for the others.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::flow::{Key, Side};
use crate::packet::Network;

/// Fragments of one datagram that wait for the first.
pub(crate) const MOST_WAITING: usize = 64;
/// Protocols whose fragments wait: the three that are published, and options of IPv6 before them.
pub(crate) const PROTOCOLS: [u8; 4] = [6, 17, 132, 60];
/// The frames that are of a length to wait.
pub(crate) const LENGTHS: std::ops::RangeInclusive<usize> = 35..=2_044;

/// Where a fragment is seen. From outside it may come by any device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Seen {
    FromDevice,
    FromLink(u32),
    Leaving,
}

/// What the fragments of one datagram have in common (RFC 791, section 3.2; RFC 8200, section 4.5), and
/// where they are seen. In IPv6 each tells a protocol of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Datagram {
    source: IpAddr,
    destination: IpAddr,
    identification: u32,
    protocol: Option<u8>,
    seen: Seen,
}

impl Datagram {
    pub(crate) fn of(network: &Network, seen: Seen) -> Self {
        Self {
            source: network.source,
            destination: network.destination,
            identification: network.identification,
            protocol: network.source.is_ipv4().then_some(network.protocol),
            seen,
        }
    }
}

/// What was decided about a datagram.
#[derive(Debug, Clone)]
pub(crate) enum Decision {
    /// Nothing: the first has not come, and these wait for it.
    Waiting(Vec<Vec<u8>>),
    /// It is not ours.
    Pass,
    /// The first was dropped.
    Drop,
    /// It belongs to a flow, and this end sent it.
    Flow(Side, Key),
}

/// All datagrams.
pub(crate) type Datagrams = HashMap<Datagram, Decision>;
