//! Who has which host port, and which port is free. Pure: what is held and who listens are arguments.
//!
//! Two claims to a port of one protocol collide when their host addresses overlap: equal ones do, and
//! `0.0.0.0` overlaps every IPv4 address, `::` every IPv6 one. A socket on `::` that is not limited to
//! IPv6 overlaps the IPv4 addresses too.

mod choose;
mod error;
mod place;
mod port_set;
#[cfg(test)]
mod properties;
mod rule;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::net::IpAddr;

use portfwd_common::net::Protocol;

pub use choose::{CHOSEN, choose, first_free};
pub use error::{Collision, CollisionError, Holder};
pub use place::{Place, WholeChain};
pub use port_set::{PortSet, ReservedError};
pub use rule::{Addresses, Family, Rule};

use crate::label::Label;
use crate::spec::{HostPorts, PortRange, Spec, hosts_overlap};

/// A forward that exists. One that was published without a host address is two of these, on `0.0.0.0`
/// and on `::`, even if its container has an address of one family only: it holds the port in both.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Held {
    /// Whose it is.
    pub owner: Label,
    /// The protocol.
    pub protocol: Protocol,
    /// The host address.
    pub host: IpAddr,
    /// The host's ports.
    pub ports: PortRange,
    /// The container's ports.
    pub container: PortRange,
}

/// A socket of the host that receives on a port: a TCP listener, a bound UDP socket.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Listener {
    /// Name of the process, if it could be told.
    pub process: Option<String>,
    /// Its PID, if it could be told.
    pub pid: Option<u32>,
    /// The protocol.
    pub protocol: Protocol,
    /// The address that it is bound to.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// Whether it is bound to `::` without IPV6_V6ONLY, and therefore to IPv4 as well.
    pub dual_stack: bool,
}

impl Listener {
    fn overlaps(&self, host: IpAddr) -> bool {
        let address = self.address.to_canonical();
        hosts_overlap(Some(address), Some(host))
            || (self.dual_stack && address.is_unspecified() && host.is_ipv4())
    }
}

/// A SPEC whose host ports are settled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resolved {
    /// The SPEC.
    pub spec: Spec,
    /// The host's ports.
    pub ports: PortRange,
    /// The host addresses on which it still has to be published; none if all of it exists already.
    pub hosts: Vec<IpAddr>,
}

/// Everything that can be in the way of a forward.
#[derive(Clone, Copy, Debug)]
pub struct Occupied<'a> {
    /// The forwards of every container.
    pub held: &'a [Held],
    /// The container whose forwards are in nobody's way, because they go.
    pub replaced: Option<&'a Label>,
    /// The sockets of the host.
    pub listeners: &'a [Listener],
    /// The rules of other tools.
    pub rules: &'a [Rule],
    /// `ip_local_reserved_ports`: never chosen, but published when asked for.
    pub reserved: &'a PortSet,
}

impl Occupied<'_> {
    /// The ports that nobody can publish on `host`.
    #[must_use]
    pub fn taken(&self, protocol: Protocol, host: IpAddr) -> PortSet {
        let mut taken = PortSet::new();
        let overlapping =
            |held: &&Held| held.protocol == protocol && hosts_overlap(Some(held.host), Some(host));
        for held in self.staying().filter(overlapping) {
            taken.insert_range(held.ports);
        }
        for listener in self.listeners {
            if listener.protocol == protocol && listener.overlaps(host) {
                taken.insert(listener.port);
            }
        }
        let in_the_way = |rule: &&Rule| !rule.takes_every_port() && rule.looks_at(protocol, host);
        for rule in self.rules.iter().filter(in_the_way) {
            rule.ports
                .iter()
                .for_each(|ports| taken.insert_range(*ports));
        }
        taken
    }

    /// The forwards that are in the way of others.
    fn staying(&self) -> impl Iterator<Item = &Held> {
        let replaced = self.replaced;
        let held = self.held.iter();
        held.filter(move |held| Some(&held.owner) != replaced)
    }

    /// Who has the lowest port of `ports` that is not free on `host`; a container before a process, and that before
    /// a rule of another tool.
    #[must_use]
    pub fn collision(
        &self,
        protocol: Protocol,
        host: IpAddr,
        ports: PortRange,
    ) -> Option<Collision> {
        // `min_by_key` keeps the first of equals.
        self.collisions(protocol, host, ports)
            .min_by_key(|collision| collision.port)
    }

    /// Everyone who has a port of `ports` on `host`, each with the lowest of those that he has.
    pub fn collisions(
        &self,
        protocol: Protocol,
        host: IpAddr,
        ports: PortRange,
    ) -> impl Iterator<Item = Collision> {
        let containers = self.staying().filter_map(move |held| {
            let shared = held.ports.intersection(ports)?;
            let overlap = held.protocol == protocol && hosts_overlap(Some(held.host), Some(host));
            overlap.then(|| (shared.first(), Holder::Container(held.owner.clone())))
        });
        let processes = self.listeners.iter().filter_map(move |listener| {
            let overlap = listener.protocol == protocol
                && ports.contains(listener.port)
                && listener.overlaps(host);
            overlap.then(|| (listener.port, Holder::of(listener)))
        });
        let rules = self.rules.iter().filter_map(move |rule| {
            let port = rule.takes(protocol, host, ports)?;
            Some((port, Holder::Rule(rule.place.clone())))
        });
        let all = containers.chain(processes).chain(rules);
        all.map(move |(port, holder)| Collision {
            host,
            port,
            protocol,
            holder,
        })
    }

    /// Settles the host ports of what `owner` asks for, in the order of `specs`. What `owner` has
    /// published already, to the same container port, is in nobody's way and stays as it is; SPECs
    /// with given ports go before pools and those before chosen ports. The same question has the same
    /// answer while the same ports are free.
    ///
    /// `specs` have passed [`crate::spec::check_list`].
    ///
    /// # Errors
    /// When a port is taken or none is free; nothing is settled then.
    pub fn resolve(&self, owner: &Label, specs: &[Spec]) -> Result<Vec<Resolved>, CollisionError> {
        Resolver::new(self, owner, *self).settle_all(specs)
    }

    /// The same, with given ports taken from whoever is no container.
    ///
    /// # Errors
    /// When a port is another container's, or none is free.
    pub fn resolve_by_force(
        &self,
        owner: &Label,
        specs: &[Spec],
    ) -> Result<Vec<Resolved>, CollisionError> {
        let containers = Self {
            listeners: &[],
            rules: &[],
            ..*self
        };
        Resolver::new(self, owner, containers).settle_all(specs)
    }
}

