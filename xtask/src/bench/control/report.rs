//! Figures, as tables and as JSON.

use std::fmt::Write as _;

use serde::Serialize;

use super::{
    turn::Turn,
    way::{Step, Way},
};
use crate::bench::{machine::Machine, report::thousands, stats::Summary, timed::Outcome};

/// The most bytes of the kernel's that portfwd is to take for a port, beyond its fixed tables.
const MEMORY_GOAL: f64 = 32.0;

/// A whole run.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    pub(super) machine: Machine,
    /// Share of processor time that the hypervisor gave to others during the run.
    pub(super) stolen: f64,
    pub(super) rounds: usize,
    /// Of the container's address that portmap is told; portfwd publishes in both.
    pub(super) family: u8,
    pub(super) ways: Vec<Measured>,
    pub(super) omitted: Vec<Omitted>,
    pub(super) idle: Idle,
    pub(super) cases: Vec<CaseReport>,
}

/// A way that took part.
#[derive(Debug, Serialize)]
pub(super) struct Measured {
    pub(super) way: Way,
    pub(super) how: String,
}

/// What was not measured.
#[derive(Debug, Serialize)]
pub(super) struct Omitted {
    pub(super) way: Way,
    /// With so many ports; else with any.
    pub(super) ports: Option<u16>,
    /// Only this step; else all of them.
    pub(super) step: Option<Step>,
    pub(super) reason: String,
}

/// A process that does nothing: what is in every figure, whatever the program does.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Idle {
    pub(super) milliseconds: Option<Summary>,
    /// In megabytes.
    pub(super) resident: Option<Summary>,
}

/// All figures with one number of ports.
#[derive(Debug, Serialize)]
pub(super) struct CaseReport {
    pub(super) ports: u16,
    pub(super) steps: Vec<StepReport>,
    pub(super) memory: Vec<Memory>,
}

/// All figures of one step.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StepReport {
    step: Step,
    /// Milliseconds.
    goal: Option<f64>,
    /// Megabytes.
    resident_goal: Option<f64>,
    ways: Vec<Figures>,
}

/// One way's figures of one step.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Figures {
    way: Way,
    milliseconds: Option<Summary>,
    /// Of each round's time to that of portfwd, ports in a row, in the same round.
    ratio: Option<Summary>,
    /// The peak of any of its processes, in megabytes.
    resident: Option<Summary>,
    /// Milliseconds, one per round; `None` where the step failed.
    samples: Vec<Option<f64>>,
    /// Of the steps that failed.
    errors: Vec<String>,
}

/// What the kernel keeps for a port that a way has published, in bytes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Memory {
    way: Way,
    /// By which its maps have grown.
    maps: Option<Summary>,
    /// By which the machine's allocated objects of general size have grown.
    slab: Option<Summary>,
}

fn milliseconds(outcome: &Outcome) -> f64 {
    outcome.nanos as f64 / 1e6
}

fn megabytes(outcome: &Outcome) -> f64 {
    outcome.resident_kib as f64 * 1024.0 / 1e6
}

impl Idle {
    /// Sums up its rounds.
    pub(super) fn of(outcomes: &[Outcome]) -> Idle {
        Idle {
            milliseconds: Summary::of(outcomes.iter().map(milliseconds)),
            resident: Summary::of(outcomes.iter().map(megabytes)),
        }
    }
}

impl StepReport {
    /// The figures of all ways that have the step. The first way is what the others are compared with.
    pub(super) fn of(step: Step, ports: u16, turns: &[(Way, Vec<Turn>)]) -> StepReport {
        let of_step = |turns: &[Turn]| -> Vec<Result<Outcome, String>> {
            let outcomes = turns.iter().flat_map(|turn| &turn.outcomes);
            outcomes
                .filter(|(one, _)| *one == step)
                .map(|(_, outcome)| outcome.clone())
                .collect()
        };
        let base = turns.first().map(|(_, turns)| of_step(turns));
        let base = base.unwrap_or_default();
        let ways = turns.iter().map(|(way, turns)| (*way, of_step(turns)));
        StepReport {
            step,
            goal: step.goal(ports),
            resident_goal: step.resident_goal(ports),
            ways: ways
                .filter(|(_, outcomes)| !outcomes.is_empty())
                .map(|(way, outcomes)| Figures::of(way, &outcomes, &base))
                .collect(),
        }
    }
}

