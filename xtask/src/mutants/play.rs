//! Running the tests that have to notice the listed mistakes.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::{Loader, list, make};
use crate::{
    ebpf::{self, Mutant},
    process, test, workspace,
};

/// Passes whatever packets meet, as long as the programs load.
const LOADS: &str = "cli::what_is_published_is_printed_one_line_a_family";

/// What is said of a mutant as it should be.
const NOTICED: &str = "fails, as it should";

/// Plays the mutants with these names, in that order, or all; so many `together`.
pub(super) fn all(names: &[String], together: usize) -> anyhow::Result<()> {
    let directory = workspace::target().join("mutants-run");
    let chosen = chosen(names)?;
    let mut bench = Bench::new(directory)?;
    let mut wrong = Vec::new();
    for group in chosen.chunks(together) {
        bench.play_all(group, &mut wrong)?;
    }
    ensure!(
        wrong.is_empty(),
        "not as it should be: {}",
        wrong.join(", ")
    );
    Ok(())
}

fn chosen(names: &[String]) -> anyhow::Result<Vec<&'static Mutant>> {
    let all = list::OF_ONE_TEST;
    if names.is_empty() {
        return Ok(all.iter().collect());
    }
    let of_name = |name: &String| {
        let known = all.iter().find(|mutant| mutant.name == name);
        known.with_context(|| format!("no mutant is named {name:?}"))
    };
    names.iter().map(of_name).collect()
}

/// The tests, and the command as it is.
struct Bench {
    directory: PathBuf,
    tests: BTreeMap<String, PathBuf>,
    sound: PathBuf,
    /// Tests that have passed with it.
    passed: BTreeSet<&'static str>,
}

impl Bench {
    fn new(directory: PathBuf) -> anyhow::Result<Self> {
        Ok(Self {
            tests: executables(&ebpf::build()?)?,
            sound: make(&[], &directory, &Loader::of_copy(&directory))?,
            passed: BTreeSet::new(),
            directory,
        })
    }

    /// Plays mutants that are built together; where the kernel refuses that, each half of them.
    fn play_all(&mut self, group: &[&Mutant], wrong: &mut Vec<&'static str>) -> anyhow::Result<()> {
        let binary = make(group, &self.directory, &Loader::of_copy(&self.directory))?;
        let loads = self.passes(LOADS, &binary)?;
        if !loads && group.len() > 1 {
            let (first, second) = group.split_at(group.len() / 2);
            self.play_all(first, wrong)?;
            return self.play_all(second, wrong);
        }
        for mutant in group {
            let outcome = match loads {
                true => self.play(mutant, &binary)?,
                false => "IS NOT RUN: the kernel refuses the programs",
            };
            println!("{}: {} {outcome}", mutant.name, mutant.test);
            if outcome != NOTICED {
                wrong.push(mutant.name);
            }
        }
        Ok(())
    }

    /// What becomes of a mutant in `binary`, after a look at whether its test passes without it.
    fn play(&mut self, mutant: &Mutant, binary: &Path) -> anyhow::Result<&'static str> {
        if !self.passed.contains(mutant.test) {
            if !self.passes(mutant.test, &self.sound)? {
                return Ok("FAILS WITHOUT THE MISTAKE TOO");
            }
            self.passed.insert(mutant.test);
        }
        Ok(match self.passes(mutant.test, binary)? {
            true => "PASSES: nobody notices",
            false => NOTICED,
        })
    }

    fn passes(&self, test: &str, binary: &Path) -> anyhow::Result<bool> {
        let (file, function) = test.split_once("::").context("a test is file::function")?;
        let executable = self
            .tests
            .get(file)
            .with_context(|| format!("no tests/tests/{file}.rs"))?;
        let output = Command::new(executable)
            .args([function, "--exact", "--include-ignored"])
            .current_dir(workspace::root().join("tests"))
            .env("CARGO_MANIFEST_DIR", workspace::root().join("tests"))
            .env("PORTFWD_BIN", binary)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("start {}", executable.display()))?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(
            said.contains("running 1 test\n"),
            "{test} is not one test:\n{said}"
        );
        Ok(output.status.success())
    }
}

/// The test programs by the name of their file.
fn executables(object: &Path) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let mut cargo = test::cargo("test", object);
    cargo.args(["--no-run", "--package", "portfwd-tests"]);
    let told = process::output(cargo.arg("--message-format=json"))?;
    let mut found = BTreeMap::new();
    for line in told.lines() {
        let message: Value = serde_json::from_str(line).context("a message of cargo")?;
        if let (Some(name), Some(path)) = (
            message["target"]["name"].as_str(),
            message["executable"].as_str(),
        ) {
            found.insert(name.to_owned(), PathBuf::from(path));
        }
    }
    if found.is_empty() {
        bail!("cargo has built no tests");
    }
    Ok(found)
}
