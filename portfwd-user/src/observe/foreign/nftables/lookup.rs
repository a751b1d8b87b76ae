//! Looking something up in a set or a map (`net/netfilter/nft_lookup.c`).

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::super::intervals::Intervals;
use super::super::region::{Condition, Region};
use super::super::walk::Step;
use super::super::wire::name;
use super::attribute::{needed, number, pick};
use super::expression::{Evaluation, NFT_REG_VERDICT, Outcome, Stop};
use super::register::key_condition;
use super::set::Element;
use super::verdict::Verdict;

/// Of the flags of a lookup: to be in the set is what must not be.
const NFT_LOOKUP_F_INV: u32 = 1;

impl Evaluation<'_> {
    /// A set that the packet has to be in, or a map that gives a verdict, or a map that gives a destination.
    pub(super) fn lookup(&mut self, data: &[u8]) -> Outcome {
        const NFTA_LOOKUP_SET: u16 = 1;
        const NFTA_LOOKUP_SREG: u16 = 2;
        const NFTA_LOOKUP_DREG: u16 = 3;
        const NFTA_LOOKUP_FLAGS: u16 = 5;
        let kinds = [
            NFTA_LOOKUP_SET,
            NFTA_LOOKUP_SREG,
            NFTA_LOOKUP_DREG,
            NFTA_LOOKUP_FLAGS,
        ];
        let [set, from, to, flags] = pick(data, kinds)?;
        let set = name(set.unwrap_or_default());
        let from = needed(from, "a lookup expression")?;
        let to = number(to)?;
        let inverted = number(flags)?.unwrap_or_default() & NFT_LOOKUP_F_INV != 0;
        let gives_verdict = to == Some(NFT_REG_VERDICT);
        // A long list of sources need not be read to be passed over.
        if gives_verdict || !self.registers.key(from, usize::MAX).is_empty() {
            let known = self.sets.get(set.as_ref());
            let elements = known.ok_or_else(|| Stop::Needs(set.into_owned()))?;
            if gives_verdict {
                return Ok(ControlFlow::Break(self.verdicts(from, elements)));
            }
            self.keep(from, elements, inverted);
        }
        if let Some(to) = to {
            self.registers.forget(to);
        }
        Ok(self.next())
    }

    fn verdicts(&self, from: u32, elements: &[Element]) -> Vec<Step> {
        let mut by_verdict: BTreeMap<&Verdict, Vec<&Element>> = BTreeMap::new();
        for element in elements {
            if let Some(verdict) = &element.verdict {
                by_verdict.entry(verdict).or_default().push(element);
            }
        }
        let steps = by_verdict.into_iter().filter_map(|(verdict, elements)| {
            Some(Step {
                action: verdict.action(self.sought)?,
                regions: self.meeting(&self.alternatives(from, &elements)),
            })
        });
        steps.filter(|step| !step.regions.is_empty()).collect()
    }

    /// Keeps the packets that are in a set, or those that are not. Of several fields together not being in
    /// one is no condition on each.
    fn keep(&mut self, from: u32, elements: &[Element], inverted: bool) {
        let all: Vec<&Element> = elements.iter().collect();
        let alternatives = self.alternatives(from, &all);
        if !inverted {
            self.regions = self.meeting(&alternatives);
            return;
        }
        let length = elements.first().map_or(0, Element::key_length);
        let key = self.registers.key(from, length);
        let alone = matches!(key.as_slice(), [(0, part)] if part.length == length);
        if let ([alternative], true) = (alternatives.as_slice(), alone)
            && let [(field, values)] = alternative.as_slice()
        {
            let others = (*field, values.complement(field.max()));
            self.narrow(&others);
        }
    }

    /// What elements ask of the fields of a key, each element for itself; in one if it is about one field.
    fn alternatives(&self, from: u32, elements: &[&Element]) -> Vec<Vec<Condition>> {
        let length = elements.iter().map(|element| element.key_length()).max();
        let key = self.registers.key(from, length.unwrap_or_default());
        let mut all: Vec<Vec<Condition>> = Vec::with_capacity(elements.len());
        for element in elements {
            let Some((first, last)) = &element.keys else {
                return vec![Vec::new()];
            };
            let conditions = key
                .iter()
                .filter_map(|part| key_condition(*part, first, last));
            all.push(conditions.collect());
        }
        match key.as_slice() {
            [] if !elements.is_empty() => vec![Vec::new()],
            [(_, part)] => {
                let values = all.iter().flatten();
                let ranges = values.flat_map(|(_, values)| values.ranges().to_vec());
                vec![vec![(part.field, Intervals::from_ranges(ranges.collect()))]]
            }
            _ => all,
        }
    }

    /// The packets that meet all conditions of one alternative.
    fn meeting(&self, alternatives: &[Vec<Condition>]) -> Vec<Region> {
        let pairs = self.regions.iter().flat_map(|region| {
            alternatives
                .iter()
                .map(move |conditions| (region.clone(), conditions))
        });
        pairs
            .filter_map(|(region, conditions)| {
                conditions
                    .iter()
                    .try_fold(region, |region, condition| region.narrowed(condition))
            })
            .collect()
    }
}
