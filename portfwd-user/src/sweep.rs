//! Removing what belongs to forwards that are gone: flows, host sockets, containers without a forward,
//! their links. Everything here follows from the maps alone, so that it can be done again after a crash.

use std::{
    collections::{BTreeSet, HashSet},
    net::{IpAddr, SocketAddr},
};

use aya::maps::MapError;
use portfwd_common::{
    flow::{Flow, FlowKey, Lifetimes, State, is_alive},
    forward::{Delivery, Forward},
    host::{SocketKey, SocketOrigin},
    maps,
    net::{Ip, Protocol},
};

use crate::{
    clock, drain,
    error::{Doing, Error},
    hooks::{self, Hook},
    instance::Layout,
    masquerade,
    observe::{
        netns::Netns,
        sockets::{self, Peer},
    },
    pair, policy, state,
    tables::{Flows, Hash, TableError, Tables, batch, is_gone},
    transaction,
};

/// Forwards that flows live of, and those of them that have some.
struct Census {
    alive: HashSet<drain::Id>,
    /// Addresses that they lead to.
    served: HashSet<Ip>,
    used: BTreeSet<drain::Id>,
    now: u32,
    lifetimes: Lifetimes,
}

impl Census {
    fn of(tables: &Tables, now: u32) -> Self {
        let mut census = Self::of_nothing(tables, now);
        for (index, forward) in transaction::serving(tables) {
            census.alive.insert((index, forward.generation));
            census.served.insert(forward.target);
        }
        census
    }
    /// Where no forward counts.
    fn of_nothing(tables: &Tables, now: u32) -> Self {
        Self {
            alive: HashSet::new(),
            served: HashSet::new(),
            used: BTreeSet::new(),
            now,
            lifetimes: tables.journal.get(0).lifetimes,
        }
    }
    /// Whether the flow is one of a forward that is alive, which is used if the flow is alive too. One that is not
    /// stays: the kernel's tables forget it.
    fn has_flow<A>(&mut self, flow: &Flow<A>) -> bool {
        let id = (flow.forward, flow.generation);
        let lives = State::from_number(flow.state)
            .is_some_and(|state| is_alive(state, flow.last_seen, self.now, &self.lifetimes));
        match lives {
            true => self.has(id),
            false => self.alive.contains(&id),
        }
    }
    /// Whether the forward is alive, which is used then.
    fn has(&mut self, id: drain::Id) -> bool {
        let is_alive = self.alive.contains(&id);
        if is_alive {
            self.used.insert(id);
        }
        is_alive
    }
}

/// What a sweep has removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Swept {
    /// Flows of published ports.
    pub flows: usize,
    /// Host sockets that were ended or forgotten.
    pub host_sockets: usize,
    /// Links of containers that portfwd had made.
    pub pairs: usize,
}

/// Ends what has drained, removes all that no forward needs, then frees the dead forwards.
///
/// # Errors
/// The first failure, after everything has been tried; the next command tries again.
pub fn sweep(tables: &mut Tables, layout: &Layout, host: &Netns) -> Result<Swept, Error> {
    let now = clock::seconds();
    drain::end_overdue(tables, now);
    let mut census = Census::of(tables, now);
    let v4 = purge_flows(&mut tables.flows_v4, &mut census);
    let v6 = purge_flows(&mut tables.flows_v6, &mut census);
    let host_sockets = end_sockets(tables, host, &mut census);
    drain::end_empty(tables, &census.used);
    let forwards: Vec<_> = transaction::serving(tables).collect();
    let owners: BTreeSet<u32> = forwards.iter().map(|(_, f)| f.attachment).collect();
    let through_stack = |(_, f): &(u32, Forward)| f.delivery == Delivery::Stack as u8;
    let loopback = forwards.iter().filter(|(_, f)| f.serves_loopback());
    let loopback: BTreeSet<u32> = loopback.map(|(_, f)| f.attachment).collect();
    let masquerades = masquerade::sweep(tables, &owners);
    let needs_egress = forwards.iter().any(through_stack) || !matches!(masquerades, Ok(false));
    let forgotten = forget_containers(tables, layout, host, &owners);
    let pairs = remove_pairs(tables, host, &owners);
    let policies = forwards.iter().map(|(_, forward)| forward.policy).collect();
    let policies = policy::remove_but(tables, &policies);
    let results = [
        forgotten,
        policies.doing(|| "forget who may use what".to_owned()),
        leave_containers(tables, layout, &loopback),
        masquerades.map(|_| ()),
        if needs_egress {
            Ok(())
        } else {
            detach_egress(layout, host)
        },
    ];
    let swept = Swept {
        flows: v4? + v6?,
        host_sockets: host_sockets?,
        pairs: pairs?,
    };
    results.into_iter().collect::<Result<(), Error>>()?;
    close(tables)?;
    Ok(swept)
}

