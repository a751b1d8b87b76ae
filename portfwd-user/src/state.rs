//! What the maps say, in the terms that people use.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use portfwd_common::{
    forward::Forward,
    host::{self, Attachment},
    maps,
    net::Protocol,
};

use crate::{
    collision::Held,
    error::{Doing, Error},
    label::Label,
    report::{self, Published},
    spec::PortRange,
    tables::{TableError, Tables},
    transaction,
};

/// A forward that packets see, or that holds its port.
#[derive(Clone, Debug)]
pub struct Owned {
    /// Its index.
    pub index: u32,
    /// Whose it is.
    pub owner: Label,
    /// What it holds.
    pub held: Held,
    /// Its record.
    pub record: Forward,
}

/// Containers and forwards of an instance.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Containers by name: those with a forward. A record without any is of an attach that came to nothing, and
    /// goes with the next sweep.
    pub containers: HashMap<Label, Attachment>,
    /// Every forward.
    pub forwards: Vec<Owned>,
    /// What they hold.
    pub held: Vec<Held>,
}

impl State {
    /// A container.
    pub fn container(&self, label: &Label) -> Option<&Attachment> {
        self.containers.get(label)
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
    /// As listings show it; None for a forward that only holds its port.
    pub fn published(&self) -> Option<Published> {
        if self.record.target.is_unspecified() {
            return None;
        }
        Some(Published {
            container: self.owner.clone(),
            protocol: self.held.protocol,
            host_ip: self.held.host,
            host_port: self.held.ports.first(),
            count: self.held.ports.count(),
            container_ip: IpAddr::from(self.record.target),
            container_port: self.held.container.first(),
        })
    }
}

/// Reads containers and forwards.
///
/// # Errors
/// When a table cannot be read.
pub fn read(tables: &Tables) -> Result<State, Error> {
    let mut containers = HashMap::new();
    let mut names = HashMap::new();
    for entry in tables.attachments.iter() {
        let (label, attachment) = entry
            .map_err(|source| TableError::Map {
                name: maps::ATTACHMENTS,
                source: Box::new(source),
            })
            .doing(|| "read the containers".to_owned())?;
        let label = text_label(&label)?;
        names.insert(attachment.id, label.clone());
        containers.insert(label, attachment);
    }
    let forwards: Vec<Owned> = transaction::visible(tables)
        .filter_map(|(index, record)| {
            let owner = names.get(&record.attachment)?.clone();
            let held = held(&owner, &record)?;
            Some(Owned {
                index,
                owner,
                held,
                record,
            })
        })
        .collect();
    let owners: HashSet<u32> = forwards.iter().map(|f| f.record.attachment).collect();
    containers.retain(|_, attachment: &mut Attachment| owners.contains(&attachment.id));
    let held = forwards
        .iter()
        .map(|forward| forward.held.clone())
        .collect();
    Ok(State {
        containers,
        forwards,
        held,
    })
}

fn text_label(label: &host::Label) -> Result<Label, Error> {
    Ok(label.as_str().parse::<Label>()?)
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
