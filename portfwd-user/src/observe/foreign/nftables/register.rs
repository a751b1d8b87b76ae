//! Registers of a rule, as far as something understood is in them.

use super::super::intervals::Intervals;
use super::super::region::{Condition, Field};
use super::super::wire::big_endian;

/// `enum nft_cmp_ops`, of which `enum nft_range_ops` are the first two.
const NFT_CMP_EQ: u32 = 0;
const NFT_CMP_NEQ: u32 = 1;
const NFT_CMP_LT: u32 = 2;
const NFT_CMP_LTE: u32 = 3;
const NFT_CMP_GT: u32 = 4;
const NFT_CMP_GTE: u32 = 5;

/// Bytes of one of the sixteen slots that the registers share.
pub(super) const SLOT: usize = 4;

/// A field, or the first bytes of an address, within what was loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Part {
    pub(super) field: Field,
    /// Where it begins.
    pub(super) at: usize,
    /// Its bytes.
    pub(super) length: usize,
}

impl Part {
    fn bits(self) -> u32 {
        8 * self.length as u32
    }

    fn number(self, from: &[u8]) -> Option<u128> {
        big_endian(from.get(self.at..self.at + self.length)?)
    }

    /// Numbers of the loaded bytes as numbers of the whole field.
    fn spread(self, values: &Intervals) -> Intervals {
        let shift = self.field.bits().saturating_sub(self.bits());
        let low = super::super::intervals::ones(shift);
        let ranges = values.ranges().iter();
        let spread = ranges.map(|(first, last)| (first << shift, (last << shift) | low));
        Intervals::from_ranges(spread.collect())
    }
}

/// What was loaded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Content {
    pub(super) parts: Vec<Part>,
    /// Bytes that were loaded.
    pub(super) length: usize,
    /// What it was masked with since.
    pub(super) mask: Option<Vec<u8>>,
}

impl Content {
    /// A field of its whole length and nothing else.
    pub(super) fn of(field: Field) -> Self {
        let length = (field.bits() / 8) as usize;
        let part = Part {
            field,
            at: 0,
            length,
        };
        Self {
            parts: vec![part],
            length,
            mask: None,
        }
    }

    /// The one part that makes up all of it.
    pub(super) fn whole(&self) -> Option<Part> {
        match self.parts.as_slice() {
            [part] if part.length == self.length => Some(*part),
            _ => None,
        }
    }

    /// What a comparison with `value` asks of packets. One of several fields at once is understood if they
    /// have to be equal.
    pub(super) fn compared(&self, operator: u32, value: &[u8]) -> Vec<Condition> {
        if operator != NFT_CMP_EQ && self.whole().is_none() {
            return Vec::new();
        }
        let conditions = self.parts.iter().filter_map(|part| {
            let number = part.number(value)?;
            let values = match &self.mask {
                Some(mask) => masked(*part, operator, number, part.number(mask)?)?,
                None => meeting(operator, number, part_max(*part))?,
            };
            Some((part.field, part.spread(&values)))
        });
        conditions.collect()
    }

    /// What being in a range asks of packets, or not being in it.
    pub(super) fn ranged(&self, operator: u32, first: &[u8], last: &[u8]) -> Option<Condition> {
        let part = self.whole().filter(|_| self.mask.is_none())?;
        let within = Intervals::range(part.number(first)?, part.number(last)?);
        let values = match operator {
            NFT_CMP_EQ => within,
            NFT_CMP_NEQ => within.complement(part_max(part)),
            _ => return None,
        };
        Some((part.field, part.spread(&values)))
    }
}

fn part_max(part: Part) -> u128 {
    super::super::intervals::ones(part.bits())
}

fn masked(part: Part, operator: u32, number: u128, mask: u128) -> Option<Intervals> {
    let equal = Intervals::masked(number, mask, part.bits())?;
    match operator {
        NFT_CMP_EQ => Some(equal),
        NFT_CMP_NEQ => Some(equal.complement(part_max(part))),
        _ => None,
    }
}

fn meeting(operator: u32, number: u128, max: u128) -> Option<Intervals> {
    let above = Intervals::range(number, max);
    let below = Intervals::range(0, number);
    match operator {
        NFT_CMP_EQ => Some(Intervals::single(number)),
        NFT_CMP_NEQ => Some(Intervals::single(number).complement(max)),
        NFT_CMP_LT => Some(above.complement(max)),
        NFT_CMP_LTE => Some(below),
        NFT_CMP_GT => Some(below.complement(max)),
        NFT_CMP_GTE => Some(above),
        _ => None,
    }
}

/// The registers.
#[derive(Debug, Default)]
pub(super) struct Registers {
    /// Each with the slot that it begins in.
    slots: Vec<(u32, Content)>,
}

