//! The veth pair of `--connect`: made, recognised and removed through rtnetlink.
//!
//! What portfwd made is told from what others made by the host's end alone, of which the kernel sets name
//! and Ethernet address in the step that makes it: both hold the same number ([`Mark`]). An alias would
//! come one step later (`rtnl_create_link` takes none), and a command that is killed in between would leave
//! a pair that is nobody's. An address that was given is also one that udev does not change
//! (`MACAddressPolicy=persistent`, systemd.link(5)).

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use crate::{
    connection::{Connection, Ends},
    error::Error,
    label::Label,
    observe::{
        links::{self, Link, LinkKind},
        netlink::{self, NetlinkError, Session},
        netns::Netns,
    },
};

/// How the name of a host's end begins.
const NAME: &str = "pf";
/// How its Ethernet address begins: one that nobody sells (the second bit), of a single device (the first).
const MAC: [u8; 2] = [0x06, b'p'];

/// By what the host's end of a pair is known: of the cookie of the container's namespace so much as tells
/// namespaces apart that are there at one time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark(u32);

impl Mark {
    /// For the container whose namespace has this cookie.
    #[must_use]
    pub const fn of(cookie: u64) -> Self {
        let [a, b, c, d, ..] = cookie.to_le_bytes();
        Self(u32::from_le_bytes([a, b, c, d]))
    }

    /// The name of the host's end.
    #[must_use]
    pub fn name(self) -> String {
        format!("{NAME}{:08x}", self.0)
    }

    const fn mac(self) -> [u8; 6] {
        let [a, b, c, d] = self.0.to_be_bytes();
        [MAC[0], MAC[1], a, b, c, d]
    }

    fn is_on(self, link: &Link) -> bool {
        link.kind == LinkKind::Veth && link.name == self.name() && link.mac == Some(self.mac())
    }

    /// That of a link which portfwd made; None for those of others.
    fn read(link: &Link) -> Option<Self> {
        let digits = link.name.strip_prefix(NAME)?;
        let mark = Self(u32::from_str_radix(digits, 16).ok()?);
        mark.is_on(link).then_some(mark)
    }
}

/// The host's ends of every pair that portfwd made.
///
/// # Errors
/// When the kernel does not answer.
pub fn all(host: &Netns) -> Result<Vec<Link>, Error> {
    netlink::converse(host, async |session: &mut Session| Ok(made(session).await?))
}

async fn made(session: &mut Session) -> Result<Vec<Link>, NetlinkError> {
    let mut links = links::list(session).await?;
    links.retain(|link| Mark::read(link).is_some());
    Ok(links)
}

/// Removes every pair that portfwd made but those with their host's ends in `used`. Returns how many.
///
/// # Errors
/// The first that cannot be removed.
pub fn remove_but(host: &Netns, used: &BTreeSet<u32>) -> Result<usize, Error> {
    netlink::converse(host, async |session: &mut Session| {
        let mut unused = made(session).await?;
        unused.retain(|link| !used.contains(&link.index));
        for link in &unused {
            remove(session, link).await?;
        }
        Ok(unused.len())
    })
}

/// The other end, and all addresses and routes of both, go with it.
async fn remove(session: &mut Session, link: &Link) -> Result<(), NetlinkError> {
    let message = RouteNetlinkMessage::DelLink(of_index(link.index));
    let request = format!("remove link {}", link.name);
    match session.order(&request, message, 0).await {
        // It went with the container's namespace just now.
        Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(()),
        removed => removed,
    }
}

/// Connects host and container: a pair with these addresses, up on both ends, and by it the container's default
/// routes. The container's loopback device is up then, too.
///
/// # Errors
/// When a step fails. What is made by then has no container, so that [`remove_but`] takes it away.
pub fn make(
    host: &Netns,
    container: &Netns,
    connection: &Connection,
    label: &Label,
) -> Result<(), Error> {
    let mark = Mark::of(container.cookie()?);
    let name = netlink::converse(container, async |session: &mut Session| {
        Ok::<_, Error>(free_name(&links::list(session).await?))
    })?;
    let (outer, inner) = netlink::converse(host, async |session: &mut Session| {
        Ok::<_, Error>(create(session, mark, container, name).await?)
    })?;
    netlink::converse(host, async |session: &mut Session| {
        for ends in connection.ends() {
            add_address(session, &outer, ends.host).await?;
        }
        let alias = LinkAttribute::IfAlias(format!("portfwd: container {label}"));
        set_up(session, &outer, vec![alias]).await?;
        Ok::<_, Error>(())
    })?;
    netlink::converse(container, async |session: &mut Session| {
        for ends in connection.ends() {
            add_address(session, &inner, ends.container).await?;
        }
        set_up(session, &End::loopback(), Vec::new()).await?;
        set_up(session, &inner, Vec::new()).await?;
        for ends in connection.ends() {
            add_default_route(session, &inner, ends).await?;
        }
        Ok(())
    })
}

/// A link to set up, in its own namespace.
struct End {
    index: u32,
    name: String,
}

impl End {
    /// Its index is the same in every namespace (`LOOPBACK_IFINDEX`).
    fn loopback() -> Self {
        Self {
            index: 1,
            name: "lo".to_owned(),
        }
    }
}

