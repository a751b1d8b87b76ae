//! Sets of numbers as ranges: ports, protocols, addresses. Both ends of a range are within.

/// Sorted ranges that neither overlap nor touch.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Intervals(Ranges);

/// A single range, as nearly all have it, needs no memory of its own: rulesets have thousands of rules.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Ranges {
    One([(u128, u128); 1]),
    /// None, or more than one.
    Many(Vec<(u128, u128)>),
}

impl Intervals {
    /// Every number.
    pub(super) fn all() -> Self {
        Self::range(0, u128::MAX)
    }

    /// No number.
    pub(super) fn none() -> Self {
        Self(Ranges::Many(Vec::new()))
    }

    /// `first` to `last`; nothing if they are the wrong way round.
    pub(super) fn range(first: u128, last: u128) -> Self {
        if first <= last {
            Self(Ranges::One([(first, last)]))
        } else {
            Self::none()
        }
    }

    /// One number.
    pub(super) fn single(number: u128) -> Self {
        Self::range(number, number)
    }

    /// Whatever is in one of the ranges.
    pub(super) fn from_ranges(mut ranges: Vec<(u128, u128)>) -> Self {
        ranges.retain(|(first, last)| first <= last);
        ranges.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => {
                    before.1 = before.1.max(last);
                }
                _ => merged.push((first, last)),
            }
        }
        Self::sorted(merged)
    }

    /// From ranges that are as they are kept.
    fn sorted(ranges: Vec<(u128, u128)>) -> Self {
        Self(match ranges.as_slice() {
            [one] => Ranges::One([*one]),
            _ => Ranges::Many(ranges),
        })
    }

    /// The numbers of `bits` bits that are `value` under `mask`; None if the mask is no prefix, for then
    /// they are no range.
    pub(super) fn masked(value: u128, mask: u128, bits: u32) -> Option<Self> {
        let ones = ones(bits);
        let free = !mask & ones;
        if free & free.wrapping_add(1) != 0 {
            return None;
        }
        if value & free != 0 {
            return Some(Self::none());
        }
        Some(Self::range(value & ones, value & ones | free))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ranges().is_empty()
    }

    pub(super) fn ranges(&self) -> &[(u128, u128)] {
        match &self.0 {
            Ranges::One(one) => one,
            Ranges::Many(many) => many,
        }
    }

    pub(super) fn contains(&self, number: u128) -> bool {
        let ranges = self.ranges();
        let after = ranges.partition_point(|(first, _)| *first <= number);
        after > 0 && number <= ranges[after - 1].1
    }

    /// Whether every number of `other` is in it.
    pub(super) fn covers(&self, other: &Self) -> bool {
        self.intersection(other) == *other
    }

    pub(super) fn union(&self, other: &Self) -> Self {
        Self::from_ranges([self.ranges(), other.ranges()].concat())
    }

    pub(super) fn intersection(&self, other: &Self) -> Self {
        let (mut ours, mut theirs) = (self.ranges(), other.ranges());
        if let ([one], [two]) = (ours, theirs) {
            return Self::range(one.0.max(two.0), one.1.min(two.1));
        }
        let mut shared = Vec::new();
        while let ([one, ..], [two, ..]) = (ours, theirs) {
            let (first, last) = (one.0.max(two.0), one.1.min(two.1));
            if first <= last {
                shared.push((first, last));
            }
            if one.1 < two.1 {
                ours = &ours[1..];
            } else {
                theirs = &theirs[1..];
            }
        }
        Self::sorted(shared)
    }

    /// The numbers up to `max` that are not in it.
    pub(super) fn complement(&self, max: u128) -> Self {
        let mut gaps = Vec::with_capacity(self.ranges().len() + 1);
        let mut next = Some(0);
        for (first, last) in self.ranges() {
            if let Some(from) = next
                && from < *first
            {
                gaps.push((from, max.min(first - 1)));
            }
            next = last.checked_add(1);
        }
        gaps.extend(next.map(|from| (from, max)));
        Self::from_ranges(gaps)
    }
}

/// The highest number of `bits` bits.
pub(super) const fn ones(bits: u32) -> u128 {
    match bits {
        0 => 0,
        1..=127 => (1 << bits) - 1,
        _ => u128::MAX,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_that_touch_are_one() {
        let touching = Intervals::from_ranges(vec![(81, 90), (1, 2), (80, 80), (9, 8)]);
        assert_eq!(touching.ranges(), [(1, 2), (80, 90)]);
    }

    #[test]
    fn a_prefix_is_a_range_and_another_mask_none() {
        let masked = |value, mask| Intervals::masked(value, mask, 16);
        assert_eq!(
            masked(0x1f00, 0xff00),
            Some(Intervals::range(0x1f00, 0x1fff))
        );
        assert_eq!(masked(80, 0xffff), Some(Intervals::single(80)));
        assert_eq!(masked(0, 0), Some(Intervals::range(0, 0xffff)));
        assert_eq!(masked(1, 1), None);
        assert_eq!(masked(0x1f01, 0xff00), Some(Intervals::none()));
    }

    fn some() -> impl Strategy<Value = Intervals> {
        prop::collection::vec((0u128..40, 0u128..40), 0..6).prop_map(Intervals::from_ranges)
    }

    proptest! {
        #[test]
        fn each_number_is_where_it_belongs(one in some(), other in some(), number in 0u128..50) {
            let (a, b) = (one.contains(number), other.contains(number));
            prop_assert_eq!(one.intersection(&other).contains(number), a && b);
            prop_assert_eq!(one.union(&other).contains(number), a || b);
            prop_assert_eq!(one.complement(45).contains(number), !a && number <= 45);
            prop_assert!(one.union(&other).covers(&one));
        }
    }
}
