//! The command with mistakes in its programs, for the tests of the tests.

use std::{fs, path::PathBuf};

use anyhow::Context as _;

use crate::{ebpf, process, test, workspace};

/// Where each mutant has a directory with a binary `portfwd`.
pub(crate) fn directory() -> PathBuf {
    workspace::target().join("mutants")
}

/// `cargo xtask mutants`: builds them, and then the command as it should be, in whose place they were.
pub(crate) fn run() -> anyhow::Result<()> {
    build()?;
    process::run(test::cargo("build", &ebpf::build()?).args(["--package", "portfwd-user"]))
}

/// Builds them. The last one is left as the command that tests run, so build that again afterwards.
pub(crate) fn build() -> anyhow::Result<()> {
    for (name, object) in ebpf::mutants(&directory())? {
        process::run(test::cargo("build", &object).args(["--package", "portfwd-user"]))?;
        let binary = directory().join(name).join("portfwd");
        // Beside it first: a test may be running the old one.
        let new = binary.with_extension("new");
        fs::copy(workspace::target().join("debug/portfwd"), &new)
            .and_then(|_| fs::rename(&new, &binary))
            .with_context(|| format!("write {}", binary.display()))?;
    }
    Ok(())
}
