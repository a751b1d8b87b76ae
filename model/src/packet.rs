//! Frames read: the network header, the ports, the transport header.

use std::net::{IpAddr, SocketAddr};

use crate::outcome::Input;
use crate::world::{Protocol, Rules};

/// Length of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
/// EtherTypes of VLAN tags (IEEE 802.1Q, table 9-1).
const TAGS: [u16; 2] = [0x8100, 0x88a8];

/// TCP flags (RFC 9293, section 3.1).
pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

/// Why a frame could not be read any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unread {
    /// It holds something that portfwd does not translate.
    Other,
    /// Its headers are cut, or contradict each other.
    Malformed,
}

/// Place of a packet in its datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fragment {
    Whole,
    First,
    Later,
}

/// A network header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Network {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) hops: u8,
    /// Number of the header at `transport`.
    pub(crate) protocol: u8,
    /// Where the network header's payload begins.
    pub(crate) transport: usize,
    /// Where the packet ends: what follows is padding of the frame.
    pub(crate) end: usize,
    pub(crate) fragment: Fragment,
}

/// The ends of a packet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ports {
    pub(crate) protocol: Protocol,
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
}

/// What the fate of a flow depends on in a TCP segment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment {
    pub(crate) flags: u8,
    pub(crate) sequence: u32,
    pub(crate) acknowledgment: u32,
}

impl Segment {
    /// Whether it asks for a new connection.
    pub(crate) fn opens(self) -> bool {
        self.flags & (SYN | ACK | RST | FIN) == SYN
    }
}

/// A packet that can be translated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packet {
    pub(crate) network: Network,
    pub(crate) ports: Ports,
    /// Of TCP.
    pub(crate) segment: Option<Segment>,
    /// Where what the transport checksum covers ends.
    pub(crate) end: usize,
}

impl Packet {
    /// Length of all headers, Ethernet's included.
    pub(crate) fn headers(&self, frame: &[u8]) -> usize {
        let transport = match self.segment {
            Some(_) => usize::from(frame[self.network.transport + 12] >> 4) * 4,
            None => 8,
        };
        self.network.transport + transport
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The EtherType, or nothing if there is not even that.
fn ether_type(frame: &[u8]) -> Option<u16> {
    be16(frame, ETHERNET - 2)
}

/// Whether a VLAN tag follows the hardware addresses.
pub(crate) fn is_tagged(frame: &[u8]) -> bool {
    ether_type(frame).is_some_and(|kind| TAGS.contains(&kind))
}

/// Reads the network header of a frame.
pub(crate) fn network(input: &Input<'_>, rules: Rules) -> Result<Network, Unread> {
    // Packets that are going to be cut may be longer than the header can say; it then says 0 (BIG TCP).
    let unsaid = input.segment != 0 || !rules.length_needed;
    let read = match ether_type(input.frame) {
        Some(IPV4) => ipv4(input.frame, unsaid),
        Some(IPV6) => ipv6(input.frame, unsaid),
        _ => return Err(Unread::Other),
    };
    read.ok_or(Unread::Malformed)
}

/// Where a packet ends that says it is `told` bytes long from the IP header on, `unsaid` if it does not.
fn end(frame: &[u8], told: usize, unsaid: bool) -> Option<usize> {
    if unsaid {
        return Some(frame.len());
    }
    let end = ETHERNET + told;
    (end <= frame.len()).then_some(end)
}

fn ipv4(frame: &[u8], unsaid: bool) -> Option<Network> {
    let header = frame.get(ETHERNET..ETHERNET + 20)?;
    let length = usize::from(header[0] & 15) * 4;
    let told = usize::from(be16(header, 2)?);
    let end = end(frame, told, unsaid && told == 0)?;
    if header[0] >> 4 != 4 || length < 20 || ETHERNET + length > end {
        return None;
    }
    let address = |at: usize| -> Option<IpAddr> {
        Some(<[u8; 4]>::try_from(header.get(at..at + 4)?).ok()?.into())
    };
    Some(Network {
        source: address(12)?,
        destination: address(16)?,
        hops: header[8],
        protocol: header[9],
        transport: ETHERNET + length,
        end,
        fragment: match be16(header, 6)? & 0x3fff {
            0 => Fragment::Whole,
            0x2000 => Fragment::First,
            _ => Fragment::Later,
        },
    })
}

fn ipv6(frame: &[u8], unsaid: bool) -> Option<Network> {
    let header = frame.get(ETHERNET..ETHERNET + 40)?;
    let payload = usize::from(be16(header, 4)?);
    let end = end(frame, 40 + payload, unsaid && payload == 0)?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let address = |at: usize| -> Option<IpAddr> {
        Some(<[u8; 16]>::try_from(header.get(at..at + 16)?).ok()?.into())
    };
    Some(Network {
        source: address(8)?,
        destination: address(24)?,
        hops: header[7],
        protocol: header[6],
        transport: ETHERNET + 40,
        end,
        fragment: Fragment::Whole,
    })
}

/// Reads the ports. They are what tells whose a packet is, so they are read although the packet may
/// turn out malformed behind them.
pub(crate) fn ports(frame: &[u8], network: &Network) -> Result<Ports, Unread> {
    if network.fragment == Fragment::Later {
        return Err(Unread::Other);
    }
    let protocol = match Protocol::from_number(network.protocol) {
        Some(protocol @ (Protocol::Tcp | Protocol::Udp)) => protocol,
        _ => return Err(Unread::Other),
    };
    let port = |at: usize| be16(frame, network.transport + at).ok_or(Unread::Malformed);
    Ok(Ports {
        protocol,
        source: SocketAddr::new(network.source, port(0)?),
        destination: SocketAddr::new(network.destination, port(2)?),
    })
}

/// Reads the transport header.
pub(crate) fn transport(frame: &[u8], network: Network, ports: Ports) -> Result<Packet, Unread> {
    let bytes = frame
        .get(network.transport..network.end)
        .ok_or(Unread::Malformed)?;
    let read = match ports.protocol {
        Protocol::Tcp => tcp(bytes).map(|segment| (Some(segment), network.end)),
        Protocol::Udp => udp(bytes, network.fragment == Fragment::Whole)
            .map(|length| (None, network.transport + length)),
        Protocol::Sctp => None,
    };
    let (segment, end) = read.ok_or(Unread::Malformed)?;
    Ok(Packet {
        network,
        ports,
        segment,
        end,
    })
}

/// A TCP header, whose data offset lies between the header's least length and the packet's end.
fn tcp(bytes: &[u8]) -> Option<Segment> {
    let length = usize::from(bytes.get(12)? >> 4) * 4;
    if length < 20 || length > bytes.len() {
        return None;
    }
    Some(Segment {
        flags: bytes[13],
        sequence: be32(bytes, 4)?,
        acknowledgment: be32(bytes, 8)?,
    })
}

/// The length of a UDP datagram, which may leave bytes of the packet unused but not exceed it, its first
/// fragment apart.
fn udp(bytes: &[u8], whole: bool) -> Option<usize> {
    let length = usize::from(be16(bytes, 4)?);
    let fits = bytes.len() >= 8 && length >= 8 && (length <= bytes.len() || !whole);
    fits.then_some(length)
}
