//! What the model is told about the host: its addresses, devices, containers and published ports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// A transport protocol that can be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
    /// RFC 9260.
    Sctp,
}

impl Protocol {
    /// From the number in the IP header (IANA).
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }

    /// The number in the IP header.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// A published port, in one family.
#[derive(Debug, Clone)]
pub struct Forward {
    /// Its protocol.
    pub protocol: Protocol,
    /// The host address that it is published on; `None` for every one of the target's family.
    pub host: Option<IpAddr>,
    /// The host's port.
    pub port: u16,
    /// The container's address and port.
    pub target: SocketAddr,
    /// The container's link to redirect by; `None` if packets go through the stack.
    pub link: Option<u32>,
}

/// A container's host-side link.
#[derive(Debug, Clone)]
pub struct Link {
    /// The addresses that the container may send from.
    pub sources: BTreeSet<IpAddr>,
}

/// A device on which the host has an address.
#[derive(Debug, Clone, Copy)]
pub struct Device {
    /// Its hardware address.
    pub mac: [u8; 6],
}

/// The host.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// The addresses of the host.
    pub addresses: BTreeSet<IpAddr>,
    /// Its devices, by interface index.
    pub devices: BTreeMap<u32, Device>,
    /// The links of attached containers, by interface index.
    pub links: BTreeMap<u32, Link>,
    /// What is published.
    pub forwards: Vec<Forward>,
    /// Connections of the host's own sockets: protocol, the host's end, the other end.
    pub sockets: BTreeSet<(Protocol, SocketAddr, SocketAddr)>,
    /// Largest packet that every way out takes, from the IP header on.
    pub mtu: usize,
}

impl World {
    /// The forward that a destination belongs to: one of every address goes before one of this one.
    pub(crate) fn forward(&self, protocol: Protocol, to: SocketAddr) -> Option<usize> {
        let candidates = || {
            self.forwards
                .iter()
                .enumerate()
                .filter(move |(_, forward)| forward.listens(protocol, to))
        };
        let any = candidates().find(|(_, forward)| forward.host.is_none());
        let bound = || candidates().find(|(_, forward)| forward.host == Some(to.ip()));
        any.or_else(bound).map(|(index, _)| index)
    }

    /// Whether any forward of this family has the host port, on whatever address.
    pub(crate) fn has_host_port(&self, protocol: Protocol, to: SocketAddr) -> bool {
        self.forwards
            .iter()
            .any(|forward| forward.listens(protocol, to))
    }

    /// Whether any forward of this family leads to the container port, of whatever container.
    pub(crate) fn has_container_port(&self, protocol: Protocol, from: SocketAddr) -> bool {
        self.forwards.iter().any(|forward| {
            forward.protocol == protocol
                && forward.target.is_ipv4() == from.is_ipv4()
                && forward.target.port() == from.port()
        })
    }
}

impl Forward {
    fn listens(&self, protocol: Protocol, to: SocketAddr) -> bool {
        self.protocol == protocol && self.target.is_ipv4() == to.is_ipv4() && self.port == to.port()
    }
}

/// Destinations that are never translated (DESIGN.md, invariant 4): loopback, link-local, multicast,
/// broadcast, and what is no destination (RFC 1122, section 3.2.1.3; RFC 4291, section 2.5).
pub(crate) fn is_never_a_destination(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [first, ..] = v4.octets();
            first == 0 || first >= 224 || v4.is_loopback() || v4.is_link_local()
        }
        IpAddr::V6(v6) => {
            is_no_v6_address(v6) || v6.is_multicast() || v6.segments()[0] & 0xffc0 == 0xfe80
        }
    }
}

/// Sources that no packet may be sent on from (RFC 1122, section 3.2.1.3; RFC 4291, section 2.5; RFC 4942,
/// section 2.2 for IPv4 addresses in IPv6 form).
pub(crate) fn is_never_a_source(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [first, ..] = v4.octets();
            first == 0 || first >= 224 || v4.is_loopback()
        }
        IpAddr::V6(v6) => {
            let link_local = v6.segments()[0] & 0xffc0 == 0xfe80;
            is_no_v6_address(v6) || v6.is_multicast() || link_local
        }
    }
}

fn is_no_v6_address(v6: std::net::Ipv6Addr) -> bool {
    v6.is_unspecified() || v6.is_loopback() || v6.to_ipv4_mapped().is_some()
}
