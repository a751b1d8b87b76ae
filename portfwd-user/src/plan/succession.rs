//! What goes when something else takes its place, at one instant.

use std::{collections::BTreeSet, ops::RangeInclusive};

use portfwd_common::forward::{Forward, PortSlot};

use super::Plan;
use crate::{
    state::{Owned, State},
    transaction::NewForward,
};

/// What a transaction lets go.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Leaving {
    /// Forwards, by index.
    pub forwards: BTreeSet<u32>,
    /// IDs of containers that are left without a forward.
    pub containers: BTreeSet<u32>,
    /// Second on `CLOCK_MONOTONIC` until which connections through the forwards may go on, as [`Forward::drained`]
    /// has it; None: they end.
    pub drained: Option<u64>,
}

impl Leaving {
    /// Whether everything stays.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.forwards.is_empty() && self.containers.is_empty()
    }
}

/// Lets the forwards of `plans`, which make one transaction, follow those that go with them or with `others`: so each
/// port has an owner all the time.
pub fn follow(plans: &mut [Plan], others: &Leaving, state: &State) {
    let mut goes = others.forwards.clone();
    goes.extend(plans.iter().flat_map(|plan| &plan.leaving.forwards));
    let opens = state.forwards.iter();
    let leaving: Vec<&Owned> = opens.filter(|owned| goes.contains(&owned.index)).collect();
    for plan in plans {
        plan.forwards = following(&plan.forwards, &leaving);
    }
}

/// `forwards`, each of which follows the one of `leaving` that has its ports: one that would follow several is
/// several.
pub(super) fn following(forwards: &[NewForward], leaving: &[&Owned]) -> Vec<NewForward> {
    let mut following = Vec::new();
    for forward in forwards {
        let former: Vec<&Owned> = leaving
            .iter()
            .copied()
            .filter(|owned| has_slots_of(&owned.record, forward))
            .collect();
        let mut bounds = BTreeSet::from([0, forward.count]);
        for owned in &former {
            let (first, last) = ports(&owned.record).into_inner();
            for port in [u32::from(first), u32::from(last) + 1] {
                let offset = port.checked_sub(u32::from(forward.host_port));
                let offset = offset.and_then(|offset| u16::try_from(offset).ok());
                bounds.extend(offset.filter(|offset| *offset < forward.count));
            }
        }
        let bounds: Vec<u16> = bounds.into_iter().collect();
        for bounds in bounds.windows(2) {
            let host_port = forward.host_port + bounds[0];
            let owned = former
                .iter()
                .find(|owned| ports(&owned.record).contains(&host_port));
            following.push(NewForward {
                host_port,
                target_port: forward.target_port + bounds[0],
                count: bounds[1] - bounds[0],
                former: owned.map_or(PortSlot::from_bits(0), |owned| slot(owned)),
                ..*forward
            });
        }
    }
    following
}

/// A forward as slots have it.
fn slot(owned: &Owned) -> PortSlot {
    PortSlot::new(owned.index, owned.record.generation, 0)
}

fn ports(record: &Forward) -> RangeInclusive<u16> {
    let first = record.host_port.get();
    first..=first + (record.count - 1)
}

fn has_slots_of(record: &Forward, forward: &NewForward) -> bool {
    record.protocol == forward.protocol.number() && record.host == forward.host
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use portfwd_common::{
        forward::Delivery,
        net::{Ip, NetPort, Protocol},
    };
    use proptest::prelude::*;

    use super::*;
    use crate::{collision::Held, spec::PortRange};

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
        }
    }

    fn old(index: u32, protocol: Protocol, first: u16, count: u16) -> Owned {
        let owner = "old".parse().unwrap();
        let ports = PortRange::from_count(first, count).unwrap();
        let mut record = Forward::FREE;
        record.generation = index + 100;
        record.host = Ip::from(HOST);
        record.host_port = NetPort::new(first);
        record.count = count;
        record.protocol = protocol.number();
        Owned {
            index,
            owner,
            held: Held {
                owner: "old".parse().unwrap(),
                protocol,
                host: HOST,
                ports,
                container: ports,
            },
            record,
        }
    }

    /// Ranges that do not overlap: lengths of gaps and ranges in turn.
    fn olds(lengths: &[(u16, u16)]) -> Vec<Owned> {
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
            let all: Vec<&Owned> = olds.iter().collect();
            let pieces = following(&[asked], &all);
            let ports = pieces.iter().flat_map(|piece| {
                (0..piece.count).map(|offset| (piece.host_port + offset, piece.target_port + offset, piece.former))
            });
            let expected = (0..count).map(|offset| {
                let port = first + offset;
                let had = olds.iter().find(|owned| owned.held.ports.contains(port));
                (port, asked.target_port + offset, had.map_or(PortSlot::from_bits(0), slot))
            });
            prop_assert!(ports.eq(expected));
            // No more pieces than there are borders.
            prop_assert!(pieces.len() <= 2 * olds.len() + 1);
        }
    }

    #[test]
    fn the_last_port_of_all_is_no_border() {
        let olds = [old(1, Protocol::Tcp, 65_000, 536)];
        let pieces = following(&[new(64_000, 1_536)], &[&olds[0]]);
        let counts: Vec<u16> = pieces.iter().map(|piece| piece.count).collect();
        assert_eq!(counts, [1_000, 536]);
    }

    #[test]
    fn a_forward_of_another_protocol_is_not_followed() {
        let other = old(1, Protocol::Udp, 1_000, 5);
        assert_eq!(following(&[new(1_000, 5)], &[&other]), [new(1_000, 5)]);
    }
}
