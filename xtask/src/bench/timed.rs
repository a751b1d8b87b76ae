//! One process, from its start until it is reaped: how long that takes, and how much memory.

use std::{
    ffi::OsString,
    fs::File,
    io::{Read as _, Seek as _, Write as _},
    mem,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Instant,
};

use anyhow::{Context as _, bail};
use nix::{
    errno::Errno,
    libc::{self, pid_t},
};
use serde::{Deserialize, Serialize};

use super::worker;

/// How much of what a process says is kept, in bytes.
const WORDS: u64 = 4096;

/// What is to be run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) environment: Vec<(&'static str, OsString)>,
    /// What its standard input holds.
    pub(crate) input: String,
}

/// What became of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// From its start until it was reaped.
    pub(crate) nanos: u64,
    /// The most memory that it, or one of the processes that it waited for, had resident.
    pub(crate) resident_kib: u64,
    status: i32,
    /// The beginning of its standard output.
    pub(crate) said: String,
}

impl Request {
    /// Runs it in the network namespace `netns` on `core`, with all that it starts. Fails unless it exits
    /// with 0.
    pub(crate) fn run(&self, worker: &Path, netns: &Path, core: usize) -> anyhow::Result<Outcome> {
        let mut input = tempfile::NamedTempFile::new().context("make a temporary file")?;
        input
            .write_all(self.input.as_bytes())
            .context("write a temporary file")?;
        let output = worker::command(worker, netns, core)
            .args(["time", "--input"])
            .arg(input.path())
            .arg(&self.program)
            .args(&self.arguments)
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("start {}", worker.display()))?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        let complaint = complaint.trim();
        if !output.status.success() {
            bail!("time {}: {complaint}", self.program.display());
        }
        let outcome: Outcome = serde_json::from_slice(&output.stdout).context("an outcome")?;
        let status = ExitStatus::from_raw(outcome.status);
        if !status.success() {
            let said = outcome.said.trim();
            bail!(
                "{} ended with {status}: {complaint} {said}",
                self.program.display()
            );
        }
        Ok(outcome)
    }
}

/// Runs `command` as a child of this process and times it.
pub(crate) fn time(input: &Path, command: &[OsString]) -> anyhow::Result<Outcome> {
    let (program, arguments) = command.split_first().context("nothing to run")?;
    let input = File::open(input).with_context(|| format!("open {}", input.display()))?;
    let mut words = tempfile::tempfile().context("make a temporary file")?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(input)
        .stdout(words.try_clone().context("a second descriptor")?);
    let started = Instant::now();
    let child = command
        .spawn()
        .with_context(|| format!("run {}", program.display()))?;
    let (status, resident_kib) = reap(&child)?;
    let nanos = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
    words.rewind().context("read what it said")?;
    let mut said = Vec::new();
    words
        .take(WORDS)
        .read_to_end(&mut said)
        .context("read what it said")?;
    Ok(Outcome {
        nanos,
        resident_kib,
        status,
        said: String::from_utf8_lossy(&said).into_owned(),
    })
}

/// Waits for `child`. Gives its wait status and its peak of resident memory in KiB.
fn reap(child: &Child) -> anyhow::Result<(i32, u64)> {
    let pid = pid_t::try_from(child.id()).context("a process ID")?;
    let mut status = 0;
    // SAFETY: integers throughout, for which all zeroes is a value.
    let mut usage: libc::rusage = unsafe { mem::zeroed() };
    loop {
        // SAFETY: both places are ours and live; the child is ours, and nobody else waits for it.
        let reaped = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
        match Errno::result(reaped) {
            Ok(_) => break,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("wait for a process"),
        }
    }
    Ok((status, u64::try_from(usage.ru_maxrss).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(line: &str, input: &str) -> Outcome {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(input.as_bytes()).unwrap();
        time(file.path(), &["sh", "-c", line].map(OsString::from)).unwrap()
    }

    #[test]
    fn a_process_is_timed_until_it_has_ended() {
        let outcome = shell("sleep 0.02; cat", "hello");
        assert_eq!((outcome.status, outcome.said.as_str()), (0, "hello"));
        assert!(outcome.nanos >= 20_000_000, "{outcome:?}");
        assert!(outcome.resident_kib > 0, "{outcome:?}");
    }

    #[test]
    fn a_failure_is_told_by_the_status() {
        let status = ExitStatus::from_raw(shell("exit 3", "").status);
        assert_eq!(status.code(), Some(3));
    }
}
