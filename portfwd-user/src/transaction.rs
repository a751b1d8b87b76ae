//! Publishing and withdrawing forwards, all at one instant.
//!
//! The journal's `open` names the transaction that is being written; its `committed` is the commit
//! point. A process that dies in between leaves records that no packet sees (`since` or `until` of a
//! transaction that never took place) or records that no packet sees any more; [`recover`] puts both
//! right, and every command calls it before it changes anything.

use std::{
    collections::HashMap,
    mem::offset_of,
    sync::atomic::{Ordering, fence},
};

use portfwd_common::{
    forward::{
        AddressPort, Counters, Delivery, Forward, Journal, MAX_FORWARDS, PortSlot, is_visible,
        port_index,
    },
    maps,
    masquerade::Owner,
    net::{Ip, NetPort, Protocol},
};

use crate::{
    coverage::Coverage,
    masquerade,
    tables::{TableError, Tables},
};

const COMMITTED: usize = offset_of!(Journal, committed);
const OPEN: usize = offset_of!(Journal, open);
const CLAIMED: usize = offset_of!(Journal, claimed);
const UNTIL: usize = offset_of!(Forward, until);
const ENDED: usize = offset_of!(Forward, ended);
const DRAINED: usize = offset_of!(Forward, drained);
const FORMER: usize = offset_of!(Forward, former);

/// A transaction that is past: of a forward that is dead, but not yet free of its slots.
const PAST: u64 = 1;

/// A forward to publish, in one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewForward {
    /// [`portfwd_common::host::Attachment::id`] of the owner.
    pub attachment: u32,
    /// The protocol.
    pub protocol: Protocol,
    /// Host address; `0.0.0.0` or `::` for all of the family.
    pub host: Ip,
    /// First host port.
    pub host_port: u16,
    /// Number of ports, at least 1.
    pub count: u16,
    /// Address of the container; [`Ip::NONE`] if the port is only held.
    pub target: Ip,
    /// First port of the container.
    pub target_port: u16,
    /// Interface index of the container's host-side link, or 0.
    pub link: u32,
    /// How packets get there.
    pub delivery: Delivery,
    /// Whether the service may listen on the container's loopback address alone.
    pub loopback: bool,
    /// Number of the policy that says who may open connections, 0 if everybody may.
    pub policy: u32,
    /// What [`Forward::flags`] say of that.
    pub policy_flags: u8,
    /// The slots of the forward that has had the ports until now; empty ones for none.
    pub former: PortSlot,
    /// Whether it is one range with the forward of the ports before it ([`Forward::CONTINUES`]).
    pub continues: bool,
}

/// A transaction that is being written. Dropped without [`Transaction::commit`], it never took place.
pub struct Transaction<'t> {
    tables: &'t mut Tables,
    number: u64,
    next_index: u32,
    committed: bool,
}

impl<'t> Transaction<'t> {
    /// Starts one. The caller holds the instance's lock and has called [`recover`].
    pub fn begin(tables: &'t mut Tables) -> Self {
        let number = announce(tables);
        Self {
            tables,
            number,
            next_index: 1,
            committed: false,
        }
    }

    /// The tables, for what belongs to the transaction but is invisible to packets.
    pub fn tables(&mut self) -> &mut Tables {
        self.tables
    }

    /// Publishes `new` from this transaction on. Nobody may hold its ports but the forward that it follows.
    pub fn publish(&mut self, new: &NewForward) -> Result<(), TableError> {
        let index = self.free_index()?;
        let old = self.tables.forwards.get(index);
        let generation = old.generation.wrapping_add(1);
        let mut record = Forward::FREE;
        record.since = self.number;
        record.target = new.target;
        record.generation = generation;
        record.attachment = new.attachment;
        record.link = new.link;
        record.host_port = NetPort::new(new.host_port);
        record.target_port = NetPort::new(new.target_port);
        record.count = new.count;
        record.delivery = new.delivery as u8;
        record.protocol = new.protocol.number();
        record.flags = new.policy_flags;
        if new.loopback {
            record.flags |= Forward::LOOPBACK;
        }
        if new.continues {
            record.flags |= Forward::CONTINUES;
        }
        record.policy = new.policy;
        record.host = new.host;
        record.former = new.former;
        record.ended = Forward::FOREVER;
        // The generation first: a program that still holds the old record then sees that it is gone.
        let mut void = old;
        void.generation = generation;
        self.tables.forwards.set(index, void);
        fence(Ordering::Release);
        self.tables.forwards.set(index, record);
        fence(Ordering::Release);
        store(self.tables, index, UNTIL, Forward::FOREVER);
        self.next_index = index + 1;
        self.raise_used(index + 1);
        if old.generation != 0 {
            self.clear_counters(index)?;
        }
        self.write_slots(index, &record, new.protocol)
    }

