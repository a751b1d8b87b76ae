//! Developer tasks: `cargo xtask <task>`.

mod btf;
mod ebpf;
mod process;
mod toolchain;
mod workspace;

use std::process::ExitCode;

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
    /// Build the eBPF object from source and put it where the loader embeds it from
    Ebpf {
        /// Prove instead that the committed object is, byte for byte, what the source gives
        #[arg(long)]
        check: bool,
    },
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
        Task::Ebpf { check: false } => ebpf::update(),
        Task::Ebpf { check: true } => ebpf::check(),
    }
}
