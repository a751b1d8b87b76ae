//! A container's link: its interface and addresses, and the end of the pair that lies on the host.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::errno::Errno;

use super::addresses::{self, Assigned, Place};
use super::links::{self, Link, LinkKind};
use super::netlink::{self, NetlinkError, Session};
use super::netns::{Netns, NetnsError};
use super::routes::{self, Lookup, Way};

/// Where a container is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerLink {
    /// The container's interface; None when only an address is known.
    pub interface: Option<Link>,
    /// Every address on that interface that others can reach: the sources the container may send from.
    pub addresses: Vec<IpAddr>,
    /// The IPv4 address that ports are published to.
    pub v4: Option<Ipv4Addr>,
    /// The IPv6 address that ports are published to.
    pub v6: Option<Ipv6Addr>,
    /// The host's end of the pair; None when there is none in the host's namespace: then packets go
    /// through the host's stack.
    pub host: Option<HostEnd>,
}

/// The end of a container's pair that lies in the host's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostEnd {
    /// The link itself: the place for the hook on the container's packets.
    pub link: Link,
    /// The device the host routes the container's packets by: the bridge that the link is a port of, or
    /// the link itself.
    pub l3_ifindex: u32,
}

/// Why a container's link cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// A namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The kernel does not answer.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The container has no network namespace of its own.
    #[error("network namespace {netns} is the host's own: what listens there needs no publishing")]
    HostNetwork {
        /// Path or process.
        netns: String,
    },
    /// No interface that could be reached.
    #[error("no interface with an address is up in network namespace {netns}{}", list_links(.found))]
    NoInterface {
        /// Path or process.
        netns: String,
        /// What is there instead, `lo` apart: name and state.
        found: Vec<(String, &'static str)>,
    },
    /// The container has its own place on the network, by macvlan or ipvlan.
    #[error(
        "interface {interface} of the container is a {kind}: it has its own address on that network, {}",
        first(.addresses)
    )]
    OwnAddress {
        /// Name of the container's interface.
        interface: String,
        /// Its kind.
        kind: LinkKind,
        /// The addresses to use instead.
        addresses: Vec<IpAddr>,
    },
    /// The host cannot send to the address.
    #[error("no route to {0}")]
    NoRoute(IpAddr),
    /// The address is the host's own.
    #[error("{0} is an address of the host itself")]
    HostAddress(IpAddr),
    /// The address is no container's: broadcast, multicast, loopback, link-local or unspecified.
    #[error("{0} is not the address of a container")]
    NotUnicast(IpAddr),
    /// Two addresses that were named together lead to different containers.
    #[error("{} and {} lead to different links: {}, {}", .0.0, .1.0, .0.1, .1.1)]
    DifferentLinks((IpAddr, String), (IpAddr, String)),
}

impl ContainerError {
    /// What to do instead.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::OwnAddress { addresses, .. } => Some(format!(
                "connect to {} itself; nothing has to be published",
                first(addresses)
            )),
            Self::NoInterface { .. } => Some("give the container a network first".to_owned()),
            Self::NoRoute(_) => {
                Some("see `ip route get` in the host's network namespace".to_owned())
            }
            _ => None,
        }
    }
}

fn first(addresses: &[IpAddr]) -> String {
    addresses
        .first()
        .map_or_else(|| "none".to_owned(), IpAddr::to_string)
}