    /// Withdraws the forward at `index` from this transaction on, and ends its flows.
    pub fn withdraw(&mut self, index: u32) {
        store(self.tables, index, ENDED, self.number);
        if self.tables.forwards.get(index).until == Forward::FOREVER {
            store(self.tables, index, UNTIL, self.number);
        }
    }

    /// Lets the forward at `index` open no connections from this transaction on; those that it has opened live
    /// until second `drained` of `CLOCK_MONOTONIC`, as long as another forward follows it.
    pub fn drain(&mut self, index: u32, drained: u64) {
        store(self.tables, index, DRAINED, drained);
        store(self.tables, index, UNTIL, self.number);
    }

    /// Makes `id` the owner of what it already owns, from this transaction on if it is new; masqueraded
    /// from now on if `masqueraded`, and else as it was.
    pub fn publish_owner(&mut self, id: u32, masqueraded: bool) -> Result<(), TableError> {
        let mut owner = masquerade::owner(self.tables, id)?.unwrap_or(Owner {
            since: self.number,
            until: Owner::NEVER,
            masqueraded: Owner::NEVER,
            unmasqueraded: Owner::NEVER,
        });
        if masqueraded && !owner.is_masqueraded(self.number - 1) {
            owner.masqueraded = self.number;
            owner.unmasqueraded = Owner::NEVER;
        }
        masquerade::set_owner(self.tables, id, owner)
    }

    /// Lets what `id` owns be masqueraded no longer, from this transaction on.
    pub fn unmasquerade_owner(&mut self, id: u32) -> Result<(), TableError> {
        match masquerade::owner(self.tables, id)? {
            Some(owner) => {
                let unmasqueraded = self.number;
                let owner = Owner {
                    unmasqueraded,
                    ..owner
                };
                masquerade::set_owner(self.tables, id, owner)
            }
            None => Ok(()),
        }
    }

    /// Withdraws the owner `id` from this transaction on, if there is one.
    pub fn withdraw_owner(&mut self, id: u32) -> Result<(), TableError> {
        match masquerade::owner(self.tables, id)? {
            Some(owner) => {
                let until = self.number;
                masquerade::set_owner(self.tables, id, Owner { until, ..owner })
            }
            None => Ok(()),
        }
    }

    /// From now on, for [`portfwd_common::forward::CLAIM_LIFETIME`], processes of the host cannot bind what
    /// will be published; `now` as [`crate::clock::seconds`] gives it.
    pub fn claim(&self, now: u32) {
        let word = self.tables.journal.word(0, CLAIMED);
        word.store(u64::from(now.max(1)), Ordering::SeqCst);
    }

    /// The one store that makes everything above true for packets.
    pub fn commit(mut self) {
        self.tables
            .journal
            .word(0, COMMITTED)
            .store(self.number, Ordering::SeqCst);
        self.committed = true;
    }

    fn free_index(&self) -> Result<u32, TableError> {
        let committed = self.number - 1;
        let forwards = &self.tables.forwards;
        for index in self.next_index..MAX_FORWARDS {
            forwards.reach(index, 1)?;
            if forwards.get(index).is_free(committed) {
                return Ok(index);
            }
        }
        Err(TableError::Full {
            name: maps::FORWARDS,
            capacity: MAX_FORWARDS - 1,
        })
    }

    fn raise_used(&mut self, used: u32) {
        let journal = self.tables.journal.get(0);
        if journal.forwards_used < used {
            self.tables.journal.set(
                0,
                Journal {
                    forwards_used: used,
                    ..journal
                },
            );
        }
    }

    fn clear_counters(&mut self, index: u32) -> Result<(), TableError> {
        let failed = |source| TableError::Map {
            name: maps::COUNTERS,
            source: Box::new(source),
        };
        let cpus = self.tables.counters.get(&index, 0).map_err(failed)?.len();
        let zero = aya::maps::PerCpuValues::try_from(vec![Counters::default(); cpus]).map_err(
            |source| TableError::Memory {
                name: maps::COUNTERS,
                source,
            },
        )?;
        self.tables.counters.set(index, zero, 0).map_err(failed)
    }

