//! Routes of a namespace: where it sends by default, what it takes as its own, where one address leads.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::netlink::{self, NetlinkError, Session};
use super::netns::{Netns, NetnsError};

/// `RT_TABLE_UNSPEC` (which in a dump is every table), `RT_TABLE_MAIN` and `RT_TABLE_LOCAL` of `include/uapi/linux/rtnetlink.h`.
const TABLE_UNSPECIFIED: u8 = 0;
const TABLE_MAIN: u8 = 254;
const TABLE_LOCAL: u8 = 255;

/// A default route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DefaultRoute {
    /// Whether of IPv6.
    pub is_v6: bool,
    /// The device it leaves by (the first one, where it has several).
    pub ifindex: u32,
    /// The lower one is used.
    pub metric: u32,
}

/// Addresses that the namespace takes as its own by a route of type `local`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalRoute {
    /// A single address, or a range (`ip route add local 192.0.2.0/24 dev lo`).
    pub net: IpNet,
    /// The device the route stands on.
    pub ifindex: u32,
}

/// Where the namespace sends packets for one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The device they leave by.
    pub ifindex: u32,
    /// The next hop; None when the address is a neighbour on that device.
    pub gateway: Option<IpAddr>,
}

/// What a route lookup says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// To be sent.
    Unicast(Way),
    /// The namespace's own address.
    Local,
    /// Broadcast, multicast or anycast: no single container.
    Group,
    /// No route, or one that forbids.
    None,
}

/// Default routes of the main table, best first, IPv4 before IPv6.
pub async fn defaults(session: &mut Session) -> Result<Vec<DefaultRoute>, NetlinkError> {
    let mut found = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let routes = dump(session, family, TABLE_MAIN, RouteType::Unicast).await?;
        let defaults = routes
            .iter()
            .filter(|route| route.header.destination_prefix_length == 0);
        found.extend(defaults.filter_map(|route| {
            Some(DefaultRoute {
                is_v6: family == AddressFamily::Inet6,
                ifindex: device(route)?,
                metric: metric(route),
            })
        }));
    }
    found.sort_by_key(|route| (route.is_v6, route.metric));
    Ok(found)
}

/// Which way a packet for `address` would take from a namespace.
///
/// # Errors
/// When the namespace cannot be entered, or the kernel does not answer.
pub fn way_to(netns: &Netns, address: IpAddr) -> Result<Lookup, RoutesError> {
    netlink::converse(netns, async |session: &mut Session| {
        Ok(lookup(session, address).await?)
    })
}

/// The devices of IPv4 routes with several next hops: those that share a route, together.
///
/// # Errors
/// When the namespace cannot be entered, or the kernel does not answer.
pub fn shared(netns: &Netns) -> Result<Vec<BTreeSet<u32>>, RoutesError> {
    netlink::converse(netns, async |session: &mut Session| {
        let routes = dump(
            session,
            AddressFamily::Inet,
            TABLE_UNSPECIFIED,
            RouteType::Unicast,
        )
        .await?;
        Ok(together(routes.iter().map(next_hops)))
    })
}

/// Sets with an element in common become one. A set of one element says nothing.
fn together(sets: impl Iterator<Item = BTreeSet<u32>>) -> Vec<BTreeSet<u32>> {
    let mut found: Vec<BTreeSet<u32>> = Vec::new();
    for mut set in sets.filter(|set| set.len() > 1) {
        found.retain(|other| {
            let apart = other.is_disjoint(&set);
            if !apart {
                set.extend(other);
            }
            apart
        });
        found.push(set);
    }
    found
}

fn next_hops(route: &RouteMessage) -> BTreeSet<u32> {
    let hops = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::MultiPath(hops) => Some(hops),
            _ => None,
        });
    hops.into_iter()
        .flatten()
        .map(|hop| hop.interface_index)
        .collect()
}

/// Why routes cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RoutesError {
    /// The namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The kernel does not answer.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// Routes of type `local` of both families: the namespace's own addresses and AnyIP ranges.
pub async fn locals(session: &mut Session) -> Result<Vec<LocalRoute>, NetlinkError> {
    let mut found = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let routes = dump(session, family, TABLE_LOCAL, RouteType::Local).await?;
        found.extend(routes.iter().filter_map(|route| {
            Some(LocalRoute {
                net: IpNet::new(destination(route)?, route.header.destination_prefix_length)
                    .ok()?,
                ifindex: device(route)?,
            })
        }));
    }
    Ok(found)
}

