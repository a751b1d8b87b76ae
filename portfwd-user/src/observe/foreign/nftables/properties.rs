//! Whatever bytes come from the kernel, they are read or refused.

use std::collections::HashMap;

use proptest::prelude::*;

use super::super::region::Families;
use super::super::sought::Sought;
use super::chain::base_chain;
use super::expression::steps;
use super::set::{Element, Kind};
use super::verdict::Verdict;
use super::{rule, set};

/// Names of expressions that are looked into.
const EXPRESSIONS: [&str; 16] = [
    "meta",
    "payload",
    "fib",
    "bitwise",
    "cmp",
    "range",
    "match",
    "lookup",
    "immediate",
    "nat",
    "redir",
    "target",
    "numgen",
    "hash",
    "reject",
    "queue",
];

pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A value as attributes have it: a small number, bytes, a set's name, a nest.
fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        (0u32..24).prop_map(|number| number.to_be_bytes().to_vec()),
        any::<u32>().prop_map(|number| number.to_be_bytes().to_vec()),
        prop::collection::vec(0..=u8::MAX, 0..20),
        Just(b"set\0".to_vec()),
        (1u16..4, prop::collection::vec(0..=u8::MAX, 0..20))
            .prop_map(|(kind, value)| attribute(kind, &value)),
    ]
}

fn attributes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec((1u16..8, value()), 0..6).prop_map(|all| {
        let all = all.iter().map(|(kind, value)| attribute(*kind, value));
        all.collect::<Vec<_>>().concat()
    })
}

fn expressions() -> impl Strategy<Value = Vec<u8>> {
    let one = (prop::sample::select(&EXPRESSIONS[..]), attributes()).prop_map(|(name, data)| {
        let inner = [attribute(1, name.as_bytes()), attribute(2, &data)].concat();
        attribute(1, &inner)
    });
    prop::collection::vec(one, 0..12).prop_map(|all| all.concat())
}

fn sets() -> impl Strategy<Value = HashMap<String, Vec<Element>>> {
    let key = || prop::collection::vec(0..=u8::MAX, 0..12);
    let element = (prop::option::of((key(), key())), any::<bool>()).prop_map(|(keys, enters)| {
        let verdict = enters.then(|| Verdict::Enter("chain".to_owned()));
        Element { keys, verdict }
    });
    prop::collection::vec(element, 0..5).prop_map(|all| HashMap::from([("set".to_owned(), all)]))
}

proptest! {
    #[test]
    fn random_bytes(bytes in prop::collection::vec(0..=u8::MAX, 0..200)) {
        for sought in [Sought::Destinations, Sought::Denials] {
            let _ = base_chain(sought, 2, &bytes);
            let _ = base_chain(sought, 5, &bytes);
            let _ = steps(sought, &bytes, Families::BOTH, &HashMap::new());
        }
        let _ = rule::parse(&bytes);
        let _ = set::kind(&bytes);
        let mut elements = Vec::new();
        let _ = set::parse(&bytes, &mut elements);
        let _ = set::resolved(Kind::Interval, elements);
    }

    #[test]
    fn random_expressions(expressions in expressions(), sets in sets(), v6: bool) {
        let families = if v6 { Families::V6 } else { Families::V4 };
        for sought in [Sought::Destinations, Sought::Denials] {
            let _ = steps(sought, &expressions, families, &sets);
        }
    }

    #[test]
    fn random_elements(elements in prop::collection::vec(attributes(), 0..6), kind: bool) {
        let kind = if kind { Kind::Interval } else { Kind::Single };
        let list: Vec<u8> = elements.iter().flat_map(|one| attribute(1, one)).collect();
        let mut found = Vec::new();
        let _ = set::parse(&attribute(3, &list), &mut found);
        let _ = set::resolved(kind, found);
    }
}
