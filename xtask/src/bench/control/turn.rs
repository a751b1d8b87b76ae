//! A turn of one way: it publishes, looks up and withdraws once, and what came of each is looked at.

use std::{path::Path, thread, time::Duration};

use anyhow::{Context as _, ensure};

use super::{memory::KernelMemory, ports::Ports, publisher::Publisher, way::Step};
use crate::bench::{
    timed::{Outcome, Request},
    topology::Place,
};

/// The fewest ports whose memory stands out from what else the machine allocates meanwhile.
const MANY: usize = 1_000;

/// What was freed is given back by then: the kernel does so after a while.
const SETTLED: Duration = Duration::from_millis(200);

/// Where processes are measured.
#[derive(Clone, Copy)]
pub(super) struct Stand<'a> {
    pub(super) worker: &'a Path,
    pub(super) core: usize,
}

impl Stand<'_> {
    /// Runs `request` on the host of `publisher`.
    pub(super) fn run(
        &self,
        publisher: &dyn Publisher,
        request: &Request,
    ) -> anyhow::Result<Outcome> {
        let host = publisher.topology().path(Place::Host);
        request.run(self.worker, &host, self.core)
    }
}

/// What a turn has shown.
#[derive(Debug, Default)]
pub(super) struct Turn {
    pub(super) outcomes: Vec<(Step, Result<Outcome, String>)>,
    /// By how many bytes maps and slab of the kernel have grown, if all went well.
    pub(super) grown: Option<(i64, i64)>,
}

impl Turn {
    /// Takes the steps. If one fails, those after it do too, and what was published is withdrawn.
    pub(super) fn take(
        publisher: &dyn Publisher,
        ports: Ports,
        steps: &[Step],
        stand: Stand<'_>,
    ) -> Turn {
        let mut turn = Turn::default();
        let mut course = Course {
            publisher,
            ports,
            stand,
            published: 0,
            grown: None,
        };
        let mut failed = false;
        for &step in steps {
            let Some(request) = publisher.request(step, ports) else {
                continue;
            };
            let outcome = match failed {
                false => course.step(step, &request),
                true => Err(anyhow::anyhow!("a step before it failed")),
            };
            failed = outcome.is_err();
            let outcome = outcome.map_err(|error| format!("{error:#}"));
            turn.outcomes.push((step, outcome));
        }
        if failed && let Some(request) = publisher.request(Step::Withdraw, ports) {
            // The failure is told already, and there may be nothing to withdraw.
            let _withdrawn = stand.run(publisher, &request);
        }
        turn.grown = course.grown.filter(|_| !failed);
        turn
    }
}

/// A turn that is being taken.
struct Course<'a> {
    publisher: &'a dyn Publisher,
    ports: Ports,
    stand: Stand<'a>,
    /// How many ports should be published by now.
    published: usize,
    grown: Option<(i64, i64)>,
}

impl Course<'_> {
    fn step(&mut self, step: Step, request: &Request) -> anyhow::Result<Outcome> {
        let outcome = match step {
            Step::Publish if self.ports.count() >= MANY => self.weigh(request)?,
            _ => self.stand.run(self.publisher, request)?,
        };
        match step {
            Step::Publish => self.published = self.ports.count(),
            Step::Extend => self.published += 1,
            Step::LookUp => return self.answered(outcome),
            Step::Withdraw => self.published = 0,
        }
        let found = self.publisher.published();
        let found = found.context("look for what is published")?;
        ensure!(
            found == self.published,
            "{found} ports are published instead of {}",
            self.published
        );
        Ok(outcome)
    }

    /// Runs `request`, and sees how the kernel's memory has grown.
    fn weigh(&mut self, request: &Request) -> anyhow::Result<Outcome> {
        let before = settled(self.publisher)?;
        let outcome = self.stand.run(self.publisher, request)?;
        self.grown = Some(settled(self.publisher)?.since(before));
        Ok(outcome)
    }

    fn answered(&self, outcome: Outcome) -> anyhow::Result<Outcome> {
        let wanted = self.publisher.answer(self.ports);
        ensure!(
            outcome.said.contains(&wanted),
            "{:?} instead of {wanted:?}",
            outcome.said
        );
        Ok(outcome)
    }
}

fn settled(publisher: &dyn Publisher) -> anyhow::Result<KernelMemory> {
    thread::sleep(SETTLED);
    KernelMemory::read(publisher.pins().as_deref())
}