/// The egress program serves flows through the stack and masquerade, of which there is nothing any more.
fn detach_egress(layout: &Layout, host: &Netns) -> Result<(), Error> {
    for device in hooks::attached(layout, Hook::Egress)? {
        hooks::detach(layout, Hook::Egress, host, device)?;
    }
    Ok(())
}

/// The program inside a container serves forwards to its loopback address; the attachments `served` have
/// some.
fn leave_containers(tables: &Tables, layout: &Layout, served: &BTreeSet<u32>) -> Result<(), Error> {
    let containers = state::attachments(tables)?;
    let served = containers.iter().filter(|(id, _)| served.contains(id));
    let namespaces = served
        .map(|(_, (_, attachment))| attachment.netns)
        .collect();
    hooks::loopback::detach_but(layout, &namespaces)
}

/// The pair that was made for a container goes with it, or with the attach that came to nothing.
fn remove_pairs(tables: &Tables, host: &Netns, owners: &BTreeSet<u32>) -> Result<usize, Error> {
    let attached = state::attachments(tables)?.into_iter();
    let attached = attached.filter(|(id, _)| owners.contains(id));
    let links = attached
        .map(|(_, (_, attachment))| attachment.link)
        .collect();
    pair::remove_but(host, &links)
}

/// Forgets every flow, of living forwards as well. Returns how many there were.
///
/// # Errors
/// When a table cannot be read or written.
pub fn purge_all_flows(tables: &mut Tables) -> Result<usize, Error> {
    let mut census = Census::of_nothing(tables, clock::seconds());
    let v4 = purge_flows(&mut tables.flows_v4, &mut census)?;
    let v6 = purge_flows(&mut tables.flows_v6, &mut census)?;
    Ok(v4 + v6 + masquerade::forget_all(tables)?)
}

/// Returns how many there were. A changed port of a client stays behind: it leads to no flow, and the table
/// forgets the oldest.
fn purge_flows<A: portfwd_common::net::Address>(
    flows: &mut Flows<A>,
    census: &mut Census,
) -> Result<usize, Error>
where
    FlowKey<A>: aya::Pod,
    Flow<A>: aya::Pod,
{
    let mut purged = 0;
    for (name, flows) in flows.tables_mut() {
        purged += purge_table(flows, name, census)?;
    }
    Ok(purged)
}

fn purge_table<A: portfwd_common::net::Address>(
    flows: &mut Hash<FlowKey<A>, Flow<A>>,
    name: &'static str,
    census: &mut Census,
) -> Result<usize, Error>
where
    FlowKey<A>: aya::Pod,
    Flow<A>: aya::Pod,
{
    let failed = |source| TableError::Map {
        name,
        source: Box::new(source),
    };
    let doing = || "purge flows".to_owned();
    let mut dead = Vec::new();
    for entry in batch::entries(flows) {
        let (key, flow) = entry.map_err(failed).doing(doing)?;
        if !census.has_flow(&flow) {
            dead.push(key);
        }
    }
    // By now the client may have one under the same key through another forward, if one leads to that address: such
    // a flow is looked at once more.
    let (contested, dead): (Vec<_>, Vec<_>) = dead
        .into_iter()
        .partition(|key| census.served.contains(&key.container.ip()));
    let mut purged = batch::remove(flows, &dead).map_err(failed).doing(doing)?;
    for key in contested {
        match flows.get(&key, 0) {
            Ok(flow) if !census.has_flow(&flow) => {}
            // An LRU table may drop any entry at any time.
            Ok(_) | Err(MapError::KeyNotFound) => continue,
            Err(error) => return Err(failed(error)).doing(doing),
        }
        match flows.remove(&key) {
            Err(error) if !is_gone(&error) => return Err(failed(error)).doing(doing),
            _ => purged += 1,
        }
    }
    Ok(purged)
}

