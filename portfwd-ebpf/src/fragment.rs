//! Datagrams in fragments: what was decided about the first holds for the others, and what comes before
//! the first waits for it.

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, BPF_F_RECOMPUTE_CSUM, BPF_NOEXIST},
    cty::c_void,
    helpers::{
        bpf_clone_redirect, bpf_loop, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes,
    },
};
use portfwd_common::{
    flow::FlowKey,
    fragment::{
        DATAGRAM_LIFETIME, Datagram, DatagramKey, Decision, HeldKey, MAX_HELD_LENGTH,
        MAX_HELD_OF_DATAGRAM,
    },
    net::{Address as _, Ip, V6},
};

use crate::{
    clock,
    family::{DESTINATION_OPTIONS, Family},
    forward,
    maps::{DATAGRAMS, FIRST_FRAGMENT, HELD, HELD_SCRATCH},
    packet::{Hook, Tc},
    parse::Network,
};

/// Shortest frame that waits: Ethernet and IPv4 header, and something.
const MIN_HELD_LENGTH: u32 = 35;

/// The key of a datagram between `ends`, seen at `link`. In IPv6 the protocol does not count: it is that of
/// the first header of each fragment.
#[inline(always)]
pub fn key(ends: (Ip, Ip), identification: u32, protocol: u8, link: u32) -> DatagramKey {
    let protocol = if ends.0.is_v4() { protocol as u32 } else { 0 };
    DatagramKey::new(ends.0, ends.1, identification, protocol, link)
}

/// The hook that sees a fragment.
#[derive(Clone, Copy)]
pub enum Seen {
    /// From any device of the host.
    FromDevice,
    /// From a container's link.
    FromLink(u32),
    /// Leaving.
    Leaving,
}

#[inline(always)]
fn key_of<A: Family>(network: &Network<A>, seen: Seen) -> DatagramKey {
    key(
        (network.source.ip(), network.destination.ip()),
        network.identification,
        network.protocol,
        match seen {
            Seen::FromDevice => DatagramKey::ANY_DEVICE,
            Seen::FromLink(link) => link,
            Seen::Leaving => DatagramKey::EGRESS,
        },
    )
}

/// What was decided about the datagram of a fragment, and the key of its flow if it has one.
#[inline(always)]
pub fn decision<A: Family>(network: &Network<A>, seen: Seen) -> Option<(Decision, FlowKey<A>)> {
    let key = key_of(network, seen);
    let entry = DATAGRAMS.get_ptr(&key)?;
    // SAFETY: an element of an LRU map, whose fields are plain numbers.
    let datagram = unsafe { &*entry };
    if clock::now().wrapping_sub(datagram.since) >= DATAGRAM_LIFETIME {
        return None;
    }
    let flow = FlowKey::new(
        A::from_ip(datagram.client),
        datagram.client_port,
        A::from_ip(datagram.container),
        datagram.container_port,
        datagram.protocol as u8,
    );
    let decision = Decision::from_number(datagram.decision)?;
    // The kernel may have given it to another datagram meanwhile: then it is not found again.
    let is_still = DATAGRAMS.get_ptr(&key) == Some(entry);
    is_still.then_some((decision, flow))
}

/// Notes what was decided about the first fragment of a datagram. If there is no room, the others are
/// treated as if it had not come.
#[inline(always)]
pub fn decide<A: Family>(
    network: &Network<A>,
    seen: Seen,
    decision: Decision,
    flow: Option<&FlowKey<A>>,
) {
    let mut datagram = undecided(decision, 0);
    if let Some(flow) = flow {
        datagram.protocol = flow.protocol;
        datagram.client_port = flow.client_port;
        datagram.container_port = flow.container_port;
        datagram.client = flow.client.ip();
        datagram.container = flow.container.ip();
    }
    let _ = DATAGRAMS.insert(&key_of(network, seen), &datagram, 0);
}

/// Keeps the key of what may be a first fragment, from a device, for [`let_pass`]: on the stack there is no
/// room for it.
#[inline(always)]
pub fn remember<A: Family>(network: &Network<A>) {
    if let Some(first) = FIRST_FRAGMENT.get_ptr_mut(0) {
        // SAFETY: this CPU's own element.
        unsafe { *first = key_of(network, Seen::FromDevice) };
    }
}

/// Notes of the fragment that was remembered that it is not ours, so that the others do not wait.
#[inline(always)]
pub fn let_pass() {
    if let Some(first) = FIRST_FRAGMENT.get_ptr(0) {
        // SAFETY: as above.
        let _ = DATAGRAMS.insert(unsafe { &*first }, &undecided(Decision::Pass, 0), 0);
    }
}

#[inline(always)]
fn undecided(decision: Decision, held: u32) -> Datagram {
    let zero = core::hint::black_box(0);
    let blank = core::hint::black_box(0);
    Datagram::new(decision, clock::now(), held, blank, V6(zero, zero).ip())
}

/// Whether a fragment that is not the first may belong to a published port: then it is worth to wait.
/// Fragments of IPv6 may begin with options.
#[inline(always)]
fn may_be_ours<A: Family>(network: &Network<A>) -> bool {
    matches!(network.protocol, 6 | 17 | 132 | DESTINATION_OPTIONS)
        && forward::is_host_address(network.destination)
}

