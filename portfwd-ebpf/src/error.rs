//! ICMP errors about translated packets. The packet that an error quotes has what the packets of the
//! other direction have, with its ends exchanged: so both the message and the quote are translated back
//! to what their receiver knows.

use portfwd_common::{
    Stage, checksum,
    flow::FlowKey,
    forward::{Delivery, PortSlot},
    net::{NetPort, Protocol},
    verdict::Reason,
};

use crate::{
    deliver,
    drain::{self, Answer},
    family::{Family, HeaderChange},
    flow::{self, Found, Request},
    forward,
    packet::{Hook, Tc, UNCHANGED},
    parse::{Fragment, Network},
    shift,
    translate::End,
    verdict::Verdict,
    way::{self, PacketWay},
};

/// Length of the header of an ICMP error (RFC 792; RFC 4443, section 3).
const ICMP_HEADER: usize = 8;
/// Offset of its checksum.
pub const ICMP_CHECKSUM: usize = 2;
/// Offset of the identifier of an echo (RFC 792; RFC 4443, section 4.1).
pub const ECHO_IDENTIFIER: usize = 4;

/// After the TC ingress of a device.
pub struct Device;

impl PacketWay<Tc> for Device {
    #[inline(always)]
    fn go<A: Family>(self, hook: &Tc) -> Verdict {
        match Message::<A>::read(hook) {
            Some(message) => message.about_reply(hook, 0),
            None => Verdict::NEXT,
        }
    }
}

/// After the TC ingress of a container's link.
pub struct Link;

impl PacketWay<Tc> for Link {
    #[inline(always)]
    fn go<A: Family>(self, hook: &Tc) -> Verdict {
        let Ok(header) = A::header(hook) else {
            return Verdict::next_for(Reason::Malformed);
        };
        if !way::may_send(hook, &header) {
            return Verdict::drop(Reason::ForeignSource, 0);
        }
        let Some(message) = Message::<A>::read(hook) else {
            return Verdict::NEXT;
        };
        let link = hook.device();
        message
            .about_request(hook, link)
            .unwrap_or_else(|| message.about_reply(hook, link))
    }
}

/// After the TC egress of a device.
pub struct Egress;

impl PacketWay<Tc> for Egress {
    #[inline(always)]
    fn go<A: Family>(self, hook: &Tc) -> Verdict {
        Message::<A>::read(hook)
            .and_then(|message| message.about_request(hook, 0))
            .unwrap_or(Verdict::NEXT)
    }
}

/// An ICMP error.
pub struct Message<A> {
    pub network: Network<A>,
    pub quoted: Network<A>,
    /// Of the quoted packet; for an echo, any that has no connections.
    protocol: Protocol,
    /// An echo has its identifier as the port of the end that asks, and 0 for the other one.
    pub source_port: NetPort,
    pub destination_port: NetPort,
    is_echo: bool,
}

/// One end of the quoted packet.
pub type Quote<A> = (A, NetPort);

/// What an error is translated to.
pub struct Translation<A> {
    pub source: A,
    pub destination: A,
    pub quoted_source: Quote<A>,
    pub quoted_destination: Quote<A>,
}

impl<A: Family> Message<A> {
    /// The error, if it is whole and quotes enough. How long the quote is, its length field does not say
    /// (RFC 4884 is not always followed): it goes as far as the packet does.
    #[inline(always)]
    fn read(hook: &Tc) -> Option<Self> {
        Self::read_any(hook).filter(|message| !message.is_echo)
    }

    /// The same, which may quote a ping as well.
    #[inline(always)]
    pub fn read_any(hook: &Tc) -> Option<Self> {
        hook.pull_extended_headers();
        let network = A::extended(hook).ok()?.by_any_way()?;
        if network.protocol != A::ICMP || network.fragment != Fragment::Whole {
            return None;
        }
        let message: u8 = hook.load(network.transport_at(0))?;
        let at = network.transport_at(ICMP_HEADER);
        let quoted = A::quoted(hook, at, network.end)?.by_any_way()?;
        let is_echo = quoted.protocol == A::ICMP;
        let protocol = match quoted.protocol {
            6 => Protocol::Tcp,
            17 => Protocol::Udp,
            132 => Protocol::Sctp,
            _ if is_echo => Protocol::Udp,
            _ => return None,
        };
        // The ports, or the identifier of an echo.
        let told = if is_echo {
            ECHO_IDENTIFIER as u64 + 2
        } else {
            4
        };
        if quoted.transport as u64 + told > network.end {
            return None;
        }
        let ports: [u16; 2] = match is_echo {
            true => echo_ends::<A>(hook, &quoted)?,
            false => hook.load(quoted.transport_at(0))?,
        };
        // To whom the packet was never sent, nobody sends an error about it.
        let is_backscatter = network.destination == quoted.source;
        (A::is_error(message) && is_backscatter).then_some(Self {
            network,
            quoted,
            protocol,
            source_port: NetPort::from_wire(ports[0]),
            destination_port: NetPort::from_wire(ports[1]),
            is_echo,
        })
    }

