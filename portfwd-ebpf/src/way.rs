//! The ways of packets of settled flows, one for each hook, in both families: nothing but a lookup, a
//! translation and a delivery. All others are for the stages ([`crate::first`], [`crate::error`]).

use portfwd_common::{
    Stage,
    flow::FlowKey,
    forward::{Delivery, PortSlot},
    host::LinkSource,
    net::{V4, V6},
    verdict::Reason,
};

use crate::{
    deliver,
    family::Family,
    flow::{self, Request, Target},
    forward::{self, Way},
    maps::{LINK_SOURCES, LINKS},
    masquerade,
    packet::{Hook, Tc, Xdp},
    parse::{self, Network, Packet, Unparsed},
    translate::{self, End},
    verdict::Verdict,
};

/// What a hook does with a packet of one family.
pub trait PacketWay<H> {
    fn go<A: Family>(self, hook: &H) -> Verdict;
}

/// Sends a packet the way of its family; what is no IP goes on.
#[inline(always)]
pub fn by_family<H: Hook>(hook: &H, way: impl PacketWay<H>) -> Verdict {
    if hook.is_tagged() {
        return Verdict::NEXT;
    }
    by_ether_type(hook, way)
}

#[inline(always)]
fn by_ether_type<H: Hook>(hook: &H, way: impl PacketWay<H>) -> Verdict {
    hook.pull_headers();
    match hook.ether_type() {
        Some(V4::ETHERTYPE) => way.go::<V4>(hook),
        Some(V6::ETHERTYPE) => way.go::<V6>(hook),
        _ => Verdict::NEXT,
    }
}

/// The same for what a container sends. A tag keeps it from being answered here, not from being looked
/// at. What is behind a second tag nobody looks at: the kernel takes that off after this hook.
#[inline(always)]
pub fn of_container(hook: &Tc) -> Verdict {
    match hook.ether_type() {
        Some(VLAN | PROVIDER_VLAN) => Verdict::drop(Reason::ForeignSource, 0),
        _ if hook.is_tagged() => by_ether_type(hook, TaggedLink),
        _ => by_ether_type(hook, Link),
    }
}

/// EtherTypes of VLAN tags (IEEE 802.1Q, table 9-1), in network order.
const VLAN: u16 = 0x8100u16.to_be();
const PROVIDER_VLAN: u16 = 0x88a8u16.to_be();

/// What a parser found, or the end of the way.
macro_rules! parsed {
    ($result:expr, $first:expr, $error:expr) => {
        match $result {
            Ok(found) => found,
            Err(Unparsed::Other) => return Verdict::NEXT,
            Err(Unparsed::Malformed) => return Verdict::next_for(Reason::Malformed),
            Err(Unparsed::Extended) => return $first,
            Err(Unparsed::Error) => return $error,
        }
    };
}
pub(crate) use parsed;

/// TC ingress of a device.
pub struct Device;

impl Device {
    const FIRST: Verdict = Verdict::stage(Stage::DeviceFirst);
    const FRAGMENT: Verdict = Verdict::stage(Stage::DeviceFragment);
    const ERROR: Verdict = Verdict::stage(Stage::DeviceError);
}

impl PacketWay<Tc> for Device {
    #[inline(always)]
    fn go<A: Family>(self, hook: &Tc) -> Verdict {
        // What a bridge or a promiscuous device overhears is not for us.
        if !hook.is_for_host() {
            return Verdict::NEXT;
        }
        let network: Network<A> = parsed!(A::network(hook), Self::FRAGMENT, Self::ERROR);
        let ports = match parse::ports(hook, &network) {
            Err(Unparsed::Other) => return masquerade::coming_back_other(&network),
            other => parsed!(other, Self::FIRST, Self::ERROR),
        };
        let slot = forward::slot::<A>(ports.protocol, ports.destination);
        if slot.is_empty() {
            return masquerade::coming_back_to(ports);
        }
        let packet = parsed!(
            parse::transport(hook, network, ports),
            Self::FIRST,
            Self::ERROR
        );
        match request(hook, &packet, slot, 0) {
            Some(Ok(target)) => delivered(hook, target.link, target.delivery),
            Some(Err(verdict)) if verdict.goes_on() => masquerade::coming_back_to(ports),
            Some(Err(verdict)) => verdict,
            None => Self::FIRST,
        }
    }
}

/// XDP of a device: the same translation; delivery is left to TC behind it, or to the stack.
pub struct EarlyDevice;

impl PacketWay<Xdp> for EarlyDevice {
    #[inline(always)]
    fn go<A: Family>(self, hook: &Xdp) -> Verdict {
        match early::<A>(hook) {
            Ok(verdict) => verdict,
            // Asked only now: a frame for another station is mostly of no published port.
            Err(Unparsed::Malformed) if hook.is_for_host() => Verdict::next_for(Reason::Malformed),
            Err(_) => Verdict::NEXT,
        }
    }
}

