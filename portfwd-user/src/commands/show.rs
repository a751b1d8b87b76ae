//! The commands that only look: `list`, `port`, `status`; and how they do.

use aya::maps::PerCpuValues;
use portfwd_common::{LAYOUT, forward::Counters, maps, verdict::Reason};

use crate::{
    cli::Cli,
    datapath::{Datapath, Site, namespace_name},
    error::{Doing, Error, Missing},
    hooks::{self, Hook, xdp},
    label::Label,
    masquerade,
    report::{self, DeviceRow, ForwardRow, Published, ReasonRow},
    spec::PortQuery,
    state::{self, Owned},
    tables::{TableError, Tables},
};

/// The instance, if it is up, and what its maps say.
pub(super) fn look(cli: &Cli) -> Result<Option<(Site, Datapath, state::State)>, Error> {
    let Some(site) = Site::of(cli, false)? else {
        return Ok(None);
    };
    let Some(datapath) = site.open()? else {
        return Ok(None);
    };
    let state = state::read(&datapath.tables)?;
    Ok(Some((site, datapath, state)))
}

pub(super) fn require(state: &state::State, container: Option<&Label>) -> Result<(), Error> {
    match container {
        Some(label) if state.container(label).is_none() => {
            Err(Missing::Container(label.clone()).into())
        }
        _ => Ok(()),
    }
}

pub(super) fn list(cli: &Cli, container: Option<&Label>) -> Result<(), Error> {
    let mut rows = Vec::new();
    match look(cli)? {
        Some((_, datapath, state)) => {
            require(&state, container)?;
            for forward in &state.forwards {
                if container.is_none_or(|label| *label == forward.owner) {
                    rows.extend(row(&datapath.tables, &state, forward)?);
                }
            }
        }
        None => require(&state::State::default(), container)?,
    }
    report::to_stdout(|out| {
        if cli.json {
            report::write_json(out, &rows)
        } else {
            report::write_forwards(out, &rows)
        }
    })
}

fn row(
    tables: &Tables,
    state: &state::State,
    forward: &Owned,
) -> Result<Option<ForwardRow>, Error> {
    let Some(published) = forward.published() else {
        return Ok(None);
    };
    let counters = counters(tables, forward)?;
    let policy = state.policy_of(forward);
    Ok(Some(ForwardRow {
        published,
        allow: policy.allow.into_iter().collect(),
        deny: policy.deny.into_iter().collect(),
        connections: counters.connections,
        rx_packets: counters.rx_packets,
        rx_bytes: counters.rx_bytes,
        tx_packets: counters.tx_packets,
        tx_bytes: counters.tx_bytes,
        drops: counters.drops,
    }))
}

/// The sums over all its pieces and all CPUs.
pub(super) fn counters(tables: &Tables, forward: &Owned) -> Result<Counters, Error> {
    let of_piece = |index| tables.counters.get(&index, 0);
    let counted: Vec<PerCpuValues<Counters>> = forward
        .indexes()
        .map(of_piece)
        .collect::<Result<_, _>>()
        .map_err(|source| TableError::Map {
            name: maps::COUNTERS,
            source: Box::new(source),
        })
        .doing(|| "read the counters".to_owned())?;
    let mut sum = Counters::default();
    for counters in counted.iter().flat_map(|per_cpu| per_cpu.iter()) {
        sum.rx_packets += counters.rx_packets;
        sum.rx_bytes += counters.rx_bytes;
        sum.tx_packets += counters.tx_packets;
        sum.tx_bytes += counters.tx_bytes;
        sum.connections += counters.connections;
        sum.drops += counters.drops;
        sum.last_drop = sum.last_drop.max(counters.last_drop);
    }
    Ok(sum)
}

pub(super) fn port(cli: &Cli, container: &Label, query: Option<PortQuery>) -> Result<(), Error> {
    let state = look(cli)?.map(|(_, _, state)| state).unwrap_or_default();
    require(&state, Some(container))?;
    let own = state
        .forwards
        .iter()
        .filter(|forward| forward.owner == *container);
    let mut rows: Vec<Published> = own.filter_map(Owned::published).collect();
    if let Some(query) = query {
        rows = report::answering(rows, query);
        if rows.is_empty() {
            return Err(Missing::Port {
                container: container.clone(),
                query,
            }
            .into());
        }
    }
    report::sort(&mut rows);
    report::to_stdout(|out| {
        if cli.json {
            report::write_json(out, &rows)
        } else {
            report::write_ports(out, &rows, query)
        }
    })
}

