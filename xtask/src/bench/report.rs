//! Figures, as a table and as JSON.

use std::fmt::Write as _;

use serde::Serialize;

use super::{
    cost::Cost, engine::Count, machine::Machine, peer::Peer, stats::Summary, workload::Workload,
};

/// A whole run.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    /// Share of processor time that the hypervisor gave to others during the run.
    pub(crate) stolen: f64,
    pub(crate) rounds: usize,
    /// Of one measurement, without its warm-up.
    pub(crate) milliseconds: u64,
    pub(crate) family: u8,
    pub(crate) peers: Vec<Measured>,
    pub(crate) skipped: Vec<Skipped>,
    pub(crate) workloads: Vec<WorkloadReport>,
    pub(crate) cost: Vec<Cost>,
}

/// A peer that took part.
#[derive(Debug, Serialize)]
pub(crate) struct Measured {
    pub(crate) peer: Peer,
    pub(crate) how: String,
}

/// A peer that did not.
#[derive(Debug, Serialize)]
pub(crate) struct Skipped {
    pub(crate) peer: Peer,
    pub(crate) reason: String,
}

/// All figures of one workload.
#[derive(Debug, Serialize)]
pub(crate) struct WorkloadReport {
    pub(crate) workload: Workload,
    pub(crate) unit: &'static str,
    pub(crate) goal: f64,
    pub(crate) peers: Vec<Figures>,
}

/// One peer's figures of one workload.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Figures {
    pub(crate) peer: Peer,
    /// Of each round's rate to direct's rate in the same round.
    pub(crate) ratio: Option<Summary>,
    /// Units per second.
    pub(crate) rate: Option<Summary>,
    /// What was lost, as a share of what was sent, over all rounds.
    pub(crate) lost: f64,
    /// One per round; `None` where the measurement failed.
    pub(crate) samples: Vec<Option<f64>>,
    /// Of the measurements that failed.
    pub(crate) errors: Vec<String>,
}

impl Figures {
    /// Sums up one peer's rounds beside those of direct.
    pub(crate) fn of(
        peer: Peer,
        rounds: &[Result<Count, String>],
        direct: &[Result<Count, String>],
    ) -> Figures {
        let good = || rounds.iter().flatten();
        let ratios = rounds.iter().zip(direct).filter_map(|(one, base)| {
            let (one, base) = (one.as_ref().ok()?.rate(), base.as_ref().ok()?.rate());
            (base > 0.0).then(|| one / base)
        });
        let units: u64 = good().map(|count| count.units).sum();
        let lost: u64 = good().map(|count| count.lost).sum();
        Figures {
            peer,
            ratio: Summary::of(ratios),
            rate: Summary::of(good().map(Count::rate)),
            lost: lost as f64 / (units + lost).max(1) as f64,
            samples: rounds
                .iter()
                .map(|round| round.as_ref().ok().map(Count::rate))
                .collect(),
            errors: rounds
                .iter()
                .filter_map(|round| round.as_ref().err().cloned())
                .collect(),
        }
    }
}

impl Report {
    /// How many measurements failed.
    pub(crate) fn failed(&self) -> usize {
        let workloads = self.workloads.iter();
        workloads
            .flat_map(|workload| &workload.peers)
            .map(|figures| figures.errors.len())
            .sum()
    }

    /// The table for people.
    pub(crate) fn table(&self) -> String {
        let mut text = format!(
            "kernel {}, {}, {} cores; IPv{}, {} rounds of {} ms\n",
            self.machine.kernel,
            self.machine.cpu,
            self.machine.cores,
            self.family,
            self.rounds,
            self.milliseconds,
        );
        for workload in &self.workloads {
            workload.write(&mut text);
        }
        self.write_cost(&mut text);
        if !self.skipped.is_empty() {
            text.push('\n');
        }
        for Skipped { peer, reason } in &self.skipped {
            text.push_str(&format!("skipped: {} ({reason})\n", peer.name()));
        }
        text
    }

    fn write_cost(&self, text: &mut String) {
        if self.cost.is_empty() {
            return;
        }
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "\n{:<38} {:>8}  {:>5}",
            "in the kernel, above an empty program", "ns", "goal"
        );
        for cost in &self.cost {
            let _ = writeln!(
                text,
                "  {:<36} {:>8.1}  {:>5.0}",
                cost.what, cost.nanoseconds, cost.goal
            );
        }
    }
}

impl WorkloadReport {
    fn write(&self, text: &mut String) {
        let title = self.workload.title();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "\n{title:<38} {:>8}  {:<15} {:>22}  {:>5}  lost",
            "x direct", "quartiles", self.unit, "goal"
        );
        for figures in &self.peers {
            let name = figures.peer.name();
            let (Some(ratio), Some(rate)) = (figures.ratio, figures.rate) else {
                let reason = figures.errors.first().map_or("no figure", String::as_str);
                let _ = writeln!(text, "  {name:<36} failed: {reason}");
                continue;
            };
            let goal = match figures.peer {
                Peer::Portfwd => format!("{:.2}", self.goal),
                _ => String::new(),
            };
            let lost = match figures.lost {
                0.0 => String::new(),
                share => format!("{:.1} %", share * 100.0),
            };
            let line = format!(
                "  {name:<36} {:>8.3}  {:<15} {:>22}  {goal:>5}  {lost}",
                ratio.median,
                format!("{:.3} - {:.3}", ratio.lower, ratio.upper),
                thousands(rate.median),
            );
            text.push_str(line.trim_end());
            text.push('\n');
        }
    }
}

/// A whole number with a comma every three digits.
pub(crate) fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(units: u64) -> Result<Count, String> {
        Ok(Count {
            units,
            nanos: 1_000_000_000,
            lost: 0,
        })
    }

    #[test]
    fn a_ratio_is_the_median_of_ratios_within_rounds() {
        let direct = [rate(100), rate(200), rate(400)];
        let peer = [rate(110), rate(180), rate(480)];
        let figures = Figures::of(Peer::Portfwd, &peer, &direct);
        assert!((figures.ratio.unwrap().median - 1.1).abs() < 1e-9);
        assert!((figures.rate.unwrap().median - 180.0).abs() < 1e-9);
    }

    #[test]
    fn a_failed_round_is_left_out_and_named() {
        let direct = [rate(100), Err("no".to_owned()), rate(100)];
        let peer = [rate(90), rate(500), Err("gone".to_owned())];
        let figures = Figures::of(Peer::Socat, &peer, &direct);
        assert!((figures.ratio.unwrap().median - 0.9).abs() < 1e-9);
        assert_eq!(figures.samples, [Some(90.0), Some(500.0), None]);
        assert_eq!(figures.errors, ["gone"]);
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        let shown = [0.4, 12.0, 999.6, 1234567.0].map(thousands);
        assert_eq!(shown, ["0", "12", "1,000", "1,234,567"]);
    }
}
