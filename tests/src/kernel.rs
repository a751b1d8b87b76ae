//! The kernel's view of BPF objects: what an instance pinned, whether it still lives, what hangs on
//! a device or on the root control group. Raw `bpf(2)`, so that the tests do not believe the
//! library that the code under test uses.

mod call;
mod map;
mod observers;
mod run;
mod taker;

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::libc;
use nix::net::if_::if_nametoindex;

use call::{Attributes, WORDS, bpf, bpf_command, descriptor};
pub use map::{
    array_values, clear_map, key_size, keys, map_value, put_map_value, remove_map_value, value_size,
};
pub use observers::{Observer, Sums, sum};
pub use run::{Runner, TestRun, test_run};
pub use taker::Taker;

/// `enum bpf_attach_type`: the TCX hooks of a device.
const TCX: [u32; 2] = [46, 47];
/// `enum bpf_attach_type`: every hook of a control group that a port publisher could use
/// (bind, post_bind, connect, sendmsg, recvmsg, getpeername, getsockname, sock_create, skb, release).
const CGROUP: [u32; 21] = [
    0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15, 19, 20, 21, 22, 29, 30, 31, 32, 34,
];

/// What the kernel itself puts into a new BPF file system (kernel/bpf/preload).
const PRELOADED: [&str; 2] = ["maps.debug", "progs.debug"];

/// One BPF object of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    /// A map's ID.
    Map(u32),
    /// A program's ID.
    Program(u32),
    /// A link's ID.
    Link(u32),
}

impl Object {
    /// Whether the kernel still has the object. It is asked for the next one after the number before: a
    /// descriptor of a table of programs that is just being given up would make the kernel clear it a
    /// second time, and lose count of who holds it (`prog_array_map_clear`).
    #[must_use]
    pub fn lives(self) -> bool {
        let (command, id) = match self {
            Self::Map(id) => (bpf_command::MAP_GET_NEXT_ID, id),
            Self::Program(id) => (bpf_command::PROG_GET_NEXT_ID, id),
            Self::Link(id) => (bpf_command::LINK_GET_NEXT_ID, id),
        };
        let mut attributes = Attributes([0; WORDS]);
        attributes.put(0, id - 1);
        match bpf(command, &mut attributes) {
            Ok(_) => attributes.0[1] == id,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => false,
            Err(error) => panic!("look for {self:?}: {error}"),
        }
    }
}

/// The kernel's version, its first two numbers.
///
/// # Panics
/// When it does not begin with them.
#[must_use]
pub fn release() -> (u32, u32) {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a version");
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
        _ => panic!("{text:?} is no version"),
    }
}

/// Every pin under `directory`.
///
/// # Panics
/// When a directory cannot be read.
#[must_use]
pub fn pins(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![directory.to_path_buf()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory)
            .unwrap_or_else(|error| panic!("read {}: {error}", directory.display()))
        {
            let path = entry.expect("read a directory").path();
            if path.is_dir() {
                pending.push(path);
            } else if !PRELOADED.iter().any(|name| path.ends_with(name)) {
                found.push(path);
            }
        }
    }
    found
}

