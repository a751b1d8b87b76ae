//! Running the tests that have to notice the listed mistakes.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::{list, make};
use crate::{
    ebpf::{self, Mutant},
    process, test, workspace,
};

/// Passes whatever packets meet, as long as the programs load.
const LOADS: &str = "cli::what_is_published_is_printed_one_line_a_family";

/// Plays the mutants with these names, or all.
pub(super) fn all(names: &[String]) -> anyhow::Result<()> {
    for name in names {
        let known = list::OF_ONE_TEST.iter().any(|mutant| mutant.name == name);
        ensure!(known, "no mutant is named {name:?}");
    }
    let directory = workspace::target().join("mutants-run");
    let mut bench = Bench::new(&directory)?;
    let chosen = list::OF_ONE_TEST
        .iter()
        .filter(|mutant| names.is_empty() || names.iter().any(|name| name == mutant.name));
    let mut wrong = Vec::new();
    for mutant in chosen {
        let outcome = bench.play(mutant, &directory)?;
        println!("{}: {} {outcome}", mutant.name, mutant.test);
        if outcome != NOTICED {
            wrong.push(mutant.name);
        }
    }
    ensure!(
        wrong.is_empty(),
        "not as it should be: {}",
        wrong.join(", ")
    );
    Ok(())
}

/// What is said of a mutant as it should be.
const NOTICED: &str = "fails, as it should";

/// The tests, and the command as it is.
struct Bench {
    tests: BTreeMap<String, PathBuf>,
    sound: PathBuf,
    /// Tests that have passed with it.
    passed: BTreeSet<&'static str>,
}

impl Bench {
    fn new(directory: &Path) -> anyhow::Result<Self> {
        let sound = Mutant {
            name: "none",
            test: LOADS,
            file: "",
            right: "",
            wrong: "",
        };
        Ok(Self {
            tests: executables(&ebpf::build()?)?,
            sound: make(&sound, directory, &ebpf::sources(directory))?,
            passed: BTreeSet::new(),
        })
    }

    /// What becomes of a mutant, after a look at whether its test passes without it.
    fn play(&mut self, mutant: &Mutant, directory: &Path) -> anyhow::Result<&'static str> {
        if !self.passed.contains(mutant.test) {
            if !self.passes(mutant.test, &self.sound)? {
                return Ok("FAILS WITHOUT THE MISTAKE TOO");
            }
            self.passed.insert(mutant.test);
        }
        let binary = make(mutant, directory, &ebpf::sources(directory))?;
        Ok(if !self.passes(LOADS, &binary)? {
            "IS NOT RUN: the kernel refuses the programs"
        } else if self.passes(mutant.test, &binary)? {
            "PASSES: nobody notices"
        } else {
            NOTICED
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
