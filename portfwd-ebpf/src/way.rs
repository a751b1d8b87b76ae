//! The ways of a packet, one for each hook, in both families.

use portfwd_common::{
    flow::{Flow, FlowKey, Side, State},
    forward::{Delivery, PortSlot},
    host::LinkSource,
    net::{V4, V6},
    verdict::Reason,
};

use crate::{
    deliver,
    family::Family,
    flow,
    forward::{self, Way},
    log,
    maps::{LINK_SOURCES, LINKS},
    packet::{ETHERNET, Hook, Tc, Xdp},
    parse::{self, Fragment, Network, Packet, Unparsed},
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
    match hook.load::<u16>(ETHERNET - 2) {
        Some(V4::ETHERTYPE) => way.go::<V4>(hook),
        Some(V6::ETHERTYPE) => way.go::<V6>(hook),
        _ => Verdict::NEXT,
    }
}

/// The same for what a container sends. A tag keeps it from being answered here, not from being looked
/// at. What is behind a second tag nobody looks at: the kernel takes that off after this hook.
#[inline(always)]
pub fn of_container(hook: &Tc) -> Verdict {
    match hook.load::<u16>(ETHERNET - 2) {
        Some(VLAN | PROVIDER_VLAN) => Verdict::drop(Reason::ForeignSource, 0),
        _ if hook.is_tagged() => by_ether_type(hook, TaggedLink),
        _ => by_ether_type(hook, Link),
    }
}

/// EtherTypes of VLAN tags (IEEE 802.1Q, table 9-1), in network order.
const VLAN: u16 = 0x8100u16.to_be();
const PROVIDER_VLAN: u16 = 0x88a8u16.to_be();

/// What a parser found, or the end of the way: what is not TCP or UDP, or malformed, goes on.
macro_rules! parsed {
    ($result:expr) => {
        match $result {
            Ok(found) => found,
            Err(Unparsed::Other) => return Verdict::NEXT,
            Err(Unparsed::Malformed) => return Verdict::next_for(Reason::Malformed),
        }
    };
}

/// TC ingress of a device.
pub struct Device;

impl PacketWay<Tc> for Device {
    #[inline(always)]
    fn go<A: Family>(self, hook: &Tc) -> Verdict {
        // What a bridge or a promiscuous device overhears is not for us.
        if !hook.is_for_host() {
            return Verdict::NEXT;
        }
        let network: Network<A> = parsed!(A::network(hook));
        let ports = parsed!(parse::ports(hook, &network));
        let slot = forward::slot::<A>(ports.protocol, ports.destination);
        if slot.is_empty() {
            return Verdict::NEXT;
        }
        let packet = parsed!(parse::transport(hook, network, ports));
        let ingress = Ingress::Device(hook.device());
        let deliver = |link, delivery| delivered(hook, link, delivery);
        let verdict = request(hook, &packet, slot, ingress, deliver);
        match verdict.goes_on() && slot.has(PortSlot::CONTAINER_SIDE) {
            true => translated_before(hook, &packet).unwrap_or(verdict),
            false => verdict,
        }
    }
}

/// XDP of a device: the same translation; delivery is left to TC behind it, or to the stack.
pub struct EarlyDevice;

impl PacketWay<Xdp> for EarlyDevice {
    #[inline(always)]
    fn go<A: Family>(self, hook: &Xdp) -> Verdict {
        let network: Network<A> = parsed!(A::network(hook));
        let ports = parsed!(parse::ports(hook, &network));
        let slot = forward::slot::<A>(ports.protocol, ports.destination);
        if slot.is_empty() || !hook.is_for_host() {
            return Verdict::NEXT;
        }
        let packet = parsed!(parse::transport(hook, network, ports));
        let ingress = Ingress::Device(hook.device());
        request(hook, &packet, slot, ingress, |_, _| Verdict::NEXT)
    }
}

/// TC ingress of a container's host-side link: replies, and requests of the container to the host.
pub struct Link;

impl PacketWay<Tc> for Link {
    #[inline(always)]
    fn go<A: Family>(self, hook: &Tc) -> Verdict {
        let network: Network<A> = parsed!(A::network(hook));
        let packet = match parse::ports(hook, &network)
            .and_then(|ports| parse::transport(hook, network, ports))
        {
            Ok(packet) => packet,
            Err(_) if may_send(hook, &network) => return Verdict::NEXT,
            Err(_) => return Verdict::drop(Reason::ForeignSource, 0),
        };
        if let Some(verdict) = reply(hook, &packet) {
            return verdict;
        }
        if !may_send(hook, &network) {
            return Verdict::drop(Reason::ForeignSource, 0);
        }
        let slot = forward::slot::<A>(packet.protocol, packet.destination_port);
        let ingress = Ingress::Link(hook.device());
        let deliver = |link, delivery| delivered(hook, link, delivery);
        request(hook, &packet, slot, ingress, deliver)
    }
}

