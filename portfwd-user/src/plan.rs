//! What an attach or a repoint is going to do, as data: pure.

mod succession;

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use portfwd_common::{
    forward::{Delivery, Forward, PortSlot},
    host::Attachment,
    net::Ip,
};

pub use succession::{Leaving, follow};

use crate::{
    collision::Resolved,
    connection::Connection,
    error::{ContainerError, Error},
    label::Label,
    observe::{container::ContainerLink, links},
    policy::Policy,
    report::Published,
    state::{Owned, Piece, State},
    transaction::NewForward,
};

/// Where the container is.
#[derive(Clone, Debug)]
pub enum Found {
    /// As its namespace (of that cookie; 0: by address) shows it.
    Link(Box<ContainerLink>, u64),
    /// As an earlier attach found it.
    Known(Attachment),
    /// In a namespace (of that cookie) that has no link to the host yet.
    Unconnected(Connection, u64),
}

/// The host-side link of a container that gets its hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkPlan {
    /// The link.
    pub link: links::Link,
    /// Interface index of the device that routes for it.
    pub l3_ifindex: u32,
    /// Addresses that the container may send from.
    pub sources: Vec<IpAddr>,
}

/// What an attach does.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The container.
    pub label: Label,
    /// Its record as it will be; the ID is 0 if it has none yet.
    pub container: Attachment,
    /// Whether the record exists already.
    pub known: bool,
    /// The link to make first, if there is none: the plan is then for what [`Plan::onto`] makes of it.
    pub connection: Option<Connection>,
    /// The link to hook, if there is one.
    pub link: Option<LinkPlan>,
    /// The device inside the container that gets a hook, if its service may listen on loopback alone.
    pub inside: Option<links::Link>,
    /// Its addresses; none if they are not to be recorded (anew).
    pub addresses: BTreeSet<IpAddr>,
    /// Whether what comes from them is masqueraded from now on.
    pub masquerade: bool,
    /// Who may open connections to what has no policy yet.
    pub policy: Policy,
    /// The forwards to publish; attachment and policy are filled in on execution.
    pub forwards: Vec<NewForward>,
    /// Everything that was asked for, as it will be listed.
    pub published: Vec<Published>,
    /// Who got until now what it takes, where it was told to: a line each.
    pub shadowed: BTreeSet<String>,
    /// Where others' rules for every port are that it passes by.
    pub passed_by: BTreeSet<String>,
    /// What goes at the same instant.
    pub leaving: Leaving,
}

/// What an attach was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// What to publish, its host ports settled.
    pub resolved: &'a [Resolved],
    /// Whether services listen on the container's loopback address alone.
    pub loopback: bool,
    /// Who may open connections.
    pub policy: &'a Policy,
    /// Whether what the container sends is masqueraded.
    pub masquerade: bool,
    /// Whether the container may be another one than the one that is known.
    pub replace: bool,
}

/// Plans an attach of `resolved` to the container, with `loopback` for a service that may listen on its
/// loopback address alone.
///
/// # Errors
/// When the container is known elsewhere or has moved, or has no address of a family that is asked for.
pub fn attach(
    label: &Label,
    known: Option<&Attachment>,
    found: &Found,
    asked: &Asked<'_>,
) -> Result<Plan, Error> {
    let Asked {
        resolved,
        loopback,
        policy,
        masquerade,
        replace,
    } = *asked;
    let container = container(label, known, found, replace)?;
    let mut forwards = Vec::new();
    let mut published = Vec::new();
    for item in resolved {
        for host in item.spec.hosts() {
            let target = if host.is_ipv4() {
                container.v4
            } else {
                container.v6
            };
            if target.is_unspecified() && item.spec.host.is_some() {
                return Err(ContainerError::NoFamily {
                    label: label.clone(),
                    host,
                }
                .into());
            }
            if !target.is_unspecified() {
                published.push(as_listed(label, item, host, target));
            }
            if replace || item.hosts.contains(&host) {
                forwards.push(NewForward {
                    loopback,
                    ..new_forward(&container, item, host, target)
                });
            }
        }
    }
    Ok(Plan {
        forwards,
        published,
        policy: policy.clone(),
        ..Plan::for_container(label, container, found, loopback, masquerade)
    })
}

