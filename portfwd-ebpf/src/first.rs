//! The first stage: packets that open flows or belong to young ones, steps of a connection, fragments,
//! and what is behind extension headers.

use portfwd_common::{
    Stage,
    flow::{FlowKey, Side},
    forward::{Delivery, PortSlot},
    fragment::Decision,
    net::NetPort,
    verdict::Reason,
};

use crate::{
    deliver,
    drain::{self, Answer},
    family::Family,
    flow::{self, Found, Live, Place, Request, Target},
    forward::{self, Published, Way},
    fragment::{self, Seen},
    log, masquerade,
    packet::{Hook, Tc},
    parse::{self, Fragment, Network, Packet, Unparsed},
    policy, shift,
    translate::{self, End},
    verdict::Verdict,
    way::{self, PacketWay, parsed},
};

/// After the TC ingress of a device.
pub struct Device;

impl PacketWay<Tc> for Device {
    #[inline(always)]
    fn go<A: Family>(self, hook: &Tc) -> Verdict {
        const ERROR: Verdict = Verdict::stage(Stage::DeviceError);
        let network: Network<A> = parsed!(parse::extended(hook), Verdict::NEXT, ERROR);
        let is_first = network.fragment == Fragment::First;
        fragment::remember(&network);
        let verdict = from_device(hook, network);
        if is_first && verdict.goes_on() {
            fragment::let_pass();
        }
        verdict
    }
}

#[inline(always)]
fn from_device<A: Family>(hook: &Tc, network: Network<A>) -> Verdict {
    const ERROR: Verdict = Verdict::stage(Stage::DeviceError);
    let packet = parsed!(parse::packet(hook, network), Verdict::NEXT, ERROR);
    let slot = forward::slot::<A>(packet.protocol, packet.destination_port);
    if slot.is_empty() {
        return Verdict::NEXT;
    }
    let verdict = request(hook, &packet, slot, Ingress::Device(hook.device()));
    // Only plain packets are what XDP may have translated.
    if !verdict.goes_on() || !slot.has(PortSlot::CONTAINER_SIDE) || A::network(hook).is_err() {
        return verdict;
    }
    match way::translated_before(&packet) {
        Some(target) => way::delivered(hook, target.link, target.delivery),
        None => verdict,
    }
}

/// Between the TC ingress of a device and [`Device`]: fragments, and what is behind extension headers.
pub struct DeviceFragment;

impl PacketWay<Tc> for DeviceFragment {
    #[inline(always)]
    fn go<A: Family>(self, hook: &Tc) -> Verdict {
        const NEXT: Verdict = Verdict::NEXT;
        let network: Network<A> = parsed!(parse::extended(hook), NEXT, NEXT);
        match network.fragment {
            Fragment::Later => later(hook, &network),
            Fragment::First if fragment::release(hook, &network) => Verdict::KEPT,
            _ => Verdict::stage(Stage::DeviceFirst),
        }
    }
}

/// After the TC ingress of a container's link.
pub struct Link;

impl PacketWay<Tc> for Link {
    #[inline(always)]
    fn go<A: Family>(self, hook: &Tc) -> Verdict {
        const ERROR: Verdict = Verdict::stage(Stage::LinkError);
        let header = match A::header(hook) {
            Ok(header) => header,
            Err(_) => return Verdict::next_for(Reason::Malformed),
        };
        let Ok(network) = parse::extended::<A>(hook) else {
            return way::own(hook, &header, Verdict::NEXT);
        };
        if network.fragment == Fragment::Later {
            return follow(hook, &network, Seen::FromLink(hook.device()))
                .unwrap_or_else(|| way::own(hook, &network, Verdict::NEXT));
        }
        let packet = match parse::packet(hook, network) {
            Ok(packet) => packet,
            Err(Unparsed::Error) => return ERROR,
            Err(_) => return way::own(hook, &network, Verdict::NEXT),
        };
        if let Some(verdict) = reply(hook, &packet) {
            return verdict;
        }
        if !way::may_send(hook, &network) {
            return Verdict::drop(Reason::ForeignSource, 0);
        }
        if forward::slot::<A>(packet.protocol, packet.destination_port).is_empty() {
            return Verdict::NEXT;
        }
        Verdict::stage(Stage::LinkRequest)
    }
}

