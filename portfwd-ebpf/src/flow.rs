//! Flows: found, opened and kept up.

use portfwd_common::{
    flow::{Flow, FlowKey, Route, Side, State, TcpFlags, is_alive},
    net::Protocol,
    verdict::Reason,
};

use crate::{
    clock,
    family::Family,
    forward::{self, Published},
    parse::Packet,
};

/// A live entry of a flow table. The kernel may give the entry to another flow at any time (it is an LRU
/// table); programs then read or write a wrong value once, never outside the entry.
pub type Entry<A> = *mut Flow<A>;

/// How packets get to a container.
#[derive(Clone, Copy)]
pub struct Target {
    /// Interface index of the host-side link.
    pub link: u32,
    /// [`portfwd_common::forward::Delivery`].
    pub delivery: u8,
}

/// The flow of a request through `published`, if there is one.
#[inline(always)]
pub fn of_request<A: Family>(
    key: &FlowKey<A>,
    packet: &Packet<A>,
    published: Published,
) -> Result<Option<Entry<A>>, Reason> {
    let Some(entry) = A::flows().get_ptr_mut(key) else {
        return Ok(None);
    };
    // SAFETY: see `Entry`.
    let flow = unsafe { &mut *entry };
    let Some(state) = State::from_number(flow.state) else {
        return Ok(None);
    };
    let now = clock::now();
    let gone = flow.last_seen != now && !is_alive(state, flow.last_seen, now);
    if gone || (packet.flags.opens() && state.gives_way_to_syn()) {
        return Ok(None);
    }
    let same_forward = flow.forward == published.index && flow.generation == published.generation;
    let same_host = flow.host == packet.network.destination
        && flow.host_port.wire() == packet.destination_port.wire();
    if !(same_forward && same_host) {
        let other_lives = same_forward || forward::visible(flow.forward, flow.generation).is_some();
        return if other_lives {
            Err(Reason::TupleTaken)
        } else {
            Ok(None)
        };
    }
    advance(flow, state, Side::Client, packet, now);
    Ok(Some(entry))
}

/// The live flow with this very key, and the forward that it belongs to.
#[inline(always)]
pub fn of_key<A: Family>(key: &FlowKey<A>) -> Option<(Entry<A>, State, u32)> {
    let entry = A::flows().get_ptr_mut(key)?;
    // SAFETY: see `Entry`.
    let flow = unsafe { &mut *entry };
    let state = State::from_number(flow.state)?;
    let now = clock::now();
    if flow.last_seen != now && !is_alive(state, flow.last_seen, now) {
        return None;
    }
    forward::visible(flow.forward, flow.generation)?;
    Some((entry, state, now))
}

/// Opens a flow through `published`, in place of whatever had its key.
#[inline(always)]
pub fn open<A: Family>(
    key: &FlowKey<A>,
    packet: &Packet<A>,
    published: Published,
    target: Target,
    ingress: u32,
) -> Result<(), Reason> {
    let now = clock::now();
    let tcp = packet.protocol == Protocol::Tcp;
    let flow = Flow {
        host: packet.network.destination,
        host_port: packet.destination_port,
        state: if tcp {
            State::Opening
        } else {
            State::UdpUnanswered
        } as u8,
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
    A::flows()
        .insert(key, &flow, 0)
        .map_err(|_| Reason::FlowTableFull)?;
    forward::count_connection(published.index);
    Ok(())
}

/// Notes a packet of a live flow.
#[inline(always)]
pub fn advance<A: Family>(
    flow: &mut Flow<A>,
    state: State,
    side: Side,
    packet: &Packet<A>,
    now: u32,
) {
    // Stored at most once a second, so that two CPUs do not fight for the cache line.
    if flow.last_seen != now {
        flow.last_seen = now;
    }
    let next = if packet.protocol == Protocol::Tcp {
        let turns = packet
            .flags
            .has(TcpFlags::SYN | TcpFlags::FIN | TcpFlags::RST);
        if state == State::Established && !turns {
            return;
        }
        if side == Side::Container && state == State::Opening && packet.flags.has(TcpFlags::SYN) {
            flow.client_ack = packet.sequence.wrapping_add(1);
        }
        // The first acknowledgment may be lost, and a later one then covers data as well.
        let covered = packet.acknowledgment.wrapping_sub(flow.client_ack) < 1 << 24;
        state.after(
            side,
            packet.flags,
            packet.flags.has(TcpFlags::ACK) && covered,
        )
    } else {
        state.after_datagram(side)
    };
    if next != state {
        flow.state = next as u8;
    }
}
