//! Questions to the kernel's forwarding table.

use aya_ebpf::{
    bindings::bpf_fib_lookup,
    helpers::{bpf_check_mtu, bpf_fib_lookup as lookup},
};
use portfwd_common::{
    masquerade::Key,
    net::{Ip, NetPort, V4, V6},
};

use crate::{
    family::Family,
    maps::SCRATCH,
    packet::{Hook, Tc},
    parse::Packet,
};

/// `struct bpf_fib_lookup` (linux/bpf.h) without its unions, so that both families fill the same words.
#[repr(C)]
struct Query {
    family: u8,
    protocol: u8,
    source_port: u16,
    destination_port: u16,
    total_length: u16,
    device: u32,
    flow_information: u32,
    source: [u64; 2],
    destination: [u64; 2],
    /// VLAN and Ethernet addresses of the answer.
    frame: [u64; 2],
}

const _: () = assert!(size_of::<Query>() == size_of::<bpf_fib_lookup>());

// `BPF_FIB_LKUP_RET_*` of linux/bpf.h. The neighbour is the redirecting helper's business, and the size
// that of the caller, so the last two are answers as well.
const SUCCESS: i64 = 0;
const BLACKHOLE: i64 = 1;
const NOT_FORWARDED: i64 = 4;
const FORWARDING_DISABLED: i64 = 5;
const NO_NEIGHBOUR: i64 = 7;
const TOO_BIG: i64 = 8;

/// The ends of a packet as the table is asked about them.
pub struct Ends<A> {
    pub source: A,
    pub source_port: NetPort,
    pub destination: A,
    pub destination_port: NetPort,
    pub protocol: u8,
}

#[inline(always)]
fn ask<H: Hook, A: Family>(hook: &H, device: u32, ends: &Ends<A>) -> Option<(i64, &'static Query)> {
    ask_with(hook, device, ends, 0)
}

#[inline(always)]
fn ask_with<H: Hook, A: Family>(
    hook: &H,
    device: u32,
    ends: &Ends<A>,
    flags: u32,
) -> Option<(i64, &'static Query)> {
    let query = SCRATCH.get_ptr_mut(0)?.cast::<Query>();
    // A zero that LLVM does not know for one: it would clear the rest with a call of `memset`.
    let zero = core::hint::black_box(0);
    // SAFETY: this CPU's own element, which has room for a query; the context is live.
    unsafe {
        *query = Query {
            family: A::AF,
            protocol: ends.protocol,
            source_port: ends.source_port.wire(),
            destination_port: ends.destination_port.wire(),
            total_length: 0,
            device,
            flow_information: 0,
            source: ends.source.halves(),
            destination: ends.destination.halves(),
            frame: [zero, zero],
        };
        let size = size_of::<Query>() as i32;
        let answer = lookup(hook.context(), query.cast(), size, flags);
        Some((answer, &*query))
    }
}

/// `BPF_FIB_LOOKUP_SKIP_NEIGH` and `BPF_FIB_LOOKUP_SRC` (linux/bpf.h, Linux 6.3 and 6.7).
const SKIP_NEIGHBOUR: u32 = 4;
const SOURCE: u32 = 16;

/// The address that the host gives what it sends to where the packet goes, which came in by `device` and
/// is about to leave. None if the kernel cannot say, or would send the packet another way.
#[inline(always)]
pub fn source(hook: &Tc, device: u32, key: &Key) -> Option<Ip> {
    match key.source.is_v4() {
        true => source_of::<V4>(hook, device, key),
        false => source_of::<V6>(hook, device, key),
    }
}

#[inline(always)]
fn source_of<A: Family>(hook: &Tc, device: u32, key: &Key) -> Option<Ip> {
    let ends = Ends {
        source: A::from_ip(key.source),
        source_port: key.source_port,
        destination: A::from_ip(key.destination),
        destination_port: key.destination_port,
        protocol: key.protocol(),
    };
    let (answer, query) = ask_with(hook, device, &ends, SKIP_NEIGHBOUR | SOURCE)?;
    let leaves_here = answer == SUCCESS && query.device == hook.device();
    leaves_here.then(|| A::from_halves(query.source).ip())
}

/// Whether the host would forward the packet as it came. It would not if the destination is its own, if
/// there is no route, or if it forwards nothing at all: these cannot be told apart.
#[inline(always)]
pub fn leads_elsewhere<H: Hook, A: Family>(hook: &H, packet: &Packet<A>) -> bool {
    let ends = Ends {
        source: packet.network.source,
        source_port: packet.source_port,
        destination: packet.network.destination,
        destination_port: packet.destination_port,
        protocol: packet.network.protocol,
    };
    ask(hook, hook.device(), &ends).is_some_and(|(answer, _)| is_known(answer))
}

/// Whether the host forwards nothing of what comes in by `device` between these ends.
#[inline(always)]
pub fn is_disabled<H: Hook, A: Family>(hook: &H, device: u32, ends: &Ends<A>) -> bool {
    ask(hook, device, ends).is_some_and(|(answer, _)| answer == FORWARDING_DISABLED)
}

/// There is no way back.
pub const NO_WAY: u32 = 0;
/// The table does not tell the way back.
pub const UNTOLD: u32 = u32::MAX;

/// The device by which an answer to the packet would leave, [`NO_WAY`] or [`UNTOLD`]: where forwarding is
/// off, the table tells nothing.
#[inline(always)]
pub fn way_back<H: Hook, A: Family>(hook: &H, packet: &Packet<A>) -> u32 {
    let ends = Ends {
        source: packet.network.destination,
        source_port: packet.destination_port,
        destination: packet.network.source,
        destination_port: packet.source_port,
        protocol: packet.network.protocol,
    };
    match ask(hook, hook.device(), &ends) {
        Some((answer, query)) if is_known(answer) => query.device,
        Some((BLACKHOLE..=NOT_FORWARDED, _)) => NO_WAY,
        _ => UNTOLD,
    }
}

#[inline(always)]
fn is_known(answer: i64) -> bool {
    answer == SUCCESS || answer == NO_NEIGHBOUR || answer == TOO_BIG
}

/// A way out of the host.
pub struct Route<A> {
    /// Interface index.
    pub device: u32,
    /// Largest packet that the device takes, in bytes from the IP header on.
    pub mtu: u32,
    /// 1 if the neighbour is `next_hop`; else the kernel has to find it.
    pub has_next_hop: u32,
    /// The neighbour, or the destination.
    pub next_hop: A,
}

/// The way out for a packet between `ends` that comes in by `device`; by `fallback` if the table does not
/// say, as it does where forwarding is off.
#[inline(always)]
pub fn route<H: Hook, A: Family>(hook: &H, device: u32, ends: &Ends<A>, fallback: u32) -> Route<A> {
    let known = ask(hook, device, ends).filter(|(answer, _)| is_known(*answer));
    let out = known.map_or(fallback, |(_, query)| query.device);
    // An IPv4 route may lead by an IPv6 neighbour (RFC 5549); the kernel then finds it itself.
    let next_hop = known
        .filter(|(_, query)| query.family == A::AF)
        .map(|(_, query)| A::from_halves(query.destination));
    let mut mtu = 0u32;
    // SAFETY: context and result are live. On failure the MTU stays 0 and nothing goes this way.
    unsafe { bpf_check_mtu(hook.context(), out, &raw mut mtu, 0, 0) };
    Route {
        device: out,
        mtu,
        has_next_hop: next_hop.is_some() as u32,
        next_hop: next_hop.unwrap_or(ends.destination),
    }
}
