//! Addresses of a namespace, and with them the host's own ones: what a packet must be sent to before
//! portfwd looks at it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage,
};

use super::links::{self, Carries, Link, LinkKind};
use super::netlink::{self, NetlinkError, Session};
use super::netns::{Netns, NetnsError};
use super::routes::{self, LocalRoute};

/// An address that stands on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// The address itself, not its peer's.
    pub ip: IpAddr,
    /// Length of its network prefix in bits.
    pub prefix: u8,
    /// The interface.
    pub ifindex: u32,
    /// A secondary IPv4 address, or a temporary IPv6 one (RFC 8981): not to be published to.
    pub secondary: bool,
    /// An IPv6 address that is no longer used for new connections (RFC 4862).
    pub deprecated: bool,
    /// Another node has this IPv6 address, so the kernel does not use it (RFC 4862, section 5.4.5).
    pub duplicate: bool,
}

impl Assigned {
    /// None for a message without an address.
    fn from_message(message: &AddressMessage) -> Option<Self> {
        let mut local = None;
        let mut address = None;
        let mut extended = AddressFlags::empty();
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(ip) => local = Some(*ip),
                AddressAttribute::Address(ip) => address = Some(*ip),
                AddressAttribute::Flags(flags) => extended = *flags,
                _ => {}
            }
        }
        // With a point-to-point peer IFA_ADDRESS is the peer and IFA_LOCAL our own; without one IPv6
        // sends IFA_ADDRESS only.
        let ip = local.or(address)?;
        let header = message.header.flags;
        Some(Self {
            ip,
            prefix: message.header.prefix_len,
            ifindex: message.header.index,
            secondary: header.contains(AddressHeaderFlags::Secondary),
            deprecated: header.contains(AddressHeaderFlags::Deprecated),
            duplicate: header.contains(AddressHeaderFlags::Dadfailed)
                || extended.contains(AddressFlags::Dadfailed),
        })
    }

    /// Whether others can reach it: neither loopback nor link-local, and in use.
    pub fn is_reachable(&self) -> bool {
        !self.duplicate && !is_loopback(self.ip) && !is_link_local(self.ip)
    }
}

/// One of the host's own addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostAddress {
    /// The address.
    pub ip: IpAddr,
    /// The device that it stands on, or that its local route names.
    pub ifindex: u32,
    /// 127/8 or ::1: reached from the host alone.
    pub loopback: bool,
    /// 169.254/16 or fe80::/10: never forwarded.
    pub link_local: bool,
}

impl HostAddress {
    /// Whether others can reach it.
    #[must_use]
    pub fn is_reachable(&self) -> bool {
        !self.loopback && !self.link_local
    }
}

/// What the host answers to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Every single address, ordered, each once. Broadcast addresses are not among them.
    pub addresses: Vec<HostAddress>,
    /// Ranges that the host takes as its own as a whole (AnyIP), 127.0.0.0/8 among them.
    pub ranges: Vec<LocalRoute>,
    /// The devices on which the host owns an address that others can reach, by index: the places for
    /// hooks. `lo` is not among them, nor is what carries neither Ethernet nor IP. A device with nothing but a link-local address is left out, or
    /// every port of every bridge would be in.
    pub devices: Vec<Link>,
    /// Addresses with their devices that the host may send from, the best of each device and family first.
    pub sources: Vec<(u32, IpAddr)>,
}

impl Host {
    /// Whether the address is the host's own, singly or as one of a range.
    pub fn owns(&self, ip: IpAddr) -> bool {
        self.addresses.iter().any(|own| own.ip == ip)
            || self.ranges.iter().any(|range| range.net.contains(&ip))
    }
}

/// Why addresses cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// The namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The kernel does not answer.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// What the host answers to, read in its namespace.
pub fn of_host(host: &Netns) -> Result<Host, AddressError> {
    netlink::converse(host, async |session: &mut Session| {
        Ok(read_host(session).await?)
    })
}

/// As [`of_host`], in an open conversation.
pub async fn read_host(session: &mut Session) -> Result<Host, NetlinkError> {
    let assigned = list(session, Place::Everywhere).await?;
    let locals = routes::locals(session).await?;
    let (addresses, ranges) = own(&assigned, &locals);
    let bearing: BTreeSet<u32> = assigned
        .iter()
        .filter(|own| own.is_reachable())
        .map(|own| own.ifindex)
        .collect();
    let mut devices = links::by_indexes(session, &bearing).await?;
    devices.retain(|link| link.kind != LinkKind::Loopback && link.carries != Carries::Other);
    Ok(Host {
        addresses,
        ranges,
        devices,
        sources: sources(&assigned),
    })
}

