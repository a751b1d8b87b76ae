//! `portfwd detach`: nothing but the container's name is needed.

use std::collections::BTreeSet;

use crate::{
    apply,
    cli::{Cli, Detach},
    datapath::{Site, Writable},
    error::{Error, Missing},
    state,
};

pub(super) fn run(cli: &Cli, detach: &Detach) -> Result<(), Error> {
    let Some(site) = Site::of(cli, false)? else {
        return missing(detach);
    };
    let Some(mut writable) = site.open_writable()? else {
        return missing(detach);
    };
    let Some(selected) = select(&writable, detach)? else {
        return missing(detach);
    };
    let containers = selected.container.into_iter().collect();
    apply::withdraw(&mut writable, &site.host, &selected.forwards, &containers)?;
    Ok(())
}

/// What a detach withdraws.
struct Selected {
    /// Indexes of forwards.
    forwards: BTreeSet<u32>,
    /// ID of the container, if it is left without a forward.
    container: Option<u32>,
}

fn missing(detach: &Detach) -> Result<(), Error> {
    if detach.ignore_missing {
        return Ok(());
    }
    Err(Missing::Container(detach.container.clone()).into())
}

/// What is to be withdrawn; None if the container is not known.
fn select(writable: &Writable, detach: &Detach) -> Result<Option<Selected>, Error> {
    let state = state::read(&writable.datapath.tables)?;
    let Some(container) = state.container(&detach.container) else {
        return Ok(None);
    };
    let own: Vec<_> = state
        .forwards
        .iter()
        .filter(|f| f.owner == detach.container)
        .collect();
    let all: BTreeSet<u32> = own.iter().map(|forward| forward.index).collect();
    if detach.specs.is_empty() {
        return Ok(Some(Selected {
            forwards: all,
            container: Some(container.id),
        }));
    }
    let mut forwards = BTreeSet::new();
    for spec in &detach.specs {
        let selected = own.iter().filter(|forward| {
            let held = &forward.held;
            spec.selects(held.protocol, held.host, held.ports, held.container)
        });
        let mut selected = selected.map(|forward| forward.index).peekable();
        if selected.peek().is_none() && !detach.ignore_missing {
            return Err(Missing::Forward {
                container: detach.container.clone(),
                spec: spec.to_string(),
            }
            .into());
        }
        forwards.extend(selected);
    }
    Ok(Some(Selected {
        container: (forwards == all).then_some(container.id),
        forwards,
    }))
}