const fn rank_of(spec: &Spec) -> u8 {
    match spec.ports {
        HostPorts::Fixed(_) => 0,
        HostPorts::Pool(_) => 1,
        HostPorts::Chosen => 2,
    }
}

/// Settles one SPEC after the other, each knowing of those before it.
struct Resolver<'a> {
    occupied: &'a Occupied<'a>,
    /// Who may not lose a port that is given.
    respected: Occupied<'a>,
    owner: &'a Label,
    /// What the owner has published, for a look-up by equality.
    own: HashSet<(Protocol, IpAddr, PortRange, PortRange)>,
    /// Taken ports by protocol and host address, filled as they are asked for.
    taken: Vec<(Protocol, IpAddr, PortSet)>,
    /// What the SPECs so far have taken.
    claimed: Vec<(Protocol, IpAddr, PortRange)>,
    /// What of [`Self::own`] is what the SPECs so far ask for.
    confirmed: HashSet<(Protocol, IpAddr, PortRange, PortRange)>,
}

impl<'a> Resolver<'a> {
    fn new(occupied: &'a Occupied<'a>, owner: &'a Label, respected: Occupied<'a>) -> Self {
        let own = occupied.held.iter().filter(|held| held.owner == *owner);
        Self {
            occupied,
            respected,
            owner,
            own: own
                .map(|held| (held.protocol, held.host, held.ports, held.container))
                .collect(),
            taken: Vec::new(),
            claimed: Vec::new(),
            confirmed: HashSet::new(),
        }
    }

    fn settle_all(mut self, specs: &[Spec]) -> Result<Vec<Resolved>, CollisionError> {
        let mut collisions = Vec::new();
        let mut settled: Vec<Option<Resolved>> = vec![None; specs.len()];
        for rank in 0..=2 {
            for (spec, place) in specs.iter().zip(&mut settled) {
                if rank_of(spec) != rank {
                    continue;
                }
                match self.settle(spec) {
                    Ok(resolved) => *place = Some(resolved),
                    Err(CollisionError::Taken { first, others }) => {
                        collisions.push(first);
                        collisions.extend(others);
                    }
                    // A free port was sought among what the failed SPECs would have left.
                    Err(other) if collisions.is_empty() => return Err(other),
                    Err(_) => {}
                }
            }
        }
        match CollisionError::taken(collisions) {
            Some(error) => Err(error),
            None => Ok(settled.into_iter().flatten().collect()),
        }
    }

    fn settle(&mut self, spec: &Spec) -> Result<Resolved, CollisionError> {
        let ports = match spec.ports {
            HostPorts::Fixed(ports) => ports,
            HostPorts::Pool(_) | HostPorts::Chosen => match self.published(spec) {
                Some(ports) => ports,
                None => self.find(spec)?,
            },
        };
        let as_held = |host: IpAddr| (spec.protocol, host, ports, spec.container);
        let (existing, hosts): (Vec<IpAddr>, Vec<IpAddr>) = spec
            .hosts()
            .partition(|host| self.own.contains(&as_held(*host)));
        self.confirmed.extend(existing.into_iter().map(as_held));
        for host in &hosts {
            if self.taken_on(spec.protocol, *host).overlaps(ports)
                && let Some(collision) = self.respected.collision(spec.protocol, *host, ports)
            {
                return Err(CollisionError::from(collision));
            }
        }
        for host in &hosts {
            self.claim(spec.protocol, *host, ports);
        }
        Ok(Resolved {
            spec: *spec,
            ports,
            hosts,
        })
    }

