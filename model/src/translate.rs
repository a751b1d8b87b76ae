//! A packet with other ends: what is written into its bytes. Each checksum is right afterwards if it was
//! before, and else as wrong as it was.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use crate::checksum::{self, Cover};
use crate::packet::{Fragment, Network, Packet};
use crate::world::Protocol;

/// What a translation changes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Change {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    /// Whether the packet passes a router: one hop less.
    pub(crate) hop: bool,
}

/// The frame of `packet` after `change`.
pub(crate) fn translated(frame: &[u8], packet: &Packet, change: &Change) -> Vec<u8> {
    let mut out = frame.to_vec();
    let transport = Segment {
        protocol: packet.ports.protocol,
        bytes: packet.network.transport..packet.end,
    };
    let before = (packet.ports.source, packet.ports.destination);
    transport.write(&mut out, before, (change.source, change.destination));
    let addresses = (change.source.ip(), change.destination.ip());
    header(&mut out, &packet.network, addresses, change.hop);
    out
}

/// A fragment that is not the first, which has no ports.
pub(crate) fn readdressed(frame: &[u8], network: &Network, change: &Change) -> Vec<u8> {
    debug_assert_eq!(network.fragment, Fragment::Later);
    let mut out = frame.to_vec();
    let addresses = (change.source.ip(), change.destination.ip());
    header(&mut out, network, addresses, change.hop);
    out
}

/// An ICMP error after `outer`, and the packet that it quotes after `inner`.
pub(crate) fn error_translated(
    frame: &[u8],
    network: &Network,
    outer: &Change,
    quote: &Quote,
    inner: &Change,
) -> Vec<u8> {
    let mut out = frame.to_vec();
    let message = network.transport..network.end;
    let cover = |source, destination| match network.source {
        IpAddr::V4(_) => Cover::Bytes,
        IpAddr::V6(_) => pseudo(source, destination, network.protocol, &message),
    };
    let before = cover(network.source, network.destination);
    let error = checksum::error(&frame[message.clone()], ICMP_CHECKSUM, before);
    let transport = Segment {
        protocol: quote.protocol,
        bytes: quote.network.transport..network.end,
    };
    let ends = (inner.source, inner.destination);
    transport.write(&mut out, (quote.source, quote.destination), ends);
    let addresses = (inner.source.ip(), inner.destination.ip());
    header(&mut out, &quote.network, addresses, inner.hop);
    let after = cover(outer.source.ip(), outer.destination.ip());
    checksum::store(&mut out[message.clone()], ICMP_CHECKSUM, after, error);
    let addresses = (outer.source.ip(), outer.destination.ip());
    header(&mut out, network, addresses, outer.hop);
    out
}

/// Offset of the checksum in an ICMP header (RFC 792, RFC 4443).
const ICMP_CHECKSUM: usize = 2;

/// The packet that an ICMP error quotes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quote {
    pub(crate) network: Network,
    pub(crate) protocol: Protocol,
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
}

/// A transport header and what follows, as far as it is there.
struct Segment {
    protocol: Protocol,
    bytes: Range<usize>,
}

impl Segment {
    /// Writes other ports, and the checksum if it is among the bytes. That it may not be possible to compute
    /// it, because bytes are missing, does not matter: they stay the same, and so does their sum.
    fn write(
        &self,
        frame: &mut [u8],
        before: (SocketAddr, SocketAddr),
        after: (SocketAddr, SocketAddr),
    ) {
        let cover = |(source, destination): (SocketAddr, SocketAddr)| {
            let number = self.protocol.number();
            pseudo(source.ip(), destination.ip(), number, &self.bytes)
        };
        let field = self.checksum(frame);
        let bytes = &mut frame[self.bytes.clone()];
        let error = field.map(|field| checksum::error(bytes, field, cover(before)));
        bytes[0..2].copy_from_slice(&after.0.port().to_be_bytes());
        bytes[2..4].copy_from_slice(&after.1.port().to_be_bytes());
        if let (Some(field), Some(error)) = (field, error) {
            checksum::store(bytes, field, cover(after), error);
            // A UDP checksum that comes to 0 is sent as ones (RFC 768).
            if self.protocol == Protocol::Udp && bytes[6..8] == [0, 0] {
                bytes[6..8].fill(0xff);
            }
        }
    }

    /// Where the checksum is that changes, if there is one: that of SCTP covers no addresses, and a UDP
    /// checksum of 0 is none (RFC 768, and RFC 6936 for IPv6).
    fn checksum(&self, frame: &[u8]) -> Option<usize> {
        let bytes = &frame[self.bytes.clone()];
        match self.protocol {
            Protocol::Tcp => (bytes.len() >= 18).then_some(16),
            Protocol::Udp => (bytes.len() >= 8 && bytes[6..8] != [0, 0]).then_some(6),
            Protocol::Sctp => None,
        }
    }
}

fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, bytes: &Range<usize>) -> Cover {
    Cover::Pseudo {
        source,
        destination,
        protocol,
        length: bytes.len(),
    }
}

/// Writes other addresses into a network header, one hop less if `hop`, and the IPv4 checksum.
fn header(frame: &mut [u8], network: &Network, addresses: (IpAddr, IpAddr), hop: bool) {
    const IPV4_CHECKSUM: usize = 10;
    let start = network.start;
    match addresses {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let header = &mut frame[start..network.transport];
            let error = checksum::error(header, IPV4_CHECKSUM, Cover::Bytes);
            header[12..16].copy_from_slice(&source.octets());
            header[16..20].copy_from_slice(&destination.octets());
            header[8] -= u8::from(hop);
            checksum::store(header, IPV4_CHECKSUM, Cover::Bytes, error);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let header = &mut frame[start..start + 40];
            header[8..24].copy_from_slice(&source.octets());
            header[24..40].copy_from_slice(&destination.octets());
            header[7] -= u8::from(hop);
        }
        _ => unreachable!("a translation stays in its family"),
    }
}
