//! `portfwd explain`: what becomes of a packet, by running the programs over it.

mod firewall;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use aya::maps::MapError;
use portfwd_common::{net::Protocol, verdict::Reason};

use firewall::Way;

use super::{
    attach::ports::Around,
    show::{counters, look},
};
use crate::{
    cli::{Cli, Explain},
    clock,
    datapath::{self, Datapath},
    error::{Doing, Error, Missing},
    observe::{
        addresses::{self, Host},
        links::{self, Link},
        netlink::{self, Session},
        netns::Netns,
        routes::{self, Lookup},
        settings,
        sockets::Look,
    },
    rehearsal::{self, Entrance, Fate, Opening},
    report::{self, Explanation, LastDrop, Outcome, PacketRow},
    state::{Owned, State},
    tables::TableError,
    talk,
};

/// A port that a client may send from.
const CLIENT_PORT: u16 = 50_000;

/// Who sends the packet.
enum Sender {
    /// A process of the host.
    Process,
    /// Somebody behind a device, or the container of a link.
    Elsewhere { device: Link, is_link: bool },
}

/// What is looked at.
struct Scene<'a> {
    netns: &'a Netns,
    host: Host,
    links: Vec<Link>,
    asked: Explain,
    running: Option<(&'a Datapath, &'a State)>,
}

pub(super) fn run(cli: &Cli, asked: &Explain) -> Result<(), Error> {
    let netns = datapath::host(cli)?;
    let found = look(cli)?;
    let running = found.as_ref().map(|(_, datapath, state)| (datapath, state));
    if let Some((datapath, _)) = running
        && !datapath.runs_own_build()?
    {
        talk::warn(
            "the programs that run are of another build than those that tell this: portfwd up replaces them",
        );
    }
    let links = netns.run_in(|| {
        netlink::converse_here(async |session: &mut Session| links::list(session).await)
    })?;
    let asked = Explain {
        to: meant(asked.to),
        ..*asked
    };
    let scene = Scene {
        netns: &netns,
        host: addresses::of_host(&netns).doing(|| "read the host's addresses".to_owned())?,
        links: links.doing(|| "list the links".to_owned())?,
        asked,
        running,
    };
    let explanation = scene.explain()?;
    report::to_stdout(|out| match cli.json {
        true => report::write_json(out, &explanation),
        false => explanation.write(out),
    })
}

