//! From a client to a container.

use std::net::SocketAddr;

use crate::flow::{Flow, Key, Progress, Request, Settled, Side, client_inside};
use crate::fragment::{Decision, Seen};
use crate::model::{Model, into_container};
use crate::outcome::{Input, Outcome, Reason, Verdict};
use crate::packet::{Fragment, Packet};
use crate::translate::{Change, translated};
use crate::world;

/// Ports below this are the system's (RFC 6056, section 3.2): no client gets one in place of its own.
const SYSTEM_PORTS: u16 = 1024;

/// Where a request came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ingress {
    Device,
    Link(u32),
}

impl Ingress {
    fn seen(self) -> Seen {
        match self {
            Self::Device => Seen::FromDevice,
            Self::Link(link) => Seen::FromLink(link),
        }
    }
}

/// Whether only time can tell that a flow is settled; `None` if it is not.
pub(crate) fn if_settled(flow: &Flow) -> Option<bool> {
    match flow.progress.settled() {
        Settled::Yes => Some(false),
        Settled::Perhaps => Some(true),
        Settled::No => None,
    }
}

/// What a request found.
enum Found {
    /// Its flow.
    Own(Key),
    /// Another flow that looks like it to the container.
    Other,
    Nothing,
}

impl Model {
    pub(crate) fn request(
        &mut self,
        input: &Input<'_>,
        packet: &Packet,
        ingress: Ingress,
    ) -> Outcome {
        let ports = packet.ports;
        let Some(index) = self.world.forward(ports.protocol, ports.destination) else {
            return Outcome::PASSED;
        };
        if world::is_never_a_destination(ports.destination.ip()) {
            return Outcome::passed_for(Reason::NotForHost);
        }
        let (target, link) = {
            let forward = &self.world.forwards[index];
            (forward.target, forward.link)
        };
        if ports.destination.ip() == target.ip() {
            return Outcome::PASSED;
        }
        if link.is_some() && packet.network.hops <= 1 {
            return Outcome::passed_for(Reason::Expired);
        }
        let opening = Flow {
            forward: index,
            request: request_of(packet),
            link,
            hairpin: link.is_some_and(|link| ingress == Ingress::Link(link)),
            progress: Progress::new(ports.protocol),
        };
        match self.find_or_open(opening, target, packet, input.port) {
            Ok(key) => self.on_to_container(input, packet, ingress, &key),
            Err(outcome) => {
                if outcome.verdict == Verdict::Drop && packet.network.fragment == Fragment::First {
                    self.decide(&packet.network, ingress.seen(), Decision::Drop);
                }
                outcome
            }
        }
    }

    fn on_to_container(
        &mut self,
        input: &Input<'_>,
        packet: &Packet,
        ingress: Ingress,
        key: &Key,
    ) -> Outcome {
        if packet.network.fragment == Fragment::First {
            let decision = Decision::Flow(Side::Client, *key);
            self.decide(&packet.network, ingress.seen(), decision);
        }
        let link = self.flows[key].link;
        let change = Change {
            source: key.client,
            destination: key.container,
            hop: link.is_some(),
        };
        let frame = translated(input.frame, packet, &change);
        Outcome::rewritten(into_container(link), frame)
    }

    /// Translates what belongs to a settled flow. Everything else is left to the hook behind.
    pub(crate) fn request_early(&mut self, input: &Input<'_>, packet: &Packet) -> Outcome {
        let ports = packet.ports;
        let Some(index) = self.world.forward(ports.protocol, ports.destination) else {
            return Outcome::PASSED;
        };
        let key = Key {
            protocol: ports.protocol,
            client: ports.source,
            container: self.world.forwards[index].target,
        };
        let Some(flow) = self.flows.get(&key) else {
            return Outcome::PASSED;
        };
        let plain = packet.segment.is_none_or(|segment| !segment.turns());
        let hop = flow.link.is_some();
        let like = Flow {
            forward: index,
            request: request_of(packet),
            hairpin: false,
            ..*flow
        };
        let own = is_same(flow, &like);
        let (true, true, Some(optional)) = (plain, own, if_settled(flow)) else {
            return Outcome::PASSED;
        };
        if hop && packet.network.hops <= 1 {
            return Outcome::PASSED;
        }
        let change = Change {
            source: ports.source,
            destination: key.container,
            hop,
        };
        Outcome {
            optional,
            ..Outcome::rewritten(Verdict::Next, translated(input.frame, packet, &change))
        }
    }