/// What a container sends behind a VLAN tag.
struct TaggedLink;

impl PacketWay<Tc> for TaggedLink {
    #[inline(always)]
    fn go<A: Family>(self, hook: &Tc) -> Verdict {
        let network: Network<A> = parsed!(A::network(hook));
        if may_send(hook, &network) {
            Verdict::NEXT
        } else {
            Verdict::drop(Reason::ForeignSource, 0)
        }
    }
}

/// Whether the source is one that the container behind this link may send from.
#[inline(always)]
fn may_send<A: Family>(hook: &Tc, network: &Network<A>) -> bool {
    let source = LinkSource::new(hook.device(), network.source.ip());
    // SAFETY: only the presence counts.
    unsafe { LINK_SOURCES.get(&source) }.is_some() || network.source.is_link_scoped()
}

/// TC egress of a device: replies of flows that go through the stack.
pub struct Egress;

impl PacketWay<Tc> for Egress {
    #[inline(always)]
    fn go<A: Family>(self, hook: &Tc) -> Verdict {
        let network: Network<A> = parsed!(A::network(hook));
        let ports = parsed!(parse::ports(hook, &network));
        if !forward::slot::<A>(ports.protocol, ports.source).has(PortSlot::CONTAINER_SIDE) {
            return Verdict::NEXT;
        }
        let packet = parsed!(parse::transport(hook, network, ports));
        let Some((entry, state, now)) = flow::of_key(&reply_key(&packet)) else {
            return Verdict::NEXT;
        };
        // SAFETY: see `flow::Entry`.
        let flow = unsafe { &mut *entry };
        if flow.delivery != Delivery::Stack as u8 {
            return Verdict::NEXT;
        }
        flow::advance(flow, state, Side::Container, &packet, now);
        let (index, host, port) = (flow.forward, flow.host, flow.host_port);
        forward::count_packet(index, Way::ToClient, packet.length);
        match translate::rewrite(hook, &packet, End::Source, host, port, false) {
            Ok(()) => Verdict::NEXT,
            Err(reason) => Verdict::drop(reason, index),
        }
    }
}

/// Where a request came in.
#[derive(Clone, Copy)]
enum Ingress {
    /// By a device of the host.
    Device(u32),
    /// By a container's link.
    Link(u32),
}

/// From outside to the container: the flow's, else the forward's. What becomes of the translated packet
/// is `deliver`'s to say, given link and delivery.
#[inline(always)]
fn request<H: Hook, A: Family>(
    hook: &H,
    packet: &Packet<A>,
    slot: PortSlot,
    ingress: Ingress,
    deliver: impl FnOnce(u32, u8) -> Verdict,
) -> Verdict {
    let destination = packet.network.destination;
    let port = packet.destination_port;
    let Some(published) = forward::published(slot, packet.protocol, destination, port) else {
        return Verdict::NEXT;
    };
    if packet.network.fragment != Fragment::Whole {
        return Verdict::next_for(Reason::Fragment);
    }
    let record = published.record;
    // A forward without a target only holds its port.
    if destination.is_never_forwarded() || record.target.is_unspecified() {
        return Verdict::next_for(Reason::NotForHost);
    }
    let target = A::from_ip(record.target);
    let target_port = record.target_port_of(port);
    let link = record.link;
    let hairpin = matches!(ingress, Ingress::Link(own) if own == link);
    let delivery = if hairpin {
        Delivery::Hairpin as u8
    } else {
        record.delivery
    };
    if destination == target || !published.is_unchanged() {
        return Verdict::NEXT;
    }
    let protocol = packet.network.protocol;
    // A container that calls itself would drop what comes from its own address: only then the source is
    // translated as well.
    let client = if hairpin {
        destination
    } else {
        packet.network.source
    };
    let key = FlowKey::new(client, packet.source_port, target, target_port, protocol);
    let hop = delivery != Delivery::Stack as u8;
    if hop && packet.network.hops <= 1 {
        return Verdict::next_for(Reason::Expired);
    }
    let (link, delivery) = match flow::of_request(&key, packet, published) {
        // SAFETY: see `flow::Entry`.
        Ok(Some(entry)) => unsafe { ((*entry).link, (*entry).delivery) },
        absent_or_taken => {
            let device = match ingress {
                Ingress::Device(device) => device,
                Ingress::Link(link) => routing_device(link),
            };
            if let Err(reason) = forward::admits(hook, packet) {
                return Verdict::next_for(reason);
            }
            if let Err(reason) = absent_or_taken {
                return Verdict::drop(reason, published.index);
            }
            let target = flow::Target { link, delivery };
            if let Err(reason) = flow::open(&key, packet, published, target, device) {
                return Verdict::drop(reason, published.index);
            }
            log::opened(hook, packet, published.index, target_port.get());
            (link, delivery)
        }
    };
    forward::count_packet(published.index, Way::ToContainer, packet.length);
    let port = packet.source_port;
    let translated = translate::rewrite(hook, packet, End::Destination, target, target_port, hop)
        .and_then(|()| match hairpin {
            true => translate::rewrite(hook, packet, End::Source, client, port, false),
            false => Ok(()),
        });
    match translated {
        Ok(()) => deliver(link, delivery),
        Err(reason) => Verdict::drop(reason, published.index),
    }
}

