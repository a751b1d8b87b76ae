//! Checksums, each computed over everything that it covers.

use std::net::IpAddr;

/// One's complement sum (RFC 1071) of big-endian words, an odd last byte being padded with zero.
fn sum(bytes: &[u8]) -> u64 {
    bytes
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u64::from(low)))
        .sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum over a pseudo header (RFC 9293, section 3.1; RFC 8200, section 8.1).
fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u64 {
    let address = |address: IpAddr| match address {
        IpAddr::V4(v4) => sum(&v4.octets()),
        IpAddr::V6(v6) => sum(&v6.octets()),
    };
    let length = length as u64;
    address(source)
        + address(destination)
        + u64::from(protocol)
        + (length >> 16)
        + (length & 0xffff)
}

/// What a checksum covers beside bytes of the packet.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Cover {
    /// Nothing: an IPv4 header, ICMP of IPv4.
    Bytes,
    /// The addresses, the protocol, and the length that the transport header goes by.
    Pseudo {
        source: IpAddr,
        destination: IpAddr,
        protocol: u8,
        length: usize,
    },
}

/// The checksum that belongs into `bytes` at `field`, where 0xffff never stands for 0.
pub(crate) fn right(bytes: &[u8], field: usize, cover: Cover) -> u16 {
    let pseudo = match cover {
        Cover::Bytes => 0,
        Cover::Pseudo {
            source,
            destination,
            protocol,
            length,
        } => pseudo(source, destination, protocol, length),
    };
    let others = sum(&bytes[..field]) + sum(&bytes[field + 2..]);
    !fold(pseudo + others)
}

/// How far the checksum in `bytes` at `field` is from the right one: 0 if it is right.
pub(crate) fn error(bytes: &[u8], field: usize, cover: Cover) -> u16 {
    let stored = u16::from_be_bytes([bytes[field], bytes[field + 1]]);
    let difference = fold(u64::from(stored) + u64::from(!right(bytes, field, cover)));
    if difference == 0xffff { 0 } else { difference }
}

/// Stores a checksum that is as wrong as `error` says: translating a damaged packet must not make it
/// look sound.
pub(crate) fn store(bytes: &mut [u8], field: usize, cover: Cover, error: u16) {
    let sum = fold(u64::from(right(bytes, field, cover)) + u64::from(error));
    let sum = if sum == 0xffff { 0 } else { sum };
    bytes[field..field + 2].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 1071, section 3, with a field of two bytes in front.
    const EXAMPLE: [u8; 10] = [0, 0, 0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];

    #[test]
    fn the_sum_is_that_of_the_rfcs_example() {
        assert_eq!(right(&EXAMPLE, 0, Cover::Bytes), !0xddf2);
    }

    #[test]
    fn a_wrong_checksum_stays_as_wrong_when_the_bytes_change() {
        for wrong_by in [0, 1, 0x1234, 0xfffe] {
            let mut bytes = EXAMPLE;
            store(&mut bytes, 0, Cover::Bytes, wrong_by);
            let error = error(&bytes, 0, Cover::Bytes);
            assert_eq!(error, wrong_by);
            bytes[5] = 0x77;
            store(&mut bytes, 0, Cover::Bytes, error);
            assert_eq!(super::error(&bytes, 0, Cover::Bytes), wrong_by);
        }
    }
}
