//! The tests that machines run, built so that they need nothing of the machine's.

use std::{
    borrow::Cow,
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::{process, workspace};

/// The target by its name: flags for it alone leave build scripts as they are.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// The profile of the workspace for what is emulated.
const PROFILE: &str = "machines";
/// The test binaries that machines do not run: what they look at is the same on every kernel, or, of
/// `crash`, `change_crash`, `crowd` and `bulk`, would take hours, or, as `differential`, need files of the workspace, or, as
/// `programs`, `portmap` and `docker`, half of Debian, or, as `upgrade`, another build of portfwd.
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
    "portmap",
    "programs",
    "refusals",
    "refused_anywhere",
    "refused_tables",
    "upgrade",
    "wrong_input",
];
/// Tests of other binaries that machines do not run: one needs what lies beside the workspace, a mutant of
/// the programs; the other has fifty commands wait for one lock, for longer, emulated, than any waits.
const LEFT_OUT_TESTS: [&str; 2] = [
    "packets::a_packet_that_can_be_translated_only_half_way_is_dropped",
    "collision::of_fifty_concurrent_attaches_exactly_one_wins",
];
/// The name that `smoke.sh` has among the tests.
pub(super) const SMOKE: &str = "smoke";

/// Programs that were built, and the tests in them.
pub(super) struct Suite {
    /// The command under test.
    pub(super) portfwd: PathBuf,
    /// Test binaries by the names of their files' sources.
    pub(super) binaries: Vec<(String, PathBuf)>,
    /// Pairs of a binary's name and a test's.
    tests: Vec<(String, String)>,
}

impl Suite {
    /// Builds everything; `names` are parts of names of tests, `binary::test` in full.
    pub(super) fn build(object: &Path, names: &[Cow<'_, str>]) -> anyhow::Result<Self> {
        process::run(cargo("build", object).args([
            "--package",
            "portfwd-user",
            "--bin",
            "portfwd",
        ]))?;
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
        let release = workspace::target().join(TARGET).join(PROFILE);
        Ok(Self {
            portfwd: release.join("portfwd"),
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
