//! What goes when something else takes its place, at one instant.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use portfwd_common::{
    forward::{Forward, PortSlot},
    net::NetPort,
};

use super::{Place, Plan};
use crate::{
    state::{Piece, State},
    transaction::NewForward,
};

/// What a transaction lets go.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Leaving {
    /// Forwards, by index.
    pub forwards: BTreeSet<u32>,
    /// IDs of containers that are left without a forward.
    pub containers: BTreeSet<u32>,
    /// IDs of containers that stay, and are masqueraded no longer.
    pub unmasqueraded: BTreeSet<u32>,
    /// Second on `CLOCK_MONOTONIC` until which connections through the forwards may go on, as [`Forward::drained`]
    /// has it; None: they end.
    pub drained: Option<u64>,
}

impl Leaving {
    /// Whether everything stays.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.forwards.is_empty() && self.containers.is_empty() && self.unmasqueraded.is_empty()
    }
}

/// Lets the forwards of `plans`, which make one transaction, follow those that go with them or with `others`: so each
/// port has an owner all the time.
pub fn follow(plans: &mut [Plan], others: &Leaving, state: &State) {
    let mut goes = others.forwards.clone();
    goes.extend(plans.iter().flat_map(|plan| &plan.leaving.forwards));
    let opens = state.forwards.iter().flat_map(|owned| &owned.pieces);
    let leaving: Vec<Piece> = opens
        .copied()
        .filter(|piece| goes.contains(&piece.index))
        .collect();
    for plan in plans {
        plan.forwards = following(&plan.forwards, &leaving);
    }
}

/// `forwards`, each of which follows the one of `leaving` that has ports of it: one that would follow several is several.
pub(super) fn following(forwards: &[NewForward], leaving: &[Piece]) -> Vec<NewForward> {
    let leaving: BTreeMap<Place, Piece> = leaving
        .iter()
        .map(|piece| (place_of(&piece.record), *piece))
        .collect();
    let mut following = Vec::new();
    for forward in forwards {
        let former = formers(&leaving, forward);
        // A piece goes as far as to where the next one's former begins.
        let begins = former
            .iter()
            .skip(1)
            .map(|piece| piece.record.host_port.get());
        let mut bounds: Vec<u16> = begins.map(|port| port - forward.host_port).collect();
        bounds.insert(0, 0);
        bounds.push(forward.count);
        for (piece, bounds) in bounds.windows(2).enumerate() {
            following.push(NewForward {
                host_port: forward.host_port + bounds[0],
                target_port: forward.target_port + bounds[0],
                count: bounds[1] - bounds[0],
                former: former.get(piece).map_or(PortSlot::from_bits(0), slot),
                continues: piece > 0,
                ..*forward
            });
        }
    }
    following
}

/// A forward as slots have it.
fn slot(piece: &Piece) -> PortSlot {
    PortSlot::new(piece.index, piece.record.generation, 0)
}

fn place_of(record: &Forward) -> Place {
    let host = IpAddr::from(record.host);
    (record.protocol, host, record.host_port.get())
}

/// Those of `leaving`, which have no port in common, that have slots of `forward`, by port.
fn formers(leaving: &BTreeMap<Place, Piece>, forward: &NewForward) -> Vec<Piece> {
    let host = IpAddr::from(forward.host);
    let place = |port| (forward.protocol.number(), host, port);
    let first = forward.host_port;
    // One that begins before may reach into it.
    let before = leaving.range(place(0)..place(first)).next_back();
    let before = before.filter(|(_, piece)| piece.record.has(NetPort::new(first)));
    let within = leaving.range(place(first)..=place(first + (forward.count - 1)));
    before
        .into_iter()
        .chain(within)
        .map(|(_, piece)| *piece)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use portfwd_common::{
        forward::Delivery,
        net::{Ip, NetPort, Protocol},
    };
    use proptest::prelude::*;

    use super::*;

    const HOST: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

    fn new(first: u16, count: u16) -> NewForward {
        NewForward {
            attachment: 2,
            protocol: Protocol::Tcp,
            host: Ip::from(HOST),
            host_port: first,
            count,
            target: Ip::NONE,
            target_port: first / 2,
            link: 0,
            delivery: Delivery::Stack,
            loopback: false,
            policy: 0,
            policy_flags: 0,
            former: PortSlot::from_bits(0),
            continues: false,
        }
    }

    fn old(index: u32, protocol: Protocol, first: u16, count: u16) -> Piece {
        let mut record = Forward::FREE;
        record.generation = index + 100;
        record.host = Ip::from(HOST);
        record.host_port = NetPort::new(first);
        record.count = count;
        record.protocol = protocol.number();
        Piece { index, record }
    }

    /// Ranges that do not overlap: lengths of gaps and ranges in turn.
    fn olds(lengths: &[(u16, u16)]) -> Vec<Piece> {
        let mut next = 1000;
        let mut olds = Vec::new();
        for (gap, count) in lengths {
            let index = olds.len() as u32 + 1;
            olds.push(old(index, Protocol::Tcp, next + gap, *count));
            next += gap + count;
        }
        olds
    }

    proptest! {
        #[test]
        fn every_port_follows_the_forward_that_has_it(
            first in 990u16..1100, count in 1u16..200, lengths in prop::collection::vec((0u16..30, 1u16..30), 0..8),
        ) {
            let (asked, olds) = (new(first, count), olds(&lengths));
            let pieces = following(&[asked], &olds);
            let ports = pieces.iter().flat_map(|piece| {
                (0..piece.count).map(|offset| (piece.host_port + offset, piece.target_port + offset, piece.former))
            });
            let expected = (0..count).map(|offset| {
                let port = first + offset;
                let had = olds.iter().find(|piece| piece.record.has(NetPort::new(port)));
                (port, asked.target_port + offset, had.map_or(PortSlot::from_bits(0), slot))
            });
            // Of a port that nobody had it does not matter whom its piece follows.
            let had = |port: u16| olds.iter().any(|piece| piece.record.has(NetPort::new(port)));
            let expected = expected.zip(ports.clone()).map(|(expected, (.., former))| match had(expected.0) {
                true => expected,
                false => (expected.0, expected.1, former),
            });
            prop_assert!(ports.clone().eq(expected));
            let overlaps = |old: &&Piece| {
                let ports = (0..old.record.count).map(|offset| old.record.host_port.get() + offset);
                ports.into_iter().any(|port| (first..first + count).contains(&port))
            };
            let overlapping = olds.iter().filter(overlaps);
            prop_assert_eq!(pieces.len(), overlapping.count().max(1));
            let continue_it = pieces.iter().filter(|piece| piece.continues).count();
            prop_assert_eq!((continue_it, pieces[0].continues), (pieces.len() - 1, false));
        }
    }

    #[test]
    fn a_range_that_grows_stays_one() {
        for (first, count) in [
            (65_000, 536),
            (64_000, 10),
            (64_500, 1),
            (63_990, 20),
            (65_530, 6),
        ] {
            let old = old(1, Protocol::Tcp, first, count);
            let pieces = following(&[new(64_000, 1_536)], &[old]);
            let counts: Vec<u16> = pieces.iter().map(|piece| piece.count).collect();
            assert_eq!(counts, [1_536], "{first}");
            assert_eq!(pieces[0].former, slot(&old));
        }
    }

    #[test]
    fn a_forward_of_another_protocol_is_not_followed() {
        let other = old(1, Protocol::Udp, 1_000, 5);
        assert_eq!(following(&[new(1_000, 5)], &[other]), [new(1_000, 5)]);
    }
}
