//! The machine's initial file system, which is all it has.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};

use super::{kernel, suite::Suite};
use crate::process;

/// What runs in the machine: the first process, one test, and the test that is a script.
const SCRIPTS: [(&str, &str); 3] = [
    ("init", include_str!("init.sh")),
    ("tests/one", include_str!("one.sh")),
    ("tests/smoke", include_str!("smoke.sh")),
];
/// Busybox has applets of some of these names, which can do less.
const PROGRAMS: [&str; 11] = [
    "bpftool",
    "ethtool",
    "ip",
    "ip6tables",
    "iptables",
    "nft",
    "setpriv",
    "socat",
    "tc",
    "unshare",
    "wg",
];
/// What iptables loads its matches and targets from.
const XTABLES: &str = "usr/lib/x86_64-linux-gnu/xtables";

/// Packs everything into `scratch`, and gives the archive's path.
pub(super) fn pack(
    scratch: &Path,
    suite: &Suite,
    kernel: &kernel::Files,
) -> anyhow::Result<PathBuf> {
    let root = scratch.join("root");
    for directory in [
        "bin", "sbin", "programs", "tests", "proc", "sys", "dev", "run", "tmp", "etc",
    ] {
        let directory = root.join(directory);
        fs::create_dir_all(&directory)
            .with_context(|| format!("create {}", directory.display()))?;
    }
    copy(Path::new("/bin/busybox"), &root.join("bin/busybox"))?;
    // The kernel starts it by this name.
    symlink("/bin/busybox", root.join("sbin/modprobe")).context("make /sbin/modprobe")?;
    add_programs(&root)?;
    kernel.add_modules(&root)?;
    copy(&suite.portfwd, &root.join("bin/portfwd"))?;
    for (name, path) in &suite.mutants {
        let directory = root.join("mutants").join(name);
        fs::create_dir_all(&directory)
            .with_context(|| format!("create {}", directory.display()))?;
        copy(path, &directory.join("portfwd"))?;
    }
    for (name, path) in &suite.binaries {
        copy(path, &root.join("tests").join(name))?;
    }
    for (name, text) in SCRIPTS {
        let script = root.join(name);
        fs::write(&script, text).with_context(|| format!("write {}", script.display()))?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("make {} executable", script.display()))?;
    }
    let list = root.join("tests/list");
    fs::write(&list, suite.list()).with_context(|| format!("write {}", list.display()))?;
    let archive = scratch.join("image.cpio");
    // Not compressed: an emulated processor takes longer to unpack it than to copy it.
    let pack = "find . | cpio --quiet --create --format=newc >\"$1\"";
    process::output(
        Command::new("sh")
            .args(["-c", pack, "sh"])
            .arg(&archive)
            .current_dir(&root),
    )?;
    Ok(archive)
}

/// The programs, and the libraries that they name, at the libraries' own places.
fn add_programs(root: &Path) -> anyhow::Result<()> {
    let mut libraries = BTreeSet::new();
    for name in PROGRAMS {
        let found =
            process::output(Command::new("sh").args(["-c", "command -v \"$1\"", "sh", name]))
                .with_context(|| format!("no program {name}"))?;
        let program = PathBuf::from(found.trim());
        ensure!(program.is_absolute(), "no program {name}");
        let needed = process::output(Command::new("ldd").arg(&program))?;
        let words = needed.split_whitespace();
        libraries.extend(
            words
                .filter(|word| word.starts_with('/'))
                .map(PathBuf::from),
        );
        copy(&program, &root.join("programs").join(name))?;
    }
    let extensions = Path::new("/").join(XTABLES);
    let entries =
        fs::read_dir(&extensions).with_context(|| format!("read {}", extensions.display()))?;
    for entry in entries {
        libraries.insert(entry.context("read a directory")?.path());
    }
    for library in libraries {
        let inside = library.strip_prefix("/").context("an absolute path")?;
        let to = root.join(inside);
        if let Some(directory) = to.parent() {
            fs::create_dir_all(directory)
                .with_context(|| format!("create {}", directory.display()))?;
        }
        copy(&library, &to)?;
    }
    Ok(())
}

/// Of a symbolic link, what it leads to.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::copy(from, to)
        .map(|_| ())
        .with_context(|| format!("copy {} to {}", from.display(), to.display()))
}
