//! `cargo xtask setup`: installs what building, testing and showing portfwd needs.
//!
//! Everything is looked at first. What is missing is named and then installed, in the order of the
//! list; a second run finds nothing to do. No service is started or enabled, and nothing of the
//! user's own Rust installation changes but the pinned toolchain beside it.

mod debian;
mod tools;

use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::{process, toolchain, workspace};

/// What is needed beyond what builds the eBPF object and what the tests and the demo run.
#[derive(clap::Args, Clone, Copy, Default)]
pub(crate) struct Extras {
    /// Also the tools of `cargo xtask check`
    #[arg(long)]
    pub(crate) check: bool,
    /// Also what `cargo xtask test --kernels` runs its machines with
    #[arg(long)]
    pub(crate) machines: bool,
}

/// One thing to have.
enum Item {
    /// Debian packages by name, all installed at once.
    Packages(Vec<&'static str>),
    /// The pinned compiler with its sources and checkers.
    Rust,
    /// A program built by cargo into the directory of tools.
    Crate(tools::Crate),
    /// Programs taken out of a Debian package that is not installed.
    Unpacked(tools::Unpacked),
}

impl Item {
    fn describe(&self) -> String {
        match self {
            Self::Packages(names) => format!("Debian packages: {}", names.join(" ")),
            Self::Rust => format!(
                "Rust {} beside the present toolchains, with its sources, clippy and rustfmt",
                toolchain::RUST
            ),
            Self::Crate(tool) => tool.describe(),
            Self::Unpacked(package) => package.describe(),
        }
    }

    fn install(&self) -> anyhow::Result<()> {
        match self {
            Self::Packages(names) => debian::install(names),
            Self::Rust => install_rust(),
            Self::Crate(tool) => tool.install(),
            Self::Unpacked(package) => package.install(),
        }
    }
}

/// `cargo xtask setup`: the same as [`ensure()`], and says so if there is nothing to do.
pub(crate) fn run(extras: Extras) -> anyhow::Result<()> {
    if ensure_installed(extras)? == 0 {
        println!("setup: nothing to do");
    }
    Ok(())
}

/// Installs what is missing; silent if nothing is.
pub(crate) fn ensure(extras: Extras) -> anyhow::Result<()> {
    ensure_installed(extras).map(|_| ())
}

/// Gives the number of things that were missing.
fn ensure_installed(extras: Extras) -> anyhow::Result<usize> {
    if missing(extras)?.is_empty() {
        return Ok(0);
    }
    // Setups of several clones take turns, and the second looks again at what the first one left.
    let lock = toolchain::tools().join(".lock");
    eprintln!("setup: taking {}", lock.display());
    let _lock = workspace::lock(&lock)?;
    let items = missing(extras)?;
    for item in &items {
        eprintln!("setup: missing: {}", item.describe());
    }
    for item in &items {
        eprintln!("setup: installing {}", item.describe());
        item.install()?;
    }
    let left = missing(extras)?;
    ensure!(
        left.is_empty(),
        "still missing after setup: {}",
        left.iter()
            .map(Item::describe)
            .collect::<Vec<_>>()
            .join("; ")
    );
    Ok(items.len())
}

/// What is needed and not there.
fn missing(extras: Extras) -> anyhow::Result<Vec<Item>> {
    let mut items = Vec::new();
    let packages = debian::missing(extras)?;
    if !packages.is_empty() {
        items.push(Item::Packages(packages));
    }
    if !has_rust()? {
        items.push(Item::Rust);
    }
    items.extend(tools::missing_crates(extras).into_iter().map(Item::Crate));
    let unpacked = tools::missing_unpacked();
    items.extend(unpacked.into_iter().map(Item::Unpacked));
    Ok(items)
}

/// Whether the pinned toolchain is there with all that is used of it.
fn has_rust() -> anyhow::Result<bool> {
    let toolchains = process::output(Command::new("rustup").args(["toolchain", "list"])).context(
        "the eBPF programs are built with a toolchain of rustup's\nhint: install rustup (https://rustup.rs)",
    )?;
    let prefix = format!("{}-", toolchain::RUST);
    if !toolchains.lines().any(|line| line.starts_with(&prefix)) {
        return Ok(false);
    }
    let sysroot = toolchain::sysroot()?;
    Ok([
        "lib/rustlib/src/rust/library/Cargo.lock",
        "bin/cargo-clippy",
        "bin/rustfmt",
    ]
    .iter()
    .all(|file| sysroot.join(file).exists()))
}

fn install_rust() -> anyhow::Result<()> {
    process::run(
        Command::new("rustup")
            .args(["toolchain", "install", toolchain::RUST])
            .args(["--profile", "minimal", "--no-self-update"])
            .args([
                "--component",
                "rust-src",
                "--component",
                "clippy",
                "--component",
                "rustfmt",
            ]),
    )
}
