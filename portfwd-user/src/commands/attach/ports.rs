//! The host ports of an attach: who is in the way of them, and what they are in the way of.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
};

use portfwd_common::net::Protocol;

use crate::{
    cli::Attach,
    collision::{CollisionError, Held, Listener, Occupied, PortSet, Resolved, Rule},
    error::{Doing, Error},
    observe::{
        foreign,
        local_ports::LocalPorts,
        netns::Netns,
        processes,
        sockets::{self, Look},
    },
    plan::Plan,
    spec::{HostPorts, PortRange, Spec},
    talk,
    transaction::NewForward,
};

/// At most so many ranges of ports are spelled out in a warning.
const LISTED: usize = 8;

/// The host ports that an attach gets.
pub(super) struct Settled {
    pub(super) resolved: Vec<Resolved>,
    /// Whose traffic they take, if that was asked for: a line each.
    pub(super) shadowed: BTreeSet<String>,
    /// Where others' rules for every port are that they pass by.
    pub(super) passed_by: BTreeSet<String>,
}

/// What else there is on the host.
pub(in crate::commands) struct Around {
    listening: Vec<sockets::Listener>,
    rules: Vec<Rule>,
    reserved: PortSet,
}

impl Around {
    /// Who listens in one of `protocols`, and what others' rules take.
    pub(in crate::commands) fn of(
        host: &Netns,
        protocols: &[Protocol],
        look: Look,
    ) -> Result<Self, Error> {
        let (listening, local, rules) = host.run_in(|| {
            (
                sockets::listeners_here(protocols, look),
                LocalPorts::here(),
                foreign::rules_here(),
            )
        })?;
        Ok(Self {
            listening: listening?,
            rules: rules.doing(|| "look for ports that others' rules take".to_owned())?,
            reserved: local?.reserved,
        })
    }
}

impl Around {
    /// Who else has a port of the host, in words.
    pub(in crate::commands) fn holders(
        &self,
        protocol: Protocol,
        host: IpAddr,
        port: u16,
    ) -> Result<Vec<String>, Error> {
        let sockets: Vec<&sockets::Listener> = self
            .listening
            .iter()
            .filter(|socket| socket.address.port() == port)
            .collect();
        let listeners = named(&sockets)?;
        let occupied = Occupied {
            held: &[],
            replaced: None,
            listeners: &listeners,
            rules: &self.rules,
            reserved: &self.reserved,
        };
        let ports = PortRange::single(port);
        let collisions = ports
            .into_iter()
            .flat_map(|ports| occupied.collisions(protocol, host, ports));
        Ok(collisions
            .map(|found| found.holder.describe(protocol))
            .collect())
    }
}

/// Settles the host ports of an attach, against what is held and what else there is on the host.
pub(super) fn settle(around: &Around, held: &[Held], attach: &Attach) -> Result<Settled, Error> {
    let specs = &attach.specs;
    let resolved = among(&around.listening, |listeners| {
        let occupied = Occupied {
            held,
            replaced: attach.replace.then_some(&attach.container),
            listeners,
            rules: &around.rules,
            reserved: &around.reserved,
        };
        match attach.force {
            true => occupied.resolve_by_force(&attach.container, specs),
            false => occupied.resolve(&attach.container, specs),
        }
    })?;
    let shadowed = match attach.force {
        true => shadowed(&around.listening, &around.rules, &resolved)?,
        false => BTreeSet::new(),
    };
    Ok(Settled {
        resolved,
        shadowed,
        passed_by: rules_for_every_port(&around.rules, specs),
    })
}

/// How closely sockets have to be looked for before there is a plan: ports that are given are looked at again once
/// they are claimed, unless they are to be had by force.
pub(super) fn look(attach: &Attach) -> Look {
    let given = |spec: &Spec| matches!(spec.ports, HostPorts::Fixed(_));
    match !attach.force && !attach.dry_run && attach.specs.iter().all(given) {
        true => Look::AtServed,
        false => Look::AtHeld,
    }
}

/// The protocols of an attach.
pub(in crate::commands) fn protocols(attach: &Attach) -> Vec<Protocol> {
    distinct(attach.specs.iter().map(|spec| spec.protocol))
}

/// Who got until now what comes for `resolved`.
fn shadowed(
    listening: &[sockets::Listener],
    rules: &[Rule],
    resolved: &[Resolved],
) -> Result<BTreeSet<String>, Error> {
    let wanted = |socket: &&sockets::Listener| {
        let of = |item: &Resolved| {
            item.spec.protocol == socket.protocol && item.ports.contains(socket.address.port())
        };
        resolved.iter().any(of)
    };
    let sockets: Vec<&sockets::Listener> = listening.iter().filter(wanted).collect();
    let listeners = named(&sockets)?;
    let others = Occupied {
        held: &[],
        replaced: None,
        listeners: &listeners,
        rules,
        reserved: &PortSet::new(),
    };
    let on_hosts = resolved
        .iter()
        .flat_map(|item| item.hosts.iter().map(move |host| (item, *host)));
    let collisions =
        on_hosts.flat_map(|(item, host)| others.collisions(item.spec.protocol, host, item.ports));
    Ok(collisions.map(|collision| collision.shadowed()).collect())
}

