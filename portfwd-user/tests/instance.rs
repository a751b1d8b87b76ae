//! Instances in a bpffs of the test's own. Needs root.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail as the tests themselves do"
)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use portfwd_common::LAYOUT;
use portfwd_user::bpffs::Bpffs;
use portfwd_user::error::Error;
use portfwd_user::instance::{self, Place, State};
use tempfile::TempDir;

const WAIT: Duration = Duration::from_secs(20);
const SOON: Duration = Duration::from_millis(20);

/// A directory in which a bpffs may be mounted; unmounted at the end.
struct Scene {
    place: TempDir,
}

impl Scene {
    fn new() -> Self {
        Self {
            place: tempfile::tempdir().unwrap(),
        }
    }
    fn path(&self) -> PathBuf {
        self.place.path().join("bpf")
    }
    fn bpffs(&self) -> Bpffs {
        Bpffs::ensure(&self.path(), WAIT).unwrap()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // Not mounted, in some tests.
        let _ = umount2(&self.path(), MntFlags::MNT_DETACH);
    }
}

fn place(bpffs: &Bpffs, name: &str) -> Place {
    Place::new(bpffs, name.parse().unwrap())
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// How many entries a bpffs has, beside those that the kernel itself may put there.
fn left_in(bpffs: &Bpffs) -> usize {
    let names = fs::read_dir(bpffs.root())
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    names
        .filter(|name| name != "maps.debug" && name != "progs.debug")
        .count()
}

/// Makes an instance and says whether it is there afterwards.
fn bring_up(place: &Place) -> Result<(), Error> {
    let locked = place.lock_or_create(WAIT)?;
    let built = locked.build()?;
    locked.publish(&built, WAIT, || Ok(()))?;
    Ok(())
}

fn mounts_on(path: &Path) -> usize {
    let path = format!(" {} ", path.display());
    fs::read_to_string("/proc/self/mountinfo")
        .unwrap()
        .lines()
        .filter(|line| line.contains(&path))
        .count()
}

#[test]
fn a_bpffs_is_mounted_once_however_many_need_it() {
    let scene = Scene::new();
    assert!(Bpffs::open(&scene.path()).unwrap().is_none());
    let all: Vec<Bpffs> = thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| scene.bpffs())).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert_eq!(mounts_on(&scene.path()), 1);
    // The kernel makes the root of a bpffs sticky, whatever the mode.
    assert_eq!(mode(&scene.path()), 0o1700);
    let mut all = all.into_iter();
    assert!(
        !all.next().unwrap().release().unwrap(),
        "others still hold it"
    );
    let last = all.next_back().unwrap();
    drop(all);
    bring_up(&place(&last, "web")).unwrap();
    assert!(!last.release().unwrap(), "an instance is in it");
    let bpffs = scene.bpffs();
    place(&bpffs, "web")
        .lock(WAIT)
        .unwrap()
        .unwrap()
        .remove()
        .unwrap();
    assert!(bpffs.release().unwrap());
    assert_eq!(mounts_on(&scene.path()), 0);
}

#[test]
fn a_bpffs_that_others_could_tamper_with_is_refused() {
    let scene = Scene::new();
    set_mode(scene.place.path(), 0o777);
    let text = Bpffs::ensure(&scene.path(), WAIT).unwrap_err().to_string();
    assert_eq!(
        text,
        format!(
            "{} is not safe: it is writable by others",
            scene.place.path().display()
        )
    );
    assert!(Bpffs::open(&scene.path()).unwrap().is_none());
    set_mode(scene.place.path(), 0o700);
    drop(scene.bpffs());
    // As the system mounts it: others may create entries, but not touch ours.
    set_mode(&scene.path(), 0o1777);
    bring_up(&place(&scene.bpffs(), "web")).unwrap();
    set_mode(&scene.path(), 0o777);
    let text = Bpffs::open(&scene.path()).unwrap_err().to_string();
    assert_eq!(
        text,
        format!(
            "{} is not safe: it is writable by others",
            scene.path().display()
        )
    );
    set_mode(&scene.path(), 0o700);
    chown(scene.place.path(), Some(1000), None).unwrap();
    let text = Bpffs::open(&scene.path()).unwrap_err().to_string();
    assert_eq!(
        text,
        format!(
            "{} is not safe: it is owned by user 1000",
            scene.place.path().display()
        )
    );
}

