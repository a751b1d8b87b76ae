//! Network interfaces of a namespace, as rtnetlink describes them.

use std::collections::BTreeSet;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use nix::errno::Errno;

use super::netlink::{NetlinkError, Session};
use super::netns::Netns;

/// Above so many single requests, one dump of all links is cheaper.
const SINGLE_REQUESTS: usize = 16;

/// Kinds of interface that are treated differently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// `lo`.
    Loopback,
    /// A device without a software driver's name: a network card, mostly.
    Physical,
    /// One end of a virtual Ethernet pair.
    Veth,
    /// One end of a BPF-programmable pair (Linux 6.7).
    Netkit,
    /// A software bridge.
    Bridge,
    /// A child with a MAC address of its own on its parent's network; `macvtap` as well.
    Macvlan,
    /// A child with an IP address of its own on its parent's network; `ipvtap` as well.
    Ipvlan,
    /// A TUN or TAP device: user space on the other side.
    Tun,
    /// The device of a routing domain.
    Vrf,
    /// Any other driver, by its name.
    Other(String),
}

impl LinkKind {
    /// Whether such a link has a peer link, and packets for it may be handed straight to the peer.
    pub fn is_pair(&self) -> bool {
        matches!(self, Self::Veth | Self::Netkit)
    }

    fn of(layer: LinkLayerType, info: Option<&InfoKind>) -> Self {
        match info {
            None if layer == LinkLayerType::Loopback => Self::Loopback,
            None => Self::Physical,
            Some(InfoKind::Veth) => Self::Veth,
            Some(InfoKind::Netkit) => Self::Netkit,
            Some(InfoKind::Bridge) => Self::Bridge,
            Some(InfoKind::MacVlan | InfoKind::MacVtap) => Self::Macvlan,
            Some(InfoKind::IpVlan | InfoKind::IpVtap) => Self::Ipvlan,
            Some(InfoKind::Tun) => Self::Tun,
            Some(InfoKind::Vrf) => Self::Vrf,
            Some(other) => Self::Other(other.to_string()),
        }
    }
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loopback => "loopback",
            Self::Physical => "physical",
            Self::Veth => "veth",
            Self::Netkit => "netkit",
            Self::Bridge => "bridge",
            Self::Macvlan => "macvlan",
            Self::Ipvlan => "ipvlan",
            Self::Tun => "tun",
            Self::Vrf => "vrf",
            Self::Other(name) => name,
        })
    }
}

/// What a device carries, and so what its hooks see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carries {
    /// Ethernet frames.
    Frames,
    /// IP packets without anything in front: tun, WireGuard, PPP, IP tunnels.
    Packets,
    /// Something that the programs cannot read.
    Other,
}

impl Carries {
    /// As `dev_is_mac_header_xmit` of linux/if_arp.h has it, by which the kernel redirects packets. Of
    /// the rest only Ethernet is known here.
    const fn of(layer: LinkLayerType) -> Self {
        match layer {
            LinkLayerType::Ether | LinkLayerType::Loopback => Self::Frames,
            LinkLayerType::Tunnel
            | LinkLayerType::Tunnel6
            | LinkLayerType::Sit
            | LinkLayerType::Ipgre
            | LinkLayerType::Ip6gre
            | LinkLayerType::None
            | LinkLayerType::Rawip
            | LinkLayerType::Ppp => Self::Packets,
            _ => Self::Other,
        }
    }
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index, unique within its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: LinkKind,
    /// What it carries.
    pub carries: Carries,
    /// Its MAC address; None for a device without Ethernet addresses.
    pub mac: Option<[u8; 6]>,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// The bridge, bond or VRF that it is a port of.
    pub master: Option<u32>,
    /// IFLA_LINK: the peer of a pair, or the parent of a child device.
    pub peer_index: Option<u32>,
    /// The namespace that `peer_index` counts in, by the ID that this link's namespace gives it; None
    /// when it is this link's own namespace.
    pub peer_netns: Option<i32>,
}

