//! The frames that are measured: Ethernet, IP without options, TCP or UDP, 64 bytes of payload.
//!
//! Checksums hold arbitrary values: programs update them and cannot see whether they were right.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The two host ports that lead to each other. The address goes with the port, so that both change.
pub(crate) const PORTS: [u16; 2] = [8080, 9090];

/// The client's port.
pub(crate) const CLIENT_PORT: u16 = 40_000;

/// A port that nobody publishes.
const UNPUBLISHED_PORT: u16 = 7_777;

/// Hop count of a new frame.
const HOPS: u8 = 255;

const ETHERNET: usize = 14;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }

    /// The client's address.
    pub(crate) fn client(self) -> IpAddr {
        match self {
            Family::V4 => Ipv4Addr::new(198, 51, 100, 7).into(),
            Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 7).into(),
        }
    }

    /// The address that goes with [`PORTS`]`[end]`.
    pub(crate) fn end(self, end: usize) -> IpAddr {
        let last = 1 + end as u8;
        match self {
            Family::V4 => Ipv4Addr::new(192, 0, 2, last).into(),
            Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, last.into()).into(),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Transport::Tcp => "TCP",
            Transport::Udp => "UDP",
        }
    }

    pub(crate) fn number(self) -> u8 {
        match self {
            Transport::Tcp => 6,
            Transport::Udp => 17,
        }
    }
}

/// A frame between the client and one of the two ends.
#[derive(Clone)]
pub(crate) struct Frame {
    family: Family,
    transport: Transport,
    /// Which of [`PORTS`].
    end: usize,
    /// The end's port, if another one.
    port: Option<u16>,
    hops: u8,
    to_client: bool,
}

impl Frame {
    /// From the client to the first end.
    pub(crate) fn new(family: Family, transport: Transport) -> Frame {
        Frame {
            family,
            transport,
            end: 0,
            port: None,
            hops: HOPS,
            to_client: false,
        }
    }

    /// The same the other way.
    pub(crate) fn reply(&self) -> Frame {
        Frame {
            to_client: true,
            ..self.clone()
        }
    }

    /// The same to a port that is not published.
    pub(crate) fn to_unpublished_port(&self) -> Frame {
        Frame {
            port: Some(UNPUBLISHED_PORT),
            ..self.clone()
        }
    }

    /// The same to the other end, so many hops further.
    pub(crate) fn translated(&self, hops: u32) -> Frame {
        Frame {
            end: 1 - self.end,
            ..self.hops_less(hops)
        }
    }

    /// The same so many hops further.
    pub(crate) fn hops_less(&self, hops: u32) -> Frame {
        Frame {
            hops: self
                .hops
                .saturating_sub(u8::try_from(hops).unwrap_or(u8::MAX)),
            ..self.clone()
        }
    }

    /// As on the wire.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let end = self.family.end(self.end);
        let port = self.port.unwrap_or(PORTS[self.end]);
        let client = (self.family.client(), CLIENT_PORT);
        let (source, destination) = if self.to_client {
            ((end, port), client)
        } else {
            (client, (end, port))
        };
        let mut segment = [source.1.to_be_bytes(), destination.1.to_be_bytes()].concat();
        segment.extend(self.transport_header());
        segment.extend([0; 64]);
        let mut bytes = vec![0; ETHERNET - 2];
        bytes.extend(self.network_header(segment.len()));
        for address in [source.0, destination.0] {
            match address {
                IpAddr::V4(address) => bytes.extend(address.octets()),
                IpAddr::V6(address) => bytes.extend(address.octets()),
            }
        }
        bytes.extend(segment);
        bytes
    }

    /// Whether `bytes` are this frame in all that a translation changes, the checksums aside.
    pub(crate) fn matches(&self, bytes: &[u8]) -> bool {
        let mine = self.bytes();
        let addresses = match self.family {
            Family::V4 => ETHERNET + 12..ETHERNET + 20,
            Family::V6 => ETHERNET + 8..ETHERNET + 40,
        };
        let ports = addresses.end..addresses.end + 4;
        let hops = match self.family {
            Family::V4 => ETHERNET + 8,
            Family::V6 => ETHERNET + 7,
        };
        mine.len() == bytes.len()
            && mine[addresses.clone()] == bytes[addresses]
            && mine[ports.clone()] == bytes[ports]
            && mine[hops] == bytes[hops]
    }

    /// The EtherType and the IP header up to its addresses.
    fn network_header(&self, payload: usize) -> Vec<u8> {
        let protocol = self.transport.number();
        match self.family {
            Family::V4 => {
                let [high, low] = (20 + payload as u16).to_be_bytes();
                vec![
                    0x08, 0x00, 0x45, 0, high, low, 0, 7, 0x40, 0, self.hops, protocol, 0x12, 0x34,
                ]
            }
            Family::V6 => {
                let [high, low] = (payload as u16).to_be_bytes();
                vec![0x86, 0xdd, 0x60, 0, 0, 0, high, low, protocol, self.hops]
            }
        }
    }

    /// What follows the ports.
    fn transport_header(&self) -> Vec<u8> {
        match self.transport {
            // Sequence and acknowledgment numbers, header length, ACK, window, checksum, urgent pointer.
            Transport::Tcp => vec![
                0, 0, 3, 232, 0, 0, 7, 208, 0x50, 0x10, 0xff, 0xff, 0x12, 0x34, 0, 0,
            ],
            Transport::Udp => vec![0, 72, 0x12, 0x34],
        }
    }
}
