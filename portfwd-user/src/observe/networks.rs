//! The networks that a namespace is in and sends to, by the names of their devices: what a new link must
//! not be at odds with.

use std::collections::{BTreeSet, HashMap};

use ipnet::IpNet;

use super::addresses::{self, Assigned, Place};
use super::links::{self, LinkKind};
use super::netlink::{self, NetlinkError, Session};
use super::netns::{Netns, NetnsError};
use super::{routes, settings};

/// A network, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// An address with the length of its prefix, or the destination of a route.
    pub net: IpNet,
    /// Interface index of its device.
    pub ifindex: u32,
    /// Name of its device.
    pub device: String,
}

/// The networks of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks {
    /// Addresses that others can reach, those on a loopback device apart.
    pub addresses: Vec<Placed>,
    /// Networks that it sends to, in whatever table, and addresses and ranges that it takes as its own.
    pub routes: Vec<Placed>,
    /// Whether a new device can have IPv6 addresses.
    pub takes_v6: bool,
}

/// Why they cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum NetworksError {
    /// The namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The kernel does not answer.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

impl Networks {
    /// Those of a namespace, `without` these of its devices.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the kernel does not answer.
    pub fn of(netns: &Netns, without: &BTreeSet<u32>) -> Result<Self, NetworksError> {
        let mut found = netlink::converse(netns, async |session: &mut Session| {
            Ok::<_, NetworksError>(Self::read(session).await?)
        })?;
        let stays = |placed: &Placed| !without.contains(&placed.ifindex);
        found.addresses.retain(stays);
        found.routes.retain(stays);
        Ok(found)
    }

    async fn read(session: &mut Session) -> Result<Self, NetlinkError> {
        let links = links::list(session).await?;
        let names: HashMap<u32, &str> = links.iter().map(|l| (l.index, l.name.as_str())).collect();
        let placed = |net, ifindex| Placed {
            net,
            ifindex,
            // It has come, or gone, this very moment.
            device: (*names.get(&ifindex).unwrap_or(&"?")).to_owned(),
        };
        let is_loopback = |own: &Assigned| {
            let device = links.iter().find(|link| link.index == own.ifindex);
            device.is_some_and(|link| link.kind == LinkKind::Loopback)
        };
        let assigned = addresses::list(session, Place::Everywhere).await?;
        let reachable = assigned.iter().filter(|own| own.is_reachable());
        let addresses = reachable.filter(|own| !is_loopback(own)).filter_map(|own| {
            let net = IpNet::new(own.ip, own.prefix).ok()?;
            Some(placed(net, own.ifindex))
        });
        let sent = routes::networks(session).await?;
        let own = routes::locals(session).await?;
        let sent = sent.iter().map(|route| placed(route.net, route.ifindex));
        let own = own.iter().map(|route| placed(route.net, route.ifindex));
        Ok(Self {
            addresses: addresses.collect(),
            routes: sent.chain(own).collect(),
            takes_v6: settings::new_devices_take_v6_here(),
        })
    }
}
