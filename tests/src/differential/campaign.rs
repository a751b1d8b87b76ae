//! Sequences of packets through both sides.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use portfwd_model::{Input, Model, Outcome, Verdict, World};

use super::generate::Generator;
use super::host::{Decision, Subject};
use super::shrink::shrunk;
use super::step::{At, Step, text};
use crate::layers::{Layers, checksum_faults, difference};

/// Flows after which both sides forget all of them.
const MANY_FLOWS: usize = 4_096;

/// Fragments that wait after which they do: the table of those is small.
const MANY_WAITING: usize = 200;

/// What packets can meet: the hook, the decision, whether they are translated.
const EVERYTHING: [(At, Decision, bool); 13] = [
    (At::Device, Decision::Redirect, false),
    (At::Device, Decision::Next, false),
    (At::Device, Decision::Next, true),
    (At::Device, Decision::Redirect, true),
    (At::Device, Decision::Drop, false),
    (At::EarlyDevice, Decision::Next, false),
    (At::EarlyDevice, Decision::Next, true),
    (At::Link, Decision::Next, false),
    (At::Link, Decision::Next, true),
    (At::Link, Decision::Redirect, true),
    (At::Link, Decision::Drop, false),
    (At::Egress, Decision::Next, false),
    (At::Egress, Decision::Next, true),
];
/// The reasons that they can meet where no table is full and no host socket is in the way. Of SCTP clients'
/// ports are taken for good.
const REASONS: [usize; 10] = [1, 2, 5, 32, 33, 34, 36, 37, 38, 39];

/// Where the two sides disagree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disagreement {
    /// The packet's place in the sequence; behind its end if only the reasons of all packets differ.
    pub place: usize,
    /// What differs.
    pub what: String,
}

/// Both sides, in the same state.
#[derive(Debug)]
pub struct Campaign {
    subject: Subject,
    model: Model,
    /// How often packets met what: the hook, the decision, whether they were translated.
    met: BTreeMap<(At, Decision, bool), u64>,
    /// How often each reason was expected.
    reasons: [u64; 64],
    /// What both have seen since they last forgot everything.
    history: Vec<Step>,
}

impl Campaign {
    /// Of a subject and what the model knows about it.
    #[must_use]
    pub fn new(subject: Subject, world: World) -> Self {
        Self {
            subject,
            model: Model::new(world),
            met: BTreeMap::new(),
            reasons: [0; 64],
            history: Vec::new(),
        }
    }

