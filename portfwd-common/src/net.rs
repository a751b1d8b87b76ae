//! Addresses, ports and protocols as packets and maps hold them.

use bytemuck::{Pod, Zeroable};

/// A TCP or UDP port in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct NetPort(u16);

impl NetPort {
    /// From a number in host order.
    #[inline(always)]
    pub const fn new(port: u16) -> Self {
        Self(port.to_be())
    }
    /// From the 16 bits as they lie in the packet.
    #[inline(always)]
    pub const fn from_wire(bits: u16) -> Self {
        Self(bits)
    }
    /// The 16 bits as they lie in the packet.
    #[inline(always)]
    pub const fn wire(self) -> u16 {
        self.0
    }
    /// The number, in host order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }
}

impl core::fmt::Debug for NetPort {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}", self.get())
    }
}

/// Transport protocols that can be published.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Protocol {
    /// RFC 9293.
    Tcp = 6,
    /// RFC 768.
    Udp = 17,
    /// RFC 9260.
    Sctp = 132,
}

impl Protocol {
    /// From the protocol number of the IP header.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }
    /// The protocol number of the IP header.
    #[inline(always)]
    pub const fn number(self) -> u8 {
        self as u8
    }
    /// Place among the planes of the port table.
    #[inline(always)]
    pub const fn plane(self) -> u32 {
        match self {
            Self::Tcp => 0,
            Self::Udp => 1,
            Self::Sctp => 2,
        }
    }
    /// As a SPEC and a listing write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// An address of either family, 16 bytes in network order: IPv4 stands as `::ffff:a.b.c.d` (RFC 4291,
/// section 2.5.5.2), so that one key serves both.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Ip {
    high: u64,
    low: u64,
}

/// The upper half of the lower eight bytes of a mapped address: `0000 ffff`.
const MAPPED: u64 = 0xffff_0000_0000u64.to_be();

impl Ip {
    /// All zeros: no address, or any.
    pub const NONE: Self = Self { high: 0, low: 0 };

    /// From the 16 bytes of an IPv6 address, or of a mapped IPv4 one.
    pub const fn from_octets(octets: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        Self {
            high: u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            low: u64::from_ne_bytes([i, j, k, l, m, n, o, p]),
        }
    }
    /// The 16 bytes, IPv4 mapped.
    pub fn octets(self) -> [u8; 16] {
        let mut octets = [0; 16];
        octets[..8].copy_from_slice(&self.high.to_ne_bytes());
        octets[8..].copy_from_slice(&self.low.to_ne_bytes());
        octets
    }
    /// The same as two words in network order.
    #[inline(always)]
    pub const fn halves(self) -> [u64; 2] {
        [self.high, self.low]
    }
    /// Whether it is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        self.high == 0 && self.low & 0xffff_ffff_0000_0000u64.to_be() == MAPPED
    }
    /// Whether it is `0.0.0.0`, `::` or nothing at all.
    #[inline(always)]
    pub const fn is_unspecified(self) -> bool {
        self.high == 0 && (self.low == 0 || self.low == MAPPED)
    }
}

impl From<core::net::IpAddr> for Ip {
    fn from(address: core::net::IpAddr) -> Self {
        Self::from_octets(match address {
            core::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            core::net::IpAddr::V6(v6) => v6.octets(),
        })
    }
}

impl From<Ip> for core::net::IpAddr {
    fn from(ip: Ip) -> Self {
        core::net::Ipv6Addr::from(ip.octets()).to_canonical()
    }
}

impl core::fmt::Debug for Ip {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}", core::net::IpAddr::from(*self))
    }
}

