//! `cargo xtask bench`: the ways to publish a port, side by side.
//!
//! Every peer gets a topology of its own, all stand at once, and every round measures each of them
//! once per workload, in an order that moves on with the round. A figure is the median, over the
//! rounds, of the peer's rate divided by direct's rate in the same round, so that what slows the
//! machine for a while slows both.
//!
//! A measurement runs on one core: client, server, proxy and all that the kernel does between them.
//! What is compared is therefore the work that a way takes, not how well its parts overlap, and no
//! core has to be woken, which would cost more than the ways differ by.
//!
//! What the ways' commands cost, rather than their traffic, is measured by [`control`].

mod control;
mod cost;
mod engine;
mod machine;
mod measure;
mod peer;
mod portmap;
mod report;
mod rules;
mod stats;
mod timed;
mod topology;
mod worker;
mod workload;

use std::{
    fs,
    io::IsTerminal as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use serde::Serialize;

pub(crate) use self::worker::{WorkerArgs, run as run_worker};
use self::{
    engine::{Count, Window},
    machine::{Machine, Ticks},
    measure::Subject,
    peer::{Peer, Tools},
    report::{Figures, Measured, Report, Skipped, WorkloadReport},
    workload::Workload,
};
use crate::{process, workspace};

/// The published port.
const HOST_PORT: u16 = 8080;

/// The port that the service in the container listens on.
const CONTAINER_PORT: u16 = 80;

/// A load above this makes figures that nobody should believe.
const QUIET: f64 = 0.5;

/// Compare ways to publish a port, side by side
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Few and short rounds: shows that all works; the figures mean little
    #[arg(long)]
    quick: bool,
    /// Measure no traffic but what it takes to publish ports, to look one up, and to withdraw them
    #[arg(long, conflicts_with_all = ["workloads", "length"])]
    control: bool,
    /// With --control: also what takes minutes or hours a round
    #[arg(long, requires = "control", conflicts_with = "quick")]
    full: bool,
    /// Rounds [default: 21, with --control 7, with --quick 3]
    #[arg(long, hide_default_value = true, default_value_t = 21,
          default_value_ifs([("quick", "true", "3"), ("control", "true", "7")]),
          value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Milliseconds of one measurement, without its warm-up
    #[arg(long, value_name = "MS", default_value_t = 500, default_value_if("quick", "true", "100"),
          value_parser = clap::value_parser!(u64).range(1..=60_000))]
    length: u64,
    /// Peers to measure; direct, and with --control portfwd, is always among them
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PEER")]
    only: Vec<Peer>,
    /// Workloads to measure
    #[arg(
        long = "workload",
        value_enum,
        value_delimiter = ',',
        value_name = "WORKLOAD"
    )]
    workloads: Vec<Workload>,
    /// Address family of the traffic, with --control of the address that portmap is told
    #[arg(long, value_enum, default_value = "4")]
    family: Family,
    /// Where the figures go as JSON [default: bench/report.json, or control.json, in the target directory]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Address family of the traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Family {
    /// IPv4
    #[value(name = "4")]
    V4,
    /// IPv6
    #[value(name = "6")]
    V6,
}

impl Family {
    /// Its number, for the report.
    fn number(self) -> u8 {
        match self {
            Family::V4 => 4,
            Family::V6 => 6,
        }
    }
}

/// Measures, prints the table, writes the JSON. Fails if any measurement failed.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let machine = Machine::read()?;
    if machine.load > QUIET {
        eprintln!(
            "warning: the machine is busy (load {}): expect noise",
            machine.load
        );
    }
    if args.control {
        return control::run(&args, machine);
    }
    let wanted = wanted_peers(&args);
    let tools = tools(&wanted)?;
    let (present, skipped) = sort_out(&wanted, &tools);
    let cost = match wanted.contains(&Peer::Portfwd) && args.workloads.is_empty() {
        true => cost::measure()?,
        false => Vec::new(),
    };

    topology::isolate()?;
    let before = Ticks::read()?;
    let mut subjects = Vec::new();
    for peer in present {
        subjects.push(Subject::set_up(peer, &tools, args.family)?);
    }
    let workloads = measure_all(&args, &machine, &tools, &mut subjects)?;
    let report = Report {
        stolen: Ticks::read()?.stolen_since(before),
        machine,
        rounds: args.rounds.into(),
        milliseconds: args.length,
        family: args.family.number(),
        peers: subjects
            .iter()
            .map(|subject| Measured {
                peer: subject.peer,
                how: subject.publication.how.clone(),
            })
            .collect(),
        skipped,
        workloads,
        cost,
    };
    drop(subjects);
    publish(
        &args,
        "report.json",
        &report.table(),
        &report,
        report.failed(),
    )
}