/// A network that the namespace sends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkRoute {
    /// Its addresses; all of the family for a default route.
    pub net: IpNet,
    /// The device packets leave by (the first one, where it has several).
    pub ifindex: u32,
}

/// Unicast routes of both families, in every table.
pub async fn networks(session: &mut Session) -> Result<Vec<NetworkRoute>, NetlinkError> {
    let mut found = Vec::new();
    for (family, all) in [
        (AddressFamily::Inet, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        (AddressFamily::Inet6, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
    ] {
        let routes = dump(session, family, TABLE_UNSPECIFIED, RouteType::Unicast).await?;
        found.extend(routes.iter().filter_map(|route| {
            let address = destination(route).unwrap_or(all);
            Some(NetworkRoute {
                net: IpNet::new(address, route.header.destination_prefix_length).ok()?,
                ifindex: device(route)?,
            })
        }));
    }
    Ok(found)
}

/// Asks the kernel which way a packet for `address` would take.
pub async fn lookup(session: &mut Session, address: IpAddr) -> Result<Lookup, NetlinkError> {
    let mut message = RouteMessage::default();
    let (family, bits) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    message.header.address_family = family;
    message.header.destination_prefix_length = bits;
    message
        .attributes
        .push(RouteAttribute::Destination(address.into()));
    let request = format!("look up the route to {address}");
    match session
        .get(&request, RouteNetlinkMessage::GetRoute(message))
        .await
    {
        Ok(RouteNetlinkMessage::NewRoute(route)) => Ok(judge(&route)),
        Ok(_) => Ok(Lookup::None),
        // The errors of routes of type unreachable, prohibit and blackhole, and of no route at all.
        Err(error) => match error.errno() {
            Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES | Errno::EINVAL) => {
                Ok(Lookup::None)
            }
            _ => Err(error),
        },
    }
}

/// What a route means to a packet.
#[must_use]
pub fn judge(route: &RouteMessage) -> Lookup {
    match route.header.kind {
        RouteType::Local => Lookup::Local,
        RouteType::Broadcast | RouteType::Multicast | RouteType::Anycast => Lookup::Group,
        RouteType::Unicast => match device(route) {
            Some(ifindex) => Lookup::Unicast(Way {
                ifindex,
                gateway: gateway(route),
            }),
            None => Lookup::None,
        },
        _ => Lookup::None,
    }
}

async fn dump(
    session: &mut Session,
    family: AddressFamily,
    table: u8,
    kind: RouteType,
) -> Result<Vec<RouteMessage>, NetlinkError> {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.table = table;
    message.header.kind = kind;
    let request = RouteNetlinkMessage::GetRoute(message);
    let answers = match session.dump("list routes", &request).await {
        Ok(answers) => answers,
        // No such table yet (nothing was ever routed), or a kernel without IPv6.
        Err(error)
            if matches!(
                error.errno(),
                Some(Errno::ENOENT | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT)
            ) =>
        {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    let routes = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewRoute(route) => Some(route),
        _ => None,
    });
    Ok(routes.filter(|route| route.header.kind == kind).collect())
}

/// The device of a route; of the first next hop, where it has several.
fn device(route: &RouteMessage) -> Option<u32> {
    route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            RouteAttribute::MultiPath(hops) => hops.first().map(|hop| hop.interface_index),
            _ => None,
        })
}

fn metric(route: &RouteMessage) -> u32 {
    let found = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Priority(metric) => Some(*metric),
            _ => None,
        });
    found.unwrap_or(0)
}

fn destination(route: &RouteMessage) -> Option<IpAddr> {
    route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(address) => ip(address),
            _ => None,
        })
}

fn gateway(route: &RouteMessage) -> Option<IpAddr> {
    use netlink_packet_route::route::RouteVia;
    route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Gateway(address) => ip(address),
            RouteAttribute::Via(RouteVia::Inet6(address)) => Some(IpAddr::V6(*address)),
            RouteAttribute::Via(RouteVia::Inet(address)) => Some(IpAddr::V4(*address)),
            _ => None,
        })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_that_share_a_route_are_together_however_far_the_chain_goes() {
        let sets = [
            vec![1, 2],
            vec![3],
            vec![4, 5],
            vec![2, 6],
            vec![],
            vec![6, 5],
        ];
        let found = together(sets.into_iter().map(BTreeSet::from_iter));
        assert_eq!(found, [BTreeSet::from([1, 2, 4, 5, 6])]);
        assert_eq!(together([BTreeSet::from([3])].into_iter()), []);
    }
}
