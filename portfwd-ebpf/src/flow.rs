//! Flows: found, opened, kept up, and moved between the tables of settled ones and that of young ones.

use aya_ebpf::{bindings::BPF_NOEXIST, maps::LruHashMap};
use core::{
    ops::Deref,
    sync::atomic::{Ordering, compiler_fence},
};
use portfwd_common::{
    flow::{Flow, FlowKey, Lifetimes, Reply, Side, State, is_alive},
    forward::{Delivery, Forward},
    net::{NetPort, Protocol, V6},
    verdict::Reason,
};

use crate::{
    clock,
    family::Family,
    fib::Route,
    forward::{self, Published, Way},
    maps::{JOURNAL, SEEN},
    pair,
    parse::Packet,
};

/// A connection as its client has it.
#[derive(Clone, Copy)]
pub struct Request<A> {
    pub client: A,
    pub client_port: NetPort,
    pub host: A,
    pub host_port: NetPort,
}

impl<A: Family> Request<A> {
    /// That of a packet of the client.
    #[inline(always)]
    pub fn of(packet: &Packet<A>) -> Self {
        Self {
            client: packet.network.source,
            client_port: packet.source_port,
            host: packet.network.destination,
            host_port: packet.destination_port,
        }
    }
}

/// What a live flow says: a copy of its entry. The kernel may give the entry to another flow at any time, as
/// those of LRU tables.
#[derive(Clone, Copy)]
pub struct Live<A: 'static> {
    said: *mut Flow<A>,
    pub state: State,
    pub now: u32,
}

impl<A: Family> Live<A> {
    #[inline(always)]
    fn of(said: *mut Flow<A>) -> Option<Self> {
        // SAFETY: an entry of a map, or this CPU's own element.
        let flow = unsafe { &*said };
        let state = State::from_number(flow.state)?;
        let now = clock::now();
        let lives = flow.last_seen == now || is_alive(state, flow.last_seen, now, lifetimes()?);
        lives.then_some(Self { said, state, now })
    }
    /// What it says.
    #[inline(always)]
    pub fn flow(&self) -> &'static Flow<A> {
        // SAFETY: its fields are plain numbers. Maps live as long as the programs.
        unsafe { &*self.said }
    }
    /// Whether this is the connection that its client has through `published`.
    #[inline(always)]
    pub fn is_of(&self, request: &Request<A>, published: &Published) -> bool {
        let flow = self.flow();
        flow.forward == published.index
            && flow.generation == published.generation
            && flow.reply.host == request.host
            && flow.reply.host_port.wire() == request.host_port.wire()
            && flow.reply.client_port.wire() == request.client_port.wire()
            && (flow.delivery != Delivery::Hairpin as u32 || flow.reply.next_hop == request.client)
    }
    /// Whether the forward that opened it is still published, or drains.
    #[inline(always)]
    pub fn is_served(&self) -> bool {
        let flow = self.flow();
        forward::serving(flow.forward, flow.generation).is_some()
    }
    /// Counts the bytes of a packet, if that is asked for.
    #[inline(always)]
    pub fn count(&self, key: &FlowKey<A>, way: Way, bytes: u64) {
        if !counts_bytes() {
            return;
        }
        let settled = State::from_number(self.flow().state).is_some_and(State::is_settled);
        if let Some(entry) = entry(key, settled) {
            add_bytes(entry, way, bytes);
        }
    }
    /// Stores the way out, as it is while `transaction` is the last.
    #[inline(always)]
    pub fn lead(&self, key: &FlowKey<A>, route: Route<A>, transaction: u64) {
        // SAFETY: this CPU's own element.
        let said = unsafe { &mut *self.said };
        said.reply.device = route.device;
        said.reply.mtu = route.mtu;
        said.reply.has_next_hop = route.has_next_hop;
        said.reply.next_hop = route.next_hop;
        said.seal = said.sealed(key);
        said.transaction = transaction;
        said.refreshed = self.now;
        if let Some(entry) = entry(key, self.state.is_settled()) {
            // SAFETY: an entry of a map.
            let entry = unsafe { &mut *entry };
            pair::copy(&said.reply, &mut entry.reply);
            entry.seal = said.seal;
            entry.transaction = transaction;
            entry.refreshed = self.now;
        }
    }
}

