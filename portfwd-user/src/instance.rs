//! An instance in the file system: `<bpffs>/portfwd/NAME/layout-VERSION/{links,maps,object}`, and `next` beside `object`
//! while its programs change.
//!
//! - The directory `NAME` is what is locked. It may be empty: then the instance does not exist yet, or no
//!   more.
//! - The directory `layout-VERSION` is the instance. It is built under another name and renamed into
//!   place, so it is complete whenever it is there; its name is the version, since a bpffs holds no plain
//!   files.
//! - Names that begin with `~` are unfinished: of one that is being built or removed. No command looks into
//!   them, and whoever has the lock removes them. (A bpffs takes no name with a dot.)
//!
//! The directory `portfwd` is locked only for the moment in which an instance appears, so that the rule
//! of one instance to a network namespace can be checked against all others.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use portfwd_common::{LAYOUT, maps};

use crate::bpffs::{self, Bpffs, Others};
use crate::error::{Doing, Error, InstanceError};
use crate::label::InstanceName;
use crate::lock::DirectoryLock;

/// How long a command waits for another one.
pub const WAIT: Duration = Duration::from_secs(30);

/// The directory of all instances of a bpffs.
const ALL: &str = "portfwd";
/// What the name of a layout's directory begins with.
const LAYOUT_PREFIX: &str = "layout-";
const UNFINISHED_PREFIX: char = '~';
const BUILDING: &str = "~building";
const REMOVING: &str = "~removing";

/// What is at the place of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing.
    Absent,
    /// The instance.
    Present(Layout),
    /// An instance of another version of portfwd.
    OtherLayout(u32),
    /// Something that is not portfwd's.
    Foreign(PathBuf),
}

/// The directories of an instance, complete or being built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The directory that holds the others.
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// Where maps are pinned, under their names ([`portfwd_common::maps`]).
    pub fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }
    /// The object whose programs run.
    pub fn object(&self) -> ObjectPins {
        ObjectPins {
            root: self.root.join("object"),
        }
    }
    /// The object whose programs are about to run instead, or ran until now: there is none but while they change, or after
    /// a command that did that was killed.
    pub fn next(&self) -> ObjectPins {
        ObjectPins {
            root: self.root.join("next"),
        }
    }
    /// Where the programs that run are pinned.
    pub fn programs(&self) -> PathBuf {
        self.object().programs()
    }
    /// Where links are pinned: removing one detaches its program.
    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }
}

/// Where that is pinned which belongs to one loaded object, and goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectPins {
    root: PathBuf,
}

impl ObjectPins {
    /// Where programs are pinned, under their names ([`portfwd_common::programs`]).
    pub fn programs(&self) -> PathBuf {
        self.root.join("programs")
    }
    /// The pin of the table by which the programs call each other ([`maps::STAGES`]).
    pub fn stages(&self) -> PathBuf {
        self.root.join(maps::STAGES)
    }
    /// Whether there is any.
    pub fn exists(&self) -> bool {
        self.root.exists()
    }

    /// Notes the SHA-256 of the object, in hexadecimal, and what its programs log. A bpffs holds no plain files: these are
    /// names of directories.
    ///
    /// # Errors
    /// When the directories cannot be made.
    pub fn note(&self, hash: &str, level: &str) -> Result<(), Error> {
        let notes = [(HASH_PREFIX, hash), (LEVEL_PREFIX, level)];
        make_all(&notes.map(|(prefix, value)| self.root.join(format!("{prefix}{value}"))))
    }

    /// The hash that was noted.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn hash(&self) -> Result<Option<String>, Error> {
        self.noted(HASH_PREFIX)
    }

    /// What the programs log, as it was noted.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn level(&self) -> Result<Option<String>, Error> {
        self.noted(LEVEL_PREFIX)
    }

    fn noted(&self, prefix: &str) -> Result<Option<String>, Error> {
        let names = bpffs::names(&self.root)?;
        let value = |name: &String| name.strip_prefix(prefix).map(str::to_owned);
        Ok(names.iter().find_map(value))
    }

    fn make(&self) -> Result<(), Error> {
        make_all(&[self.root.clone(), self.programs()])
    }
}

/// What the names of the directories begin with that say which object it was, and what its programs log.
const HASH_PREFIX: &str = "sha256-";
const LEVEL_PREFIX: &str = "log-";