/// In the kernel's order, in which a device's primary address comes first; what is going out of use last.
fn sources(assigned: &[Assigned]) -> Vec<(u32, IpAddr)> {
    let mut usable: Vec<&Assigned> = assigned.iter().filter(|own| own.is_reachable()).collect();
    usable.sort_by_key(|own| own.deprecated || own.secondary);
    usable.iter().map(|own| (own.ifindex, own.ip)).collect()
}

/// Which addresses to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// All of the session's namespace.
    Everywhere,
    /// Those of one interface of the session's namespace.
    Link(u32),
    /// Those of one interface of another namespace, by the ID that the session's namespace gives it.
    LinkIn {
        /// Interface index in that namespace.
        ifindex: u32,
        /// ID of that namespace.
        netns: i32,
    },
}

/// Addresses of both families, in the kernel's order: an interface's primary address comes first.
pub async fn list(session: &mut Session, place: Place) -> Result<Vec<Assigned>, NetlinkError> {
    let mut message = AddressMessage::default();
    match place {
        Place::Everywhere => {}
        Place::Link(ifindex) => message.header.index = ifindex,
        Place::LinkIn { ifindex, netns } => {
            message.header.index = ifindex;
            message
                .attributes
                .push(AddressAttribute::TargetNetNsId(netns));
        }
    }
    let request = RouteNetlinkMessage::GetAddress(message);
    let answers = session.dump("list addresses", &request).await?;
    let messages = answers.iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewAddress(message) => Assigned::from_message(message),
        _ => None,
    });
    Ok(messages.collect())
}

/// Addresses from both sources: an IPv6 address under duplicate detection has no route yet, AnyIP has
/// only a route.
fn own(assigned: &[Assigned], locals: &[LocalRoute]) -> (Vec<HostAddress>, Vec<LocalRoute>) {
    let mut single: BTreeMap<IpAddr, u32> = BTreeMap::new();
    for own in assigned.iter().filter(|own| !own.duplicate) {
        single.entry(own.ip).or_insert(own.ifindex);
    }
    let (hosts, ranges): (Vec<_>, Vec<_>) = locals
        .iter()
        .copied()
        .partition(|route| route.net.prefix_len() == route.net.max_prefix_len());
    for route in hosts {
        single.entry(route.net.addr()).or_insert(route.ifindex);
    }
    let addresses = single.into_iter().map(|(ip, ifindex)| HostAddress {
        ip,
        ifindex,
        loopback: is_loopback(ip),
        link_local: is_link_local(ip),
    });
    (addresses.collect(), ranges)
}

/// 127/8 or ::1.
pub fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// 169.254/16 (RFC 3927) or fe80::/10 (RFC 4291).
pub fn is_link_local(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assigned(ip: &str, ifindex: u32) -> Assigned {
        Assigned {
            ip: ip.parse().unwrap(),
            prefix: 24,
            ifindex,
            secondary: false,
            deprecated: false,
            duplicate: false,
        }
    }

    #[test]
    fn an_address_that_stands_on_two_devices_is_listed_once() {
        let (addresses, _) = own(&[assigned("10.0.0.1", 2), assigned("10.0.0.1", 3)], &[]);
        assert_eq!(addresses.len(), 1);
        assert_eq!(addresses[0].ifindex, 2);
    }

    #[test]
    fn an_address_that_only_a_local_route_names_is_the_hosts_own() {
        let route = LocalRoute {
            net: "192.0.2.9/32".parse().unwrap(),
            ifindex: 1,
        };
        let range = LocalRoute {
            net: "198.51.100.0/24".parse().unwrap(),
            ifindex: 1,
        };
        let (addresses, ranges) = own(&[assigned("127.0.0.1", 1)], &[route, range]);
        assert_eq!(
            addresses
                .iter()
                .map(|own| own.ip.to_string())
                .collect::<Vec<_>>(),
            ["127.0.0.1", "192.0.2.9"]
        );
        assert!(addresses[0].loopback && !addresses[1].loopback);
        let host = Host {
            addresses,
            ranges,
            ..Host::default()
        };
        assert!(host.owns("198.51.100.77".parse().unwrap()));
        assert!(!host.owns("198.51.101.77".parse().unwrap()));
    }

    #[test]
    fn a_duplicate_address_is_not_the_hosts_own() {
        let mut taken = assigned("fd88::2", 2);
        taken.duplicate = true;
        assert_eq!(own(&[taken], &[]).0, []);
        assert!(!taken.is_reachable());
    }

    #[test]
    fn link_local_and_loopback_addresses_are_not_reachable_from_elsewhere() {
        for ip in [
            "127.3.2.1",
            "::1",
            "169.254.1.1",
            "fe80::1",
            "::ffff:127.0.0.1",
        ] {
            assert!(!assigned(ip, 2).is_reachable(), "{ip}");
        }
        for ip in ["10.0.0.1", "fd88::2", "2001:db8::1"] {
            assert!(assigned(ip, 2).is_reachable(), "{ip}");
        }
    }
}
