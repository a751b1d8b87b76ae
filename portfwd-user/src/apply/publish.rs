//! One transaction of plans, from what packets cannot see yet to the commit.

use std::{
    net::IpAddr,
    panic,
    thread::{self, ScopedJoinHandle},
    time::{SystemTime, UNIX_EPOCH},
};

use portfwd_common::{
    forward::{CLAIM_LIFETIME, Delivery, MAX_FORWARDS},
    host, maps,
    net::Ip,
};

use super::{Step, let_go};
use crate::{
    clock,
    datapath::Datapath,
    error::{Doing, Error},
    hooks::{self, Hook},
    instance::Layout,
    masquerade,
    observe::{
        addresses::Host,
        netns::{Netns, NetnsError},
    },
    plan::{Leaving, LinkPlan, Plan},
    policy,
    tables::{TableError, Tables},
    transaction::{self, NewForward, Transaction},
};

/// Publishes plans in one transaction, and lets `others` go with it.
pub(super) fn publish(
    datapath: &mut Datapath,
    host: &Host,
    netns: &Netns,
    steps: &[Step<'_>],
    others: &Leaving,
    look_again: impl Fn() -> Result<(), Error>,
) -> Result<(), Error> {
    transaction::announce(&datapath.tables);
    for Step { plan, .. } in steps {
        let through_stack = |forward: &NewForward| forward.delivery == Delivery::Stack;
        if plan.masquerade {
            datapath.masquerade(host, netns)?;
        } else if plan.forwards.iter().any(through_stack) {
            datapath.attach_egress(host, netns)?;
        }
        if let Some(inside) = &plan.inside {
            datapath.make_ready_for(&[inside])?;
        }
    }
    let Datapath { tables, layout } = datapath;
    let mut transaction = Transaction::begin(tables);
    let ids: Vec<u32> = steps
        .iter()
        .map(|step| id_of(transaction.tables(), step.plan))
        .collect();
    // The addresses go before the hooks that ask for them.
    for (Step { plan, .. }, id) in steps.iter().zip(&ids) {
        if let Some(link) = &plan.link {
            allow_sources(transaction.tables(), link, *id)?;
        }
    }
    thread::scope(|scope| {
        let mut hooks = start_hooks(scope, layout, netns, steps)?;
        for (step, id) in steps.iter().zip(ids) {
            write(&mut transaction, step.plan, id)?;
        }
        let_go(&mut transaction, others)?;
        if steps.iter().all(|step| step.plan.forwards.is_empty()) {
            return finished(hooks);
        }
        claim(&transaction, || {
            look_again()?;
            finished(hooks.take())
        })
    })?;
    transaction.commit();
    Ok(())
}

/// A thread that attaches hooks, if there are any.
type Hooks<'scope> = Option<ScopedJoinHandle<'scope, Result<(), Error>>>;

/// Attaches the hooks that plans need in a thread: the kernel waits for all CPUs with each (`tcx_entry_sync`), and
/// the rest is done meanwhile.
fn start_hooks<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    layout: &'scope Layout,
    netns: &'scope Netns,
    steps: &'scope [Step<'scope>],
) -> Result<Hooks<'scope>, Error> {
    let needs_hook = |Step { plan, .. }: &Step<'_>| plan.link.is_some() || plan.inside.is_some();
    if !steps.iter().any(needs_hook) {
        return Ok(None);
    }
    let attach_all = move || {
        steps
            .iter()
            .try_for_each(|step| attach_hooks(layout, netns, step))
    };
    let started = thread::Builder::new().spawn_scoped(scope, attach_all);
    let thread = started.map_err(|source| NetnsError::Thread {
        name: netns.origin().clone(),
        source,
    })?;
    Ok(Some(thread))
}

/// What the thread came to, once it has.
fn finished(hooks: Hooks<'_>) -> Result<(), Error> {
    hooks.map_or(Ok(()), |thread| {
        thread
            .join()
            .unwrap_or_else(|panic| panic::resume_unwind(panic))
    })
}

fn attach_hooks(
    layout: &Layout,
    netns: &Netns,
    Step { plan, inside }: &Step<'_>,
) -> Result<(), Error> {
    if let Some(link) = &plan.link {
        hooks::attach(layout, Hook::Link, netns, &link.link)?;
    }
    if let (Some(device), Some(inside)) = (&plan.inside, inside) {
        hooks::loopback::attach(layout, plan.container.netns, inside, device)?;
    }
    Ok(())
}