/// The place of an instance, whether there is one or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    all: PathBuf,
    name: InstanceName,
}

impl Place {
    /// The place of an instance in a bpffs. The bpffs must stay open while the place is used.
    pub fn new(bpffs: &Bpffs, name: InstanceName) -> Self {
        Self {
            all: bpffs.root().join(ALL),
            name,
        }
    }

    /// The instance's name.
    pub fn name(&self) -> &InstanceName {
        &self.name
    }

    /// `<bpffs>/portfwd/NAME`.
    pub fn directory(&self) -> PathBuf {
        self.all.join(self.name.as_str())
    }

    fn layout(&self) -> Layout {
        Layout {
            root: self.directory().join(format!("{LAYOUT_PREFIX}{LAYOUT}")),
        }
    }

    /// What is there.
    ///
    /// # Errors
    /// When others than root could have put it there, or it cannot be read.
    pub fn state(&self) -> Result<State, Error> {
        for directory in [&self.all, &self.directory()] {
            let Some(metadata) = bpffs::metadata(directory)? else {
                return Ok(State::Absent);
            };
            if !metadata.is_dir() {
                return Ok(State::Foreign(directory.clone()));
            }
            bpffs::check(directory, &metadata, Others::MayNot)?;
        }
        self.judge(&bpffs::names(&self.directory())?)
    }

    fn judge(&self, names: &[String]) -> Result<State, Error> {
        let mut state = State::Absent;
        for name in names
            .iter()
            .filter(|name| !name.starts_with(UNFINISHED_PREFIX))
        {
            let path = self.directory().join(name);
            // Another process may remove the instance in this very moment.
            let Some(metadata) = bpffs::metadata(&path)? else {
                continue;
            };
            match version(name) {
                Some(LAYOUT) if metadata.is_dir() => {
                    bpffs::check(&path, &metadata, Others::MayNot)?;
                    state = State::Present(self.layout());
                }
                Some(other) if metadata.is_dir() => return Ok(State::OtherLayout(other)),
                _ => return Ok(State::Foreign(path)),
            }
        }
        Ok(state)
    }

    /// As [`Place::state`], with everything that is not an instance of ours as an error.
    ///
    /// # Errors
    /// Those of [`Place::state`]; when something else is in the way.
    pub fn find(&self) -> Result<Option<Layout>, Error> {
        match self.state()? {
            State::Absent => Ok(None),
            State::Present(layout) => Ok(Some(layout)),
            State::Foreign(path) => Err(InstanceError::InTheWay(path).into()),
            State::OtherLayout(found) => Err(InstanceError::OtherLayout {
                instance: self.name.clone(),
                found: Some(found),
                own: LAYOUT,
            }
            .into()),
        }
    }

    /// Locks the instance; None when its directory does not exist.
    ///
    /// # Errors
    /// When something else is in the way, or another process keeps the lock for longer than `wait`.
    pub fn lock(&self, wait: Duration) -> Result<Option<Locked>, Error> {
        let deadline = Instant::now() + wait;
        // Each turn means that another process removed the directory just now.
        loop {
            self.refuse_foreign()?;
            let left = deadline.saturating_duration_since(Instant::now());
            if let Some(lock) = self.try_lock(left)? {
                return Ok(Some(Locked {
                    place: self.clone(),
                    _lock: lock,
                    left: false,
                }));
            }
            if !self.directory().exists() {
                return Ok(None);
            }
        }
    }

