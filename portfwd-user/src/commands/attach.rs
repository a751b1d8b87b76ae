//! `portfwd attach`: observe, plan, apply, report.

use std::{
    collections::{BTreeSet, HashSet},
    io::Write as _,
    net::IpAddr,
};

use portfwd_common::net::Protocol;

use crate::{
    apply,
    cli::{Attach, Cli},
    collision::{CollisionError, Listener, Occupied, PortSet, Resolved, Rule},
    datapath::{self, Datapath, Options, Site, Writable},
    error::{ContainerError, Doing, Error, Missing},
    hooks::{self, Hook},
    label::Label,
    observe::{
        container::{self, ContainerLink},
        foreign,
        local_ports::LocalPorts,
        netns::Netns,
        processes, sockets,
    },
    plan::{self, Found, Plan},
    report::{self, Published},
    spec::{PortRange, Spec},
    state,
    target::Target,
};

pub(super) fn run(cli: &Cli, attach: &Attach) -> Result<(), Error> {
    let target = attach.target.as_ref();
    // Everything that can be wrong with what was typed is found before anything is made.
    let container = target.map(open_container).transpose()?.flatten();
    let host = datapath::host(cli)?;
    let found = match target {
        Some(target) => Some(find(&host, target, container.as_ref())?),
        None => None,
    };
    let site = Site::of(cli, false)?;
    let running = site.as_ref().map_or(Ok(None), Site::open);
    if attach.dry_run {
        let plan = make_plan(&host, running?.as_ref(), attach, found)?;
        return print(cli, &plan.published);
    }
    // Whatever else is wrong with an instance is told by who has its lock.
    if let Ok(None) = running {
        make_plan(&host, None, attach, found.clone())?;
    }
    drop((site, running));
    let site = super::create(cli)?;
    let (mut writable, _) = match site.up(&Options::default()) {
        Ok(up) => up,
        Err(cause) => return Err(site.abandon(cause)),
    };
    let plan = make_plan(&host, Some(&writable.datapath), attach, found)?;
    let look_again = || check_still_free(&host, &plan);
    apply::attach(&mut writable, &host, container.as_ref(), &plan, look_again)?;
    warn_of_foreign_addresses(&writable, &attach.specs);
    for place in &plan.passed_by {
        eprintln!("warning: what is published passes by a rule for every port: {place}");
    }
    warn_of_shared_ports(&LocalPorts::of(&host)?, &plan);
    if attach.masquerade {
        super::masquerade::warn_of_ports(&host)?;
    }
    drop(writable);
    print(cli, &plan.published)
}

fn make_plan(
    host: &Netns,
    running: Option<&Datapath>,
    attach: &Attach,
    found: Option<Found>,
) -> Result<Plan, Error> {
    let state = match running {
        Some(datapath) => state::read(&datapath.tables)?,
        None => state::State::default(),
    };
    let known = state.container(&attach.container);
    let found = match (found, known, running) {
        (Some(found), ..) => found,
        (None, Some(known), Some(datapath)) => {
            if known.link != 0
                && !hooks::is_attached(&datapath.layout, Hook::Link, host, known.link)?
            {
                return Err(ContainerError::LinkGone(attach.container.clone()).into());
            }
            Found::Known(*known)
        }
        // What runs the container is asked in a later version; nobody else knows the name.
        _ => return Err(Missing::Target(attach.container.clone()).into()),
    };
    let (resolved, passed_by) = settle_ports(host, &state, &attach.container, &attach.specs)?;
    let (label, loopback) = (&attach.container, attach.loopback);
    plan::check_listeners(label, &state.forwards, &resolved, loopback)?;
    let asked = plan::Asked {
        resolved: &resolved,
        loopback,
        masquerade: attach.masquerade,
    };
    let plan = plan::attach(label, known, &found, &asked)?;
    Ok(Plan { passed_by, ..plan })
}

/// An address may come later; more often it is a slip.
fn warn_of_foreign_addresses(writable: &Writable, specs: &[Spec]) {
    let addresses: BTreeSet<IpAddr> = specs.iter().filter_map(|spec| spec.host).collect();
    for address in addresses {
        let own = address.is_unspecified() || address.is_loopback() || writable.host.owns(address);
        if !own {
            eprintln!("warning: {address} is not an address of the host now");
        }
    }
}

