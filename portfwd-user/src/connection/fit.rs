//! Whether a connection can be made between a host and a container as they are: pure.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Connection, Ends};
use crate::observe::{
    links::Link,
    networks::{Networks, Placed},
};

/// A route with at most so many bits leads everywhere, so that every subnet lies within: a default route, or a
/// part of one (0.0.0.0/1 of OpenVPN's `def1`, or 2000::/3).
const EVERYWHERE: u8 = 3;

/// Which side lacks something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The host.
    Host,
    /// The container.
    Container,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Container => "container",
        })
    }
}

/// A connection cannot be made (exit code 1).
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConnectError {
    /// The host has an address that was asked for.
    #[error("{address} is an address of the host already")]
    HostAddress {
        /// The address.
        address: IpAddr,
        /// Where it is.
        holder: Placed,
    },
    /// It would take the traffic of another network.
    #[error("subnet {subnet} overlaps a network of the host, {}", holder.net)]
    Overlap {
        /// What was asked for.
        subnet: IpNet,
        /// What is there.
        holder: Placed,
    },
    /// The container has a network of its own.
    #[error("the container has an address already, {}", .0.net)]
    HasAddress(Placed),
    /// The container sends elsewhere by default.
    #[error("the container has a default route already, {}", .0.net)]
    HasDefault(Placed),
    /// The container is connected, but not so.
    #[error("the container is connected with {found}, not with {asked}")]
    Otherwise {
        /// The addresses of the two ends.
        found: String,
        /// What was asked for.
        asked: Connection,
    },
    /// New devices have no IPv6.
    #[error("IPv6 is off for new devices of the {side}, so they cannot have {address}")]
    NoV6 {
        /// Where.
        side: Side,
        /// What was asked for.
        address: IpAddr,
    },
}

impl ConnectError {
    /// Lines for the error: who has it.
    #[must_use]
    pub fn details(&self) -> Vec<(&'static str, String)> {
        let (what, holder) = match self {
            Self::HostAddress { holder, .. } | Self::Overlap { holder, .. } => ("device", holder),
            Self::HasAddress(holder) | Self::HasDefault(holder) => {
                ("interface of the container", holder)
            }
            Self::Otherwise { .. } | Self::NoV6 { .. } => return Vec::new(),
        };
        vec![(
            "held by",
            format!("{what} {} ({})", holder.device, holder.net),
        )]
    }

    /// What to do about it.
    #[must_use]
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::HostAddress { .. } | Self::Overlap { .. } => {
                "give each container a subnet of its own, which may be as small as a /31 or a /127"
            }
            Self::HasAddress(_) => "attach it without --connect, or remove the address first",
            Self::HasDefault(_) => "attach it without --connect, or remove the route first",
            Self::Otherwise { .. } => "give those, or detach the container first",
            Self::NoV6 { .. } => {
                "leave IPv6 out, or sysctl -w net.ipv6.conf.default.disable_ipv6=0 there"
            }
        }
    }
}

/// Whether a new link can have these addresses.
///
/// # Errors
/// When host or container have something that is at odds with them.
pub fn check(
    connection: &Connection,
    host: &Networks,
    container: &Networks,
) -> Result<(), ConnectError> {
    for ends in connection.ends() {
        check_family(Side::Host, ends.host, host)?;
        check_family(Side::Container, ends.container, container)?;
        check_host(ends, host)?;
        check_container(ends, container)?;
    }
    Ok(())
}

fn check_family(side: Side, end: IpNet, networks: &Networks) -> Result<(), ConnectError> {
    let address = end.addr();
    match address.is_ipv4() || networks.takes_v6 {
        true => Ok(()),
        false => Err(ConnectError::NoV6 { side, address }),
    }
}

fn check_host(ends: &Ends, host: &Networks) -> Result<(), ConnectError> {
    let subnet = ends.subnet();
    for end in [ends.host.addr(), ends.container.addr()] {
        let mut own = host.addresses.iter();
        if let Some(holder) = own.find(|placed| placed.net.addr() == end) {
            return Err(ConnectError::HostAddress {
                address: end,
                holder: holder.clone(),
            });
        }
    }
    let overlaps = |placed: &&Placed| {
        let net = placed.net.trunc();
        net.prefix_len() > EVERYWHERE && (net.contains(&subnet) || subnet.contains(&net))
    };
    match host.addresses.iter().chain(&host.routes).find(overlaps) {
        None => Ok(()),
        Some(holder) => Err(ConnectError::Overlap {
            subnet,
            holder: holder.clone(),
        }),
    }
}

