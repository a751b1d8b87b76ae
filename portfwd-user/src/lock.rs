//! Exclusive locks on directories. A lock lives in an open descriptor (flock(2)), so that it dies with
//! its holder, however that ends, and leaves nothing in the file system.
//!
//! Who waits does so in the kernel's queue (`__locks_insert_block`): those who came first have their turn first. Only who
//! comes at the very moment at which the lock is free, before the first of them runs, goes ahead.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;

use crate::error::shown_path;
use crate::observe::processes;

/// Why a lock was not obtained.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Others had it, one or many in turn, for longer than the caller wanted to wait.
    #[error("{} has been busy for {:.0} s{}", path.display(), waited.as_secs_f64(), with(holder.as_ref()))]
    Busy {
        /// The directory.
        path: PathBuf,
        /// How long it was waited.
        waited: Duration,
        /// Who holds it at the end, if that can be seen.
        holder: Option<processes::Process>,
    },
    /// The directory cannot be opened or locked.
    #[error("cannot lock {}: {source}", path.display())]
    Failed {
        /// The directory.
        path: PathBuf,
        /// The reason the kernel gives.
        source: io::Error,
    },
}

fn with(holder: Option<&processes::Process>) -> String {
    holder
        .map(|process| format!(", now with {process}"))
        .unwrap_or_default()
}

impl LockError {
    /// The next step, if there is one to tell.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Busy {
                holder: Some(process),
                ..
            } => Some(format!(
                "try again; if {} has it still, kill that: the next command repairs what it leaves",
                process.pid
            )),
            Self::Busy { path, .. } => Some(format!(
                "try again; fuser -v {} names who has it, where every process is seen",
                shown_path(path)
            )),
            Self::Failed { .. } => None,
        }
    }
}

/// An exclusive lock on a directory. Dropping it releases the lock.
#[derive(Debug)]
#[must_use]
pub struct DirectoryLock {
    directory: File,
}

impl DirectoryLock {
    /// Waits for the lock on the directory at `path`, until `wait` is over. None when there is no such
    /// directory, or it was removed or replaced meanwhile: what is locked is always what the path leads
    /// to.
    ///
    /// # Errors
    /// When it is not a directory, cannot be opened, or is still locked at the end.
    pub fn acquire(path: &Path, wait: Duration) -> Result<Option<Self>, LockError> {
        let failed = |source: io::Error| LockError::Failed {
            path: path.to_owned(),
            source,
        };
        let start = Instant::now();
        let directory = match open_directory(path) {
            Ok(directory) => directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        // Closing a file that nobody else has open gives its lock back.
        let directory = match directory.try_lock() {
            Ok(()) => directory,
            Err(TryLockError::WouldBlock) => {
                let facts = directory.metadata().map_err(failed)?;
                match wait_for(directory, wait).map_err(failed)? {
                    Some(directory) => directory,
                    None => {
                        return Err(LockError::Busy {
                            path: path.to_owned(),
                            waited: start.elapsed(),
                            holder: holder(&facts),
                        });
                    }
                }
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        };
        let lock = Self { directory };
        Ok(lock.still_leads_to(path).then_some(lock))
    }

    fn still_leads_to(&self, path: &Path) -> bool {
        let same = |ours: fs::Metadata| {
            fs::symlink_metadata(path)
                .is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino()))
        };
        self.directory.metadata().is_ok_and(same)
    }
}

/// Waits in the queue for as long; None if it was in vain. flock(2) itself can only be limited in time by a signal, so
/// another thread waits in it, and gives the lock back at once when it gets it too late.
fn wait_for(directory: File, wait: Duration) -> io::Result<Option<File>> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let in_queue = move || {
        let locked = loop {
            match directory.lock() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                locked => break locked,
            }
        };
        // Nobody may be waiting any more.
        let _ = sender.send(locked.map(|()| directory));
    };
    thread::Builder::new().name("lock".into()).spawn(in_queue)?;
    receiver.recv_timeout(wait).ok().transpose()
}

/// Opens a directory, and nothing else.
pub(crate) fn open_directory(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .custom_flags(libc::O_DIRECTORY)
        .open(path)
}

/// The process that has the lock, by `/proc/locks`: `1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE 0 EOF`.
fn holder(directory: &fs::Metadata) -> Option<processes::Process> {
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let pid = find_holder(&locks, &shown(directory))?;
    Some(processes::Process {
        pid,
        name: processes::name_of(pid)?,
    })
}

