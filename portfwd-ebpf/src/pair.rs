//! Masqueraded flows: found, claimed, and both halves of them kept up.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{bpf_get_prandom_u32, bpf_loop},
    maps::LruHashMap,
};
use core::{ffi::c_void, intrinsics};

use portfwd_common::{
    flow::{State, is_alive},
    forward::{self as ports, PortSlot},
    masquerade::{Half, Key, PortElement, candidate, first_candidate, plane},
    net::{NetPort, Protocol},
};

use crate::{
    clock, flow, forward,
    maps::{
        MASQUERADE, MASQUERADE_MARKS, MASQUERADED, MASQUERADED_YOUNG, OUTBOUND_PORTS, PORTS, WORK,
    },
    owner,
    packet::Tc,
};

/// A packet and its flow, in a map: the verifier grants 512 bytes of stack, and it would follow each way
/// through the parser separately to the end if it knew what was found.
#[repr(C)]
pub struct Work {
    /// The packet's key.
    pub key: Key,
    /// That of the other half.
    pub other: Key,
    /// What both halves say.
    pub half: Half,
    /// What else is known of the packet.
    pub seen: Seen,
    /// [`Outcome`] of the search for a port.
    outcome: u32,
    /// Place of the first candidate in the list of ports.
    first: u32,
    /// Length of that list.
    length: u32,
    /// The second in which the last search failed, and toward where: nobody makes the programs look at all
    /// ports more often than that.
    full_at: u32,
    full: Key,
}

/// What is kept of a packet's headers.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Seen {
    /// Where the transport header begins.
    pub transport: u32,
    /// [`portfwd_common::flow::TcpFlags`].
    pub flags: u32,
    /// Of TCP.
    pub sequence: u32,
    /// Of TCP.
    pub acknowledgment: u32,
    /// What its fragments have in common.
    pub identification: u32,
    /// 1 if data follows the transport header.
    pub has_data: u32,
    /// 1 of an ICMP echo.
    pub is_echo: u32,
    /// 1 of the first fragment, 2 of a later one.
    pub fragment: u32,
}

/// What became of the search for a port.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Every port was taken so far.
    Searching = 0,
    /// The flow has a port.
    Claimed = 1,
    /// The flow was opened by another CPU meanwhile.
    Opened = 2,
    /// The tables take nothing.
    Full = 3,
}

impl Work {
    /// What is known of the packet, as the verifier is to know it: any numbers.
    #[inline(always)]
    pub fn seen(&self) -> Seen {
        // SAFETY: a field of the element.
        unsafe { core::ptr::read_volatile(&raw const self.seen) }
    }
    #[inline(always)]
    fn outcome(&self) -> u32 {
        // SAFETY: as above. The callback of a loop writes it.
        unsafe { core::ptr::read_volatile(&raw const self.outcome) }
    }
}

/// This CPU's.
#[inline(always)]
pub fn work() -> Option<&'static mut Work> {
    // SAFETY: programs of one CPU that handle packets do not interrupt each other.
    WORK.get_ptr_mut(0).map(|work| unsafe { &mut *work })
}

/// Whether and since when a half lives.
#[derive(Clone, Copy)]
pub struct Live {
    pub state: State,
    pub now: u32,
}

impl Live {
    #[inline(always)]
    fn of(half: &Half) -> Option<Self> {
        let state = State::from_number(half.state)?;
        let now = clock::now();
        let lives = is_alive(state, half.last_seen, now, flow::lifetimes()?);
        lives.then_some(Self { state, now })
    }
}

/// `*to = *from`, of which LLVM would not know that nothing overlaps: it would copy byte by byte, in a loop
/// that the verifier follows turn by turn.
#[inline(always)]
pub fn copy<T: Copy>(from: &T, to: &mut T) {
    // SAFETY: a shared and an exclusive reference do not overlap.
    unsafe { core::ptr::copy_nonoverlapping(from, to, 1) };
}

/// What a packet does to the state of its flow.
#[derive(Clone, Copy)]
pub struct Step {
    /// The state after it.
    pub next: State,
    /// As [`Half::client_ack`].
    pub client_ack: u32,
    /// As [`Half::created`].
    pub created: u32,
}

