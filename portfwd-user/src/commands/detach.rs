//! `portfwd detach`: nothing but the container's name is needed.

use std::collections::BTreeSet;

use crate::{
    apply,
    cli::{Cli, Detach},
    datapath::{Site, Writable},
    error::{Error, Missing},
    plan::Leaving,
    state,
};

pub(super) fn run(cli: &Cli, detach: &Detach) -> Result<(), Error> {
    let Some(site) = Site::of(cli, false)? else {
        return missing(detach);
    };
    let Some(mut writable) = site.open_writable()? else {
        return missing(detach);
    };
    let Some(leaving) = select(&writable, detach)? else {
        return missing(detach);
    };
    apply::withdraw(&mut writable, &site.host, &leaving)?;
    Ok(())
}

fn missing(detach: &Detach) -> Result<(), Error> {
    if detach.ignore_missing {
        return Ok(());
    }
    Err(Missing::Container(detach.container.clone()).into())
}

/// What is to be withdrawn; None if the container is not known.
fn select(writable: &Writable, detach: &Detach) -> Result<Option<Leaving>, Error> {
    let state = state::read(&writable.datapath.tables)?;
    let Some(container) = state.container(&detach.container) else {
        return Ok(None);
    };
    let own: Vec<_> = state
        .forwards
        .iter()
        .filter(|f| f.owner == detach.container)
        .collect();
    let all = state.indexes_of(&detach.container);
    if detach.specs.is_empty() {
        return Ok(Some(Leaving {
            forwards: all,
            containers: BTreeSet::from([container.id]),
            ..Leaving::default()
        }));
    }
    let mut forwards = BTreeSet::new();
    for spec in &detach.specs {
        let selected = own.iter().filter(|forward| {
            let held = &forward.held;
            spec.selects(held.protocol, held.host, held.ports, held.container)
        });
        let mut selected = selected.flat_map(|forward| forward.indexes()).peekable();
        if selected.peek().is_none() && !detach.ignore_missing {
            return Err(Missing::Forward {
                container: detach.container.clone(),
                spec: spec.to_string(),
            }
            .into());
        }
        forwards.extend(selected);
    }
    let is_left = forwards == all;
    Ok(Some(Leaving {
        forwards,
        containers: is_left.then_some(container.id).into_iter().collect(),
        ..Leaving::default()
    }))
}
