//! The eBPF object: built from source the same to the byte on every machine, and compared with the
//! committed one.

mod compile;
mod copy;
mod moved;
mod mutant;
mod object;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};

pub(crate) use self::mutant::{Mutant, sources};
use crate::{process, toolchain, workspace};

/// The package of the programs, which is built for their target alone.
pub(crate) const PACKAGE: &str = "portfwd-ebpf";

/// `cargo xtask ebpf`: builds the object and replaces the committed one.
pub(crate) fn update() -> anyhow::Result<()> {
    let bytes = read(&build()?)?;
    let committed = workspace::committed_object();
    let changed = workspace::write_if_changed(&committed, &bytes)?;
    workspace::write_if_changed(
        &workspace::committed_versions(),
        toolchain::versions()?.as_bytes(),
    )?;
    println!(
        "{} {} ({} bytes)",
        sha256(&bytes),
        committed.display(),
        bytes.len()
    );
    eprintln!("{}", if changed { "changed" } else { "unchanged" });
    Ok(())
}

/// `cargo xtask ebpf --check`: fails unless the committed object is what the source gives, here and, if
/// `elsewhere`, in another directory with every line moved.
pub(crate) fn check(elsewhere: bool) -> anyhow::Result<()> {
    let built = read(&build()?)?;
    let versions = toolchain::versions()?;
    eprint!("compared with:\n{versions}");
    compare_with_committed(&built, &versions)?;
    if elsewhere {
        let moved = moved::build(&workspace::target().join("ebpf-moved"))?;
        if moved != built {
            bail!(
                "the object depends on the directory or the lines of its source\n\
                 here:      {}\nelsewhere: {}",
                sha256(&built),
                sha256(&moved)
            );
        }
        println!("another directory, and a comment on top of every file, give the same object");
    }
    Ok(())
}

fn compare_with_committed(built: &[u8], versions: &str) -> anyhow::Result<()> {
    let committed = read(&workspace::committed_object())?;
    if built == committed {
        println!(
            "{}: the committed object is what the source gives",
            sha256(built)
        );
        return Ok(());
    }
    let made_with = fs::read_to_string(workspace::committed_versions()).unwrap_or_default();
    let cause = if made_with == versions {
        "hint: the source has changed since; run `cargo xtask ebpf` and commit the object"
            .to_owned()
    } else {
        format!(
            "the committed object was made with:\n{made_with}\
             hint: install those versions, or run `cargo xtask ebpf` and commit the object"
        )
    };
    bail!(
        "{} is not what the source gives\ncommitted: {} ({} bytes)\nbuilt:     {} ({} bytes)\n{cause}",
        workspace::committed_object().display(),
        sha256(&committed),
        committed.len(),
        sha256(built),
        built.len(),
    );
}

/// Builds the object from source and gives its path below the target directory. The committed object
/// stays as it is.
pub(crate) fn build() -> anyhow::Result<PathBuf> {
    let directory = workspace::target().join("ebpf");
    // Two builds in one clone take turns: the second must not link while the first one strips.
    let _lock = workspace::lock(&directory.join(".xtask-lock"))?;
    let linked = compile::link(&workspace::root(), &directory)?;
    let object = directory.join("portfwd.o");
    workspace::write_if_changed(&object, &object::strip(&linked)?)?;
    object::refuse_panics(&object)?;
    object::refuse_copies(&object)?;
    Ok(object)
}

/// The object with these mistakes in it, built below `directory`.
pub(crate) fn mutant(mutants: &[&Mutant], directory: &Path) -> anyhow::Result<PathBuf> {
    mutant::build(mutants, directory)
}

/// Lints the programs with their target's core, warnings being errors.
pub(crate) fn clippy() -> anyhow::Result<()> {
    let directory = workspace::target().join("ebpf");
    let mut cargo = compile::cargo("clippy", &workspace::root(), &directory)?;
    process::run(cargo.args(["--", "-D", "warnings"]))
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