#[inline(always)]
fn table(settled: bool) -> &'static LruHashMap<Key, Half> {
    match settled {
        true => &MASQUERADED,
        false => &MASQUERADED_YOUNG,
    }
}

/// What a table has under this key, dead or alive.
#[inline(always)]
fn entry(key: &Key, settled: bool) -> Option<&'static Half> {
    // SAFETY: an entry of a map, whose fields are plain numbers; the kernel may give it to another flow at any
    // time, as those of LRU tables. Maps live as long as the programs.
    table(settled).get_ptr(key).map(|entry| unsafe { &*entry })
}

/// The live half under this key, settled or young, whoever owns it. Looked for as [`flow::of_key`] does.
#[inline(always)]
fn half_of(key: &Key) -> Option<&'static Half> {
    for settled in [true, false, true] {
        if let Some(half) = entry(key, settled)
            && Live::of(half).is_some()
        {
            return Some(half);
        }
    }
    None
}

/// Whether there is a live half under this key, whose owner is still masqueraded.
#[inline(always)]
pub fn is_known(key: &Key) -> bool {
    half_of(key).is_some_and(|half| owner::is_masqueraded(half.owner))
}

/// The live half under `work.key`, if its owner is still masqueraded: what it says is in `work.half` then. An entry
/// that is not found again once it has been copied was another flow's by then: the half has moved to the other
/// table, or is gone.
#[inline(always)]
pub fn find(work: &mut Work) -> Option<Live> {
    for settled in [true, false, true] {
        let Some(half) = entry(&work.key, settled) else {
            continue;
        };
        copy(half, &mut work.half);
        if !entry(&work.key, settled).is_some_and(|again| core::ptr::eq(again, half)) {
            continue;
        }
        if let Some(live) = Live::of(&work.half) {
            return owner::is_masqueraded(work.half.owner).then_some(live);
        }
    }
    None
}

/// Notes a packet of a live flow that [`find`] has found: what it changes, and at most once a second that it was
/// there. Both halves say the same afterwards, whichever of them was left. Says whether the flow is still its own:
/// it is not if another one has the port by now.
#[inline(always)]
pub fn advance(work: &mut Work, live: &Live, step: Step) -> bool {
    let changed = step.next != live.state || step.client_ack != work.half.client_ack;
    if !changed && work.half.last_seen == live.now {
        return true;
    }
    work.half.last_seen = live.now;
    work.half.state = step.next as u32;
    work.half.client_ack = step.client_ack;
    work.half.created = step.created;
    work.other = work.half.counterpart(&work.key);
    let (was, is) = (live.state.is_settled(), step.next.is_settled());
    let claim = work.half.claim;
    let is_lost = |other: &Half| other.claim != claim && other.is_of(&work.other);
    if half_of(&work.other).is_some_and(is_lost) {
        let _ = table(was).remove(&work.key);
        return false;
    }
    // In both tables for a moment, never in none: the claim does not end meanwhile.
    let written = write(&work.other, &work.half, is) && write(&work.key, &work.half, is);
    if written && was != is {
        let _ = table(was).remove(&work.key);
        let _ = table(was).remove(&work.other);
    }
    true
}

/// Ends the flow that [`find`] has found.
#[inline(always)]
pub fn forget(work: &mut Work) {
    work.other = work.half.counterpart(&work.key);
    for settled in [true, false] {
        let _ = table(settled).remove(&work.key);
        let _ = table(settled).remove(&work.other);
    }
}

#[inline(always)]
fn write(key: &Key, half: &Half, settled: bool) -> bool {
    table(settled).insert(key, half, 0).is_ok()
}

/// What became of a flow that was to be opened.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// It is there, and `work.half` says what its halves say.
    Yes,
    /// No port is left.
    Exhausted,
    /// No room is left.
    Full,
}

