//! Taking frames apart, judging their checksums, and showing where two frames differ.

use std::fmt::Write as _;
use std::net::IpAddr;

/// The sum of big-endian 16-bit words, the last one padded with a zero byte.
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    bytes
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0)))
        .sum()
}

/// Folds the carries in (RFC 1071 section 1).
pub(crate) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded to 16 bits")
}

/// The sum over the pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1).
pub(crate) fn pseudo_header(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    length: usize,
) -> u64 {
    let addresses = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            sum(&source.octets()) + sum(&destination.octets())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            sum(&source.octets()) + sum(&destination.octets())
        }
        _ => unreachable!("a packet has one family"),
    };
    let length = length as u64;
    addresses + u64::from(protocol) + (length >> 16) + (length & 0xffff)
}

/// A captured or produced frame taken apart as far as checksums need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layers<'a> {
    /// The IPv4 header, if that is the family.
    pub ipv4_header: Option<&'a [u8]>,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Transport protocol number.
    pub protocol: u8,
    /// The transport header and what follows, to the end that the network header names.
    pub segment: &'a [u8],
    /// Whether this is a part of a packet only, so that no transport checksum can be judged.
    pub fragment: bool,
}

impl<'a> Layers<'a> {
    /// Takes an Ethernet frame apart; `None` for what is neither IPv4 nor IPv6, or cut short.
    #[must_use]
    pub fn of(frame: &'a [u8]) -> Option<Self> {
        let mut ether_type = be16(frame, 12)?;
        let mut network = 14;
        while ether_type == 0x8100 {
            ether_type = be16(frame, network + 2)?;
            network += 4;
        }
        let packet = frame.get(network..)?;
        match ether_type {
            0x0800 => Self::ipv4(packet),
            0x86dd => Self::ipv6(packet),
            _ => None,
        }
    }

    fn ipv4(packet: &'a [u8]) -> Option<Self> {
        let header_length = usize::from(packet.first()? & 15) * 4;
        let header = packet.get(..header_length)?;
        let total = usize::from(be16(packet, 2)?);
        let address = |at: usize| -> Option<IpAddr> {
            Some(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?.into())
        };
        Some(Self {
            ipv4_header: Some(header),
            source: address(12)?,
            destination: address(16)?,
            protocol: *packet.get(9)?,
            segment: packet.get(header_length..total)?,
            fragment: be16(packet, 6)? & 0x3fff != 0,
        })
    }

    fn ipv6(packet: &'a [u8]) -> Option<Self> {
        let address = |at: usize| -> Option<IpAddr> {
            Some(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?.into())
        };
        let end = 40 + usize::from(be16(packet, 4)?);
        let (mut protocol, mut at, mut fragment) = (*packet.get(6)?, 40, false);
        loop {
            let length = match protocol {
                0 | 43 | 60 => 8 + usize::from(*packet.get(at + 1)?) * 8,
                44 => {
                    fragment |= be16(packet, at + 2)? & 0xfff9 != 0;
                    8
                }
                _ => break,
            };
            protocol = *packet.get(at)?;
            at += length;
        }
        Some(Self {
            ipv4_header: None,
            source: address(8)?,
            destination: address(24)?,
            protocol,
            segment: packet.get(at..end)?,
            fragment,
        })
    }