fn id_of(tables: &mut Tables, plan: &Plan) -> u32 {
    match plan.known {
        true => plan.container.id,
        false => next_id(tables),
    }
}

/// Writes a plan for the attachment `id`.
fn write(transaction: &mut Transaction<'_>, plan: &Plan, id: u32) -> Result<(), Error> {
    let doing = || format!("record the addresses of {}", plan.label);
    if !plan.addresses.is_empty() {
        masquerade::set_addresses(transaction.tables(), id, &plan.addresses).doing(doing)?;
    }
    transaction
        .publish_owner(id, plan.masquerade)
        .doing(doing)?;
    let policy = store_policy(transaction.tables(), plan)?;
    for forward in &plan.forwards {
        let mut forward = NewForward {
            attachment: id,
            ..*forward
        };
        if let Some(policy) = policy {
            forward.policy = policy;
            forward.policy_flags = plan.policy.flags();
        }
        transaction
            .publish(&forward)
            .doing(|| format!("publish port {}", forward.host_port))?;
    }
    record_container(transaction.tables(), plan, id)?;
    let_go(transaction, &plan.leaving)
}

/// Stores who may open connections; None if everybody may.
fn store_policy(tables: &mut Tables, plan: &Plan) -> Result<Option<u32>, Error> {
    if plan.policy.is_open() || plan.forwards.is_empty() {
        return Ok(None);
    }
    let number = next_id(tables);
    policy::store(tables, number, &plan.policy).doing(|| "store who may connect".to_owned())?;
    Ok(Some(number))
}

/// Claims the ports and looks who had them before; again if that took so long that the claim may be over.
fn claim(
    transaction: &Transaction<'_>,
    mut look_again: impl FnMut() -> Result<(), Error>,
) -> Result<(), Error> {
    loop {
        let claimed = clock::seconds();
        transaction.claim(claimed);
        look_again()?;
        if clock::seconds() - claimed < CLAIM_LIFETIME / 2 {
            return Ok(());
        }
    }
}

pub(super) fn next_id(tables: &mut Tables) -> u32 {
    let mut journal = tables.journal.get(0);
    journal.last_attachment += 1;
    tables.journal.set(0, journal);
    journal.last_attachment
}

/// Records the link with the addresses that the container may send from, and no others.
fn allow_sources(tables: &mut Tables, link: &LinkPlan, attachment: u32) -> Result<(), Error> {
    let doing = || format!("record link {}", link.link.name);
    let record = host::Link {
        attachment,
        l3_device: link.l3_ifindex,
    };
    tables
        .links
        .insert(link.link.index, record, 0)
        .map_err(|source| TableError::full_or(maps::LINKS, MAX_FORWARDS, source))
        .doing(doing)?;
    for source in &link.sources {
        let key = host::LinkSource::new(link.link.index, Ip::from(*source));
        tables
            .link_sources
            .insert(key, attachment, 0)
            .map_err(|source| TableError::full_or(maps::LINK_SOURCES, host::MAX_SOURCES, source))
            .doing(doing)?;
    }
    let failed = |source| TableError::Map {
        name: maps::LINK_SOURCES,
        source: Box::new(source),
    };
    let known: Vec<host::LinkSource> = tables
        .link_sources
        .keys()
        .collect::<Result<_, _>>()
        .map_err(failed)
        .doing(doing)?;
    let is_former = |key: &host::LinkSource| {
        key.link == link.link.index && !link.sources.contains(&IpAddr::from(key.address))
    };
    for former in known.iter().filter(|key| is_former(key)) {
        tables
            .link_sources
            .remove(former)
            .map_err(failed)
            .doing(doing)?;
    }
    Ok(())
}

fn record_container(tables: &mut Tables, plan: &Plan, id: u32) -> Result<(), Error> {
    let mut record = host::Attachment {
        id,
        ..plan.container
    };
    if !plan.known {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        record.created = now.map_or(0, |since| since.as_secs());
    }
    tables
        .attachments
        .insert(id, record, 0)
        .map_err(|source| TableError::full_or(maps::ATTACHMENTS, MAX_FORWARDS, source))
        .doing(|| format!("record container {}", plan.label))
}
