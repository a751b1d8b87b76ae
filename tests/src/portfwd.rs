//! The `portfwd` binary as a process: what it was given, what it said, how it ended.

use std::collections::BTreeSet;
use std::env;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::deadline::patient;

/// No command takes longer than this.
const LIMIT: Duration = Duration::from_secs(60);

/// Where the binary under test lies: `PORTFWD_BIN`, or beside the test executable's directory.
///
/// # Panics
/// When it is not there: a test without the binary has failed, it is not skipped.
#[must_use]
pub fn binary() -> PathBuf {
    let path = env::var_os("PORTFWD_BIN").map_or_else(beside_the_tests, PathBuf::from);
    assert!(
        path.is_file(),
        "no portfwd binary at {}: build it (cargo build -p portfwd-user) or set PORTFWD_BIN",
        path.display()
    );
    path
}

/// `target/<profile>/portfwd`, seen from `target/<profile>/deps/<test>`.
fn beside_the_tests() -> PathBuf {
    let test = env::current_exe().expect("the running test has a path");
    let directory = test.parent().and_then(Path::parent);
    directory
        .expect("a test lies in target/<profile>/deps")
        .join("portfwd")
}

/// The binary with this mistake in its programs: one of those that `cargo xtask mutants` has built.
///
/// # Panics
/// When it is not there.
#[must_use]
pub fn mutant(name: &str) -> PathBuf {
    let mutants = env::var_os("PORTFWD_MUTANTS").map_or_else(mutants_of_target, PathBuf::from);
    let binary = mutants.join(name).join("portfwd");
    assert!(
        binary.is_file(),
        "no {}: build the mutants (cargo xtask mutants)",
        binary.display()
    );
    binary
}

fn mutants_of_target() -> PathBuf {
    let test = env::current_exe().expect("the running test has a path");
    let target = test.ancestors().nth(3);
    target
        .expect("a test lies in target/<profile>/deps")
        .join("mutants")
}

/// A command with the binary under test that inherits none of the caller's `PORTFWD_*` variables.
#[must_use]
pub fn command() -> Command {
    command_of(&binary())
}

/// The same with another binary.
#[must_use]
pub fn command_of(binary: &Path) -> Command {
    let mut command = Command::new(binary);
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("PORTFWD_") {
            command.env_remove(name);
        }
    }
    command
}

/// How a run of the binary ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What was run, for messages.
    pub command: String,
    /// The exit code; 128 + signal number if a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Outcome {
    /// Asserts that the run ended with `code`.
    ///
    /// # Panics
    /// When it did not, showing everything.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert!(
            self.code == code,
            "{}\nexit code {} instead of {code}\nstdout: {}\nstderr: {}",
            self.command,
            self.code,
            self.stdout,
            self.stderr
        );
        self
    }

    /// Asserts success.
    ///
    /// # Panics
    /// When the exit code is not 0.
    #[track_caller]
    pub fn expect_ok(self) -> Self {
        self.expect_code(0)
    }

    /// Standard output as one JSON document.
    ///
    /// # Panics
    /// When it is none.
    #[track_caller]
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{}: {error}: {}", self.command, self.stdout))
    }

    /// Asserts that standard error holds `text`.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn expect_stderr(self, text: &str) -> Self {
        assert!(
            self.stderr.contains(text),
            "{}\nstderr lacks {text:?}: {}",
            self.command,
            self.stderr
        );
        self
    }
}

/// Asserts the form of an error: nothing on standard output; one line that names the value at fault,
/// and says nothing twice, then at most who holds it and what to do.
///
/// # Panics
/// When the outcome has another form.
#[track_caller]
pub fn expect_error(outcome: Outcome, code: i32, named: &str) {
    let outcome = outcome.expect_code(code);
    let mut lines = outcome.stderr.lines();
    let first = lines.next().unwrap_or_default();
    assert!(
        first.starts_with("error: "),
        "{}: {}",
        outcome.command,
        outcome.stderr
    );
    assert!(
        outcome.stderr.contains(named),
        "{}\n{named:?} is not named: {}",
        outcome.command,
        outcome.stderr
    );
    assert!(
        lines.all(|line| ["held by: ", "hint: "]
            .iter()
            .any(|start| line.starts_with(start))),
        "{}: {}",
        outcome.command,
        outcome.stderr
    );
    let mut parts = BTreeSet::new();
    let again = first.split(": ").find(|part| !parts.insert(*part));
    assert_eq!(again, None, "{} says it twice: {first}", outcome.command);
    assert_eq!(outcome.stdout, "", "{}", outcome.command);
}

/// Runs a command to its end and gathers what it said.
///
/// # Panics
/// When it cannot start, or takes longer than a minute (it is killed then).
pub fn finish(mut command: Command) -> Outcome {
    let shown = format!("{command:?}");
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("start {shown}: {error}"));
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a process ID fits"));
    let (sender, receiver) = mpsc::channel();
    let waiter = thread::spawn(move || {
        // The receiver is gone only after the test has failed on the deadline below.
        let _ = sender.send(child.wait_with_output());
    });
    let limit = patient(LIMIT);
    let Ok(output) = receiver.recv_timeout(limit) else {
        let killed = kill(pid, Signal::SIGKILL);
        panic!("{shown} still ran after {limit:?} (killed: {killed:?})");
    };
    waiter.join().expect("the waiter does not panic");
    let output = output.unwrap_or_else(|error| panic!("wait for {shown}: {error}"));
    outcome(shown, &output)
}

/// What a run that has ended was, recorded like every other.
///
/// # Panics
/// When it can not be recorded.
#[must_use]
pub fn outcome(command: String, output: &Output) -> Outcome {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    record(&stderr);
    Outcome {
        command,
        code: exit_code(output.status),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr,
    }
}

/// Adds what a run of the binary said to what this process has recorded, in the directory that
/// `PORTFWD_MESSAGES` names: `cargo xtask test` looks there for every message of the source.
///
/// # Panics
/// When that fails.
pub fn record(stderr: &str) {
    let Some(directory) = env::var_os("PORTFWD_MESSAGES") else {
        return;
    };
    let path = Path::new(&directory).join(process::id().to_string());
    let file = OpenOptions::new().append(true).create(true).open(&path);
    let written = file.and_then(|mut file| file.write_all(stderr.as_bytes()));
    written.unwrap_or_else(|error| panic!("record messages in {}: {error}", path.display()));
}

/// The exit code as a shell reports it.
fn exit_code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .expect("a process ended by code or signal")
}
