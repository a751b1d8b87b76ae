//! Over tables of the kernel. Needs root.

use std::{collections::HashSet, os::fd::FromRawFd as _};

use aya::maps::{Map, MapData};

use super::*;

/// `BPF_MAP_TYPE_HASH` of linux/bpf.h.
const HASH: u32 = 1;
/// `BPF_MAP_TYPE_LRU_HASH`.
const LRU_HASH: u32 = 9;

/// A table of that type with `count` entries, each key with its double.
fn table(kind: u32, capacity: u32, count: u32) -> Hash<u32, u64> {
    let mut attributes = [kind, 4, 8, capacity, 0];
    // SAFETY: no address is passed.
    let made = unsafe { bpf(bpf_cmd::BPF_MAP_CREATE, &mut attributes) }.expect("a table");
    // SAFETY: the kernel has just made the descriptor for us.
    let map = unsafe { std::os::fd::OwnedFd::from_raw_fd(made) };
    let data = MapData::from_fd(map).expect("facts of the table");
    let map = Map::from_map_data(data).expect("a type that aya knows");
    let mut table = Hash::try_from(map).expect("a hash");
    for key in 0..count {
        table.insert(key, double(key), 0).expect("room");
    }
    table
}

fn double(key: u32) -> u64 {
    2 * u64::from(key)
}

#[track_caller]
fn expect_each_once(
    entries: impl Iterator<Item = Result<(u32, u64), MapError>>,
    wanted: impl Iterator<Item = u32>,
) {
    let mut wanted: HashSet<u32> = wanted.collect();
    for entry in entries {
        let (key, value) = entry.expect("an entry");
        assert_eq!(value, double(key));
        assert!(wanted.remove(&key), "{key} is given once more");
    }
    assert!(wanted.is_empty(), "{} are missing", wanted.len());
}

#[test]
fn each_entry_is_given_once() {
    for kind in [HASH, LRU_HASH] {
        for count in [0, 1, 100_000] {
            let table = table(kind, 1 << 18, count);
            expect_each_once(entries(&table), 0..count);
        }
    }
}

#[test]
fn a_bucket_of_more_entries_than_there_is_room_for_is_read_with_more() {
    const COUNT: u32 = 10_000;
    let table = table(HASH, COUNT, COUNT);
    let mut narrow = Entries::with_room(&table, 1);
    expect_each_once(&mut narrow, 0..COUNT);
    assert!((2..64).contains(&narrow.room), "{}", narrow.room);
}

#[test]
fn what_is_removed_is_counted_and_nothing_else_goes() {
    const COUNT: u32 = 20_000;
    let is_asked = |key: &u32| !key.is_multiple_of(3);
    let mut table = table(LRU_HASH, 1 << 16, COUNT);
    let asked: Vec<u32> = (0..2 * COUNT).filter(is_asked).collect();
    let there = (0..COUNT).filter(is_asked).count();
    assert_eq!(remove(&mut table, &asked).expect("removed"), there);
    expect_each_once(entries(&table), (0..COUNT).filter(|key| !is_asked(key)));
    assert_eq!(remove(&mut table, &asked).expect("removed"), 0);
    assert_eq!(remove(&mut table, &[]).expect("removed"), 0);
}