    /// About a reply that has been translated: on to the container that sent it. `link` is the link that
    /// the error came by, 0 if by none.
    #[inline(always)]
    fn about_reply(&self, hook: &Tc, link: u32) -> Verdict {
        let (quoted, port) = (&self.quoted, self.source_port);
        let slot = forward::slot::<A>(self.protocol, port);
        let Some(published) = forward::published(slot, self.protocol, quoted.source, port) else {
            return Verdict::NEXT;
        };
        let record = published.record;
        let (target, target_port) = (A::from_ip(record.target), record.target_port_of(port));
        if record.target.is_unspecified() || !published.is_unchanged() {
            return Verdict::NEXT;
        }
        let hairpin = link != 0 && link == record.link;
        let request = Request {
            client: quoted.destination,
            client_port: self.destination_port,
            host: quoted.source,
            host_port: port,
        };
        let client = if hairpin {
            request.host
        } else {
            request.client
        };
        let protocol = quoted.protocol;
        let mut key = FlowKey::new(client, request.client_port, target, target_port, protocol);
        let answer = drain::answer(&request, protocol);
        let found = match answer {
            Answer::Found => drain::found(&mut key),
            _ => shift::find(&mut key, &request, &published),
        };
        let Found::Own(live) = found else {
            let stage = match link {
                0 => Stage::DeviceError,
                _ => Stage::LinkError,
            };
            if answer == Answer::None
                && drain::ask(&request, protocol, (link, false), &published, stage)
            {
                return Verdict::stage(Stage::Drain);
            }
            return Verdict::next_for(Reason::NoFlow);
        };
        let hop = live.flow().delivery != Delivery::Stack as u32;
        let flow = live.flow();
        if hop && self.network.hops <= 1 {
            return Verdict::next_for(Reason::Expired);
        }
        let translation = Translation {
            source: if flow.delivery == Delivery::Hairpin as u32 {
                request.host
            } else {
                self.network.source
            },
            destination: key.container,
            quoted_source: (key.container, key.container_port),
            quoted_destination: (key.client, key.client_port),
        };
        match self.translate(hook, &translation, hop) {
            Ok(()) => way::delivered(hook, flow.link, flow.delivery),
            Err(reason) => Verdict::drop(reason, flow.forward),
        }
    }

    /// About a request that has been translated: on to the client that sent it. `link` is the link that
    /// the error came by, 0 if it leaves by a device, where only those through the stack count.
    #[inline(always)]
    fn about_request(&self, hook: &Tc, link: u32) -> Option<Verdict> {
        let quoted = &self.quoted;
        let slot = forward::slot::<A>(self.protocol, self.destination_port);
        if !slot.has(PortSlot::CONTAINER_SIDE) {
            return None;
        }
        let key = FlowKey::new(
            quoted.source,
            self.source_port,
            quoted.destination,
            self.destination_port,
            quoted.protocol,
        );
        let live = flow::of_reply(&key)?;
        let flow = live.flow();
        let stack = flow.delivery == Delivery::Stack as u32;
        let hairpin = flow.delivery == Delivery::Hairpin as u32;
        if stack != (link == 0) || (!stack && flow.link != link) {
            return None;
        }
        if !stack && self.network.hops <= 1 {
            return Some(Verdict::next_for(Reason::Expired));
        }
        if !stack && !hairpin {
            deliver::refresh_route(hook, &key, &live, way::routing_device);
        }
        let (index, reply) = (flow.forward, flow.reply);
        let client = if hairpin { reply.next_hop } else { key.client };
        // What a router behind the host tells keeps the router's address.
        let is_of_container = !stack || self.network.source == key.container;
        let translation = Translation {
            source: if is_of_container {
                flow.reply.host
            } else {
                self.network.source
            },
            destination: client,
            quoted_source: (client, flow.reply.client_port),
            quoted_destination: (flow.reply.host, flow.reply.host_port),
        };
        Some(match self.translate(hook, &translation, !stack) {
            Err(reason) => Verdict::drop(reason, index),
            Ok(()) if stack => Verdict::TRANSLATED,
            Ok(()) if hairpin => deliver::to_container(hook, link),
            Ok(()) => deliver::to_client(&reply),
        })
    }