/// After [`Link`]: what is no reply, and comes from an address of the container.
pub struct LinkRequest;

impl PacketWay<Tc> for LinkRequest {
    #[inline(always)]
    fn go<A: Family>(self, hook: &Tc) -> Verdict {
        const NEXT: Verdict = Verdict::NEXT;
        let network: Network<A> = parsed!(parse::extended(hook), NEXT, NEXT);
        let packet = parsed!(parse::packet(hook, network), NEXT, NEXT);
        let slot = forward::slot::<A>(packet.protocol, packet.destination_port);
        request(hook, &packet, slot, Ingress::Link(hook.device()))
    }
}

/// After the TC egress of a device: replies of flows that go through the stack.
pub struct Egress;

impl PacketWay<Tc> for Egress {
    #[inline(always)]
    fn go<A: Family>(self, hook: &Tc) -> Verdict {
        const ERROR: Verdict = Verdict::stage(Stage::EgressError);
        let network: Network<A> = parsed!(parse::extended(hook), Verdict::NEXT, ERROR);
        if network.fragment == Fragment::Later {
            return follow(hook, &network, Seen::Leaving).unwrap_or(Verdict::NEXT);
        }
        let packet = match parse::packet(hook, network) {
            Err(Unparsed::Other) => return masquerade::leaving_other(&network),
            other => parsed!(other, Verdict::NEXT, ERROR),
        };
        let key = way::reply_key(&packet);
        let of_stack = |live: &Live<A>| live.flow().delivery == Delivery::Stack as u32;
        match flow::of_reply(&key).filter(of_stack) {
            Some(live) => {
                flow::advance(&live, &key, Side::Container, &packet);
                match to_client(hook, &packet, &key, &live, Seen::Leaving) {
                    Ok(()) => Verdict::TRANSLATED,
                    Err(reason) => Verdict::drop(reason, live.flow().forward),
                }
            }
            None => Verdict::NEXT,
        }
    }
}

/// A fragment from a device that is not the first.
#[inline(always)]
fn later<A: Family>(hook: &Tc, network: &Network<A>) -> Verdict {
    match follow(hook, network, Seen::FromDevice) {
        Some(verdict) => verdict,
        None if fragment::hold(hook, network) => Verdict::KEPT,
        None => Verdict::next_for(Reason::Fragment),
    }
}

/// Sends a fragment the way of its first, if that is known.
#[inline(always)]
fn follow<A: Family>(hook: &Tc, network: &Network<A>, seen: Seen) -> Option<Verdict> {
    let (decision, key) = fragment::decision(network, seen)?;
    match decision {
        Decision::Waiting => None,
        Decision::Pass => Some(Verdict::NEXT),
        Decision::Drop => Some(Verdict::drop(Reason::FragmentOfDropped, 0)),
        Decision::ToContainer | Decision::ToClient => {
            Some(follow_flow(hook, network, &key, decision))
        }
    }
}

/// Sends a fragment the way of its flow.
#[inline(always)]
fn follow_flow<A: Family>(
    hook: &Tc,
    network: &Network<A>,
    key: &FlowKey<A>,
    decision: Decision,
) -> Verdict {
    let Some(live) = flow::of_reply(key) else {
        return Verdict::next_for(Reason::NoFlow);
    };
    let hop = live.flow().delivery != Delivery::Stack as u32;
    if hop && network.hops <= 1 {
        return Verdict::next_for(Reason::Expired);
    }
    if decision == Decision::ToContainer {
        follow_to_container(hook, network, key, &live, hop)
    } else {
        follow_to_client(hook, network, key, &live, hop)
    }
}