/// The first slot of a register (`nft_parse_register`): four of 16 bytes, numbered from 1, and the same
/// memory as sixteen of 4, numbered from 8. None for the verdict, and for what is no register.
fn slot(register: u32) -> Option<u32> {
    match register {
        1..=4 => Some((register - 1) * 4),
        8..=23 => Some(register - 8),
        _ => None,
    }
}

impl Registers {
    pub(super) fn get(&self, register: u32) -> Option<&Content> {
        let first = slot(register)?;
        let found = self.slots.iter().find(|(slot, _)| *slot == first);
        found.map(|(_, content)| content)
    }

    /// Something was loaded.
    pub(super) fn set(&mut self, register: u32, content: Content) {
        if let Some(first) = slot(register) {
            let slots = content.length.div_ceil(SLOT).max(1) as u32;
            self.slots
                .retain(|(slot, _)| !(first..first + slots).contains(slot));
            self.slots.push((first, content));
        }
    }

    /// Something was loaded that is not understood.
    pub(super) fn forget(&mut self, register: u32) {
        let first = slot(register);
        self.slots.retain(|(slot, _)| Some(*slot) != first);
    }

    /// What is understood of a key of `length` bytes that begins with a register, each with its offset: the
    /// fields of a concatenation begin in a slot each.
    pub(super) fn key(&self, register: u32, length: usize) -> Vec<(usize, Part)> {
        let Some(first) = slot(register) else {
            return Vec::new();
        };
        let contents = self.slots.iter();
        contents
            .filter_map(|(slot, content)| {
                let offset = slot.checked_sub(first)? as usize * SLOT;
                let part = content.whole().filter(|_| content.mask.is_none())?;
                (offset + part.length <= length).then_some((offset, part))
            })
            .collect()
    }
}

/// What the bytes of a key from `first` to `last` ask of a field in it.
pub(super) fn key_condition(
    (offset, part): (usize, Part),
    first: &[u8],
    last: &[u8],
) -> Option<Condition> {
    let part_of = |key: &[u8]| big_endian(key.get(offset..offset + part.length)?);
    let values = Intervals::range(part_of(first)?, part_of(last)?);
    Some((part.field, part.spread(&values)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_of_an_address_are_a_prefix() {
        let mut content = Content::of(Field::AddressV4);
        content.parts[0].length = 1;
        content.length = 1;
        let prefix = Intervals::range(0x0a00_0000, 0x0aff_ffff);
        assert_eq!(
            content.compared(NFT_CMP_EQ, &[10]),
            [(Field::AddressV4, prefix)]
        );
    }

    #[test]
    fn fields_loaded_together_are_compared_apart() {
        let port = Part {
            field: Field::Port,
            at: 2,
            length: 2,
        };
        let content = Content {
            parts: vec![port],
            length: 4,
            mask: None,
        };
        let equal = content.compared(NFT_CMP_EQ, &[0, 1, 0, 80]);
        assert_eq!(equal, [(Field::Port, Intervals::single(80))]);
        assert_eq!(content.compared(NFT_CMP_NEQ, &[0, 1, 0, 80]), []);
        assert_eq!(content.compared(NFT_CMP_EQ, &[0, 1]), []);
    }

    #[test]
    fn every_comparison_has_its_ports() {
        let port = Content::of(Field::Port);
        let ranges = |operator| {
            let conditions = port.compared(operator, &[0, 80]);
            conditions[0].1.ranges().to_vec()
        };
        assert_eq!(ranges(NFT_CMP_EQ), [(80, 80)]);
        assert_eq!(ranges(NFT_CMP_NEQ), [(0, 79), (81, 65_535)]);
        assert_eq!(ranges(NFT_CMP_LT), [(0, 79)]);
        assert_eq!(ranges(NFT_CMP_LTE), [(0, 80)]);
        assert_eq!(ranges(NFT_CMP_GT), [(81, 65_535)]);
        assert_eq!(ranges(NFT_CMP_GTE), [(80, 65_535)]);
        assert_eq!(port.compared(9, &[0, 80]), []);
    }

    #[test]
    fn a_wide_register_shares_its_memory_with_narrow_ones() {
        let mut registers = Registers::default();
        registers.set(8, Content::of(Field::AddressV4));
        registers.set(9, Content::of(Field::Port));
        assert_eq!(registers.get(1), Some(&Content::of(Field::AddressV4)));
        let key = registers.key(1, 8);
        assert_eq!(key.len(), 2);
        assert_eq!((key[1].0, key[1].1.field), (4, Field::Port));
        assert_eq!(registers.key(1, 4).len(), 1);
        registers.set(1, Content::of(Field::AddressV6));
        assert_eq!(registers.get(9), None);
        assert_eq!(registers.key(0, 8), []);
    }
}
