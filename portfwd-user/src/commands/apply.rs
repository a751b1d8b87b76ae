//! `portfwd apply`: a declared set becomes what is published, at one instant.

use std::{collections::BTreeSet, io::Write as _, net::IpAddr};

use portfwd_common::net::Protocol;

use super::attach::{self, Basis, Observed, plan_on, ports};
use crate::{
    apply::{self, Step},
    cli::{Apply, Cli, Declared, declared},
    collision::Held,
    datapath::{self, Datapath, Options, Site},
    declaration,
    error::{Doing, Error, Usage},
    label::Label,
    masquerade,
    observe::{netns::Netns, sockets::Look},
    plan::{self, Leaving, Plan},
    report::{self, Changes},
    spec::{HostPorts, PortRange},
    state::{self, Owned, State},
    talk, transaction,
};

/// What a file declares, and where its containers are.
struct DeclaredSet {
    file: String,
    declared: Vec<Declared>,
    observed: Vec<Observed>,
}

impl DeclaredSet {
    /// The error, at the declaration that it is about.
    fn at(&self, declared: &Declared, cause: Error) -> Error {
        let line_of = |label: &Label| {
            let mut all = self.declared.iter();
            let other = all.find(|other| other.attach.container == *label)?;
            Some(other.line)
        };
        let cause = match cause {
            Error::Collision(collision) => collision.among_declared(line_of).into(),
            cause => cause,
        };
        Error::Declared {
            file: self.file.clone(),
            line: declared.line,
            cause: Box::new(cause),
        }
    }
}

/// What is going to be done.
struct SetPlan {
    plans: Vec<Plan>,
    pruned: Leaving,
    changes: Changes,
}

pub(super) fn run(cli: &Cli, asked: &Apply) -> Result<(), Error> {
    // Everything that can be wrong with the file is found before anything is made.
    let host = datapath::host(cli)?;
    let set = read(&host, asked)?;
    if set.declared.is_empty() && !asked.prune {
        talk::warn(&format!(
            "{} declares no container: nothing is published, nor withdrawn without --prune",
            set.file
        ));
    }
    let site = Site::of(cli, false)?;
    if asked.dry_run {
        let running = site.as_ref().map_or(Ok(None), Site::open)?;
        let whole = make_plans(&host, running.as_ref(), asked, &set)?;
        return print(cli, &whole.changes);
    }
    // Whatever is wrong with an instance is told by who has its lock.
    if site.is_none_or(|site| site.is_absent()) {
        make_plans(&host, None, asked, &set)?;
    }
    let site = super::create(cli)?;
    let (mut writable, _) = match site.up(&Options::default()) {
        Ok(up) => up,
        Err(cause) => return Err(site.abandon(cause)),
    };
    let whole = make_plans(&host, Some(&writable.datapath), asked, &set)?;
    let look_again = || {
        let plans = set.declared.iter().zip(&whole.plans);
        let mut plans = plans.filter(|_| !asked.force);
        plans.try_for_each(|(declared, plan)| {
            let free = ports::check_still_free(&host, &[plan]);
            free.map_err(|cause| set.at(declared, cause))
        })
    };
    let steps = whole.plans.iter().zip(&set.observed);
    let steps = steps.map(|(plan, observed)| Step {
        plan,
        inside: observed.inside.as_ref(),
    });
    let steps: Vec<Step<'_>> = steps.collect();
    apply::execute(&mut writable, &host, &steps, &whole.pruned, look_again)?;
    print(cli, &whole.changes)?;
    // The same set again may be applied every minute.
    let is_masqueraded = |plan: &Plan| whole.changes.masqueraded.contains(&plan.label);
    let attaches = set.declared.iter().map(|declared| &declared.attach);
    let all = attaches.zip(&whole.plans);
    let changed = all.filter(|(_, plan)| !plan.is_as_it_was() || is_masqueraded(plan));
    attach::warn(&host, &writable, &changed.collect::<Vec<_>>());
    Ok(())
}