/// The peers asked for, direct always first.
fn wanted_peers(args: &Args) -> Vec<Peer> {
    Peer::ALL
        .into_iter()
        .filter(|peer| *peer == Peer::Direct || args.only.is_empty() || args.only.contains(peer))
        .collect()
}

/// Builds what is ours and finds what is others'.
fn tools(wanted: &[Peer]) -> anyhow::Result<Tools> {
    // A client of the development profile would spend its own time beside the kernel's.
    let mut packages = vec!["xtask"];
    if wanted.contains(&Peer::Portfwd) {
        packages.push("portfwd-user");
    }
    let mut build = cargo();
    build.args(["build", "--release", "--quiet", "--bins"]);
    for package in packages {
        build.args(["--package", package]);
    }
    process::run(&mut build)?;
    let release = workspace::target().join("release");
    let portfwd = wanted
        .contains(&Peer::Portfwd)
        .then(|| release.join("portfwd"));
    Ok(Tools::find(release.join("xtask"), portfwd))
}

fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace::root());
    cargo
}

fn sort_out(wanted: &[Peer], tools: &Tools) -> (Vec<Peer>, Vec<Skipped>) {
    let mut present = Vec::new();
    let mut skipped = Vec::new();
    for &peer in wanted {
        match tools.lacks(peer) {
            None => present.push(peer),
            Some(reason) => {
                eprintln!("skipped: {} ({reason})", peer.name());
                skipped.push(Skipped { peer, reason });
            }
        }
    }
    (present, skipped)
}

/// All rounds of all workloads. The first subject is direct.
fn measure_all(
    args: &Args,
    machine: &Machine,
    tools: &Tools,
    subjects: &mut [Subject],
) -> anyhow::Result<Vec<WorkloadReport>> {
    // Devices like to interrupt the first core.
    let core = machine.cores - 1;
    let window = Window {
        warmup: Duration::from_millis(args.length / 5 + 20),
        length: Duration::from_millis(args.length),
    };
    let workloads: Vec<Workload> = Workload::ALL
        .into_iter()
        .filter(|workload| args.workloads.is_empty() || args.workloads.contains(workload))
        .collect();
    let mut results: Vec<Vec<Vec<Result<Count, String>>>> =
        vec![vec![Vec::new(); subjects.len()]; workloads.len()];
    for round in 0..usize::from(args.rounds) {
        for (workload, results) in workloads.iter().zip(&mut results) {
            show_progress(round + 1, args.rounds, workload.title());
            for place in 0..subjects.len() {
                let index = (place + round) % subjects.len();
                let count = subjects[index].measure(tools, *workload, window, core);
                results[index].push(count.map_err(|error| format!("{error:#}")));
            }
        }
    }
    clear_progress();
    let reports = workloads
        .iter()
        .zip(&results)
        .map(|(&workload, results)| WorkloadReport {
            workload,
            unit: workload.unit(),
            goal: workload.goal(),
            peers: subjects
                .iter()
                .zip(results)
                .map(|(subject, rounds)| Figures::of(subject.peer, rounds, &results[0]))
                .collect(),
        });
    Ok(reports.collect())
}

/// Prints the table and writes the JSON, as `name` if nobody named a file. Fails if any measurement did.
fn publish(
    args: &Args,
    name: &str,
    table: &str,
    report: &impl Serialize,
    failed: usize,
) -> anyhow::Result<()> {
    print!("{table}");
    let path = match &args.json {
        Some(path) => path.clone(),
        None => workspace::target().join("bench").join(name),
    };
    if let Some(directory) = path
        .parent()
        .filter(|directory| *directory != Path::new(""))
    {
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    }
    let mut json = serde_json::to_string_pretty(report).context("write the report as JSON")?;
    json.push('\n');
    fs::write(&path, json).with_context(|| format!("write {}", path.display()))?;
    eprintln!("JSON: {}", path.display());
    if failed > 0 {
        bail!("{failed} measurements failed; the JSON says why");
    }
    Ok(())
}

fn show_progress(round: usize, rounds: u16, what: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[Kround {round} of {rounds}: {what}");
    }
}

fn clear_progress() {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
}
