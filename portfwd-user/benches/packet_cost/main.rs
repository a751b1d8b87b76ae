//! What a packet costs in the programs, above an empty program at the same hook.
//!
//! `BPF_PROG_TEST_RUN` runs a program over the same buffer again and again, so a program that
//! translates sees its own result the next time. Two forwards therefore lead to each other: every run
//! does the whole work of an established flow (lookups, checks, rewriting, the verdict), and the frame
//! goes to and fro between two host ports. Only its hop count runs down, which limits one batch to 250
//! runs; there are thousands of batches, of which the fastest counts. The system call's own cost is the empty
//! program's as well.
//!
//! `cargo bench -p portfwd-user --bench packet_cost [-- --json]`, as root.

mod bpf;
mod frame;
mod world;

use std::{
    error::Error,
    time::{Duration, Instant},
};

use nix::{
    sched::{CloneFlags, CpuSet, sched_setaffinity, unshare},
    unistd::Pid,
};
use serde_json::json;

use bpf::{Hook, Program};
use frame::{Family, Frame, Transport};
use world::World;

/// Runs of one batch: even, so that a frame ends where it began, and fewer than a hop count allows.
const RUNS: u32 = 250;

/// Batches of one sample: a million runs.
const BATCHES: u32 = 4_000;

/// Samples; the figure is their median.
const SAMPLES: usize = 7;

/// What becomes of a frame.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Translated.
    Translated,
    /// Left alone.
    Untouched,
}

/// One figure.
struct Case {
    name: String,
    program: Program,
    frame: Frame,
    verdict: i32,
    fate: Fate,
    /// At most, in nanoseconds.
    goal: f64,
    samples: Vec<f64>,
}

impl Case {
    /// Makes sure that the program does with the frame what the name says.
    fn check(&self) -> Result<(), Box<dyn Error>> {
        let once = bpf::run(&self.program, &self.frame.bytes(), 1)?;
        let all = bpf::run(&self.program, &self.frame.bytes(), RUNS)?;
        let (first, last) = match self.fate {
            Fate::Translated => (self.frame.translated(1), self.frame.hops_less(RUNS)),
            Fate::Untouched => (self.frame.clone(), self.frame.clone()),
        };
        let is_as_expected = once.verdict == self.verdict
            && all.verdict == self.verdict
            && first.matches(&once.frame)
            && last.matches(&all.frame);
        if is_as_expected {
            return Ok(());
        }
        Err(format!(
            "{}: verdict {} (expected {}), frame {:02x?} after one run, {:02x?} after {RUNS}",
            self.name, once.verdict, self.verdict, once.frame, all.frame
        )
        .into())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let json = std::env::args().any(|argument| argument == "--json");
    settle()?;
    let world = World::build()?;
    let mut cases = cases(&world)?;
    for case in &cases {
        case.check()?;
    }
    let empty = [Hook::Tc, Hook::Xdp].map(|hook| (hook, Program::empty(hook)));
    for _ in 0..SAMPLES {
        for (hook, program) in &empty {
            let program = program.as_ref().map_err(ToString::to_string)?;
            let plain = Frame::new(Family::V4, Transport::Tcp);
            let floor = sample(program, &plain)?;
            for case in cases.iter_mut().filter(|case| case.program.hook() == *hook) {
                case.samples
                    .push(sample(&case.program, &case.frame)? - floor);
            }
        }
    }
    report(&cases, json);
    Ok(())
}

/// Alone in a network namespace, where no route and no socket of the machine matters, on one core.
fn settle() -> Result<(), Box<dyn Error>> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|error| format!("make a namespace: {error}"))?;
    let mut cores = CpuSet::new();
    cores.set(std::thread::available_parallelism()?.get() - 1)?;
    sched_setaffinity(Pid::from_raw(0), &cores)?;
    Ok(())
}

fn cases(world: &World) -> Result<Vec<Case>, Box<dyn Error>> {
    /// `TC_ACT_REDIRECT`, `TCX_NEXT` and `XDP_PASS` of linux/pkt_cls.h and linux/bpf.h.
    const REDIRECT: i32 = 7;
    const NEXT: i32 = -1;
    const PASS: i32 = 2;

    let mut cases = Vec::new();
    let mut add = |name: String, program, frame, verdict, fate, goal| {
        cases.push(Case {
            name,
            program,
            frame,
            verdict,
            fate,
            goal,
            samples: Vec::new(),
        });
    };
    for family in [Family::V4, Family::V6] {
        for transport in [Transport::Tcp, Transport::Udp] {
            let what = format!("{} {}", transport.name(), family.name());
            let request = Frame::new(family, transport);
            let reply = request.reply();
            let device = world.program(portfwd_common::programs::TC_DEVICE)?;
            let link = world.program(portfwd_common::programs::TC_LINK)?;
            let early = world.program(portfwd_common::programs::XDP_DEVICE)?;
            add(
                format!("TC request, {what}"),
                device,
                request.clone(),
                REDIRECT,
                Fate::Translated,
                120.0,
            );
            add(
                format!("TC reply, {what}"),
                link,
                reply,
                REDIRECT,
                Fate::Translated,
                120.0,
            );
            add(
                format!("XDP request, {what}"),
                early,
                request,
                PASS,
                Fate::Translated,
                80.0,
            );
        }
        let other = Frame::new(family, Transport::Tcp).to_unpublished_port();
        let what = format!("TCP {}", family.name());
        let device = world.program(portfwd_common::programs::TC_DEVICE)?;
        let early = world.program(portfwd_common::programs::XDP_DEVICE)?;
        add(
            format!("TC unrelated, {what}"),
            device,
            other.clone(),
            NEXT,
            Fate::Untouched,
            15.0,
        );
        add(
            format!("XDP unrelated, {what}"),
            early,
            other,
            PASS,
            Fate::Untouched,
            15.0,
        );
    }
    Ok(cases)
}

/// Nanoseconds of one run in the fastest batch of a million runs: in that one nothing came between.
fn sample(program: &Program, frame: &Frame) -> Result<f64, Box<dyn Error>> {
    let bytes = frame.bytes();
    let _ready = program.hold()?;
    let mut fastest = Duration::MAX;
    for _ in 0..BATCHES {
        let start = Instant::now();
        bpf::run(program, &bytes, RUNS)?;
        fastest = fastest.min(start.elapsed());
    }
    Ok(fastest.as_nanos() as f64 / f64::from(RUNS))
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn report(cases: &[Case], json: bool) {
    if json {
        let figures: Vec<_> = cases
            .iter()
            .map(|case| {
                json!({
                    "what": case.name,
                    "nanoseconds": median(&case.samples),
                    "goal": case.goal,
                    "samples": case.samples,
                })
            })
            .collect();
        println!("{}", json!(figures));
        return;
    }
    for case in cases {
        let figure = median(&case.samples);
        println!(
            "{:<24} {figure:>6.1} ns  (goal {:.0})",
            case.name, case.goal
        );
    }
}