#[inline(always)]
fn follow_to_container<A: Family>(
    hook: &Tc,
    network: &Network<A>,
    key: &FlowKey<A>,
    live: &Live<A>,
    hop: bool,
) -> Verdict {
    let flow = live.flow();
    let length = network.length(hook);
    live.count(key, Way::ToContainer, length);
    forward::count_packet(flow.forward, Way::ToContainer, length);
    let translated = translate::readdress(hook, network, End::Destination, key.container, hop)
        .and_then(|()| match flow.delivery == Delivery::Hairpin as u32 {
            true => translate::readdress(hook, network, End::Source, key.client, false),
            false => Ok(()),
        });
    match translated {
        Ok(()) => way::delivered(hook, flow.link, flow.delivery),
        Err(reason) => Verdict::drop(reason, flow.forward),
    }
}

#[inline(always)]
fn follow_to_client<A: Family>(
    hook: &Tc,
    network: &Network<A>,
    key: &FlowKey<A>,
    live: &Live<A>,
    hop: bool,
) -> Verdict {
    let flow = live.flow();
    let hairpin = flow.delivery == Delivery::Hairpin as u32;
    if hop && !hairpin {
        deliver::refresh_route(hook, key, live, way::routing_device);
    }
    let (index, reply) = (flow.forward, flow.reply);
    let length = network.length(hook);
    if hop && !hairpin && length > reply.mtu as u64 {
        return too_large::<A>(hook, index);
    }
    live.count(key, Way::ToClient, length);
    forward::count_packet(index, Way::ToClient, length);
    let translated =
        translate::readdress(hook, network, End::Source, reply.host, hop).and_then(|()| {
            match hairpin {
                true => {
                    translate::readdress(hook, network, End::Destination, reply.next_hop, false)
                }
                false => Ok(()),
            }
        });
    match translated {
        Err(reason) => Verdict::drop(reason, index),
        Ok(()) if hairpin => deliver::to_container(hook, hook.device()),
        Ok(()) if hop => deliver::to_client(&reply),
        Ok(()) => Verdict::TRANSLATED,
    }
}