impl Scene<'_> {
    fn explain(&self) -> Result<Explanation, Error> {
        let to = self.asked.to;
        let (from, sender) = self.sender()?;
        let packet = Opening {
            protocol: self.asked.protocol,
            from: SocketAddr::new(from, CLIENT_PORT),
            to,
        };
        let forward = self.forward();
        let outcome = match (&sender, self.running) {
            (Sender::Process, _) => self.of_process(forward)?,
            (Sender::Elsewhere { device, is_link }, Some((datapath, _)))
                if *is_link || self.is_served(datapath, device)? =>
            {
                let entrance = Entrance::by(device, *is_link);
                rehearsal::of(&datapath.layout, self.netns, &packet, &entrance)?.into()
            }
            (Sender::Elsewhere { .. }, _) => Outcome::Passed { reason: None },
        };
        let unreachable = forward.and_then(|forward| self.unreachable(&outcome, forward));
        let outcome = match unreachable {
            Some(_) => Outcome::Dropped { reason: None },
            None => outcome,
        };
        let device = match &sender {
            Sender::Process => None,
            Sender::Elsewhere { device, .. } => Some(device),
        };
        let policy = self.running.zip(forward);
        let policy = policy.map(|((_, state), forward)| state.policy_of(forward));
        let policy = policy.unwrap_or_default();
        let counters = match (self.running, forward) {
            (Some((datapath, _)), Some(forward)) => counters(&datapath.tables, forward)?,
            _ => Default::default(),
        };
        Ok(Explanation {
            packet: PacketRow {
                protocol: packet.protocol,
                from: packet.from,
                to,
                device: device.map(|device| device.name.clone()),
            },
            forward: forward.and_then(Owned::published),
            allow: policy.allow.into_iter().collect(),
            deny: policy.deny.into_iter().collect(),
            outcome,
            connections: counters.connections,
            drops: counters.drops,
            last_drop: counters.last_drop().map(|(second, reason)| {
                let age = clock::seconds().saturating_sub(second);
                let age = Duration::from_secs(age.into());
                LastDrop { reason, age }
            }),
            notes: match unreachable {
                Some(why) => vec![why],
                None => self.notes(&outcome, forward, device, from)?,
            },
        })
    }

    /// Why what is sent to the container does not arrive, where that shows on this side of its link.
    fn unreachable(&self, outcome: &Outcome, forward: &Owned) -> Option<String> {
        let (index, container) = (forward.record().link, &forward.owner);
        let to_link = matches!(outcome, Outcome::Redirected { .. } | Outcome::Direct { .. });
        if !to_link || index == 0 {
            return None;
        }
        match self.link(index) {
            None => Some(format!(
                "the link of container \"{container}\" is gone; portfwd gc removes what belongs to it"
            )),
            Some(link) if !link.up => Some(format!(
                "the link of container \"{container}\" is down; ip link set {} up",
                link.name
            )),
            Some(_) => None,
        }
    }

    /// The forward that has the port.
    fn forward(&self) -> Option<&Owned> {
        let Explain { to, protocol, .. } = self.asked;
        let (_, state) = self.running?;
        state.forwards.iter().find(|owned| {
            let held = &owned.held;
            let any = held.host.is_unspecified() && held.host.is_ipv4() == to.is_ipv4();
            let ports = held.protocol == protocol && held.ports.contains(to.port());
            ports && (any || held.host == to.ip())
        })
    }

    fn sender(&self) -> Result<(IpAddr, Sender), Error> {
        let Some(from) = self.asked.from else {
            return self.any_client();
        };
        if self.host.owns(from) {
            return Ok((from, Sender::Process));
        }
        if let Some(device) = self.link_of(from)? {
            let is_link = true;
            return Ok((from, Sender::Elsewhere { device, is_link }));
        }
        match self.device_toward(from)? {
            Some(device) => {
                let is_link = false;
                Ok((from, Sender::Elsewhere { device, is_link }))
            }
            None => Err(Missing::Route(from).into()),
        }
    }

    /// A neighbour on the device that has the address; nobody but a process sends to a loopback address.
    fn any_client(&self) -> Result<(IpAddr, Sender), Error> {
        let to = self.asked.to.ip();
        let of_address = self.host.addresses.iter().find(|own| own.ip == to);
        let index = of_address.map(|own| own.ifindex);
        if addresses::is_loopback(to) {
            return Ok((to, Sender::Process));
        }
        for distance in 1..=7 {
            let candidate = beside(to, distance);
            if self.host.owns(candidate) || is_last_or_first(candidate) {
                continue;
            }
            if let Some(device) = self.device_toward(candidate)?
                && index.is_none_or(|index| index == device.index)
            {
                let is_link = false;
                return Ok((candidate, Sender::Elsewhere { device, is_link }));
            }
        }
        Err(Missing::Client(to).into())
    }

    fn device_toward(&self, address: IpAddr) -> Result<Option<Link>, Error> {
        let Lookup::Unicast(way) = routes::way_to(self.netns, address)? else {
            return Ok(None);
        };
        Ok(self.link(way.ifindex).cloned())
    }

    fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// The host-side link of the attached container that has the address.
    fn link_of(&self, address: IpAddr) -> Result<Option<Link>, Error> {
        let Some((datapath, _)) = self.running else {
            return Ok(None);
        };
        for key in datapath.tables.link_sources.keys() {
            let key = key
                .map_err(|source| TableError::Map {
                    name: portfwd_common::maps::LINK_SOURCES,
                    source: Box::new(source),
                })
                .doing(|| "read the addresses of containers".to_owned())?;
            if IpAddr::from(key.address) == address {
                return Ok(self.link(key.link).cloned());
            }
        }
        Ok(None)
    }

    fn is_served(&self, datapath: &Datapath, device: &Link) -> Result<bool, Error> {
        match datapath.tables.devices.get(&device.index, 0) {
            Ok(_) => Ok(true),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(source) => Err(TableError::Map {
                name: portfwd_common::maps::DEVICES,
                source: Box::new(source),
            })
            .doing(|| "read what devices are served".to_owned()),
        }
    }

    /// Whether the programs know the address for one of the host's, by their own table.
    fn knows(&self, address: IpAddr) -> Result<bool, Error> {
        let Some((datapath, _)) = self.running else {
            return Ok(false);
        };
        match datapath.tables.host_addresses.get(&address.into(), 0) {
            Ok(_) => Ok(true),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(source) => Err(TableError::Map {
                name: portfwd_common::maps::HOST_ADDRESSES,
                source: Box::new(source),
            })
            .doing(|| "read the addresses that the programs know".to_owned()),
        }
    }

    /// Whether the host has got the address since the programs were told of its addresses.
    fn is_news(&self, address: IpAddr) -> Result<bool, Error> {
        let mut own = self.host.addresses.iter();
        let is_own = own.any(|own| own.ip == address && own.is_reachable());
        Ok(is_own && self.running.is_some() && !self.knows(address)?)
    }

    /// What the socket hooks do with the call of a process: no packet is looked at.
    fn of_process(&self, forward: Option<&Owned>) -> Result<Outcome, Error> {
        let passed = Outcome::Passed { reason: None };
        let (Some(forward), Some((_, state))) = (forward, self.running) else {
            return Ok(passed);
        };
        let to = self.asked.to;
        let loopback = match to.is_ipv4() {
            true => IpAddr::V4(Ipv4Addr::LOCALHOST),
            false => IpAddr::V6(Ipv6Addr::LOCALHOST),
        };
        if !state.policy_of(forward).admits(loopback) {
            let reason = Some(Reason::Denied);
            return Ok(Outcome::Passed { reason });
        }
        let unreached =
            forward.record().target.is_unspecified() || self.asked.protocol == Protocol::Sctp;
        if unreached || !(addresses::is_loopback(to.ip()) || self.knows(to.ip())?) {
            return Ok(passed);
        }
        let port = forward
            .record()
            .target_port_of(portfwd_common::net::NetPort::new(to.port()));
        let target = SocketAddr::new(IpAddr::from(forward.record().target), port.get());
        Ok(Outcome::Direct { target })
    }

    /// What is to be known besides.
    fn notes(
        &self,
        outcome: &Outcome,
        forward: Option<&Owned>,
        device: Option<&Link>,
        from: IpAddr,
    ) -> Result<Vec<String>, Error> {
        let mut notes = Vec::new();
        let to = self.asked.to;
        let is_news = self.is_news(to.ip())?;
        match outcome {
            Outcome::Redirected { target } => {
                notes.push(firewall::passed_by(self.netns, &self.way(*target, device)));
            }
            Outcome::Translated { target } => {
                notes.extend(firewall::met(self.netns, &self.way(*target, device)));
                notes.extend(self.unforwarded(to.ip(), device)?);
            }
            Outcome::Direct { .. } => notes.push(
                "the process is connected to the container itself: OUTPUT rules see that address, and no packet \
                 is translated; a socket that is bound to a loopback address is refused"
                    .to_owned(),
            ),
            Outcome::Passed { .. } | Outcome::Dropped { .. } if holds_only(forward) => {
                let family = if to.is_ipv4() { "IPv4" } else { "IPv6" };
                let owner = forward.map(|forward| forward.owner.to_string());
                notes.push(format!(
                    "container \"{}\" holds the port, and has no {family} address",
                    owner.unwrap_or_default()
                ));
            }
            Outcome::Passed {
                reason: Some(Reason::NotForHost),
            } if is_news => {}
            Outcome::Passed {
                reason: Some(Reason::NotForHost),
            } if addresses::is_link_local(to.ip()) => {
                notes.push("nothing is published on link-local addresses".to_owned());
            }
            Outcome::Passed { reason } | Outcome::Dropped { reason } => {
                notes.extend(reason.map(|reason| why(reason, device, from)));
            }
        }
        if !matches!(outcome, Outcome::Passed { .. }) {
            return Ok(notes);
        }
        match (self.running, device) {
            (None, _) => notes.push("the instance is not up: nothing is published".to_owned()),
            (Some((datapath, _)), Some(device))
                if self.link_of(from)?.is_none() && !self.is_served(datapath, device)? =>
            {
                notes.push(format!(
                    "device {0} is not served; portfwd up --device {0}",
                    device.name
                ));
            }
            _ if forward.is_none() => notes.push("no container publishes that port".to_owned()),
            _ => {}
        }
        if !self.host.owns(to.ip()) {
            notes.push(format!("{} is not an address of the host", to.ip()));
        } else if is_news {
            notes.push(format!(
                "the host has {}, and portfwd has not been told yet; portfwd up does so",
                to.ip()
            ));
        }
        let around = Around::of(self.netns, &[self.asked.protocol], Look::AtHeld)?;
        let holders = around.holders(self.asked.protocol, to.ip(), to.port())?;
        notes.extend(
            holders
                .into_iter()
                .map(|holder| format!("the port has {holder}")),
        );
        Ok(notes)
    }

    fn way<'a>(&self, target: SocketAddr, device: Option<&'a Link>) -> Way<'a> {
        Way {
            protocol: self.asked.protocol,
            to: self.asked.to,
            target,
            device: device.map(|device| device.name.as_str()),
        }
    }

    /// Why the host's stack does not send it on.
    fn unforwarded(&self, to: IpAddr, device: Option<&Link>) -> Result<Option<String>, Error> {
        let name = device.map_or("all", |device| device.name.as_str());
        let (forwards, setting) = match to {
            IpAddr::V4(_) => (
                self.netns.run_in(|| settings::forwards_v4_here(name))?,
                "net.ipv4.ip_forward",
            ),
            IpAddr::V6(_) => (
                settings::v6(self.netns)?.is_some_and(|v6| v6.forwards),
                "net.ipv6.conf.all.forwarding",
            ),
        };
        let why = || format!("the host does not forward it; sysctl -w {setting}=1");
        Ok((!forwards).then(why))
    }
}

