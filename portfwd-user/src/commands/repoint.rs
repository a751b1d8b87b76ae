//! `portfwd repoint`: a container's ports become another one's.

use portfwd_common::forward::Forward;

use super::attach::{as_known, find, open_container, print};
use crate::{
    apply::{self, Step},
    cli::{Cli, Drain, Repoint},
    clock,
    datapath::{self, Datapath, Site},
    error::{ContainerError, Error, Missing},
    hooks,
    observe::netns::Netns,
    plan::{self, Found, Leaving, Plan},
    state,
};

pub(super) fn run(cli: &Cli, repoint: &Repoint) -> Result<(), Error> {
    let target = repoint.target.as_ref();
    let inside = target.map(open_container).transpose()?.flatten();
    let host = datapath::host(cli)?;
    let found = target.map(|target| find(&host, target, inside.as_ref()));
    let found = found.transpose()?;
    let missing = || Missing::Container(repoint.container.clone());
    let site = Site::of(cli, false)?.ok_or_else(missing)?;
    if repoint.dry_run {
        let datapath = site.open()?.ok_or_else(missing)?;
        let plan = make_plan(&host, &datapath, repoint, found, inside.is_some())?;
        return print(cli, &plan.published);
    }
    let mut writable = site.open_writable()?.ok_or_else(missing)?;
    let plan = make_plan(&host, &writable.datapath, repoint, found, inside.is_some())?;
    // Nobody can have bound the ports: they were published all the time.
    let step = Step {
        plan: &plan,
        inside: inside.as_ref(),
    };
    apply::execute(
        &mut writable,
        &host,
        &[step],
        &Leaving::default(),
        || Ok(()),
    )?;
    drop(writable);
    print(cli, &plan.published)
}

fn make_plan(
    host: &Netns,
    datapath: &Datapath,
    repoint: &Repoint,
    found: Option<Found>,
    is_open: bool,
) -> Result<Plan, Error> {
    let Repoint { container, to, .. } = repoint;
    let state = state::read(&datapath.tables)?;
    if state.container(container).is_none() {
        return Err(Missing::Container(container.clone()).into());
    }
    let moved = state.of(container);
    let opens = |owned: &&state::Owned| owned.record().until == Forward::FOREVER;
    let moved: Vec<&state::Owned> = moved.into_iter().filter(opens).collect();
    if moved.is_empty() {
        return Err(ContainerError::Drains(container.clone()).into());
    }
    let known = state.container(to);
    let found = match (found, known) {
        (Some(found), _) => found,
        (None, Some(known)) => as_known(host, datapath, to, known)?,
        (None, None) => return Err(Missing::Target(to.clone()).into()),
    };
    let drained = match repoint.drain {
        Drain::Unlimited => Some(Forward::FOREVER),
        Drain::For(time) => Some(clock::second_after(time)),
        Drain::Cut => None,
    };
    let plan = plan::repoint(to, known, &found, &moved, drained)?;
    let loopback = plan.forwards.iter().any(|forward| forward.loopback);
    let is_inside = || hooks::loopback::is_attached(&datapath.layout, plan.container.netns);
    if loopback && !is_open && !is_inside()? {
        let (from, to) = (container.clone(), to.clone());
        return Err(ContainerError::NotInside { from, to }.into());
    }
    Ok(plan)
}
