//! The ways of masqueraded packets: out under an address of the host, and back.

use portfwd_common::{
    Stage, checksum,
    flow::{Side, State, TcpFlags},
    fragment::DATAGRAM_LIFETIME,
    masquerade::{DeviceFamily, Direction, Followed, Half, Key},
    net::{Address as _, Ip, NetPort, Protocol, V4, V6},
    verdict::Reason,
};

use crate::{
    clock,
    error::{ECHO_IDENTIFIER, ICMP_CHECKSUM, Message, Translation},
    family::{Family, HeaderChange},
    fib, fragment,
    maps::{DEVICE_IPS, MASQUERADED_FRAGMENTS},
    owner,
    packet::{Change, Hook, Tc},
    pair::{self, Live, Opened, Seen, Step, Work},
    parse::{self, Fragment, Network, Packet, Unparsed},
    translate::{self, End},
    verdict::Verdict,
    way::{self, PacketWay},
};

/// Places of a packet in a datagram, in [`Seen::fragment`].
const FIRST: u32 = 1;
const LATER: u32 = 2;

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
    let known = match pair::of_key(&work.key) {
        Some(live) => pair::advance(work, &live, step(&seen, &work.key, &live, Side::Client)),
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
    let known = match pair::of_key(&work.key) {
        Some(live) => pair::advance(work, &live, step(&seen, &work.key, &live, Side::Container)),
        None => false,
    };
    if known {
        note_fragment(hook, work, &seen);
        return way::by_family(hook, Write(End::Destination));
    }
    if work.key.protocol() == Protocol::Udp.number() && seen.fragment != LATER {
        expect_answer(work);
    }
    Verdict::NEXT
}

/// Reads a packet that can be masqueraded into this CPU's [`Work`]: TCP, UDP, a ping out or its reply in.
struct Read(Direction);

impl PacketWay<Tc> for Read {
    #[inline(always)]
    fn go<A: Family>(self, hook: &Tc) -> Verdict {
        let Some(work) = pair::work() else {
            return Verdict::NEXT;
        };
        let Ok(network) = parse::extended::<A>(hook) else {
            return Verdict::NEXT;
        };
        work.seen = Seen {
            transport: network.transport as u32,
            flags: 0,
            sequence: 0,
            acknowledgment: 0,
            identification: network.identification,
            has_data: 0,
            is_echo: 0,
            fragment: match network.fragment {
                Fragment::Whole => 0,
                Fragment::First => FIRST,
                Fragment::Later => LATER,
            },
        };
        if network.fragment == Fragment::Later {
            return follow(hook, work, &network);
        }
        let parsed =
            parse::ports(hook, &network).and_then(|ports| parse::transport(hook, network, ports));
        match parsed {
            Ok(packet) if packet.protocol != Protocol::Sctp => {
                work.seen.flags = packet.flags.0 as u32;
                work.seen.sequence = packet.sequence;
                work.seen.acknowledgment = packet.acknowledgment;
                work.seen.has_data = packet.has_data() as u32;
                let ports = (packet.source_port, packet.destination_port);
                work.key = key(self.0, &network, ports);
            }
            Err(Unparsed::Other) if network.protocol == A::ICMP => {
                let (kind, ports) = match (self.0, identifier(hook, &network)) {
                    (Direction::Out, Some(id)) => (A::ECHO_REQUEST, (id, NetPort::new(0))),
                    (Direction::In, Some(id)) => (A::ECHO_REPLY, (NetPort::new(0), id)),
                    (_, None) => return Verdict::NEXT,
                };
                if hook.load::<[u8; 2]>(network.transport_at(0)) != Some([kind, 0]) {
                    return Verdict::NEXT;
                }
                work.seen.is_echo = 1;
                work.key = key(self.0, &network, ports);
            }
            _ => return Verdict::NEXT,
        }
        // A datagram to a port without a mark may still be one to a container under its own address.
        let may_return = network.protocol == Protocol::Udp.number()
            || pair::is_marked(network.protocol, work.key.destination_port);
        match matches!(self.0, Direction::Out) || may_return {
            true => Verdict::READ,
            false => Verdict::NEXT,
        }
    }
}

#[inline(always)]
fn identifier<A: Family>(hook: &Tc, network: &Network<A>) -> Option<NetPort> {
    hook.load::<u16>(network.transport_at(ECHO_IDENTIFIER))
        .map(NetPort::from_wire)
}

