//! Forwards that open no connections any more, and keep those that they have: when that ends.

use std::collections::{BTreeSet, HashMap};

use portfwd_common::forward::{Forward, MAX_FORMERS};

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

/// The forwards that drain and that those which open connections have followed, as far back as a packet is looked for.
/// What has ended in between says whom it has followed until it is freed.
fn reached(tables: &Tables) -> BTreeSet<Id> {
    let id = |index: u32, record: &Forward| (index, record.generation);
    let draining: BTreeSet<Id> = transaction::draining(tables)
        .map(|(index, record)| id(index, &record))
        .collect();
    let used = transaction::records(tables).filter(|(_, record)| record.ended != 0);
    let used: HashMap<Id, Forward> = used
        .map(|(index, record)| (id(index, &record), record))
        .collect();
    let mut reached = BTreeSet::new();
    for (_, record) in transaction::visible(tables) {
        let mut former = record.former;
        let mut left = MAX_FORMERS;
        while left > 0
            && let Some(record) = used.get(&(former.index(), former.generation))
        {
            let id = (former.index(), former.generation);
            if draining.contains(&id) {
                reached.insert(id);
                left -= 1;
            }
            former = record.former;
        }
    }
    reached
}
