//! Fragments that follow their first, or wait for it.

use std::net::SocketAddr;

use crate::flow::{Flow, Key, Side};
use crate::fragment::{Datagram, Decision, LENGTHS, MOST_WAITING, PROTOCOLS, Seen};
use crate::model::{Model, into_container};
use crate::outcome::{Hook, Input, Outcome, Reason, Verdict};
use crate::packet::{ETHERNET, Network};
use crate::reply::{out, to_client};
use crate::translate::{Change, readdressed};

impl Model {
    pub(crate) fn decide(&mut self, network: &Network, seen: Seen, decision: Decision) {
        let datagram = Datagram::of(network, seen);
        self.datagrams.insert(datagram, decision);
    }

    /// A fragment from a device that is not the first.
    pub(crate) fn later(&mut self, input: &Input<'_>, network: &Network) -> Outcome {
        if let Some(outcome) = self.follow(input, network, Seen::FromDevice) {
            return outcome;
        }
        let may_be_ours = PROTOCOLS.contains(&network.protocol)
            && self.world.addresses.contains(&network.destination);
        if !may_be_ours || !LENGTHS.contains(&input.frame.len()) {
            return Outcome::passed_for(Reason::Fragment);
        }
        let datagram = Datagram::of(network, Seen::FromDevice);
        let decision = self
            .datagrams
            .entry(datagram)
            .or_insert_with(|| Decision::Waiting(Vec::new()));
        match decision {
            Decision::Waiting(frames) if frames.len() < MOST_WAITING => {
                frames.push(input.frame.to_vec());
                Outcome::kept(Vec::new())
            }
            _ => Outcome::passed_for(Reason::Fragment),
        }
    }

    /// The first fragment of a datagram whose others wait: it comes in again, and they behind it.
    pub(crate) fn released(
        &mut self,
        input: &Input<'_>,
        network: &Network,
        device: u32,
    ) -> Option<Outcome> {
        let datagram = Datagram::of(network, Seen::FromDevice);
        let waiting = match self.datagrams.get(&datagram)? {
            Decision::Waiting(frames) => frames.clone(),
            Decision::Pass | Decision::Drop | Decision::Flow(..) => return None,
        };
        self.datagrams.remove(&datagram);
        let mut reasons = Vec::new();
        for frame in std::iter::once(input.frame).chain(waiting.iter().map(Vec::as_slice)) {
            let again = Input {
                hook: Hook::Device(device),
                frame,
                segment: 0,
                port: None,
            };
            reasons.extend(self.device(&again, device).reasons);
        }
        Some(Outcome::kept(reasons))
    }

    /// A fragment that is not the first, if what became of the first is known.
    pub(crate) fn follow(
        &mut self,
        input: &Input<'_>,
        network: &Network,
        seen: Seen,
    ) -> Option<Outcome> {
        match self.datagrams.get(&Datagram::of(network, seen))? {
            Decision::Waiting(_) => None,
            Decision::Pass => Some(Outcome::PASSED),
            Decision::Drop => Some(Outcome::dropped(Reason::FragmentOfDropped)),
            Decision::Flow(side, key) => Some(match self.flows.get(key) {
                Some(flow) => self.follow_flow(input, network, seen, *side, key, flow),
                None => Outcome::passed_for(Reason::NoFlow),
            }),
        }
    }

    fn follow_flow(
        &self,
        input: &Input<'_>,
        network: &Network,
        seen: Seen,
        side: Side,
        key: &Key,
        flow: &Flow,
    ) -> Outcome {
        if flow.link.is_some() && network.hops <= 1 {
            return Outcome::passed_for(Reason::Expired);
        }
        let (verdict, change) = match side {
            Side::Client => (into_container(flow.link), to_container(key, flow)),
            Side::Container if flow.link.is_none() => (Verdict::Next, to_client(flow)),
            Side::Container => {
                let too_big = input.frame.len() - ETHERNET > self.world.mtu;
                if too_big && !flow.hairpin {
                    return Outcome::too_big(network);
                }
                (out(flow, seen), to_client(flow))
            }
        };
        Outcome::rewritten(verdict, readdressed(input.frame, network, &change))
    }
}

/// What a later fragment of a request is translated to: its source is the client's, where that was kept.
fn to_container(key: &Key, flow: &Flow) -> Change {
    Change {
        source: SocketAddr::new(key.client.ip(), 0),
        destination: key.container,
        hop: flow.link.is_some(),
    }
}