/// Opens the flow of `work.key`, whose half is `work.half` but for the port: the container's own if that
/// can be, else the first that nobody has, in an order of its own.
#[inline(always)]
pub fn open(hook: &Tc, work: &mut Work) -> Opened {
    let (secret, listed) = match MASQUERADE.get_ptr(0) {
        // SAFETY: words of a map that the loader stores.
        Some(settings) => unsafe { ((*settings).secret, (*settings).ports) },
        None => (0, 0),
    };
    let key = &work.key;
    work.first = first_candidate(key.source, key.source_port, key.protocol(), secret);
    work.length = if is_echo(key) { 1 << 16 } else { listed as u32 };
    prepare(work);
    let kept = work.key.source_port;
    if attempt(hook, work, kept) {
        return opened(work);
    }
    work.half.host_port = NetPort::new(0);
    work.other = work.half.counterpart(&work.key);
    if work.full_at == work.half.created && work.full == work.other {
        return Opened::Exhausted;
    }
    let mut context = hook.raw();
    // SAFETY: the callback has the signature that the kernel wants; what it gets is on this stack.
    unsafe {
        bpf_loop(
            work.length,
            look as *mut c_void,
            (&raw mut context).cast(),
            0,
        )
    };
    let opened = opened(work);
    if opened == Opened::Exhausted {
        work.half.host_port = NetPort::new(0);
        work.full = work.half.counterpart(&work.key);
        work.full_at = work.half.created;
    }
    opened
}

/// Opens the flow of `work.key` with the port that `work.half` says, or not at all.
#[inline(always)]
pub fn open_as_it_is(work: &mut Work) {
    prepare(work);
    claim(work);
}

/// Keeps the port of `work.key`, which is the host's own, from masqueraded flows, if there ever was one with
/// it. One that has it gets another with the next packet of its container.
#[inline(always)]
pub fn hold(work: &mut Work) {
    let (now, port) = (clock::now(), work.key.source_port);
    if !is_marked(work.key.protocol(), port) {
        return;
    }
    let host = (work.key.source, port);
    work.half = Half::new(host, host, 0, now);
    work.half.state = State::UdpUnanswered as u32;
    prepare(work);
    work.other = work.half.counterpart(&work.key);
    if let Some(half) = half_of(&work.other) {
        if half.owner != 0 {
            work.key = half.counterpart(&work.other);
            for table in [&MASQUERADED, &MASQUERADED_YOUNG] {
                let _ = table.remove(&work.key);
            }
        } else if half.last_seen == now {
            return;
        }
    }
    if write(&work.other, &work.half, false) {
        let _ = MASQUERADED.remove(&work.other);
    }
}

#[inline(always)]
fn prepare(work: &mut Work) {
    work.outcome = Outcome::Searching as u32;
    // SAFETY: takes and touches nothing.
    work.half.claim = unsafe { bpf_get_prandom_u32() } | 1;
}

#[inline(always)]
fn opened(work: &mut Work) -> Opened {
    let outcome = work.outcome();
    if outcome == Outcome::Claimed as u32 {
        return Opened::Yes;
    }
    if outcome == Outcome::Opened as u32 && find(work).is_some() {
        return Opened::Yes;
    }
    match outcome == Outcome::Searching as u32 {
        true => Opened::Exhausted,
        false => Opened::Full,
    }
}

/// Tries the candidate of that number. 1 ends the search.
extern "C" fn look(number: u64, context: *mut c_void) -> i64 {
    let Some(work) = work() else {
        return 1;
    };
    let place = candidate(work.first, number as u32, work.length);
    let port = match is_echo(&work.key) {
        true => place as u16,
        false => element(place).map_or(0, |element| element.listed as u16),
    };
    // SAFETY: the word that `open` has passed.
    let hook = Tc::from_raw(unsafe { *context.cast() });
    attempt(&hook, work, NetPort::new(port)) as i64
}

#[inline(always)]
fn is_echo(key: &Key) -> bool {
    !matches!(key.protocol(), 6 | 17)
}

#[inline(always)]
fn element(index: u32) -> Option<PortElement> {
    // SAFETY: two words of a map; a loader that writes them meanwhile makes a candidate fail.
    OUTBOUND_PORTS
        .get_ptr(index)
        .map(|element| unsafe { *element })
}

/// Takes a port if it is nobody's. Says whether the search is over.
#[inline(always)]
fn attempt(hook: &Tc, work: &mut Work, port: NetPort) -> bool {
    work.half.host_port = port;
    work.other = work.half.counterpart(&work.key);
    let is_free = match is_echo(&work.key) {
        true => half_of(&work.other).is_none(),
        false => {
            is_usable(work, port)
                && half_of(&work.other).is_none()
                && !forward::host_has(hook, &work.other)
        }
    };
    is_free && claim(work)
}

