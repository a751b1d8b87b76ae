//! The one executor of plans. Nothing it does before the commit is seen by a packet; what it did is
//! undone backwards if a step fails.

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

use crate::{
    clock,
    connection::Connection,
    datapath::{Datapath, Writable},
    error::{Doing, Error},
    hooks::{self, Hook},
    instance::Layout,
    masquerade,
    observe::{
        addresses::Host,
        container,
        netns::{Netns, NetnsError},
    },
    pair,
    plan::{Leaving, LinkPlan, Plan},
    policy, state,
    subnet::Subnet,
    sweep::{self, Swept},
    tables::{TableError, Tables},
    transaction::{self, NewForward, Transaction},
};

/// A plan, and the namespace of its container if that is known.
#[derive(Clone, Copy)]
pub struct Step<'a> {
    /// What is to be done.
    pub plan: &'a Plan,
    /// The namespace.
    pub inside: Option<&'a Netns>,
}

impl Step<'_> {
    fn changes(&self) -> bool {
        let plan = self.plan;
        let publishes = !plan.forwards.is_empty() || !plan.addresses.is_empty();
        publishes || plan.masquerade || !plan.leaving.is_empty()
    }
}

/// Executes plans on the host of `netns`, all at one instant, and lets `others` go with it. `look_again` is asked once
/// no process of the host can take the ports any more, right before the commit.
///
/// # Errors
/// When a step fails, or `look_again` does; what was before is then as it was.
pub fn execute(
    writable: &mut Writable,
    netns: &Netns,
    steps: &[Step<'_>],
    others: &Leaving,
    look_again: impl Fn() -> Result<(), Error>,
) -> Result<(), Error> {
    let steps: Vec<Step<'_>> = steps.iter().copied().filter(Step::changes).collect();
    if steps.is_empty() && others.is_empty() {
        return Ok(());
    }
    let connects = steps.iter().any(|step| step.plan.connection.is_some());
    let cleared = match connects {
        true => clear_the_way(writable, netns),
        false => Ok(()),
    };
    let connected = steps
        .iter()
        .map(|step| match (&step.plan.connection, step.inside) {
            (Some(connection), Some(inside)) => {
                connect(writable, netns, inside, step.plan, connection)
            }
            _ => Ok(step.plan.clone()),
        });
    let connected: Result<Vec<Plan>, Error> = cleared.and_then(|()| connected.collect());
    let Writable { datapath, host, .. } = writable;
    let done = connected.and_then(|plans| {
        let steps = plans
            .iter()
            .zip(&steps)
            .map(|(plan, step)| Step { plan, ..*step });
        let steps: Vec<Step<'_>> = steps.collect();
        publish(datapath, host, netns, &steps, others, look_again)
    });
    let goes = !others.is_empty() || steps.iter().any(|step| !step.plan.leaving.is_empty());
    match done {
        Ok(()) if goes => sweep(writable, netns).map(|_| ()),
        done => finish(writable, netns, done),
    }
}

/// Removes links that a command has left which died: they are in the way of new ones.
fn clear_the_way(writable: &Writable, netns: &Netns) -> Result<(), Error> {
    transaction::announce(&writable.datapath.tables);
    let used = state::read(&writable.datapath.tables)?.links();
    pair::remove_but(netns, &used)?;
    Ok(())
}

/// Makes the container's link; gives the plan with it.
fn connect(
    writable: &mut Writable,
    netns: &Netns,
    inside: &Netns,
    plan: &Plan,
    connection: &Connection,
) -> Result<Plan, Error> {
    pair::make(netns, inside, connection, &plan.label)?;
    writable.follow(netns)?;
    Ok(plan.onto(&container::find(netns, inside)?))
}

fn finish(writable: &mut Writable, netns: &Netns, done: Result<(), Error>) -> Result<(), Error> {
    match done {
        Ok(()) => sweep::close(&mut writable.datapath.tables),
        Err(cause) => {
            // The transaction is taken back already; the sweep removes what hangs on no forward.
            match sweep(writable, netns) {
                Ok(_) => Err(cause),
                Err(failure) => Err(Error::Undo {
                    cause: Box::new(cause),
                    failures: vec![failure],
                }),
            }
        }
    }
}

/// Removes what hangs on no forward. With a link that portfwd had made go addresses of the host.
fn sweep(writable: &mut Writable, netns: &Netns) -> Result<Swept, Error> {
    let Datapath { tables, layout } = &mut writable.datapath;
    let swept = sweep::sweep(tables, layout, netns)?;
    if swept.pairs > 0 {
        writable.follow(netns)?;
    }
    Ok(swept)
}

fn publish(
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
    masquerade::assign(tables).doing(|| "record the addresses of containers".to_owned())
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

fn next_id(tables: &mut Tables) -> u32 {
    let mut journal = tables.journal.get(0);
    journal.last_attachment += 1;
    tables.journal.set(0, journal);
    journal.last_attachment
}

/// Masquerades a subnet.
///
/// # Errors
/// When a step fails; what was before is then as it was.
pub fn masquerade(writable: &mut Writable, netns: &Netns, subnet: Subnet) -> Result<(), Error> {
    let Writable { datapath, host, .. } = writable;
    let doing = || format!("masquerade {subnet}");
    let done = (|| {
        transaction::announce(&datapath.tables);
        datapath.masquerade(host, netns)?;
        let mut transaction = Transaction::begin(&mut datapath.tables);
        let id = next_id(transaction.tables());
        masquerade::add(transaction.tables(), subnet, id).doing(doing)?;
        transaction.commit();
        Ok(())
    })();
    finish(writable, netns, done)
}

/// Masquerades a subnet no longer.
///
/// # Errors
/// When a step fails; what could not be removed, the next command tries to.
pub fn unmasquerade(writable: &mut Writable, netns: &Netns, subnet: Subnet) -> Result<(), Error> {
    let doing = || format!("masquerade {subnet} no longer");
    let mut transaction = Transaction::begin(&mut writable.datapath.tables);
    // With the commit its flows end. Its row goes just before: it would hide that of a wider subnet.
    if let Some(owner) = masquerade::owner_of(transaction.tables(), subnet).doing(doing)? {
        transaction.withdraw_owner(owner).doing(doing)?;
    }
    masquerade::remove(transaction.tables(), subnet).doing(doing)?;
    transaction.commit();
    sweep(writable, netns)?;
    Ok(())
}

/// Lets forwards go, and with containers what those send.
///
/// # Errors
/// When a step fails; what is withdrawn by then, the next command sweeps.
pub fn withdraw(writable: &mut Writable, netns: &Netns, leaving: &Leaving) -> Result<Swept, Error> {
    let mut transaction = Transaction::begin(&mut writable.datapath.tables);
    let_go(&mut transaction, leaving)?;
    transaction.commit();
    sweep(writable, netns)
}

fn let_go(transaction: &mut Transaction<'_>, leaving: &Leaving) -> Result<(), Error> {
    for index in &leaving.forwards {
        match leaving.drained {
            Some(drained) => transaction.drain(*index, drained),
            None => transaction.withdraw(*index),
        }
    }
    let doing = || "end what containers send".to_owned();
    for container in &leaving.containers {
        let ending = masquerade::owners_ending_with(transaction.tables(), *container);
        for owner in ending.doing(doing)? {
            transaction.withdraw_owner(owner).doing(doing)?;
        }
    }
    for container in &leaving.unmasqueraded {
        let ending = masquerade::owners_ending_with(transaction.tables(), *container);
        for left in ending.doing(doing)?.iter().filter(|id| *id != container) {
            transaction.withdraw_owner(*left).doing(doing)?;
        }
        transaction.unmasquerade_owner(*container).doing(doing)?;
    }
    Ok(())
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
