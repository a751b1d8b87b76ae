//! `cargo xtask bench --control`: what it takes to publish ports, to look one up, and to withdraw them.
//!
//! Every way gets a topology of its own, all stand at once, and every round makes each of them go through
//! all numbers of ports, in an order that moves on with the round. A step is one process, measured from its
//! start until it is reaped, on one core with all that it starts. What it should have done is looked for
//! after it: a step that did something else has no figure.

mod memory;
mod portfwd;
mod portmap;
mod ports;
mod publisher;
mod report;
mod turn;
mod way;

use std::path::PathBuf;

use anyhow::ensure;

use self::{
    publisher::Publisher,
    report::{CaseReport, Idle, Measured, Omitted, Report, StepReport},
    turn::{Stand, Turn},
    way::{Effort, Step, Way},
};
use super::{
    Args, Family,
    machine::{Machine, Ticks},
    peer::{Peer, Tools},
    timed::{Outcome, Request},
    topology,
};

/// How many ports are published at once.
const COUNTS: [u16; 4] = [1, 1_000, 10_000, 60_000];

/// A way with its topology, to be measured again and again.
struct Subject {
    way: Way,
    publisher: Box<dyn Publisher>,
}

/// One number of ports, with the turns of each subject.
struct Case {
    count: u16,
    turns: Vec<(Way, Vec<Turn>)>,
}

/// Measures, prints the tables, writes the JSON. Fails if any step failed.
pub(super) fn run(args: &Args, machine: Machine) -> anyhow::Result<()> {
    let ways = wanted(&args.only)?;
    let tools = super::tools(&ways.iter().map(|way| way.peer()).collect::<Vec<_>>())?;
    topology::isolate()?;
    let before = Ticks::read()?;
    let (subjects, mut omitted) = set_up(&ways, &tools, args.family)?;
    let effort = effort(args);
    omitted.extend(left_out(&subjects, effort));
    let stand = Stand {
        worker: &tools.worker,
        // Devices like to interrupt the first core.
        core: machine.cores - 1,
    };
    let (cases, idle) = measure_all(args.rounds, effort, &subjects, stand)?;
    let report = Report {
        stolen: Ticks::read()?.stolen_since(before),
        machine,
        rounds: args.rounds.into(),
        family: args.family.number(),
        ways: subjects
            .iter()
            .map(Subject::measured)
            .collect::<Result<_, _>>()?,
        omitted,
        idle,
        cases: cases.iter().map(Case::report).collect(),
    };
    drop(subjects);
    super::publish(
        args,
        "control.json",
        &report.table(),
        &report,
        report.failed(),
    )
}

fn effort(args: &Args) -> Effort {
    match (args.quick, args.full) {
        (true, _) => Effort::Quick,
        (_, true) => Effort::Full,
        _ => Effort::Usual,
    }
}

/// The ways asked for, portfwd always first.
fn wanted(only: &[Peer]) -> anyhow::Result<Vec<Way>> {
    for peer in only {
        ensure!(
            Way::ALL.iter().any(|way| way.peer() == *peer),
            "--control compares no {}: only portfwd, nftables and iptables",
            peer.name()
        );
    }
    let is_wanted =
        |way: &Way| way.peer() == Peer::Portfwd || only.is_empty() || only.contains(&way.peer());
    Ok(Way::ALL.into_iter().filter(is_wanted).collect())
}

/// Topologies of those ways that can be measured here, and the others.
fn set_up(
    ways: &[Way],
    tools: &Tools,
    family: Family,
) -> anyhow::Result<(Vec<Subject>, Vec<Omitted>)> {
    let mut subjects = Vec::new();
    let mut omitted = Vec::new();
    for &way in ways {
        if let Some(reason) = publisher::lacks(way, tools)? {
            omitted.push(Omitted {
                way,
                ports: None,
                step: None,
                reason,
            });
            continue;
        }
        let publisher = publisher::set_up(way, tools, family)?;
        subjects.push(Subject { way, publisher });
    }
    Ok((subjects, omitted))
}

/// What is not measured of ways that are, and why.
fn left_out(subjects: &[Subject], effort: Effort) -> Vec<Omitted> {
    let mut omitted = Vec::new();
    for count in COUNTS {
        for Subject { way, publisher } in subjects {
            let mut omit = |step, reason: &str| {
                omitted.push(Omitted {
                    way: *way,
                    ports: Some(count),
                    step,
                    reason: reason.to_owned(),
                });
            };
            if let Some(reason) = effort.omits(*way, count) {
                omit(None, reason);
                continue;
            }
            for &step in Step::of(count) {
                if publisher.request(step, way.ports(count)).is_none() {
                    omit(
                        Some(step),
                        "CNI has no command for it: a container has all its ports at once",
                    );
                }
            }
        }
    }
    omitted
}

/// All rounds, and what a process takes that does nothing. The first subject is portfwd's.
fn measure_all(
    rounds: u16,
    effort: Effort,
    subjects: &[Subject],
    stand: Stand<'_>,
) -> anyhow::Result<(Vec<Case>, Idle)> {
    let mut cases = COUNTS.map(|count| Case {
        count,
        turns: subjects
            .iter()
            .map(|subject| (subject.way, Vec::new()))
            .collect(),
    });
    let nothing = Request {
        program: PathBuf::from("true"),
        ..Request::default()
    };
    let mut idle: Vec<Outcome> = Vec::new();
    for round in 0..usize::from(rounds) {
        idle.push(stand.run(subjects[0].publisher.as_ref(), &nothing)?);
        for case in &mut cases {
            let what = format!("{} ports", case.count);
            super::show_progress(round + 1, rounds, &what);
            for place in 0..subjects.len() {
                let index = (place + round) % subjects.len();
                case.take_turn(index, &subjects[index], effort, stand);
            }
        }
    }
    super::clear_progress();
    Ok((cases.into(), Idle::of(&idle)))
}

impl Subject {
    fn measured(&self) -> anyhow::Result<Measured> {
        Ok(Measured {
            way: self.way,
            how: self.publisher.how()?,
        })
    }
}

impl Case {
    fn take_turn(&mut self, index: usize, subject: &Subject, effort: Effort, stand: Stand<'_>) {
        let Subject { way, publisher } = subject;
        if effort.omits(*way, self.count).is_some() {
            return;
        }
        let steps = Step::of(self.count);
        let turn = Turn::take(publisher.as_ref(), way.ports(self.count), steps, stand);
        self.turns[index].1.push(turn);
    }

    fn report(&self) -> CaseReport {
        let steps = Step::of(self.count).iter();
        CaseReport {
            ports: self.count,
            steps: steps
                .map(|&step| StepReport::of(step, self.count, &self.turns))
                .collect(),
            memory: report::memory(self.count, &self.turns),
        }
    }
}