/// Ports are published to one link of a container, so an address of either family is one too many.
fn check_container(ends: &Ends, container: &Networks) -> Result<(), ConnectError> {
    if let Some(other) = container.addresses.first() {
        return Err(ConnectError::HasAddress(other.clone()));
    }
    let is_default = |placed: &&Placed| {
        placed.net.prefix_len() == 0 && placed.net.addr().is_ipv4() == ends.is_v4()
    };
    match container.routes.iter().find(is_default) {
        None => Ok(()),
        Some(other) => Err(ConnectError::HasDefault(other.clone())),
    }
}

/// Whether a pair that was made for the container has these addresses; it may have others beside.
///
/// # Errors
/// When it lacks one.
pub fn check_made(
    connection: &Connection,
    pair: &Link,
    host: &Networks,
    container: &Networks,
) -> Result<(), ConnectError> {
    let on = |networks: &Networks, device: Option<u32>| -> Vec<IpNet> {
        let own = networks.addresses.iter();
        let own = own.filter(|placed| Some(placed.ifindex) == device);
        own.map(|placed| placed.net).collect()
    };
    let outer = on(host, Some(pair.index));
    let inner = on(container, pair.peer_index);
    let has = |ends: &Ends| outer.contains(&ends.host) && inner.contains(&ends.container);
    if connection.ends().all(has) {
        return Ok(());
    }
    let shown = |host: &IpNet| {
        let other = inner.iter().find(|end| end.trunc() == host.trunc());
        other.map_or_else(
            || host.to_string(),
            |container| format!("{host},{container}"),
        )
    };
    let found: Vec<String> = outer.iter().map(shown).collect();
    Err(ConnectError::Otherwise {
        found: found.join(" and "),
        asked: connection.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(text: &str) -> Connection {
        Connection::of(&[text.to_owned()]).unwrap().unwrap()
    }

    fn placed(net: &str) -> Placed {
        Placed {
            net: net.parse().unwrap(),
            ifindex: 2,
            device: "eth0".to_owned(),
        }
    }

    fn networks(addresses: &[&str], routes: &[&str]) -> Networks {
        Networks {
            addresses: addresses.iter().map(|net| placed(net)).collect(),
            routes: routes.iter().map(|net| placed(net)).collect(),
            takes_v6: true,
        }
    }

    #[test]
    fn a_subnet_is_free_that_only_routes_to_everywhere_lead_to() {
        let everywhere = ["0.0.0.0/0", "0.0.0.0/1", "::/0", "2000::/3"];
        let host = networks(&["192.0.2.1/24", "2001:db8::1/64"], &everywhere);
        let container = networks(&[], &[]);
        for text in [
            "10.99.0.1/24,10.99.0.2/24",
            "2001:db8:99::1/64,2001:db8:99::2/64",
        ] {
            assert_eq!(check(&connection(text), &host, &container), Ok(()));
        }
    }

    #[test]
    fn whatever_else_lies_within_or_around_is_in_the_way() {
        let container = networks(&[], &[]);
        let asked = connection("10.99.0.1/24,10.99.0.2/24");
        for net in ["10.0.0.0/4", "10.99.0.0/16", "10.99.0.0/24", "10.99.0.9/32"] {
            let refused = check(&asked, &networks(&[], &[net]), &container);
            let overlap = ConnectError::Overlap {
                subnet: "10.99.0.0/24".parse().unwrap(),
                holder: placed(net),
            };
            assert_eq!(refused, Err(overlap));
        }
        for net in ["10.98.0.0/16", "10.99.1.0/24", "fd99::/16"] {
            assert_eq!(check(&asked, &networks(&[], &[net]), &container), Ok(()));
        }
    }

    #[test]
    fn a_default_route_of_the_container_counts_in_its_own_family() {
        let host = networks(&[], &[]);
        let container = networks(&[], &["::/0", "10.0.0.0/8"]);
        let v4 = connection("10.99.0.1/24,10.99.0.2/24");
        assert_eq!(check(&v4, &host, &container), Ok(()));
        let v6 = connection("fd99::1/64,fd99::2/64");
        let refused = Err(ConnectError::HasDefault(placed("::/0")));
        assert_eq!(check(&v6, &host, &container), refused);
    }
}