impl Link {
    fn from_message(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            kind: LinkKind::of(message.header.link_layer_type, None),
            carries: Carries::of(message.header.link_layer_type),
            mac: None,
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            master: None,
            peer_index: None,
            peer_netns: None,
        };
        for attribute in message.attributes {
            link.take(attribute, message.header.link_layer_type);
        }
        link
    }

    fn take(&mut self, attribute: LinkAttribute, layer: LinkLayerType) {
        match attribute {
            LinkAttribute::IfName(name) => self.name = name,
            LinkAttribute::Address(bytes) => self.mac = bytes.try_into().ok(),
            LinkAttribute::Mtu(mtu) => self.mtu = mtu,
            LinkAttribute::Controller(index) => self.master = Some(index),
            // The kernel writes 0 for a pair whose peer is gone.
            LinkAttribute::Link(index) => self.peer_index = (index != 0).then_some(index),
            LinkAttribute::LinkNetNsId(id) => self.peer_netns = Some(id),
            LinkAttribute::LinkInfo(infos) => {
                let kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind),
                    _ => None,
                });
                self.kind = LinkKind::of(layer, kind);
            }
            _ => {}
        }
    }
}

/// All links of the session's namespace.
pub async fn list(session: &mut Session) -> Result<Vec<Link>, NetlinkError> {
    let request = RouteNetlinkMessage::GetLink(request_for(0, None));
    let answers = session.dump("list network interfaces", &request).await?;
    Ok(answers.into_iter().filter_map(link_of).collect())
}

/// The link with an index; in another namespace, where `netns` gives its ID. None when there is none.
pub async fn by_index(
    session: &mut Session,
    index: u32,
    netns: Option<i32>,
) -> Result<Option<Link>, NetlinkError> {
    let request = RouteNetlinkMessage::GetLink(request_for(index, netns));
    found(
        session
            .get(&format!("read network interface {index}"), request)
            .await,
    )
}

fn found(answer: Result<RouteNetlinkMessage, NetlinkError>) -> Result<Option<Link>, NetlinkError> {
    match answer {
        Ok(answer) => Ok(link_of(answer)),
        Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The link of that name. None when there is none.
pub async fn by_name(session: &mut Session, name: &str) -> Result<Option<Link>, NetlinkError> {
    let mut message = request_for(0, None);
    let named = LinkAttribute::IfName(name.to_owned());
    message.attributes.push(named);
    let request = RouteNetlinkMessage::GetLink(message);
    found(
        session
            .get(&format!("read network interface {name}"), request)
            .await,
    )
}

/// The links with these indexes, in their order; those that are gone are left out.
pub async fn by_indexes(
    session: &mut Session,
    indexes: &BTreeSet<u32>,
) -> Result<Vec<Link>, NetlinkError> {
    if indexes.len() > SINGLE_REQUESTS {
        let mut links = list(session).await?;
        links.retain(|link| indexes.contains(&link.index));
        links.sort_by_key(|link| link.index);
        return Ok(links);
    }
    let mut links = Vec::with_capacity(indexes.len());
    for index in indexes {
        links.extend(by_index(session, *index, None).await?);
    }
    Ok(links)
}

/// The ID that the session's namespace gives to another one; None when it has not given any, in which
/// case no link here has its peer there.
pub async fn netns_id(session: &mut Session, other: &Netns) -> Result<Option<i32>, NetlinkError> {
    let mut message = NsidMessage::default();
    // The kernel looks the descriptor up in this process; descriptors are never negative.
    let descriptor = other.as_fd().as_raw_fd().unsigned_abs();
    message.attributes.push(NsidAttribute::Fd(descriptor));
    let request = format!("ask for the ID of network namespace {}", other.origin());
    let answer = session
        .get(&request, RouteNetlinkMessage::GetNsId(message))
        .await?;
    let RouteNetlinkMessage::NewNsId(message) = answer else {
        return Ok(None);
    };
    Ok(message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            // NETNSA_NSID_NOT_ASSIGNED is -1.
            NsidAttribute::Id(id) if *id >= 0 => Some(*id),
            _ => None,
        }))
}

fn request_for(index: u32, netns: Option<i32>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    // Statistics are half of the answer and unused.
    message
        .attributes
        .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    // IFLA_IF_NETNSID is the former name of IFLA_TARGET_NETNSID.
    message
        .attributes
        .extend(netns.map(LinkAttribute::IfNetnsId));
    message
}

fn link_of(answer: RouteNetlinkMessage) -> Option<Link> {
    match answer {
        RouteNetlinkMessage::NewLink(message) => Some(Link::from_message(message)),
        _ => None,
    }
}
