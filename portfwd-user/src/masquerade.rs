//! The tables of masquerade: who is masqueraded, under which ports, and what hangs on it.
//!
//! An owner (an attached container, or a subnet) is visible from one transaction on until another one, as
//! a forward is. Its addresses or its subnet name it by an ID that is never used twice.

mod addresses;
mod ports;
mod purge;

use std::collections::{BTreeSet, HashMap};
use std::mem::offset_of;
use std::net::IpAddr;
use std::sync::atomic::Ordering;

use aya::maps::{MapError, lpm_trie::Key as Prefix};
use portfwd_common::forward::MAX_FORWARDS;
use portfwd_common::maps;
use portfwd_common::masquerade::{MAX_SUBNETS, Owner, Settings};
use portfwd_common::net::Ip;

use addresses::{Attached, Claims};

pub use addresses::{assign, owners_ending_with, set_addresses};
pub use ports::{Room, UsablePorts, refresh};
pub use purge::{count_flows, forget_all};

use crate::error::{Doing, Error};
use crate::label::Label;
use crate::state::State;
use crate::subnet::Subnet;
use crate::tables::{TableError, Tables};
use crate::transaction;

/// Something whose packets are masqueraded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masqueraded {
    /// Its addresses.
    pub subnet: Subnet,
    /// The container, if it is one's address.
    pub container: Option<Label>,
    /// Its owner's ID.
    pub owner: u32,
}

fn failed(name: &'static str) -> impl Fn(MapError) -> TableError {
    move |source| TableError::Map {
        name,
        source: Box::new(source),
    }
}

/// Whether the programs are to look for masqueraded packets at all.
pub fn is_active(tables: &Tables) -> bool {
    tables.masquerade.get(0).active != 0
}

/// Makes the programs look for masqueraded packets, or no longer.
pub fn set_active(tables: &Tables, active: bool) {
    let word = tables.masquerade.word(0, offset_of!(Settings, active));
    word.store(u64::from(active), Ordering::Release);
}

/// The record of an owner.
///
/// # Errors
/// When the table cannot be read.
pub fn owner(tables: &Tables, id: u32) -> Result<Option<Owner>, TableError> {
    match tables.owners.get(&id, 0) {
        Ok(owner) => Ok(Some(owner)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(failed(maps::OWNERS)(error)),
    }
}

/// Writes an owner's record, which replaces the one before at one instant.
///
/// # Errors
/// When the table is full.
pub fn set_owner(tables: &mut Tables, id: u32, owner: Owner) -> Result<(), TableError> {
    let inserted = tables.owners.insert(id, owner, 0);
    inserted.map_err(|source| TableError::full_or(maps::OWNERS, MAX_FORWARDS, source))
}

/// Removes those of `rows` that are somebody's no longer.
fn remove_addresses<'a>(
    tables: &mut Tables,
    rows: impl IntoIterator<Item = (&'a IpAddr, &'a u32)>,
    is_former: impl Fn(&IpAddr, u32) -> bool,
) -> Result<(), TableError> {
    let former = rows
        .into_iter()
        .filter(|(address, id)| is_former(address, **id));
    for (address, _) in former {
        let removed = tables.container_ips.remove(&Ip::from(*address));
        removed.map_err(failed(maps::CONTAINER_IPS))?;
    }
    Ok(())
}

/// The owner of a subnet, if it is masqueraded.
///
/// # Errors
/// When the table cannot be read.
pub fn owner_of(tables: &Tables, subnet: Subnet) -> Result<Option<u32>, TableError> {
    // A lookup in a trie finds wider subnets as well.
    let all = subnets(tables)?;
    Ok(all
        .into_iter()
        .find(|(own, _)| *own == subnet)
        .map(|(_, id)| id))
}

fn subnets(tables: &Tables) -> Result<Vec<(Subnet, u32)>, TableError> {
    let mut all = Vec::new();
    for entry in tables.subnets.iter() {
        let (key, id) = entry.map_err(failed(maps::SUBNETS))?;
        all.extend(Subnet::from_key(&key).map(|subnet| (subnet, id)));
    }
    Ok(all)
}

/// Masquerades a subnet on behalf of the new owner `id`. The insertion of the subnet is the instant from
/// which it holds: within a wider subnet that is masqueraded there is none in which neither counts.
///
/// # Errors
/// When a table is full.
pub fn add(tables: &mut Tables, subnet: Subnet, id: u32) -> Result<(), TableError> {
    let owner = Owner {
        since: 0,
        until: Owner::NEVER,
        masqueraded: 0,
        unmasqueraded: Owner::NEVER,
    };
    set_owner(tables, id, owner)?;
    let inserted = tables.subnets.insert(&subnet.key(), id, 0);
    inserted.map_err(|source| match &source {
        // How a trie says that it is full (`trie_update_elem`).
        MapError::SyscallError(call) if call.io_error.raw_os_error() == Some(nix::libc::ENOSPC) => {
            TableError::Full {
                name: maps::SUBNETS,
                capacity: MAX_SUBNETS,
            }
        }
        _ => failed(maps::SUBNETS)(source),
    })
}

