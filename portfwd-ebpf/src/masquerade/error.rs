//! ICMP errors about masqueraded packets.

use portfwd_common::masquerade::{Direction, Half, Key};

use crate::{
    error::{Message, Translation},
    family::Family,
    owner,
    packet::Tc,
    pair,
    verdict::Verdict,
    way::PacketWay,
};

/// After the TC egress of a device: ICMP errors about what came back to a container.
pub struct Out;

impl PacketWay<Tc> for Out {
    #[inline(always)]
    fn go<A: Family>(self, hook: &Tc) -> Verdict {
        let Some((message, half)) = error_about::<A>(hook, Direction::Out) else {
            return Verdict::NEXT;
        };
        let quoted = &message.quoted;
        let host = A::from_ip(half.host);
        // What the host itself or a router tells keeps its address, unless nobody out there knows it.
        let is_inside = owner::of_source(&message.network.source.ip()).is_some();
        let translation = Translation {
            source: if is_inside {
                host
            } else {
                message.network.source
            },
            destination: message.network.destination,
            quoted_source: (quoted.source, message.source_port),
            quoted_destination: (host, half.host_port),
        };
        translated(hook, &message, &translation)
    }
}

/// After the TC ingress of a device: ICMP errors about what left under an address of the host.
pub struct Back;

impl PacketWay<Tc> for Back {
    #[inline(always)]
    fn go<A: Family>(self, hook: &Tc) -> Verdict {
        let Some((message, half)) = error_about::<A>(hook, Direction::In) else {
            return Verdict::NEXT;
        };
        let quoted = &message.quoted;
        let container = A::from_ip(half.container);
        let translation = Translation {
            source: message.network.source,
            destination: container,
            quoted_source: (container, half.container_port),
            quoted_destination: (quoted.destination, message.destination_port),
        };
        translated(hook, &message, &translation)
    }
}

/// An ICMP error, and the half of the flow whose packets go in its direction: those of the quoted one go in
/// the other.
#[inline(always)]
fn error_about<A: Family>(hook: &Tc, direction: Direction) -> Option<(Message<A>, &'static Half)> {
    let (work, message) = (pair::work()?, Message::<A>::read_any(hook)?);
    let quoted = &message.quoted;
    work.key = Key::new(
        direction,
        quoted.protocol,
        (quoted.destination.ip(), message.destination_port),
        (quoted.source.ip(), message.source_port),
    );
    pair::find(work)?;
    Some((message, &work.half))
}

#[inline(always)]
fn translated<A: Family>(hook: &Tc, message: &Message<A>, to: &Translation<A>) -> Verdict {
    match message.translate(hook, to, false) {
        Ok(()) => Verdict::NEXT,
        Err(reason) => Verdict::drop(reason, 0),
    }
}
