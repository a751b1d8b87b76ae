//! The ways of masqueraded packets: out under an address of the host, and back.

pub mod error;
mod packet;

use portfwd_common::{
    Stage,
    flow::{Side, State, TcpFlags},
    masquerade::{DeviceFamily, Direction, Half, Key},
    net::{Address as _, Ip, NetPort, Protocol, V4, V6},
    verdict::Reason,
};

use self::packet::{LATER, Read, Write, note_fragment};
use crate::{
    clock,
    family::Family,
    fib, forward,
    maps::DEVICE_IPS,
    owner,
    packet::{Hook, Tc},
    pair::{self, Live, Opened, Seen, Step, Work},
    parse::{Network, Ports},
    translate::End,
    verdict::Verdict,
    way,
};

/// Goes on with an ICMP error that leaves and that nobody has claimed; the host's own as well.
#[inline(always)]
pub fn leaving_error(verdict: Verdict) -> Verdict {
    match owner::is_active() {
        true => verdict.unless_claimed(Stage::MasqueradeOutError),
        false => verdict,
    }
}

/// Goes on with an ICMP error that came in and that nobody has claimed.
#[inline(always)]
pub fn coming_back_error(hook: &Tc, verdict: Verdict) -> Verdict {
    match owner::is_active() && hook.is_for_host() {
        true => verdict.unless_claimed(Stage::MasqueradeInError),
        false => verdict,
    }
}

/// Goes on with what nobody has claimed, if it may be a packet that leaves masqueraded.
#[inline(always)]
pub fn leaving(hook: &Tc, verdict: Verdict) -> Verdict {
    // What the host itself sends came in nowhere.
    match owner::is_active() && hook.came_in_by() != 0 {
        true => verdict.unless_claimed(Stage::MasqueradeOut),
        false => verdict,
    }
}

/// Of what has no ports, the stage looks at ICMP whoever sends it: the host's own pings have identifiers
/// too.
#[inline(always)]
pub fn leaving_other<A: Family>(network: &Network<A>) -> Verdict {
    match owner::is_active() && network.protocol == A::ICMP {
        true => Verdict::stage(Stage::MasqueradeOut),
        false => Verdict::NEXT,
    }
}

/// Goes on with what nobody has claimed, if it may be an answer to something masqueraded.
#[inline(always)]
pub fn coming_back(hook: &Tc, verdict: Verdict) -> Verdict {
    match owner::is_active() && hook.is_for_host() {
        true => verdict.unless_claimed(Stage::MasqueradeIn),
        false => verdict,
    }
}

/// The same of a packet of which no more is known than its ports.
#[inline(always)]
pub fn coming_back_to(ports: Ports) -> Verdict {
    let may_be = owner::is_active()
        && ports.protocol != Protocol::Sctp
        && pair::is_marked(ports.protocol.number(), ports.destination);
    match may_be {
        true => Verdict::stage(Stage::MasqueradeIn),
        false => Verdict::NEXT,
    }
}

/// The same of what has no ports.
#[inline(always)]
pub fn coming_back_other<A: Family>(network: &Network<A>) -> Verdict {
    match owner::is_active() && network.protocol == A::ICMP {
        true => Verdict::stage(Stage::MasqueradeIn),
        false => Verdict::NEXT,
    }
}

/// After the TC egress of a device, what nobody else has claimed.
#[inline(always)]
pub fn out(hook: &Tc) -> Verdict {
    let Some(work) = pair::work() else {
        return Verdict::NEXT;
    };
    let read = way::by_family(hook, Read(Direction::Out));
    if !read.is_read() {
        return read;
    }
    let seen = work.seen();
    if hook.came_in_by() == 0 {
        return of_host(work, &seen);
    }
    let known = match pair::find(work) {
        Some(live) if has_lost_address(work, &live) => {
            pair::forget(work);
            false
        }
        Some(live) => pair::advance(work, &live, step(work, &seen, &live, Side::Client)),
        None => false,
    };
    if !known {
        let opened = open(hook, work, &seen);
        if !opened.is_read() {
            return opened;
        }
    }
    note_fragment(hook, work, &seen);
    way::by_family(hook, Write(End::Source))
}

/// Whether the flow of `work` has an address that the host has no more, as of the last command: its answers come
/// back nowhere. Asked once a second.
#[inline(always)]
fn has_lost_address(work: &Work, live: &Live) -> bool {
    let half = &work.half;
    half.last_seen != live.now && !half.is_noted() && !forward::is_host_ip(&half.host)
}

/// What the host itself sends is its own, whatever its address.
#[inline(always)]
fn of_host(work: &mut Work, seen: &Seen) -> Verdict {
    if seen.is_echo != 0 && !is_local(&work.key.destination) {
        pair::hold(work);
    }
    Verdict::NEXT
}

/// After the TC ingress of a device, what is no published port's.
#[inline(always)]
pub fn back(hook: &Tc) -> Verdict {
    let Some(work) = pair::work() else {
        return Verdict::NEXT;
    };
    let read = way::by_family(hook, Read(Direction::In));
    if !read.is_read() {
        return read;
    }
    let seen = work.seen();
    let known = match pair::find(work) {
        Some(live) => pair::advance(work, &live, step(work, &seen, &live, Side::Container)),
        None => false,
    };
    if known {
        note_fragment(hook, work, &seen);
        return way::by_family(hook, Write(End::Destination));
    }
    Verdict::NEXT
}