/// Removes a subnet from those that are masqueraded. Its flows end with its owner.
///
/// # Errors
/// When the table cannot be changed.
pub fn remove(tables: &mut Tables, subnet: Subnet) -> Result<(), TableError> {
    let removed = tables.subnets.remove(&subnet.key());
    removed.map_err(failed(maps::SUBNETS))
}

/// Masquerades nothing from a subnet any more.
///
/// # Errors
/// When the table cannot be changed.
pub fn remove_all(tables: &mut Tables) -> Result<(), TableError> {
    for (subnet, _) in subnets(tables)? {
        remove(tables, subnet)?;
    }
    Ok(())
}

/// Makes records of owners what they were before a transaction that never took place, whose number the
/// next one gets. Removes those that no packet sees.
///
/// # Errors
/// When a table cannot be read or changed.
pub fn settle(tables: &mut Tables) -> Result<(), TableError> {
    let committed = transaction::committed(tables);
    for (id, owner) in owners(tables)? {
        match owner.settled(committed) {
            Some(settled) if settled == owner => {}
            Some(settled) => set_owner(tables, id, settled)?,
            None => remove_owner(tables, id)?,
        }
    }
    Ok(())
}

fn remove_owner(tables: &mut Tables, id: u32) -> Result<(), TableError> {
    tables.owners.remove(&id).map_err(failed(maps::OWNERS))
}

fn owners(tables: &Tables) -> Result<Vec<(u32, Owner)>, TableError> {
    let all = tables.owners.iter().collect::<Result<_, _>>();
    all.map_err(failed(maps::OWNERS))
}

/// Removes all that belongs to owners that are gone, given the attached containers. Says whether anything
/// is masqueraded any more.
///
/// # Errors
/// When a table cannot be read or changed; the next command tries again.
pub fn sweep(tables: &mut Tables, containers: &BTreeSet<u32>) -> Result<bool, Error> {
    let doing = || "end what is masqueraded no longer".to_owned();
    let alive = sweep_owners(tables, containers).doing(doing)?;
    purge::purge(tables, &|id| alive.contains(&id))?;
    let active = !alive.is_empty();
    if !active {
        set_active(tables, false);
    }
    Ok(active)
}

/// Removes owners without a container, address or subnet, and addresses and subnets without an owner.
/// Gives the owners that are masqueraded.
fn sweep_owners(
    tables: &mut Tables,
    containers: &BTreeSet<u32>,
) -> Result<BTreeSet<u32>, TableError> {
    settle(tables)?;
    assign(tables)?;
    let mut named: BTreeSet<u32> = subnets(tables)?.into_iter().map(|(_, id)| id).collect();
    let rows: HashMap<IpAddr, u32> = addresses::rows(tables)?.into_iter().collect();
    named.extend(rows.values());
    let mut known = HashMap::new();
    for (id, owner) in owners(tables)? {
        if containers.contains(&id) || named.contains(&id) {
            known.insert(id, owner);
        } else {
            remove_owner(tables, id)?;
        }
    }
    remove_addresses(tables, &rows, |_, id| !known.contains_key(&id))?;
    for (subnet, id) in subnets(tables)? {
        if !known.contains_key(&id) {
            remove(tables, subnet)?;
        }
    }
    let committed = transaction::committed(tables);
    let masqueraded = known.iter().filter(|(_, o)| o.is_masqueraded(committed));
    Ok(masqueraded.map(|(id, _)| *id).collect())
}

/// What is masqueraded, in order: subnets, and the addresses of containers.
///
/// # Errors
/// When a table cannot be read.
pub fn list(tables: &Tables, state: &State) -> Result<Vec<Masqueraded>, Error> {
    let doing = || "read what is masqueraded".to_owned();
    let committed = transaction::committed(tables);
    let visible: BTreeSet<u32> = owners(tables)
        .doing(doing)?
        .into_iter()
        .filter_map(|(id, owner)| owner.is_masqueraded(committed).then_some(id))
        .collect();
    let name = |id| {
        let mut containers = state.containers.iter();
        containers.find_map(|(label, own)| (own.id == id).then(|| label.clone()))
    };
    let mut all = Vec::new();
    for (subnet, owner) in subnets(tables).doing(doing)? {
        let container = None;
        all.push(Masqueraded {
            subnet,
            container,
            owner,
        });
    }
    let attached = Attached::read(tables, None).doing(doing)?;
    for (address, owner) in addresses::rows(tables).doing(doing)? {
        let subnet = Subnet::of(address);
        let heir = || attached.at(address).and_then(Claims::masquerading);
        if let Some(container) = name(owner).or_else(|| heir().and_then(name)) {
            let container = Some(container);
            all.push(Masqueraded {
                subnet,
                container,
                owner,
            });
        }
    }
    all.retain(|row| visible.contains(&row.owner));
    all.sort_by(|a, b| (a.subnet, &a.container).cmp(&(b.subnet, &b.container)));
    Ok(all)
}

/// A key of the trie of subnets.
pub type SubnetKey = Prefix<[u8; 16]>;
