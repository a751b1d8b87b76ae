//! Datagrams in fragments: only the first tells the ports, so it decides for the others.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::flow::{Key, Side};
use crate::packet::Network;

/// Fragments of one datagram that wait for the first.
pub(crate) const MOST_WAITING: usize = 64;
/// The frames that are of a length to wait.
pub(crate) const LENGTHS: std::ops::RangeInclusive<usize> = 35..=2_044;

/// What the fragments of one datagram have in common (RFC 791, section 3.2), and the device that they
/// came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Datagram {
    source: IpAddr,
    destination: IpAddr,
    identification: u32,
    protocol: u8,
    device: u32,
}

impl Datagram {
    pub(crate) fn of(network: &Network, device: u32) -> Self {
        Self {
            source: network.source,
            destination: network.destination,
            identification: network.identification,
            protocol: network.protocol,
            device,
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
