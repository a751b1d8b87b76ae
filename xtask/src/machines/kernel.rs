//! Kernels out of Debian packages, kept in the cache.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};

use crate::{process, suite::Suite, toolchain};

/// What tests need of a kernel's modules: networking, and what that depends on.
const PARTS: [&str; 5] = ["arch", "crypto", "drivers/net", "lib", "net"];
/// Depends on the current kernel of its suite. The one for clouds is the smallest.
const PACKAGE: &str = "linux-image-cloud-amd64";

/// A kernel by its role.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kernel {
    /// The oldest that portfwd works on.
    #[value(name = "6.1")]
    Oldest,
    /// The first of long support with TCX in Debian.
    #[value(name = "6.12")]
    Stable,
    /// What Debian's unstable suite has.
    #[value(name = "newest")]
    Newest,
}

impl Kernel {
    pub(super) const ALL: [Self; 3] = [Self::Oldest, Self::Stable, Self::Newest];

    fn suite(self) -> &'static str {
        match self {
            Self::Oldest => "bookworm",
            Self::Stable => "trixie",
            Self::Newest => "sid",
        }
    }

    /// What TC programs are to be attached by.
    pub(super) fn hooks(self) -> &'static str {
        match self {
            Self::Oldest => "clsact",
            Self::Stable | Self::Newest => "tcx",
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Oldest => "6.1",
            Self::Stable => "6.12",
            Self::Newest => "newest",
        })
    }
}

/// A kernel that has been unpacked.
pub(super) struct Files {
    /// What the machine boots.
    pub(super) image: PathBuf,
    /// The directory with its modules, named by its version, for `/lib/modules`.
    pub(super) modules: PathBuf,
}

impl Files {
    /// Those of the cache, fetched if they are not there, or with `fresh`.
    pub(super) fn get(kernel: Kernel, fresh: bool) -> anyhow::Result<Self> {
        let all = toolchain::tools().join("kernels");
        let tree = all.join(kernel.to_string());
        if fresh || !tree.exists() {
            fs::create_dir_all(&all).with_context(|| format!("create {}", all.display()))?;
            let scratch = tempfile::tempdir_in(&all).context("make a temporary directory")?;
            let unpacked = fetch(kernel, scratch.path())?;
            if tree.exists() {
                fs::remove_dir_all(&tree).with_context(|| format!("remove {}", tree.display()))?;
            }
            fs::rename(unpacked, &tree).with_context(|| format!("make {}", tree.display()))?;
        }
        Ok(Self {
            image: find(&tree, &["-type", "f", "-name", "vmlinuz*"])?,
            modules: find(&tree, &["-type", "d", "-path", "*/lib/modules/*", "-prune"])?,
        })
    }

    /// Copies the modules that tests may need into `root`, unpacked and with their dependencies listed:
    /// busybox's modprobe knows no compression. Later the kernel itself asks for what it lacks.
    pub(super) fn add_modules(&self, root: &Path) -> anyhow::Result<()> {
        let version = self.modules.file_name().context("a kernel's version")?;
        let to = root.join("lib/modules").join(version);
        fs::create_dir_all(&to).with_context(|| format!("create {}", to.display()))?;
        let parts = PARTS.map(|part| format!("kernel/{part}"));
        let parts = parts.iter().filter(|part| self.modules.join(part).exists());
        process::output(
            Command::new("cp")
                .args(["--recursive", "--parents", "--target-directory"])
                .arg(&to)
                .args(parts)
                .current_dir(&self.modules),
        )?;
        process::output(Command::new("find").arg(&to).args([
            "-name",
            "*.xz",
            "-exec",
            "xz",
            "--decompress",
            "{}",
            "+",
        ]))?;
        process::output(
            Command::new("/bin/busybox")
                .args(["depmod", "-b"])
                .arg(root)
                .arg(version),
        )
        .map(|_| ())
    }
}

/// The one thing in `tree` that `find` gives for these conditions.
fn find(tree: &Path, conditions: &[&str]) -> anyhow::Result<PathBuf> {
    let found = process::output(Command::new("find").arg(tree).args(conditions))?;
    let first = found.lines().next();
    first.map(PathBuf::from).with_context(|| {
        format!(
            "{} has nothing for {}",
            tree.display(),
            conditions.join(" ")
        )
    })
}

/// Downloads and unpacks the kernel of a suite into a directory of `scratch`.
fn fetch(kernel: Kernel, scratch: &Path) -> anyhow::Result<PathBuf> {
    eprintln!("fetching the kernel of Debian {}", kernel.suite());
    let suite = Suite::update(kernel.suite(), scratch)?;
    let packages =
        packages(|name| process::output(suite.apt("apt-cache").args(["depends", name])))?;
    process::output(suite.apt("apt-get").arg("download").args(&packages))?;
    let tree = scratch.join("tree");
    let unpack = "for package in *.deb; do dpkg-deb --extract \"$package\" \"$1\" || exit; done";
    process::output(suite.apt("sh").args(["-c", unpack, "sh"]).arg(&tree))?;
    Ok(tree)
}

/// The packages that the current kernel consists of: one, or as of 7.x image and modules apart.
fn packages(depends: impl Fn(&str) -> anyhow::Result<String>) -> anyhow::Result<Vec<String>> {
    let parts = |name: &str| -> anyhow::Result<Vec<String>> {
        let text = depends(name)?;
        let found = text.lines().filter_map(|line| {
            let name = line.trim().strip_prefix("Depends: ")?;
            ["linux-image-", "linux-binary-", "linux-modules-"]
                .iter()
                .any(|prefix| name.starts_with(prefix))
                .then(|| name.to_owned())
        });
        Ok(found.collect())
    };
    let mut packages = parts(PACKAGE)?;
    ensure!(!packages.is_empty(), "{PACKAGE} depends on no kernel");
    for package in packages.clone() {
        let inner = parts(&package)?;
        if !inner.is_empty() {
            packages.retain(|name| *name != package);
            packages.extend(inner);
        }
    }
    Ok(packages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_one_package_or_several() {
        let whole = |name: &str| {
            Ok(match name {
                PACKAGE => "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-50-cloud-amd64\n",
                _ => "linux-image-6.1.0-50-cloud-amd64\n  Depends: kmod\n |Depends: dracut\n",
            }
            .to_owned())
        };
        let found = packages(whole).expect("packages");
        assert_eq!(found, ["linux-image-6.1.0-50-cloud-amd64"]);
        let apart = |name: &str| {
            Ok(match name {
                PACKAGE => "linux-image-cloud-amd64\n  Depends: linux-image-7.2-amd64\n",
                _ => "x\n  Depends: linux-binary-7.2-amd64\n  Depends: linux-modules-7.2-amd64\n",
            }
            .to_owned())
        };
        let found = packages(apart).expect("packages");
        assert_eq!(found, ["linux-binary-7.2-amd64", "linux-modules-7.2-amd64"]);
        assert!(packages(|_| Ok(String::new())).is_err());
    }
}
