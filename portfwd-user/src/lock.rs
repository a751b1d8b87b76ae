//! Exclusive locks on directories. A lock lives in an open descriptor (flock(2)), so that it dies with
//! its holder, however that ends, and leaves nothing in the file system.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::libc;

use crate::error::shown_path;
use crate::observe::processes;

/// Pauses between attempts: from the shortest, doubled each time, to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_micros(200);
const LONGEST_PAUSE: Duration = Duration::from_millis(8);

/// Why a lock was not obtained.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else kept it for longer than the caller wanted to wait.
    #[error("{} is locked{} and stayed so for {} s", path.display(), by(holder.as_ref()), waited.as_secs())]
    Busy {
        /// The directory.
        path: PathBuf,
        /// How long it was waited.
        waited: Duration,
        /// Who holds it, if that can be seen.
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

fn by(holder: Option<&processes::Process>) -> String {
    holder
        .map(|process| format!(" by {process}"))
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
                "wait until it has ended, or kill {}: the next command repairs what it leaves",
                process.pid
            )),
            Self::Busy { path, .. } => Some(format!(
                "fuser -v {} names who, where every process is seen; wait until that has ended",
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
    directory: Flock<File>,
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
        let mut directory = match open_directory(path) {
            Ok(directory) => directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let start = Instant::now();
        let mut pause = SHORTEST_PAUSE;
        // flock(2) can only be limited in time by a signal; asking again is cheap and has no side effects.
        loop {
            match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
                Ok(directory) => {
                    let lock = Self { directory };
                    return Ok(lock.still_leads_to(path).then_some(lock));
                }
                Err((file, Errno::EWOULDBLOCK)) => directory = file,
                Err((file, Errno::EINTR)) => directory = file,
                Err((_, errno)) => return Err(failed(errno.into())),
            }
            if start.elapsed() >= wait {
                return Err(LockError::Busy {
                    path: path.to_owned(),
                    waited: wait,
                    holder: holder(&directory),
                });
            }
            thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn still_leads_to(&self, path: &Path) -> bool {
        let same = |ours: fs::Metadata| {
            fs::symlink_metadata(path)
                .is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino()))
        };
        self.directory.metadata().is_ok_and(same)
    }
}

/// Opens a directory, and nothing else.
pub(crate) fn open_directory(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .custom_flags(libc::O_DIRECTORY)
        .open(path)
}

/// The process that has the lock, by `/proc/locks`: `1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE 0 EOF`.
fn holder(directory: &File) -> Option<processes::Process> {
    let metadata = directory.metadata().ok()?;
    let device = metadata.dev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let wanted = format!("{major:02x}:{minor:02x}:{}", metadata.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let pid = find_holder(&locks, &wanted)?;
    Some(processes::Process {
        pid,
        name: processes::name_of(pid)?,
    })
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
    use super::*;

    const SOON: Duration = Duration::from_millis(30);

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
        drop(first);
        assert!(
            DirectoryLock::acquire(place.path(), SOON)
                .unwrap()
                .is_some()
        );
    }

    #[test]
    fn a_directory_that_was_replaced_while_waiting_is_not_locked() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("instance");
        fs::create_dir(&path).unwrap();
        let first = DirectoryLock::acquire(&path, SOON).unwrap().unwrap();
        thread::scope(|scope| {
            let second =
                scope.spawn(|| DirectoryLock::acquire(&path, Duration::from_secs(10)).unwrap());
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
            let deadline = Instant::now() + Duration::from_secs(10);
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
