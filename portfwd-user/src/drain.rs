//! Forwards that open no connections any more, and keep those that they have: when that ends.

use std::collections::{BTreeSet, HashMap};

use portfwd_common::forward::Forward;

use crate::{tables::Tables, transaction};

/// A forward, by index and generation.
pub type Id = (u32, u32);

/// Ends what drains no more: its time is over in second `now`, or no forward follows it that packets find it by.
pub fn end_overdue(tables: &Tables, now: u32) {
    let reached = reached(tables);
    for (index, record) in transaction::draining(tables) {
        if u64::from(now) >= record.drained || !reached.contains(&(index, record.generation)) {
            transaction::end(tables, index);
        }
    }
}

/// Ends what has drained: nothing in `used` is a connection of it. Not if it began to with the last transaction:
/// a packet that was on its way then may open one yet.
pub fn end_empty(tables: &Tables, used: &BTreeSet<Id>) {
    let committed = transaction::committed(tables);
    for (index, record) in transaction::draining(tables) {
        if record.until < committed && !used.contains(&(index, record.generation)) {
            transaction::end(tables, index);
        }
    }
}

/// What forwards that open connections have followed, as far back as that goes.
fn reached(tables: &Tables) -> BTreeSet<Id> {
    let draining: HashMap<Id, Forward> = transaction::draining(tables)
        .map(|(index, record)| ((index, record.generation), record))
        .collect();
    let mut reached = BTreeSet::new();
    for (_, record) in transaction::visible(tables) {
        let mut former = record.former;
        while let Some(record) = draining.get(&(former.index(), former.generation)) {
            reached.insert((former.index(), former.generation));
            former = record.former;
        }
    }
    reached
}
