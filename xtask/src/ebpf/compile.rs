//! Compiling and linking the programs, so that nothing of the machine reaches them.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::ensure;

use super::PACKAGE;
use crate::{process, toolchain};

/// The compiler's name for the target: BPF, little-endian.
const TARGET: &str = "bpfel-unknown-none";
/// The profile in the root manifest that the programs are built with.
const PROFILE: &str = "ebpf";

/// Compiles and links the programs of the workspace `root` into the target directory `directory`, and
/// gives the path of the object.
pub(super) fn link(root: &Path, directory: &Path) -> anyhow::Result<PathBuf> {
    process::run(&mut cargo("build", root, directory)?)?;
    Ok(directory.join(TARGET).join(PROFILE).join("portfwd"))
}

/// The pinned cargo for one task on the programs.
pub(super) fn cargo(task: &str, root: &Path, directory: &Path) -> anyhow::Result<Command> {
    let linker = toolchain::bpf_linker();
    ensure!(
        linker.exists(),
        "{} is missing\nhint: run `cargo xtask setup`",
        linker.display()
    );
    let mut cargo = toolchain::pinned("cargo");
    cargo
        .current_dir(root)
        .args([task, "--locked", "--package", PACKAGE, "--profile", PROFILE])
        .args(["-Z", "build-std=core", "--target", TARGET, "--target-dir"])
        .arg(directory)
        // The target has no prebuilt core, and building one is an unstable option of a stable compiler.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags(root)?.join("\x1f"))
        // Not a flag: flags are part of the names of symbols, and this path differs between machines.
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &linker);
    Ok(cargo)
}

/// The compiler's flags. No path of this machine may reach the object, so the workspace, cargo's home
/// and the compiler's own directory get fixed names.
fn flags(root: &Path) -> anyhow::Result<Vec<String>> {
    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    Ok(vec![
        // The linker makes BTF from full debug information.
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // Atomics and 32-bit instructions; Linux 5.10 runs it.
        "-Ctarget-cpu=v3".to_owned(),
        // Whatever the host is: its registers are named in bindings for probes, which we have none of.
        "--cfg=bpf_target_arch=\"x86_64\"".to_owned(),
        remap(&toolchain::cargo_home()?, "/cargo"),
        remap(&toolchain::sysroot()?, "/rust"),
        remap(root, "/src"),
    ])
}