    /// Locks the instance, making its directory if there is none.
    ///
    /// # Errors
    /// Those of [`Place::lock`], and when the directory cannot be made.
    pub fn lock_or_create(&self, wait: Duration) -> Result<Locked, Error> {
        let deadline = Instant::now() + wait;
        loop {
            self.refuse_foreign()?;
            if !bpffs::make_directory(&self.all)? {
                return Err(bpffs::no_parent(&self.all));
            }
            if !bpffs::make_directory(&self.directory())? {
                // The parent went away with the last instance in it.
                continue;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if let Some(locked) = self.lock(left)? {
                return Ok(locked);
            }
        }
    }

    fn refuse_foreign(&self) -> Result<(), Error> {
        match self.state()? {
            State::Foreign(path) => Err(InstanceError::InTheWay(path).into()),
            _ => Ok(()),
        }
    }

    fn try_lock(&self, wait: Duration) -> Result<Option<DirectoryLock>, Error> {
        DirectoryLock::acquire(&self.directory(), wait)
            .doing(|| format!("work on instance \"{}\"", self.name))
    }
}

/// An instance that nobody else changes while this exists. At its end, directories that are empty go away:
/// a command that fails before it has made anything leaves nothing.
#[derive(Debug)]
#[must_use]
pub struct Locked {
    place: Place,
    _lock: DirectoryLock,
    /// Whether the directories were given up already. Doing it twice could take away the directory that
    /// another process made in between.
    left: bool,
}

impl Drop for Locked {
    fn drop(&mut self) {
        // Nobody is left to tell; an empty directory is no instance, and the next command takes it.
        let _ = self.leave();
    }
}

impl Locked {
    /// Which one it is.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Everything that is or was to be the instance: finished or not, of whatever version.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn layouts(&self) -> Result<Vec<Layout>, Error> {
        let directory = self.place.directory();
        let layout = |name: String| Layout {
            root: directory.join(name),
        };
        Ok(bpffs::names(&directory)?.into_iter().map(layout).collect())
    }

    /// Removes what earlier commands left unfinished. Links come first, so that no program runs on half
    /// of its maps.
    ///
    /// # Errors
    /// Everything that could not be removed.
    pub fn clean(&self) -> Result<(), Error> {
        let mut failures = Vec::new();
        for name in bpffs::names(&self.place.directory())? {
            if name.starts_with(UNFINISHED_PREFIX) {
                remove_tree(&self.place.directory().join(name), &mut failures);
            }
        }
        teardown(failures)
    }

    /// Starts a new instance: empty directories that nobody sees until [`Locked::publish`].
    ///
    /// # Errors
    /// When leftovers cannot be removed, or the directories cannot be made.
    pub fn build(&self) -> Result<Layout, Error> {
        self.clean()?;
        let layout = Layout {
            root: self.place.directory().join(BUILDING),
        };
        make_all(&[layout.root.clone(), layout.maps(), layout.links()])?;
        layout.object().make()?;
        Ok(layout)
    }

    /// Empty directories for the object whose programs are to run next.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn begin_next(&self, layout: &Layout) -> Result<ObjectPins, Error> {
        let next = layout.next();
        next.make()?;
        Ok(next)
    }

    /// Lets the next object be the one that runs, in one step, and that one be the next.
    ///
    /// # Errors
    /// When that cannot be done.
    pub fn exchange(&self, layout: &Layout) -> Result<(), Error> {
        let (next, object) = (layout.next().root, layout.object().root);
        renameat2(
            AT_FDCWD,
            &next,
            AT_FDCWD,
            &object,
            RenameFlags::RENAME_EXCHANGE,
        )
        .map_err(io::Error::from)
        .doing(|| format!("exchange {} and {}", next.display(), object.display()))
    }

    /// Removes the next object, of which no program may run.
    ///
    /// # Errors
    /// Everything that could not be removed.
    pub fn remove_next(&self, layout: &Layout) -> Result<(), Error> {
        let mut failures = Vec::new();
        remove_tree(&layout.next().root, &mut failures);
        teardown(failures)
    }

    /// Makes what was built the instance, in one step. `allowed` is asked before, while no other
    /// instance of this bpffs can appear; it is where a second instance of a namespace is refused.
    ///
    /// # Errors
    /// Those of `allowed`; when an instance is there already.
    pub fn publish(
        &self,
        built: &Layout,
        wait: Duration,
        allowed: impl FnOnce() -> Result<(), Error>,
    ) -> Result<Layout, Error> {
        let create = || format!("create instance \"{}\"", self.place.name);
        // Ours is in it, so it is there, unless someone removes things by hand.
        let _all = DirectoryLock::acquire(&self.place.all, wait)
            .doing(create)?
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
            .doing(create)?;
        allowed()?;
        let layout = self.place.layout();
        rename(built.root(), layout.root())?;
        Ok(layout)
    }

    /// Removes the instance, of whatever version, and the directories above it if nothing else is in them.
    /// Its withdrawal is one step; what follows goes on after failures.
    ///
    /// # Errors
    /// Everything that could not be removed.
    pub fn remove(mut self) -> Result<(), Error> {
        let directory = self.place.directory();
        let mut failures = Vec::new();
        if let Err(error) = self.clean() {
            failures.push(error);
        }
        for name in bpffs::names(&directory)? {
            if version(&name).is_none() {
                continue;
            }
            let withdrawn = directory.join(REMOVING);
            match rename(&directory.join(&name), &withdrawn) {
                Ok(()) => remove_tree(&withdrawn, &mut failures),
                Err(error) => failures.push(error),
            }
        }
        if let Err(error) = self.leave() {
            failures.push(error);
        }
        teardown(failures)
    }

    /// Removes the instance's directory and the one above it, if they are empty. The lock is still held
    /// here: whoever waits for it will find that the path leads elsewhere.
    fn leave(&mut self) -> Result<(), Error> {
        if std::mem::replace(&mut self.left, true) {
            return Ok(());
        }
        remove_if_empty(&self.place.directory())?;
        remove_if_empty(&self.place.all)
    }
}

