//! Flows: found, opened, kept up, and moved between the tables of settled ones and that of young ones.

use aya_ebpf::{bindings::BPF_NOEXIST, maps::LruHashMap};
use portfwd_common::{
    flow::{Flow, FlowKey, Lifetimes, Route, Side, State, is_alive},
    forward::Delivery,
    net::{NetPort, Protocol},
    verdict::Reason,
};

use crate::{
    clock,
    family::Family,
    forward::{self, Published},
    maps::{JOURNAL, SCRATCH},
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

/// A live flow. The kernel may give the entry to another flow at any time (it is one of an LRU table);
/// programs then read or write a wrong value once, never outside the entry.
#[derive(Clone, Copy)]
pub struct Live<A: 'static> {
    entry: *mut Flow<A>,
    pub state: State,
    pub now: u32,
}

impl<A: Family> Live<A> {
    #[inline(always)]
    fn of(entry: *mut Flow<A>) -> Option<Self> {
        // SAFETY: an entry of a map.
        let flow = unsafe { &*entry };
        let state = State::from_number(flow.state)?;
        let now = clock::now();
        let lives = flow.last_seen == now || is_alive(state, flow.last_seen, now, lifetimes()?);
        lives.then_some(Self { entry, state, now })
    }
    /// The entry.
    #[inline(always)]
    pub fn flow(&self) -> &'static mut Flow<A> {
        // SAFETY: an entry of a map, whose fields are plain numbers. Maps live as long as the programs.
        unsafe { &mut *self.entry }
    }
    /// Whether this is the connection that its client has through `published`.
    #[inline(always)]
    pub fn is_of(&self, request: &Request<A>, published: &Published) -> bool {
        let flow = self.flow();
        flow.forward == published.index
            && flow.generation == published.generation
            && flow.host == request.host
            && flow.host_port.wire() == request.host_port.wire()
            && flow.client_port.wire() == request.client_port.wire()
            && (flow.delivery != Delivery::Hairpin as u32 || flow.route.next_hop == request.client)
    }
    /// Whether the forward that opened it is still published.
    #[inline(always)]
    pub fn is_published(&self) -> bool {
        let flow = self.flow();
        forward::visible(flow.forward, flow.generation).is_some()
    }
    /// Notes a packet that changes nothing: stored at most once a second, so that two CPUs do not fight
    /// for the cache line.
    #[inline(always)]
    pub fn touch(&self) {
        let flow = self.flow();
        if flow.last_seen != self.now {
            flow.last_seen = self.now;
        }
    }
}

#[inline(always)]
pub fn lifetimes() -> Option<&'static Lifetimes> {
    // SAFETY: words of a map that the loader stores one by one.
    JOURNAL
        .get_ptr(0)
        .map(|journal| unsafe { &(*journal).lifetimes })
}

/// The settled flow with this key. A lookup for each table, where [`home`] would do: the kernel writes the
/// lookup out in place only if it knows the table.
#[inline(always)]
pub fn settled<A: Family>(key: &FlowKey<A>) -> Option<Live<A>> {
    Live::of(match is_datagram(key) {
        true => A::streams().get_ptr_mut(key)?,
        false => A::flows().get_ptr_mut(key)?,
    })
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
    let young = || Live::of(A::young().get_ptr_mut(key)?);
    settled(key).or_else(young).or_else(|| settled(key))
}

/// The flow of a reply with this key, if its forward is still published.
#[inline(always)]
pub fn of_reply<A: Family>(key: &FlowKey<A>) -> Option<Live<A>> {
    of_key(key).filter(Live::is_published)
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
    } else if live.is_published() {
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
    let flow = Flow {
        host: packet.network.destination,
        host_port: packet.destination_port,
        client_port: packet.source_port,
        state: state as u32,
        delivery: target.delivery,
        link: target.link,
        forward: published.index,
        generation: published.generation,
        last_seen: now,
        created: now,
        client_ack: 0,
        ingress,
        // A second that is past: the first reply asks the FIB.
        route: Route {
            refreshed: now.wrapping_sub(1),
            device: ingress,
            mtu: 0,
            has_next_hop: 0,
            next_hop: packet.network.source,
        },
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
    let scratch = SCRATCH
        .get_ptr_mut(0)
        .ok_or(Reason::FlowTableFull)?
        .cast::<Flow<A>>();
    let (flow, state, now) = new(packet, published, target, ingress);
    let flags = match place {
        Place::Any => 0,
        Place::Free => BPF_NOEXIST as u64,
    };
    // SAFETY: this CPU's own element, which has room for a flow of either family.
    let flow = unsafe {
        *scratch = flow;
        &*scratch
    };
    A::young()
        .insert(key, flow, flags)
        .map_err(|_| Reason::FlowTableFull)?;
    // Its predecessor may be in the other table, which is asked first.
    if place == Place::Any {
        let _ = home(key).remove(key);
    }
    forward::count_connection(published.index);
    let entry = A::young().get_ptr_mut(key).ok_or(Reason::FlowTableFull)?;
    Ok(Live { entry, state, now })
}

/// Notes a packet of a live flow. A flow that settles, or is closed, moves to the other table.
#[inline(always)]
pub fn advance<A: Family>(live: &Live<A>, key: &FlowKey<A>, side: Side, packet: &Packet<A>) {
    live.touch();
    let (flow, state) = (live.flow(), live.state);
    let next = if packet.protocol == Protocol::Udp {
        state.after_datagram(side, live.now.wrapping_sub(flow.created))
    } else {
        if side == Side::Container && packet.flags.answers() {
            flow.client_ack = packet.sequence.wrapping_add(1);
        }
        let proven = match side {
            Side::Client => packet.proves(flow.client_ack),
            Side::Container => packet.has_data() || packet.flags.turns(),
        };
        state.after(side, packet.flags, proven)
    };
    if next == state {
        return;
    }
    flow.state = next as u32;
    match (state.is_settled(), next.is_settled()) {
        (false, true) => settle(A::young(), home(key), key, flow),
        (true, false) => settle(home(key), A::young(), key, flow),
        _ => {}
    }
}

/// Moves an entry. It is in both tables for a moment, never in none; if the other one takes nothing, it
/// stays where it was.
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
