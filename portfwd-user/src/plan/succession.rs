//! What goes when something else takes its place, at one instant.

use std::{collections::BTreeSet, ops::RangeInclusive};

use portfwd_common::forward::{Forward, PortSlot};

use crate::{state::Owned, transaction::NewForward};

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