/// A live flow that is read where it lies: what it says may be another flow's, so that it has to be compared with
/// the packet, or sealed.
#[derive(Clone, Copy)]
pub struct InPlace<A: 'static>(Live<A>);

impl<A> Deref for InPlace<A> {
    type Target = Live<A>;
    #[inline(always)]
    fn deref(&self) -> &Live<A> {
        &self.0
    }
}

impl<A: Family> InPlace<A> {
    /// What a reply gets, if [`is_led`] says that it is known.
    #[inline(always)]
    pub fn reply(&self, key: &FlowKey<A>) -> Option<Reply<A>> {
        let flow = *self.flow();
        // What was read is not read again.
        compiler_fence(Ordering::SeqCst);
        is_led(&flow, key, self.now).then_some(flow.reply)
    }
    /// Counts the bytes of a packet, if that is asked for.
    #[inline(always)]
    pub fn count(&self, way: Way, bytes: u64) {
        if counts_bytes() {
            add_bytes(self.said, way, bytes);
        }
    }
    /// Notes a packet that changes nothing: stored at most once a second, so that two CPUs do not fight
    /// for the cache line.
    #[inline(always)]
    pub fn touch(&self) {
        if self.flow().last_seen != self.now {
            // SAFETY: an entry of a map.
            unsafe { (*self.said).last_seen = self.now };
        }
    }
}

/// Whether what replies of the flow of `key` get is one whole, of this second, and the flow's forward published.
#[inline(always)]
pub fn is_led<A: Family>(flow: &Flow<A>, key: &FlowKey<A>, now: u32) -> bool {
    flow.refreshed == now
        && Some(flow.transaction) == forward::committed()
        && flow.seal == flow.sealed(key)
}

/// Where this CPU keeps what a flow says.
#[inline(always)]
fn said<A: Family>() -> Option<*mut Flow<A>> {
    const { assert!(size_of::<Flow<A>>() <= size_of::<Flow<V6>>()) };
    SEEN.get_ptr_mut(0).map(<*mut Flow<V6>>::cast)
}

/// The live flow that was found last, on this CPU.
#[inline(always)]
pub fn found_last<A: Family>() -> Option<Live<A>> {
    Live::of(said()?)
}

#[inline(always)]
pub fn lifetimes() -> Option<&'static Lifetimes> {
    // SAFETY: words of a map that the loader stores one by one.
    JOURNAL
        .get_ptr(0)
        .map(|journal| unsafe { &(*journal).lifetimes })
}

/// Whether flows count their bytes.
#[inline(always)]
fn counts_bytes() -> bool {
    match JOURNAL.get_ptr(0) {
        // SAFETY: an aligned word of a map, which the loader stores at any time.
        Some(journal) => unsafe { core::ptr::read_volatile(&raw const (*journal).flow_bytes) != 0 },
        None => false,
    }
}

/// Adds to what an entry has counted. Of two packets of one direction on two CPUs one may go uncounted: devices
/// keep a flow on one (receive side scaling), and no locked instruction is worth the rest.
#[inline(always)]
fn add_bytes<A: Family>(entry: *mut Flow<A>, way: Way, bytes: u64) {
    // SAFETY: an entry of a map.
    unsafe {
        match way {
            Way::ToContainer => (*entry).rx_bytes += bytes,
            Way::ToClient => (*entry).tx_bytes += bytes,
        }
    }
}

/// The settled flow with this key.
#[inline(always)]
pub fn settled<A: Family>(key: &FlowKey<A>) -> Option<InPlace<A>> {
    Live::of(entry(key, true)?).map(InPlace)
}

