//! `portfwd gc`: removes what belongs to containers that are gone.

use std::{collections::BTreeMap, io::Write as _};

use crate::{
    apply,
    cli::Cli,
    datapath::{Site, Writable},
    error::Error,
    hooks::{self, Hook},
    label::Label,
    observe::netns::Netns,
    plan::Leaving,
    report::{self, Collected, CollectedContainer},
    state::{self, State},
    talk,
};

pub(super) fn run(cli: &Cli) -> Result<(), Error> {
    let site = Site::of(cli, false)?;
    let collected = match &site {
        Some(site) => match site.open_writable()? {
            Some(mut writable) => collect(&mut writable, &site.host)?,
            None => Collected::default(),
        },
        None => Collected::default(),
    };
    talk::say(&collected.summary());
    report::to_stdout(|out| {
        if cli.json {
            return report::write_json(out, &collected);
        }
        report::write_collected(out, &collected)?;
        out.flush()
    })
}

fn collect(writable: &mut Writable, host: &Netns) -> Result<Collected, Error> {
    let state = state::read(&writable.datapath.tables)?;
    let gone = gone(&state, writable, host)?;
    let forwards = gone
        .keys()
        .flat_map(|label| state.indexes_of(label))
        .collect();
    let leaving = Leaving {
        forwards,
        containers: gone.values().copied().collect(),
        ..Leaving::default()
    };
    let swept = apply::withdraw(writable, host, &leaving)?;
    let containers = gone.into_keys().map(|container| CollectedContainer {
        forwards: state.published(&container),
        container,
    });
    Ok(Collected {
        containers: containers.collect(),
        flows: swept.flows,
        host_sockets: swept.host_sockets,
    })
}

/// The containers whose link has gone, as it does with their namespace, and their IDs. Of one that was attached by
/// an address elsewhere nobody can tell.
fn gone(state: &State, writable: &Writable, host: &Netns) -> Result<BTreeMap<Label, u32>, Error> {
    let layout = &writable.datapath.layout;
    let mut gone = BTreeMap::new();
    for (label, attachment) in &state.containers {
        let link = attachment.link;
        if link != 0 && !hooks::is_attached(layout, Hook::Link, host, link)? {
            gone.insert(label.clone(), attachment.id);
        }
    }
    Ok(gone)
}