    fn write_slots(
        &mut self,
        index: u32,
        record: &Forward,
        protocol: Protocol,
    ) -> Result<(), TableError> {
        let family = family(record.host);
        reach_slots(self.tables, record, protocol)?;
        if record.host.is_unspecified() {
            for host_port in record.host_ports() {
                update_slot(
                    self.tables,
                    port_index(family, protocol, host_port),
                    |slot| PortSlot::new(index, record.generation, slot.flags()),
                );
            }
        } else {
            for key in record.address_ports(protocol) {
                insert_bound(self.tables, key, PortSlot::new(index, record.generation, 0))?;
                for port in key.ports() {
                    add_flag(self.tables, port_index(family, protocol, port), key.flag());
                }
            }
        }
        if !record.target.is_unspecified() {
            for host_port in record.host_ports() {
                let port = record.target_port_of(host_port);
                let at = port_index(family, protocol, port);
                add_flag(self.tables, at, PortSlot::CONTAINER_SIDE);
            }
        }
        Ok(())
    }
}

impl Drop for Transaction<'_> {
    /// Takes back what was never committed. What cannot be done here, the next command does.
    fn drop(&mut self) {
        if !self.committed {
            roll_back(self.tables, self.number);
        }
    }
}

/// Makes the next command look for what a transaction may have left, before that is begun: what it needs
/// beside records is made first. Gives the transaction's number.
pub fn announce(tables: &Tables) -> u64 {
    let number = committed(tables) + 1;
    tables.journal.word(0, CLAIMED).store(0, Ordering::SeqCst);
    tables.journal.word(0, OPEN).store(number, Ordering::SeqCst);
    number
}

/// Puts right what a process left that died within a transaction, and frees the records that no packet
/// sees any more. Returns whether there was anything.
pub fn recover(tables: &mut Tables) -> Result<bool, TableError> {
    let open = tables.journal.get(0).open;
    if open == 0 {
        return Ok(false);
    }
    if committed(tables) < open {
        roll_back(tables, open);
        masquerade::settle(tables)?;
    }
    Ok(true)
}

/// Frees every record that no packet sees any more, with its slots, and closes the transaction. Flows
/// and links of dead forwards are the caller's to remove before.
pub fn settle(tables: &mut Tables) -> Result<(), TableError> {
    let committed = committed(tables);
    let (dead, alive): (Vec<_>, Vec<_>) = records(tables)
        .filter(|(_, record)| record.ended != 0)
        .partition(|(_, record)| record.is_free(committed));
    if !dead.is_empty() {
        let coverage = Coverage::of(alive.iter().map(|(_, record)| *record));
        for (index, record) in &dead {
            clear_slots(tables, *index, record, &coverage)?;
        }
        close_ranks(tables, &dead, &alive);
        for (index, _) in &dead {
            store(tables, *index, ENDED, 0);
        }
    }
    tables.journal.word(0, OPEN).store(0, Ordering::SeqCst);
    Ok(())
}

/// What has followed a dead forward follows the one that this has followed.
fn close_ranks(tables: &Tables, dead: &[(u32, Forward)], alive: &[(u32, Forward)]) {
    let dead: HashMap<(u32, u32), PortSlot> = dead
        .iter()
        .map(|(index, record)| ((*index, record.generation), record.former))
        .collect();
    for (index, record) in alive {
        let mut former = record.former;
        while let Some(further) = dead.get(&(former.index(), former.generation)) {
            former = *further;
        }
        if former != record.former {
            store(tables, *index, FORMER, former.to_bits());
        }
    }
}

/// Number of the last transaction that took place.
pub fn committed(tables: &Tables) -> u64 {
    tables.journal.get(0).committed
}

/// Every record that was ever used, with its index.
pub fn records(tables: &Tables) -> impl Iterator<Item = (u32, Forward)> + '_ {
    let used = tables.journal.get(0).forwards_used.min(MAX_FORWARDS);
    (1..used.max(1)).map(|index| (index, tables.forwards.get(index)))
}

/// Every forward that opens connections, or drains, with its index.
pub fn serving(tables: &Tables) -> impl Iterator<Item = (u32, Forward)> + '_ {
    let committed = committed(tables);
    records(tables).filter(move |(_, record)| is_visible(record.since, record.ended, committed))
}

/// Every forward that drains, with its index.
pub fn draining(tables: &Tables) -> impl Iterator<Item = (u32, Forward)> + '_ {
    let committed = committed(tables);
    serving(tables).filter(move |(_, record)| record.until <= committed)
}

/// Ends the forward at `index`, which drains.
pub fn end(tables: &Tables, index: u32) {
    store(tables, index, ENDED, PAST);
}

/// Every forward that opens connections, with its index.
pub fn visible(tables: &Tables) -> impl Iterator<Item = (u32, Forward)> + '_ {
    let committed = committed(tables);
    records(tables).filter(move |(_, record)| record.is_visible(committed))
}

/// 0 for IPv4, 1 for IPv6.
pub fn family(address: Ip) -> u32 {
    // `::` is all zeros, and so is nothing else; IPv4's unspecified address is mapped.
    if address.is_v4() { 0 } else { 1 }
}

