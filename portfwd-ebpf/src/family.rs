//! What differs between IPv4 and IPv6, and nothing else.

use aya_ebpf::maps::LruHashMap;
use portfwd_common::{
    checksum,
    flow::{Flow, FlowKey},
    net::{Address, V4, V6},
    verdict::Reason,
};

use crate::{
    maps::{FLOWS_V4, FLOWS_V6, STREAMS_V4, STREAMS_V6, YOUNG_V4, YOUNG_V6},
    packet::Hook,
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
    /// Offset of the source address in the network header; the destination follows it.
    const SOURCE_AT: usize;
    /// The loopback address: 127.0.0.1 or ::1.
    const LOOPBACK: Self;

    /// Protocol number of its ICMP.
    const ICMP: u8;

    /// Types of the ICMP messages that ping sends and gets (RFC 792; RFC 4443, section 4).
    const ECHO_REQUEST: u8;
    /// The answer.
    const ECHO_REPLY: u8;

    /// The table of settled connections.
    fn flows() -> &'static LruHashMap<FlowKey<Self>, Flow<Self>>;
    /// The table of UDP streams.
    fn streams() -> &'static LruHashMap<FlowKey<Self>, Flow<Self>>;
    /// The table of young flows.
    fn young() -> &'static LruHashMap<FlowKey<Self>, Flow<Self>>;
    /// Whether ICMP messages of this type are errors that quote a packet: destination unreachable, packet
    /// too big, time exceeded, parameter problem (RFC 792; RFC 4443, section 2.1).
    fn is_error(message: u8) -> bool;
    /// The network header alone: the protocol is that of what follows it, extension header or not.
    fn header<H: Hook>(hook: &H) -> Result<Network<Self>, Unparsed>;
    /// The network header of a whole packet that has no extension headers.
    fn network<H: Hook>(hook: &H) -> Result<Network<Self>, Unparsed>;
    /// The network header of any packet, with everything up to the transport header.
    fn extended<H: Hook>(hook: &H) -> Result<Network<Self>, Unparsed>;
    /// The network header of a packet that is quoted at `at`, in a message that goes to `end`.
    fn quoted<H: Hook>(hook: &H, at: usize, end: u64) -> Option<Network<Self>>;
    /// Corrects the checksum of a quoted network header at `at`, if it has one, for addresses that changed
    /// by `addresses`. Gives the difference of the field.
    fn finish_quoted<H: Hook>(hook: &H, at: usize, addresses: u32) -> Result<u32, Reason>;
    /// The part of a change of the outer addresses that the checksum of an ICMP message covers (RFC 4443,
    /// section 2.3; that of RFC 792 covers none).
    fn covered_by_icmp(addresses: u32) -> u32;
    /// What is put in front of the quote of an ICMP message that a packet is too big: a network header and
    /// that of ICMP.
    type TooBig: Copy;
    /// Whether a router may cut the packet into fragments (RFC 791, section 3.1; RFC 8200, section 5).
    fn may_be_cut<H: Hook>(hook: &H) -> bool;
    /// The headers of the message (RFC 1191, section 4; RFC 4443, section 3.2) from `source` to
    /// `destination`, about a way that takes `mtu` bytes, with a quote of `length` bytes whose words sum
    /// up to `sum`.
    fn too_big(source: Self, destination: Self, mtu: u32, length: u32, sum: u32) -> Self::TooBig;
    /// Stores what changes in the network header beside the addresses: one hop less if `hop`, and the
    /// header's checksum where there is one. `change` says of the addresses what a checksum of the header
    /// has to make up for, and what the sum of the whole packet.
    fn finish_header<H: Hook>(
        hook: &H,
        network: &Network<Self>,
        change: HeaderChange,
        hop: bool,
    ) -> Result<(), Reason>;
    /// Sources that every container may send from: link-local ones, which neighbour discovery needs, and
    /// none, which address configuration needs.
    fn is_link_scoped(self) -> bool;
}