    /// Moves the flow of a request on, or opens one like `opening`.
    fn find_or_open(
        &mut self,
        opening: Flow,
        target: SocketAddr,
        packet: &Packet,
        port: Option<u16>,
    ) -> Result<Key, Outcome> {
        let opens = packet.segment.is_some_and(|segment| segment.opens());
        let mut found = self.find(&opening, target);
        if let Found::Own(key) = found {
            let flow = self.flows.get_mut(&key).unwrap_or_else(|| unreachable!());
            if !(opens && flow.progress.gives_way_to_syn()) {
                flow.progress.advance(Side::Client, packet.segment);
                return Ok(key);
            }
            found = Found::Own(key);
        }
        self.admits(packet).map_err(Outcome::passed_for)?;
        let key = match found {
            Found::Own(key) => key,
            Found::Nothing => self.key(&opening, target, opening.request.client.port()),
            Found::Other => self.shifted(&opening, target, port)?,
        };
        self.flows.insert(key, opening);
        Ok(key)
    }

    fn key(&self, opening: &Flow, target: SocketAddr, port: u16) -> Key {
        Key {
            protocol: opening.request.protocol,
            client: client_inside(&opening.request, opening.hairpin, port),
            container: target,
        }
    }

    pub(crate) fn own(&self, opening: &Flow, target: SocketAddr) -> Option<Key> {
        match self.find(opening, target) {
            Found::Own(key) => Some(key),
            Found::Other | Found::Nothing => None,
        }
    }

    /// The flow of a request like that of `opening`: under its own port, or under the one that it got.
    fn find(&self, opening: &Flow, target: SocketAddr) -> Found {
        let key = self.key(opening, target, opening.request.client.port());
        let flow = self.flows.get(&key);
        if flow.is_some_and(|flow| is_same(flow, opening)) {
            return Found::Own(key);
        }
        if let Some(&port) = self.shifts.get(&opening.request) {
            let shifted = self.key(opening, target, port);
            let other = self.flows.get(&shifted);
            if other.is_some_and(|flow| is_same(flow, opening)) {
                return Found::Own(shifted);
            }
        }
        match flow {
            Some(_) => Found::Other,
            None => Found::Nothing,
        }
    }

    /// The key with another client's port: any that is free, so the datapath's if it is.
    fn shifted(
        &mut self,
        opening: &Flow,
        target: SocketAddr,
        port: Option<u16>,
    ) -> Result<Key, Outcome> {
        // The checksum of SCTP would have to be computed anew.
        if opening.request.protocol == world::Protocol::Sctp {
            return Err(Outcome::dropped(Reason::TupleTaken));
        }
        self.is_lost |= port.is_none();
        let given = port.filter(|&port| port >= SYSTEM_PORTS);
        let port = given
            .into_iter()
            .chain(SYSTEM_PORTS..)
            .find(|&port| !self.flows.contains_key(&self.key(opening, target, port)));
        let port = port.ok_or_else(|| Outcome::dropped(Reason::TupleTaken))?;
        self.shifts.insert(opening.request, port);
        Ok(self.key(opening, target, port))
    }

    /// Whether a packet may open a flow.
    fn admits(&self, packet: &Packet) -> Result<(), Reason> {
        let request = request_of(packet);
        let (from, to) = (request.client, request.host);
        if !self.world.addresses.contains(&to.ip()) {
            return Err(Reason::NotForHost);
        }
        if packet.segment.is_some_and(|segment| !segment.opens()) {
            return Err(Reason::NoFlow);
        }
        let own = self.world.addresses.contains(&from.ip());
        if own || world::is_never_a_source(from.ip()) {
            return Err(Reason::ImpossibleSource);
        }
        if self.world.sockets.contains(&(request.protocol, to, from)) {
            return Err(Reason::HostSocket);
        }
        Ok(())
    }
}

/// Whether a request like that of `opening` belongs to `flow`.
fn is_same(flow: &Flow, opening: &Flow) -> bool {
    flow.forward == opening.forward
        && flow.request == opening.request
        && flow.hairpin == opening.hairpin
}

fn request_of(packet: &Packet) -> Request {
    Request {
        protocol: packet.ports.protocol,
        client: packet.ports.source,
        host: packet.ports.destination,
    }
}