    /// Source and destination ports of TCP, UDP and SCTP.
    #[must_use]
    pub fn ports(&self) -> Option<(u16, u16)> {
        matches!(self.protocol, 6 | 17 | 132)
            .then(|| Some((be16(self.segment, 0)?, be16(self.segment, 2)?)))?
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// What is wrong with the checksums of a frame, one line each.
///
/// `partial` tells that the kernel still owes the transport checksum (`CHECKSUM_PARTIAL`): the
/// field must then hold the sum over the pseudo header, which a device completes.
#[must_use]
pub fn checksum_faults(frame: &[u8], partial: bool) -> Vec<String> {
    let Some(layers) = Layers::of(frame) else {
        return Vec::new();
    };
    let mut faults = Vec::new();
    if let Some(header) = layers.ipv4_header
        && fold(sum(header)) != 0xffff
    {
        faults.push(format!("IPv4 header sums to {:#06x}", fold(sum(header))));
    }
    let (name, field, pseudo) = match layers.protocol {
        6 => ("TCP", 16, true),
        17 => ("UDP", 6, true),
        1 => ("ICMP", 2, false),
        58 => ("ICMPv6", 2, true),
        _ => return faults,
    };
    let Some(stored) = be16(layers.segment, field) else {
        return faults;
    };
    if layers.fragment || (name == "UDP" && stored == 0 && layers.source.is_ipv4()) {
        return faults;
    }
    let start = if pseudo {
        pseudo_header(
            layers.source,
            layers.destination,
            layers.protocol,
            layers.segment.len(),
        )
    } else {
        0
    };
    let fault = if partial {
        let expected = fold(start);
        (stored != expected && !(stored == 0 && expected == 0xffff)).then(|| {
            format!("{name} partial checksum {stored:#06x}, pseudo header sums to {expected:#06x}")
        })
    } else {
        let total = fold(start + sum(layers.segment));
        (total != 0xffff)
            .then(|| format!("{name} checksum {stored:#06x}, all sums to {total:#06x}"))
    };
    if let Some(fault) = fault {
        let ports = layers.ports().unwrap_or((0, 0));
        faults.push(format!(
            "{} port {} -> {} port {}: {fault}",
            layers.source, ports.0, layers.destination, ports.1
        ));
    }
    faults
}

/// Gives a frame the checksums that belong to it, as far as it can be taken apart.
pub fn repaired(frame: &mut [u8]) {
    let Some(layers) = Layers::of(frame) else {
        return;
    };
    let offset = |part: &[u8]| part.as_ptr() as usize - frame.as_ptr() as usize;
    let header = layers
        .ipv4_header
        .map(|header| (offset(header), header.len()));
    let (start, length) = (offset(layers.segment), layers.segment.len());
    let field = match layers.protocol {
        6 => Some(16),
        17 => Some(6),
        1 | 58 => Some(2),
        _ => None,
    };
    let field = field.filter(|field| field + 2 <= length && !layers.fragment);
    let pseudo = match layers.protocol {
        1 => 0,
        number => pseudo_header(layers.source, layers.destination, number, length),
    };
    let zero_is_none = layers.protocol == 17;
    if let Some((start, length)) = header
        && length >= 20
    {
        fill(&mut frame[start..start + length], 10, 0, false);
    }
    if let Some(field) = field {
        fill(
            &mut frame[start..start + length],
            field,
            pseudo,
            zero_is_none,
        );
    }
}

fn fill(bytes: &mut [u8], field: usize, start: u64, zero_is_none: bool) {
    bytes[field..field + 2].fill(0);
    let mut checksum = !fold(start + sum(bytes));
    if checksum == 0 && zero_is_none {
        checksum = 0xffff;
    }
    bytes[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// Where two frames differ, one line a byte with the field's name; empty if they are the same.
#[must_use]
pub fn difference(expected: &[u8], found: &[u8]) -> String {
    let mut lines = String::new();
    if expected.len() != found.len() {
        let _ = writeln!(
            lines,
            "  length: expected {}, found {}",
            expected.len(),
            found.len()
        );
    }
    for (offset, (expected_byte, found_byte)) in expected.iter().zip(found).enumerate() {
        if expected_byte != found_byte {
            let _ = writeln!(
                lines,
                "  byte {offset} ({}): expected {expected_byte:#04x}, found {found_byte:#04x}",
                field_at(expected, offset)
            );
        }
    }
    lines
}

/// The name of the header field that a byte of the frame belongs to.
fn field_at(frame: &[u8], offset: usize) -> &'static str {
    const LINK: &[(usize, &str)] = &[(0, "destination MAC"), (6, "source MAC"), (12, "type")];
    const IPV4: &[(usize, &str)] = &[
        (0, "IPv4 version"),
        (2, "IPv4 length"),
        (4, "IPv4 identification"),
        (6, "IPv4 fragment"),
        (8, "IPv4 time to live"),
        (9, "IPv4 protocol"),
        (10, "IPv4 checksum"),
        (12, "IPv4 source"),
        (16, "IPv4 destination"),
        (20, "IPv4 options"),
    ];
    const IPV6: &[(usize, &str)] = &[
        (0, "IPv6 version"),
        (4, "IPv6 length"),
        (6, "IPv6 next header"),
        (7, "IPv6 hop limit"),
        (8, "IPv6 source"),
        (24, "IPv6 destination"),
        (40, "IPv6 extension"),
    ];
    const TCP: &[(usize, &str)] = &[
        (0, "TCP source port"),
        (2, "TCP destination port"),
        (4, "TCP sequence"),
        (8, "TCP acknowledgment"),
        (12, "TCP flags"),
        (14, "TCP window"),
        (16, "TCP checksum"),
        (18, "TCP urgent"),
        (20, "TCP options and data"),
    ];
    const UDP: &[(usize, &str)] = &[
        (0, "UDP source port"),
        (2, "UDP destination port"),
        (4, "UDP length"),
        (6, "UDP checksum"),
        (8, "UDP data"),
    ];
    let name = |fields: &[(usize, &'static str)], at: usize| {
        fields
            .iter()
            .rev()
            .find(|(start, _)| *start <= at)
            .map_or("?", |(_, name)| *name)
    };
    let Some(layers) = Layers::of(frame) else {
        return name(LINK, offset);
    };
    let transport = layers.segment.as_ptr() as usize - frame.as_ptr() as usize;
    let network = if be16(frame, 12) == Some(0x8100) {
        18
    } else {
        14
    };
    if offset < network {
        name(LINK, offset)
    } else if offset < transport {
        let fields = if layers.ipv4_header.is_some() {
            IPV4
        } else {
            IPV6
        };
        name(fields, offset - network)
    } else if layers.protocol == 6 {
        name(TCP, offset - transport)
    } else {
        name(UDP, offset - transport)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::packet::{Frame, flag};

    fn endpoints() -> [(SocketAddr, SocketAddr); 2] {
        [
            ("192.0.2.2:40000", "192.0.2.1:8080"),
            ("[2001:db8::2]:40000", "[2001:db8::1]:8080"),
        ]
        .map(|(source, destination)| {
            let parse = |text: &str| text.parse().expect("an address and a port");
            (parse(source), parse(destination))
        })
    }

    #[test]
    fn built_frames_have_valid_checksums_and_etherparse_agrees() {
        for (source, destination) in endpoints() {
            let tcp = Frame::tcp(source, destination, flag::SYN).carrying(b"odd");
            let mut udp = Frame::udp(source, destination, b"even");
            udp.ipv4_options = vec![7, 4, 4, 0];
            udp.ipv6_extensions = vec![(0, vec![0, 0, 1, 4, 0, 0, 0, 0])];
            let mut tagged = tcp.clone();
            tagged.vlan = Some(5);
            for frame in [tcp, udp, tagged] {
                let bytes = frame.to_bytes();
                assert_eq!(checksum_faults(&bytes, false), Vec::<String>::new());
                let sliced =
                    etherparse::SlicedPacket::from_ethernet(&bytes).expect("a whole packet");
                assert!(sliced.transport.is_some());
                let layers = Layers::of(&bytes).expect("an IP packet");
                assert_eq!(
                    layers.ports(),
                    Some((source.port(), destination.port())),
                    "{frame:?}"
                );
            }
        }
    }

    #[test]
    fn a_changed_byte_is_a_fault_and_is_named() {
        for (source, destination) in endpoints() {
            let good = Frame::tcp(source, destination, flag::SYN).to_bytes();
            let mut bad = good.clone();
            let last = bad.len() - 16; // in the TCP sequence number
            bad[last] ^= 1;
            assert_eq!(checksum_faults(&bad, false).len(), 1);
            assert_eq!(checksum_faults(&good, true).len(), 1);
            assert!(difference(&good, &bad).contains("TCP sequence"));
            assert_eq!(difference(&good, &good), "");
        }
    }
}