/// Whether a flow may have this port at all.
#[inline(always)]
fn is_usable(work: &Work, port: NetPort) -> bool {
    let protocol = match work.key.protocol() {
        6 => Protocol::Tcp,
        _ => Protocol::Udp,
    };
    let is_free = element(port.get() as u32).is_some_and(|element| element.free != 0);
    let family = if work.key.source.is_v4() { 0 } else { 1 };
    let is_published = match PORTS.get_ptr(ports::port_index(family, protocol, port)) {
        Some(bits) => {
            // SAFETY: the loader stores the eight bytes at once.
            PortSlot::from_bits(unsafe { core::ptr::read_volatile(bits) }).is_published()
        }
        None => true,
    };
    is_free && !is_published
}

/// Claims the port that `work.half` says, and inserts both halves, or none. Says whether the search is
/// over.
#[inline(always)]
fn claim(work: &mut Work) -> bool {
    let young = &MASQUERADED_YOUNG;
    if !insert_claim(work) {
        return false;
    }
    let mut outcome = Outcome::Claimed;
    if !insert_new(&work.key, &work.half) {
        // What is left under the key is another CPU's, or does not live.
        if is_known(&work.key) {
            outcome = Outcome::Opened;
        } else {
            let _ = young.remove(&work.key);
            if !insert_new(&work.key, &work.half) {
                outcome = Outcome::Full;
            }
        }
    }
    work.outcome = outcome as u32;
    if outcome == Outcome::Claimed {
        let _ = MASQUERADED.remove(&work.key);
        mark(&work.other);
    } else {
        let _ = young.remove(&work.other);
    }
    true
}

#[inline(always)]
fn insert_new(key: &Key, half: &Half) -> bool {
    let flags = BPF_NOEXIST as u64;
    MASQUERADED_YOUNG.insert(key, half, flags).is_ok()
}

/// Inserts the in-half where there is none. First among the young ones, then a look at the others: who
/// moves a half inserts it there before it is removed here.
#[inline(always)]
fn insert_claim(work: &Work) -> bool {
    let inserted = insert_new(&work.other, &work.half)
        || (seize(&MASQUERADED_YOUNG, &work.other) && insert_new(&work.other, &work.half));
    if !inserted {
        return false;
    }
    if !seize(&MASQUERADED, &work.other) {
        let _ = MASQUERADED_YOUNG.remove(&work.other);
        return false;
    }
    true
}

/// Removes what does not live any more, if there is anything. Of several CPUs that want to, one does: the
/// claim is a number that no two flows have.
#[inline(always)]
fn seize(table: &LruHashMap<Key, Half>, key: &Key) -> bool {
    let Some(entry) = table.get_ptr_mut(key) else {
        return true;
    };
    // SAFETY: see `entry`.
    let (claim, lives) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*entry).claim),
            Live::of(&*entry).is_some(),
        )
    };
    if lives || claim == 0 {
        return false;
    }
    use intrinsics::AtomicOrdering::SeqCst;
    // SAFETY: an aligned word of the entry.
    let (_, is_ours) = unsafe {
        intrinsics::atomic_cxchg::<u32, { SeqCst }, { SeqCst }>(&raw mut (*entry).claim, claim, 0)
    };
    if is_ours {
        let _ = table.remove(key);
    }
    is_ours
}

/// Notes that packets to this port may be masqueraded flows'.
#[inline(always)]
fn mark(key: &Key) {
    if let Some(marks) = MASQUERADE_MARKS.get_ptr_mut(key.destination_port.get() as u32) {
        let at = (plane(key.protocol()) & 3) as usize;
        // SAFETY: a byte of the element, which is stored at once.
        unsafe { *(*marks).as_mut_ptr().add(at) = 1 };
    }
}

/// Whether a flow ever had the port.
#[inline(always)]
pub fn is_marked(protocol: u8, port: NetPort) -> bool {
    match MASQUERADE_MARKS.get_ptr(port.get() as u32) {
        // SAFETY: a byte of the element.
        Some(marks) => unsafe { *(*marks).as_ptr().add((plane(protocol) & 3) as usize) != 0 },
        None => false,
    }
}