/// An address as a packet of its family holds it.
pub trait Address: Copy + PartialEq + Pod {
    /// 0 for IPv4, 1 for IPv6: place among the planes of the port table.
    const FAMILY: u32;
    /// Any member as the family-independent type.
    fn ip(self) -> Ip;
    /// The other way; the family is the caller's to know.
    fn from_ip(ip: Ip) -> Self;
    /// The address at the start of the 16 bytes that the kernel's helpers take for both families.
    fn halves(self) -> [u64; 2];
    /// The other way.
    fn from_halves(halves: [u64; 2]) -> Self;
    /// One's complement sum (RFC 1071) over its 16-bit words, not folded.
    fn sum(self) -> u64;
    /// 127/8 or ::1.
    fn is_loopback(self) -> bool;
    /// Destinations that no forward may translate: unspecified, loopback, link-local, multicast and
    /// limited broadcast.
    fn is_never_forwarded(self) -> bool;
    /// 224/4 or ff00::/8.
    fn is_multicast(self) -> bool;
    /// Sources that nobody sends from: unspecified, loopback, multicast and reserved ones.
    fn is_impossible_source(self) -> bool;
}

/// An IPv4 address in network order.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Pod, Zeroable)]
pub struct V4(pub u32);

/// An IPv6 address in network order, as two halves so that copies stay register moves in eBPF.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Pod, Zeroable)]
pub struct V6(pub u64, pub u64);

impl Address for V4 {
    const FAMILY: u32 = 0;

    #[inline(always)]
    fn ip(self) -> Ip {
        Ip {
            high: 0,
            low: if cfg!(target_endian = "little") {
                (self.0 as u64) << 32 | MAPPED
            } else {
                MAPPED | self.0 as u64
            },
        }
    }
    #[inline(always)]
    fn from_ip(ip: Ip) -> Self {
        Self(if cfg!(target_endian = "little") {
            (ip.low >> 32) as u32
        } else {
            ip.low as u32
        })
    }
    #[inline(always)]
    fn halves(self) -> [u64; 2] {
        [self.0 as u64, 0]
    }
    #[inline(always)]
    fn from_halves(halves: [u64; 2]) -> Self {
        Self(halves[0] as u32)
    }
    #[inline(always)]
    fn sum(self) -> u64 {
        self.0 as u64
    }
    #[inline(always)]
    fn is_loopback(self) -> bool {
        u32::from_be(self.0) >> 24 == 127
    }
    #[inline(always)]
    fn is_never_forwarded(self) -> bool {
        let host = u32::from_be(self.0);
        let first = host >> 24;
        // 224/4 is multicast, 240/4 reserved, the last of it limited broadcast; 0/8 is "this network".
        first == 0 || first == 127 || first >= 224 || host >> 16 == 0xa9fe
    }
    #[inline(always)]
    fn is_multicast(self) -> bool {
        u32::from_be(self.0) >> 28 == 0xe
    }
    #[inline(always)]
    fn is_impossible_source(self) -> bool {
        let first = u32::from_be(self.0) >> 24;
        first == 0 || first == 127 || first >= 224
    }
}

impl Address for V6 {
    const FAMILY: u32 = 1;

    #[inline(always)]
    fn ip(self) -> Ip {
        Ip {
            high: self.0,
            low: self.1,
        }
    }
    #[inline(always)]
    fn from_ip(ip: Ip) -> Self {
        Self(ip.high, ip.low)
    }
    #[inline(always)]
    fn halves(self) -> [u64; 2] {
        [self.0, self.1]
    }
    #[inline(always)]
    fn from_halves(halves: [u64; 2]) -> Self {
        Self(halves[0], halves[1])
    }
    #[inline(always)]
    fn sum(self) -> u64 {
        // The upper halves, and the lower ones: what is left of the whole words without the upper.
        let upper = (self.0 >> 32) + (self.1 >> 32);
        let lower = self.0.wrapping_add(self.1).wrapping_sub(upper << 32);
        upper + lower
    }
    #[inline(always)]
    fn is_loopback(self) -> bool {
        self.0 == 0 && u64::from_be(self.1) == 1
    }
    #[inline(always)]
    fn is_never_forwarded(self) -> bool {
        let top = u64::from_be(self.0) >> 48;
        // ff00::/8 is multicast, fe80::/10 link-local.
        top >> 8 == 0xff || top & 0xffc0 == 0xfe80 || self.is_no_address()
    }
    #[inline(always)]
    fn is_multicast(self) -> bool {
        u64::from_be(self.0) >> 56 == 0xff
    }
    #[inline(always)]
    fn is_impossible_source(self) -> bool {
        let top = u64::from_be(self.0) >> 48;
        // A link-local source stays on its link (RFC 4291, section 2.5.6).
        top >> 8 == 0xff || top & 0xffc0 == 0xfe80 || self.is_no_address()
    }
}

