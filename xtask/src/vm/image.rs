//! The machine's initial file system, which is all it has.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};

use super::kernel;
use crate::process;

/// The first process.
const SCRIPT: &str = include_str!("smoke.sh");
/// Busybox has applets of these names that can do less, or none.
const PROGRAMS: [&str; 5] = ["ip", "tc", "socat", "ethtool", "bpftool"];

/// Packs everything into `scratch`, and gives the archive's path.
pub(super) fn pack(
    scratch: &Path,
    portfwd: &Path,
    kernel: &kernel::Files,
) -> anyhow::Result<PathBuf> {
    let root = scratch.join("root");
    for directory in [
        "bin", "programs", "modules", "proc", "sys", "dev", "run", "etc",
    ] {
        let directory = root.join(directory);
        fs::create_dir_all(&directory)
            .with_context(|| format!("create {}", directory.display()))?;
    }
    copy(Path::new("/bin/busybox"), &root.join("bin/busybox"))?;
    copy(portfwd, &root.join("bin/portfwd"))?;
    add_programs(&root)?;
    for (number, (name, file)) in kernel.modules.iter().enumerate() {
        add_module(file, &root.join(format!("modules/{number:02}-{name}.ko")))?;
    }
    let init = root.join("init");
    fs::write(&init, SCRIPT).with_context(|| format!("write {}", init.display()))?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("make {} executable", init.display()))?;
    let archive = scratch.join("image.cpio.gz");
    let pack = "find . | cpio --quiet --create --format=newc | gzip -1 > \"$1\"";
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

/// Unpacked: busybox's insmod knows no compression.
fn add_module(file: &Path, to: &Path) -> anyhow::Result<()> {
    if file.extension().is_none_or(|extension| extension != "xz") {
        return copy(file, to);
    }
    let output = File::create(to).with_context(|| format!("create {}", to.display()))?;
    let status = Command::new("/bin/busybox")
        .arg("xzcat")
        .arg(file)
        .stdout(output)
        .status()
        .context("start busybox")?;
    ensure!(
        status.success(),
        "unpacking {} ended with {status}",
        file.display()
    );
    Ok(())
}

/// Of a symbolic link, what it leads to.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::copy(from, to)
        .map(|_| ())
        .with_context(|| format!("copy {} to {}", from.display(), to.display()))
}