/// Plans that new connections through the forwards `moved` go to container `to`, `drained` as
/// [`Leaving::drained`].
///
/// # Errors
/// When that container is known elsewhere or has moved, or has no address of a family that is published on one
/// address of the host.
pub fn repoint(
    to: &Label,
    known: Option<&Attachment>,
    found: &Found,
    moved: &[&Owned],
    drained: Option<u64>,
) -> Result<Plan, Error> {
    let container = container(to, known, found, false)?;
    let mut forwards = Vec::new();
    let mut published = Vec::new();
    for owned in moved {
        let (held, record) = (&owned.held, owned.record());
        let target = match held.host {
            IpAddr::V4(_) => container.v4,
            IpAddr::V6(_) => container.v6,
        };
        if target.is_unspecified() && !held.host.is_unspecified() {
            let (label, host) = (to.clone(), held.host);
            return Err(ContainerError::NoFamily { label, host }.into());
        }
        if !target.is_unspecified() {
            published.push(Published {
                container: to.clone(),
                protocol: held.protocol,
                host_ip: held.host,
                host_port: held.ports.first(),
                count: held.ports.count(),
                container_ip: IpAddr::from(target),
                container_port: held.container.first(),
            });
        }
        forwards.push(NewForward {
            attachment: container.id,
            protocol: held.protocol,
            host: record.host,
            host_port: held.ports.first(),
            count: held.ports.count(),
            target,
            target_port: held.container.first(),
            link: container.link,
            delivery: delivery(&container),
            loopback: record.serves_loopback(),
            policy: record.policy,
            policy_flags: record.flags & !(Forward::LOOPBACK | Forward::CONTINUES),
            former: PortSlot::from_bits(0),
            continues: false,
        });
    }
    let loopback = forwards.iter().any(|forward| forward.loopback);
    let pieces: Vec<Piece> = moved
        .iter()
        .flat_map(|owned| &owned.pieces)
        .copied()
        .collect();
    Ok(Plan {
        forwards: succession::following(&forwards, &pieces),
        published,
        leaving: Leaving {
            forwards: pieces.iter().map(|piece| piece.index).collect(),
            drained,
            ..Leaving::default()
        },
        ..Plan::for_container(to, container, found, loopback, false)
    })
}

impl Plan {
    /// A plan that publishes nothing yet.
    fn for_container(
        label: &Label,
        container: Attachment,
        found: &Found,
        loopback: bool,
        masquerade: bool,
    ) -> Self {
        let (observed, connection) = match found {
            Found::Link(observed, _) => (Some(observed), None),
            Found::Unconnected(connection, _) => (None, Some(connection.clone())),
            Found::Known(_) => (None, None),
        };
        Self {
            label: label.clone(),
            container,
            known: container.id != 0,
            connection,
            link: observed.and_then(|observed| link(observed)),
            inside: observed.and_then(|observed| observed.interface.clone().filter(|_| loopback)),
            addresses: observed.map_or_else(BTreeSet::new, |observed| {
                addresses(&container, observed, masquerade)
            }),
            masquerade,
            policy: Policy::default(),
            forwards: Vec::new(),
            published: Vec::new(),
            shadowed: BTreeSet::new(),
            passed_by: BTreeSet::new(),
            leaving: Leaving::default(),
        }
    }

    /// The same in place of what the name has published until now, as `state` has it. What is published again to
    /// the same container stays, with its connections; all others end. See [`follow`].
    #[must_use]
    pub fn in_place_of(self, state: &State) -> Self {
        let own = state.of(&self.label);
        let is_again = |new: &NewForward, owned: &Owned| {
            self.known && is_as_it_was(new, owned) && state.policy_of(owned) == self.policy
        };
        let mut new: HashMap<Place, NewForward> = self
            .forwards
            .iter()
            .map(|new| (place_of_new(new), *new))
            .collect();
        let mut stays = |owned: &Owned| {
            // Of the same container what drains goes on.
            if owned.record().until != Forward::FOREVER {
                return self.known;
            }
            let place = place_of(owned);
            let again = new.get(&place).is_some_and(|new| is_again(new, owned));
            if again {
                new.remove(&place);
            }
            again
        };
        let goes: Vec<&Owned> = own.into_iter().filter(|owned| !stays(owned)).collect();
        let is_new = |asked: &NewForward| new.contains_key(&place_of_new(asked));
        let forwards = self.forwards.iter().copied().filter(is_new).collect();
        let former = goes.iter().map(|owned| owned.record().attachment);
        Self {
            forwards,
            leaving: Leaving {
                forwards: goes.iter().flat_map(|owned| owned.indexes()).collect(),
                containers: former.filter(|id| *id != self.container.id).collect(),
                ..Leaving::default()
            },
            ..self
        }
    }

