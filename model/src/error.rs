//! ICMP errors about translated packets. What an error quotes is a packet of the other direction, so
//! message and quote are translated to what their receiver has sent (RFC 5508, section 4).

use std::net::SocketAddr;

use crate::flow::{Flow, Progress, Request, client_inside};
use crate::fragment::Seen;
use crate::model::{Model, into_container};
use crate::outcome::{Input, Outcome, Reason};
use crate::packet::{self, Fragment, Network, be16};
use crate::reply::{key_of, out};
use crate::translate::{Change, Quote, error_translated};
use crate::world::Protocol;

/// Length of the header of an ICMP error (RFC 792; RFC 4443, section 3).
const HEADER: usize = 8;

/// Whether a packet is an ICMP error: destination unreachable, packet too big, time exceeded, parameter
/// problem (RFC 792; RFC 4443, section 3).
pub(crate) fn is_error(frame: &[u8], network: &Network) -> bool {
    let kind = frame.get(network.transport).copied();
    match (network.source.is_ipv4(), network.protocol) {
        (true, 1) => matches!(kind, Some(3 | 11 | 12)),
        (false, 58) => matches!(kind, Some(1..=4)),
        _ => false,
    }
}

/// The packet that an ICMP error is about, if the error is whole, quotes both ports, and goes to whoever
/// sent that packet.
fn quote(input: &Input<'_>, network: &Network) -> Option<Quote> {
    if network.fragment != Fragment::Whole || !is_error(input.frame, network) {
        return None;
    }
    let frame = &input.frame[..network.end];
    let quoted = packet::quoted(frame, network.transport + HEADER, network)?;
    let protocol = Protocol::from_number(quoted.protocol)?;
    let source = SocketAddr::new(quoted.source, be16(frame, quoted.transport)?);
    let destination = SocketAddr::new(quoted.destination, be16(frame, quoted.transport + 2)?);
    (network.destination == quoted.source).then_some(Quote {
        network: quoted,
        protocol,
        source,
        destination,
    })
}

impl Model {
    pub(crate) fn error_of_device(&self, input: &Input<'_>, network: &Network) -> Option<Outcome> {
        let quote = quote(input, network)?;
        self.about_reply(input, network, &quote, None)
    }

    pub(crate) fn error_of_link(
        &self,
        input: &Input<'_>,
        network: &Network,
        link: u32,
    ) -> Option<Outcome> {
        let quote = quote(input, network)?;
        self.about_request(input, network, &quote, Some(link))
            .or_else(|| self.about_reply(input, network, &quote, Some(link)))
    }

    pub(crate) fn error_of_egress(&self, input: &Input<'_>, network: &Network) -> Option<Outcome> {
        let quote = quote(input, network)?;
        self.about_request(input, network, &quote, None)
    }

    /// About a reply: on to the container that sent it.
    fn about_reply(
        &self,
        input: &Input<'_>,
        network: &Network,
        quote: &Quote,
        link: Option<u32>,
    ) -> Option<Outcome> {
        let index = self.world.forward(quote.protocol, quote.source)?;
        let forward = &self.world.forwards[index];
        let request = Request {
            protocol: quote.protocol,
            client: quote.destination,
            host: quote.source,
        };
        let like = Flow {
            forward: index,
            request,
            link: forward.link,
            hairpin: link.is_some() && link == forward.link,
            progress: Progress::new(quote.protocol),
        };
        let Some(key) = self.own(&like, forward.target) else {
            return Some(Outcome::passed_for(Reason::NoFlow));
        };
        let flow = &self.flows[&key];
        if flow.link.is_some() && network.hops <= 1 {
            return Some(Outcome::passed_for(Reason::Expired));
        }
        let source = if flow.hairpin {
            client_inside(&flow.request, true, 0)
        } else {
            SocketAddr::new(network.source, 0)
        };
        let outer = Change {
            source,
            destination: key.container,
            hop: flow.link.is_some(),
        };
        let inner = Change {
            source: key.container,
            destination: key.client,
            hop: false,
        };
        let frame = error_translated(input.frame, network, &outer, quote, &inner);
        Some(Outcome::rewritten(into_container(flow.link), frame))
    }

    /// About a request: on to the client that sent it. `link` is the link that it came by; without one it
    /// leaves by a device, through the stack.
    fn about_request(
        &self,
        input: &Input<'_>,
        network: &Network,
        quote: &Quote,
        link: Option<u32>,
    ) -> Option<Outcome> {
        let key = key_of(quote.protocol, quote.destination, quote.source);
        let flow = self.flows.get(&key).filter(|flow| flow.link == link)?;
        if link.is_some() && network.hops <= 1 {
            return Some(Outcome::passed_for(Reason::Expired));
        }
        // What a router behind the host tells keeps the router's address.
        let of_container = link.is_some() || network.source == key.container.ip();
        let source = if of_container {
            flow.request.host
        } else {
            SocketAddr::new(network.source, 0)
        };
        let outer = Change {
            source,
            destination: flow.request.client,
            hop: link.is_some(),
        };
        let inner = Change {
            source: flow.request.client,
            destination: flow.request.host,
            hop: false,
        };
        let frame = error_translated(input.frame, network, &outer, quote, &inner);
        let verdict = out(flow, link.map_or(Seen::Leaving, Seen::FromLink));
        Some(Outcome::rewritten(verdict, frame))
    }
}