/// What the packet of `work` does to its flow, of which `work.half` is a half.
#[inline(always)]
fn step(work: &Work, seen: &Seen, live: &Live, side: Side) -> Step {
    let (flags, key, half) = (TcpFlags(seen.flags as u8), &work.key, &work.half);
    let mut step = Step {
        next: live.state,
        client_ack: half.client_ack,
        created: half.created,
    };
    if seen.fragment == LATER {
        return step;
    }
    if key.protocol() != Protocol::Tcp.number() {
        let age = live.now.wrapping_sub(half.created);
        let next = live.state.after_datagram(side, age);
        // A noted one stays young: spoofed senders may have opened it, any number of them.
        if !(half.is_noted() && next.is_settled()) {
            step.next = next;
        }
    } else if side == Side::Client && flags.opens() && live.state.gives_way_to_syn() {
        step = Step {
            next: State::Opening,
            client_ack: 0,
            created: live.now,
        };
    } else {
        if side == Side::Container && flags.answers() {
            step.client_ack = seen.sequence.wrapping_add(1);
        }
        let proven = match side {
            Side::Client => flags.has(TcpFlags::ACK) && seen.acknowledgment == step.client_ack,
            Side::Container => seen.has_data != 0 || flags.turns(),
        };
        step.next = live.state.after(side, flags, proven);
    }
    step
}

/// Opens a flow for the packet of `work.key`; READ if it did.
#[inline(always)]
fn open(hook: &Tc, work: &mut Work, seen: &Seen) -> Verdict {
    let stays = hook.came_in_by() == hook.device() || seen.fragment == LATER;
    // What the host sends on behalf of what came in: translated replies, tunnels' packets.
    if stays || forward::is_host_ip(&work.key.source) {
        return Verdict::NEXT;
    }
    let is_local = is_local(&work.key.destination);
    let id = match owner::of_source(&work.key.source) {
        Some(id) if !is_local => id,
        None if is_local && work.key.protocol() == Protocol::Udp.number() => {
            expect_answer(work);
            return Verdict::NEXT;
        }
        _ => return Verdict::NEXT,
    };
    let is_tcp = work.key.protocol() == Protocol::Tcp.number();
    if is_tcp && !TcpFlags(seen.flags as u8).opens() {
        return Verdict::next_for(Reason::NoFlow);
    }
    let host = match address(hook, &work.key) {
        Address::Leaves(host) => host,
        Address::Stays => return Verdict::NEXT,
        Address::None => return Verdict::drop(Reason::MasqueradeNoAddress, 0),
    };
    let container = (work.key.source, work.key.source_port);
    work.half = Half::new(container, (host, NetPort::new(0)), id, clock::now());
    work.half.state = match is_tcp {
        true => State::Opening as u32,
        false => State::UdpUnanswered as u32,
    };
    match pair::open(hook, work) {
        Opened::Yes => Verdict::READ,
        Opened::Exhausted => Verdict::drop(Reason::MasqueradeExhausted, 0),
        Opened::Full => Verdict::drop(Reason::FlowTableFull, 0),
    }
}

/// Destinations that see containers under their own addresses.
#[inline(always)]
fn is_local(destination: &Ip) -> bool {
    let is_never_forwarded = match destination.is_v4() {
        true => V4::from_ip(*destination).is_never_forwarded(),
        false => V6::from_ip(*destination).is_never_forwarded(),
    };
    is_never_forwarded || owner::is_inside(destination)
}

/// What a packet that leaves by this device gets for an address.
enum Address {
    Leaves(Ip),
    /// Answers would not come back to the programs.
    Stays,
    None,
}

/// What the forwarding table says, if it would send the packet by the device by which it leaves; else what
/// the loader has found on that device.
#[inline(always)]
fn address(hook: &Tc, key: &Key) -> Address {
    let place = DeviceFamily {
        device: hook.device(),
        family: if key.source.is_v4() { 0 } else { 1 },
    };
    // SAFETY: the loader replaces elements whole.
    let Some(stored) = (unsafe { DEVICE_IPS.get(&place) }).copied() else {
        return Address::Stays;
    };
    let address = fib::source(hook, hook.came_in_by(), key).unwrap_or(stored);
    match address.is_unspecified() {
        true => Address::None,
        false => Address::Leaves(address),
    }
}

/// A datagram that has been let through to a container under its own address, from where that is known: the
/// answer is to leave under it too. (Of TCP and pings only what opens something is masqueraded, and an
/// answer does not.) So this is a flow as well, whose host's end is the container's.
#[inline(always)]
fn expect_answer(work: &mut Work) {
    let (container, port) = (work.key.destination, work.key.destination_port);
    let Some(id) = owner::of_source(&container) else {
        return;
    };
    let end = (container, port);
    work.half = Half::new(end, end, id, clock::now());
    work.half.state = State::UdpUnanswered as u32;
    let far = (work.key.source, work.key.source_port);
    work.other = Key::new(Direction::In, work.key.protocol(), far, end);
    work.key = work.half.counterpart(&work.other);
    // What the container has asked itself has its address already.
    if pair::is_known(&work.key) {
        return;
    }
    // If there is no room, or the container has asked from this port, then the answer is masqueraded.
    pair::open_as_it_is(work);
}
