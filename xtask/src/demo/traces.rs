//! What an instance could leave behind, looked at before it is made and after it is gone.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use portfwd_tests::{
    kernel::{self, Object},
    snapshot::Snapshot,
};

use super::machines::{BPFFS, Machines};

/// How long the kernel may take to free objects: it does so a grace period after their last user.
const PATIENCE: Duration = Duration::from_secs(10);

/// Everything as it was.
pub(super) struct Traces {
    machines: Vec<Snapshot>,
    mounts: String,
    pins: Vec<PathBuf>,
}

impl Traces {
    /// # Panics
    /// When something cannot be looked at.
    pub(super) fn before(machines: &Machines) -> Self {
        Self {
            machines: snapshots(machines),
            mounts: mounts(),
            pins: kernel::pins(Path::new(BPFFS)),
        }
    }

    /// Fails unless everything is as it was, and none of `objects` lives.
    pub(super) fn compare(
        &self,
        machines: &Machines,
        objects: &BTreeSet<Object>,
    ) -> anyhow::Result<()> {
        ensure!(
            !objects.is_empty(),
            "there was no pin to look for while the instance was up"
        );
        let pins = kernel::pins(Path::new(BPFFS));
        ensure!(pins == self.pins, "pins are left: {pins:?}");
        let directory = Path::new(BPFFS).join("portfwd");
        ensure!(!directory.exists(), "{} is left", directory.display());
        println!("gone: every pin, and {}", directory.display());

        let end = Instant::now() + PATIENCE;
        while let Some(object) = objects.iter().find(|object| object.lives()) {
            ensure!(Instant::now() < end, "{object:?} is left in the kernel");
            thread::sleep(Duration::from_millis(10));
        }
        println!("gone: {} in the kernel", counted(objects));
        let own = |id: &u32| objects.contains(&Object::Program(*id));
        let hooked: Vec<u32> = kernel::cgroup_programs().into_iter().filter(own).collect();
        ensure!(
            hooked.is_empty(),
            "programs {hooked:?} are left on the root control group"
        );

        let later = snapshots(machines);
        for (((name, _), before), after) in machines.all().iter().zip(&self.machines).zip(&later) {
            let difference = before.difference(after);
            ensure!(difference.is_empty(), "{name} has changed:\n{difference}");
        }
        println!(
            "as before: devices, addresses, routes, qdiscs, filters, programs on devices, firewall and\n\
             \x20          sysctls of client, host and both containers"
        );
        let mounts = mounts();
        ensure!(
            mounts == self.mounts,
            "the mounts were\n{}and are\n{mounts}",
            self.mounts
        );
        println!("as before: mounts");
        Ok(())
    }
}

fn snapshots(machines: &Machines) -> Vec<Snapshot> {
    let all = machines.all();
    all.iter()
        .map(|(_, namespace)| Snapshot::of(namespace))
        .collect()
}

fn mounts() -> String {
    const PATH: &str = "/proc/self/mountinfo";
    fs::read_to_string(PATH)
        .with_context(|| format!("read {PATH}"))
        .unwrap_or_else(|error| panic!("{error:#}"))
}

fn counted(objects: &BTreeSet<Object>) -> String {
    let count = |kind: fn(&Object) -> bool| objects.iter().filter(|object| kind(object)).count();
    format!(
        "{} maps, {} programs and {} links",
        count(|object| matches!(object, Object::Map(_))),
        count(|object| matches!(object, Object::Program(_))),
        count(|object| matches!(object, Object::Link(_))),
    )
}