impl V6 {
    /// What is on no wire: `::`, `::1`, and `::ffff:0:0/96`, an IPv4 address as programs write it (RFC
    /// 4291, section 2.5; for the last RFC 4942, section 2.2).
    #[inline(always)]
    const fn is_no_address(self) -> bool {
        let low = u64::from_be(self.1);
        self.0 == 0 && (low <= 1 || low >> 32 == 0xffff)
    }
}

const _: () = assert!(size_of::<Ip>() == 16 && size_of::<V4>() == 4 && size_of::<V6>() == 16);

#[cfg(feature = "user")]
mod user {
    // SAFETY: each is `bytemuck::Pod`: plain bytes without padding.
    unsafe impl aya::Pod for super::Ip {}
}

#[cfg(test)]
mod tests {
    use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::checksum;

    proptest! {
        #[test]
        fn the_sum_of_an_address_is_that_of_its_words(words: [u16; 8]) {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            let [first, second] = [0, 8].map(|at| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap()));
            let sum = words.iter().map(|&word| word as u64).sum();
            prop_assert_eq!(checksum::fold(V6(first, second).sum()), checksum::fold(sum));
        }
    }

    #[test]
    fn an_address_survives_the_way_through_the_common_form() {
        for text in [
            "10.88.0.2",
            "0.0.0.0",
            "255.255.255.255",
            "::",
            "::1",
            "fd88::2",
            "2001:db8::ff",
        ] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Ip::from(address)), address);
        }
    }

    #[test]
    fn a_v4_address_in_the_common_form_is_the_mapped_one() {
        let v4 = Ipv4Addr::new(192, 0, 2, 7);
        let raw = V4(u32::from_ne_bytes(v4.octets()));
        assert_eq!(raw.ip(), Ip::from(IpAddr::V4(v4)));
        assert!(raw.ip().is_v4());
        assert_eq!(V4::from_ip(raw.ip()), raw);
        assert!(!Ip::from("fd88::2".parse::<IpAddr>().unwrap()).is_v4());
    }

    #[test]
    fn addresses_that_are_never_forwarded_are_told_from_the_others() {
        let v4 = |text: &str| {
            V4(u32::from_ne_bytes(
                text.parse::<Ipv4Addr>().unwrap().octets(),
            ))
        };
        for text in [
            "0.0.0.0",
            "127.0.0.1",
            "127.255.0.9",
            "224.0.0.1",
            "255.255.255.255",
            "169.254.3.4",
        ] {
            assert!(v4(text).is_never_forwarded(), "{text}");
        }
        for text in [
            "10.0.0.1",
            "192.0.2.1",
            "126.255.255.255",
            "128.0.0.1",
            "223.255.255.255",
        ] {
            assert!(!v4(text).is_never_forwarded(), "{text}");
        }
        let v6 = |text: &str| V6::from_ip(Ip::from(IpAddr::V6(text.parse::<Ipv6Addr>().unwrap())));
        for text in ["::", "::1", "fe80::1", "febf::1", "ff02::1", "ff0e::1"] {
            assert!(v6(text).is_never_forwarded(), "{text}");
        }
        for text in ["::2", "fd88::2", "2001:db8::1", "fec0::1"] {
            assert!(!v6(text).is_never_forwarded(), "{text}");
        }
    }
}
