//! The file system that pins live in: found, mounted where there is none, and refused where others could
//! change what is in it.

use std::fs::{self, DirBuilder, File, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{BPF_FS_MAGIC, fstatfs};

use crate::error::{Doing, Error, InstanceError};
use crate::lock::{self, DirectoryLock};

/// The source that a mount of ours names, so that `down` can tell it from the system's.
const MOUNT_SOURCE: &str = "portfwd";
/// Bits of a directory's mode that let others than its owner create and remove entries.
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// In a sticky directory others may create entries, but neither rename nor remove ours.
const STICKY: u32 = 0o1000;

/// A bpffs, held open: while it is, nobody can unmount it.
#[derive(Debug)]
pub struct Bpffs {
    root: PathBuf,
    directory: File,
}

impl Bpffs {
    /// The bpffs at `directory`; None when there is no such directory, or it lies on another file system.
    ///
    /// # Errors
    /// When a file is in the way, or others could change what the path leads to.
    pub fn open(directory: &Path) -> Result<Option<Self>, Error> {
        let Some(opened) = open(directory)? else {
            return Ok(None);
        };
        if !is_bpffs(&opened).doing(|| format!("look at {}", directory.display()))? {
            return Ok(None);
        }
        let root = fs::canonicalize(directory).doing(|| format!("open {}", directory.display()))?;
        check_ancestors(&root)?;
        check_path(&root, Others::MayCreate)?;
        Ok(Some(Self {
            root,
            directory: opened,
        }))
    }

    /// The bpffs at `directory`, mounted there if there is none yet; a missing directory is made, its
    /// parent is not. Processes that do this at once mount one.
    ///
    /// # Errors
    /// Those of [`Bpffs::open`], and when it cannot be made or mounted.
    pub fn ensure(directory: &Path, wait: Duration) -> Result<Self, Error> {
        if let Some(bpffs) = Self::open(directory)? {
            return Ok(bpffs);
        }
        if !make_directory(directory)? {
            return Err(no_parent(directory));
        }
        let point =
            fs::canonicalize(directory).doing(|| format!("open {}", directory.display()))?;
        check_ancestors(&point)?;
        check_path(&point, Others::MayNot)?;
        // A mount would hide what is in it.
        if !names(&point)?.is_empty() {
            return Self::open(&point)?.ok_or_else(|| InstanceError::NotBpffs(point).into());
        }
        // The lock is on the directory beneath the mount. Once another process has mounted, the path
        // leads elsewhere: to its bpffs.
        let lock = DirectoryLock::acquire(&point, wait).doing(|| "mount a bpffs".to_owned())?;
        if lock.is_some() && Self::open(&point)?.is_none() {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(
                Some(MOUNT_SOURCE),
                &point,
                Some("bpf"),
                flags,
                Some("mode=0700"),
            )
            .map_err(io::Error::from)
            .doing(|| format!("mount a bpffs on {}", point.display()))?;
        }
        drop(lock);
        Self::open(&point)?.ok_or_else(|| InstanceError::NotBpffs(point).into())
    }

    /// Where it is, without symbolic links.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Unmounts it if portfwd mounted it and nothing is left in it; says whether it did. One that is in
    /// use stays.
    ///
    /// # Errors
    /// When the kernel refuses for another reason.
    pub fn release(self) -> Result<bool, Error> {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo")
            .doing(|| "read /proc/self/mountinfo".to_owned())?;
        if !is_our_mount(&mountinfo, &self.root) || !self.is_empty()? {
            return Ok(false);
        }
        let Self { root, directory } = self;
        drop(directory);
        match umount2(&root, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => Ok(true),
            Err(Errno::EBUSY) => Ok(false),
            Err(errno) => Err(io::Error::from(errno))
                .doing(|| format!("unmount the bpffs on {}", root.display())),
        }
    }

    /// Whether there is nothing but what the kernel itself puts into a bpffs.
    fn is_empty(&self) -> Result<bool, Error> {
        let entries = names(&self.root)?;
        Ok(entries
            .iter()
            .all(|name| name == "maps.debug" || name == "progs.debug"))
    }
}

/// Whether others than the owner may create entries in a directory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Others {
    /// As in a sticky directory, where they cannot touch ours.
    MayCreate,
    /// Not at all.
    MayNot,
}