/// Linux takes the unspecified address for its own.
fn meant(to: SocketAddr) -> SocketAddr {
    let own: IpAddr = match to.is_ipv4() {
        true => Ipv4Addr::LOCALHOST.into(),
        false => Ipv6Addr::LOCALHOST.into(),
    };
    match to.ip().is_unspecified() {
        true => SocketAddr::new(own, to.port()),
        false => SocketAddr::new(to.ip(), to.port()),
    }
}

/// Whether it may be that of a whole network, or of everybody in it.
fn is_last_or_first(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => [0, 255].contains(&v4.octets()[3]),
        IpAddr::V6(v6) => v6.octets()[15] == 0,
    }
}

/// An address near another one.
fn beside(address: IpAddr, distance: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            Ipv4Addr::from([a, b, c, d ^ distance]).into()
        }
        IpAddr::V6(v6) => {
            let mut octets = v6.octets();
            octets[15] ^= distance;
            Ipv6Addr::from(octets).into()
        }
    }
}

/// Whether a forward leads nowhere.
fn holds_only(forward: Option<&Owned>) -> bool {
    forward.is_some_and(|forward| forward.record().target.is_unspecified())
}

/// What a reason means for this packet.
fn why(reason: Reason, device: Option<&Link>, from: IpAddr) -> String {
    let device = device.map_or("its device", |device| device.name.as_str());
    match reason {
        Reason::Denied => {
            "--allow or --deny keeps the client out: it sees a closed port".to_owned()
        }
        Reason::DeniedSilently => {
            "--allow or --deny keeps the client out: it gets no answer".to_owned()
        }
        Reason::ReversePath => format!(
            "the way back to {from} does not leave by {device}, which the host asks for (net.ipv4.conf.{device}.rp_filter)"
        ),
        Reason::NotForHost => {
            "it is not sent to an address that the host has by that device".to_owned()
        }
        Reason::ForeignSource => format!("the container behind {device} may not send from {from}"),
        Reason::ImpossibleSource => format!("nobody can send from {from}"),
        Reason::HostSocket => "a socket of the host has that connection".to_owned(),
        other => format!("{} (docs/packet-way.md)", other.name()),
    }
}

impl From<Fate> for Outcome {
    fn from(fate: Fate) -> Self {
        match fate {
            Fate::Redirected(target) => Self::Redirected { target },
            Fate::Translated(target) => Self::Translated { target },
            Fate::Passed(reason) => Self::Passed { reason },
            Fate::Dropped(reason) => Self::Dropped { reason },
        }
    }
}