    /// Whether there is nothing to publish, withdraw or connect.
    #[must_use]
    pub fn is_as_it_was(&self) -> bool {
        self.connection.is_none() && self.forwards.is_empty() && self.leaving.is_empty()
    }

    /// What is published that was not before; asked before [`follow`], which may put it in pieces.
    pub fn newly_published(&self) -> impl Iterator<Item = Published> {
        let new = self.forwards.iter();
        let new = new.filter(|forward| !forward.target.is_unspecified());
        new.map(|forward| Published {
            container: self.label.clone(),
            protocol: forward.protocol,
            host_ip: IpAddr::from(forward.host),
            host_port: forward.host_port,
            count: forward.count,
            container_ip: IpAddr::from(forward.target),
            container_port: forward.target_port,
        })
    }

    /// The same once the container's link has been made.
    #[must_use]
    pub fn onto(&self, made: &ContainerLink) -> Self {
        let container = Attachment {
            link: link_index(made),
            ..self.container
        };
        let forward = |forward: &NewForward| NewForward {
            link: container.link,
            delivery: delivery(&container),
            ..*forward
        };
        let loopback = self.forwards.iter().any(|forward| forward.loopback);
        Self {
            container,
            connection: None,
            link: link(made),
            inside: made.interface.clone().filter(|_| loopback),
            addresses: addresses(&container, made, self.masquerade),
            forwards: self.forwards.iter().map(forward).collect(),
            ..self.clone()
        }
    }
}

/// Refuses what exists already for the other kind of listener, or for other clients: it would stay as it is.
///
/// # Errors
/// When there is such a forward.
pub fn check_existing(label: &Label, state: &State, asked: &Asked<'_>) -> Result<(), Error> {
    let loopback = asked.loopback;
    let own = state
        .forwards
        .iter()
        .filter(|forward| forward.owner == *label);
    let own: HashMap<Place, &Owned> = own.map(|forward| (place_of(forward), forward)).collect();
    for item in asked.resolved {
        let same_ports = |forward: &&Owned| {
            let held = &forward.held;
            (held.ports, held.container) == (item.ports, item.spec.container)
        };
        let place = |host: IpAddr| (item.spec.protocol.number(), host, item.ports.first());
        let existing = item
            .spec
            .hosts()
            .filter_map(|host| own.get(&place(host)).copied());
        let existing: Vec<&Owned> = existing.filter(same_ports).collect();
        let mut policies = existing.iter().map(|forward| state.policy_of(forward));
        if policies.any(|policy| policy != *asked.policy) {
            return Err(ContainerError::OtherPolicy {
                label: label.clone(),
                spec: item.spec,
            }
            .into());
        }
        let mut listeners = existing
            .iter()
            .map(|forward| forward.record().serves_loopback());
        if listeners.any(|serves| serves != loopback) {
            return Err(ContainerError::OtherListener {
                label: label.clone(),
                spec: item.spec,
                loopback,
            }
            .into());
        }
    }
    Ok(())
}

/// Number of the protocol, host address and first host port: no two forwards that open connections have one in common.
type Place = (u8, IpAddr, u16);

fn place_of(owned: &Owned) -> Place {
    let held = &owned.held;
    (held.protocol.number(), held.host, held.ports.first())
}

fn place_of_new(new: &NewForward) -> Place {
    let host = IpAddr::from(new.host);
    (new.protocol.number(), host, new.host_port)
}

/// All that the container sends from, as its namespace shows it. A target elsewhere is no part of this
/// host unless it is to be masqueraded here.
fn addresses(
    container: &Attachment,
    observed: &ContainerLink,
    masquerade: bool,
) -> BTreeSet<IpAddr> {
    if container.link == 0 && !masquerade {
        return BTreeSet::new();
    }
    let published = [container.v4, container.v6];
    let published = published.into_iter().filter(|ip| !ip.is_unspecified());
    let all = published
        .map(IpAddr::from)
        .chain(observed.addresses.iter().copied());
    all.map(|ip| ip.to_canonical()).collect()
}

fn link(observed: &ContainerLink) -> Option<LinkPlan> {
    observed.host.as_ref().map(|end| LinkPlan {
        link: end.link.clone(),
        l3_ifindex: end.l3_ifindex,
        sources: observed.addresses.clone(),
    })
}