/// Refuses a directory in which somebody else could replace what is ours, and what is no directory.
pub(crate) fn check(path: &Path, metadata: &Metadata, others: Others) -> Result<(), Error> {
    let refuse = |why: String| {
        Err(InstanceError::Unsafe {
            path: path.to_owned(),
            why,
        }
        .into())
    };
    if !metadata.is_dir() {
        return Err(InstanceError::InTheWay(path.to_owned()).into());
    }
    let owner = metadata.uid();
    let own = nix::unistd::geteuid().as_raw();
    if owner != 0 && owner != own {
        return refuse(format!("owned by user {owner}"));
    }
    let writable = metadata.mode() & WRITABLE_BY_OTHERS != 0;
    let sticky = metadata.mode() & STICKY != 0;
    if writable && !(sticky && others == Others::MayCreate) {
        return refuse("writable by others".to_owned());
    }
    Ok(())
}

/// Checks every directory above `path`, which must be free of symbolic links.
fn check_ancestors(path: &Path) -> Result<(), Error> {
    path.ancestors()
        .skip(1)
        .try_for_each(|ancestor| check_path(ancestor, Others::MayCreate))
}

/// Metadata of the path itself, not of what a symbolic link leads to; None when nothing is there.
pub(crate) fn metadata(path: &Path) -> Result<Option<Metadata>, Error> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).doing(|| format!("look at {}", path.display())),
    }
}

/// As [`check`], of what is at the path now; nothing there is nothing unsafe.
fn check_path(path: &Path, others: Others) -> Result<(), Error> {
    match metadata(path)? {
        Some(metadata) => check(path, &metadata, others),
        None => Ok(()),
    }
}

/// Names of a directory's entries, sorted; none when the directory is gone. A name that is no text is given
/// with replacement characters.
pub(crate) fn names(directory: &Path) -> Result<Vec<String>, Error> {
    let read = || -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(directory)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    };
    match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        result => result.doing(|| format!("list {}", directory.display())),
    }
}

/// Makes a directory for the owner alone; one that is there already is fine. False when its parent is
/// missing.
pub(crate) fn make_directory(path: &Path) -> Result<bool, Error> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(true),
        Err(error) => match error.kind() {
            io::ErrorKind::AlreadyExists => Ok(true),
            io::ErrorKind::NotFound => Ok(false),
            _ => Err(error).doing(|| format!("create directory {}", path.display())),
        },
    }
}

/// The error of a directory whose parent is missing.
pub(crate) fn no_parent(path: &Path) -> Error {
    let error = io::Error::from(io::ErrorKind::NotFound);
    Error::Failed {
        action: format!("create directory {}", path.display()),
        source: Box::new(error),
    }
}

/// None when nothing is there.
fn open(path: &Path) -> Result<Option<File>, Error> {
    match lock::open_directory(path) {
        Ok(directory) => Ok(Some(directory)),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound => Ok(None),
            io::ErrorKind::NotADirectory => Err(InstanceError::InTheWay(path.to_owned()).into()),
            _ => Err(error).doing(|| format!("open {}", path.display())),
        },
    }
}

fn is_bpffs(directory: &File) -> io::Result<bool> {
    Ok(fstatfs(directory)?.filesystem_type() == BPF_FS_MAGIC)
}

/// Whether the topmost mount on `root` is a bpffs with our source (proc_pid_mountinfo(5)). A path that
/// mountinfo writes with escapes never compares equal, and such a mount stays.
fn is_our_mount(mountinfo: &str, root: &Path) -> bool {
    let topmost = mountinfo.lines().rev().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let separator = fields.iter().position(|field| *field == "-")?;
        let at_root = fields.get(4).is_some_and(|point| Path::new(point) == root);
        at_root.then(|| {
            (
                fields.get(separator + 1).copied(),
                fields.get(separator + 2).copied(),
            )
        })
    });
    topmost == Some((Some("bpf"), Some(MOUNT_SOURCE)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_mount_that_names_portfwd_is_ours() {
        let line = |point: &str, kind: &str, source: &str| {
            format!("40 20 0:33 / {point} rw,nosuid shared:5 - {kind} {source} rw,mode=700\n")
        };
        let root = Path::new("/sys/fs/bpf");
        assert!(is_our_mount(&line("/sys/fs/bpf", "bpf", "portfwd"), root));
        assert!(!is_our_mount(&line("/sys/fs/bpf", "bpf", "bpf"), root));
        assert!(!is_our_mount(
            &line("/sys/fs/bpf", "tmpfs", "portfwd"),
            root
        ));
        assert!(!is_our_mount(&line("/run/bpf", "bpf", "portfwd"), root));
        let covered = line("/sys/fs/bpf", "bpf", "portfwd") + &line("/sys/fs/bpf", "bpf", "bpf");
        assert!(!is_our_mount(&covered, root));
        assert!(!is_our_mount("40 20\n\n", root));
    }
}