    /// Rewrites message and quote. After an error the packet is half translated and must be dropped.
    #[inline(always)]
    pub fn translate(&self, hook: &Tc, to: &Translation<A>, hop: bool) -> Result<(), Reason> {
        let (network, quoted) = (&self.network, &self.quoted);
        let inner = ends_change(
            (quoted.source, quoted.destination),
            (to.quoted_source.0, to.quoted_destination.0),
        );
        let outer = ends_change(
            (network.source, network.destination),
            (to.source, to.destination),
        );
        let ports = checksum::difference(
            self.source_port.wire() as u64 + self.destination_port.wire() as u64,
            to.quoted_source.1.wire() as u64 + to.quoted_destination.1.wire() as u64,
        );
        let transport = self.quoted_checksum(hook, inner, ports);
        let at = network.transport_at(ICMP_HEADER);
        let header = A::finish_quoted(hook, at, inner)?;
        let quoted_at = A::SOURCE_AT + ICMP_HEADER;
        put(hook, network.transport_at(quoted_at), to.quoted_source.0)?;
        let second = quoted_at + size_of::<A>();
        put(hook, network.transport_at(second), to.quoted_destination.0)?;
        let ports_at = [to.quoted_source.1.wire(), to.quoted_destination.1.wire()];
        match self.is_echo {
            true => put(
                hook,
                quoted.transport_at(ECHO_IDENTIFIER),
                ports_at[0] | ports_at[1],
            )?,
            false => put(hook, quoted.transport_at(0), ports_at)?,
        }
        put(hook, End::Source.address_at::<A>(hook), to.source)?;
        put(hook, End::Destination.address_at::<A>(hook), to.destination)?;
        let message = inner + ports + transport + header + A::covered_by_icmp(outer);
        let field = network.transport_at(ICMP_CHECKSUM);
        let sum: u16 = hook.load(field).ok_or(Reason::RewriteFailed)?;
        put(hook, field, checksum::update(sum, message))?;
        let change = HeaderChange {
            addresses: outer,
            uncovered: UNCHANGED,
        };
        A::finish_header(hook, network, change, hop)
    }

    /// Corrects the checksum of the quoted transport header, if the quote goes that far (RFC 792 asks for
    /// 8 bytes, which is not enough for TCP's). Gives the difference of the field.
    #[inline(always)]
    fn quoted_checksum(&self, hook: &Tc, addresses: u32, ports: u32) -> u32 {
        let (offset, addresses) = match self.protocol {
            _ if self.is_echo => (ICMP_CHECKSUM, A::covered_by_icmp(addresses)),
            Protocol::Tcp => (16, addresses),
            Protocol::Udp => (6, addresses),
            Protocol::Sctp => return 0,
        };
        if (self.quoted.transport + offset + 2) as u64 > self.network.end {
            return 0;
        }
        let Some(field) = hook.at::<u16>(self.quoted.transport_at(offset)) else {
            return 0;
        };
        // SAFETY: in bounds by `at`.
        unsafe {
            let old = *field;
            let udp = self.protocol == Protocol::Udp && !self.is_echo;
            if udp && old == 0 {
                return 0;
            }
            let new = checksum::update(old, addresses + ports);
            *field = if udp && new == 0 { 0xffff } else { new };
            checksum::word_difference(old, *field)
        }
    }
}

/// The ends of a quoted ping or of its reply, as ports.
#[inline(always)]
fn echo_ends<A: Family>(hook: &Tc, quoted: &Network<A>) -> Option<[u16; 2]> {
    let kind: [u8; 2] = hook.load(quoted.transport_at(0))?;
    let identifier: u16 = hook.load(quoted.transport_at(ECHO_IDENTIFIER))?;
    if kind == [A::ECHO_REQUEST, 0] {
        Some([identifier, 0])
    } else if kind == [A::ECHO_REPLY, 0] {
        Some([0, identifier])
    } else {
        None
    }
}

/// What becomes of two addresses, as a one's complement difference.
#[inline(always)]
fn ends_change<A: Family>(old: (A, A), new: (A, A)) -> u32 {
    checksum::difference(old.0.sum() + old.1.sum(), new.0.sum() + new.1.sum())
}

#[inline(always)]
fn put<T: Copy>(hook: &Tc, offset: usize, value: T) -> Result<(), Reason> {
    let place = hook.at::<T>(offset).ok_or(Reason::RewriteFailed)?;
    // SAFETY: in bounds by `at`.
    unsafe { *place = value };
    Ok(())
}