impl Figures {
    fn of(
        way: Way,
        rounds: &[Result<Outcome, String>],
        base: &[Result<Outcome, String>],
    ) -> Figures {
        let ratios = rounds.iter().zip(base).filter_map(|(one, base)| {
            let (one, base) = (one.as_ref().ok()?, base.as_ref().ok()?);
            Some(milliseconds(one) / milliseconds(base))
        });
        Figures {
            way,
            milliseconds: Summary::of(rounds.iter().flatten().map(milliseconds)),
            ratio: Summary::of(ratios),
            resident: Summary::of(rounds.iter().flatten().map(megabytes)),
            samples: rounds
                .iter()
                .map(|round| round.as_ref().ok().map(milliseconds))
                .collect(),
            errors: rounds
                .iter()
                .filter_map(|round| round.as_ref().err().cloned())
                .collect(),
        }
    }
}

/// What the kernel has kept for a port, of the ways where it was measured.
pub(super) fn memory(ports: u16, turns: &[(Way, Vec<Turn>)]) -> Vec<Memory> {
    let figures = turns.iter().map(|(way, turns)| {
        let grown = || turns.iter().filter_map(|turn| turn.grown);
        let of_one = |bytes: i64| bytes as f64 / f64::from(ports);
        Memory {
            way: *way,
            maps: match way {
                Way::PortfwdRange | Way::PortfwdSeparate => {
                    Summary::of(grown().map(|(maps, _)| of_one(maps)))
                }
                Way::Nftables | Way::Iptables => None,
            },
            slab: Summary::of(grown().map(|(_, slab)| of_one(slab))),
        }
    });
    figures.filter(|memory| memory.slab.is_some()).collect()
}

impl Report {
    /// How many steps failed.
    pub(super) fn failed(&self) -> usize {
        let steps = self.cases.iter().flat_map(|case| &case.steps);
        steps
            .flat_map(|step| &step.ways)
            .map(|figures| figures.errors.len())
            .sum()
    }

    /// The tables for people.
    pub(super) fn table(&self) -> String {
        let mut text = format!(
            "kernel {}, {}, {} cores; {} rounds\n",
            self.machine.kernel, self.machine.cpu, self.machine.cores, self.rounds,
        );
        if let (Some(time), Some(resident)) = (self.idle.milliseconds, self.idle.resident) {
            let (time, resident) = (time.median, resident.median);
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "a process that does nothing: {time:.1} ms, {resident:.1} MB"
            );
        }
        for case in &self.cases {
            for step in &case.steps {
                step.write(case.ports, &mut text);
            }
            case.write_memory(&mut text);
        }
        if !self.omitted.is_empty() {
            text.push('\n');
        }
        for omitted in &self.omitted {
            text.push_str(&omitted.line());
        }
        text
    }
}

impl Omitted {
    fn line(&self) -> String {
        let ports = match self.ports {
            Some(ports) => format!(", {}", of_ports(ports)),
            None => String::new(),
        };
        let step = match self.step {
            Some(step) => format!(", to {}", step.title()),
            None => String::new(),
        };
        format!(
            "not run: {}{ports}{step} ({})\n",
            self.way.name(),
            self.reason
        )
    }
}

impl StepReport {
    fn write(&self, ports: u16, text: &mut String) {
        let title = format!("{}: {}", of_ports(ports), self.step.title());
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "\n{title:<38} {:>9}  {:<21} {:>9}  {:>6}  {:>6}  {:>6}",
            "ms", "quartiles", "x portfwd", "goal", "MB", "goal"
        );
        for figures in &self.ways {
            let line = figures.line(self.goal, self.resident_goal);
            text.push_str(line.trim_end());
            text.push('\n');
        }
    }
}

impl Figures {
    fn line(&self, goal: Option<f64>, resident_goal: Option<f64>) -> String {
        let name = self.way.name();
        let (Some(time), Some(resident)) = (self.milliseconds, self.resident) else {
            let reason = self.errors.first().map_or("no figure", String::as_str);
            return format!("  {name:<36} failed: {reason}");
        };
        let shown = |goal: Option<f64>| match (goal, self.way) {
            (Some(goal), Way::PortfwdRange | Way::PortfwdSeparate) => format!("{goal:.0}"),
            _ => String::new(),
        };
        let ratio = self.ratio.map(|ratio| decimal(ratio.median));
        format!(
            "  {name:<36} {:>9}  {:<21} {:>9}  {:>6}  {:>6.1}  {:>6}",
            decimal(time.median),
            format!("{} - {}", decimal(time.lower), decimal(time.upper)),
            ratio.unwrap_or_default(),
            shown(goal),
            resident.median,
            shown(resident_goal),
        )
    }
}

