//! `portfwd attach`: observe, plan, apply, report.

mod connect;
pub(super) mod ports;

use std::{collections::BTreeSet, io::Write as _, net::IpAddr};

use portfwd_common::host::Attachment;
use ports::{Around, protocols};

use crate::{
    apply::{self, Step},
    cli::{Attach, Cli},
    collision::Held,
    datapath::{self, Datapath, Options, Site, Writable},
    error::{ContainerError, Error, Missing},
    hooks::{self, Hook},
    label::Label,
    observe::{
        container::{self, ContainerLink},
        netns::Netns,
    },
    plan::{self, Found, Leaving, Plan},
    report::{self, Published},
    spec::Spec,
    state::{self, State},
    talk,
    target::Target,
};

/// What was looked at of a container before there was an instance.
pub(super) struct Observed {
    /// Its namespace, if it was given by one.
    pub(super) inside: Option<Netns>,
    /// Where it is, if that was said and its link is not to be made.
    found: Option<Found>,
}

impl Observed {
    pub(super) fn of(host: &Netns, attach: &Attach) -> Result<Self, Error> {
        let target = attach.target.as_ref();
        let inside = target.map(open_container).transpose()?.flatten();
        let found = match target {
            Some(target) if attach.connection.is_none() => {
                Some(find(host, target, inside.as_ref())?)
            }
            _ => None,
        };
        Ok(Self { inside, found })
    }
}

pub(super) fn run(cli: &Cli, attach: &Attach) -> Result<(), Error> {
    // Everything that can be wrong with what was typed is found before anything is made.
    let host = datapath::host(cli)?;
    let observed = Observed::of(&host, attach)?;
    let site = Site::of(cli, false)?;
    if attach.dry_run {
        let running = site.as_ref().map_or(Ok(None), Site::open)?;
        let plan = make_plan(&host, running.as_ref(), attach, &observed)?;
        ports::warn(&host, &[&plan])?;
        return print(cli, &plan.published);
    }
    // Whatever is wrong with an instance is told by who has its lock.
    if site.is_none_or(|site| site.is_absent()) {
        make_plan(&host, None, attach, &observed)?;
    }
    let site = super::create(cli)?;
    let (mut writable, _) = match site.up(&Options::default()) {
        Ok(up) => up,
        Err(cause) => return Err(site.abandon(cause)),
    };
    let plan = make_plan(&host, Some(&writable.datapath), attach, &observed)?;
    let look_again = || match attach.force {
        true => Ok(()),
        false => ports::check_still_free(&host, &[&plan]),
    };
    let step = Step {
        plan: &plan,
        inside: observed.inside.as_ref(),
    };
    apply::execute(
        &mut writable,
        &host,
        &[step],
        &Leaving::default(),
        look_again,
    )?;
    warn(&host, &writable, &[(attach, &plan)]);
    drop(writable);
    print(cli, &plan.published)
}

/// Says what else is to be known of attaches that were done. They stay done, whatever cannot be looked at for that.
pub(super) fn warn(host: &Netns, writable: &Writable, done: &[(&Attach, &Plan)]) {
    if let Err(error) = look_for_warnings(host, writable, done) {
        talk::warn(&error.to_string());
    }
}

fn look_for_warnings(
    host: &Netns,
    writable: &Writable,
    done: &[(&Attach, &Plan)],
) -> Result<(), Error> {
    warn_of_foreign_addresses(writable, done.iter().flat_map(|(attach, _)| &attach.specs));
    let plans: Vec<&Plan> = done.iter().map(|(_, plan)| *plan).collect();
    ports::warn(host, &plans)?;
    for plan in plans {
        if let Some(connection) = &plan.connection {
            connect::warn(host, connection, plan)?;
        }
    }
    if done.iter().any(|(attach, _)| attach.masquerade) {
        super::masquerade::warn_of_ports(host)?;
    }
    Ok(())
}

fn make_plan(
    host: &Netns,
    running: Option<&Datapath>,
    attach: &Attach,
    observed: &Observed,
) -> Result<Plan, Error> {
    let state = match running {
        Some(datapath) => state::read(&datapath.tables)?,
        None => State::default(),
    };
    let around = Around::of(host, &protocols(attach), ports::look(attach))?;
    let basis = Basis {
        host,
        running,
        state: &state,
        around: &around,
    };
    let mut plans = [plan_on(&basis, &state.held, attach, observed)?];
    plan::follow(&mut plans, &Leaving::default(), &state);
    let [plan] = plans;
    Ok(plan)
}

/// What a plan is made on.
#[derive(Clone, Copy)]
pub(super) struct Basis<'a> {
    pub(super) host: &'a Netns,
    pub(super) running: Option<&'a Datapath>,
    pub(super) state: &'a State,
    pub(super) around: &'a Around,
}

/// Plans an attach, where `held` has its ports. What it follows is not settled yet.
pub(super) fn plan_on(
    basis: &Basis<'_>,
    held: &[Held],
    attach: &Attach,
    observed: &Observed,
) -> Result<Plan, Error> {
    let label = &attach.container;
    let known = basis.state.container(label);
    let found = locate(basis, attach, observed)?;
    let settled = ports::settle(basis.around, held, attach)?;
    let asked = plan::Asked {
        resolved: &settled.resolved,
        loopback: attach.loopback,
        policy: &attach.policy,
        masquerade: attach.masquerade,
        replace: attach.replace,
    };
    if !attach.replace {
        plan::check_existing(label, basis.state, &asked)?;
    }
    let plan = plan::attach(label, known, &found, &asked)?;
    let plan = Plan {
        shadowed: settled.shadowed,
        passed_by: settled.passed_by,
        ..plan
    };
    Ok(match attach.replace {
        true => plan.in_place_of(basis.state),
        false => plan,
    })
}

/// Where the container is: as it was said, or as it is known.
fn locate(basis: &Basis<'_>, attach: &Attach, observed: &Observed) -> Result<Found, Error> {
    let (host, label) = (basis.host, &attach.container);
    let known = basis.state.container(label);
    let found = match (&attach.connection, &observed.inside) {
        (Some(connection), Some(inside)) => Some(connect::find(
            host,
            inside,
            connection,
            &basis.state.links(),
        )?),
        _ => observed.found.clone(),
    };
    match (found, known, basis.running) {
        (Some(Found::Unconnected(_, netns)), Some(known), _) if known.netns == netns => {
            Err(ContainerError::LinkGone(label.clone()).into())
        }
        (Some(found), ..) => Ok(found),
        (None, Some(known), Some(datapath)) => as_known(host, datapath, label, known),
        // What runs the container is asked in a later version; nobody else knows the name.
        _ => Err(Missing::Target(label.clone()).into()),
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
fn warn_of_foreign_addresses<'a>(writable: &Writable, specs: impl Iterator<Item = &'a Spec>) {
    let addresses: BTreeSet<IpAddr> = specs.filter_map(|spec| spec.host).collect();
    for address in addresses {
        let own = address.is_unspecified() || address.is_loopback() || writable.host.owns(address);
        if !own {
            talk::warn(&format!("{address} is not an address of the host now"));
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
