//! Developer tasks: `cargo xtask <task>`.

mod bench;
mod btf;
mod check;
mod demo;
mod docs;
mod ebpf;
mod machines;
mod messages;
mod mutants;
mod process;
mod setup;
mod suite;
mod test;
mod toolchain;
mod workspace;

use std::{env, ffi::OsString, path::PathBuf, process::ExitCode};

use anyhow::ensure;
use clap::{Parser, Subcommand};

/// Developer tasks of portfwd.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what building, testing and the demo need; does nothing if nothing is missing
    Setup(setup::Extras),
    /// Build the eBPF object from source and put it where the loader embeds it from
    Ebpf {
        /// Prove instead that the committed object is, byte for byte, what the source gives
        #[arg(long)]
        check: bool,
        /// With --check: also build it in another directory, with every line moved by a comment
        #[arg(long, requires = "check")]
        elsewhere: bool,
    },
    /// Run all tests on an eBPF object just built from source, after setup
    Test {
        #[command(flatten)]
        machines: machines::Args,
        /// Options of `cargo test`, and a part of the name of the tests to run
        ///
        /// What follows `--` goes to the tests themselves.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<OsString>,
    },
    /// List the error messages that no test has provoked
    ///
    /// Tests that run with PORTFWD_MESSAGES=DIRECTORY record there what the command says; a whole run of the task
    /// test does so itself.
    Messages {
        directory: PathBuf,
    },
    /// Build the command with mistakes in its eBPF programs, which the tests have to notice
    Mutants(mutants::Args),
    /// Show the whole thing, with curl and nginx, in network namespaces of its own
    Demo,
    /// Run all checks of CI: format, lints, licences, advisories, the committed object, tests
    Check,
    Bench(bench::Args),
    #[command(hide = true)]
    BenchWorker(bench::WorkerArgs),
}

fn main() -> ExitCode {
    let (own, inner) = split(env::args_os());
    match run(Arguments::parse_from(own).task, &inner) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What stands before the first `--`, and what follows it. The parser would keep or drop that word
/// depending on what comes before.
fn split(arguments: impl Iterator<Item = OsString>) -> (Vec<OsString>, Vec<OsString>) {
    let mut own: Vec<OsString> = arguments.collect();
    let Some(at) = own.iter().position(|argument| argument == "--") else {
        return (own, Vec::new());
    };
    let inner = own.split_off(at + 1);
    own.pop();
    (own, inner)
}

fn run(task: Task, inner: &[OsString]) -> anyhow::Result<()> {
    ensure!(
        inner.is_empty() || matches!(task, Task::Test { .. }),
        "only the task test takes arguments after --"
    );
    match task {
        Task::Setup(extras) => setup::run(extras),
        Task::Ebpf { check: false, .. } => ebpf::update(),
        Task::Ebpf {
            check: true,
            elsewhere,
        } => ebpf::check(elsewhere),
        Task::Test { machines, .. } if machines.are_given() => machines::run(machines, inner),
        Task::Test { options, .. } => test::run(&options, inner),
        Task::Messages { directory } => messages::check(&directory),
        Task::Mutants(args) => mutants::run(&args),
        Task::Demo => demo::run(),
        Task::Check => check::run(),
        Task::Bench(args) => bench::run(args),
        Task::BenchWorker(args) => bench::run_worker(args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_of_test_are_told_apart_by_the_separator() {
        let words = |line: &str| {
            line.split_whitespace()
                .map(OsString::from)
                .collect::<Vec<_>>()
        };
        for (line, cargo, tests) in [
            (
                "test -p portfwd-common --lib -- --nocapture -q",
                "-p portfwd-common --lib",
                "--nocapture -q",
            ),
            ("test -- --ignored", "", "--ignored"),
            ("test wildcard", "wildcard", ""),
            ("test", "", ""),
        ] {
            let (own, inner) = split(words(&format!("xtask {line}")).into_iter());
            let Task::Test { options, .. } = Arguments::parse_from(own).task else {
                panic!("{line} is not the task test");
            };
            assert_eq!((options, inner), (words(cargo), words(tests)), "{line}");
        }
    }
}
