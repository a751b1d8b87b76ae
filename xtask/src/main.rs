//! Developer tasks: `cargo xtask <task>`.

mod bench;
mod btf;
mod check;
mod ebpf;
mod process;
mod setup;
mod test;
mod toolchain;
mod workspace;

use std::{ffi::OsString, process::ExitCode};

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
        /// Arguments for `cargo test`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Run all checks of CI: format, lints, licences, advisories, the committed object, tests
    Check,
    Bench(bench::Args),
    #[command(hide = true)]
    BenchWorker(bench::WorkerArgs),
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> anyhow::Result<()> {
    match task {
        Task::Setup(extras) => setup::run(extras),
        Task::Ebpf { check: false, .. } => ebpf::update(),
        Task::Ebpf {
            check: true,
            elsewhere,
        } => ebpf::check(elsewhere),
        Task::Test { arguments } => test::run(&arguments),
        Task::Check => check::run(),
        Task::Bench(args) => bench::run(args),
        Task::BenchWorker(args) => bench::run_worker(args),
    }
}