/// Ends connected sockets; one that is not connected asks a forward for each datagram. Returns how many there
/// were of both.
fn end_sockets(tables: &mut Tables, host: &Netns, census: &mut Census) -> Result<usize, Error> {
    let dead = dead_sockets(&tables.host_sockets, maps::HOST_SOCKETS, census)?;
    let mut peers = HashSet::new();
    for (key, origin) in &dead {
        if let Some(protocol) = Protocol::from_number(origin.protocol) {
            let address = SocketAddr::new(IpAddr::from(key.peer), key.port.get());
            peers.insert(Peer { protocol, address });
        }
    }
    let cookies = dead.iter().map(|(key, _)| key.cookie).collect();
    sockets::destroy(host, &peers, &cookies)?;
    let connected = dead.len();
    forget_sockets(&mut tables.host_sockets, maps::HOST_SOCKETS, &dead)?;
    let dead = dead_sockets(&tables.host_peers, maps::HOST_PEERS, census)?;
    let all = connected + dead.len();
    forget_sockets(&mut tables.host_peers, maps::HOST_PEERS, &dead)?;
    Ok(all)
}

/// Host sockets that a forward sent to its container which is no more.
fn dead_sockets(
    sockets: &Hash<SocketKey, SocketOrigin>,
    name: &'static str,
    census: &mut Census,
) -> Result<Vec<(SocketKey, SocketOrigin)>, Error> {
    let mut dead = Vec::new();
    for entry in batch::entries(sockets) {
        let (key, origin) = entry
            .map_err(|source| TableError::Map {
                name,
                source: Box::new(source),
            })
            .doing(|| "read host sockets".to_owned())?;
        if !census.has((origin.forward, origin.generation)) {
            dead.push((key, origin));
        }
    }
    Ok(dead)
}

fn forget_sockets(
    sockets: &mut Hash<SocketKey, SocketOrigin>,
    name: &'static str,
    dead: &[(SocketKey, SocketOrigin)],
) -> Result<(), Error> {
    let keys: Vec<SocketKey> = dead.iter().map(|(key, _)| *key).collect();
    batch::remove(sockets, &keys)
        .map_err(|source| TableError::Map {
            name,
            source: Box::new(source),
        })
        .doing(|| "forget host sockets".to_owned())?;
    Ok(())
}

/// Containers go with their last forward, and links with their last container.
fn forget_containers(
    tables: &mut Tables,
    layout: &Layout,
    host: &Netns,
    owners: &BTreeSet<u32>,
) -> Result<(), Error> {
    let failed = |name| {
        move |source| TableError::Map {
            name,
            source: Box::new(source),
        }
    };
    let doing = || "forget containers".to_owned();
    let mut links = BTreeSet::new();
    for (id, (_, attachment)) in state::attachments(tables)? {
        if owners.contains(&id) {
            links.insert(attachment.link);
        } else {
            tables
                .attachments
                .remove(&id)
                .map_err(failed(maps::ATTACHMENTS))
                .doing(doing)?;
        }
    }
    // The hook goes before the addresses that it lets through.
    let hooked = hooks::attached(layout, Hook::Link)?;
    for link in hooked.into_iter().filter(|link| !links.contains(link)) {
        hooks::detach(layout, Hook::Link, host, link)?;
    }
    let known: Vec<u32> = tables
        .links
        .keys()
        .collect::<Result<_, _>>()
        .map_err(failed(maps::LINKS))
        .doing(doing)?;
    for link in known.into_iter().filter(|link| !links.contains(link)) {
        tables
            .links
            .remove(&link)
            .map_err(failed(maps::LINKS))
            .doing(doing)?;
    }
    let sources: Vec<_> = tables
        .link_sources
        .keys()
        .collect::<Result<_, _>>()
        .map_err(failed(maps::LINK_SOURCES))
        .doing(doing)?;
    for source in sources
        .into_iter()
        .filter(|source| !links.contains(&source.link))
    {
        tables
            .link_sources
            .remove(&source)
            .map_err(failed(maps::LINK_SOURCES))
            .doing(doing)?;
    }
    Ok(())
}

/// Frees dead forwards, and closes the transaction: after a sweep, or where nothing was withdrawn that something could
/// hang on.
///
/// # Errors
/// When dead forwards of before cannot be freed.
pub fn close(tables: &mut Tables) -> Result<(), Error> {
    transaction::settle(tables).doing(|| "free what was withdrawn".to_owned())
}
