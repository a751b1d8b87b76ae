//! Programs in the directory of tools: built by cargo, or taken out of Debian packages.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use super::{Extras, debian};
use crate::{process, suite::Suite, toolchain};

/// A program that cargo builds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Crate {
    BpfLinker,
    CargoDeny,
}

impl Crate {
    pub(super) fn describe(self) -> String {
        let root = self.root();
        let (name, version) = self.name();
        format!(
            "{name} {version}, built into {} (about a minute)",
            root.display()
        )
    }

    fn name(self) -> (&'static str, &'static str) {
        match self {
            Self::BpfLinker => ("bpf-linker", toolchain::BPF_LINKER),
            Self::CargoDeny => ("cargo-deny", toolchain::CARGO_DENY),
        }
    }

    fn root(self) -> PathBuf {
        match self {
            Self::BpfLinker => toolchain::bpf_linker_root(),
            Self::CargoDeny => toolchain::cargo_deny_root(),
        }
    }

    /// Whether it is there and starts: a library it was linked with may have gone since.
    fn works(self) -> bool {
        let (name, version) = self.name();
        let binary = self.root().join("bin").join(name);
        process::output(Command::new(binary).arg("--version"))
            .is_ok_and(|text| text.trim() == format!("{name} {version}"))
    }

    pub(super) fn install(self) -> anyhow::Result<()> {
        let (name, version) = self.name();
        let mut cargo = toolchain::pinned("cargo");
        cargo
            .args([
                "install",
                name,
                "--version",
                version,
                "--locked",
                "--force",
                "--root",
            ])
            .arg(self.root());
        match self {
            Self::BpfLinker => {
                let feature = format!("llvm-{}", toolchain::LLVM);
                let llvm = toolchain::llvm_prefix();
                let path = env::var_os("PATH").unwrap_or_default();
                let paths = [llvm.join("bin")]
                    .into_iter()
                    .chain(env::split_paths(&path));
                cargo
                    .args(["--no-default-features", "--features", &feature])
                    .env("LLVM_PREFIX", &llvm)
                    .env("PATH", env::join_paths(paths).context("PATH")?);
            }
            Self::CargoDeny => {
                // It runs for seconds: optimizing it would take longer than it ever saves.
                cargo.arg("--debug").env("CARGO_PROFILE_DEV_DEBUG", "false");
            }
        }
        process::run(&mut cargo)
    }
}

/// The programs that are needed and not there, or that do not start.
pub(super) fn missing_crates(extras: Extras) -> Vec<Crate> {
    let wanted: &[Crate] = if extras.check {
        &[Crate::BpfLinker, Crate::CargoDeny]
    } else {
        &[Crate::BpfLinker]
    };
    wanted
        .iter()
        .copied()
        .filter(|tool| !tool.works())
        .collect()
}

/// Programs of a Debian package that is better not installed: docker.io starts a daemon that writes
/// rules of its own, and takes the place of the Docker that a machine may have.
pub(super) struct Unpacked {
    package: &'static str,
    /// Where the machine's own suite is too old: the one to take it from.
    suite: Option<&'static str>,
    /// As the package lists them.
    members: &'static [&'static str],
}

const UNPACKED: [Unpacked; 5] = [
    Unpacked {
        package: "docker.io",
        suite: None,
        members: &[
            "./usr/bin/docker",
            "./usr/sbin/docker-proxy",
            "./usr/sbin/dockerd",
        ],
    },
    Unpacked {
        package: "containerd",
        suite: None,
        members: &["./usr/bin/containerd", "./usr/bin/containerd-shim-runc-v2"],
    },
    Unpacked {
        package: "runc",
        suite: None,
        members: &["./usr/sbin/runc"],
    },
    // What Docker's containers run in the tests.
    Unpacked {
        package: "busybox-static",
        suite: None,
        members: &["./bin/busybox"],
    },
    Unpacked {
        package: "containernetworking-plugins",
        // Its nftables came with 1.6.
        suite: Some("sid"),
        members: &["./usr/lib/cni/portmap"],
    },
];

/// The packages of which a program is not there yet.
pub(super) fn missing_unpacked() -> Vec<Unpacked> {
    UNPACKED
        .into_iter()
        .filter(|package| !package.members.iter().all(|member| path(member).is_file()))
        .collect()
}

/// Where the program goes to that a package has as `member`.
fn path(member: &str) -> PathBuf {
    toolchain::peers().join(name(member))
}

fn name(member: &str) -> &str {
    member.rsplit_once('/').map_or(member, |(_, name)| name)
}

impl Unpacked {
    pub(super) fn describe(&self) -> String {
        let names: Vec<&str> = self.members.iter().map(|member| name(member)).collect();
        format!(
            "{} of the package {}, into {}",
            names.join(", "),
            self.package,
            toolchain::peers().display()
        )
    }

    pub(super) fn install(&self) -> anyhow::Result<()> {
        let directory = toolchain::peers();
        fs::create_dir_all(&directory)
            .with_context(|| format!("create {}", directory.display()))?;
        let scratch = tempfile::tempdir_in(&directory).context("make a temporary directory")?;
        let packages = self.download(scratch.path())?;
        let unpack = "dpkg-deb --fsys-tarfile ./*.deb | tar --extract --file=- \"$@\"";
        process::output(
            Command::new("sh")
                .args(["-c", unpack, "sh"])
                .args(self.members)
                .current_dir(&packages),
        )?;
        for member in self.members {
            let (program, place) = (packages.join(member), path(member));
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
                .with_context(|| format!("make {} executable", program.display()))?;
            fs::rename(&program, &place)
                .with_context(|| format!("move {} to {}", program.display(), place.display()))?;
        }
        Ok(())
    }

    /// Downloads the package, and nothing else, into the directory that it gives.
    fn download(&self, scratch: &Path) -> anyhow::Result<PathBuf> {
        let Some(suite) = self.suite else {
            debian::update()?;
            debian::download(self.package, scratch)?;
            return Ok(scratch.to_owned());
        };
        let suite = Suite::update(suite, scratch)?;
        process::output(suite.apt("apt-get").args(["download", self.package]))?;
        Ok(suite.packages())
    }
}
