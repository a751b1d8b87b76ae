//! `cargo xtask vm`: publishes ports on Debian's kernels, each in a virtual machine.
//!
//! The machine's memory is all it has: kernel, a static portfwd, busybox, and the few programs that
//! `vm/smoke.sh` runs. That script is the test; what it says last is the result.

mod image;
mod kernel;

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, bail, ensure};

use crate::{
    ebpf, process,
    setup::{self, Extras},
    workspace,
};

/// What the script says last if all went well.
const PASSED: &str = "smoke: passed";
/// Seconds that one machine may take, emulated: ten times what it takes on two cores.
const LIMIT: &str = "600";
/// The target by its name: flags for it alone leave build scripts as they are.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Publish ports on Debian's kernels in virtual machines: 6.1 without TCX, 6.12, and the newest
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The kernels to run [default: all]
    #[arg(value_enum, value_name = "KERNEL")]
    kernels: Vec<kernel::Kernel>,
    /// Fetch the kernels again
    #[arg(long)]
    fresh: bool,
    /// Use the processor's virtualization, not emulation: quicker, but /dev/kvm is there on machines
    /// where it does not work
    #[arg(long)]
    kvm: bool,
}

/// Runs the script on each kernel, and fails if it failed on one.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    setup::ensure(Extras {
        vm: true,
        ..Extras::default()
    })?;
    let binary = build_static(&ebpf::build()?)?;
    let kernels = match args.kernels.as_slice() {
        [] => kernel::Kernel::ALL.to_vec(),
        chosen => chosen.to_vec(),
    };
    let accelerator = if args.kvm { "kvm" } else { "tcg,thread=multi" };
    let mut failed = Vec::new();
    for kernel in kernels {
        println!("== {kernel}");
        let files = kernel::Files::get(kernel, args.fresh)?;
        let start = Instant::now();
        let result = smoke(kernel, &files, &binary, accelerator);
        let seconds = start.elapsed().as_secs();
        match result {
            Ok(()) => println!("{kernel}: passed in {seconds} s"),
            Err(error) => {
                eprintln!("{kernel}: after {seconds} s: {error:#}");
                failed.push(kernel.to_string());
            }
        }
    }
    ensure!(failed.is_empty(), "failed on {}", failed.join(", "));
    Ok(())
}

/// A binary that needs no library of the machine's.
fn build_static(object: &Path) -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    process::run(
        Command::new(cargo)
            .args(["build", "--release", "--package", "portfwd-user"])
            .args(["--bin", "portfwd", "--target", TARGET])
            .current_dir(workspace::root())
            .env("RUSTFLAGS", "-Ctarget-feature=+crt-static")
            .env("PORTFWD_EBPF_OBJECT", object),
    )?;
    Ok(workspace::target().join(TARGET).join("release/portfwd"))
}

fn smoke(
    kernel: kernel::Kernel,
    files: &kernel::Files,
    binary: &Path,
    accelerator: &str,
) -> anyhow::Result<()> {
    let scratch = tempfile::tempdir().context("make a temporary directory")?;
    let image = image::pack(scratch.path(), binary, files)?;
    // What the kernel does not know is in the script's environment.
    let append = format!("console=ttyS0 panic=-1 quiet hooks={}", kernel.hooks());
    let mut command = Command::new("timeout");
    command
        .args([LIMIT, "qemu-system-x86_64", "-machine", "q35"])
        .args(["-accel", accelerator])
        // The emulated CMPXCHG16B of QEMU 7.2 can lose the flags, which kernels notice as of 6.12.
        .args(["-cpu", "max,cx16=off", "-smp", "2", "-m", "1024"])
        .args(["-nodefaults", "-nographic", "-no-reboot"])
        .args(["-serial", "stdio", "-monitor", "none"])
        .args(["-append", &append, "-kernel"])
        .arg(&files.image)
        .arg("-initrd")
        .arg(image)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    eprintln!("+ {}", process::shown(&command));
    let mut child = command.spawn().context("start qemu-system-x86_64")?;
    let output = child.stdout.take().context("read the machine's output")?;
    let mut last = String::new();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("read the machine's output")?;
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end();
        println!("{line}");
        if line.starts_with("smoke: ") {
            last = line.to_owned();
        }
    }
    let status = child.wait().context("wait for qemu-system-x86_64")?;
    if last != PASSED {
        bail!("the machine ended with {status}, saying \"{last}\"");
    }
    Ok(())
}
