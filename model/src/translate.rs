//! A packet with other ends: what is written into its bytes.

use std::net::{IpAddr, SocketAddr};

use crate::checksum::{self, Cover};
use crate::packet::{ETHERNET, Packet};
use crate::world::Protocol;

/// What a translation changes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Change {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    /// Whether the packet passes a router: one hop less.
    pub(crate) hop: bool,
}

/// The frame of `packet` after `change`. Each checksum is right if it was, and else as wrong as it was.
pub(crate) fn translated(frame: &[u8], packet: &Packet, change: &Change) -> Vec<u8> {
    let mut out = frame.to_vec();
    let header = ETHERNET..packet.network.transport;
    let header_error = match packet.network.source {
        IpAddr::V4(_) => checksum::error(&frame[header.clone()], 10, Cover::Bytes),
        IpAddr::V6(_) => 0,
    };
    let (field, absent) = checksum_field(frame, packet);
    let body = packet.network.transport..packet.end;
    let before = cover(
        packet,
        packet.ports.source.ip(),
        packet.ports.destination.ip(),
    );
    let error = checksum::error(&frame[body.clone()], field, before);

    write_addresses(&mut out, change.source.ip(), change.destination.ip());
    if change.hop {
        out[hops_at(packet)] -= 1;
    }
    if packet.network.source.is_ipv4() {
        checksum::store(&mut out[header], 10, Cover::Bytes, header_error);
    }
    let at = packet.network.transport;
    out[at..at + 2].copy_from_slice(&change.source.port().to_be_bytes());
    out[at + 2..at + 4].copy_from_slice(&change.destination.port().to_be_bytes());
    if !absent {
        let after = cover(packet, change.source.ip(), change.destination.ip());
        checksum::store(&mut out[body], field, after, error);
        mark_computed_zero(&mut out[at..], packet.ports.protocol);
    }
    out
}

/// Where the checksum lies in the transport header, and whether there is none: a UDP checksum of 0 (RFC
/// 768, and RFC 6936 for IPv6).
fn checksum_field(frame: &[u8], packet: &Packet) -> (usize, bool) {
    match packet.ports.protocol {
        Protocol::Udp => {
            let at = packet.network.transport + 6;
            (6, frame[at..at + 2] == [0, 0])
        }
        Protocol::Tcp | Protocol::Sctp => (16, false),
    }
}

/// A UDP checksum that comes to 0 is sent as ones (RFC 768).
fn mark_computed_zero(transport: &mut [u8], protocol: Protocol) {
    if protocol == Protocol::Udp && transport[6..8] == [0, 0] {
        transport[6..8].fill(0xff);
    }
}

fn cover(packet: &Packet, source: IpAddr, destination: IpAddr) -> Cover {
    Cover::Pseudo {
        source,
        destination,
        protocol: packet.network.protocol,
        length: packet.end - packet.network.transport,
    }
}

fn hops_at(packet: &Packet) -> usize {
    match packet.network.source {
        IpAddr::V4(_) => ETHERNET + 8,
        IpAddr::V6(_) => ETHERNET + 7,
    }
}

fn write_addresses(frame: &mut [u8], source: IpAddr, destination: IpAddr) {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame[ETHERNET + 12..ETHERNET + 16].copy_from_slice(&source.octets());
            frame[ETHERNET + 16..ETHERNET + 20].copy_from_slice(&destination.octets());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            frame[ETHERNET + 8..ETHERNET + 24].copy_from_slice(&source.octets());
            frame[ETHERNET + 24..ETHERNET + 40].copy_from_slice(&destination.octets());
        }
        _ => unreachable!("a translation stays in its family"),
    }
}