    /// Free host ports for a SPEC that does not fix them.
    fn find(&mut self, spec: &Spec) -> Result<PortRange, CollisionError> {
        let mut taken = self.taken_on_all(spec);
        if let HostPorts::Pool(pool) = spec.ports {
            return first_free(pool, &taken).ok_or_else(|| self.pool_taken(spec, pool));
        }
        taken.extend(self.occupied.reserved);
        choose(self.owner, spec.protocol, spec.container, &taken)
            .ok_or(CollisionError::NoneLeft { spec: *spec })
    }

    /// The host ports under which the owner has published what `spec` asks for, on all its addresses.
    fn published(&self, spec: &Spec) -> Option<PortRange> {
        let first_host = spec.hosts().next()?;
        let mut candidates: Vec<PortRange> = self
            .own
            .iter()
            .filter(|held| !self.confirmed.contains(held))
            .filter(|(protocol, host, ports, container)| {
                *host == first_host && spec.selects(*protocol, *host, *ports, *container)
            })
            .map(|(_, _, ports, _)| *ports)
            .filter(|ports| {
                spec.hosts().all(|host| {
                    self.own
                        .contains(&(spec.protocol, host, *ports, spec.container))
                })
            })
            .collect();
        // A hash set has no order of its own.
        candidates.sort_unstable();
        candidates.first().copied()
    }

    fn taken_on(&mut self, protocol: Protocol, host: IpAddr) -> &PortSet {
        let known = |(of, on, _): &(Protocol, IpAddr, PortSet)| *of == protocol && *on == host;
        let place =
            match self.taken.iter().position(known) {
                Some(place) => place,
                None => {
                    let mut set = self.occupied.taken(protocol, host);
                    for (_, _, ports) in self.claimed.iter().filter(|(of, on, _)| {
                        *of == protocol && hosts_overlap(Some(*on), Some(host))
                    }) {
                        set.insert_range(*ports);
                    }
                    self.taken.push((protocol, host, set));
                    self.taken.len() - 1
                }
            };
        &self.taken[place].2
    }

    fn taken_on_all(&mut self, spec: &Spec) -> PortSet {
        let mut all = PortSet::new();
        for host in spec.hosts() {
            all.extend(self.taken_on(spec.protocol, host));
        }
        all
    }

    fn claim(&mut self, protocol: Protocol, host: IpAddr, ports: PortRange) {
        self.claimed.push((protocol, host, ports));
        for (of, on, set) in &mut self.taken {
            if *of == protocol && hosts_overlap(Some(*on), Some(host)) {
                set.insert_range(ports);
            }
        }
    }

    fn pool_taken(&self, spec: &Spec, pool: PortRange) -> CollisionError {
        let on_host = |shared: Option<PortRange>, overlaps: &dyn Fn(IpAddr) -> bool| {
            shared.filter(|_| spec.hosts().any(overlaps))
        };
        let containers = self.occupied.staying().filter_map(|held| {
            let overlaps = |host| hosts_overlap(Some(held.host), Some(host));
            let shared = on_host(held.ports.intersection(pool), &overlaps)?;
            (held.protocol == spec.protocol)
                .then(|| (shared.first(), Holder::Container(held.owner.clone())))
        });
        let processes = self.occupied.listeners.iter().filter_map(|listener| {
            let overlaps = |host| listener.overlaps(host);
            on_host(PortRange::single(listener.port), &overlaps)?;
            (listener.protocol == spec.protocol && pool.contains(listener.port))
                .then(|| (listener.port, Holder::of(listener)))
        });
        let rules = self.occupied.rules.iter().filter_map(|rule| {
            let mut taken = spec
                .hosts()
                .filter_map(|host| rule.takes(spec.protocol, host, pool));
            Some((taken.next()?, Holder::Rule(rule.place.clone())))
        });
        let all = containers.chain(processes).chain(rules);
        let mut by_port: Vec<(u16, Holder)> = all.collect();
        by_port.sort_by_key(|(port, _)| *port);
        let mut seen = HashSet::new();
        let holders = by_port.into_iter().map(|(_, holder)| holder);
        CollisionError::PoolTaken {
            spec: *spec,
            pool,
            holders: holders
                .filter(|holder| seen.insert(holder.clone()))
                .collect(),
        }
    }
}
