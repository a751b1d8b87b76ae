//! The command with mistakes in its programs, for the tests of the tests.

mod list;
mod play;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use crate::{
    ebpf::{self, Mutant},
    process, test, workspace,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Build each of the listed mistakes instead, or those that are named, and run the test that has to
    /// notice it
    #[arg(long)]
    run: bool,
    /// Build so many of them at a time into one object: faster, but a test may notice another mistake than
    /// its own
    #[arg(long, requires = "run", default_value = "1")]
    together: std::num::NonZeroUsize,
    /// Names of mistakes
    #[arg(requires = "run")]
    names: Vec<String>,
}

/// `cargo xtask mutants`: builds those that the differential test runs by itself, or runs the others; and
/// then builds the command as it should be, in whose place they were.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let outcome = match args.run {
        true => play::all(&args.names, args.together.get()),
        false => build(),
    };
    process::run(test::cargo("build", &ebpf::build()?).args(["--package", "portfwd-user"]))?;
    outcome
}

/// Builds those of the differential test, each into a directory of its own with a binary `portfwd`. The
/// last one is left as the command that tests run, so build that again afterwards.
pub(crate) fn build() -> anyhow::Result<()> {
    for mutant in &list::OF_ALL_PACKETS {
        let directory = workspace::target().join("mutants");
        make(&[mutant], &directory, &Loader::of_workspace())?;
    }
    Ok(())
}

/// Builds the object with one of the mistakes of the differential test, and gives its path.
pub(crate) fn object(name: &str) -> anyhow::Result<PathBuf> {
    let mut mutants = list::OF_ALL_PACKETS.iter();
    let mutant = mutants.find(|mutant| mutant.name == name);
    let mutant = mutant.with_context(|| format!("no mutant {name}"))?;
    ebpf::mutant(&[mutant], &workspace::target().join("mutants"))
}

/// Where the command itself is built.
struct Loader {
    sources: PathBuf,
    /// Of these sources alone: cargo takes what was built from a copy for what it would build from the workspace,
    /// and would not notice changes there.
    target: PathBuf,
}

impl Loader {
    fn of_workspace() -> Self {
        Self {
            sources: workspace::root(),
            target: workspace::target(),
        }
    }
    /// From a copy of the sources, which a mistake may be in.
    fn of_copy(directory: &Path) -> Self {
        Self {
            sources: ebpf::sources(directory),
            target: directory.join("loader"),
        }
    }
}

/// Builds the command with these mistakes below `directory`, and gives its path.
fn make(mutants: &[&Mutant], directory: &Path, loader: &Loader) -> anyhow::Result<PathBuf> {
    let object = ebpf::mutant(mutants, directory)?;
    let mut cargo = test::cargo("build", &object);
    cargo
        .current_dir(&loader.sources)
        .env("CARGO_TARGET_DIR", &loader.target);
    process::run(cargo.args(["--package", "portfwd-user"]))?;
    let binary = object.with_file_name("portfwd");
    // Beside it first: a test may be running the old one.
    let new = binary.with_extension("new");
    fs::copy(loader.target.join("debug/portfwd"), &new)
        .and_then(|_| fs::rename(&new, &binary))
        .with_context(|| format!("write {}", binary.display()))?;
    Ok(binary)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_mutant_can_be_made_has_a_name_of_its_own_and_a_test_that_exists() {
        let mut names = BTreeSet::new();
        for mutant in list::OF_ALL_PACKETS.iter().chain(list::OF_ONE_TEST) {
            assert!(names.insert(mutant.name), "{} is there twice", mutant.name);
            let path = mutant.path();
            let text = fs::read_to_string(workspace::root().join(&path)).expect("a source file");
            mutant.edited(&path, text).expect("it can be made");
            let (file, function) = mutant.test.split_once("::").expect("file::function");
            let file = workspace::root().join(format!("tests/tests/{file}.rs"));
            let tests = fs::read_to_string(&file).expect("a file of tests");
            assert!(
                tests.contains(&format!("fn {function}()")),
                "{} is not in {}",
                mutant.test,
                file.display()
            );
        }
    }
}
