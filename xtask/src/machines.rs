//! `cargo xtask test --kernels`: the tests on Debian's kernels, each in a virtual machine.
//!
//! The machine's memory is all it has: a kernel with its modules, busybox, the few programs that tests
//! run, portfwd and the tests themselves, linked statically. `init.sh` runs each test in a process of its
//! own and says what came of it on the serial console; that is read here.

mod image;
mod kernel;
mod outcome;
mod suite;

use std::{
    ffi::OsString,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};

pub(crate) use kernel::Kernel;
use outcome::Outcome;
use suite::Suite;

use crate::{
    ebpf, process,
    setup::{self, Extras},
};

/// Seconds that one machine may take: about twice what the emulated one takes on two cores of its own.
const LIMIT: &str = "5400";

/// How `cargo xtask test --kernels` runs its machines.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run the tests of the datapath on these kernels of Debian's, in virtual machines [default: all]
    ///
    /// What follows `--` are parts of names of tests, which then run alone.
    #[arg(long, value_enum, value_name = "KERNEL", num_args = 0.., conflicts_with = "options")]
    kernels: Option<Vec<Kernel>>,
    /// Fetch the kernels again
    #[arg(long, requires = "kernels")]
    fresh: bool,
    /// Use the processor's virtualization, not emulation: quicker, but /dev/kvm is there on machines
    /// where it does not work
    #[arg(long, requires = "kernels")]
    kvm: bool,
}

impl Args {
    /// Whether machines were asked for at all.
    pub(crate) fn are_given(&self) -> bool {
        self.kernels.is_some()
    }
}

/// Runs the tests whose names contain one of `names` (all if there are none) on each kernel, and fails
/// if one failed on one.
pub(crate) fn run(args: Args, names: &[OsString]) -> anyhow::Result<()> {
    setup::ensure(Extras {
        machines: true,
        ..Extras::default()
    })?;
    let names: Vec<_> = names.iter().map(|name| name.to_string_lossy()).collect();
    let suite = Suite::build(&ebpf::build()?, &names)?;
    let kernels = match args.kernels.unwrap_or_default() {
        chosen if chosen.is_empty() => Kernel::ALL.to_vec(),
        chosen => chosen,
    };
    let accelerator = if args.kvm { "kvm" } else { "tcg,thread=multi" };
    let mut outcomes = Vec::new();
    for kernel in kernels {
        println!("== {kernel}");
        let files = kernel::Files::get(kernel, args.fresh)?;
        let start = Instant::now();
        let outcome = boot(kernel, &files, &suite, accelerator);
        outcomes.push((kernel, outcome, start.elapsed()));
    }
    report(outcomes, suite.len())
}

fn report(
    outcomes: Vec<(Kernel, anyhow::Result<Outcome>, Duration)>,
    expected: usize,
) -> anyhow::Result<()> {
    let mut failed = Vec::new();
    println!();
    for (kernel, outcome, time) in outcomes {
        match outcome {
            Ok(outcome) => {
                print!("{}", outcome.details());
                let summary = outcome.summary();
                println!("{kernel}: {summary}; {} s", time.as_secs());
                if !outcome.is_good(expected) {
                    failed.push(kernel.to_string());
                }
            }
            Err(error) => {
                println!("{kernel}: {error:#}");
                failed.push(kernel.to_string());
            }
        }
    }
    ensure!(failed.is_empty(), "failed on {}", failed.join(", "));
    Ok(())
}

/// Runs a machine to its end, passing on what it says.
fn boot(
    kernel: Kernel,
    files: &kernel::Files,
    suite: &Suite,
    accelerator: &str,
) -> anyhow::Result<Outcome> {
    let scratch = tempfile::tempdir().context("make a temporary directory")?;
    let image = image::pack(scratch.path(), suite, files)?;
    let mut command = machine(kernel, &files.image, &image, accelerator);
    eprintln!("+ {}", process::shown(&command));
    let mut child = command.spawn().context("start qemu-system-x86_64")?;
    let output = child.stdout.take().context("read the machine's output")?;
    let mut outcome = Outcome::default();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("read the machine's output")?;
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end();
        println!("{line}");
        outcome.read(line);
    }
    let status = child.wait().context("wait for qemu-system-x86_64")?;
    ensure!(status.success(), "the machine ended with {status}");
    Ok(outcome)
}

fn machine(kernel: Kernel, file: &Path, image: &Path, accelerator: &str) -> Command {
    // What the kernel does not know is in the environment of the first process. What guards against
    // guesses of a real processor costs an emulated one and guards nothing there (`mitigations=off` would
    // change what the verifier allows as well); memory need not be cleared before it is used.
    let append = format!(
        "console=ttyS0 panic=-1 quiet audit=0 spectre_v2=off init_on_alloc=0 hooks={}",
        kernel.hooks()
    );
    let mut command = Command::new("timeout");
    command
        .args([LIMIT, "qemu-system-x86_64", "-machine", "q35"])
        .args(["-accel", accelerator])
        // The emulated CMPXCHG16B of QEMU 7.2 can lose the flags, which kernels notice as of 6.12.
        // Each access of the kernel to a process's memory, and a fifth level of page tables, cost extra.
        .args(["-cpu", "max,cx16=off,smap=off,la57=off"])
        .args(["-smp", "2", "-m", "4096"])
        .args(["-nodefaults", "-nographic", "-no-reboot"])
        .args(["-serial", "stdio", "-monitor", "none"])
        .args(["-append", &append, "-kernel"])
        .arg(file)
        .arg("-initrd")
        .arg(image)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}
