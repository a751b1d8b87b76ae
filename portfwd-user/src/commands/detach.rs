//! `portfwd detach`: nothing but the container's name is needed.

use crate::{
    cli::{Cli, Detach},
    datapath::{Site, Writable},
    error::{Error, Missing},
    state, sweep,
    transaction::Transaction,
};

pub(super) fn run(cli: &Cli, detach: &Detach) -> Result<(), Error> {
    let Some(site) = Site::of(cli, false)? else {
        return missing(detach);
    };
    let Some(mut writable) = site.open_writable()? else {
        return missing(detach);
    };
    let Some(indexes) = select(&writable, detach)? else {
        return missing(detach);
    };
    let tables = &mut writable.datapath.tables;
    let mut transaction = Transaction::begin(tables);
    for index in indexes {
        transaction.withdraw(index);
    }
    transaction.commit();
    sweep::sweep(tables, &writable.datapath.layout, &site.host)
}

fn missing(detach: &Detach) -> Result<(), Error> {
    if detach.ignore_missing {
        return Ok(());
    }
    Err(Missing::Container(detach.container.clone()).into())
}

/// The forwards to withdraw; None if the container is not known.
fn select(writable: &Writable, detach: &Detach) -> Result<Option<Vec<u32>>, Error> {
    let state = state::read(&writable.datapath.tables)?;
    if state.container(&detach.container).is_none() {
        return Ok(None);
    }
    let own: Vec<_> = state
        .forwards
        .iter()
        .filter(|f| f.owner == detach.container)
        .collect();
    if detach.specs.is_empty() {
        return Ok(Some(own.iter().map(|forward| forward.index).collect()));
    }
    let mut indexes = Vec::new();
    for spec in &detach.specs {
        let selected = own.iter().filter(|forward| {
            let held = &forward.held;
            spec.selects(held.protocol, held.host, held.ports, held.container)
        });
        let before = indexes.len();
        indexes.extend(selected.map(|forward| forward.index));
        if indexes.len() == before && !detach.ignore_missing {
            return Err(Missing::Forward {
                container: detach.container.clone(),
                spec: spec.to_string(),
            }
            .into());
        }
    }
    Ok(Some(indexes))
}