/// What became of addresses, as one's complement differences ([`checksum::difference`]).
#[derive(Clone, Copy)]
pub struct HeaderChange {
    /// Of the addresses.
    pub addresses: u32,
    /// The part of it that no checksum of the transport header makes up for.
    pub uncovered: u32,
}

/// The length of a packet from its IP header on, `told` by that header. 0 is that of BIG TCP packets
/// (kernel: `iph_totlen`, `ipv6_hopopt_jumbo_remove`), which are as long as they are, and going to be cut.
#[inline(always)]
fn length<H: Hook>(hook: &H, told: u64) -> Result<u64, Unparsed> {
    let actual = hook.len() - hook.network() as u64;
    match told {
        0 if hook.segment() != 0 => Ok(actual),
        0 => Err(Unparsed::Malformed),
        told if told > actual => Err(Unparsed::Malformed),
        told => Ok(told),
    }
}

/// The flag of RFC 791, section 3.1, in the fourth half-word of the header.
const DONT_FRAGMENT: u16 = 0x4000;
/// The flag of the same section, in the second word of the header.
const MORE_FRAGMENTS: u32 = 0x2000;
/// The fragment offset in that word.
const FRAGMENT_OFFSET: u32 = 0x1fff;
/// The identification in that word, in network order.
const IDENTIFICATION: u32 = 0xffff_0000u32.to_be();

impl Family for V4 {
    const ETHERTYPE: u16 = 0x0800u16.to_be();
    const AF: u8 = 2;
    const SOCKET_TUPLE: u32 = 12;
    const SOURCE_AT: usize = 12;
    const LOOPBACK: Self = Self(0x7f00_0001u32.to_be());
    const ICMP: u8 = 1;
    const ECHO_REQUEST: u8 = 8;
    const ECHO_REPLY: u8 = 0;