/// Makes transaction `number` never have been: its withdrawals are void, its forwards dead.
fn roll_back(tables: &mut Tables, number: u64) {
    for (index, record) in records(tables) {
        if record.ended == 0 {
            continue;
        }
        if record.since == number {
            store(tables, index, UNTIL, PAST);
            store(tables, index, ENDED, PAST);
            continue;
        }
        for (place, transaction) in [(UNTIL, record.until), (ENDED, record.ended)] {
            if transaction == number {
                store(tables, index, place, Forward::FOREVER);
            }
        }
    }
}

fn clear_slots(
    tables: &mut Tables,
    index: u32,
    record: &Forward,
    coverage: &Coverage,
) -> Result<(), TableError> {
    // A record whose fields were never completed has no slots either.
    let Some(protocol) = Protocol::from_number(record.protocol) else {
        return Ok(());
    };
    let family = family(record.host);
    let is_own = |slot: PortSlot| slot.index() == index && slot.generation == record.generation;
    let nobody = PortSlot::new(0, 0, 0);
    let (former, former_record) = former(tables, record);
    reach_slots(tables, record, protocol)?;
    if !record.host.is_unspecified() {
        for key in record.address_ports(protocol) {
            let had = former_record.has_key(&key);
            give_back_bound(tables, key, is_own, if had { former } else { nobody })?;
        }
    }
    for host_port in record.host_ports() {
        let had = former_record.has(host_port);
        let former = if had { former } else { nobody };
        let at = port_index(family, protocol, host_port);
        update_slot(tables, at, |slot| {
            let free = if is_own(slot) {
                PortSlot::new(former.index(), former.generation, slot.flags())
            } else {
                slot
            };
            with_flags(free, coverage.flags(at))
        });
        let at = port_index(family, protocol, record.target_port_of(host_port));
        update_slot(tables, at, |slot| with_flags(slot, coverage.flags(at)));
    }
    Ok(())
}

/// The slots of the forward that a dead one gives its ports back to, and its record: empty ones, unless it never had
/// them.
fn former(tables: &Tables, record: &Forward) -> (PortSlot, Forward) {
    let nobody = (PortSlot::new(0, 0, 0), Forward::FREE);
    if record.former.index() == 0 {
        return nobody;
    }
    let former = tables.forwards.get(record.former.index());
    let is_it = former.generation == record.former.generation;
    match is_it && former.is_visible(committed(tables)) {
        true => (record.former, former),
        false => nobody,
    }
}

/// Stores one of the words of a record that change once it is published.
fn store(tables: &Tables, index: u32, offset: usize, value: u64) {
    let word = tables.forwards.word(index, offset);
    word.store(value, Ordering::Release);
}

/// Maps the slots of a forward's ports, on either side.
fn reach_slots(tables: &Tables, record: &Forward, protocol: Protocol) -> Result<(), TableError> {
    let family = family(record.host);
    let count = u32::from(record.count);
    for first in [record.host_port, record.target_port] {
        let first = port_index(family, protocol, first);
        tables.ports.reach(first, count)?;
    }
    Ok(())
}

fn add_flag(tables: &mut Tables, at: u32, flag: u32) {
    update_slot(tables, at, |slot| with_flags(slot, slot.flags() | flag));
}

fn with_flags(slot: PortSlot, flags: u32) -> PortSlot {
    PortSlot::new(slot.index(), slot.generation, flags)
}

fn update_slot(tables: &mut Tables, at: u32, change: impl FnOnce(PortSlot) -> PortSlot) {
    let old = PortSlot::from_bits(tables.ports.get(at));
    let new = change(old);
    if new != old {
        tables
            .ports
            .word(at, 0)
            .store(new.to_bits(), Ordering::Release);
    }
}

fn insert_bound(tables: &mut Tables, key: AddressPort, slot: PortSlot) -> Result<(), TableError> {
    let inserted = tables.address_ports.insert(key, slot, 0);
    inserted.map_err(|source| TableError::full_or(maps::ADDRESS_PORTS, MAX_FORWARDS, source))
}

fn give_back_bound(
    tables: &mut Tables,
    key: AddressPort,
    is_own: impl Fn(PortSlot) -> bool,
    former: PortSlot,
) -> Result<(), TableError> {
    let failed = |source| TableError::Map {
        name: maps::ADDRESS_PORTS,
        source: Box::new(source),
    };
    match tables.address_ports.get(&key, 0) {
        Ok(slot) if is_own(slot) && former.index() != 0 => insert_bound(tables, key, former),
        Ok(slot) if is_own(slot) => tables.address_ports.remove(&key).map_err(failed),
        Ok(_) | Err(aya::maps::MapError::KeyNotFound) => Ok(()),
        Err(source) => Err(failed(source)),
    }
}
