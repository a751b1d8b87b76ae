//! Masqueraded flows, as the loader sees them: counted, and removed.

use std::collections::HashMap;
use std::net::IpAddr;

use aya::maps::MapError;
use portfwd_common::flow::{State, is_alive};
use portfwd_common::maps;
use portfwd_common::masquerade::{Half, Key};

use super::failed;
use crate::error::{Doing, Error};
use crate::tables::{Hash, Tables, batch};

/// Forgets every flow, of living owners as well. Returns how many there were.
///
/// # Errors
/// When a table cannot be read or changed.
pub fn forget_all(tables: &mut Tables) -> Result<usize, Error> {
    purge(tables, &|_| false)
}

/// Removes every flow whose owner is gone. Of TCP's the ports are held for a while.
pub(super) fn purge(tables: &mut Tables, is_alive: &dyn Fn(u32) -> bool) -> Result<usize, Error> {
    let now = crate::clock::seconds();
    let young = purge_table(
        &mut tables.masqueraded_young,
        maps::MASQUERADED_YOUNG,
        is_alive,
        now,
    )?;
    let old = purge_table(&mut tables.masqueraded, maps::MASQUERADED, is_alive, now)?;
    Ok(young + old)
}

fn purge_table(
    table: &mut Hash<Key, Half>,
    name: &'static str,
    is_alive: &dyn Fn(u32) -> bool,
    now: u32,
) -> Result<usize, Error> {
    let doing = || "purge masqueraded flows".to_owned();
    let mut dead = Vec::new();
    for entry in batch::entries(table) {
        let (key, half) = entry.map_err(failed(name)).doing(doing)?;
        // A port that is held has no owner, and goes by itself when its time is over.
        if half.owner != 0 && !is_alive(half.owner) {
            dead.push((key, half));
        }
    }
    let mut flows = 0;
    for (key, half) in dead {
        // By now the port may be another flow's.
        match table.get(&key, 0) {
            Ok(present) if present.claim == half.claim => {}
            Ok(_) | Err(MapError::KeyNotFound) => continue,
            Err(error) => return Err(failed(name)(error)).doing(doing),
        }
        let held = if key.is_out() {
            None
        } else {
            half.held(key.protocol(), now)
        };
        let done = match held {
            Some(held) => table.insert(key, held, 0),
            None => match table.remove(&key) {
                Err(error) if crate::tables::is_gone(&error) => Ok(()),
                removed => removed,
            },
        };
        done.map_err(failed(name)).doing(doing)?;
        flows += usize::from(key.is_out());
    }
    Ok(flows)
}

/// How many flows live, by owner and by container's address.
///
/// # Errors
/// When a table cannot be read.
pub fn count_flows(tables: &Tables) -> Result<HashMap<(u32, IpAddr), u64>, Error> {
    let now = crate::clock::seconds();
    let lifetimes = tables.journal.get(0).lifetimes;
    let mut counts = HashMap::new();
    for (table, name) in [
        (&tables.masqueraded, maps::MASQUERADED),
        (&tables.masqueraded_young, maps::MASQUERADED_YOUNG),
    ] {
        for entry in batch::entries(table) {
            let doing = || "read masqueraded flows".to_owned();
            let (key, half) = entry.map_err(failed(name)).doing(doing)?;
            let lives = State::from_number(half.state)
                .is_some_and(|state| is_alive(state, half.last_seen, now, &lifetimes));
            if key.is_out() && lives {
                *counts
                    .entry((half.owner, IpAddr::from(key.source)))
                    .or_default() += 1;
            }
        }
    }
    Ok(counts)
}
