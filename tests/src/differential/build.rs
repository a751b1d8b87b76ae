//! Frames that [`crate::packet`] does not make: ICMP errors, SCTP, datagrams in fragments.

use std::net::{IpAddr, SocketAddr};

use super::random::Random;
use crate::layers::{Layers, repaired};
use crate::packet::Frame;

const ETHERNET: usize = 14;
/// Next-header number of an IPv6 fragment header (RFC 8200, section 4.5).
const FRAGMENT: u8 = 44;

/// An IP packet in an Ethernet frame, with right lengths and checksums.
pub(super) fn wrapped(from: IpAddr, to: IpAddr, protocol: u8, hops: u8, payload: &[u8]) -> Vec<u8> {
    // The datagram is only there to be replaced.
    let ends = (SocketAddr::new(from, 0), SocketAddr::new(to, 0));
    let mut frame = Frame::udp(ends.0, ends.1, &[]).to_bytes();
    frame.truncate(frame.len() - 8);
    frame.extend_from_slice(payload);
    let length = u16::try_from(payload.len()).unwrap_or(u16::MAX);
    if from.is_ipv4() {
        frame[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&(20 + length).to_be_bytes());
        frame[ETHERNET + 8] = hops;
        frame[ETHERNET + 9] = protocol;
    } else {
        frame[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&length.to_be_bytes());
        frame[ETHERNET + 6] = protocol;
        frame[ETHERNET + 7] = hops;
    }
    repaired(&mut frame);
    frame
}

/// An ICMP error of `from` to whoever sent the packet in `about`, of which it quotes up to `quote` bytes.
pub(super) fn icmp_error(
    random: &mut Random,
    from: IpAddr,
    about: &[u8],
    quote: usize,
) -> Option<Vec<u8>> {
    let to = Layers::of(about)?.source;
    if to.is_ipv4() != from.is_ipv4() {
        return None;
    }
    let (protocol, kinds) = match to {
        IpAddr::V4(_) => (1, [3, 3, 11, 12, 5, 4, 8]),
        IpAddr::V6(_) => (58, [1, 2, 3, 4, 2, 128, 137]),
    };
    let mut message = vec![random.pick(&kinds), random.pick(&[0, 1, 3, 4]), 0, 0];
    message.extend(random.bytes(4));
    let packet = &about[ETHERNET..];
    message.extend_from_slice(&packet[..quote.min(packet.len())]);
    let hops = random.pick(&[64, 64, 64, 255, 1]);
    Some(wrapped(from, to, protocol, hops, &message))
}

/// An SCTP packet with one chunk.
pub(super) fn sctp(random: &mut Random, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend_from_slice(&from.port().to_be_bytes());
    packet.extend_from_slice(&to.port().to_be_bytes());
    packet.extend(random.bytes(8)); // verification tag, and a checksum that nobody looks at
    packet.extend([
        random.pick(&[0, 1, 1, 1, 2, 3, 6, 7, 8, 10, 11, 14]),
        0,
        0,
        4,
    ]);
    let more = random.below(30);
    packet.extend(random.bytes(more));
    wrapped(from.ip(), to.ip(), 132, 64, &packet)
}

/// A whole packet cut into fragments of `size` bytes, which is a multiple of 8. `None` if it is too small.
pub(super) fn fragments(frame: &[u8], size: usize, identification: u16) -> Option<Vec<Vec<u8>>> {
    let layers = Layers::of(frame)?;
    let start = layers.segment.as_ptr() as usize - frame.as_ptr() as usize;
    let (headers, payload) = (&frame[..start], layers.segment);
    if payload.len() <= size || layers.fragment {
        return None;
    }
    let count = payload.len().div_ceil(size);
    let cut = payload.chunks(size).enumerate().map(|(place, piece)| {
        let offset = u16::try_from(place * size / 8).unwrap_or(0);
        let more = place + 1 < count;
        let mut fragment = headers.to_vec();
        if layers.source.is_ipv4() {
            let length = start - ETHERNET + piece.len();
            put(&mut fragment, ETHERNET + 2, u16::try_from(length).ok()?);
            put(&mut fragment, ETHERNET + 4, identification);
            put(&mut fragment, ETHERNET + 6, offset | u16::from(more) << 13);
        } else {
            let length = start - ETHERNET - 40 + 8 + piece.len();
            put(&mut fragment, ETHERNET + 4, u16::try_from(length).ok()?);
            // Behind the extension headers that are there.
            let link = last_next_header(&fragment, start);
            fragment[link] = FRAGMENT;
            fragment.extend([layers.protocol, 0, 0, 0, 0, 0, 0, 0]);
            put(&mut fragment, start + 2, offset << 3 | u16::from(more));
            put(&mut fragment, start + 6, identification);
        }
        fragment.extend_from_slice(piece);
        repaired(&mut fragment);
        Some(fragment)
    });
    cut.collect()
}

/// Where the number of the header at `end` stands.
fn last_next_header(frame: &[u8], end: usize) -> usize {
    let (mut link, mut at) = (ETHERNET + 6, ETHERNET + 40);
    while at < end {
        link = at;
        at += 8 + usize::from(frame[at + 1]) * 8;
    }
    link
}

fn put(frame: &mut [u8], at: usize, value: u16) {
    frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
