//! The eBPF object: built from source the same to the byte on every machine, and compared with the
//! committed one.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};

use crate::{btf, process, toolchain, workspace};

/// The compiler's name for the target: BPF, little-endian.
const TARGET: &str = "bpfel-unknown-none";
/// The programs' package, and the profile in the root manifest that it is built with.
const PACKAGE: &str = "portfwd-ebpf";
const PROFILE: &str = "ebpf";

/// `cargo xtask ebpf`: builds the object and replaces the committed one.
pub(crate) fn update() -> anyhow::Result<()> {
    let object = build()?;
    let bytes = read(&object)?;
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

/// `cargo xtask ebpf --check`: fails unless the committed object is what the source gives.
pub(crate) fn check() -> anyhow::Result<()> {
    let built = read(&build()?)?;
    let committed = read(&workspace::committed_object())?;
    let versions = toolchain::versions()?;
    eprint!("compared with:\n{versions}");
    if built == committed {
        println!(
            "{}: the committed object is what the source gives",
            sha256(&built)
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
        sha256(&built),
        built.len(),
    );
}

/// Builds the object from source and gives its path below the target directory. The committed object
/// stays as it is.
pub(crate) fn build() -> anyhow::Result<PathBuf> {
    let directory = workspace::target().join("ebpf");
    // Two builds in one clone take turns: the second must not link while the first one strips.
    let _lock = workspace::lock(&directory.join(".xtask-lock"))?;
    compile(&directory)?;
    let linked = directory.join(TARGET).join(PROFILE).join("portfwd");
    let bytes = strip(&linked)?;
    let object = directory.join("portfwd.o");
    workspace::write_if_changed(&object, &bytes)?;
    refuse_panics(&object)?;
    report_copies(&object)?;
    Ok(object)
}

/// Compiles and links the programs into `directory`.
fn compile(directory: &Path) -> anyhow::Result<()> {
    let linker = toolchain::bpf_linker();
    if !linker.exists() {
        bail!(
            "{} is missing\nhint: run `cargo xtask setup`",
            linker.display()
        );
    }
    let mut cargo = toolchain::pinned("cargo");
    cargo
        .current_dir(workspace::root())
        .args([
            "build",
            "--locked",
            "--package",
            PACKAGE,
            "--profile",
            PROFILE,
        ])
        .args(["-Z", "build-std=core", "--target", TARGET, "--target-dir"])
        .arg(directory)
        // The target has no prebuilt core, and building one is an unstable option of a stable compiler.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags()?.join("\x1f"))
        // Not a flag: flags are part of the names of symbols, and this path differs between machines.
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &linker);
    process::run(&mut cargo)
}

/// The compiler's flags. No path of this machine may reach the object, so the workspace, cargo's home
/// and the compiler's own directory get fixed names.
fn flags() -> anyhow::Result<Vec<String>> {
    let sysroot = process::output(toolchain::pinned("rustc").args(["--print", "sysroot"]))?;
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
        remap(Path::new(sysroot.trim()), "/rust"),
        remap(&workspace::root(), "/src"),
    ])
}

/// The linked object without DWARF and without line information.
fn strip(linked: &Path) -> anyhow::Result<Vec<u8>> {
    let scratch = tempfile::tempdir().context("make a temporary directory")?;
    let path = |name: &str| scratch.path().join(name);
    let (types, ext, object) = (path("types"), path("ext"), path("object"));
    process::output(
        toolchain::llvm("llvm-objcopy")
            .arg(format!("--dump-section=.BTF={}", types.display()))
            .arg(format!("--dump-section=.BTF.ext={}", ext.display()))
            .arg(linked)
            .arg(path("unused")),
    )?;
    let (new_types, new_ext) = btf::without_lines(&read(&types)?, &read(&ext)?)
        .with_context(|| format!("type information of {}", linked.display()))?;
    write(&types, &new_types)?;
    write(&ext, &new_ext)?;
    process::output(
        toolchain::llvm("llvm-objcopy")
            .arg("--strip-debug")
            // Loaders do without these: the records hold the offsets of functions, and the symbol table
            // those of variables. The first would still have an entry for each line; the second would
            // point at nothing, since objcopy forgets what it belongs to when .BTF is replaced.
            .arg("--remove-section=.rel.BTF.ext")
            .arg("--remove-section=.rel.BTF")
            .arg(format!("--update-section=.BTF={}", types.display()))
            .arg(format!("--update-section=.BTF.ext={}", ext.display()))
            .arg(linked)
            .arg(&object),
    )?;
    read(&object)
}

/// Fails if a panic is left in the programs: the verifier would refuse them with a message that helps
/// nobody.
fn refuse_panics(object: &Path) -> anyhow::Result<()> {
    let symbols = process::output(toolchain::llvm("llvm-nm").arg(object))?;
    let panics: Vec<&str> = symbols
        .lines()
        .filter(|line| line.contains("panic"))
        .collect();
    if !panics.is_empty() {
        bail!(
            "the programs can panic:\n{}\nhint: look for an index, a division or a slice range",
            panics.join("\n")
        );
    }
    Ok(())
}

/// Says how often the programs call the byte-wise memory routines, which are slow and long to verify.
fn report_copies(object: &Path) -> anyhow::Result<()> {
    let listing = process::output(
        toolchain::llvm("llvm-objdump")
            .args(["--disassemble", "--reloc", "--no-show-raw-insn"])
            .arg(object),
    )?;
    let calls = copies(&listing);
    if calls.is_empty() {
        return Ok(());
    }
    eprintln!(
        "warning: {} calls of byte-wise memory routines:",
        calls.len()
    );
    for (function, routine) in calls {
        eprintln!("  {routine} in {function}");
    }
    Ok(())
}

/// The calls of memory routines in a listing: caller and routine.
fn copies(listing: &str) -> Vec<(&str, &str)> {
    let mut function = "";
    let mut calls = Vec::new();
    for line in listing.lines() {
        if let Some(name) = line
            .strip_suffix(">:")
            .and_then(|line| line.split_once('<'))
        {
            function = name.1;
        } else if line.contains("R_BPF_64_32") {
            let symbol = line.split_whitespace().last().unwrap_or_default();
            if ["memcpy", "memmove", "memset", "memcmp", "bcmp"].contains(&symbol) {
                calls.push((function, symbol));
            }
        }
    }
    calls
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

fn write(path: &Path, contents: &[u8]) -> anyhow::Result<()> {
    fs::write(path, contents).with_context(|| format!("write {}", path.display()))
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