fn link_index(observed: &ContainerLink) -> u32 {
    observed.host.as_ref().map_or(0, |end| end.link.index)
}

/// Whether a forward would be what there is.
fn is_as_it_was(new: &NewForward, owned: &Owned) -> bool {
    let (held, record) = (&owned.held, owned.record());
    let ports = (
        held.ports.first(),
        held.ports.count(),
        held.container.first(),
    );
    let opens = record.until == Forward::FOREVER;
    opens
        && record.protocol == new.protocol.number()
        && (record.host, record.target) == (new.host, new.target)
        && ports == (new.host_port, new.count, new.target_port)
        && record.serves_loopback() == new.loopback
}

/// The container's record: as it is known, or new; with `replace` another one than the known may be found.
fn container(
    label: &Label,
    known: Option<&Attachment>,
    found: &Found,
    replace: bool,
) -> Result<Attachment, Error> {
    let new = |link: u32, v4: Option<IpAddr>, v6: Option<IpAddr>, netns: u64| Attachment {
        id: 0,
        link,
        v4: v4.map_or(Ip::NONE, Ip::from),
        v6: v6.map_or(Ip::NONE, Ip::from),
        netns,
        created: 0,
        label: label.key(),
    };
    let fresh = match found {
        Found::Known(attachment) => *attachment,
        Found::Link(link, netns) => {
            let (v4, v6) = (link.v4.map(IpAddr::V4), link.v6.map(IpAddr::V6));
            new(link_index(link), v4, v6, *netns)
        }
        Found::Unconnected(connection, netns) => new(0, connection.v4(), connection.v6(), *netns),
    };
    match known {
        None => Ok(fresh),
        Some(known) if is_same(known, &fresh) => Ok(Attachment {
            id: known.id,
            netns: known.netns.max(fresh.netns),
            created: known.created,
            ..fresh
        }),
        Some(_) if replace => Ok(fresh),
        Some(known) => Err(ContainerError::KnownElsewhere {
            label: label.clone(),
            known: whereabouts(known),
            asked: whereabouts(&fresh),
        }
        .into()),
    }
}

/// Whether what is published leads to what was found: the same link, and the same addresses. Only by
/// namespace (a cookie is never used twice) a container may have got a family that it did not have.
fn is_same(known: &Attachment, asked: &Attachment) -> bool {
    let both_by_netns = known.netns != 0 && asked.netns != 0;
    let kept = |old: Ip, new: Ip| old == new || (both_by_netns && old.is_unspecified());
    let same_netns = !both_by_netns || known.netns == asked.netns;
    let same_addresses = kept(known.v4, asked.v4) && kept(known.v6, asked.v6);
    same_netns && same_addresses && known.link == asked.link
}

fn whereabouts(attachment: &Attachment) -> String {
    let addresses = [attachment.v4, attachment.v6];
    let addresses: Vec<String> = addresses
        .into_iter()
        .filter(|address| !address.is_unspecified())
        .map(|address| IpAddr::from(address).to_string())
        .collect();
    let mut text = format!("address {}", addresses.join(" and "));
    if attachment.link != 0 {
        text.push_str(&format!(" by link {}", attachment.link));
    }
    if attachment.netns != 0 {
        text.push_str(&format!(" in network namespace {}", attachment.netns));
    }
    text
}

fn as_listed(label: &Label, item: &Resolved, host: IpAddr, target: Ip) -> Published {
    Published {
        container: label.clone(),
        protocol: item.spec.protocol,
        host_ip: host,
        host_port: item.ports.first(),
        count: item.ports.count(),
        container_ip: IpAddr::from(target),
        container_port: item.spec.container.first(),
    }
}

fn new_forward(container: &Attachment, item: &Resolved, host: IpAddr, target: Ip) -> NewForward {
    NewForward {
        attachment: container.id,
        protocol: item.spec.protocol,
        host: Ip::from(host),
        host_port: item.ports.first(),
        count: item.ports.count(),
        target,
        target_port: item.spec.container.first(),
        link: container.link,
        delivery: delivery(container),
        loopback: false,
        policy: 0,
        policy_flags: 0,
        former: PortSlot::from_bits(0),
        continues: false,
    }
}

const fn delivery(container: &Attachment) -> Delivery {
    match container.link {
        0 => Delivery::Stack,
        _ => Delivery::Redirect,
    }
}