    /// How often packets met what, a line each.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut text = String::new();
        for ((at, decision, translated), count) in &self.met {
            let how = if *translated {
                "translated"
            } else {
                "as it came"
            };
            let _ = writeln!(text, "{count:>10}  {at:?} {decision:?} {how}");
        }
        for (number, count) in self
            .reasons
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
        {
            let _ = writeln!(text, "{count:>10}  reason {number}");
        }
        text
    }

    /// What packets never met, of all that there is to meet: a run that leaves something out proves nothing
    /// about it.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        let met = EVERYTHING
            .iter()
            .filter(|what| !self.met.contains_key(what))
            .map(|(at, decision, _)| format!("{at:?} {decision:?}"));
        let reasons = REASONS.iter().filter(|&&reason| self.reasons[reason] == 0);
        met.chain(reasons.map(|reason| format!("reason {reason}")))
            .collect()
    }

    /// Both sides forget all flows.
    pub fn forget(&mut self) {
        self.subject.forget();
        self.model.forget();
        self.history.clear();
    }

    /// Makes up the sequence with this number and plays it. Call it inside the host's namespace, as
    /// everything here.
    ///
    /// # Errors
    /// Where the sides disagree: the sequence so far, and how.
    pub fn sequence(&mut self, seed: u64, number: u32) -> Result<usize, (Vec<Step>, Disagreement)> {
        if self.model.flows().len() > MANY_FLOWS || self.model.waiting() > MANY_WAITING {
            self.forget();
        }
        let mut generator = Generator::new(seed, number);
        let length = generator.length();
        let mut steps = Vec::with_capacity(length);
        let before = self.subject.reasons();
        let mut expected = [0_u64; 64];
        for place in 0..length {
            let step = generator.step();
            let (outcome, fault) = self.both(&step);
            for &reason in &outcome.reasons {
                expected[reason as usize] += 1;
            }
            if let Some(after) = &outcome.frame {
                generator.learn(&step, after);
            }
            steps.push(step);
            if self.model.is_lost() {
                self.forget();
                return Ok(place + 1);
            }
            if let Some(what) = fault {
                return Err((steps, Disagreement { place, what }));
            }
        }
        let what = reason_fault(&before, &self.subject.reasons(), &expected);
        match what {
            Some(what) => Err((
                steps,
                Disagreement {
                    place: length,
                    what,
                },
            )),
            None => {
                self.history.append(&mut steps);
                Ok(length)
            }
        }
    }

    /// Plays a sequence on fresh tables, looking at the reasons after each packet.
    ///
    /// # Errors
    /// The first disagreement.
    pub fn replay(&mut self, steps: &[Step]) -> Result<(), Disagreement> {
        self.forget();
        let mut before = self.subject.reasons();
        for (place, step) in steps.iter().enumerate() {
            let (outcome, fault) = self.both(step);
            let mut expected = [0; 64];
            for &reason in &outcome.reasons {
                expected[reason as usize] += 1;
            }
            let after = self.subject.reasons();
            let fault = fault.or_else(|| reason_fault(&before, &after, &expected));
            before = after;
            if self.model.is_lost() {
                break;
            }
            if let Some(what) = fault {
                return Err(Disagreement { place, what });
            }
        }
        Ok(())
    }

    /// One packet through both sides: what the model says, and what differs from it.
    fn both(&mut self, step: &Step) -> (Outcome, Option<String>) {
        if !step.is_runnable() {
            return (Outcome::PASSED, None);
        }
        let hook = self.subject.hook(step);
        let (decision, bytes) = self.subject.run(step);
        let ports = Layers::of(bytes).and_then(|layers| layers.ports());
        let outcome = self.model.step(&Input {
            hook,
            frame: &step.frame,
            segment: step.segment,
            port: ports.map(|(source, _)| source),
        });
        let met = (step.at, decision, outcome.frame.is_some());
        *self.met.entry(met).or_default() += 1;
        for &reason in &outcome.reasons {
            self.reasons[reason as usize] += 1;
        }
        let fault = fault(step, &outcome, decision, bytes);
        (outcome, fault)
    }

    /// A small sequence about which the sides disagree as they did about `steps`, as a fixture, with what
    /// differs.
    #[must_use]
    pub fn fixture(&mut self, steps: &[Step]) -> String {
        let mut all = std::mem::take(&mut self.history);
        all.extend_from_slice(steps);
        let steps = if self.replay(steps).is_err() {
            steps
        } else {
            &all
        };
        let steps = shrunk(steps, |steps| self.replay(steps).is_err());
        let Err(disagreement) = self.replay(&steps) else {
            return text("does not always differ", &steps);
        };
        let title = format!("packet {}: {}", disagreement.place + 1, disagreement.what);
        text(&title, &steps)
    }
}

/// What a packet met differs from what it must meet.
fn fault(step: &Step, outcome: &Outcome, decision: Decision, bytes: &[u8]) -> Option<String> {
    let expected = match outcome.verdict {
        Verdict::Next => Decision::Next,
        Verdict::Redirect(_) => Decision::Redirect,
        Verdict::Drop | Verdict::Kept => Decision::Drop,
    };
    let after = outcome.frame.as_deref().unwrap_or(&step.frame);
    if outcome.optional && decision == Decision::Next && bytes == step.frame {
        return None;
    }
    if decision == expected && (decision == Decision::Drop || bytes == after) {
        let sound = outcome.frame.is_none() || !checksum_faults(&step.frame, false).is_empty();
        let faults = if sound {
            Vec::new()
        } else {
            checksum_faults(bytes, false)
        };
        return (!faults.is_empty()).then(|| faults.join("; "));
    }
    let mut what = String::new();
    if decision != expected {
        let _ = writeln!(what, "verdict: expected {expected:?}, found {decision:?}");
    }
    for reason in &outcome.reasons {
        let _ = writeln!(what, "expected reason: {reason:?}");
    }
    if expected != Decision::Drop {
        what.push_str(&difference(after, bytes));
    }
    Some(what)
}

/// Reasons that were counted other than they had to be.
fn reason_fault(before: &[u64; 64], after: &[u64; 64], expected: &[u64; 64]) -> Option<String> {
    let mut what = String::new();
    for number in 0..64 {
        let counted = after[number] - before[number];
        if counted != expected[number] {
            let _ = writeln!(
                what,
                "reason {number}: expected {} times, counted {counted} times",
                expected[number]
            );
        }
    }
    (!what.is_empty()).then_some(what)
}