    type TooBig = [u32; 7];
    #[inline(always)]
    fn may_be_cut<H: Hook>(hook: &H) -> bool {
        let word = hook.load::<u16>(hook.network() + 6);
        word.is_some_and(|word| u16::from_be(word) & DONT_FRAGMENT == 0)
    }
    #[inline(always)]
    fn too_big(source: Self, destination: Self, mtu: u32, length: u32, sum: u32) -> [u32; 7] {
        let icmp = [0x0304_0000, mtu & 0xffff].map(u32::to_be);
        let [first, second] = icmp;
        let icmp_sum = checksum::fold(first as u64 + second as u64 + sum as u64);
        let ip = [0x45c0_0000 | (28 + length), 0, 0x4001_0000].map(u32::to_be);
        let ip_sum =
            checksum::fold(ip[0] as u64 + ip[2] as u64 + source.0 as u64 + destination.0 as u64);
        // Both checksums are the second halves of their words.
        [
            ip[0],
            ip[1],
            ip[2] | (!ip_sum as u32) << 16,
            source.0,
            destination.0,
            first | (!icmp_sum as u32) << 16,
            second,
        ]
    }
    #[inline(always)]
    fn flows() -> &'static LruHashMap<FlowKey<Self>, Flow<Self>> {
        &FLOWS_V4
    }
    #[inline(always)]
    fn streams() -> &'static LruHashMap<FlowKey<Self>, Flow<Self>> {
        &STREAMS_V4
    }
    #[inline(always)]
    fn young() -> &'static LruHashMap<FlowKey<Self>, Flow<Self>> {
        &YOUNG_V4
    }
    #[inline(always)]
    fn is_error(message: u8) -> bool {
        matches!(message, 3 | 11 | 12)
    }
    #[inline(always)]
    fn network<H: Hook>(hook: &H) -> Result<Network<Self>, Unparsed> {
        match Self::header(hook) {
            Ok(network) if network.fragment != Fragment::Whole => Err(Unparsed::Extended),
            other => other,
        }
    }
    #[inline(always)]
    fn extended<H: Hook>(hook: &H) -> Result<Network<Self>, Unparsed> {
        Self::header(hook)
    }
    #[inline(always)]
    fn header<H: Hook>(hook: &H) -> Result<Network<Self>, Unparsed> {
        let words: [u32; 5] = hook.load(hook.network()).ok_or(Unparsed::Malformed)?;
        let first = u32::from_be(words[0]);
        let header = (first >> 24 & 0xf) as usize * 4;
        let total = length(hook, (first & 0xffff) as u64)?;
        if first >> 28 != 4 || header < 20 || total < header as u64 {
            return Err(Unparsed::Malformed);
        }
        let second = u32::from_be(words[1]);
        let third = u32::from_be(words[2]);
        Ok(Network {
            source: Self(words[3]),
            destination: Self(words[4]),
            protocol: (third >> 16) as u8,
            hops: (third >> 24) as u8,
            transport: hook.network() + (header & 0x3c),
            end: hook.network() as u64 + total,
            fragment: match second & 0x3fff {
                0 => Fragment::Whole,
                MORE_FRAGMENTS => Fragment::First,
                _ => Fragment::Later,
            },
            identification: words[1] & IDENTIFICATION,
        })
    }
    #[inline(always)]
    fn quoted<H: Hook>(hook: &H, at: usize, end: u64) -> Option<Network<Self>> {
        let words: [u32; 5] = hook.load(at)?;
        let first = u32::from_be(words[0]);
        let header = (first >> 24 & 0xf) as usize * 4;
        let is_later = u32::from_be(words[1]) & FRAGMENT_OFFSET != 0;
        if first >> 28 != 4 || header < 20 || is_later {
            return None;
        }
        let third = u32::from_be(words[2]);
        Some(Network {
            source: Self(words[3]),
            destination: Self(words[4]),
            protocol: (third >> 16) as u8,
            hops: 0,
            transport: at + header,
            end,
            fragment: Fragment::Whole,
            identification: 0,
        })
    }
    #[inline(always)]
    fn finish_quoted<H: Hook>(hook: &H, at: usize, addresses: u32) -> Result<u32, Reason> {
        let field = hook.at::<u16>(at + 10).ok_or(Reason::RewriteFailed)?;
        // SAFETY: in bounds by `at`.
        unsafe {
            let old = *field;
            *field = checksum::update(old, addresses);
            Ok(checksum::word_difference(old, *field))
        }
    }
    #[inline(always)]
    fn covered_by_icmp(_addresses: u32) -> u32 {
        0
    }
    #[inline(always)]
    fn finish_header<H: Hook>(
        hook: &H,
        network: &Network<Self>,
        change: HeaderChange,
        hop: bool,
    ) -> Result<(), Reason> {
        // Time to live, protocol and checksum of RFC 791, section 3.1.
        let words = hook
            .at::<[u16; 2]>(hook.network() + 8)
            .ok_or(Reason::RewriteFailed)?;
        // SAFETY: in bounds by `at`.
        unsafe {
            let mut difference = change.addresses;
            if hop {
                let new = u16::from_ne_bytes([network.hops - 1, network.protocol]);
                difference += checksum::word_difference((*words)[0], new);
                (*words)[0] = new;
            }
            (*words)[1] = checksum::update((*words)[1], difference);
        }
        Ok(())
    }
    #[inline(always)]
    fn is_link_scoped(self) -> bool {
        self.0 == 0
    }
}

// Numbers of the extension headers that are walked past (RFC 8200, section 4). Behind an authentication
// header (RFC 4302) nothing may be changed.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
pub const DESTINATION_OPTIONS: u8 = 60;
/// RFC 8200, section 4.1, has each at most once, destination options twice.
const MAX_EXTENSION_HEADERS: u32 = 6;
/// Where a transport header may begin at most. As far behind a multiple of 8 as the headers of a frame are
/// (14): newer verifiers know that the offsets are, but apply it to the end of a field and not to its
/// beginning, so that another limit lets them refuse a field that they have just seen checked.
const MAX_TRANSPORT: usize = 438;