/// Where others' rules are that may take what comes for any port: they may have conditions that are not
/// understood, and would be in the way of everything else.
fn rules_for_every_port(rules: &[Rule], specs: &[Spec]) -> BTreeSet<String> {
    let in_the_way = |rule: &&Rule| {
        let looks = |spec: &Spec| spec.hosts().any(|host| rule.looks_at(spec.protocol, host));
        rule.takes_every_port() && specs.iter().any(looks)
    };
    let places = rules.iter().filter(in_the_way);
    places.map(|rule| rule.place.to_string()).collect()
}

/// Whether still nobody listens on what is going to be published.
pub(in crate::commands) fn check_still_free(host: &Netns, plans: &[&Plan]) -> Result<(), Error> {
    // What another forward has had nobody could bind meanwhile.
    let is_new = |forward: &&NewForward| forward.former.index() == 0;
    let forwards = || {
        let all = plans.iter().flat_map(|plan| &plan.forwards);
        all.filter(is_new)
    };
    let protocols = distinct(forwards().map(|forward| forward.protocol));
    let listening = sockets::listeners(host, &protocols, Look::AtHeld)?;
    among(&listening, |listeners| {
        let occupied = Occupied {
            held: &[],
            replaced: None,
            listeners,
            rules: &[],
            reserved: &PortSet::new(),
        };
        let mut collisions = forwards().filter_map(|forward| {
            let ports = PortRange::from_count(forward.host_port, forward.count)?;
            occupied.collision(forward.protocol, forward.host.into(), ports)
        });
        collisions
            .next()
            .map_or(Ok(()), |first| Err(CollisionError::from(first)))
    })
}

fn distinct(protocols: impl Iterator<Item = Protocol>) -> Vec<Protocol> {
    protocols.collect::<HashSet<_>>().into_iter().collect()
}

/// What `ask` finds among the host's listeners. Processes are named only when one is in the way: that takes a
/// walk through /proc.
fn among<T>(
    listening: &[sockets::Listener],
    ask: impl Fn(&[Listener]) -> Result<T, CollisionError>,
) -> Result<T, Error> {
    let unnamed: Vec<Listener> = listening.iter().map(|socket| socket.named(None)).collect();
    match ask(&unnamed) {
        Ok(answer) => Ok(answer),
        Err(CollisionError::NoneLeft { spec }) => Err(CollisionError::NoneLeft { spec }.into()),
        Err(_) => Ok(ask(&named(&listening.iter().collect::<Vec<_>>())?)?),
    }
}

fn named(sockets: &[&sockets::Listener]) -> Result<Vec<Listener>, Error> {
    let inodes: Vec<u32> = sockets.iter().map(|socket| socket.inode).collect();
    let owners = processes::owners(&inodes).doing(|| "name processes".to_owned())?;
    let named = sockets
        .iter()
        .map(|socket| socket.named(owners.get(&socket.inode)));
    Ok(named.collect())
}

/// Says what else the ports of `plans` are in the way of, or share.
pub(in crate::commands) fn warn(host: &Netns, plans: &[&Plan]) -> Result<(), Error> {
    for line in plans.iter().flat_map(|plan| &plan.shadowed) {
        talk::warn(line);
    }
    let passed_by: BTreeSet<&String> = plans.iter().flat_map(|plan| &plan.passed_by).collect();
    for place in passed_by {
        talk::warn(&format!(
            "what is published passes by a rule for every port: {place}"
        ));
    }
    warn_of_shared_ports(&LocalPorts::of(host)?, plans);
    Ok(())
}

/// The reservation holds for those who name a port; whom the kernel gives one, it gives any.
fn warn_of_shared_ports(local: &LocalPorts, plans: &[&Plan]) {
    let mut published = PortSet::new();
    let forwards = plans.iter().flat_map(|plan| &plan.forwards);
    forwards
        .filter_map(|forward| PortRange::from_count(forward.host_port, forward.count))
        .for_each(|ports| published.insert_range(ports));
    let shared = local.shared_with(&published);
    let count = shared.ports().count();
    if count > 0 {
        talk::warn(&format!(
            "the kernel may give {} to connections of the host as well (net.ipv4.ip_local_port_range): their peers \
             cannot reach a container by {}; {}",
            named_ports(&shared, count),
            if count == 1 { "it" } else { "them" },
            local.reserve_command(&shared)
        ));
    }
}

/// Ports in words, of which there may be more than anybody reads.
fn named_ports(ports: &PortSet, count: usize) -> String {
    let ranges = ports.ranges();
    let listed: Vec<String> = ranges
        .iter()
        .take(LISTED)
        .map(ToString::to_string)
        .collect();
    let listed = listed.join(", ");
    match count {
        1 => format!("port {listed}"),
        _ if ranges.len() <= LISTED => format!("ports {listed}"),
        _ => format!("{count} ports ({listed} and others)"),
    }
}