/// What becomes of a reply that the way out has no room for. What may be cut the stack of a host that forwards
/// would cut, and send on under the container's address.
#[inline(always)]
fn too_large<A: Family>(hook: &Tc, index: u32) -> Verdict {
    match A::may_be_cut(hook) {
        true => Verdict::drop(Reason::TooBig, index),
        false => Verdict::next_for(Reason::TooBig),
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

impl Ingress {
    #[inline(always)]
    fn seen(self) -> Seen {
        match self {
            Self::Device(_) => Seen::FromDevice,
            Self::Link(link) => Seen::FromLink(link),
        }
    }
    /// Interface index of the container's link, 0 of a device of the host.
    #[inline(always)]
    fn link(self) -> u32 {
        match self {
            Self::Device(_) => 0,
            Self::Link(link) => link,
        }
    }
    /// The stage that handles what comes in this way.
    #[inline(always)]
    fn stage(self) -> Stage {
        match self {
            Self::Device(_) => Stage::DeviceFirst,
            Self::Link(_) => Stage::LinkRequest,
        }
    }
    /// The device that routes for what came in this way.
    #[inline(always)]
    fn device(self) -> u32 {
        match self {
            Self::Device(device) => device,
            Self::Link(link) => way::routing_device(link),
        }
    }
}

/// From outside to the container: the flow's, else the forward's.
#[inline(always)]
fn request<A: Family>(hook: &Tc, packet: &Packet<A>, slot: PortSlot, ingress: Ingress) -> Verdict {
    let destination = packet.network.destination;
    let port = packet.destination_port;
    let Some(published) = forward::published(slot, packet.protocol, destination, port) else {
        return Verdict::NEXT;
    };
    let record = published.record;
    // A forward without a target only holds its port.
    if destination.is_never_forwarded() || record.target.is_unspecified() {
        return Verdict::next_for(Reason::NotForHost);
    }
    let target = A::from_ip(record.target);
    let target_port = record.target_port_of(port);
    // A container that calls itself would drop what comes from its own address: only then the source is
    // translated as well.
    let hairpin = matches!(ingress, Ingress::Link(own) if own == record.link);
    let way_in = Target {
        link: record.link,
        delivery: match hairpin {
            true => Delivery::Hairpin as u32,
            false => record.delivery as u32,
        },
    };
    if destination == target || !published.is_unchanged() {
        return Verdict::NEXT;
    }
    let client = match hairpin {
        true => destination,
        false => packet.network.source,
    };
    let protocol = packet.network.protocol;
    let mut key = FlowKey::new(client, packet.source_port, target, target_port, protocol);
    let request = Request::of(packet);
    let answer = drain::answer(&request, protocol);
    let found = match answer {
        Answer::Found => drain::found(&mut key),
        _ => shift::find(&mut key, &request, &published),
    };
    let live = match found {
        // A SYN opens a new connection in place of one that is closed.
        Found::Own(live) if !(packet.flags.opens() && live.state.gives_way_to_syn()) => {
            if is_expired(packet, live.flow().delivery) {
                return Verdict::next_for(Reason::Expired);
            }
            flow::advance(&live, &key, Side::Client, packet);
            live
        }
        found => {
            let by = (ingress.link(), packet.flags.opens());
            if answer == Answer::None
                && drain::ask(&request, protocol, by, &published, ingress.stage())
            {
                return Verdict::stage(Stage::Drain);
            }
            if is_expired(packet, way_in.delivery) {
                return Verdict::next_for(Reason::Expired);
            }
            match open(hook, packet, &mut key, &published, found, way_in, ingress) {
                Ok(live) => live,
                Err(verdict) => return verdict,
            }
        }
    };
    to_container(hook, packet, &key, &live, ingress)
}

/// Whether the packet has no hop left, where its delivery is one.
#[inline(always)]
fn is_expired<A: Family>(packet: &Packet<A>, delivery: u32) -> bool {
    delivery != Delivery::Stack as u32 && packet.network.hops <= 1
}

/// Counts, translates and delivers a request that comes this way.
#[inline(always)]
fn to_container<A: Family>(
    hook: &Tc,
    packet: &Packet<A>,
    key: &FlowKey<A>,
    live: &Live<A>,
    ingress: Ingress,
) -> Verdict {
    let flow = live.flow();
    let Some([link, delivery]) = parse::forget([flow.link, flow.delivery]) else {
        return Verdict::NEXT;
    };
    let index = flow.forward;
    live.count(key, Way::ToContainer, packet.length);
    forward::count_packet(index, Way::ToContainer, packet.length);
    if packet.network.fragment == Fragment::First {
        let to_container = Decision::ToContainer;
        fragment::decide(&packet.network, ingress.seen(), to_container, Some(key));
    }
    let hop = delivery != Delivery::Stack as u32;
    let is_other_client =
        delivery == Delivery::Hairpin as u32 || key.client_port.wire() != packet.source_port.wire();
    let (container, client) = (
        (key.container, key.container_port),
        (key.client, key.client_port),
    );
    let end = End::Destination;
    let translated =
        translate::rewrite(hook, packet, end, container.0, container.1, hop).and_then(|()| {
            match is_other_client {
                true => translate::rewrite(hook, packet, End::Source, client.0, client.1, false),
                false => Ok(()),
            }
        });
    match translated {
        Ok(()) => way::delivered(hook, link, delivery),
        Err(reason) => Verdict::drop(reason, index),
    }
}

/// Opens a flow for a request that found none of its own under `key`, or what becomes of the packet. The key
/// has another client's port afterwards if that was taken.
#[inline(always)]
fn open<A: Family>(
    hook: &Tc,
    packet: &Packet<A>,
    key: &mut FlowKey<A>,
    published: &Published,
    found: Found<A>,
    way_in: Target,
    ingress: Ingress,
) -> Result<Live<A>, Verdict> {
    forward::admits(hook, packet).map_err(Verdict::next_for)?;
    if let Err(reason) = policy::admits(published, packet.network.source.ip()) {
        return Err(match reason.is_drop() {
            true => dropped(packet, ingress, reason, published.index),
            false => Verdict::next_for(reason),
        });
    }
    let by_device = matches!(ingress, Ingress::Device(_));
    if by_device && !forward::fits_reverse_path(hook, packet) {
        return Err(Verdict::next_for(Reason::ReversePath));
    }
    let device = ingress.device();
    let opened = match found {
        Found::Other => shift::open(key, packet, published, way_in, device),
        _ => flow::open(key, packet, published, way_in, device, Place::Any),
    };
    if opened.is_ok() {
        log::opened(hook, packet, published.index, key.container_port.get());
    }
    opened.map_err(|reason| dropped(packet, ingress, reason, published.index))
}

/// A drop, of the datagram's other fragments as well.
#[inline(always)]
fn dropped<A: Family>(packet: &Packet<A>, ingress: Ingress, reason: Reason, index: u32) -> Verdict {
    if packet.network.fragment == Fragment::First {
        fragment::decide(&packet.network, ingress.seen(), Decision::Drop, None);
    }
    Verdict::drop(reason, index)
}

/// From the container back to the client, if the packet belongs to a flow of this link.
#[inline(always)]
fn reply<A: Family>(hook: &Tc, packet: &Packet<A>) -> Option<Verdict> {
    let slot = forward::slot::<A>(packet.protocol, packet.source_port);
    if !slot.has(PortSlot::CONTAINER_SIDE) {
        return None;
    }
    let key = way::reply_key(packet);
    let live = flow::of_reply(&key)?;
    let flow = live.flow();
    if flow.link != hook.device() {
        return None;
    }
    let hairpin = flow.delivery == Delivery::Hairpin as u32;
    // A process of the host may talk to the container from the same address and port.
    if hairpin && forward::host_owns(hook, packet) {
        return None;
    }
    if packet.network.hops <= 1 {
        return Some(Verdict::next_for(Reason::Expired));
    }
    if !hairpin {
        deliver::refresh_route(hook, &key, &live, way::routing_device);
        if !deliver::fits(hook, packet, flow.reply.mtu) {
            let verdict = too_large::<A>(hook, flow.forward);
            return Some(verdict.unless_claimed(Stage::LinkTooBig));
        }
    }
    flow::advance(&live, &key, Side::Container, packet);
    let (index, reply) = (flow.forward, flow.reply);
    Some(
        match to_client(hook, packet, &key, &live, Seen::FromLink(hook.device())) {
            Err(reason) => Verdict::drop(reason, index),
            Ok(()) if hairpin => deliver::to_container(hook, hook.device()),
            Ok(()) => deliver::to_client(&reply),
        },
    )
}

/// Counts and translates a reply.
#[inline(always)]
fn to_client<A: Family>(
    hook: &Tc,
    packet: &Packet<A>,
    key: &FlowKey<A>,
    live: &Live<A>,
    seen: Seen,
) -> Result<(), Reason> {
    let flow = live.flow();
    let (host, host_port, port) = (
        flow.reply.host,
        flow.reply.host_port,
        flow.reply.client_port,
    );
    let client = match flow.delivery == Delivery::Hairpin as u32 {
        true => flow.reply.next_hop,
        false => packet.network.destination,
    };
    live.count(key, Way::ToClient, packet.length);
    forward::count_packet(flow.forward, Way::ToClient, packet.length);
    if packet.network.fragment == Fragment::First {
        fragment::decide(&packet.network, seen, Decision::ToClient, Some(key));
    }
    let hop = matches!(seen, Seen::FromLink(_));
    translate::rewrite(hook, packet, End::Source, host, host_port, hop)?;
    let same = |port: NetPort| port.wire() == packet.destination_port.wire();
    if client == packet.network.destination && same(port) {
        return Ok(());
    }
    translate::rewrite(hook, packet, End::Destination, client, port, false)
}
