//! `portfwd doctor`: looks at everything, and lets the checks judge.

use std::{io, net::SocketAddr};

use portfwd_common::{forward::Delivery, net::Protocol};

use crate::{
    cli::Cli,
    collision::Held,
    datapath::{Datapath, Site},
    doctor::{
        self, Device, Facts, Finding, Host, Instance, Kernel, PastStack, Program, Seen,
        SocketHooks, State, Stray, Tc, Unseen, V6,
    },
    error::{Doing, Error, Lacking, is_permission_denied, one_line},
    hooks::{self, Hook},
    masquerade, object,
    observe::{
        addresses, cgroup,
        foreign::firewall,
        kernel,
        netlink::{self, Session},
        netns::Netns,
        privilege::{Capability, Privileges},
        processes,
        routes::{self, RoutesError},
        settings, sockets,
    },
    report,
    spec::hosts_overlap,
    state::{self, Owned},
};

pub(super) fn run(cli: &Cli) -> Result<(), Error> {
    let netns = match &cli.host_netns {
        Some(path) => Netns::open(path)?,
        None => Netns::current()?,
    };
    let checks = doctor::examine(&look(cli, &netns)?);
    report::to_stdout(|out| match cli.json {
        true => report::write_json(out, &checks),
        false => report::write_checks(out, &checks),
    })?;
    let failed = checks.iter().filter(|one| one.finding == Finding::Fail);
    let failed: Vec<&str> = failed.map(|check| check.name).collect();
    match failed.is_empty() {
        true => Ok(()),
        false => Err(Lacking::Checks(failed).into()),
    }
}

fn look(cli: &Cli, netns: &Netns) -> Result<Facts, Error> {
    let privileges = Privileges::read().doing(|| "read /proc/thread-self/status".to_owned())?;
    let host = addresses::of_host(netns).map_err(unseen);
    let instance = instance(cli, host.as_ref());
    Ok(Facts {
        missing: privileges.missing(&Capability::ALL),
        kernel: look_at_kernel(&instance),
        cgroup: cgroup::find().map_err(unseen),
        host: host.and_then(|host| look_at_host(netns, &host, &instance).map_err(unseen)),
        instance,
    })
}

fn unseen(error: impl std::error::Error + 'static) -> Unseen {
    Unseen(one_line(&error))
}

fn look_at_kernel(instance: &Seen<State>) -> Kernel {
    let program = program();
    Kernel {
        datapath: match (instance, &program) {
            // They are loaded.
            (Ok(State::Up(_)), _) => Ok(Ok(())),
            (_, Ok(Program::Compiled | Program::Interpreted)) => try_datapath(),
            (_, Ok(Program::Refused(why))) => Err(Unseen(why.clone())),
            (_, Err(why)) => Err(why.clone()),
        },
        program,
        btf: kernel::has_btf(),
        tc: tc(),
        route_source: kernel::knows_route_source().map_err(denied),
    }
}

/// What a refusal for want of privileges leaves unseen.
fn denied(error: io::Error) -> Unseen {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            Unseen("it takes CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON".to_owned())
        }
        _ => unseen(error),
    }
}

fn program() -> Seen<Program> {
    match kernel::compiles_programs() {
        Ok(true) => Ok(Program::Compiled),
        Ok(false) => Ok(Program::Interpreted),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(denied(error)),
        Err(error) => Ok(Program::Refused(one_line(&error))),
    }
}

/// Loads what an instance would load; it vanishes at once.
fn try_datapath() -> Seen<Result<(), String>> {
    let options = object::Options {
        host_netns: 0,
        log_level: 0,
    };
    match object::load(options) {
        Ok(_) => Ok(Ok(())),
        Err(error) if is_permission_denied(&error) => Err(unseen(error)),
        Err(error) => Ok(Err(one_line(&error))),
    }
}

fn tc() -> Seen<Tc> {
    if kernel::has_tcx().map_err(denied)? {
        return Ok(Tc::Links);
    }
    match hooks::takes_clsact() {
        Ok(true) => Ok(Tc::Filters),
        Ok(false) => Ok(Tc::None),
        Err(error) => Err(unseen(error)),
    }
}

fn look_at_host(
    netns: &Netns,
    host: &addresses::Host,
    instance: &Seen<State>,
) -> Result<Host, Error> {
    let defaults = netlink::converse(netns, async |session: &mut Session| {
        Ok::<_, RoutesError>(routes::defaults(session).await?)
    });
    let defaults = defaults?;
    let devices = netns.run_in(|| {
        let device = |link: &crate::observe::links::Link| Device {
            name: link.name.clone(),
            forwards_v4: settings::forwards_v4_here(&link.name),
            rp_filter: settings::rp_filter_here(&link.name),
            is_uplink: defaults
                .iter()
                .any(|route| !route.is_v6 && route.ifindex == link.index),
        };
        host.devices.iter().map(device).collect()
    })?;
    let v6 = match settings::v6(netns)? {
        None => V6::Absent,
        Some(v6) if v6.disabled => V6::Disabled,
        Some(v6) => V6::On {
            forwards: v6.forwards,
        },
    };
    Ok(Host {
        devices,
        v6,
        room: masquerade::Room::of(netns).map_err(unseen),
        firewall: match instance {
            Ok(State::Up(instance)) if !instance.past_stack.is_empty() => {
                firewall::firewall(netns).map_err(unseen)
            }
            _ => Ok(Vec::new()),
        },
    })
}

