//! `cargo xtask check`: everything that CI asks for, in one command.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::bail;

use crate::{ebpf, process, setup, test, toolchain, workspace};

/// What came of one check.
enum Outcome {
    Passed,
    /// It could not be made here, and does not count against the source.
    NotMade(String),
    Failed(anyhow::Error),
}

type Check = fn() -> Outcome;

/// Runs all checks, the quick ones first, and fails if one of them does.
pub(crate) fn run() -> anyhow::Result<()> {
    setup::ensure(setup::Extras {
        check: true,
        ..setup::Extras::default()
    })?;
    let checks: &[(&str, Check)] = &[
        ("format", || outcome(format())),
        ("clippy", || outcome(clippy())),
        ("clippy of the eBPF programs", || outcome(ebpf::clippy())),
        ("licences, sources, bans", || {
            outcome(deny(&["licenses", "sources", "bans"]))
        }),
        ("advisories", advisories),
        ("the committed eBPF object", || outcome(ebpf::check(true))),
        ("tests", || outcome(test::run(&[], &[]))),
    ];
    let mut results = Vec::new();
    for &(name, check) in checks {
        eprintln!("\n=== {name}");
        let start = Instant::now();
        let outcome = check();
        if let Outcome::Failed(error) = &outcome {
            eprintln!("error: {error:#}");
        }
        results.push((name, outcome, start.elapsed()));
    }
    report(&results)
}

fn report(results: &[(&str, Outcome, Duration)]) -> anyhow::Result<()> {
    println!();
    let mut failed = Vec::new();
    for (name, outcome, time) in results {
        let word = match outcome {
            Outcome::Passed => "passed".to_owned(),
            Outcome::NotMade(why) => format!("NOT MADE: {why}"),
            Outcome::Failed(_) => {
                failed.push(*name);
                "FAILED".to_owned()
            }
        };
        println!("{:>4} s  {name}: {word}", time.as_secs());
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn outcome(result: anyhow::Result<()>) -> Outcome {
    match result {
        Ok(()) => Outcome::Passed,
        Err(error) => Outcome::Failed(error),
    }
}

/// The pinned cargo: another release formats and warns differently.
fn cargo(task: &str) -> Command {
    let mut command = toolchain::pinned("cargo");
    command
        .arg(task)
        .current_dir(workspace::root())
        .env("CARGO_TARGET_DIR", workspace::target());
    command
}

fn format() -> anyhow::Result<()> {
    process::run(cargo("fmt").args(["--all", "--check"]))
}

fn clippy() -> anyhow::Result<()> {
    process::run(
        cargo("clippy")
            .args([
                "--locked",
                "--workspace",
                "--exclude",
                ebpf::PACKAGE,
                "--all-targets",
            ])
            .args(["--", "-D", "warnings"]),
    )
}

fn deny(checks: &[&str]) -> anyhow::Result<()> {
    process::run(cargo_deny().arg("check").args(checks))
}

fn cargo_deny() -> Command {
    let mut command = Command::new(toolchain::cargo_deny_root().join("bin/cargo-deny"));
    command.arg("--locked").current_dir(workspace::root());
    command
}

/// The database of advisories lies on a server that not every machine reaches.
fn advisories() -> Outcome {
    let mut fetch = Command::new("timeout");
    fetch
        .arg("120")
        .arg(toolchain::cargo_deny_root().join("bin/cargo-deny"))
        .args(["fetch", "db"])
        .current_dir(workspace::root());
    if let Err(error) = process::output(&mut fetch) {
        eprintln!("{error:#}");
        return Outcome::NotMade("the database could not be had".to_owned());
    }
    outcome(deny(&["advisories"]))
}