#[inline(always)]
fn key<A: Family>(direction: Direction, network: &Network<A>, ports: (NetPort, NetPort)) -> Key {
    Key::new(
        direction,
        network.protocol,
        (network.source.ip(), ports.0),
        (network.destination.ip(), ports.1),
    )
}

/// What a packet does to its flow.
#[inline(always)]
fn step(seen: &Seen, key: &Key, live: &Live, side: Side) -> Step {
    let (flags, half) = (TcpFlags(seen.flags as u8), live.half());
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
        step.next = live.state.after_datagram(side, age);
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
    let id = match owner::of_source(&work.key.source) {
        Some(id) if !stays && !is_local(&work.key.destination) => id,
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

/// A datagram to a container under its own address, from where it is known: the answer is to leave under
/// that address too. (Of TCP and pings only what opens something is masqueraded, and an answer does not.)
/// So this is a flow as well, whose host's end is the container's.
#[inline(always)]
fn expect_answer(work: &mut Work) {
    let (container, port) = (work.key.destination, work.key.destination_port);
    let Some(id) = owner::of_source(&container) else {
        return;
    };
    let end = (container, port);
    work.half = Half::new(end, end, id, clock::now());
    work.half.state = State::UdpUnanswered as u32;
    pair::copy(&work.key, &mut work.other);
    work.key = work.half.counterpart(&work.other);
    // If there is no room, or the container has asked from this port, then the answer is masqueraded.
    pair::open_as_it_is(work);
}

/// Notes whose datagram the first fragment begins. If there is no room, the others go on as they came.
#[inline(always)]
fn note_fragment(hook: &Tc, work: &Work, seen: &Seen) {
    if seen.fragment != FIRST {
        return;
    }
    let datagram = fragment::key(
        (work.key.source, work.key.destination),
        seen.identification,
        work.key.protocol(),
        hook.device(),
    );
    let followed = Followed::new(work.key, clock::now());
    let _ = MASQUERADED_FRAGMENTS.insert(&datagram, &followed, 0);
}

/// Gives a later fragment the key of its first.
#[inline(always)]
fn follow<A: Family>(hook: &Tc, work: &mut Work, network: &Network<A>) -> Verdict {
    let datagram = fragment::key(
        (network.source.ip(), network.destination.ip()),
        network.identification,
        network.protocol,
        hook.device(),
    );
    let Some(followed) = MASQUERADED_FRAGMENTS.get_ptr(&datagram) else {
        return Verdict::NEXT;
    };
    // SAFETY: an element of an LRU map, whose fields are plain numbers.
    let followed = unsafe { &*followed };
    if clock::now().wrapping_sub(followed.since) >= DATAGRAM_LIFETIME {
        return Verdict::NEXT;
    }
    pair::copy(&followed.key, &mut work.key);
    Verdict::READ
}

/// Translates the packet of [`Work`] to what `work.half` says.
struct Write(End);

impl PacketWay<Tc> for Write {
    #[inline(always)]
    fn go<A: Family>(self, hook: &Tc) -> Verdict {
        let Some(work) = pair::work() else {
            return Verdict::NEXT;
        };
        let (seen, half) = (work.seen(), &work.half);
        let (address, port) = match self.0 {
            End::Source => (half.host, half.host_port),
            End::Destination => (half.container, half.container_port),
        };
        let (address, packet) = (A::from_ip(address), packet::<A>(work, &seen));
        let network = &packet.network;
        let done = if seen.fragment == LATER {
            translate::readdress(hook, network, self.0, address, false)
        } else if seen.is_echo != 0 {
            let old = match self.0 {
                End::Source => packet.source_port,
                End::Destination => packet.destination_port,
            };
            rewrite_echo(hook, network, self.0, address, (old, port))
        } else {
            translate::rewrite(hook, &packet, self.0, address, port, false)
        };
        match done {
            Ok(()) => Verdict::NEXT,
            Err(reason) => Verdict::drop(reason, 0),
        }
    }
}

/// The packet again, as far as a translation needs it.
#[inline(always)]
fn packet<A: Family>(work: &Work, seen: &Seen) -> Packet<A> {
    let key = &work.key;
    Packet {
        network: Network {
            source: A::from_ip(key.source),
            destination: A::from_ip(key.destination),
            protocol: key.protocol(),
            hops: 0,
            transport: seen.transport as usize,
            end: 0,
            fragment: Fragment::Whole,
            identification: 0,
        },
        protocol: match key.protocol() {
            6 => Protocol::Tcp,
            _ => Protocol::Udp,
        },
        source_port: key.source_port,
        destination_port: key.destination_port,
        length: 0,
        flags: TcpFlags(0),
        sequence: 0,
        acknowledgment: 0,
        header: 0,
    }
}

/// Rewrites one address of an ICMP echo, and its identifier from the first to the second. Ends every
/// pointer into the packet. After an error the packet is half translated and must be dropped.
#[inline(always)]
fn rewrite_echo<A: Family>(
    hook: &Tc,
    network: &Network<A>,
    end: End,
    address: A,
    identifier: (NetPort, NetPort),
) -> Result<(), Reason> {
    let old = match end {
        End::Source => network.source,
        End::Destination => network.destination,
    };
    let addresses = checksum::difference(old.sum(), address.sum());
    let (from, to) = (identifier.0.wire(), identifier.1.wire());
    let change = Change {
        addresses: A::covered_by_icmp(addresses),
        ports: checksum::difference(from as u64, to as u64),
    };
    // Not as UDP's: here a checksum of 0 is one.
    let field = network.transport_at(ICMP_CHECKSUM);
    hook.update_checksum(field, Protocol::Tcp, change)?;
    let place = hook
        .at::<A>(end.address_at::<A>(hook))
        .ok_or(Reason::RewriteFailed)?;
    // SAFETY: in bounds by `at`.
    unsafe { *place = address };
    let place = hook
        .at::<u16>(network.transport_at(ECHO_IDENTIFIER))
        .ok_or(Reason::RewriteFailed)?;
    // SAFETY: in bounds by `at`.
    unsafe { *place = to };
    let change = HeaderChange {
        addresses,
        uncovered: addresses,
    };
    A::finish_header(hook, network, change, false)
}

/// After the TC egress of a device: ICMP errors about what came back to a container.
pub struct ErrorOut;

impl PacketWay<Tc> for ErrorOut {
    #[inline(always)]
    fn go<A: Family>(self, hook: &Tc) -> Verdict {
        let Some((message, half)) = error_about::<A>(hook, Direction::Out) else {
            return Verdict::NEXT;
        };
        let quoted = &message.quoted;
        let host = A::from_ip(half.host);
        // What the host itself or a router tells keeps its address, unless nobody out there knows it.
        let is_inside = owner::of_source(&message.network.source.ip()).is_some();
        let translation = Translation {
            source: if is_inside {
                host
            } else {
                message.network.source
            },
            destination: message.network.destination,
            quoted_source: (quoted.source, message.source_port),
            quoted_destination: (host, half.host_port),
        };
        translated(hook, &message, &translation)
    }
}

/// After the TC ingress of a device: ICMP errors about what left under an address of the host.
pub struct ErrorBack;

impl PacketWay<Tc> for ErrorBack {
    #[inline(always)]
    fn go<A: Family>(self, hook: &Tc) -> Verdict {
        let Some((message, half)) = error_about::<A>(hook, Direction::In) else {
            return Verdict::NEXT;
        };
        let quoted = &message.quoted;
        let container = A::from_ip(half.container);
        let translation = Translation {
            source: message.network.source,
            destination: container,
            quoted_source: (container, half.container_port),
            quoted_destination: (quoted.destination, message.destination_port),
        };
        translated(hook, &message, &translation)
    }
}

/// An ICMP error, and the half of the flow whose packets go in its direction: those of the quoted one go in
/// the other.
#[inline(always)]
fn error_about<A: Family>(hook: &Tc, direction: Direction) -> Option<(Message<A>, &'static Half)> {
    let (work, message) = (pair::work()?, Message::<A>::read_any(hook)?);
    let quoted = &message.quoted;
    work.key = Key::new(
        direction,
        quoted.protocol,
        (quoted.destination.ip(), message.destination_port),
        (quoted.source.ip(), message.source_port),
    );
    let live = pair::of_key(&work.key)?;
    Some((message, live.half()))
}

#[inline(always)]
fn translated<A: Family>(hook: &Tc, message: &Message<A>, to: &Translation<A>) -> Verdict {
    match message.translate(hook, to, false) {
        Ok(()) => Verdict::NEXT,
        Err(reason) => Verdict::drop(reason, 0),
    }
}

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

/// Goes on with what nobody has claimed, if it may be an answer to something masqueraded.
#[inline(always)]
pub fn coming_back(hook: &Tc, verdict: Verdict) -> Verdict {
    match owner::is_active() && hook.is_for_host() {
        true => verdict.unless_claimed(Stage::MasqueradeIn),
        false => verdict,
    }
}