/// `MAJOR:MINOR:INODE` of a file.
fn shown(file: &fs::Metadata) -> String {
    let device = file.dev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    format!("{major:02x}:{minor:02x}:{}", file.ino())
}

fn find_holder(locks: &str, wanted: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        match fields.as_slice() {
            [_, "FLOCK", _, _, pid, file, ..] if *file == wanted => pid.parse().ok(),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    const SOON: Duration = Duration::from_millis(30);
    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn the_second_one_waits_and_then_learns_who_has_the_lock() {
        let place = tempfile::tempdir().unwrap();
        let first = DirectoryLock::acquire(place.path(), SOON).unwrap().unwrap();
        let error = DirectoryLock::acquire(place.path(), SOON).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(&format!("(pid {})", std::process::id())),
            "{text}"
        );
        // The second one's place in the queue is still there, and is no hindrance.
        drop(first);
        assert!(
            DirectoryLock::acquire(place.path(), LONG)
                .unwrap()
                .is_some()
        );
    }

    /// How many wait for the lock in the kernel.
    fn queue(path: &Path) -> usize {
        let file = shown(&fs::metadata(path).unwrap());
        let locks = fs::read_to_string("/proc/locks").unwrap();
        let is_waiting = |line: &&str| line.contains("-> FLOCK") && line.contains(&file);
        locks.lines().filter(is_waiting).count()
    }

    // Fails if those who wait ask again and again, each in pauses of its own.
    #[test]
    fn those_who_wait_have_their_turn_in_the_order_in_which_they_came() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path();
        let first = DirectoryLock::acquire(path, SOON).unwrap().unwrap();
        let turns = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for number in 0..16 {
                let turns = &turns;
                scope.spawn(move || {
                    let _lock = DirectoryLock::acquire(path, LONG).unwrap().unwrap();
                    turns.lock().unwrap().push(number);
                });
                let deadline = Instant::now() + LONG;
                while queue(path) <= number {
                    assert!(Instant::now() < deadline, "{number} is not in the queue");
                    thread::yield_now();
                }
            }
            drop(first);
        });
        assert!(turns.into_inner().unwrap().into_iter().eq(0..16));
    }

    #[test]
    fn a_directory_that_was_replaced_while_waiting_is_not_locked() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("instance");
        fs::create_dir(&path).unwrap();
        let first = DirectoryLock::acquire(&path, SOON).unwrap().unwrap();
        thread::scope(|scope| {
            let second = scope.spawn(|| DirectoryLock::acquire(&path, LONG).unwrap());
            // The other thread has opened the old directory once it appears among our descriptors twice.
            let opened = || {
                fs::read_dir("/proc/self/fd")
                    .unwrap()
                    .filter(|entry| {
                        entry.as_ref().is_ok_and(|entry| {
                            fs::read_link(entry.path()).is_ok_and(|target| target == path)
                        })
                    })
                    .count()
            };
            let deadline = Instant::now() + LONG;
            while opened() < 2 {
                assert!(Instant::now() < deadline);
                thread::yield_now();
            }
            fs::remove_dir(&path).unwrap();
            fs::create_dir(&path).unwrap();
            drop(first);
            assert!(second.join().unwrap().is_none());
        });
        assert!(DirectoryLock::acquire(&path, SOON).unwrap().is_some());
    }

    #[test]
    fn no_directory_is_no_lock_and_a_file_is_an_error() {
        let place = tempfile::tempdir().unwrap();
        assert!(
            DirectoryLock::acquire(&place.path().join("none"), SOON)
                .unwrap()
                .is_none()
        );
        let file = place.path().join("file");
        fs::write(&file, "").unwrap();
        let text = DirectoryLock::acquire(&file, SOON).unwrap_err().to_string();
        assert!(
            text.contains("file") && text.contains("Not a directory"),
            "{text}"
        );
    }

    #[test]
    fn the_holder_is_read_from_the_line_of_the_same_file() {
        let locks = "1: POSIX  ADVISORY  WRITE 7 00:1b:21546 0 EOF\n\
            2: FLOCK  ADVISORY  WRITE 12118 00:1b:21546 0 EOF\n\
            2: -> FLOCK  ADVISORY  WRITE 12119 00:1b:21546 0 EOF\n";
        assert_eq!(find_holder(locks, "00:1b:21546"), Some(12118));
        assert_eq!(find_holder(locks, "00:1b:1"), None);
    }
}
