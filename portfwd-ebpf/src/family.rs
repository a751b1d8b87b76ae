//! What differs between IPv4 and IPv6, and nothing else.

use aya_ebpf::maps::LruHashMap;
use portfwd_common::{
    checksum,
    flow::{Flow, FlowKey},
    net::{Address, V4, V6},
    verdict::Reason,
};

use crate::{
    maps::{FLOWS_V4, FLOWS_V6},
    packet::{ETHERNET, Hook},
    parse::{Fragment, Network, Unparsed},
};

/// An address family.
pub trait Family: Address + 'static {
    /// EtherType, in network order.
    const ETHERTYPE: u16;
    /// `AF_INET` or `AF_INET6`.
    const AF: u8;
    /// Length of the addresses and ports that a socket is looked up by.
    const SOCKET_TUPLE: u32;
    /// Offset of the source address; the destination follows it.
    const SOURCE_AT: usize;
    /// The loopback address: 127.0.0.1 or ::1.
    const LOOPBACK: Self;

    /// The flow table.
    fn flows() -> &'static LruHashMap<FlowKey<Self>, Flow<Self>>;
    /// The network header.
    fn network<H: Hook>(hook: &H) -> Result<Network<Self>, Unparsed>;
    /// Stores what changes in the network header beside the addresses: one hop less if `hop`, and the
    /// header's checksum where there is one. `addresses` is the difference of the addresses.
    fn finish_header<H: Hook>(
        hook: &H,
        network: &Network<Self>,
        addresses: u32,
        hop: bool,
    ) -> Result<(), Reason>;
    /// The address in the 16 bytes that helpers take for both families.
    fn halves(self) -> [u64; 2];
    /// The other way.
    fn from_halves(halves: [u64; 2]) -> Self;
    /// Sources that every container may send from: link-local ones, which neighbour discovery needs, and
    /// none, which address configuration needs.
    fn is_link_scoped(self) -> bool;
}

/// The length of a packet from its IP header on, `told` by that header. 0 is that of BIG TCP packets
/// (kernel: `iph_totlen`, `ipv6_hopopt_jumbo_remove`), which are as long as they are.
#[inline(always)]
fn length<H: Hook>(hook: &H, told: u64) -> Result<u64, Unparsed> {
    let actual = hook.len() - ETHERNET as u64;
    match told {
        0 => Ok(actual),
        told if told > actual => Err(Unparsed::Malformed),
        told => Ok(told),
    }
}

impl Family for V4 {
    const ETHERTYPE: u16 = 0x0800u16.to_be();
    const AF: u8 = 2;
    const SOCKET_TUPLE: u32 = 12;
    const SOURCE_AT: usize = ETHERNET + 12;
    const LOOPBACK: Self = Self(0x7f00_0001u32.to_be());

    #[inline(always)]
    fn flows() -> &'static LruHashMap<FlowKey<Self>, Flow<Self>> {
        &FLOWS_V4
    }
    #[inline(always)]
    fn network<H: Hook>(hook: &H) -> Result<Network<Self>, Unparsed> {
        let words: [u32; 5] = hook.load(ETHERNET).ok_or(Unparsed::Malformed)?;
        let first = u32::from_be(words[0]);
        let header = (first >> 24 & 0xf) as usize * 4;
        let total = length(hook, (first & 0xffff) as u64)?;
        if first >> 28 != 4 || header < 20 || total < header as u64 {
            return Err(Unparsed::Malformed);
        }
        let fragment = u32::from_be(words[1]) & 0x3fff;
        let third = u32::from_be(words[2]);
        Ok(Network {
            source: Self(words[3]),
            destination: Self(words[4]),
            protocol: (third >> 16) as u8,
            hops: (third >> 24) as u8,
            transport: ETHERNET + (header & 0x3c),
            end: ETHERNET as u64 + total,
            fragment: match fragment {
                0 => Fragment::Whole,
                0x2000 => Fragment::First,
                _ => Fragment::Later,
            },
        })
    }
    #[inline(always)]
    fn finish_header<H: Hook>(
        hook: &H,
        network: &Network<Self>,
        addresses: u32,
        hop: bool,
    ) -> Result<(), Reason> {
        // Time to live, protocol and checksum of RFC 791, section 3.1.
        let words = hook
            .at::<[u16; 2]>(ETHERNET + 8)
            .ok_or(Reason::RewriteFailed)?;
        // SAFETY: in bounds by `at`.
        unsafe {
            let mut sum = checksum::update((*words)[1], addresses);
            if hop {
                let old = (*words)[0];
                let new = u16::from_ne_bytes([network.hops - 1, network.protocol]);
                sum = checksum::update(sum, checksum::difference(old as u64, new as u64));
                (*words)[0] = new;
            }
            (*words)[1] = sum;
        }
        Ok(())
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
    fn is_link_scoped(self) -> bool {
        self.0 == 0
    }
}

impl Family for V6 {
    const ETHERTYPE: u16 = 0x86ddu16.to_be();
    const AF: u8 = 10;
    const SOCKET_TUPLE: u32 = 36;
    const SOURCE_AT: usize = ETHERNET + 8;
    const LOOPBACK: Self = Self(0, 1u64.to_be());

    #[inline(always)]
    fn flows() -> &'static LruHashMap<FlowKey<Self>, Flow<Self>> {
        &FLOWS_V6
    }
    #[inline(always)]
    fn network<H: Hook>(hook: &H) -> Result<Network<Self>, Unparsed> {
        let words: [u32; 2] = hook.load(ETHERNET).ok_or(Unparsed::Malformed)?;
        let second = u32::from_be(words[1]);
        if u32::from_be(words[0]) >> 28 != 6 {
            return Err(Unparsed::Malformed);
        }
        let payload = (second >> 16) as u64;
        let total = length(hook, if payload == 0 { 0 } else { payload + 40 })?;
        let addresses: [u64; 4] = hook.load(Self::SOURCE_AT).ok_or(Unparsed::Malformed)?;
        Ok(Network {
            source: Self(addresses[0], addresses[1]),
            destination: Self(addresses[2], addresses[3]),
            protocol: (second >> 8) as u8,
            hops: second as u8,
            transport: ETHERNET + 40,
            end: ETHERNET as u64 + total,
            fragment: Fragment::Whole,
        })
    }
    #[inline(always)]
    fn finish_header<H: Hook>(
        hook: &H,
        network: &Network<Self>,
        addresses: u32,
        hop: bool,
    ) -> Result<(), Reason> {
        // `bpf_l4_csum_replace` takes the address change for one that an IPv4 header checksum makes up
        // for, and without its flag for IPv6 (kernel 6.16) corrects the device's sum wrongly: this puts
        // it right again.
        let mut change = addresses;
        if hop {
            let at = hook.at::<u8>(ETHERNET + 7).ok_or(Reason::RewriteFailed)?;
            // SAFETY: in bounds by `at`.
            unsafe { *at = network.hops - 1 };
            let word = |hops: u8| u16::from_ne_bytes([network.protocol, hops]) as u64;
            change += checksum::difference(word(network.hops), word(network.hops - 1));
        }
        hook.uncovered_change(change);
        Ok(())
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
    fn is_link_scoped(self) -> bool {
        let unspecified = self.0 == 0 && self.1 == 0;
        u64::from_be(self.0) >> 54 == 0xfe80 >> 6 || unspecified
    }
}