fn list_links(found: &[(String, &'static str)]) -> String {
    let mut text = String::new();
    for (name, state) in found {
        let separator = if text.is_empty() { ": " } else { ", " };
        // Writing to a String cannot fail.
        let _ = write!(text, "{separator}{name} {state}");
    }
    text
}

/// The container's interface and addresses, as its own namespace shows them.
struct Inside {
    link: Link,
    addresses: Vec<Assigned>,
}

/// Finds the link of the container whose namespace this is.
///
/// The interface with the default route (IPv4's before IPv6's), else the first one that is up and has an
/// address that others can reach.
///
/// # Errors
/// When there is no such interface; when it is a macvlan or ipvlan; when it has no end in the host's
/// namespace and the host has no route to it.
pub fn find(host: &Netns, container: &Netns) -> Result<ContainerLink, ContainerError> {
    if host.is_same(container) {
        return Err(ContainerError::HostNetwork {
            netns: container.origin().to_string(),
        });
    }
    let netns = container.origin().to_string();
    let inside = netlink::converse(container, async |session: &mut Session| {
        look_inside(session, netns).await
    })?;
    netlink::converse(host, async |session: &mut Session| {
        let end = match host_end(session, &inside.link, container).await? {
            Some(end) => Some(end),
            None => {
                check_routes(session, &inside.addresses).await?;
                None
            }
        };
        Ok(describe(Some(inside.link), &inside.addresses, end))
    })
}

/// Finds the link that leads to addresses of a container of which nothing else is known. Without any
/// link that is surely the container's, packets go through the stack.
///
/// # Errors
/// When the host cannot send to an address or owns it, or when the addresses are two containers'.
pub fn find_by_address(host: &Netns, ips: &[IpAddr]) -> Result<ContainerLink, ContainerError> {
    netlink::converse(host, async |session: &mut Session| {
        locate_all(session, ips).await
    })
}

async fn look_inside(session: &mut Session, netns: String) -> Result<Inside, ContainerError> {
    let all = links::list(session).await?;
    let mut assigned = addresses::list(session, Place::Everywhere).await?;
    assigned.retain(Assigned::is_reachable);
    let usable: Vec<&Link> = all
        .iter()
        .filter(|link| link.up && link.kind != LinkKind::Loopback)
        .filter(|link| assigned.iter().any(|own| own.ifindex == link.index))
        .collect();
    let chosen = match usable.as_slice() {
        [] => return Err(no_interface(netns, &all)),
        [only] => *only,
        several => {
            let defaults = routes::defaults(session).await?;
            let by_default = defaults
                .iter()
                .find_map(|route| several.iter().find(|link| link.index == route.ifindex));
            *by_default.unwrap_or(&several[0])
        }
    };
    assigned.retain(|own| own.ifindex == chosen.index);
    if matches!(chosen.kind, LinkKind::Macvlan | LinkKind::Ipvlan) {
        return Err(ContainerError::OwnAddress {
            interface: chosen.name.clone(),
            kind: chosen.kind.clone(),
            addresses: assigned.iter().map(|own| own.ip).collect(),
        });
    }
    Ok(Inside {
        link: chosen.clone(),
        addresses: assigned,
    })
}

fn no_interface(netns: String, links: &[Link]) -> ContainerError {
    let others = links.iter().filter(|link| link.kind != LinkKind::Loopback);
    let found = others.map(|link| {
        (
            link.name.clone(),
            if link.up { "has no address" } else { "is down" },
        )
    });
    ContainerError::NoInterface {
        netns,
        found: found.collect(),
    }
}

/// The host's end of a pair. Interface indexes repeat from namespace to namespace, so both ends must
/// name each other, and the host's end must name the container's namespace.
async fn host_end(
    session: &mut Session,
    inside: &Link,
    container: &Netns,
) -> Result<Option<HostEnd>, NetlinkError> {
    let (true, Some(index), Some(_)) =
        (inside.kind.is_pair(), inside.peer_index, inside.peer_netns)
    else {
        return Ok(None);
    };
    let Some(link) = links::by_index(session, index, None).await? else {
        return Ok(None);
    };
    // Asked after the link was read: reading a link is what makes the kernel assign the ID.
    let netns = links::netns_id(session, container).await?;
    let is_peer = link.kind == inside.kind
        && link.peer_index == Some(inside.index)
        && netns.is_some()
        && link.peer_netns == netns;
    if !is_peer {
        return Ok(None);
    }
    Ok(Some(with_l3_device(session, link).await?))
}

/// A bridge routes for its ports; a VRF, bond or Open vSwitch master does not.
async fn with_l3_device(session: &mut Session, link: Link) -> Result<HostEnd, NetlinkError> {
    let bridge = match link.master {
        None => None,
        Some(master) => links::by_index(session, master, None)
            .await?
            .filter(|master| master.kind == LinkKind::Bridge),
    };
    let l3_ifindex = bridge.map_or(link.index, |bridge| bridge.index);
    Ok(HostEnd { link, l3_ifindex })
}

async fn check_routes(session: &mut Session, targets: &[Assigned]) -> Result<(), ContainerError> {
    let v4 = target(targets, IpAddr::is_ipv4);
    let v6 = target(targets, IpAddr::is_ipv6);
    for ip in v4.into_iter().chain(v6) {
        way_to(session, ip).await?;
    }
    Ok(())
}

async fn way_to(session: &mut Session, ip: IpAddr) -> Result<Way, ContainerError> {
    let special = ip.is_unspecified()
        || ip.is_multicast()
        || addresses::is_loopback(ip)
        || addresses::is_link_local(ip);
    if special {
        return Err(ContainerError::NotUnicast(ip));
    }
    match routes::lookup(session, ip).await? {
        Lookup::Unicast(way) => Ok(way),
        Lookup::Local => Err(ContainerError::HostAddress(ip)),
        Lookup::Group => Err(ContainerError::NotUnicast(ip)),
        Lookup::None => Err(ContainerError::NoRoute(ip)),
    }
}

/// A link of the host and what is known of its peer.
struct Located {
    end: HostEnd,
    addresses: Vec<Assigned>,
}

async fn locate_all(
    session: &mut Session,
    ips: &[IpAddr],
) -> Result<ContainerLink, ContainerError> {
    let mut found: Option<(IpAddr, Option<Located>)> = None;
    for ip in ips {
        let here = locate(session, *ip).await?;
        match &found {
            None => found = Some((*ip, here)),
            Some((first, there)) if name_of(there.as_ref()) != name_of(here.as_ref()) => {
                return Err(ContainerError::DifferentLinks(
                    (*first, name_of(there.as_ref())),
                    (*ip, name_of(here.as_ref())),
                ));
            }
            Some(_) => {}
        }
    }
    let located = found.and_then(|(_, located)| located);
    let Some(Located { end, addresses }) = located else {
        return Ok(only_addresses(ips));
    };
    let interface = match (end.link.peer_index, end.link.peer_netns) {
        (Some(index), netns @ Some(_)) => links::by_index(session, index, netns).await?,
        _ => None,
    };
    // What the user named is published to, whatever else the interface has.
    let named = only_addresses(ips);
    let described = describe(interface, &addresses, Some(end));
    Ok(ContainerLink {
        v4: named.v4,
        v6: named.v6,
        ..described
    })
}

fn name_of(located: Option<&Located>) -> String {
    located.map_or_else(
        || "none".to_owned(),
        |located| located.end.link.name.clone(),
    )
}

/// The pair whose other end has the address. Asking the peer's own namespace for its addresses is
/// certain; a neighbour or forwarding entry would only say who answered last.
async fn locate(session: &mut Session, ip: IpAddr) -> Result<Option<Located>, ContainerError> {
    let way = way_to(session, ip).await?;
    if way.gateway.is_some() {
        return Ok(None);
    }
    let Some(device) = links::by_index(session, way.ifindex, None).await? else {
        return Ok(None);
    };
    let candidates = if device.kind == LinkKind::Bridge {
        let mut ports = links::list(session).await?;
        ports.retain(|link| link.master == Some(device.index));
        ports
    } else {
        vec![device]
    };
    for link in candidates.into_iter().filter(|link| link.kind.is_pair()) {
        let assigned = peer_addresses(session, &link).await?;
        if assigned.iter().any(|own| own.ip == ip) {
            let end = with_l3_device(session, link).await?;
            return Ok(Some(Located {
                end,
                addresses: assigned,
            }));
        }
    }
    Ok(None)
}

/// Addresses of the other end of a pair; none when we may not look into its namespace.
async fn peer_addresses(session: &mut Session, link: &Link) -> Result<Vec<Assigned>, NetlinkError> {
    let (Some(ifindex), Some(netns)) = (link.peer_index, link.peer_netns) else {
        return Ok(Vec::new());
    };
    match addresses::list(session, Place::LinkIn { ifindex, netns }).await {
        Ok(mut assigned) => {
            assigned.retain(Assigned::is_reachable);
            Ok(assigned)
        }
        // A namespace of a foreign user namespace, or one that is going away right now.
        Err(error)
            if matches!(
                error.errno(),
                Some(Errno::EACCES | Errno::EINVAL | Errno::ENODEV)
            ) =>
        {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

fn describe(
    interface: Option<Link>,
    assigned: &[Assigned],
    host: Option<HostEnd>,
) -> ContainerLink {
    let targets = [
        target(assigned, IpAddr::is_ipv4),
        target(assigned, IpAddr::is_ipv6),
    ];
    let targets: Vec<IpAddr> = targets.into_iter().flatten().collect();
    ContainerLink {
        interface,
        addresses: assigned.iter().map(|own| own.ip).collect(),
        host,
        ..only_addresses(&targets)
    }
}

/// The address of a family to publish to: the first one that is meant to stay.
fn target(assigned: &[Assigned], of_family: impl Fn(&IpAddr) -> bool) -> Option<IpAddr> {
    let of_family: Vec<&Assigned> = assigned.iter().filter(|own| of_family(&own.ip)).collect();
    let lasting = of_family
        .iter()
        .find(|own| !own.secondary && !own.deprecated);
    lasting.or(of_family.first()).map(|own| own.ip)
}

fn only_addresses(ips: &[IpAddr]) -> ContainerLink {
    let v4 = ips.iter().find_map(|ip| match ip {
        IpAddr::V4(v4) => Some(*v4),
        IpAddr::V6(_) => None,
    });
    let v6 = ips.iter().find_map(|ip| match ip {
        IpAddr::V6(v6) => Some(*v6),
        IpAddr::V4(_) => None,
    });
    ContainerLink {
        interface: None,
        addresses: ips.to_vec(),
        v4,
        v6,
        host: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assigned(ip: &str) -> Assigned {
        Assigned {
            ip: ip.parse().unwrap(),
            prefix: 24,
            ifindex: 2,
            secondary: false,
            deprecated: false,
            duplicate: false,
        }
    }

    #[test]
    fn a_temporary_or_deprecated_address_is_published_to_only_when_there_is_no_other() {
        let temporary = Assigned {
            secondary: true,
            ..assigned("fd88::aaaa")
        };
        let deprecated = Assigned {
            deprecated: true,
            ..assigned("fd88::bbbb")
        };
        let lasting = assigned("fd88::2");
        let all = [temporary, deprecated, lasting];
        assert_eq!(target(&all, IpAddr::is_ipv6), Some(lasting.ip));
        assert_eq!(target(&all[..2], IpAddr::is_ipv6), Some(temporary.ip));
        assert_eq!(target(&all, IpAddr::is_ipv4), None);
    }

    #[test]
    fn the_message_about_a_namespace_without_a_network_names_what_is_there() {
        let error = ContainerError::NoInterface {
            netns: "/run/netns/web".to_owned(),
            found: vec![
                ("eth0".to_owned(), "is down"),
                ("eth1".to_owned(), "has no address"),
            ],
        };
        assert_eq!(
            error.to_string(),
            "no interface with an address is up in network namespace /run/netns/web: \
             eth0 is down, eth1 has no address"
        );
    }
}
