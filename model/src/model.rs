//! The hooks, each as its way through the rules. The crate's documentation has every rule as a sentence.

use std::net::IpAddr;

use crate::error::is_error;
use crate::flow::{Flow, Key, Shifts, Table};
use crate::fragment::{Datagrams, Decision, Seen};
use crate::outcome::{Hook, Input, Outcome, Reason, To, Verdict};
use crate::packet::{self, Fragment, Network, Packet, Unread};
use crate::request::Ingress;
use crate::world::World;

/// A host with portfwd: what it is, and what it remembers.
#[derive(Debug, Clone)]
pub struct Model {
    pub(crate) world: World,
    pub(crate) flows: Table,
    pub(crate) shifts: Shifts,
    pub(crate) datagrams: Datagrams,
    pub(crate) is_lost: bool,
}

impl Model {
    /// A host that remembers nothing.
    #[must_use]
    pub fn new(world: World) -> Self {
        Self {
            world,
            flows: Table::new(),
            shifts: Shifts::new(),
            datagrams: Datagrams::new(),
            is_lost: false,
        }
    }

    /// The flows, in no order.
    pub fn flows(&self) -> impl ExactSizeIterator<Item = (&Key, &Flow)> {
        self.flows.iter()
    }

    /// How many fragments wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let waiting = self.datagrams.values().map(|decision| match decision {
            Decision::Waiting(frames) => frames.len(),
            Decision::Pass | Decision::Drop | Decision::Flow(..) => 0,
        });
        waiting.sum()
    }

    /// Whether the datapath was free to do something that could not be seen, so that nothing can be said
    /// any more before everything is forgotten.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Forgets everything.
    pub fn forget(&mut self) {
        *self = Self::new(std::mem::take(&mut self.world));
    }

    /// What must become of a packet. The model is then as after it.
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

    pub(crate) fn device(&mut self, input: &Input<'_>, device: u32) -> Outcome {
        if !self.is_for(device, input.frame) {
            return Outcome::PASSED;
        }
        let network = match self.network(input) {
            Ok(network) => network,
            Err(problem) => return unread(problem),
        };
        match network.fragment {
            Fragment::Later => return self.later(input, &network),
            Fragment::First => {
                if let Some(outcome) = self.released(input, &network, device) {
                    return outcome;
                }
            }
            Fragment::Whole => {}
        }
        let outcome = match self.published(input, network) {
            Ok(packet) => self.for_host(input, &packet),
            Err(outcome) if is_error(input.frame, &network) => {
                self.error_of_device(input, &network).unwrap_or(outcome)
            }
            Err(outcome) => outcome,
        };
        let passed = outcome.is_untouched() && !is_error(input.frame, &network);
        if network.fragment == Fragment::First && passed {
            self.decide(&network, Seen::FromDevice, Decision::Pass);
        }
        outcome
    }

    fn for_host(&mut self, input: &Input<'_>, packet: &Packet) -> Outcome {
        let outcome = self.request(input, packet, Ingress::Device);
        if outcome.is_untouched() {
            return self.translated_before(packet).unwrap_or(outcome);
        }
        outcome
    }

    /// XDP translates what belongs to a settled flow, and lets everything go on to the device's TC hook.
    fn early_device(&mut self, input: &Input<'_>, device: u32) -> Outcome {
        // No packet of that hook is going to be cut.
        let input = &Input {
            segment: 0,
            ..*input
        };
        if !self.is_for(device, input.frame) {
            return Outcome::PASSED;
        }
        let network = match packet::network(input) {
            Ok(network) => network,
            Err(problem) => return unread(problem),
        };
        if network.fragment != Fragment::Whole || network.extended {
            return Outcome::PASSED;
        }
        match self.published(input, network) {
            Ok(packet) => self.request_early(input, &packet),
            Err(outcome) => outcome,
        }
    }

    fn link(&mut self, input: &Input<'_>, link: u32) -> Outcome {
        if packet::is_tagged(input.frame) {
            return Outcome::dropped(Reason::ForeignSource);
        }
        let header = match packet::network(input) {
            Ok(header) => header,
            Err(problem) => return unread(problem),
        };
        let own = self.may_send(link, &header);
        let network = match packet::walked(input.frame, header) {
            Ok(network) => network,
            Err(_) if own => return Outcome::PASSED,
            Err(_) => return Outcome::dropped(Reason::ForeignSource),
        };
        if network.fragment == Fragment::Later {
            if let Some(outcome) = self.follow(input, &network, Seen::FromLink(link)) {
                return outcome;
            }
            return if own {
                Outcome::PASSED
            } else {
                Outcome::dropped(Reason::ForeignSource)
            };
        }
        let read = packet::ports(input.frame, &network)
            .and_then(|ports| packet::transport(input.frame, network, ports));
        if let Ok(packet) = &read
            && let Some(outcome) = self.reply(input, packet, link)
        {
            return outcome;
        }
        if !own {
            return Outcome::dropped(Reason::ForeignSource);
        }
        match read {
            Ok(packet) => self.request(input, &packet, Ingress::Link(link)),
            Err(_) => self
                .error_of_link(input, &network, link)
                .unwrap_or(Outcome::PASSED),
        }
    }

    fn egress(&mut self, input: &Input<'_>) -> Outcome {
        let network = match self.network(input) {
            Ok(network) => network,
            Err(problem) => return unread(problem),
        };
        if network.fragment == Fragment::Later {
            return self
                .follow(input, &network, Seen::Leaving)
                .unwrap_or(Outcome::PASSED);
        }
        let ports = match packet::ports(input.frame, &network) {
            Ok(ports) => ports,
            Err(problem) => {
                return self
                    .error_of_egress(input, &network)
                    .unwrap_or_else(|| unread(problem));
            }
        };
        let plain = network.fragment == Fragment::Whole && !network.extended;
        if plain && !self.world.has_container_port(ports.protocol, ports.source) {
            return Outcome::PASSED;
        }
        match packet::transport(input.frame, network, ports) {
            Ok(packet) => self.reply_through_stack(input, &packet),
            Err(problem) => unread(problem),
        }
    }

    fn network(&self, input: &Input<'_>) -> Result<Network, Unread> {
        packet::network(input).and_then(|network| packet::walked(input.frame, network))
    }

    /// A packet whose destination port somebody publishes or listens on, or what becomes of another.
    fn published(&self, input: &Input<'_>, network: Network) -> Result<Packet, Outcome> {
        let ports = packet::ports(input.frame, &network).map_err(unread)?;
        let (protocol, to) = (ports.protocol, ports.destination);
        let known =
            self.world.has_host_port(protocol, to) || self.world.has_container_port(protocol, to);
        let plain = network.fragment == Fragment::Whole && !network.extended;
        if plain && !known {
            return Err(Outcome::PASSED);
        }
        let packet = packet::transport(input.frame, network, ports).map_err(unread)?;
        known.then_some(packet).ok_or(Outcome::PASSED)
    }

    /// A packet that XDP has translated: its ends are those of a settled flow as the container sees it.
    fn translated_before(&self, packet: &Packet) -> Option<Outcome> {
        let key = Key {
            protocol: packet.ports.protocol,
            client: packet.ports.source,
            container: packet.ports.destination,
        };
        let flow = self.flows.get(&key)?;
        let plain = packet.network.fragment == Fragment::Whole && !packet.network.extended;
        if flow.hairpin || !plain {
            return None;
        }
        let optional = crate::request::if_settled(flow)?;
        Some(Outcome {
            verdict: into_container(flow.link),
            optional,
            ..Outcome::PASSED
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

/// Where requests go that were translated.
pub(crate) fn into_container(link: Option<u32>) -> Verdict {
    link.map_or(Verdict::Next, |link| Verdict::Redirect(To::Container(link)))
}

fn unread(problem: Unread) -> Outcome {
    match problem {
        Unread::Other => Outcome::PASSED,
        Unread::Malformed => Outcome::passed_for(Reason::Malformed),
    }
}
