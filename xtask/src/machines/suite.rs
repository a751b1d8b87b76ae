//! The tests that machines run, built so that they need nothing of the machine's.

use std::{
    borrow::Cow,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::{mutants, process, workspace};

/// The target by its name: flags for it alone leave build scripts as they are.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// The profile of the workspace for what is emulated.
const PROFILE: &str = "machines";
/// The test binaries that machines do not run: what they look at is the same on every kernel, or, of
/// `crash`, `change_crash`, `crowd` and `bulk`, would take hours, or, as `differential`, need files of the workspace, or, as
/// `programs`, `portmap` and `docker`, half of Debian.
const LEFT_OUT: [&str; 18] = [
    "bulk",
    "change_crash",
    "cli",
    "contexts",
    "crash",
    "crowd",
    "differential",
    "docker",
    "foreign_rules",
    "log",
    "messages",
    "passed_by",
    "portmap",
    "programs",
    "refusals",
    "refused_anywhere",
    "refused_tables",
    "wrong_input",
];
/// Tests of other binaries that machines do not run: one has fifty commands wait for one lock, for longer, emulated,
/// than any waits; the others are sweeps.
const LEFT_OUT_TESTS: [&str; 3] = [
    "collision::of_fifty_concurrent_attaches_exactly_one_wins",
    "upgrade::a_swap_that_is_killed_anywhere_serves_and_leaves_nothing_to_the_next_command",
    "upgrade::a_swap_of_filters_that_is_killed_anywhere_leaves_nothing_either",
];
/// The mistakes in the programs that tests of machines play.
const MUTANTS: [&str; 2] = ["helper", "reason"];
/// The name that `smoke.sh` has among the tests.
pub(super) const SMOKE: &str = "smoke";

/// Programs that were built, and the tests in them.
pub(super) struct Suite {
    /// The command under test.
    pub(super) portfwd: PathBuf,
    /// The same with mistakes, by their names.
    pub(super) mutants: Vec<(&'static str, PathBuf)>,
    /// Test binaries by the names of their files' sources.
    pub(super) binaries: Vec<(String, PathBuf)>,
    /// Pairs of a binary's name and a test's.
    tests: Vec<(String, String)>,
}

impl Suite {
    /// Builds everything; `names` are parts of names of tests, `binary::test` in full.
    pub(super) fn build(object: &Path, names: &[Cow<'_, str>]) -> anyhow::Result<Self> {
        let mutants = MUTANTS.map(|name| Ok((name, build_mutant(name)?)));
        let mutants = mutants.into_iter().collect::<anyhow::Result<_>>()?;
        let portfwd = build_command(object)?;
        let mut command = cargo("test", object);
        command
            .args(["--package", "portfwd-tests", "--tests", "--no-run"])
            .args(["--message-format", "json-render-diagnostics"])
            .stderr(Stdio::inherit());
        eprintln!("+ {}", process::shown(&command));
        let output = command.output().context("start cargo")?;
        ensure!(
            output.status.success(),
            "cargo ended with {}",
            output.status
        );
        let messages = String::from_utf8(output.stdout).context("cargo's messages")?;
        let mut binaries: Vec<_> = messages.lines().filter_map(test_binary).collect();
        binaries.retain(|(name, _)| !LEFT_OUT.contains(&name.as_str()));
        let tests = tests(&binaries, names)?;
        binaries.retain(|(name, _)| tests.iter().any(|(binary, _)| binary == name));
        Ok(Self {
            portfwd,
            mutants,
            binaries,
            tests,
        })
    }

    /// How many tests there are.
    pub(super) fn len(&self) -> usize {
        self.tests.len()
    }

    /// A line each: a binary's name and a test's.
    pub(super) fn list(&self) -> String {
        let line = |(binary, test): &(String, String)| format!("{binary} {test}\n");
        self.tests.iter().map(line).collect()
    }
}

/// Builds the command, and gives its path.
fn build_command(object: &Path) -> anyhow::Result<PathBuf> {
    let mut command = cargo("build", object);
    process::run(command.args(["--package", "portfwd-user", "--bin", "portfwd"]))?;
    let directory = workspace::target().join(TARGET).join(PROFILE);
    Ok(directory.join("portfwd"))
}

/// The same with a mistake in its programs, of which a copy is kept.
fn build_mutant(name: &str) -> anyhow::Result<PathBuf> {
    let object = mutants::object(name)?;
    let copy = object.with_file_name("portfwd-machines");
    fs::copy(build_command(&object)?, &copy)
        .with_context(|| format!("write {}", copy.display()))?;
    Ok(copy)
}

/// The cargo that runs us, for programs without shared libraries.
fn cargo(task: &str, object: &Path) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .arg(task)
        .args(["--profile", PROFILE, "--target", TARGET])
        .current_dir(workspace::root())
        .env("RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .env("PORTFWD_EBPF_OBJECT", object);
    command
}

/// Name and path of the integration test that one of cargo's messages is about.
fn test_binary(message: &str) -> Option<(String, PathBuf)> {
    let message: Value = serde_json::from_str(message).ok()?;
    let target = &message["target"];
    let is_test = target["kind"].as_array()?.iter().any(|kind| kind == "test");
    let path = message["executable"].as_str()?;
    is_test.then(|| Some((target["name"].as_str()?.to_owned(), path.into())))?
}

/// All tests of the binaries whose full names contain one of `names`; the smoke test comes first, as
/// it needs the machine for itself.
fn tests(
    binaries: &[(String, PathBuf)],
    names: &[Cow<'_, str>],
) -> anyhow::Result<Vec<(String, String)>> {
    let mut tests = vec![(SMOKE.to_owned(), SMOKE.to_owned())];
    for (binary, path) in binaries {
        let list = process::output(Command::new(path).args(["--list", "--format", "terse"]))?;
        let found = list.lines().filter_map(|line| line.strip_suffix(": test"));
        tests.extend(found.map(|test| (binary.clone(), test.to_owned())));
    }
    let is_wanted = |binary: &str, test: &str| {
        let full = format!("{binary}::{test}");
        let is_named = names.is_empty() || names.iter().any(|name| full.contains(&**name));
        is_named && !LEFT_OUT_TESTS.contains(&full.as_str())
    };
    tests.retain(|(binary, test)| is_wanted(binary, test));
    ensure!(!tests.is_empty(), "no test is called {}", names.join(", "));
    Ok(tests)
}
