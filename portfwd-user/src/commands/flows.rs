//! `portfwd flows`, and `flows purge`.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    hash::Hash,
    io::{self, IsTerminal as _, Write as _},
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use portfwd_common::{
    flow::{Flow, FlowKey, Lifetimes, State, is_alive},
    net::{Address, NetPort, Protocol},
};

use super::show::{look, require};
use crate::{
    cli::{self, Cli},
    clock,
    datapath::Site,
    error::{Doing, Error, InstanceError},
    flow_filter::FlowFilter,
    label::Label,
    report::{self, FlowRow},
    state::{self, Owned, Piece},
    sweep,
    tables::{Flows, TableError, batch},
    talk, transaction,
};

/// How often `flows --watch` looks.
const WATCH: Duration = Duration::from_secs(1);
/// Puts a terminal's cursor at its start and clears it (ECMA-48, CUP and ED).
const CLEAR: &[u8] = b"\x1b[H\x1b[2J";

pub(super) fn run(cli: &Cli, asked: &cli::Flows) -> Result<(), Error> {
    let mut was_up = false;
    loop {
        let found = rows(cli, &asked.filter)?;
        match &found {
            Some(_) => was_up = true,
            None if was_up => {
                talk::say("the instance is down");
                return Ok(());
            }
            None => require(&state::State::default(), asked.filter.container.as_ref())?,
        }
        let rows = found.unwrap_or_default();
        let is_read = report::to_reader(|out| {
            if asked.watch && io::stdout().is_terminal() {
                out.write_all(CLEAR)?;
            }
            if cli.json {
                report::write_json(out, &rows)
            } else {
                report::write_flows(out, &rows)
            }
        })?;
        if !asked.watch || !is_read {
            return Ok(());
        }
        thread::sleep(WATCH);
    }
}

/// None if the instance is not up.
fn rows(cli: &Cli, filter: &FlowFilter) -> Result<Option<Vec<FlowRow>>, Error> {
    let Some((_, datapath, state)) = look(cli)? else {
        return Ok(None);
    };
    require(&state, filter.container.as_ref())?;
    let mut rows = Vec::new();
    let tables = &datapath.tables;
    let now = clock::seconds();
    let committed = transaction::committed(tables);
    let drains = |owned: &&Owned| owned.record().is_draining(committed, now.into());
    let draining = state.draining.iter().filter(drains);
    let all = state.forwards.iter().chain(draining);
    let owners = all.flat_map(|forward| {
        let id = |piece: &Piece| (piece.index, piece.record.generation);
        forward
            .pieces
            .iter()
            .map(move |piece| (id(piece), &forward.owner))
    });
    let sight = Sight {
        owners: owners.collect(),
        now,
        lifetimes: tables.journal.get(0).lifetimes,
        counts_bytes: tables.journal.get(0).flow_bytes != 0,
    };
    collect(&tables.flows_v4, &sight, &mut rows)?;
    collect(&tables.flows_v6, &sight, &mut rows)?;
    rows.retain(|row| filter.admits(row));
    Ok(Some(rows))
}

/// What says whose a flow is, and whether it still lives.
struct Sight<'a> {
    /// By index and generation of the forward.
    owners: HashMap<(u32, u32), &'a Label>,
    now: u32,
    lifetimes: Lifetimes,
    /// Whether flows count their bytes.
    counts_bytes: bool,
}

fn collect<A: Address>(
    flows: &Flows<A>,
    sight: &Sight<'_>,
    rows: &mut Vec<FlowRow>,
) -> Result<(), Error>
where
    FlowKey<A>: aya::Pod + Eq + Hash,
    Flow<A>: aya::Pod,
{
    // One that moves meanwhile is in two tables.
    let mut shown = HashSet::new();
    for (name, flows) in flows.tables() {
        for entry in batch::entries(flows) {
            let (key, flow) = entry
                .map_err(|source| TableError::Map {
                    name,
                    source: Box::new(source),
                })
                .doing(|| "read the flows".to_owned())?;
            if shown.insert(key) {
                rows.extend(row(&key, &flow, sight));
            }
        }
    }
    Ok(())
}

/// What there is to show of a flow, if it lives and its forward serves it.
fn row<A: Address>(key: &FlowKey<A>, flow: &Flow<A>, sight: &Sight<'_>) -> Option<FlowRow> {
    let owner = sight.owners.get(&(flow.forward, flow.generation))?;
    let flow_state = State::from_number(flow.state)
        .filter(|state| is_alive(*state, flow.last_seen, sight.now, &sight.lifetimes))?;
    let socket =
        |address: A, port: NetPort| SocketAddr::new(IpAddr::from(address.ip()), port.get());
    let since = |second: u32| Duration::from_secs(u64::from(sight.now.saturating_sub(second)));
    Some(FlowRow {
        container: (*owner).clone(),
        protocol: Protocol::from_number(key.protocol as u8)?,
        client: socket(key.client, key.client_port),
        host: socket(flow.reply.host, flow.reply.host_port),
        container_address: socket(key.container, key.container_port),
        state: Cow::Borrowed(flow_state.name()),
        age: since(flow.created),
        idle: since(flow.last_seen),
        rx_bytes: sight.counts_bytes.then_some(flow.rx_bytes),
        tx_bytes: sight.counts_bytes.then_some(flow.tx_bytes),
    })
}

pub(super) fn purge(cli: &Cli) -> Result<(), Error> {
    let writable = match Site::of(cli, false)? {
        Some(site) => site.open_writable()?,
        None => None,
    };
    let mut writable = writable.ok_or_else(|| InstanceError::Down(cli.instance.clone()))?;
    let count = sweep::purge_all_flows(&mut writable.datapath.tables)?;
    talk::say(&format!("{count} flows forgotten"));
    Ok(())
}