/// Every instance of a bpffs, by name, with what is at its place.
///
/// # Errors
/// When the directory of instances cannot be read or is not safe.
pub fn all(bpffs: &Bpffs) -> Result<Vec<(InstanceName, State)>, Error> {
    let directory = bpffs.root().join(ALL);
    if !directory.is_dir() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for name in bpffs::names(&directory)? {
        // What has no instance's name can be no instance.
        let Ok(name) = name.parse::<InstanceName>() else {
            continue;
        };
        let state = Place::new(bpffs, name.clone()).state()?;
        if state != State::Absent {
            found.push((name, state));
        }
    }
    Ok(found)
}

/// Where the instances of a bpffs, finished or not and of every version, may have pinned their journal.
///
/// # Errors
/// When a directory cannot be read.
pub fn journals(bpffs: &Bpffs) -> Result<Vec<PathBuf>, Error> {
    let all = bpffs.root().join(ALL);
    let mut found = Vec::new();
    for name in bpffs::names(&all)? {
        let instance = all.join(name);
        if !instance.is_dir() {
            continue;
        }
        for layout in bpffs::names(&instance)? {
            found.push(instance.join(layout).join("maps").join(maps::JOURNAL));
        }
    }
    Ok(found)
}

/// The version in the name of a layout's directory.
fn version(name: &str) -> Option<u32> {
    let digits = name.strip_prefix(LAYOUT_PREFIX)?;
    let canonical = digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.starts_with('0');
    if canonical { digits.parse().ok() } else { None }
}

fn make_all(directories: &[PathBuf]) -> Result<(), Error> {
    for path in directories {
        if !bpffs::make_directory(path)? {
            return Err(bpffs::no_parent(path));
        }
    }
    Ok(())
}

/// Never replaces what is at `to`.
fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE)
        .map_err(io::Error::from)
        .doing(|| format!("rename {} to {}", from.display(), to.display()))
}

/// Removes a directory with all that is in it, going on after failures. Entries are removed in the order
/// of their names, so `links` come before `maps`, `next` and `object`.
fn remove_tree(path: &Path, failures: &mut Vec<Error>) {
    let is_directory = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    if is_directory {
        match bpffs::names(path) {
            Ok(names) => names
                .iter()
                .for_each(|name| remove_tree(&path.join(name), failures)),
            Err(error) => failures.push(error),
        }
    }
    let removed = if is_directory {
        fs::remove_dir(path)
    } else {
        fs::remove_file(path)
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            failures.extend(
                Err::<(), _>(error)
                    .doing(|| format!("remove {}", path.display()))
                    .err(),
            );
        }
        _ => {}
    }
}

fn remove_if_empty(path: &Path) -> Result<(), Error> {
    match fs::remove_dir(path) {
        Err(error) => match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOTEMPTY | Errno::ENOENT | Errno::EEXIST) => Ok(()),
            _ => Err(error).doing(|| format!("remove {}", path.display())),
        },
        Ok(()) => Ok(()),
    }
}

fn teardown(failures: Vec<Error>) -> Result<(), Error> {
    if failures.is_empty() {
        Ok(())
    } else {
        Err(Error::Teardown { failures })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_has_one_spelling() {
        assert_eq!(version("layout-1"), Some(1));
        assert_eq!(version("layout-4294967295"), Some(u32::MAX));
        for name in [
            "layout-",
            "layout-01",
            "layout-+1",
            "layout-4294967296",
            "layout-x",
            "maps",
            "~building",
        ] {
            assert_eq!(version(name), None, "{name}");
        }
    }
}
