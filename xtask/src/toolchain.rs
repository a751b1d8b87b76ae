//! The pinned tools that make the eBPF object, and where they are kept.
//!
//! The object is byte-reproducible only with the exact compiler, LLVM and linker, so none of them is
//! taken from whatever the machine has by default.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use crate::{process, workspace};

/// The compiler of the eBPF programs, by its rustup name.
pub(crate) const RUST: &str = "1.95.0";
/// The LLVM release that links, lists and strips the object; Debian installs releases side by side.
pub(crate) const LLVM: &str = "22";
/// The linker of the eBPF programs, built against [`LLVM`].
pub(crate) const BPF_LINKER: &str = "0.13.0";
/// Checks the licences and advisories of all dependencies.
pub(crate) const CARGO_DENY: &str = "0.20.2";

/// The directory of tools that setup builds: shared by all clones of one user, never on anyone's PATH.
/// `PORTFWD_TOOLS` names another one.
pub(crate) fn tools() -> PathBuf {
    if let Some(directory) = env::var_os("PORTFWD_TOOLS") {
        return workspace::root().join(directory);
    }
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| env::home_dir().map(|home| home.join(".cache")));
    match cache {
        Some(cache) => cache.join("portfwd/tools"),
        None => workspace::root().join("target/tools"),
    }
}

/// The `--root` that `cargo install` gets for the linker: versions live side by side, so that an older
/// clone does not replace what a newer one needs.
pub(crate) fn bpf_linker_root() -> PathBuf {
    tools().join(format!("bpf-linker-{BPF_LINKER}-llvm-{LLVM}"))
}

/// The linker's binary.
pub(crate) fn bpf_linker() -> PathBuf {
    bpf_linker_root().join("bin/bpf-linker")
}

/// The `--root` that `cargo install` gets for cargo-deny.
pub(crate) fn cargo_deny_root() -> PathBuf {
    tools().join(format!("cargo-deny-{CARGO_DENY}"))
}

/// Where setup puts other tools' programs, which tests run beside portfwd and the benchmark compares with it.
pub(crate) fn peers() -> PathBuf {
    tools().join("peers")
}

/// Where Debian puts LLVM's own prefix.
pub(crate) fn llvm_prefix() -> PathBuf {
    Path::new("/usr/lib").join(format!("llvm-{LLVM}"))
}

/// One of LLVM's tools, by its plain name.
pub(crate) fn llvm(tool: &str) -> Command {
    Command::new(llvm_prefix().join("bin").join(tool))
}

/// A program of the pinned Rust toolchain, free of everything that the environment would have it do
/// differently. `RUSTUP_TOOLCHAIN` and `RUSTC` of an outer `cargo` would name another compiler; flags
/// and profile overrides would change the object.
pub(crate) fn pinned(program: &str) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", RUST, program]);
    for (name, _) in env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        let steers_cargo = name.starts_with("CARGO")
            && name != "CARGO_HOME"
            && !name.starts_with("CARGO_HTTP_")
            && !name.starts_with("CARGO_NET_")
            && !name.starts_with("CARGO_REGISTR");
        let steers_rust = name.starts_with("RUSTC") || name.starts_with("RUSTFLAGS");
        if steers_cargo || steers_rust || name == "RUSTUP_TOOLCHAIN" {
            command.env_remove(name);
        }
    }
    command
}

/// The directory of the pinned toolchain.
pub(crate) fn sysroot() -> anyhow::Result<PathBuf> {
    let path = process::output(pinned("rustc").args(["--print", "sysroot"]))?;
    Ok(PathBuf::from(path.trim()))
}

/// The home of cargo, which the object must not name.
pub(crate) fn cargo_home() -> anyhow::Result<PathBuf> {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")))
        .context("neither CARGO_HOME nor HOME is set")
}

/// What made an object, a line each: compiler, its LLVM, linker, and the linker's LLVM.
pub(crate) fn versions() -> anyhow::Result<String> {
    let rustc = process::output(pinned("rustc").arg("--version").arg("--verbose"))?;
    let field = |name: &str| {
        rustc
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
            .with_context(|| format!("rustc --version --verbose has no line \"{name}\""))
    };
    let linker = process::output(Command::new(bpf_linker()).arg("--version"))?;
    let llvm = process::output(llvm("llvm-config").arg("--version"))?;
    Ok(format!(
        "rustc {} ({})\nrustc's LLVM {}\n{}\nbpf-linker's LLVM {}\n",
        field("release:")?,
        field("commit-hash:")?,
        field("LLVM version:")?,
        linker.trim(),
        llvm.trim(),
    ))
}