#[test]
fn what_cannot_become_a_bpffs_is_refused() {
    let scene = Scene::new();
    fs::write(scene.path(), "").unwrap();
    let text = Bpffs::ensure(&scene.path(), WAIT).unwrap_err().to_string();
    assert_eq!(
        text,
        format!(
            "{} is in the way: it is not a directory of portfwd",
            scene.path().display()
        )
    );
    let full = scene.place.path();
    let text = Bpffs::ensure(full, WAIT).unwrap_err().to_string();
    assert_eq!(
        text,
        format!("{} is not a bpffs", full.display()),
        "a mount would hide a file"
    );
    let deep = scene.place.path().join("none/bpf");
    let text = Bpffs::ensure(&deep, WAIT).unwrap_err().to_string();
    assert!(text.contains(&deep.display().to_string()), "{text}");
    assert_eq!(mounts_on(&scene.path()), 0);
}

#[test]
fn an_instance_appears_at_once_and_goes_without_a_trace() {
    let scene = Scene::new();
    let bpffs = scene.bpffs();
    let web = place(&bpffs, "web");
    assert_eq!(web.state().unwrap(), State::Absent);
    assert!(web.lock(WAIT).unwrap().is_none());
    let locked = web.lock_or_create(WAIT).unwrap();
    let built = locked.build().unwrap();
    assert_eq!(web.state().unwrap(), State::Absent, "nobody sees it yet");
    let layout = locked.publish(&built, WAIT, || Ok(())).unwrap();
    drop(locked);
    assert_eq!(web.state().unwrap(), State::Present(layout.clone()));
    for path in [
        &web.directory(),
        layout.root(),
        &layout.maps(),
        &layout.programs(),
        &layout.links(),
    ] {
        assert_eq!(mode(path), 0o700, "{}", path.display());
    }
    let other = place(&bpffs, "other");
    bring_up(&other).unwrap();
    let names: Vec<String> = instance::all(&bpffs)
        .unwrap()
        .iter()
        .map(|(name, _)| name.to_string())
        .collect();
    assert_eq!(names, ["other", "web"]);
    // A pin is not at hand here; a bpffs takes symbolic links.
    symlink("/nowhere", layout.maps().join("ports")).unwrap();
    web.lock(WAIT).unwrap().unwrap().remove().unwrap();
    assert_eq!(web.state().unwrap(), State::Absent);
    assert!(!web.directory().exists());
    other.lock(WAIT).unwrap().unwrap().remove().unwrap();
    assert_eq!(left_in(&bpffs), 0);
}

#[test]
fn a_command_that_fails_leaves_no_directories() {
    let scene = Scene::new();
    let bpffs = scene.bpffs();
    let web = place(&bpffs, "web");
    drop(web.lock_or_create(WAIT).unwrap());
    assert_eq!(left_in(&bpffs), 0);
    let locked = web.lock_or_create(WAIT).unwrap();
    let built = locked.build().unwrap();
    let refused = locked.publish(&built, WAIT, || {
        Err(Error::Teardown {
            failures: Vec::new(),
        })
    });
    assert!(refused.is_err());
    assert_eq!(web.state().unwrap(), State::Absent);
    locked.clean().unwrap();
    drop(locked);
    assert_eq!(left_in(&bpffs), 0);
}

#[test]
fn leftovers_of_a_killed_command_are_not_seen_and_go_with_the_next_one() {
    let scene = Scene::new();
    let bpffs = scene.bpffs();
    let web = place(&bpffs, "web");
    for leftover in ["~building/maps", "~removing/links"] {
        fs::create_dir_all(web.directory().join(leftover)).unwrap();
    }
    set_mode(&web.directory(), 0o700);
    set_mode(web.directory().parent().unwrap(), 0o700);
    assert_eq!(web.state().unwrap(), State::Absent);
    assert_eq!(instance::all(&bpffs).unwrap(), []);
    bring_up(&web).unwrap();
    let names: Vec<_> = fs::read_dir(web.directory())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, [format!("layout-{LAYOUT}").as_str()]);
}

