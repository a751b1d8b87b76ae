//! Where things lie in the workspace.

use std::{
    env,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use nix::fcntl::{Flock, FlockArg};

/// The root of the workspace this task works on.
pub(crate) fn root() -> PathBuf {
    // Cargo names the directory at run time. Clones that share a target directory, and with it this
    // binary, thus each get their own; the compile-time value serves a binary started by hand.
    let manifest = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest
        .parent()
        .map_or(manifest.clone(), Path::to_path_buf)
}

/// The target directory that `cargo` itself uses for this workspace.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// The committed eBPF object, which the loader embeds.
pub(crate) fn committed_object() -> PathBuf {
    root().join("portfwd-user/ebpf/portfwd.o")
}

/// The versions of the tools that made the committed object.
pub(crate) fn committed_versions() -> PathBuf {
    root().join("portfwd-user/ebpf/portfwd.o.versions")
}

/// Takes an exclusive lock on `path`, waiting for whoever holds it. It ends when the lock is dropped.
pub(crate) fn lock(path: &Path) -> anyhow::Result<Flock<File>> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .with_context(|| format!("lock {}", path.display()))
}

/// Gives `path` these contents in one step, and leaves it alone if it has them already, so that its
/// modification time starts no rebuild. Says whether it changed.
pub(crate) fn write_if_changed(path: &Path, contents: &[u8]) -> anyhow::Result<bool> {
    if fs::read(path).is_ok_and(|old| old == contents) {
        return Ok(false);
    }
    let directory = path.parent().context("a file path without a directory")?;
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    let mut file = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(directory)
        .with_context(|| format!("create a file in {}", directory.display()))?;
    file.write_all(contents)
        .with_context(|| format!("write {}", path.display()))?;
    file.persist(path)
        .with_context(|| format!("write {}", path.display()))?;
    Ok(true)
}