fn read(host: &Netns, asked: &Apply) -> Result<DeclaredSet, Error> {
    let (file, text) = declaration::read(&asked.file)?;
    let declared = declared(&file, &text, asked.host, asked.force)?;
    let mut set = DeclaredSet {
        file,
        declared,
        observed: Vec::new(),
    };
    for declared in &set.declared {
        let observed = Observed::of(host, &declared.attach);
        set.observed
            .push(observed.map_err(|cause| set.at(declared, cause))?);
    }
    Ok(set)
}

fn make_plans(
    host: &Netns,
    running: Option<&Datapath>,
    asked: &Apply,
    set: &DeclaredSet,
) -> Result<SetPlan, Error> {
    let state = match running {
        Some(datapath) => state::read(&datapath.tables)?,
        None => State::default(),
    };
    let protocols: BTreeSet<Protocol> = set
        .declared
        .iter()
        .flat_map(|declared| ports::protocols(&declared.attach))
        .collect();
    let around = ports::Around::of(
        host,
        &protocols.into_iter().collect::<Vec<_>>(),
        Look::AtHeld,
    )?;
    let basis = Basis {
        host,
        running,
        state: &state,
        around: &around,
    };
    let mut claims = Claims::of(&state, set, asked.prune);
    let mut plans = Vec::new();
    for (number, (declared, observed)) in set.declared.iter().zip(&set.observed).enumerate() {
        let held = claims.beside(number);
        let plan = plan_on(&basis, &held, &declared.attach, observed);
        let plan = plan.map_err(|cause| set.at(declared, cause))?;
        claims.settle(number, &plan, &state);
        check_connections(&plans, &plan).map_err(|cause| set.at(declared, cause))?;
        plans.push(plan);
    }
    let pruned = match asked.prune {
        true => pruned(&state, set),
        false => Leaving::default(),
    };
    let mut changes = changes(&state, &plans, &pruned);
    for (declared, plan) in set.declared.iter().zip(&mut plans) {
        let was = is_masqueraded(running, plan)?;
        match declared.attach.masquerade {
            true if !was => changes.masqueraded.push(plan.label.clone()),
            false if was => {
                changes.unmasqueraded.push(plan.label.clone());
                plan.leaving.unmasqueraded.insert(plan.container.id);
            }
            _ => {}
        }
    }
    plan::follow(&mut plans, &pruned, &state);
    Ok(SetPlan {
        plans,
        pruned,
        changes,
    })
}

/// Whether what the container of `plan` sends is masqueraded.
fn is_masqueraded(running: Option<&Datapath>, plan: &Plan) -> Result<bool, Error> {
    let (Some(datapath), true) = (running, plan.known) else {
        return Ok(false);
    };
    let owner = masquerade::owner(&datapath.tables, plan.container.id);
    let owner = owner.doing(|| "read what is masqueraded".to_owned())?;
    let committed = transaction::committed(&datapath.tables);
    Ok(owner.is_some_and(|owner| owner.is_masqueraded(committed)))
}

/// Links that are made together must not be in each other's way: their hosts' ends are on one host.
fn check_connections(earlier: &[Plan], plan: &Plan) -> Result<(), Error> {
    let Some(connection) = &plan.connection else {
        return Ok(());
    };
    let is_at_odds = |other: &&Plan| {
        let other = other.connection.as_ref();
        other.is_some_and(|other| other.overlaps(connection))
    };
    match earlier.iter().find(is_at_odds) {
        None => Ok(()),
        Some(other) => Err(Usage {
            message: format!(
                "connect has addresses of the subnet of container \"{}\"",
                other.label
            ),
            hint: Some("give each container a subnet of its own".to_owned()),
        }
        .into()),
    }
}

/// What has ports while a set is planned.
struct Claims {
    /// Of containers that stay as they are.
    others: Vec<Held>,
    /// Of each declared container, what it has now.
    own: Vec<Vec<Held>>,
    /// Of each declared container, what it is going to have, as far as that is known.
    wanted: Vec<Vec<Held>>,
}

impl Claims {
    fn of(state: &State, set: &DeclaredSet, prune: bool) -> Self {
        let is_declared = |held: &&Held| set.declares(held);
        let others = state
            .held
            .iter()
            .filter(|held| !prune && !is_declared(held));
        let own = |declared: &Declared| -> Vec<Held> {
            let held = state.held.iter();
            let own = held.filter(|held| held.owner == declared.attach.container);
            own.cloned().collect()
        };
        let own: Vec<Vec<Held>> = set.declared.iter().map(own).collect();
        let wanted = set.declared.iter().zip(&own);
        Self {
            others: others.cloned().collect(),
            wanted: wanted
                .map(|(declared, own)| certain(declared, own))
                .collect(),
            own,
        }
    }