pub(super) fn status(cli: &Cli) -> Result<(), Error> {
    let datapath = match look(cli)? {
        Some((site, datapath, state)) => Some(describe(&site, &datapath, &state)?),
        None => None,
    };
    let status = report::Status {
        instance: cli.instance.clone(),
        datapath,
    };
    report::to_stdout(|out| {
        if cli.json {
            report::write_json(out, &status)
        } else {
            report::write_status(out, &status)
        }
    })
}

fn describe(
    site: &Site,
    datapath: &Datapath,
    state: &state::State,
) -> Result<report::Datapath, Error> {
    let tables = &datapath.tables;
    let flows = [tables.flows_v4.count(), tables.flows_v6.count()];
    let flows: Result<usize, TableError> = flows.into_iter().sum();
    let flows = flows.doing(|| "count the flows".to_owned())?;
    let shown = state.forwards.iter().filter_map(Owned::published).count();
    Ok(report::Datapath {
        layout: LAYOUT,
        object_sha256: datapath.layout.object().hash()?,
        log_level: datapath.log_level()?,
        host_namespace: namespace_name(site.host.id().inode),
        devices: devices(site, datapath)?,
        containers: state.containers.len() as u64,
        forwards: shown as u64,
        flows: flows as u64,
        masqueraded_flows: masquerade::count_flows(tables)?.values().sum(),
        lifetimes: tables.journal.get(0).lifetimes,
        flow_bytes: tables.journal.get(0).flow_bytes != 0,
        reasons: reasons(tables)?,
    })
}

fn devices(site: &Site, datapath: &Datapath) -> Result<Vec<DeviceRow>, Error> {
    const HOOKS: [(Hook, &str); 3] = [
        (Hook::Device, "tc ingress"),
        (Hook::Link, "tc ingress (container)"),
        (Hook::Egress, "tc egress"),
    ];
    let mut found: Vec<(u32, String)> = Vec::new();
    for (index, mode) in xdp::attached(&datapath.layout)? {
        found.push((index, format!("xdp {mode}")));
    }
    for (hook, name) in HOOKS {
        for index in hooks::attached(&datapath.layout, hook)? {
            found.push((index, name.to_owned()));
        }
    }
    let mut rows: Vec<DeviceRow> = Vec::new();
    for (index, hook) in found {
        match rows.iter_mut().find(|row| row.index == index) {
            Some(row) => row.hooks.push(hook),
            None => rows.push(DeviceRow {
                name: String::new(),
                index,
                hooks: vec![hook],
            }),
        }
    }
    let names = site.host.run_in(|| {
        // Of a device that is not there, nix gives an empty name rather than the error.
        let name = |row: &DeviceRow| {
            let name = nix::net::if_::if_indextoname(row.index).ok();
            name.filter(|name| !name.is_empty())
        };
        rows.iter().map(name).collect::<Vec<_>>()
    })?;
    for (row, name) in rows.iter_mut().zip(names) {
        // A device that has gone since keeps its place until the next command.
        row.name = name.map_or_else(|| "gone".to_owned(), |n| n.to_string_lossy().into_owned());
    }
    rows.sort_by_key(|row| row.index);
    Ok(rows)
}

fn reasons(tables: &Tables) -> Result<Vec<ReasonRow>, Error> {
    let mut rows = Vec::new();
    for reason in Reason::ALL {
        let per_cpu = tables
            .reasons
            .get(&(reason as u32), 0)
            .map_err(|source| TableError::Map {
                name: maps::REASONS,
                source: Box::new(source),
            })
            .doing(|| "read the reasons".to_owned())?;
        rows.push(ReasonRow {
            reason,
            packets: per_cpu.iter().sum(),
        });
    }
    Ok(rows)
}
