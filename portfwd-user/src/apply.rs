//! The one executor of plans. Nothing it does before the commit is seen by a packet; what it did is
//! undone backwards if a step fails.

mod publish;

use publish::{next_id, publish};

use crate::{
    connection::Connection,
    datapath::{Datapath, Writable},
    error::{Doing, Error},
    masquerade,
    observe::{container, netns::Netns},
    pair,
    plan::{Leaving, Plan},
    state,
    subnet::Subnet,
    sweep::{self, Swept},
    transaction::{self, Transaction},
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
    let done = connected.and_then(|plans| {
        writable.run_own_for(plans.iter().filter_map(|plan| plan.inside.as_ref()), netns)?;
        let Writable { datapath, host, .. } = &mut *writable;
        let steps = plans
            .iter()
            .zip(&steps)
            .map(|(plan, step)| Step { plan, ..*step });
        let steps: Vec<Step<'_>> = steps.collect();
        publish(datapath, host, netns, &steps, others, look_again)
    });
    let goes = !others.is_empty() || steps.iter().any(|step| !step.plan.leaving.is_empty());
    finish(writable, netns, done, |writable| {
        let tables = &mut writable.datapath.tables;
        // A sweep does so as well, and may have more luck.
        match masquerade::assign(tables) {
            Ok(()) if !goes => sweep::close(tables),
            _ => sweep(writable, netns).map(|_| ()),
        }
    })
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

/// Does what follows what is `done`, or takes back what is not.
fn finish(
    writable: &mut Writable,
    netns: &Netns,
    done: Result<(), Error>,
    follow: impl FnOnce(&mut Writable) -> Result<(), Error>,
) -> Result<(), Error> {
    match done {
        Ok(()) => follow(writable).map_err(Error::after_commit),
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
    finish(writable, netns, done, |writable| {
        sweep::close(&mut writable.datapath.tables)
    })
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
    sweep(writable, netns).map_err(Error::after_commit)?;
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
    let swept = sweep(writable, netns);
    match leaving.is_empty() {
        true => swept,
        false => swept.map_err(Error::after_commit),
    }
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