/// What is not translated goes up.
#[inline(always)]
fn early<A: Family>(hook: &Xdp) -> Result<Verdict, Unparsed> {
    const UP: Verdict = Verdict::NEXT;
    let network: Network<A> = A::network(hook)?;
    let ports = parse::ports(hook, &network)?;
    let slot = forward::slot::<A>(ports.protocol, ports.destination);
    if slot.is_empty() || !hook.is_for_host() {
        return Ok(UP);
    }
    let packet = parse::transport(hook, network, ports)?;
    Ok(match request(hook, &packet, slot, 0) {
        Some(Err(verdict)) => verdict,
        _ => UP,
    })
}

/// TC ingress of a container's host-side link: replies, and requests of the container to the host.
pub struct Link;

impl Link {
    const FIRST: Verdict = Verdict::stage(Stage::LinkFirst);
    const REQUEST: Verdict = Verdict::stage(Stage::LinkRequest);
    const ERROR: Verdict = Verdict::stage(Stage::LinkError);
}

impl PacketWay<Tc> for Link {
    #[inline(always)]
    fn go<A: Family>(self, hook: &Tc) -> Verdict {
        let network = match A::network(hook) {
            Ok(network) => network,
            Err(Unparsed::Extended) => return Self::FIRST,
            // The stack does not take it for IP either.
            Err(_) => return Verdict::next_for(Reason::Malformed),
        };
        let parsed =
            parse::ports(hook, &network).and_then(|ports| parse::transport(hook, network, ports));
        let packet = match parsed {
            Ok(packet) => packet,
            Err(Unparsed::Error) => return Self::ERROR,
            Err(_) => return own(hook, &network, Verdict::NEXT),
        };
        if forward::slot::<A>(packet.protocol, packet.source_port).has(PortSlot::CONTAINER_SIDE) {
            return reply(hook, &packet).unwrap_or(Self::FIRST);
        }
        let slot = forward::slot::<A>(packet.protocol, packet.destination_port);
        if slot.is_empty() {
            return own(hook, &network, Verdict::NEXT);
        }
        if !may_send(hook, &network) {
            return Verdict::drop(Reason::ForeignSource, 0);
        }
        match request(hook, &packet, slot, hook.device()) {
            Some(Ok(target)) => delivered(hook, target.link, target.delivery),
            Some(Err(verdict)) => verdict,
            None => Self::REQUEST,
        }
    }
}

/// What a container sends behind a VLAN tag.
struct TaggedLink;

impl PacketWay<Tc> for TaggedLink {
    #[inline(always)]
    fn go<A: Family>(self, hook: &Tc) -> Verdict {
        match A::header(hook) {
            Ok(network) => own(hook, &network, Verdict::NEXT),
            // The stack does not take it for IP either.
            Err(_) => Verdict::next_for(Reason::Malformed),
        }
    }
}

/// `verdict` for what comes from an address of the container, and a drop for the rest.
#[inline(always)]
pub fn own<A: Family>(hook: &Tc, network: &Network<A>, verdict: Verdict) -> Verdict {
    if may_send(hook, network) {
        verdict
    } else {
        Verdict::drop(Reason::ForeignSource, 0)
    }
}

/// Whether the source is one that the container behind this link may send from.
#[inline(always)]
pub fn may_send<A: Family>(hook: &Tc, network: &Network<A>) -> bool {
    let source = LinkSource::new(hook.device(), network.source.ip());
    // SAFETY: only the presence counts.
    unsafe { LINK_SOURCES.get(&source) }.is_some() || network.source.is_link_scoped()
}

/// TC egress of a device: all that may be a reply through the stack is the stage's.
pub struct Egress;

impl PacketWay<Tc> for Egress {
    #[inline(always)]
    fn go<A: Family>(self, hook: &Tc) -> Verdict {
        const FIRST: Verdict = Verdict::stage(Stage::EgressFirst);
        const ERROR: Verdict = Verdict::stage(Stage::EgressError);
        let network: Network<A> = parsed!(A::network(hook), FIRST, ERROR);
        let ports = match parse::ports(hook, &network) {
            Err(Unparsed::Other) => return masquerade::leaving_other(&network),
            other => parsed!(other, FIRST, ERROR),
        };
        if forward::slot::<A>(ports.protocol, ports.source).has(PortSlot::CONTAINER_SIDE) {
            FIRST
        } else {
            Verdict::NEXT
        }
    }
}

