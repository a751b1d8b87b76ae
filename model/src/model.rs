//! The rules, hook by hook. The crate's documentation has each as a sentence.

use std::net::{IpAddr, SocketAddr};

use crate::flow::{Flow, Key, Progress, Side, Table};
use crate::outcome::{Hook, Input, Outcome, Reason, To, Verdict};
use crate::packet::{self, Fragment, Network, Packet, Unread};
use crate::translate::{Change, translated};
use crate::world::{self, Rules, World};

/// A host with portfwd: what it is, and the flows that it has.
#[derive(Debug, Clone)]
pub struct Model {
    world: World,
    flows: Table,
}

/// Where a request came in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ingress {
    Device,
    Link(u32),
}

impl Model {
    /// A host without flows.
    #[must_use]
    pub fn new(world: World) -> Self {
        Self {
            world,
            flows: Table::new(),
        }
    }

    /// The host.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The flows, in no order.
    pub fn flows(&self) -> impl ExactSizeIterator<Item = (&Key, &Flow)> {
        self.flows.iter()
    }

    /// Forgets every flow.
    pub fn forget(&mut self) {
        self.flows.clear();
    }

    /// What must become of a packet. The flows are then those after it.
    pub fn step(&mut self, input: &Input<'_>) -> Outcome {
        match input.hook {
            Hook::Device(device) => self.device(input, device),
            Hook::EarlyDevice(device) => self.early_device(input, device),
            Hook::Link(link) => self.link(input, link),
            Hook::Egress(_) => self.egress(input),
        }
    }

    fn is_for(&self, device: u32, frame: &[u8]) -> bool {
        let known = self.world.devices.get(&device);
        known.is_some_and(|device| frame.starts_with(&device.mac))
    }

    fn device(&mut self, input: &Input<'_>, device: u32) -> Outcome {
        if !self.is_for(device, input.frame) {
            return Outcome::PASSED;
        }
        let packet = match self.to_published_port(input) {
            Ok(packet) => packet,
            Err(outcome) => return outcome,
        };
        let outcome = self.request(input, &packet, Ingress::Device);
        if outcome.verdict == Verdict::Next && outcome.frame.is_none() {
            return self.translated_before(&packet).unwrap_or(outcome);
        }
        outcome
    }

    /// XDP translates; the packet then goes on to the device's TC hook, which delivers it.
    fn early_device(&mut self, input: &Input<'_>, device: u32) -> Outcome {
        if !self.is_for(device, input.frame) {
            let read = packet::network(input, self.world.rules)
                .and_then(|network| packet::ports(input.frame, &network));
            return match read {
                Err(problem) if !self.world.rules.stations_first => unread(problem),
                _ => Outcome::PASSED,
            };
        }
        let packet = match self.to_published_port(input) {
            Ok(packet) => packet,
            Err(outcome) => return outcome,
        };
        let outcome = self.request(input, &packet, Ingress::Device);
        match outcome.verdict {
            Verdict::Redirect(_) => Outcome {
                verdict: Verdict::Next,
                ..outcome
            },
            Verdict::Next | Verdict::Drop => outcome,
        }
    }

    /// A packet whose destination port somebody publishes or listens on, or what becomes of another.
    fn to_published_port(&self, input: &Input<'_>) -> Result<Packet, Outcome> {
        let network = packet::network(input, self.world.rules).map_err(unread)?;
        let ports = packet::ports(input.frame, &network).map_err(unread)?;
        let (protocol, to) = (ports.protocol, ports.destination);
        if !self.world.has_host_port(protocol, to) && !self.world.has_container_port(protocol, to) {
            return Err(Outcome::PASSED);
        }
        packet::transport(input.frame, network, ports).map_err(unread)
    }

    fn link(&mut self, input: &Input<'_>, link: u32) -> Outcome {
        if packet::is_tagged(input.frame) {
            return Outcome::dropped(Reason::ForeignSource);
        }
        let network = match packet::network(input, self.world.rules) {
            Ok(network) => network,
            Err(problem) => return unread(problem),
        };
        let read = packet::ports(input.frame, &network)
            .and_then(|ports| packet::transport(input.frame, network, ports));
        if let Ok(packet) = &read
            && let Some(outcome) = self.reply(input, packet, link)
        {
            return outcome;
        }
        if !self.may_send(link, &network) {
            return Outcome::dropped(Reason::ForeignSource);
        }
        match read {
            Ok(packet) => self.request(input, &packet, Ingress::Link(link)),
            Err(_) => Outcome::PASSED,
        }
    }