#[inline(always)]
fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS
    )
}

/// Walks past the extension header that `network.protocol` names, if it is one. A fragment that is not
/// the first ends the walk, because what follows is in the middle of something.
#[inline(always)]
fn walk<H: Hook>(hook: &H, network: &mut Network<V6>) -> Result<bool, Unparsed> {
    let protocol = network.protocol;
    if !is_extension(protocol) || network.fragment == Fragment::Later {
        return Ok(false);
    }
    let words: [u32; 2] = hook
        .load(network.transport_at(0))
        .ok_or(Unparsed::Malformed)?;
    let first = u32::from_be(words[0]);
    let length = match protocol {
        FRAGMENT => {
            network.fragment = match first & 0xfff9 {
                // RFC 6946: not a fragment at all.
                0 => Fragment::Whole,
                1 => Fragment::First,
                _ => Fragment::Later,
            };
            network.identification = words[1];
            8
        }
        // With segments left the packet has another destination still (RFC 8200, section 4.4).
        ROUTING if first as u8 != 0 => return Err(Unparsed::Other),
        _ => ((first >> 16 & 0xff) as usize + 1) * 8,
    };
    network.protocol = (first >> 24) as u8;
    network.transport += length;
    if network.transport > MAX_TRANSPORT || network.transport as u64 > network.end {
        return Err(Unparsed::Malformed);
    }
    Ok(true)
}

impl Family for V6 {
    const ETHERTYPE: u16 = 0x86ddu16.to_be();
    const AF: u8 = 10;
    const SOCKET_TUPLE: u32 = 36;
    const SOURCE_AT: usize = 8;
    const LOOPBACK: Self = Self(0, 1u64.to_be());
    const ICMP: u8 = 58;
    const ECHO_REQUEST: u8 = 128;
    const ECHO_REPLY: u8 = 129;

