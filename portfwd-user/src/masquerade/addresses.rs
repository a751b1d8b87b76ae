//! Whose the addresses of containers are. Several attachments may share one, as those of a pod do: then
//! it belongs to one that masquerades it, as long as there is one.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use portfwd_common::{host::MAX_SOURCES, maps, net::Ip};

use super::{failed, owner, remove_addresses};
use crate::tables::{TableError, Tables};
use crate::transaction;

/// The attachments that send from an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Claims {
    masqueraded: BTreeSet<u32>,
    others: BTreeSet<u32>,
}

impl Claims {
    /// Who is to have the address, if somebody (who is masqueraded or not) has it now.
    fn choose(&self, now: Option<(u32, bool)>) -> Option<u32> {
        let kept = now.filter(|(id, masqueraded)| match self.masqueraded.is_empty() {
            true => self.others.contains(id),
            // Maybe an attachment that is gone, whose flows the others go on with.
            false => *masqueraded,
        });
        let first = self.masqueraded.iter().chain(&self.others).next();
        kept.map(|(id, _)| id).or(first.copied())
    }
    /// One that masquerades the address.
    pub(super) fn masquerading(&self) -> Option<u32> {
        self.masqueraded.first().copied()
    }
}

/// Attachments with a forward, but one, and what they send from. Without a link of the host only what
/// is masqueraded has an address here.
pub(super) struct Attached {
    ids: BTreeSet<u32>,
    claims: HashMap<IpAddr, Claims>,
}

impl Attached {
    pub(super) fn read(tables: &Tables, but: Option<u32>) -> Result<Self, TableError> {
        let serving = transaction::serving(tables).map(|(_, forward)| forward.attachment);
        let ids: BTreeSet<u32> = serving.filter(|id| Some(*id) != but).collect();
        let committed = transaction::committed(tables);
        let mut sources: HashMap<u32, Vec<Ip>> = HashMap::new();
        for key in tables.link_sources.keys() {
            let key = key.map_err(failed(maps::LINK_SOURCES))?;
            sources.entry(key.link).or_default().push(key.address);
        }
        let mut claims: HashMap<IpAddr, Claims> = HashMap::new();
        for entry in tables.attachments.iter() {
            let (id, attachment) = entry.map_err(failed(maps::ATTACHMENTS))?;
            let record = owner(tables, id)?;
            let masqueraded = record.is_some_and(|owner| owner.is_masqueraded(committed));
            if !ids.contains(&id) || (attachment.link == 0 && !masqueraded) {
                continue;
            }
            let published = [attachment.v4, attachment.v6];
            let published = published.into_iter().filter(|ip| !ip.is_unspecified());
            let sources = sources.get(&attachment.link).into_iter().flatten();
            for address in published.chain(sources.copied()) {
                let claims = claims.entry(IpAddr::from(address)).or_default();
                match masqueraded {
                    true => claims.masqueraded.insert(id),
                    false => claims.others.insert(id),
                };
            }
        }
        Ok(Self { ids, claims })
    }
    /// Who sends from an address.
    pub(super) fn at(&self, address: IpAddr) -> Option<&Claims> {
        self.claims.get(&address)
    }
}

/// Every address with its owner. The walk through a table that is mostly empty is what costs.
pub(super) fn rows(tables: &Tables) -> Result<Vec<(IpAddr, u32)>, TableError> {
    let rows = tables.container_ips.iter();
    let rows = rows.map(|row| row.map(|(address, id)| (IpAddr::from(address), id)));
    rows.collect::<Result<_, _>>()
        .map_err(failed(maps::CONTAINER_IPS))
}

fn insert(tables: &mut Tables, address: IpAddr, id: u32) -> Result<(), TableError> {
    let inserted = tables.container_ips.insert(Ip::from(address), id, 0);
    inserted.map_err(|source| TableError::full_or(maps::CONTAINER_IPS, MAX_SOURCES, source))
}

/// Records the addresses of an attachment that nobody has, and no others; [`assign`] does the rest once
/// packets see it.
///
/// # Errors
/// When the table is full, or cannot be read.
pub fn set_addresses(
    tables: &mut Tables,
    id: u32,
    addresses: &BTreeSet<IpAddr>,
) -> Result<(), TableError> {
    let committed = transaction::committed(tables);
    let rows: HashMap<IpAddr, u32> = rows(tables)?.into_iter().collect();
    let is_former = |address: &IpAddr, owner: u32| owner == id && !addresses.contains(address);
    remove_addresses(tables, &rows, is_former)?;
    for address in addresses {
        let record = match rows.get(address) {
            Some(now) => owner(tables, *now)?,
            None => None,
        };
        if !record.is_some_and(|owner| owner.is_visible(committed)) {
            insert(tables, *address, id)?;
        }
    }
    Ok(())
}

/// Gives each address to one of those that share it.
///
/// # Errors
/// When a table cannot be read or changed.
pub fn assign(tables: &mut Tables) -> Result<(), TableError> {
    let attached = Attached::read(tables, None)?;
    let committed = transaction::committed(tables);
    let rows: HashMap<IpAddr, u32> = rows(tables)?.into_iter().collect();
    let is_former =
        |address: &IpAddr, id: u32| !attached.ids.contains(&id) && attached.at(*address).is_none();
    remove_addresses(tables, &rows, is_former)?;
    for (address, claims) in &attached.claims {
        let now = match rows.get(address) {
            Some(id) => {
                let record = owner(tables, *id)?;
                Some((
                    *id,
                    record.is_some_and(|owner| owner.is_masqueraded(committed)),
                ))
            }
            None => None,
        };
        if let Some(chosen) = claims.choose(now)
            && now.is_none_or(|(id, _)| id != chosen)
        {
            insert(tables, *address, chosen)?;
        }
    }
    Ok(())
}

/// The owners whose packets are masqueraded no longer without an attachment: itself, and those that were
/// left to it. One all of whose addresses others masquerade too goes on, and with it its flows: nobody
/// can tell whose of them they are.
///
/// # Errors
/// When a table cannot be read.
pub fn owners_ending_with(tables: &Tables, id: u32) -> Result<BTreeSet<u32>, TableError> {
    let left = Attached::read(tables, Some(id))?;
    let mut ending = BTreeSet::new();
    let mut staying = BTreeSet::new();
    for (address, owner) in rows(tables)? {
        if left.ids.contains(&owner) {
            continue;
        }
        let claims = left.at(address);
        match claims.and_then(Claims::masquerading) {
            Some(_) => staying.insert(owner),
            None => ending.insert(owner),
        };
    }
    if !staying.contains(&id) {
        ending.insert(id);
    }
    Ok(ending)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_who_masquerades_it_and_stays_with_who_has_it() {
        let claims = |masqueraded: &[u32], others: &[u32]| Claims {
            masqueraded: masqueraded.iter().copied().collect(),
            others: others.iter().copied().collect(),
        };
        for (masqueraded, others, now, chosen) in [
            (&[][..], &[][..], None, None),
            (&[], &[2, 3], None, Some(2)),
            (&[], &[2, 3], Some((3, false)), Some(3)),
            (&[], &[2, 3], Some((1, false)), Some(2)),
            (&[3], &[2], None, Some(3)),
            (&[3], &[2], Some((2, false)), Some(3)),
            (&[3, 4], &[2], Some((4, true)), Some(4)),
            (&[3, 4], &[2], Some((1, true)), Some(1)),
            (&[3, 4], &[2], Some((1, false)), Some(3)),
        ] {
            let claims = claims(masqueraded, others);
            assert_eq!(claims.choose(now), chosen, "{claims:?}, {now:?}");
        }
    }
}
