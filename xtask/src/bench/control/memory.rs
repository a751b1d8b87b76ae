//! What the kernel keeps for published ports.

use std::{collections::BTreeMap, fs, os::fd::AsRawFd as _, path::Path};

use anyhow::Context as _;
use portfwd_tests::kernel;

/// Bytes of the kernel's at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KernelMemory {
    /// The maps of an instance, by the kernel's own account.
    maps: u64,
    /// Allocated objects of general size, of the whole machine.
    slab: u64,
}

impl KernelMemory {
    /// What it is now, `pins` being the instance's directory, if the way has one.
    pub(super) fn read(pins: Option<&Path>) -> anyhow::Result<KernelMemory> {
        let maps = pins.map(sizes).transpose()?.unwrap_or_default();
        let slab = fs::read_to_string("/proc/slabinfo").context("read /proc/slabinfo")?;
        Ok(KernelMemory {
            maps: maps.values().sum(),
            slab: general_objects(&slab),
        })
    }

    /// By how many bytes maps and slab have grown since `earlier`.
    pub(super) fn since(self, earlier: KernelMemory) -> (i64, i64) {
        let grown = |now: u64, then: u64| now.cast_signed().wrapping_sub(then.cast_signed());
        (
            grown(self.maps, earlier.maps),
            grown(self.slab, earlier.slab),
        )
    }
}

/// Bytes by the ID of the map, of all maps pinned under `directory`.
fn sizes(directory: &Path) -> anyhow::Result<BTreeMap<u64, u64>> {
    let mut found = BTreeMap::new();
    let entries =
        fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        match path.is_dir() {
            true => found.extend(sizes(&path)?),
            false => found.extend(size(&path)?),
        }
    }
    Ok(found)
}

/// ID and bytes of what is pinned at `path`, if it is a map.
fn size(path: &Path) -> anyhow::Result<Option<(u64, u64)>> {
    let pin = kernel::open_pin(path).with_context(|| format!("open {}", path.display()))?;
    let facts = fs::read_to_string(format!("/proc/self/fdinfo/{}", pin.as_raw_fd()))
        .with_context(|| format!("facts of {}", path.display()))?;
    let fact = |name: &str| {
        let mut lines = facts.lines();
        lines.find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    };
    Ok(fact("map_id:").zip(fact("memlock:")))
}

/// Bytes of all allocated objects in caches of general size, out of `/proc/slabinfo`: rules and elements
/// of maps are such, files and sockets have caches of their own.
///
/// Objects and not pages, which the kernel keeps when what was in them is freed.
fn general_objects(slabinfo: &str) -> u64 {
    let bytes = slabinfo.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let is_general = words.next()?.starts_with("kmalloc-");
        let active: u64 = words.next()?.parse().ok()?;
        let size: u64 = words.nth(1)?.parse().ok()?;
        is_general.then_some(active * size)
    });
    bytes.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_of_general_size_are_summed_up() {
        let slabinfo = "slabinfo - version: 2.1\n\
            # name <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab>\n\
            inode_cache 7 9 600 13 2 : tunables 0 0 0\n\
            kmalloc-cg-64 10 128 64 64 1 : tunables 0 0 0\n\
            kmalloc-1k 2 16 1024 16 4 : tunables 0 0 0\n";
        assert_eq!(general_objects(slabinfo), 10 * 64 + 2 * 1024);
    }
}
