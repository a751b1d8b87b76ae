//! A masqueraded packet: read into this CPU's [`Work`], and written again from it.

use portfwd_common::{
    checksum,
    flow::TcpFlags,
    fragment::DATAGRAM_LIFETIME,
    masquerade::{Direction, Followed, Key},
    net::{NetPort, Protocol},
    verdict::Reason,
};

use crate::{
    clock,
    error::{ECHO_IDENTIFIER, ICMP_CHECKSUM},
    family::{Family, HeaderChange},
    fragment,
    maps::MASQUERADED_FRAGMENTS,
    packet::{Change, Hook, Tc},
    pair::{self, Seen, Work},
    parse::{self, Fragment, Network, Packet, Unparsed},
    translate::{self, End},
    verdict::Verdict,
    way::PacketWay,
};

/// Places of a packet in a datagram, in [`Seen::fragment`].
const FIRST: u32 = 1;
pub const LATER: u32 = 2;

/// Reads a packet that can be masqueraded into this CPU's [`Work`]: TCP, UDP, a ping out or its reply in.
pub struct Read(pub Direction);

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
        let may_return = || pair::is_marked(network.protocol, work.key.destination_port);
        match matches!(self.0, Direction::Out) || may_return() {
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

/// Notes whose datagram the first fragment begins. If there is no room, the others go on as they came.
#[inline(always)]
pub fn note_fragment(hook: &Tc, work: &Work, seen: &Seen) {
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
    // Somebody else's by now, as an entry of a table may be at any time.
    let is_its =
        work.key.source == network.source.ip() && work.key.destination == network.destination.ip();
    match is_its {
        true => Verdict::READ,
        false => Verdict::NEXT,
    }
}

/// Translates the packet of [`Work`] to what `work.half` says.
pub struct Write(pub End);

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
        ports: checksum::word_difference(from, to),
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