    /// What is in the way of the declared container of that number, and what it has itself.
    fn beside(&self, number: usize) -> Vec<Held> {
        let wanted = self.wanted.iter().enumerate();
        let wanted = wanted.filter(|(other, _)| *other != number);
        let mut held = self.others.clone();
        held.extend(wanted.flat_map(|(_, wanted)| wanted.iter().cloned()));
        held.extend(self.own[number].iter().cloned());
        held
    }

    /// Notes what the container of that number gets by its plan, and keeps.
    fn settle(&mut self, number: usize, plan: &Plan, state: &State) {
        let stays = state
            .forwards
            .iter()
            .filter(|owned| owned.owner == plan.label && !goes(owned, &plan.leaving));
        let new = plan.forwards.iter().filter_map(|forward| {
            Some(Held {
                owner: plan.label.clone(),
                protocol: forward.protocol,
                host: IpAddr::from(forward.host),
                ports: PortRange::from_count(forward.host_port, forward.count)?,
                container: PortRange::from_count(forward.target_port, forward.count)?,
            })
        });
        let stays = stays.map(|owned| owned.held.clone());
        self.wanted[number] = stays.chain(new).collect();
    }
}

impl DeclaredSet {
    fn declares(&self, held: &Held) -> bool {
        let mut declared = self.declared.iter();
        declared.any(|declared| declared.attach.container == held.owner)
    }
}

/// What a declared container gets whatever others get: ports that are given, and of chosen ones those it has.
fn certain(declared: &Declared, own: &[Held]) -> Vec<Held> {
    let mut certain = Vec::new();
    for spec in &declared.attach.specs {
        match spec.ports {
            HostPorts::Fixed(ports) => certain.extend(spec.hosts().map(|host| Held {
                owner: declared.attach.container.clone(),
                protocol: spec.protocol,
                host,
                ports,
                container: spec.container,
            })),
            HostPorts::Pool(_) | HostPorts::Chosen => {
                let has = |held: &&Held| {
                    spec.selects(held.protocol, held.host, held.ports, held.container)
                };
                certain.extend(own.iter().filter(has).cloned());
            }
        }
    }
    certain
}

/// What opens connections for containers that the set does not name. Those that are open end, unless they drain
/// already: a swap is not undone by the next `apply`.
fn pruned(state: &State, set: &DeclaredSet) -> Leaving {
    let others = state.forwards.iter();
    let others: Vec<&Owned> = others.filter(|owned| !set.declares(&owned.held)).collect();
    let attachment = |owned: &Owned| owned.record().attachment;
    let drain: BTreeSet<u32> = state.draining.iter().map(attachment).collect();
    let containers = others.iter().map(|owned| attachment(owned));
    Leaving {
        forwards: others.iter().flat_map(|owned| owned.indexes()).collect(),
        containers: containers.filter(|id| !drain.contains(id)).collect(),
        ..Leaving::default()
    }
}

/// Whether a forward is one of those that go.
fn goes(owned: &Owned, leaving: &Leaving) -> bool {
    owned
        .indexes()
        .any(|index| leaving.forwards.contains(&index))
}

fn changes(state: &State, plans: &[Plan], pruned: &Leaving) -> Changes {
    let new = plans.iter().flat_map(Plan::newly_published);
    let is_withdrawn = |owned: &&Owned| {
        let mut leaving = plans.iter().map(|plan| &plan.leaving).chain([pruned]);
        leaving.any(|leaving| goes(owned, leaving))
    };
    let withdrawn = state.forwards.iter().filter(is_withdrawn);
    Changes::new(
        new.collect(),
        withdrawn.filter_map(Owned::published).collect(),
    )
}

fn print(cli: &Cli, changes: &Changes) -> Result<(), Error> {
    report::to_stdout(|out| {
        if cli.json {
            return report::write_json(out, changes);
        }
        changes.write(out)?;
        out.flush()
    })
}