fn instance(cli: &Cli, host: Result<&addresses::Host, &Unseen>) -> Seen<State> {
    let found = || -> Result<Option<Instance>, Error> {
        let Some(site) = Site::of(cli, false)? else {
            return Ok(None);
        };
        let Some(datapath) = site.open()? else {
            return Ok(None);
        };
        describe(&site, &datapath, host.ok()).map(Some)
    };
    match found() {
        Ok(None) => Ok(State::Down),
        Ok(Some(instance)) => Ok(State::Up(instance)),
        Err(error) if error.exit_code() == 5 => Err(Unseen(error.to_string())),
        Err(error) => Ok(State::Unusable {
            why: error.to_string(),
            hint: error.hint(),
        }),
    }
}

fn describe(
    site: &Site,
    datapath: &Datapath,
    host: Option<&addresses::Host>,
) -> Result<Instance, Error> {
    let state = state::read(&datapath.tables)?;
    let (served, unserved) = devices(site, datapath, host)?;
    let stack = |is_v6| {
        let through_stack = |forward: &&Owned| forward.record().delivery == Delivery::Stack as u8;
        let published = state.forwards.iter().filter(through_stack);
        let mut published = published.filter_map(Owned::published);
        published.any(|one| one.container_ip.is_ipv6() == is_v6)
    };
    let masqueraded = masquerade::list(&datapath.tables, &state)?;
    let masquerades = |is_v6| masqueraded.iter().any(|one| one.subnet.is_v6() == is_v6);
    let is_sctp = |held: &&Held| held.protocol == Protocol::Sctp;
    let mut sctp: Vec<String> = state.held.iter().filter(is_sctp).map(shown_port).collect();
    sctp.sort();
    sctp.dedup();
    Ok(Instance {
        name: site.name().to_string(),
        is_own_build: datapath.runs_own_build()?,
        served,
        unserved,
        sockets: match hooks::sockets::attached(&datapath.layout)
            .doing(|| "look at the socket programs".to_owned())?
        {
            None => SocketHooks::None,
            Some(cgroup::ROOT_INODE) => SocketHooks::Root,
            Some(_) => SocketHooks::Part,
        },
        publishes_v6: state.forwards.iter().any(|forward| {
            forward
                .published()
                .is_some_and(|published| published.host_ip.is_ipv6())
        }),
        stack: [stack(false), stack(true)],
        past_stack: past_stack(&state),
        masquerades: [masquerades(false), masquerades(true)],
        sctp,
        strays: strays(site, host, &state.held).map_err(unseen),
    })
}

/// Processes of the host, which alone use a loopback address, are connected to the container itself.
fn past_stack(state: &state::State) -> Vec<PastStack> {
    let is_past = |forward: &&Owned| {
        forward.record().delivery == Delivery::Redirect as u8
            && forward.published().is_some()
            && !addresses::is_loopback(forward.held.host)
    };
    let past = state.forwards.iter().filter(is_past);
    past.map(|forward| PastStack {
        port: shown_port(&forward.held),
        is_v4: forward.held.host.is_ipv4(),
        is_open: state.policy_of(forward).is_open(),
    })
    .collect()
}

fn shown_port(held: &Held) -> String {
    format!("port {} of container \"{}\"", held.ports, held.owner)
}

/// The devices that are served, and those that would be after `up`.
fn devices(
    site: &Site,
    datapath: &Datapath,
    host: Option<&addresses::Host>,
) -> Result<(Vec<String>, Vec<String>), Error> {
    let (mut served, mut unserved) = (Vec::new(), Vec::new());
    let Some(host) = host else {
        return Ok((served, unserved));
    };
    for device in datapath.served(host)? {
        let is_attached =
            hooks::is_attached(&datapath.layout, Hook::Device, &site.host, device.index)?;
        let list = if is_attached {
            &mut served
        } else {
            &mut unserved
        };
        list.push(device.name.clone());
    }
    Ok((served, unserved))
}

/// Sockets that send to a published port by its own number: those that the hooks have seen send to the
/// container instead.
fn strays(site: &Site, host: Option<&addresses::Host>, held: &[Held]) -> Result<Vec<Stray>, Error> {
    let is_own = |peer: SocketAddr| {
        addresses::is_loopback(peer.ip()) || host.is_some_and(|host| host.owns(peer.ip()))
    };
    let is_published = |peer: SocketAddr| {
        held.iter().any(|held| {
            held.protocol == Protocol::Udp
                && held.ports.contains(peer.port())
                && hosts_overlap(Some(held.host), Some(peer.ip()))
        })
    };
    let mut found = sockets::connected_datagrams(&site.host)?;
    found.retain(|socket| is_own(socket.peer) && is_published(socket.peer));
    let inodes: Vec<u32> = found.iter().map(|socket| socket.inode).collect();
    let owners = match inodes.is_empty() {
        true => Default::default(),
        false => processes::owners(&inodes).doing(|| "name processes".to_owned())?,
    };
    let stray = |socket: &sockets::Connected| Stray {
        peer: socket.peer,
        owner: owners.get(&socket.inode).map(ToString::to_string),
    };
    Ok(found.iter().map(stray).collect())
}