impl CaseReport {
    fn write_memory(&self, text: &mut String) {
        if self.memory.is_empty() {
            return;
        }
        let title = format!("{}: bytes of the kernel's each", of_ports(self.ports));
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "\n{title:<38} {:>9}  {:>6}  {:>9}  quartiles",
            "maps", "goal", "slab"
        );
        for memory in &self.memory {
            text.push_str(memory.line().trim_end());
            text.push('\n');
        }
    }
}

impl Memory {
    fn line(&self) -> String {
        let (maps, goal) = match self.maps {
            Some(maps) => (bytes(maps.median), format!("{MEMORY_GOAL:.0}")),
            None => Default::default(),
        };
        let (slab, quartiles) = match self.slab {
            Some(slab) => (
                bytes(slab.median),
                format!("{} - {}", bytes(slab.lower), bytes(slab.upper)),
            ),
            None => Default::default(),
        };
        let name = self.way.name();
        format!("  {name:<36} {maps:>9}  {goal:>6}  {slab:>9}  {quartiles}")
    }
}

/// Bytes with one decimal, and nothing without a sign.
fn bytes(value: f64) -> String {
    match format!("{value:.1}").as_str() {
        "-0.0" => "0.0".to_owned(),
        shown => shown.to_owned(),
    }
}

fn of_ports(ports: u16) -> String {
    match ports {
        1 => "one port".to_owned(),
        _ => format!("{} ports", thousands(ports.into())),
    }
}

/// A number with as many decimals as mean something.
fn decimal(value: f64) -> String {
    match value {
        ..10.0 => format!("{value:.2}"),
        10.0..1000.0 => format!("{value:.1}"),
        _ => thousands(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(milliseconds: &[(Step, u64)]) -> Turn {
        let outcome = |&(step, milliseconds): &(Step, u64)| {
            let outcome = serde_json::json!({
                "nanos": milliseconds * 1_000_000,
                "resident_kib": 5_000,
                "status": 0,
                "said": "",
            });
            (step, Ok(serde_json::from_value(outcome).unwrap()))
        };
        Turn {
            outcomes: milliseconds.iter().map(outcome).collect(),
            grown: Some((32_000, -1_000)),
        }
    }

    #[test]
    fn a_way_is_compared_with_portfwd_within_each_round() {
        let (publish, withdraw) = (Step::Publish, Step::Withdraw);
        let turns = [
            (
                Way::PortfwdRange,
                vec![
                    turn(&[(publish, 10), (withdraw, 1)]),
                    turn(&[(publish, 20), (withdraw, 1)]),
                ],
            ),
            (
                Way::Nftables,
                vec![
                    turn(&[(publish, 30), (withdraw, 9)]),
                    turn(&[(publish, 40), (withdraw, 9)]),
                ],
            ),
            (Way::Iptables, Vec::new()),
        ];
        let report = StepReport::of(publish, 1_000, &turns);
        assert_eq!(report.goal, Some(15.0));
        let [portfwd, nftables] = report.ways.as_slice() else {
            panic!("a way that was left out has figures: {:?}", report.ways);
        };
        assert_eq!(portfwd.ratio.unwrap().median, 1.0);
        assert_eq!(nftables.ratio.unwrap().median, 2.5);
        assert_eq!(nftables.samples, [Some(30.0), Some(40.0)]);
        let memory = memory(1_000, &turns);
        assert_eq!(memory.len(), 2);
        assert_eq!(memory[0].maps.unwrap().median, 32.0);
        assert_eq!(memory[1].maps, None);
        assert_eq!(memory[1].slab.unwrap().median, -1.0);
    }

    #[test]
    fn what_was_left_out_is_named_with_its_reason() {
        let omitted = |ports, step| Omitted {
            way: Way::Iptables,
            ports,
            step,
            reason: "why".to_owned(),
        };
        assert_eq!(
            omitted(Some(60_000), None).line(),
            "not run: portmap, iptables, 60,000 ports (why)\n"
        );
        assert_eq!(
            omitted(Some(1), Some(Step::Extend)).line(),
            "not run: portmap, iptables, one port, to publish a further one (why)\n"
        );
        assert_eq!(
            omitted(None, None).line(),
            "not run: portmap, iptables (why)\n"
        );
    }

    #[test]
    fn numbers_have_the_decimals_that_mean_something() {
        let shown = [0.5, 9.994, 12.34, 1_234.5].map(decimal);
        assert_eq!(shown, ["0.50", "9.99", "12.3", "1,234"]);
    }
}