fn free_name(taken: &[Link]) -> String {
    let names = (0_u32..).map(|number| format!("eth{number}"));
    let mut free = names.filter(|name| taken.iter().all(|link| link.name != *name));
    free.next().unwrap_or_else(|| "eth0".to_owned())
}

/// Makes the pair; gives the host's end and the container's.
async fn create(
    session: &mut Session,
    mark: Mark,
    container: &Netns,
    inside: String,
) -> Result<(End, End), NetlinkError> {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(inside.clone()),
        LinkAttribute::NetNsFd(container.as_fd().as_raw_fd()),
    ];
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(mark.name()),
        LinkAttribute::Address(mark.mac().to_vec()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    let request = format!("make link {}", mark.name());
    let message = RouteNetlinkMessage::NewLink(message);
    session
        .order(&request, message, NLM_F_CREATE | NLM_F_EXCL)
        .await?;
    let made = links::by_name(session, &mark.name()).await?;
    let indexes = made.and_then(|outer| Some((outer.index, outer.peer_index?)));
    let (outer, inner) = indexes.ok_or_else(|| NetlinkError::Answer {
        request,
        detail: "it has gone at once".to_owned(),
    })?;
    let end = |index, name| End { index, name };
    Ok((end(outer, mark.name()), end(inner, inside)))
}

async fn add_address(session: &mut Session, link: &End, end: IpNet) -> Result<(), NetlinkError> {
    let mut message = AddressMessage::default();
    message.header.family = family(end);
    message.header.prefix_len = end.prefix_len();
    message.header.index = link.index;
    message.attributes = vec![
        AddressAttribute::Local(end.addr()),
        AddressAttribute::Address(end.addr()),
    ];
    if end.addr().is_ipv6() {
        // Nobody else is on the link: the address works at once, without duplicate detection.
        let flags = AddressAttribute::Flags(AddressFlags::Nodad);
        message.attributes.push(flags);
    }
    let request = format!("add address {end} to {}", link.name);
    let message = RouteNetlinkMessage::NewAddress(message);
    session
        .order(&request, message, NLM_F_CREATE | NLM_F_EXCL)
        .await
}

async fn set_up(
    session: &mut Session,
    link: &End,
    attributes: Vec<LinkAttribute>,
) -> Result<(), NetlinkError> {
    let mut message = of_index(link.index);
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes = attributes;
    let request = format!("set link {} up", link.name);
    let message = RouteNetlinkMessage::SetLink(message);
    session.order(&request, message, 0).await
}

async fn add_default_route(
    session: &mut Session,
    link: &End,
    ends: &Ends,
) -> Result<(), NetlinkError> {
    let mut message = RouteMessage::default();
    message.header.address_family = family(ends.host);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        RouteAttribute::Gateway(ends.host.addr().into()),
        RouteAttribute::Oif(link.index),
    ];
    let request = format!("add a default route by {}", ends.host.addr());
    let message = RouteNetlinkMessage::NewRoute(message);
    session
        .order(&request, message, NLM_F_CREATE | NLM_F_EXCL)
        .await
}

fn of_index(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

const fn family(net: IpNet) -> AddressFamily {
    match net {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::links::Carries;

    fn link(name: &str, mac: [u8; 6], kind: LinkKind) -> Link {
        Link {
            index: 7,
            name: name.to_owned(),
            kind,
            carries: Carries::Frames,
            mac: Some(mac),
            mtu: 1_500,
            up: true,
            master: None,
            peer_index: Some(2),
            peer_netns: Some(0),
        }
    }

    #[test]
    fn a_mark_is_read_where_name_and_address_agree_and_nowhere_else() {
        let mark = Mark::of(0x0000_0012_0000_a0ff);
        assert_eq!(mark.name(), "pf0000a0ff");
        let mac = [0x06, 0x70, 0, 0, 0xa0, 0xff];
        let of = |name, mac, kind| Mark::read(&link(name, mac, kind));
        assert_eq!(of("pf0000a0ff", mac, LinkKind::Veth), Some(mark));
        let other = [0x06, 0x70, 0, 0, 0xa0, 0xfe];
        for (name, mac, kind) in [
            ("pf0000a0ff", other, LinkKind::Veth),
            ("pf0000a0ff", mac, LinkKind::Bridge),
            ("pf0000a0fe", mac, LinkKind::Veth),
            ("pf0000A0FF", mac, LinkKind::Veth),
            ("pfa0ff", mac, LinkKind::Veth),
            ("pf00000a0ff", mac, LinkKind::Veth),
            ("pf+000a0ff", mac, LinkKind::Veth),
            ("veth0000a0ff", mac, LinkKind::Veth),
        ] {
            assert_eq!(of(name, mac, kind.clone()), None, "{name} {mac:?} {kind}");
        }
    }

    #[test]
    fn the_containers_end_gets_the_first_free_name() {
        let taken = ["lo", "eth0", "eth2"].map(|name| link(name, [0; 6], LinkKind::Veth));
        assert_eq!(free_name(&taken), "eth1");
    }
}