/// The objects behind every pin under `directory`, and the maps that such programs use: some are not pinned.
///
/// # Panics
/// When a pin cannot be opened.
#[must_use]
pub fn pinned_objects(directory: &Path) -> BTreeSet<Object> {
    pins(directory)
        .iter()
        .flat_map(|path| {
            let fd = open_pin(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let mut objects = objects_behind(&fd);
            if let [Object::Program(_)] = objects[..] {
                objects.extend(used_maps(&fd).into_iter().map(Object::Map));
            }
            objects
        })
        .collect()
}

/// The IDs of the maps that a program uses.
fn used_maps(program: &OwnedFd) -> Vec<u32> {
    // Places in `struct bpf_prog_info`: the number of IDs, and the address of where to write them.
    const COUNT: usize = 13;
    const ADDRESS: usize = 14;
    let mut ids = vec![0_u32; 64];
    let mut info = Attributes([0; WORDS]);
    info.put(COUNT, u32::try_from(ids.len()).expect("a small number"));
    info.put_address(ADDRESS, ids.as_mut_ptr() as u64);
    let mut attributes = Attributes([0; WORDS]);
    attributes.put(0, descriptor(program));
    attributes.put(
        1,
        u32::try_from(size_of::<Attributes>()).expect("a small number"),
    );
    attributes.put_address(2, info.0.as_mut_ptr() as u64);
    bpf(bpf_command::OBJ_GET_INFO_BY_FD, &mut attributes).expect("facts of a program");
    let count = info.0[COUNT] as usize;
    assert!(count <= ids.len(), "a program uses {count} maps");
    ids.truncate(count);
    ids
}

/// Opens a pin.
///
/// # Errors
/// Those of `BPF_OBJ_GET`.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = Attributes([0; WORDS]);
    attributes.put_address(0, name.as_ptr() as u64);
    let fd = bpf(bpf_command::OBJ_GET, &mut attributes)?;
    // SAFETY: the kernel has just made the descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The object behind a descriptor, and for a link its program too.
fn objects_behind(fd: &OwnedFd) -> Vec<Object> {
    let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.lines()
        .filter_map(|line| {
            let (key, value) = line.split_once(':')?;
            let id = value.trim().parse().ok()?;
            match key {
                "map_id" => Some(Object::Map(id)),
                "prog_id" => Some(Object::Program(id)),
                "link_id" => Some(Object::Link(id)),
                _ => None,
            }
        })
        .collect()
}

/// The index of a device of the calling thread's namespace.
///
/// # Panics
/// When there is none of that name.
#[must_use]
pub fn index_of(device: &str) -> u32 {
    if_nametoindex(device).unwrap_or_else(|error| panic!("device {device}: {error}"))
}

/// The IDs of the programs on a device's TCX hooks, none where the kernel has no such hooks; call it
/// inside the device's namespace.
///
/// # Errors
/// Those of `BPF_PROG_QUERY`.
pub fn device_programs(index: u32) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for hook in TCX {
        match query(index, hook) {
            Ok(ids) => found.extend(ids),
            // Before Linux 6.6 (`bpf_prog_query`).
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// The IDs of the programs on a device's TCX ingress hook, the first to run first.
///
/// # Errors
/// Those of `BPF_PROG_QUERY`.
pub fn ingress_programs(index: u32) -> io::Result<Vec<u32>> {
    query(index, TCX[0])
}

/// Whether the kernel has TCX hooks.
///
/// # Panics
/// When it cannot be asked.
#[must_use]
pub fn has_tcx() -> bool {
    // Loopback has the same index in every namespace (`LOOPBACK_IFINDEX`).
    match query(1, TCX[0]) {
        Ok(_) => true,
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => false,
        Err(error) => panic!("ask for the hooks of lo: {error}"),
    }
}

/// The IDs of the programs on the root of the version 2 control group hierarchy.
///
/// # Panics
/// When there is no such hierarchy, or it cannot be asked.
#[must_use]
pub fn cgroup_programs() -> BTreeSet<u32> {
    let root = cgroup_root();
    let directory = fs::File::open(&root).expect("open the control group root");
    let target = u32::try_from(directory.as_raw_fd()).expect("a descriptor is not negative");
    let mut found = BTreeSet::new();
    for hook in CGROUP {
        match query(target, hook) {
            Ok(ids) => found.extend(ids),
            // A hook that this kernel does not know.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => panic!("ask {} for hook {hook}: {error}", root.display()),
        }
    }
    found
}

/// Where the version 2 control group hierarchy is mounted.
///
/// # Panics
/// When it is not.
#[must_use]
pub fn cgroup_root() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("read the mounts");
    mounts
        .lines()
        .find_map(|line| {
            let mut fields = line.split(' ');
            let (_, point, kind) = (fields.next()?, fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(point))
        })
        .expect("a mounted version 2 control group hierarchy")
}

/// `BPF_PROG_QUERY` for a device index or a control group descriptor.
fn query(target: u32, hook: u32) -> io::Result<Vec<u32>> {
    const ROOM: u32 = 256;
    let mut ids = vec![0_u32; ROOM as usize];
    let mut attributes = Attributes([0; WORDS]);
    attributes.put(0, target);
    attributes.put(1, hook);
    attributes.put_address(4, ids.as_mut_ptr() as u64);
    attributes.put(6, ROOM);
    bpf(bpf_command::PROG_QUERY, &mut attributes)?;
    ids.truncate(attributes.0[6] as usize);
    Ok(ids)
}