    fn egress(&mut self, input: &Input<'_>) -> Outcome {
        let packet = match self.of_container_port(input) {
            Ok(packet) => packet,
            Err(outcome) => return outcome,
        };
        let flow = match self.flows.get_mut(&reply_key(&packet)) {
            Some(flow) if flow.link.is_none() => flow,
            _ => return Outcome::PASSED,
        };
        advance(&mut flow.progress, Side::Container, &packet);
        let change = Change {
            source: flow.host,
            destination: packet.ports.destination,
            hop: false,
        };
        on(Verdict::Next, input, &packet, &change)
    }

    /// A packet whose source port containers listen on, or what becomes of another.
    fn of_container_port(&self, input: &Input<'_>) -> Result<Packet, Outcome> {
        let network = packet::network(input, self.world.rules).map_err(unread)?;
        let ports = packet::ports(input.frame, &network).map_err(unread)?;
        if !self.world.has_container_port(ports.protocol, ports.source) {
            return Err(Outcome::PASSED);
        }
        packet::transport(input.frame, network, ports).map_err(unread)
    }

    /// From a client to a container.
    fn request(&mut self, input: &Input<'_>, packet: &Packet, ingress: Ingress) -> Outcome {
        let ports = packet.ports;
        let Some(index) = self.world.forward(ports.protocol, ports.destination) else {
            return Outcome::PASSED;
        };
        if packet.network.fragment != Fragment::Whole {
            return Outcome::passed_for(Reason::Fragment);
        }
        if world::is_never_a_destination(ports.destination.ip()) {
            return Outcome::passed_for(Reason::NotForHost);
        }
        let forward = self.world.forwards[index].clone();
        if ports.destination.ip() == forward.target.ip() {
            return Outcome::PASSED;
        }
        let target = forward.target;
        let itself = (ingress != Ingress::Device)
            .then_some(forward.link)
            .flatten()
            .filter(|&link| ingress == Ingress::Link(link))
            .map(|_| ports.source.ip());
        let client = itself.map_or(ports.source, |_| {
            SocketAddr::new(ports.destination.ip(), ports.source.port())
        });
        let hop = forward.link.is_some();
        if hop && packet.network.hops <= 1 {
            return Outcome::passed_for(Reason::Expired);
        }
        let key = Key {
            protocol: ports.protocol,
            client,
            container: target,
        };
        let opening = Flow {
            forward: index,
            host: ports.destination,
            link: forward.link,
            itself,
            progress: Progress::default(),
        };
        if let Err(outcome) = self.find_or_open(key, opening, packet) {
            return outcome;
        }
        let change = Change {
            source: client,
            destination: target,
            hop,
        };
        let verdict = forward
            .link
            .map_or(Verdict::Next, |link| Verdict::Redirect(To::Container(link)));
        on(verdict, input, packet, &change)
    }

    /// Moves the flow of a request on, or opens one like `opening`.
    fn find_or_open(&mut self, key: Key, opening: Flow, packet: &Packet) -> Result<(), Outcome> {
        let wants_new = packet.segment.is_some_and(|segment| segment.opens());
        let known = self
            .flows
            .get_mut(&key)
            .filter(|flow| !(wants_new && flow.progress.gives_way_to_syn()));
        let taken = match known {
            Some(flow) if is_same(flow, &opening, self.world.rules) => {
                advance(&mut flow.progress, Side::Client, packet);
                return Ok(());
            }
            Some(_) => true,
            None => false,
        };
        self.admits(packet).map_err(Outcome::passed_for)?;
        if taken {
            return Err(Outcome::dropped(Reason::TupleTaken));
        }
        self.flows.insert(key, opening);
        Ok(())
    }