/// The reservation holds for those who name a port; whom the kernel gives one, it gives any.
fn warn_of_shared_ports(local: &LocalPorts, plan: &Plan) {
    let ports = plan
        .forwards
        .iter()
        .filter_map(|forward| PortRange::from_count(forward.host_port, forward.count));
    let shared: BTreeSet<PortRange> = ports.filter_map(|ports| local.shared_with(ports)).collect();
    for ports in shared {
        eprintln!(
            "warning: the kernel may give port {ports} to connections of the host as well \
             (net.ipv4.ip_local_port_range): their peers cannot reach the container by it; {}",
            local.reserve_command(ports)
        );
    }
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

/// The host ports, against what is held, who listens, and what others' rules take.
fn settle_ports(
    host: &Netns,
    state: &state::State,
    owner: &Label,
    specs: &[Spec],
) -> Result<(Vec<Resolved>, BTreeSet<String>), Error> {
    let protocols = distinct(specs.iter().map(|spec| spec.protocol));
    let (listening, local, rules) = host.run_in(|| {
        (
            sockets::listeners_here(&protocols),
            LocalPorts::here(),
            foreign::rules_here(),
        )
    })?;
    let reserved = local?.reserved;
    let rules = rules.doing(|| "look for ports that others' rules take".to_owned())?;
    let resolved = among(&listening?, |listeners| {
        Occupied {
            held: &state.held,
            listeners,
            rules: &rules,
            reserved: &reserved,
        }
        .resolve(owner, specs)
    })?;
    Ok((resolved, rules_for_every_port(&rules, specs)))
}

/// Whether still nobody listens on what is going to be published.
fn check_still_free(host: &Netns, plan: &Plan) -> Result<(), Error> {
    let protocols = distinct(plan.forwards.iter().map(|forward| forward.protocol));
    let listening = sockets::listeners(host, &protocols)?;
    among(&listening, |listeners| {
        let occupied = Occupied {
            held: &[],
            listeners,
            rules: &[],
            reserved: &PortSet::new(),
        };
        let mut collisions = plan.forwards.iter().filter_map(|forward| {
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
        Err(_) => {
            let inodes: Vec<u32> = listening.iter().map(|socket| socket.inode).collect();
            let owners = processes::owners(&inodes).doing(|| "name processes".to_owned())?;
            let named: Vec<Listener> = listening
                .iter()
                .map(|socket| socket.named(owners.get(&socket.inode)))
                .collect();
            Ok(ask(&named)?)
        }
    }
}

fn open_container(target: &Target) -> Result<Option<Netns>, Error> {
    Ok(match target {
        Target::Netns(path) => Some(Netns::open(path)?),
        Target::Pid(pid) => Some(Netns::of_process(*pid)?),
        Target::Addresses(_) => None,
    })
}

fn find(host: &Netns, target: &Target, netns: Option<&Netns>) -> Result<Found, Error> {
    let (link, cookie): (ContainerLink, u64) = match (target, netns) {
        (Target::Addresses(addresses), _) => {
            let v4 = addresses.v4.map(std::net::IpAddr::V4);
            let v6 = addresses.v6.map(std::net::IpAddr::V6);
            let ips: Vec<_> = v4.into_iter().chain(v6).collect();
            (container::find_by_address(host, &ips)?, 0)
        }
        (_, Some(netns)) => (container::find(host, netns)?, netns.cookie()?),
        (Target::Netns(path), None) => return Err(Missing::Namespace(path.clone()).into()),
        (Target::Pid(pid), None) => return Err(Missing::Process(*pid).into()),
    };
    Ok(Found::Link(Box::new(link), cookie))
}

fn print(cli: &Cli, published: &[Published]) -> Result<(), Error> {
    let mut rows = published.to_vec();
    report::sort(&mut rows);
    report::to_stdout(|out| {
        if cli.json {
            return report::write_json(out, &rows);
        }
        report::write_ports(out, &rows, None)?;
        out.flush()
    })
}