    type TooBig = [u64; 6];
    #[inline(always)]
    fn may_be_cut<H: Hook>(_hook: &H) -> bool {
        false
    }
    #[inline(always)]
    fn too_big(source: Self, destination: Self, mtu: u32, length: u32, sum: u32) -> [u64; 6] {
        let message = (0x0200_0000u32.to_be(), mtu.to_be());
        // The pseudo-header: addresses, length, protocol (RFC 8200, section 8.1).
        let pseudo = (8 + length).to_be() as u64 + (Self::ICMP as u32).to_be() as u64;
        let addresses = source.sum() + destination.sum();
        let icmp_sum =
            checksum::fold(message.0 as u64 + message.1 as u64 + pseudo + addresses + sum as u64);
        let first = message.0 | (!icmp_sum as u32) << 16;
        [
            0x6000_0000_0000_3a40u64.to_be() | ((8 + length as u64) << 16).to_be(),
            source.0,
            source.1,
            destination.0,
            destination.1,
            first as u64 | (message.1 as u64) << 32,
        ]
    }
    #[inline(always)]
    fn flows() -> &'static LruHashMap<FlowKey<Self>, Flow<Self>> {
        &FLOWS_V6
    }
    #[inline(always)]
    fn streams() -> &'static LruHashMap<FlowKey<Self>, Flow<Self>> {
        &STREAMS_V6
    }
    #[inline(always)]
    fn young() -> &'static LruHashMap<FlowKey<Self>, Flow<Self>> {
        &YOUNG_V6
    }
    #[inline(always)]
    fn is_error(message: u8) -> bool {
        matches!(message, 1..=4)
    }
    #[inline(always)]
    fn header<H: Hook>(hook: &H) -> Result<Network<Self>, Unparsed> {
        let words: [u32; 2] = hook.load(hook.network()).ok_or(Unparsed::Malformed)?;
        let second = u32::from_be(words[1]);
        if u32::from_be(words[0]) >> 28 != 6 {
            return Err(Unparsed::Malformed);
        }
        let payload = (second >> 16) as u64;
        let is_jumbo = payload == 0 && hook.segment() != 0;
        let total = length(hook, if is_jumbo { 0 } else { payload + 40 })?;
        let addresses: [u64; 4] = hook
            .load(hook.network() + Self::SOURCE_AT)
            .ok_or(Unparsed::Malformed)?;
        Ok(Network {
            source: Self(addresses[0], addresses[1]),
            destination: Self(addresses[2], addresses[3]),
            protocol: (second >> 8) as u8,
            hops: second as u8,
            transport: hook.network() + 40,
            end: hook.network() as u64 + total,
            fragment: Fragment::Whole,
            identification: 0,
        })
    }
    #[inline(always)]
    fn network<H: Hook>(hook: &H) -> Result<Network<Self>, Unparsed> {
        match Self::header(hook) {
            Ok(network) if is_extension(network.protocol) => Err(Unparsed::Extended),
            other => other,
        }
    }
    #[inline(always)]
    fn extended<H: Hook>(hook: &H) -> Result<Network<Self>, Unparsed> {
        let mut network = Self::header(hook)?;
        for _ in 0..MAX_EXTENSION_HEADERS {
            if !walk(hook, &mut network)? {
                return Ok(network);
            }
        }
        Err(Unparsed::Other)
    }
    #[inline(always)]
    fn quoted<H: Hook>(hook: &H, at: usize, end: u64) -> Option<Network<Self>> {
        let words: [u32; 2] = hook.load(at)?;
        let addresses: [u64; 4] = hook.load(at + 8)?;
        if u32::from_be(words[0]) >> 28 != 6 {
            return None;
        }
        let mut network = Network {
            source: Self(addresses[0], addresses[1]),
            destination: Self(addresses[2], addresses[3]),
            protocol: (u32::from_be(words[1]) >> 8) as u8,
            hops: 0,
            transport: at + 40,
            end,
            fragment: Fragment::Whole,
            identification: 0,
        };
        for _ in 0..MAX_EXTENSION_HEADERS {
            if !walk(hook, &mut network).ok()? {
                return (network.fragment != Fragment::Later).then_some(network);
            }
        }
        None
    }
    #[inline(always)]
    fn finish_quoted<H: Hook>(_hook: &H, _at: usize, _addresses: u32) -> Result<u32, Reason> {
        Ok(0)
    }
    #[inline(always)]
    fn covered_by_icmp(addresses: u32) -> u32 {
        addresses
    }
    #[inline(always)]
    fn finish_header<H: Hook>(
        hook: &H,
        network: &Network<Self>,
        change: HeaderChange,
        hop: bool,
    ) -> Result<(), Reason> {
        // `bpf_l4_csum_replace` takes the address change for one that an IPv4 header checksum makes up
        // for, and without its flag for IPv6 (kernel 6.16) corrects the device's sum wrongly: this puts
        // it right again.
        let mut uncovered = change.uncovered;
        if hop {
            let at = hook
                .at::<u8>(hook.network() + 7)
                .ok_or(Reason::RewriteFailed)?;
            // SAFETY: in bounds by `at`.
            unsafe { *at = network.hops - 1 };
            let word = |hops: u8| u16::from_ne_bytes([network.protocol, hops]);
            uncovered += checksum::word_difference(word(network.hops), word(network.hops - 1));
        }
        hook.uncovered_change(uncovered);
        Ok(())
    }
    #[inline(always)]
    fn is_link_scoped(self) -> bool {
        let unspecified = self.0 == 0 && self.1 == 0;
        u64::from_be(self.0) >> 54 == 0xfe80 >> 6 || unspecified
    }
}