#[test]
fn what_is_in_the_way_is_named_and_left_alone() {
    const OTHER: u32 = LAYOUT + 1;
    let scene = Scene::new();
    let bpffs = scene.bpffs();
    let web = place(&bpffs, "web");
    symlink("/nowhere", bpffs.root().join("portfwd")).unwrap();
    let text = web.lock_or_create(WAIT).unwrap_err().to_string();
    assert_eq!(
        text,
        format!(
            "{}/portfwd is in the way: it is not a directory of portfwd",
            bpffs.root().display()
        )
    );
    fs::remove_file(bpffs.root().join("portfwd")).unwrap();
    bring_up(&web).unwrap();
    let foreign = web.directory().join("somebodys-map");
    symlink("/nowhere", &foreign).unwrap();
    assert_eq!(web.state().unwrap(), State::Foreign(foreign.clone()));
    assert!(
        web.find()
            .unwrap_err()
            .to_string()
            .contains("somebodys-map")
    );
    assert!(web.lock(WAIT).is_err());
    fs::remove_file(&foreign).unwrap();
    fs::rename(
        web.directory().join(format!("layout-{LAYOUT}")),
        web.directory().join(format!("layout-{OTHER}")),
    )
    .unwrap();
    assert_eq!(web.state().unwrap(), State::OtherLayout(OTHER));
    let text = web.find().unwrap_err().to_string();
    assert_eq!(
        text,
        format!("instance \"web\" has layout {OTHER}, this portfwd has layout {LAYOUT}")
    );
    web.lock(WAIT).unwrap().unwrap().remove().unwrap();
    assert_eq!(left_in(&bpffs), 0);
}

#[test]
fn directories_that_others_could_have_made_are_refused() {
    let scene = Scene::new();
    let bpffs = scene.bpffs();
    let web = place(&bpffs, "web");
    bring_up(&web).unwrap();
    let all = bpffs.root().join("portfwd");
    for path in [
        &all,
        &web.directory(),
        &web.directory().join(format!("layout-{LAYOUT}")),
    ] {
        chown(path, Some(1000), None).unwrap();
        let text = web.state().unwrap_err().to_string();
        assert_eq!(
            text,
            format!("{} is not safe: it is owned by user 1000", path.display())
        );
        chown(path, Some(0), None).unwrap();
        set_mode(path, 0o1777);
        let text = web.lock_or_create(WAIT).unwrap_err().to_string();
        assert_eq!(
            text,
            format!("{} is not safe: it is writable by others", path.display())
        );
        set_mode(path, 0o700);
    }
    assert!(matches!(web.state().unwrap(), State::Present(_)));
}

#[test]
fn the_lock_of_a_killed_process_is_free() {
    let scene = Scene::new();
    let bpffs = scene.bpffs();
    let web = place(&bpffs, "web");
    bring_up(&web).unwrap();
    let mut holder = Command::new("flock")
        .arg("--no-fork")
        .arg(web.directory())
        .args(["sleep", "60"])
        .spawn()
        .unwrap();
    let deadline = Instant::now() + WAIT;
    let text = loop {
        match web.lock(Duration::ZERO) {
            Err(error) => break error.to_string(),
            Ok(locked) => drop(locked),
        }
        assert!(Instant::now() < deadline);
        thread::yield_now();
    };
    assert!(text.contains(&format!("(pid {})", holder.id())), "{text}");
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(web.lock(Duration::ZERO).unwrap().is_some());
}

#[test]
fn one_at_a_time_works_on_an_instance_and_the_waiting_ones_see_what_became_of_it() {
    let scene = Scene::new();
    let bpffs = scene.bpffs();
    let web = place(&bpffs, "web");
    let first = web.lock_or_create(WAIT).unwrap();
    let text = web.lock_or_create(SOON).unwrap_err().to_string();
    assert!(
        text.contains("instance \"web\"") && text.contains("(pid "),
        "{text}"
    );
    drop(place(&bpffs, "other").lock_or_create(SOON).unwrap());
    drop(first);
    // Each makes the instance and removes it again, so directories come and go under the others.
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                for _ in 0..20 {
                    let locked = web.lock_or_create(WAIT).unwrap();
                    assert_eq!(web.find().unwrap(), None);
                    let built = locked.build().unwrap();
                    let layout = locked.publish(&built, WAIT, || Ok(())).unwrap();
                    assert_eq!(web.find().unwrap(), Some(layout));
                    locked.remove().unwrap();
                }
            });
        }
    });
    assert_eq!(left_in(&bpffs), 0);
}
