//! `portfwd attach`: observe, plan, apply, report.

mod connect;
mod ports;

use std::{collections::BTreeSet, io::Write as _, net::IpAddr};

use portfwd_common::host::Attachment;

use crate::{
    apply,
    cli::{Attach, Cli},
    datapath::{self, Datapath, Options, Site, Writable},
    error::{ContainerError, Error, Missing},
    hooks::{self, Hook},
    label::Label,
    observe::{
        container::{self, ContainerLink},
        netns::Netns,
    },
    plan::{self, Found, Plan},
    report::{self, Published},
    spec::Spec,
    state::{self, State},
    target::Target,
};

/// What was looked at before there was an instance.
struct Observed<'a> {
    host: &'a Netns,
    /// The container's namespace, if it was given by one.
    inside: Option<&'a Netns>,
    /// The container, if it was said where it is, and its link is not to be made.
    found: Option<Found>,
}

pub(super) fn run(cli: &Cli, attach: &Attach) -> Result<(), Error> {
    let target = attach.target.as_ref();
    // Everything that can be wrong with what was typed is found before anything is made.
    let container = target.map(open_container).transpose()?.flatten();
    let host = datapath::host(cli)?;
    let inside = container.as_ref();
    let found = match target {
        Some(target) if attach.connection.is_none() => Some(find(&host, target, inside)?),
        _ => None,
    };
    let observed = Observed {
        host: &host,
        inside,
        found,
    };
    let site = Site::of(cli, false)?;
    let running = site.as_ref().map_or(Ok(None), Site::open);
    if attach.dry_run {
        let plan = make_plan(&observed, running?.as_ref(), attach)?;
        return print(cli, &plan.published);
    }
    // Whatever else is wrong with an instance is told by who has its lock.
    if let Ok(None) = running {
        make_plan(&observed, None, attach)?;
    }
    drop((site, running));
    let site = super::create(cli)?;
    let (mut writable, _) = match site.up(&Options::default()) {
        Ok(up) => up,
        Err(cause) => return Err(site.abandon(cause)),
    };
    let plan = make_plan(&observed, Some(&writable.datapath), attach)?;
    let look_again = || match attach.force {
        true => Ok(()),
        false => ports::check_still_free(&host, &plan),
    };
    apply::attach(&mut writable, &host, inside, &plan, look_again)?;
    warn_of_foreign_addresses(&writable, &attach.specs);
    ports::warn(&host, &plan)?;
    if let Some(connection) = &attach.connection {
        connect::warn(&host, connection, &plan)?;
    }
    if attach.masquerade {
        super::masquerade::warn_of_ports(&host)?;
    }
    drop(writable);
    print(cli, &plan.published)
}

fn make_plan(
    observed: &Observed<'_>,
    running: Option<&Datapath>,
    attach: &Attach,
) -> Result<Plan, Error> {
    let state = match running {
        Some(datapath) => state::read(&datapath.tables)?,
        None => State::default(),
    };
    let known = state.container(&attach.container);
    let found = locate(observed, running, attach, &state)?;
    let label = &attach.container;
    let in_the_way = match attach.replace {
        true => state.without(label),
        false => state.clone(),
    };
    let settled = ports::settle(observed.host, &in_the_way, attach)?;
    let asked = plan::Asked {
        resolved: &settled.resolved,
        loopback: attach.loopback,
        policy: &attach.policy,
        masquerade: attach.masquerade,
        replace: attach.replace,
    };
    plan::check_existing(label, &in_the_way, &asked)?;
    let plan = plan::attach(label, known, &found, &asked)?;
    let plan = Plan {
        shadowed: settled.shadowed,
        passed_by: settled.passed_by,
        ..plan
    };
    Ok(match attach.replace {
        true => plan.in_place_of(&state),
        false => plan,
    })
}

/// Where the container is: as it was said, or as it is known.
fn locate(
    observed: &Observed<'_>,
    running: Option<&Datapath>,
    attach: &Attach,
    state: &State,
) -> Result<Found, Error> {
    let Observed { host, inside, .. } = observed;
    let known = state.container(&attach.container);
    let gone = || ContainerError::LinkGone(attach.container.clone());
    let found = match (&attach.connection, inside) {
        (Some(connection), Some(inside)) => {
            Some(connect::find(host, inside, connection, &state.links())?)
        }
        _ => observed.found.clone(),
    };
    match (found, known, running) {
        (Some(Found::Unconnected(_, netns)), Some(known), _) if known.netns == netns => {
            Err(gone().into())
        }
        (Some(found), ..) => Ok(found),
        (None, Some(known), Some(datapath)) => as_known(host, datapath, &attach.container, known),
        // What runs the container is asked in a later version; nobody else knows the name.
        _ => Err(Missing::Target(attach.container.clone()).into()),
    }
}

/// A container where it is known to be.
pub(super) fn as_known(
    host: &Netns,
    datapath: &Datapath,
    label: &Label,
    known: &Attachment,
) -> Result<Found, Error> {
    let layout = &datapath.layout;
    if known.link != 0 && !hooks::is_attached(layout, Hook::Link, host, known.link)? {
        return Err(ContainerError::LinkGone(label.clone()).into());
    }
    Ok(Found::Known(*known))
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

pub(super) fn open_container(target: &Target) -> Result<Option<Netns>, Error> {
    Ok(match target {
        Target::Netns(path) => Some(Netns::open(path)?),
        Target::Pid(pid) => Some(Netns::of_process(*pid)?),
        Target::Addresses(_) => None,
    })
}

pub(super) fn find(host: &Netns, target: &Target, netns: Option<&Netns>) -> Result<Found, Error> {
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

pub(super) fn print(cli: &Cli, published: &[Published]) -> Result<(), Error> {
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