/// From outside to the container, if the packet belongs to a settled flow: where it goes, translated, or what
/// became of it. `link` is the container's link that it came by, 0 if by none.
#[inline(always)]
fn request<H: Hook, A: Family>(
    hook: &H,
    packet: &Packet<A>,
    slot: PortSlot,
    link: u32,
) -> Option<Result<Target, Verdict>> {
    let destination = packet.network.destination;
    let port = packet.destination_port;
    let Some(published) = forward::published(slot, packet.protocol, destination, port) else {
        let by_xdp = link == 0 && slot.has(PortSlot::CONTAINER_SIDE);
        let target = if by_xdp {
            translated_before(packet)
        } else {
            None
        };
        return Some(target.ok_or(Verdict::NEXT));
    };
    let record = published.record;
    let target = A::from_ip(record.target);
    let target_port = record.target_port_of(port);
    // Of a flow of this forward that comes this way the same is true: only a container's own differs.
    let way_in = Target {
        link: record.link,
        delivery: record.delivery as u32,
    };
    if packet.flags.turns() || (link != 0 && link == record.link) || !published.is_unchanged() {
        return None;
    }
    let source = packet.network.source;
    let protocol = packet.network.protocol;
    let key = FlowKey::new(source, packet.source_port, target, target_port, protocol);
    let live = flow::settled(&key)?;
    let hop = way_in.delivery != Delivery::Stack as u32;
    let is_own = live.is_of(&Request::of(packet), &published);
    if !is_own || (hop && packet.network.hops <= 1) {
        return None;
    }
    live.touch();
    live.count(Way::ToContainer, packet.length);
    forward::count_packet(published.index, Way::ToContainer, packet.length);
    let end = End::Destination;
    let translated = translate::rewrite(hook, packet, end, target, target_port, hop);
    Some(match translated {
        Ok(()) => Ok(way_in),
        Err(reason) => Err(Verdict::drop(reason, published.index)),
    })
}

/// Where a packet goes that XDP has translated already: its destination is a flow's container. (Its port may
/// be published as well, for another one.)
#[inline(always)]
pub fn translated_before<A: Family>(packet: &Packet<A>) -> Option<Target> {
    let network = &packet.network;
    let key = FlowKey::new(
        network.source,
        packet.source_port,
        network.destination,
        packet.destination_port,
        network.protocol,
    );
    let live = flow::settled(&key)?;
    let flow = live.flow();
    let record = forward::serving(flow.forward, flow.generation)?.record;
    // XDP leaves a container's connection with itself to TC, and nobody else may claim to be in one.
    let is_its = flow.delivery != Delivery::Hairpin as u32
        && A::from_ip(record.target) == network.destination;
    is_its.then_some(Target {
        link: record.link,
        delivery: record.delivery as u32,
    })
}

/// From the container back to the client, if the packet belongs to a settled flow of this link whose
/// route is fresh.
#[inline(always)]
fn reply<A: Family>(hook: &Tc, packet: &Packet<A>) -> Option<Verdict> {
    let key = reply_key(packet);
    let live = flow::settled(&key)?;
    let flow = live.flow();
    let plain = !packet.flags.turns()
        && packet.network.hops > 1
        && flow.link == hook.device()
        && flow.delivery == Delivery::Redirect as u32
        && flow.reply.client_port.wire() == packet.destination_port.wire();
    if !plain {
        return None;
    }
    let reply = live.reply(&key)?;
    if !deliver::fits(hook, packet, reply.mtu) {
        return None;
    }
    live.touch();
    let index = flow.forward;
    live.count(Way::ToClient, packet.length);
    forward::count_packet(index, Way::ToClient, packet.length);
    Some(
        match translate::rewrite(hook, packet, End::Source, reply.host, reply.host_port, true) {
            Ok(()) => deliver::to_client(&reply),
            Err(reason) => Verdict::drop(reason, index),
        },
    )
}

/// Hands a packet on to the container behind `link`.
#[inline(always)]
pub fn delivered(hook: &Tc, link: u32, delivery: u32) -> Verdict {
    if delivery == Delivery::Stack as u32 {
        Verdict::TRANSLATED
    } else {
        deliver::to_container(hook, link)
    }
}

/// The key of the flow that a packet of a container would be a reply of.
#[inline(always)]
pub fn reply_key<A: Family>(packet: &Packet<A>) -> FlowKey<A> {
    FlowKey::new(
        packet.network.destination,
        packet.destination_port,
        packet.network.source,
        packet.source_port,
        packet.network.protocol,
    )
}

/// The device that routes for a container's link: its bridge, or the link itself.
#[inline(always)]
pub fn routing_device(link: u32) -> u32 {
    // SAFETY: the loader replaces elements whole.
    unsafe { LINKS.get(&link) }.map_or(link, |record| record.l3_device)
}
