//! From a container back to the client.

use std::net::SocketAddr;

use crate::flow::{Flow, Key, Side};
use crate::fragment::{Decision, Seen};
use crate::model::Model;
use crate::outcome::{Input, Outcome, Reason, To, Verdict};
use crate::packet::{ETHERNET, Fragment, Packet};
use crate::translate::{Change, translated};

impl Model {
    /// A packet from a container's link, if it belongs to a flow of that link.
    pub(crate) fn reply(
        &mut self,
        input: &Input<'_>,
        packet: &Packet,
        link: u32,
    ) -> Option<Outcome> {
        let key = reply_key(packet);
        let mtu = self.world.mtu;
        let flow = self.flows.get_mut(&key)?;
        if flow.link != Some(link) {
            return None;
        }
        if packet.network.hops <= 1 {
            return Some(Outcome::passed_for(Reason::Expired));
        }
        if !flow.hairpin && !fits(input, packet, mtu) {
            return Some(Outcome::too_big(&packet.network));
        }
        flow.progress.advance(Side::Container, packet.segment);
        let frame = translated(input.frame, packet, &to_client(flow));
        let verdict = out(flow, Seen::FromLink(link));
        self.decide_reply(packet, Seen::FromLink(link), key);
        Some(Outcome::rewritten(verdict, frame))
    }

    /// A packet that leaves by a device, if it belongs to a flow through the stack.
    pub(crate) fn reply_through_stack(&mut self, input: &Input<'_>, packet: &Packet) -> Outcome {
        let key = reply_key(packet);
        let flow = match self.flows.get_mut(&key) {
            Some(flow) if flow.link.is_none() => flow,
            _ => return Outcome::PASSED,
        };
        flow.progress.advance(Side::Container, packet.segment);
        let frame = translated(input.frame, packet, &to_client(flow));
        self.decide_reply(packet, Seen::Leaving, key);
        Outcome::rewritten(Verdict::Next, frame)
    }

    fn decide_reply(&mut self, packet: &Packet, seen: Seen, key: Key) {
        if packet.network.fragment == Fragment::First {
            let decision = Decision::Flow(Side::Container, key);
            self.decide(&packet.network, seen, decision);
        }
    }
}

/// What a reply of `flow` is translated to.
pub(crate) fn to_client(flow: &Flow) -> Change {
    Change {
        source: flow.request.host,
        destination: flow.request.client,
        hop: flow.link.is_some(),
    }
}

/// Where a reply of `flow` goes that was translated.
pub(crate) fn out(flow: &Flow, seen: Seen) -> Verdict {
    match seen {
        Seen::FromLink(link) if flow.hairpin => Verdict::Redirect(To::Container(link)),
        Seen::FromLink(_) => Verdict::Redirect(To::Client),
        Seen::FromDevice | Seen::Leaving => Verdict::Next,
    }
}

pub(crate) fn key_of(protocol: crate::Protocol, from: SocketAddr, to: SocketAddr) -> Key {
    Key {
        protocol,
        client: to,
        container: from,
    }
}

fn reply_key(packet: &Packet) -> Key {
    let ports = packet.ports;
    key_of(ports.protocol, ports.source, ports.destination)
}

/// Whether the packet, or each that it is cut into, is no longer than `mtu`.
fn fits(input: &Input<'_>, packet: &Packet, mtu: usize) -> bool {
    let cut = packet.headers - ETHERNET + input.segment as usize;
    input.frame.len() - ETHERNET <= mtu || (input.segment != 0 && cut <= mtu)
}
