//! Frames read: the network header, the ports, the transport header.

use std::net::{IpAddr, SocketAddr};

use crate::outcome::Input;
use crate::world::Protocol;

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

/// IPv6 extension headers that are walked past (RFC 8200, section 4).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
/// As many as RFC 8200, section 4.1, allows, without those that are not walked past.
const MOST_EXTENSIONS: usize = 6;
/// Where in a frame a transport header may begin behind them.
const MOST_HEADERS: usize = 440;

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
    /// Where it begins.
    pub(crate) start: usize,
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
    /// What the fragments of a datagram have in common.
    pub(crate) identification: u32,
    /// Whether there are IPv6 extension headers.
    pub(crate) extended: bool,
    /// Whether a router may cut it (RFC 791, section 2.3: without "don't fragment").
    pub(crate) may_be_cut: bool,
}

/// The ends of a packet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ports {
    pub(crate) protocol: Protocol,
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
}

/// What the fate of a flow depends on in a TCP segment, or in an SCTP packet that does the same.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment {
    pub(crate) flags: u8,
    pub(crate) sequence: u32,
    /// Whether there is an acknowledgment number.
    pub(crate) acknowledges: bool,
    pub(crate) acknowledgment: u32,
    /// Whether it carries data.
    pub(crate) data: bool,
}

impl Segment {
    /// Whether it asks for a new connection.
    pub(crate) fn opens(self) -> bool {
        self.flags & (SYN | ACK | RST | FIN) == SYN
    }

    /// Whether it is more than a step of an established connection.
    pub(crate) fn turns(self) -> bool {
        self.flags & (SYN | RST | FIN) != 0
    }
}

/// A packet that can be translated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packet {
    pub(crate) network: Network,
    pub(crate) ports: Ports,
    /// Of TCP and SCTP.
    pub(crate) segment: Option<Segment>,
    /// Where what the transport checksum covers ends.
    pub(crate) end: usize,
    /// Length of all headers, Ethernet's included.
    pub(crate) headers: usize,
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn v4(bytes: &[u8], at: usize) -> Option<IpAddr> {
    Some(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?.into())
}