/// Keeps a fragment whose first has not come. Says whether it did: if not, the fragment goes on.
#[inline(always)]
pub fn hold<A: Family>(hook: &Tc, network: &Network<A>) -> bool {
    if !may_be_ours(network) {
        return false;
    }
    let key = key_of(network, Seen::FromDevice);
    let Some(datagram) = DATAGRAMS.get_ptr_mut(&key) else {
        return keep(hook, HeldKey::new(key, 0)) && wait(&key);
    };
    // SAFETY: see `decision`. Two CPUs may take the same place: then a fragment is lost.
    let datagram = unsafe { &mut *datagram };
    let waits = datagram.decision == Decision::Waiting as u32
        && clock::now().wrapping_sub(datagram.since) < DATAGRAM_LIFETIME;
    if !waits {
        datagram.decision = Decision::Waiting as u32;
        datagram.since = clock::now();
        datagram.held = 0;
    }
    let place = datagram.held;
    if place >= MAX_HELD_OF_DATAGRAM || !keep(hook, HeldKey::new(key, place)) {
        return false;
    }
    datagram.held = place + 1;
    true
}

/// Begins to wait for the first fragment. Not if it came this very moment, on another CPU.
#[inline(always)]
fn wait(key: &DatagramKey) -> bool {
    let datagram = undecided(Decision::Waiting, 1);
    DATAGRAMS.insert(key, &datagram, BPF_NOEXIST as u64).is_ok()
}

/// `length`, if a frame of it may wait. What was checked is what is used: LLVM would check a copy, of which
/// the verifier of Linux 6.12 learns nothing.
#[inline(always)]
fn held_length(length: u32) -> Option<u32> {
    let mut above = length.wrapping_sub(MIN_HELD_LENGTH) as u64;
    if above > MAX_HELD_LENGTH as u64 - MIN_HELD_LENGTH as u64 {
        return None;
    }
    // SAFETY: no instruction at all.
    unsafe { core::arch::asm!("/* {0} */", inout(reg) above, options(pure, nomem, nostack)) };
    Some(above as u32 + MIN_HELD_LENGTH)
}

/// Copies the frame to where it waits.
#[inline(always)]
fn keep(hook: &Tc, key: HeldKey) -> bool {
    let Some(scratch) = HELD_SCRATCH.get_ptr_mut(0) else {
        return false;
    };
    let Some(length) = held_length(hook.len() as u32) else {
        return false;
    };
    // SAFETY: this CPU's own element, which has room for `length` bytes.
    unsafe {
        (*scratch).length = length;
        let frame = (&raw mut (*scratch).frame).cast();
        bpf_skb_load_bytes(hook.context().cast(), 0, frame, length) == 0
            && HELD.insert(&key, &*scratch, 0).is_ok()
    }
}

/// At the first fragment of a datagram whose others wait: all of them come in again by the same device,
/// the first one first. Says whether there were any; the packet is then no more than a husk.
#[inline(always)]
pub fn release<A: Family>(hook: &Tc, network: &Network<A>) -> bool {
    let key = key_of(network, Seen::FromDevice);
    let Some(datagram) = DATAGRAMS.get_ptr(&key) else {
        return false;
    };
    // SAFETY: see `decision`.
    let (decision, held) = unsafe { ((*datagram).decision, (*datagram).held) };
    if decision != Decision::Waiting as u32 {
        return false;
    }
    let _ = DATAGRAMS.remove(&key);
    come_in_again(hook);
    let places = if held < MAX_HELD_OF_DATAGRAM {
        held
    } else {
        MAX_HELD_OF_DATAGRAM
    };
    let mut releasing = Releasing {
        hook,
        key: HeldKey::new(key, 0),
    };
    // Not a loop of the program's own: the verifier would follow each turn of it.
    // SAFETY: the callback gets what it is declared for, which outlives the call.
    unsafe {
        let callback: unsafe extern "C" fn(u32, *mut Releasing) -> i64 = release_one;
        bpf_loop(
            places,
            callback as *mut c_void,
            (&raw mut releasing).cast(),
            0,
        );
    }
    true
}

/// What [`release_one`] goes by.
struct Releasing<'a> {
    hook: &'a Tc,
    key: HeldKey,
}

/// Lets the fragment of this place come in again.
unsafe extern "C" fn release_one(place: u32, releasing: *mut Releasing) -> i64 {
    // SAFETY: see `release`.
    let releasing = unsafe { &mut *releasing };
    releasing.key.place = place;
    if become_held(releasing.hook, &releasing.key) {
        come_in_again(releasing.hook);
    }
    let _ = HELD.remove(&releasing.key);
    0
}

#[inline(always)]
fn come_in_again(hook: &Tc) {
    // SAFETY: a live context. What cannot be queued is lost, as it might have been on the wire.
    unsafe { bpf_clone_redirect(hook.context().cast(), hook.device(), BPF_F_INGRESS as u64) };
}

/// Turns the packet into the one that waits under `key`.
#[inline(always)]
fn become_held(hook: &Tc, key: &HeldKey) -> bool {
    let Some(held) = HELD.get_ptr(key) else {
        return false;
    };
    // SAFETY: an element of an LRU map; its length is checked, because another CPU may overwrite it.
    unsafe {
        let length = core::ptr::read_volatile(&raw const (*held).length);
        let Some(length) = held_length(length) else {
            return false;
        };
        let skb = hook.context().cast();
        let frame = (&raw const (*held).frame).cast();
        bpf_skb_change_tail(skb, length, 0) == 0
            && bpf_skb_store_bytes(skb, 0, frame, length, BPF_F_RECOMPUTE_CSUM as u64) == 0
    }
}