/// The entry under `key` of a table of settled flows, or of young ones. A lookup for each table, where [`home`]
/// would do: the kernel writes the lookup out in place only if it knows the table.
#[inline(always)]
fn entry<A: Family>(key: &FlowKey<A>, settled: bool) -> Option<*mut Flow<A>> {
    match (settled, is_datagram(key)) {
        (true, true) => A::streams().get_ptr_mut(key),
        (true, false) => A::flows().get_ptr_mut(key),
        (false, _) => A::young().get_ptr_mut(key),
    }
}

/// What is under `key` in such a table and lives.
#[inline(always)]
fn found<A: Family>(key: &FlowKey<A>, settled: bool) -> Option<Live<A>> {
    let (found, said) = (entry(key, settled)?, said()?);
    // SAFETY: an entry of a map, and this CPU's own element.
    pair::copy(unsafe { &*found }, unsafe { &mut *said });
    // All of it was copied before the kernel took the entry out of its table, if it is found there again.
    match entry(key, settled) == Some(found) {
        true => Live::of(said),
        false => None,
    }
}

#[inline(always)]
fn is_datagram<A>(key: &FlowKey<A>) -> bool {
    key.protocol == Protocol::Udp as u32
}

/// The table that a flow with this key settles in.
#[inline(always)]
fn home<A: Family>(key: &FlowKey<A>) -> &'static LruHashMap<FlowKey<A>, Flow<A>> {
    match is_datagram(key) {
        true => A::streams(),
        false => A::flows(),
    }
}

/// The flow with this key, settled or young. One that settles on another CPU may be in neither table when
/// it is looked for there: it was not yet in the one, and is no longer in the other.
#[inline(always)]
pub fn of_key<A: Family>(key: &FlowKey<A>) -> Option<Live<A>> {
    // No closures: LLVM makes functions of some, from which no tail call is allowed.
    for settled in [true, false, true] {
        if let Some(live) = found(key, settled) {
            return Some(live);
        }
    }
    None
}

/// Whether no flow has this key, not even a dead one.
#[inline(always)]
pub fn is_free<A: Family>(key: &FlowKey<A>) -> bool {
    entry(key, true).is_none() && entry(key, false).is_none()
}

/// The flow of a reply with this key, if its forward still serves it.
#[inline(always)]
pub fn of_reply<A: Family>(key: &FlowKey<A>) -> Option<Live<A>> {
    of_key(key).filter(Live::is_served)
}

/// What a request finds under the key that it would have.
pub enum Found<A: 'static> {
    /// Its flow.
    Own(Live<A>),
    /// Another flow of the same client, which is still in use.
    Other,
    /// Nothing that counts.
    Nothing,
}

/// What a request through `published` finds.
#[inline(always)]
pub fn of_request<A: Family>(
    key: &FlowKey<A>,
    request: &Request<A>,
    published: &Published,
) -> Found<A> {
    let Some(live) = of_key(key) else {
        return Found::Nothing;
    };
    if live.is_of(request, published) {
        Found::Own(live)
    } else if live.is_served() {
        Found::Other
    } else {
        Found::Nothing
    }
}

/// How packets get to a container.
#[derive(Clone, Copy)]
pub struct Target {
    /// Interface index of the host-side link.
    pub link: u32,
    /// [`portfwd_common::forward::Delivery`].
    pub delivery: u32,
}

/// Whether a new flow may take the place of one with its key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Whatever is there is known to be dead.
    Any,
    /// Only where there is none.
    Free,
}

