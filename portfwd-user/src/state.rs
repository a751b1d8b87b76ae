//! What the maps say, in the terms that people use.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use portfwd_common::{forward::Forward, host::Attachment, maps, net::Protocol};

use crate::{
    collision::Held,
    error::{Doing, Error},
    label::Label,
    policy::{self, Policy},
    report::{self, Published},
    spec::PortRange,
    tables::{TableError, Tables},
    transaction,
};

/// A forward that packets see, or that holds its port.
#[derive(Clone, Debug)]
pub struct Owned {
    /// Whose it is.
    pub owner: Label,
    /// What it holds.
    pub held: Held,
    /// Its records: one, or those of all pieces of a range, by port.
    pub pieces: Vec<Piece>,
}

/// A record of a forward, with its index.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Its index.
    pub index: u32,
    /// The record.
    pub record: Forward,
}

/// Containers and forwards of an instance.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Containers by name: those with a forward, or one that drains. A record without any is of an attach that came to nothing, and
    /// goes with the next sweep.
    pub containers: HashMap<Label, Attachment>,
    /// Every forward that opens connections.
    pub forwards: Vec<Owned>,
    /// Those that only keep the connections that they have.
    pub draining: Vec<Owned>,
    /// What they hold.
    pub held: Vec<Held>,
    /// Who may open connections, by number.
    pub policies: HashMap<u32, Policy>,
}

impl State {
    /// A container.
    pub fn container(&self, label: &Label) -> Option<&Attachment> {
        self.containers.get(label)
    }
    /// Every forward of a container, those that drain as well.
    pub fn of(&self, label: &Label) -> Vec<&Owned> {
        let all = self.forwards.iter().chain(&self.draining);
        all.filter(|forward| forward.owner == *label).collect()
    }
    /// The same by index.
    pub fn indexes_of(&self, label: &Label) -> BTreeSet<u32> {
        let of = self.of(label);
        of.into_iter().flat_map(Owned::indexes).collect()
    }
    /// Who may open connections through a forward.
    pub fn policy_of(&self, forward: &Owned) -> Policy {
        let policy = self.policies.get(&forward.record().policy).cloned();
        policy
            .unwrap_or_default()
            .with_flags(forward.record().flags)
    }
    /// Host-side links of the containers.
    pub fn links(&self) -> BTreeSet<u32> {
        self.containers.values().map(|a| a.link).collect()
    }
    /// What a container has published, in the order of listings.
    pub fn published(&self, label: &Label) -> Vec<Published> {
        let own = self.forwards.iter().filter(|f| f.owner == *label);
        let mut published: Vec<Published> = own.filter_map(Owned::published).collect();
        report::sort(&mut published);
        published
    }
}

impl Owned {
    /// What all its records say alike, as the first one has it: where they differ, in ports and former, see
    /// [`Self::held`] and [`Self::pieces`].
    pub fn record(&self) -> &Forward {
        &self.pieces[0].record
    }
    /// The indexes of its records.
    pub fn indexes(&self) -> impl Iterator<Item = u32> {
        self.pieces.iter().map(|piece| piece.index)
    }
    /// Whether `next` is the same range from where this one ends.
    fn is_continued_by(&self, next: &Self) -> bool {
        let (own, record) = (self.record(), next.record());
        let follows = |own: PortRange, next: PortRange| {
            u32::from(own.first()) + u32::from(own.count()) == u32::from(next.first())
        };
        record.flags & Forward::CONTINUES != 0
            && (own.since, own.attachment, own.protocol)
                == (record.since, record.attachment, record.protocol)
            && (own.host, own.target) == (record.host, record.target)
            && follows(self.held.ports, next.held.ports)
            && follows(self.held.container, next.held.container)
    }
    fn continue_with(&mut self, next: Self) {
        let all = |own: PortRange, next: PortRange| {
            PortRange::from_count(own.first(), own.count() + next.count()).unwrap_or(own)
        };
        self.held.ports = all(self.held.ports, next.held.ports);
        self.held.container = all(self.held.container, next.held.container);
        self.pieces.extend(next.pieces);
    }
    /// As listings show it; None for a forward that only holds its port.
    pub fn published(&self) -> Option<Published> {
        if self.record().target.is_unspecified() {
            return None;
        }
        Some(Published {
            container: self.owner.clone(),
            protocol: self.held.protocol,
            host_ip: self.held.host,
            host_port: self.held.ports.first(),
            count: self.held.ports.count(),
            container_ip: IpAddr::from(self.record().target),
            container_port: self.held.container.first(),
        })
    }
}

/// Reads containers and forwards.
///
/// # Errors
/// When a table cannot be read.
pub fn read(tables: &Tables) -> Result<State, Error> {
    let attachments = attachments(tables)?;
    let owned = |(index, record): (u32, Forward)| {
        let (owner, _) = attachments.get(&record.attachment)?.clone();
        let held = held(&owner, &record)?;
        let pieces = vec![Piece { index, record }];
        Some(Owned {
            owner,
            held,
            pieces,
        })
    };
    let forwards = whole(transaction::visible(tables).filter_map(owned).collect());
    let draining = whole(transaction::draining(tables).filter_map(owned).collect());
    // Of two with one name the one counts that opens connections.
    let all = draining.iter().chain(&forwards);
    let owners = all.filter_map(|forward| attachments.get(&forward.record().attachment).cloned());
    let containers = owners.collect();
    let held = forwards
        .iter()
        .map(|forward| forward.held.clone())
        .collect();
    Ok(State {
        containers,
        forwards,
        draining,
        held,
        policies: policy::read(tables).doing(|| "read who may use what".to_owned())?,
    })
}

/// `pieces` put together to ranges.
fn whole(mut pieces: Vec<Owned>) -> Vec<Owned> {
    // Else nothing continues anything, and the order of the records is that of their making.
    if pieces
        .iter()
        .all(|piece| piece.record().flags & Forward::CONTINUES == 0)
    {
        return pieces;
    }
    pieces.sort_by_key(|piece| {
        let record = piece.record();
        (
            record.since,
            piece.held.protocol,
            piece.held.host,
            record.host_port.get(),
        )
    });
    let mut whole: Vec<Owned> = Vec::new();
    for piece in pieces {
        match whole.last_mut() {
            Some(last) if last.is_continued_by(&piece) => last.continue_with(piece),
            _ => whole.push(piece),
        }
    }
    whole
}

/// Every container with its name, by ID.
///
/// # Errors
/// When the table cannot be read.
pub fn attachments(tables: &Tables) -> Result<HashMap<u32, (Label, Attachment)>, Error> {
    let all: Vec<(u32, Attachment)> = tables
        .attachments
        .iter()
        .collect::<Result<_, _>>()
        .map_err(|source| TableError::Map {
            name: maps::ATTACHMENTS,
            source: Box::new(source),
        })
        .doing(|| "read the containers".to_owned())?;
    let named = all.into_iter().map(|(id, attachment)| {
        let label = attachment.label.as_str().parse()?;
        Ok((id, (label, attachment)))
    });
    named.collect()
}

fn held(owner: &Label, record: &Forward) -> Option<Held> {
    // An unspecified IPv6 address is all zeros, which is `::`; IPv4's is mapped.
    Some(Held {
        owner: owner.clone(),
        protocol: Protocol::from_number(record.protocol)?,
        host: IpAddr::from(record.host),
        ports: PortRange::from_count(record.host_port.get(), record.count)?,
        container: PortRange::from_count(record.target_port.get(), record.count)?,
    })
}