/// From the container back to the client, if the packet belongs to a flow of this link.
#[inline(always)]
fn reply<A: Family>(hook: &Tc, packet: &Packet<A>) -> Option<Verdict> {
    let slot = forward::slot::<A>(packet.protocol, packet.source_port);
    if !slot.has(PortSlot::CONTAINER_SIDE) {
        return None;
    }
    let (entry, state, now) = flow::of_key(&reply_key(packet))?;
    // SAFETY: see `flow::Entry`.
    let flow = unsafe { &mut *entry };
    let link = hook.device();
    if flow.link != link || packet.network.fragment != Fragment::Whole {
        return None;
    }
    if packet.network.hops <= 1 {
        return Some(Verdict::next_for(Reason::Expired));
    }
    if flow.delivery == Delivery::Hairpin as u8 {
        return reply_to_itself(hook, packet, flow, state, now);
    }
    let route = deliver::route_of(hook, packet, flow, || routing_device(link), now);
    if !deliver::fits(hook, packet, &route) {
        return Some(Verdict::next_for(Reason::TooBig));
    }
    flow::advance(flow, state, Side::Container, packet, now);
    let (index, host, port) = (flow.forward, flow.host, flow.host_port);
    forward::count_packet(index, Way::ToClient, packet.length);
    Some(
        match translate::rewrite(hook, packet, End::Source, host, port, true) {
            Ok(()) => deliver::to_client(&route),
            Err(reason) => Verdict::drop(reason, index),
        },
    )
}

/// From a container that calls itself back to itself.
#[inline(always)]
fn reply_to_itself<A: Family>(
    hook: &Tc,
    packet: &Packet<A>,
    flow: &mut Flow<A>,
    state: State,
    now: u32,
) -> Option<Verdict> {
    // A process of the host may talk to the container from the same address and port.
    if forward::host_owns(hook, packet) {
        return None;
    }
    flow::advance(flow, state, Side::Container, packet, now);
    let (index, host, host_port) = (flow.forward, flow.host, flow.host_port);
    let (client, port) = (flow.route.next_hop, packet.destination_port);
    forward::count_packet(index, Way::ToClient, packet.length);
    let translated = translate::rewrite(hook, packet, End::Source, host, host_port, true)
        .and_then(|()| translate::rewrite(hook, packet, End::Destination, client, port, false));
    Some(match translated {
        Ok(()) => deliver::to_container(hook, hook.device()),
        Err(reason) => Verdict::drop(reason, index),
    })
}

/// A packet that XDP has translated already: its destination is a flow's container. (Its port may be
/// published as well, for another one.)
#[inline(always)]
fn translated_before<A: Family>(hook: &Tc, packet: &Packet<A>) -> Option<Verdict> {
    let network = &packet.network;
    let key = FlowKey::new(
        network.source,
        packet.source_port,
        network.destination,
        packet.destination_port,
        network.protocol,
    );
    let (entry, _, _) = flow::of_key(&key)?;
    // SAFETY: see `flow::Entry`.
    Some(unsafe { delivered(hook, (*entry).link, (*entry).delivery) })
}

#[inline(always)]
fn delivered(hook: &Tc, link: u32, delivery: u8) -> Verdict {
    if delivery == Delivery::Stack as u8 {
        Verdict::NEXT
    } else {
        deliver::to_container(hook, link)
    }
}

/// The key of the flow that a packet of a container would be a reply of.
#[inline(always)]
fn reply_key<A: Family>(packet: &Packet<A>) -> FlowKey<A> {
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
fn routing_device(link: u32) -> u32 {
    // SAFETY: the loader replaces elements whole.
    unsafe { LINKS.get(&link) }.map_or(link, |record| record.l3_device)
}