/// What there is to say of a flow that `packet` opens, with its state and the second.
#[inline(always)]
fn new<A: Family>(
    packet: &Packet<A>,
    published: &Published,
    target: Target,
    ingress: u32,
) -> (Flow<A>, State, u32) {
    let now = clock::now();
    let state = match packet.protocol {
        Protocol::Udp => State::UdpUnanswered,
        _ => State::Opening,
    };
    // See `fib::ask` for the zero.
    let zero = core::hint::black_box(0);
    let flow = Flow {
        reply: Reply {
            host_port: packet.destination_port,
            client_port: packet.source_port,
            device: ingress,
            mtu: 0,
            has_next_hop: 0,
            next_hop: packet.network.source,
            host: packet.network.destination,
        },
        seal: 0,
        transaction: Forward::FOREVER,
        // A second that is past: the first reply asks the FIB.
        refreshed: now.wrapping_sub(1),
        state: state as u32,
        delivery: target.delivery,
        link: target.link,
        forward: published.index,
        generation: published.generation,
        last_seen: now,
        created: now,
        client_ack: 0,
        ingress,
        rx_bytes: zero,
        tx_bytes: zero,
    };
    (flow, state, now)
}

/// Opens a flow through `published`.
#[inline(always)]
pub fn open<A: Family>(
    key: &FlowKey<A>,
    packet: &Packet<A>,
    published: &Published,
    target: Target,
    ingress: u32,
    place: Place,
) -> Result<Live<A>, Reason> {
    let said = said().ok_or(Reason::FlowTableFull)?;
    let (flow, state, now) = new(packet, published, target, ingress);
    let flags = match place {
        Place::Any => 0,
        Place::Free => BPF_NOEXIST as u64,
    };
    // SAFETY: this CPU's own element, which has room for a flow of either family.
    let flow = unsafe {
        *said = flow;
        &*said
    };
    A::young()
        .insert(key, flow, flags)
        .map_err(|_| Reason::FlowTableFull)?;
    // Its predecessor may be in a table of settled ones, which is asked first.
    if place == Place::Any {
        let _ = home(key).remove(key);
    }
    forward::count_connection(published.index);
    Ok(Live { said, state, now })
}

/// Notes a packet of a flow that is kept. One that settles, or is closed, moves to another table.
#[inline(always)]
pub fn advance<A: Family>(live: &Live<A>, key: &FlowKey<A>, side: Side, packet: &Packet<A>) {
    let (flow, state) = (live.flow(), live.state);
    let (seen, known_ack) = (flow.last_seen, flow.client_ack);
    let mut client_ack = known_ack;
    let next = if packet.protocol == Protocol::Udp {
        state.after_datagram(side, live.now.wrapping_sub(flow.created))
    } else {
        if side == Side::Container && packet.flags.answers() {
            client_ack = packet.sequence.wrapping_add(1);
        }
        let proven = match side {
            Side::Client => packet.proves(client_ack),
            Side::Container => packet.has_data() || packet.flags.turns(),
        };
        state.after(side, packet.flags, proven)
    };
    // SAFETY: this CPU's own element.
    unsafe {
        (*live.said).last_seen = live.now;
        (*live.said).client_ack = client_ack;
        (*live.said).state = next as u32;
    }
    match (state.is_settled(), next.is_settled()) {
        (false, true) => settle(A::young(), home(key), key, live.flow()),
        (true, false) => settle(home(key), A::young(), key, live.flow()),
        _ if seen == live.now && next == state && client_ack == known_ack => {}
        (settled, _) => note(key, settled, live.flow()),
    }
}

/// Stores what a packet has changed of a flow that stays where it is.
#[inline(always)]
fn note<A: Family>(key: &FlowKey<A>, settled: bool, flow: &Flow<A>) {
    if let Some(entry) = entry(key, settled) {
        // SAFETY: an entry of a map.
        unsafe {
            (*entry).last_seen = flow.last_seen;
            (*entry).client_ack = flow.client_ack;
            (*entry).state = flow.state;
        }
    }
}

/// Moves a flow, as it says it is. It is in both tables for a moment, never in none; if the other one takes
/// nothing, it stays where it was.
#[inline(always)]
fn settle<A: Family>(
    from: &LruHashMap<FlowKey<A>, Flow<A>>,
    to: &LruHashMap<FlowKey<A>, Flow<A>>,
    key: &FlowKey<A>,
    flow: &Flow<A>,
) {
    if to.insert(key, flow, 0).is_ok() {
        let _ = from.remove(key);
    }
}