fn v6(bytes: &[u8], at: usize) -> Option<IpAddr> {
    Some(<[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok()?.into())
}

/// The EtherType, or nothing if there is not even that.
fn ether_type(frame: &[u8]) -> Option<u16> {
    be16(frame, ETHERNET - 2)
}

/// Whether a VLAN tag follows the hardware addresses.
pub(crate) fn is_tagged(frame: &[u8]) -> bool {
    ether_type(frame).is_some_and(|kind| TAGS.contains(&kind))
}

/// Reads the network header of a frame without its extensions.
pub(crate) fn network(input: &Input<'_>) -> Result<Network, Unread> {
    // Packets that are going to be cut may be longer than the header can say; it then says 0 (BIG TCP).
    let unsaid = input.segment != 0;
    let read = match ether_type(input.frame) {
        Some(IPV4) => ipv4(input.frame, ETHERNET, unsaid),
        Some(IPV6) => ipv6(input.frame, ETHERNET, unsaid),
        _ => return Err(Unread::Other),
    };
    let network = read.ok_or(Unread::Malformed)?;
    if network.end > input.frame.len() || network.end < network.transport {
        return Err(Unread::Malformed);
    }
    Ok(network)
}

/// The header of a packet that an ICMP error quotes, which may end anywhere behind it.
pub(crate) fn quoted(frame: &[u8], start: usize, outer: &Network) -> Option<Network> {
    let read = match outer.source {
        IpAddr::V4(_) => ipv4(frame, start, true)?,
        IpAddr::V6(_) => ipv6(frame, start, true)?,
    };
    let network = Network {
        end: frame.len(),
        ..read
    };
    let walked = walked(frame, network).ok()?;
    (walked.fragment != Fragment::Later).then_some(walked)
}

fn ipv4(frame: &[u8], start: usize, unsaid: bool) -> Option<Network> {
    let header = frame.get(start..start + 20)?;
    let length = usize::from(header[0] & 15) * 4;
    let told = usize::from(be16(header, 2)?);
    let end = if unsaid && told == 0 {
        frame.len()
    } else {
        start + told
    };
    if header[0] >> 4 != 4 || length < 20 {
        return None;
    }
    Some(Network {
        start,
        source: v4(header, 12)?,
        destination: v4(header, 16)?,
        hops: header[8],
        protocol: header[9],
        transport: start + length,
        end,
        fragment: match be16(header, 6)? & 0x3fff {
            0 => Fragment::Whole,
            0x2000 => Fragment::First,
            _ => Fragment::Later,
        },
        identification: be16(header, 4)?.into(),
        extended: false,
        may_be_cut: be16(header, 6)? & 0x4000 == 0,
    })
}

fn ipv6(frame: &[u8], start: usize, unsaid: bool) -> Option<Network> {
    let header = frame.get(start..start + 40)?;
    let payload = usize::from(be16(header, 4)?);
    let end = if unsaid && payload == 0 {
        frame.len()
    } else {
        start + 40 + payload
    };
    if header[0] >> 4 != 6 {
        return None;
    }
    Some(Network {
        start,
        source: v6(header, 8)?,
        destination: v6(header, 24)?,
        hops: header[7],
        protocol: header[6],
        transport: start + 40,
        end,
        fragment: Fragment::Whole,
        identification: 0,
        may_be_cut: false,
        extended: matches!(
            header[6],
            HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS
        ),
    })
}

/// The same header, with IPv6 extension headers walked past.
pub(crate) fn walked(frame: &[u8], network: Network) -> Result<Network, Unread> {
    let mut network = network;
    if network.source.is_ipv4() {
        return Ok(network);
    }
    for _ in 0..MOST_EXTENSIONS {
        let kind = network.protocol;
        let walks = matches!(kind, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS);
        if !walks || network.fragment == Fragment::Later {
            return Ok(network);
        }
        let at = network.transport;
        let header = frame.get(at..at + 8).ok_or(Unread::Malformed)?;
        let length = match kind {
            FRAGMENT => {
                network.fragment = match u16::from_be_bytes([header[2], header[3]]) & 0xfff9 {
                    0 => Fragment::Whole, // RFC 6946
                    1 => Fragment::First,
                    _ => Fragment::Later,
                };
                network.identification = be32(header, 4).unwrap_or(0);
                8
            }
            // With segments left, the destination is not the last one (RFC 8200, section 4.4).
            ROUTING if header[3] != 0 => return Err(Unread::Other),
            _ => 8 + usize::from(header[1]) * 8,
        };
        network.protocol = header[0];
        network.transport += length;
        if network.transport > MOST_HEADERS || network.transport > network.end {
            return Err(Unread::Malformed);
        }
    }
    Err(Unread::Other)
}

/// Reads the ports. They are what tells whose a packet is, so they are read although the packet may
/// turn out malformed behind them.
pub(crate) fn ports(frame: &[u8], network: &Network) -> Result<Ports, Unread> {
    let protocol = Protocol::from_number(network.protocol).ok_or(Unread::Other)?;
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
    let whole = network.fragment == Fragment::Whole;
    let read = match ports.protocol {
        Protocol::Tcp => tcp(bytes),
        Protocol::Udp => udp(bytes, whole),
        Protocol::Sctp => sctp(bytes),
    };
    let (segment, header, covered) = read.ok_or(Unread::Malformed)?;
    Ok(Packet {
        network,
        ports,
        segment,
        end: network.transport + covered,
        headers: network.transport + header,
    })
}

/// What a transport header holds, how long it is, and how much the checksum covers.
type Transport = (Option<Segment>, usize, usize);

/// A TCP header, whose data offset lies between the header's least length and the packet's end.
fn tcp(bytes: &[u8]) -> Option<Transport> {
    let length = usize::from(bytes.get(12)? >> 4) * 4;
    if length < 20 || length > bytes.len() {
        return None;
    }
    let segment = Segment {
        flags: bytes[13],
        sequence: be32(bytes, 4)?,
        acknowledges: true,
        acknowledgment: be32(bytes, 8)?,
        data: bytes.len() > length,
    };
    Some((Some(segment), length, bytes.len()))
}

/// A UDP header, whose length may leave bytes of the packet unused but not exceed it, a first fragment
/// apart.
fn udp(bytes: &[u8], whole: bool) -> Option<Transport> {
    let length = usize::from(be16(bytes, 4)?);
    let fits = bytes.len() >= 8 && length >= 8 && (length <= bytes.len() || !whole);
    fits.then_some((None, 8, length.min(bytes.len())))
}

/// An SCTP header with its first chunk, of which INIT stands for a SYN, INIT ACK for its answer, ABORT for
/// a RST, and each part of the shutdown for a FIN (RFC 9260, section 3.2).
fn sctp(bytes: &[u8]) -> Option<Transport> {
    let flags = match bytes.get(12)? {
        1 => SYN,
        2 => SYN | ACK,
        6 => RST,
        7 | 8 | 14 => FIN | ACK,
        _ => ACK,
    };
    let segment = Segment {
        flags,
        sequence: 0,
        acknowledges: false,
        acknowledgment: 0,
        data: true,
    };
    (bytes.len() >= 16).then_some((Some(segment), 12, bytes.len()))
}
