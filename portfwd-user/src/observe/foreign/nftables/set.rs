//! Sets and maps: their elements as ranges of keys, and the verdicts of those that have one.

use super::super::wire::{Malformed, name};
use super::attribute::{attributes, number, pick};
use super::verdict::Verdict;

/// `enum nft_set_attributes`.
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_FLAGS: u16 = 3;
/// `enum nft_set_flags`.
const NFT_SET_INTERVAL: u32 = 0x4;
const NFT_SET_CONCAT: u32 = 0x80;
/// `enum nft_set_elem_list_attributes`.
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
/// `enum nft_set_elem_attributes`.
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_SET_ELEM_FLAGS: u16 = 3;
const NFTA_SET_ELEM_KEY_END: u16 = 10;
/// `enum nft_set_elem_flags`.
const NFT_SET_ELEM_INTERVAL_END: u32 = 0x1;
/// `enum nft_data_attributes`.
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;

/// How a set's elements say what is in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Each for itself.
    Single,
    /// One begins a range, and the next one ends it.
    Interval,
}

/// An element.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Element {
    /// The first and the last key; None for the element that stands for all others.
    pub(super) keys: Option<(Vec<u8>, Vec<u8>)>,
    /// What it decides.
    pub(super) verdict: Option<Verdict>,
}

impl Element {
    /// Bytes of its key.
    pub(super) fn key_length(&self) -> usize {
        self.keys.as_ref().map_or(0, |(first, _)| first.len())
    }
}

/// An element as the kernel keeps it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Raw {
    key: Option<Vec<u8>>,
    key_end: Option<Vec<u8>>,
    ends: bool,
    verdict: Option<Verdict>,
}

/// Name and kind of a set that NFT_MSG_NEWSET tells of. Sets of ranges over several fields (`nft_set_pipapo`) have
/// both ends in one element.
pub(super) fn kind(set: &[u8]) -> Result<Option<(String, Kind)>, Malformed> {
    let [set, flags] = pick(set, [NFTA_SET_NAME, NFTA_SET_FLAGS])?;
    let flags = number(flags)?.unwrap_or_default();
    let kind = if flags & NFT_SET_INTERVAL != 0 && flags & NFT_SET_CONCAT == 0 {
        Kind::Interval
    } else {
        Kind::Single
    };
    Ok(set.map(|set| (name(set).into_owned(), kind)))
}

/// Adds the elements that NFT_MSG_NEWSETELEM tells of.
pub(super) fn parse(message: &[u8], found: &mut Vec<Raw>) -> Result<(), Malformed> {
    let [elements] = pick(message, [NFTA_SET_ELEM_LIST_ELEMENTS])?;
    for element in attributes(elements.unwrap_or_default()) {
        let (_, element) = element?;
        found.push(raw(element)?);
    }
    Ok(())
}

fn raw(element: &[u8]) -> Result<Raw, Malformed> {
    let [key, data, flags, key_end] = pick(
        element,
        [
            NFTA_SET_ELEM_KEY,
            NFTA_SET_ELEM_DATA,
            NFTA_SET_ELEM_FLAGS,
            NFTA_SET_ELEM_KEY_END,
        ],
    )?;
    let value = |data: Option<&[u8]>| match data {
        Some(data) => pick(data, [NFTA_DATA_VALUE]).map(|[value]| value.map(<[u8]>::to_vec)),
        None => Ok(None),
    };
    let [verdict] = pick(data.unwrap_or_default(), [NFTA_DATA_VERDICT])?;
    Ok(Raw {
        key: value(key)?,
        key_end: value(key_end)?,
        ends: number(flags)?.unwrap_or_default() & NFT_SET_ELEM_INTERVAL_END != 0,
        verdict: verdict.map(Verdict::parse).transpose()?.flatten(),
    })
}

/// The ranges of keys that elements are.
pub(super) fn resolved(kind: Kind, elements: Vec<Raw>) -> Vec<Element> {
    match kind {
        Kind::Single => elements.into_iter().map(single).collect(),
        Kind::Interval => intervals(elements),
    }
}

fn single(element: Raw) -> Element {
    let Raw {
        key,
        key_end,
        verdict,
        ..
    } = element;
    let keys = key.map(|first| (first.clone(), key_end.unwrap_or(first)));
    Element { keys, verdict }
}

/// Ranges over one field (`nft_set_rbtree`): an element that ends one has the first key that is no longer in
/// it, which is absent where the range goes to the highest key or where the next one follows at once.
fn intervals(elements: Vec<Raw>) -> Vec<Element> {
    let (mut keyed, others): (Vec<Raw>, Vec<Raw>) = elements
        .into_iter()
        .partition(|element| element.key.is_some() && element.key_end.is_none());
    // At the same key the range before ends first.
    keyed.sort_by(|one, other| (&one.key, !one.ends).cmp(&(&other.key, !other.ends)));
    let mut found: Vec<Element> = others.into_iter().map(single).collect();
    let mut open: Option<(Vec<u8>, Option<Verdict>)> = None;
    for element in keyed {
        let Some(key) = element.key else { continue };
        if let Some((first, verdict)) = open.take() {
            let keys = before(&key).filter(|last| *last >= first);
            found.extend(keys.map(|last| Element {
                keys: Some((first, last)),
                verdict,
            }));
        }
        if !element.ends {
            open = Some((key, element.verdict));
        }
    }
    found.extend(open.map(|(first, verdict)| {
        let last = vec![u8::MAX; first.len()];
        Element {
            keys: Some((first, last)),
            verdict,
        }
    }));
    found
}

/// The key one less; None for the lowest.
fn before(key: &[u8]) -> Option<Vec<u8>> {
    let mut before = key.to_vec();
    for byte in before.iter_mut().rev() {
        let (less, borrowed) = byte.overflowing_sub(1);
        *byte = less;
        if !borrowed {
            return Some(before);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(number: u16, ends: bool) -> Raw {
        Raw {
            key: Some(number.to_be_bytes().to_vec()),
            key_end: None,
            ends,
            verdict: None,
        }
    }

    fn ranges(elements: Vec<Raw>) -> Vec<(u16, u16)> {
        let number = |key: Vec<u8>| u16::from_be_bytes(key.try_into().unwrap());
        let resolved = resolved(Kind::Interval, elements).into_iter();
        resolved
            .map(|element| element.keys.unwrap())
            .map(|(first, last)| (number(first), number(last)))
            .collect()
    }

    #[test]
    fn ranges_come_in_any_order_and_the_last_may_be_open() {
        let elements = vec![
            port(65_000, false),
            port(2001, true),
            port(1000, false),
            port(0, true),
        ];
        assert_eq!(ranges(elements), [(1000, 2000), (65_000, 65_535)]);
    }

    #[test]
    fn a_range_ends_where_the_next_begins() {
        let touching = vec![port(80, false), port(90, true), port(90, false)];
        assert_eq!(ranges(touching), [(80, 89), (90, 65_535)]);
        let unmarked = vec![port(80, false), port(90, false), port(100, true)];
        assert_eq!(ranges(unmarked), [(80, 89), (90, 99)]);
    }

    #[test]
    fn an_element_without_a_key_stands_for_all() {
        let all = Raw {
            key: None,
            ..port(0, false)
        };
        for kind in [Kind::Single, Kind::Interval] {
            let found = resolved(kind, vec![all.clone()]);
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].keys, None);
        }
    }
}