    /// Whether a packet may open a flow.
    fn admits(&self, packet: &Packet) -> Result<(), Reason> {
        let (protocol, from, to) = (
            packet.ports.protocol,
            packet.ports.source,
            packet.ports.destination,
        );
        if packet.segment.is_some_and(|segment| !segment.opens()) {
            return Err(Reason::NoFlow);
        }
        if !self.world.addresses.contains(&to.ip()) {
            return Err(Reason::NotForHost);
        }
        if world::is_never_a_source(from.ip(), self.world.rules)
            || self.world.addresses.contains(&from.ip())
        {
            return Err(Reason::ImpossibleSource);
        }
        if self.world.sockets.contains(&(protocol, to, from)) {
            return Err(Reason::HostSocket);
        }
        Ok(())
    }

    /// From a container back to the client, if the packet belongs to a flow of this link.
    fn reply(&mut self, input: &Input<'_>, packet: &Packet, link: u32) -> Option<Outcome> {
        let flow = self.flows.get_mut(&reply_key(packet))?;
        if flow.link != Some(link) || packet.network.fragment != Fragment::Whole {
            return None;
        }
        if packet.network.hops <= 1 {
            return Some(Outcome::passed_for(Reason::Expired));
        }
        let (to, destination) = match flow.itself {
            Some(own) => (
                To::Container(link),
                SocketAddr::new(own, packet.ports.destination.port()),
            ),
            None => (To::Client, packet.ports.destination),
        };
        if to == To::Client && !fits(input, packet, self.world.mtu) {
            return Some(Outcome::passed_for(Reason::TooBig));
        }
        advance(&mut flow.progress, Side::Container, packet);
        let change = Change {
            source: flow.host,
            destination,
            hop: true,
        };
        Some(on(Verdict::Redirect(to), input, packet, &change))
    }

    /// A packet that XDP has translated: its ends are those of a flow as the container sees it.
    fn translated_before(&self, packet: &Packet) -> Option<Outcome> {
        let key = Key {
            protocol: packet.ports.protocol,
            client: packet.ports.source,
            container: packet.ports.destination,
        };
        let flow = self.flows.get(&key)?;
        Some(Outcome {
            verdict: flow
                .link
                .map_or(Verdict::Next, |link| Verdict::Redirect(To::Container(link))),
            frame: None,
            reason: None,
        })
    }

    /// Whether the container behind `link` may send from the packet's source: its own addresses, and
    /// what neighbour discovery and address configuration need.
    fn may_send(&self, link: u32, network: &Network) -> bool {
        let own = self.world.links.get(&link);
        let link_scoped = match network.source {
            IpAddr::V4(v4) => v4.is_unspecified(),
            IpAddr::V6(v6) => v6.is_unspecified() || v6.segments()[0] & 0xffc0 == 0xfe80,
        };
        link_scoped || own.is_some_and(|link| link.sources.contains(&network.source))
    }
}

/// Whether a request like `opening` belongs to `flow`.
fn is_same(flow: &Flow, opening: &Flow, rules: Rules) -> bool {
    flow.forward == opening.forward
        && flow.host == opening.host
        && (flow.itself == opening.itself || !rules.own_addresses_apart)
}

fn advance(progress: &mut Progress, side: Side, packet: &Packet) {
    if let Some(segment) = packet.segment {
        progress.advance(side, segment);
    }
}

fn reply_key(packet: &Packet) -> Key {
    Key {
        protocol: packet.ports.protocol,
        client: packet.ports.destination,
        container: packet.ports.source,
    }
}

/// Whether the packet, or each that it is cut into, is no longer than `mtu`.
fn fits(input: &Input<'_>, packet: &Packet, mtu: usize) -> bool {
    if input.frame.len() - packet::ETHERNET <= mtu {
        return true;
    }
    let headers = packet.headers(input.frame) - packet::ETHERNET;
    input.segment != 0 && headers + input.segment as usize <= mtu
}

fn on(verdict: Verdict, input: &Input<'_>, packet: &Packet, change: &Change) -> Outcome {
    Outcome {
        verdict,
        frame: Some(translated(input.frame, packet, change)),
        reason: None,
    }
}

fn unread(problem: Unread) -> Outcome {
    match problem {
        Unread::Other => Outcome::PASSED,
        Unread::Malformed => Outcome::passed_for(Reason::Malformed),
    }
}
