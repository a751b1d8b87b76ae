//! BPF file systems of the tests' own.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A BPF file system of its own, so that unmounting it drops every pin of a test whatever happened.
#[derive(Debug)]
pub(crate) struct Bpffs(PathBuf);

impl Bpffs {
    /// Under `/run`, which is root's alone, as an instance's parents have to be.
    pub(crate) fn mount(name: &str) -> Self {
        let path = PathBuf::from(format!("/run/pf-{name}"));
        fs::create_dir(&path).unwrap_or_else(|error| panic!("make {}: {error}", path.display()));
        mount(
            Some("bpf"),
            &path,
            Some("bpf"),
            MsFlags::empty(),
            Some("mode=0700"),
        )
        .unwrap_or_else(|error| panic!("mount a BPF file system: {error}"));
        Self(path)
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("unmount {}: {error}", self.0.display());
        }
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("remove {}: {error}", self.0.display());
        }
    }
}
