//! `cargo xtask bench-worker`: a process of the benchmark inside a network namespace, on one core.

use std::{
    ffi::OsString,
    fs::File,
    io::Write as _,
    net::SocketAddr,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::Context as _;
use nix::{
    sched::{CloneFlags, CpuSet, sched_setaffinity, setns},
    sys::{prctl, signal::Signal},
    unistd::Pid,
};

use super::{
    engine::{self, Window},
    timed,
    workload::Workload,
};

/// What a server prints once clients can come.
pub(crate) const READY: &str = "ready";

/// The command line of a worker up to its role.
pub(crate) fn command(program: &Path, netns: &Path, core: usize) -> Command {
    // What else runs on that core should wait. A real-time class would keep the kernel's own
    // threads away as well.
    let mut command = Command::new("nice");
    command
        .args(["-n", "-20", "--"])
        .arg(program)
        .args(["bench-worker", "--core", &core.to_string(), "--netns"])
        .arg(netns);
    command
}

/// A process of the benchmark inside a network namespace (used by `bench` itself)
#[derive(clap::Args)]
pub(crate) struct WorkerArgs {
    /// Network namespace to enter
    #[arg(long)]
    netns: PathBuf,
    /// Core to stay on
    #[arg(long)]
    core: usize,
    #[command(subcommand)]
    role: Role,
}

#[derive(clap::Subcommand)]
enum Role {
    /// Become another program: everything that follows is its command line
    Exec {
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Run another program and say what that took: everything after --input FILE is its command line
    Time {
        /// Its standard input
        #[arg(long)]
        input: PathBuf,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// Be the server of a workload
    Serve(Traffic),
    /// Be the client of a workload
    Drive(Traffic),
}

#[derive(clap::Args)]
struct Traffic {
    #[arg(value_enum)]
    workload: Workload,
    /// Address to listen on, or to connect to
    address: SocketAddr,
    #[arg(long)]
    warmup_ms: u64,
    #[arg(long)]
    length_ms: u64,
}

/// Runs the role. What it has measured goes to standard output as one line of JSON.
pub(crate) fn run(args: WorkerArgs) -> anyhow::Result<()> {
    // The benchmark cleans up by ending, however it ends: nothing of it may outlive it.
    prctl::set_pdeathsig(Signal::SIGKILL).context("tie this process to its parent")?;
    enter(&args.netns)?;
    pin(Pid::from_raw(0), args.core)?;
    let count = match args.role {
        Role::Exec { command } => return Err(exec(&command)),
        Role::Time { input, command } => {
            let outcome = timed::time(&input, &command)?;
            return print_line(&serde_json::to_string(&outcome)?);
        }
        Role::Serve(traffic) => {
            let window = begin(&traffic);
            Some(engine::serve(
                traffic.workload,
                traffic.address,
                window,
                || print_line(READY),
            )?)
        }
        Role::Drive(traffic) => {
            let window = begin(&traffic);
            engine::drive(traffic.workload, traffic.address, window)?
        }
    };
    match count {
        Some(count) => print_line(&serde_json::to_string(&count)?),
        None => Ok(()),
    }
}

/// Keeps every thread of process `pid` (0: the calling thread) on `core`.
pub(crate) fn pin(pid: Pid, core: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(core).with_context(|| format!("core {core}"))?;
    let pin = |thread| {
        sched_setaffinity(thread, &set)
            .with_context(|| format!("pin thread {thread} to core {core}"))
    };
    if pid.as_raw() == 0 {
        return pin(pid);
    }
    let tasks = PathBuf::from(format!("/proc/{pid}/task"));
    let threads = tasks
        .read_dir()
        .with_context(|| format!("read {}", tasks.display()))?;
    for thread in threads {
        let name = thread?.file_name();
        pin(Pid::from_raw(
            name.to_string_lossy()
                .parse()
                .context("a thread's number")?,
        ))?;
    }
    Ok(())
}

fn enter(netns: &Path) -> anyhow::Result<()> {
    let file = File::open(netns).with_context(|| format!("open {}", netns.display()))?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {}", netns.display()))
}

fn exec(command: &[String]) -> anyhow::Error {
    let Some((program, arguments)) = command.split_first() else {
        return anyhow::anyhow!("nothing to run");
    };
    let error = Command::new(program).args(arguments).exec();
    anyhow::Error::new(error).context(format!("run {program}"))
}

/// Gives the window, and sets an end to waiting: whoever waits for this process needs no deadline.
fn begin(traffic: &Traffic) -> Window {
    let window = Window {
        warmup: Duration::from_millis(traffic.warmup_ms),
        length: Duration::from_millis(traffic.length_ms),
    };
    let limit = window.warmup + window.length + Duration::from_secs(8);
    thread::spawn(move || {
        thread::sleep(limit);
        eprintln!("error: not done after {limit:?}");
        std::process::exit(1);
    });
    window
}

fn print_line(line: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .context("write the result")
}
