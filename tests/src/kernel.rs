//! The kernel's view of BPF objects: what an instance pinned, whether it still lives, what hangs on
//! a device or on the root control group. Raw `bpf(2)`, so that the tests do not believe the
//! library that the code under test uses.

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

/// Commands of `bpf(2)` (include/uapi/linux/bpf.h).
mod bpf_command {
    pub(super) const MAP_CREATE: i64 = 0;
    pub(super) const MAP_LOOKUP_ELEM: i64 = 1;
    pub(super) const MAP_UPDATE_ELEM: i64 = 2;
    pub(super) const MAP_DELETE_ELEM: i64 = 3;
    pub(super) const MAP_GET_NEXT_KEY: i64 = 4;
    pub(super) const PROG_LOAD: i64 = 5;
    pub(super) const OBJ_PIN: i64 = 6;
    pub(super) const OBJ_GET: i64 = 7;
    pub(super) const PROG_TEST_RUN: i64 = 10;
    pub(super) const PROG_GET_NEXT_ID: i64 = 11;
    pub(super) const MAP_GET_NEXT_ID: i64 = 12;
    pub(super) const OBJ_GET_INFO_BY_FD: i64 = 15;
    pub(super) const PROG_QUERY: i64 = 16;
    pub(super) const MAP_LOOKUP_BATCH: i64 = 24;
    pub(super) const LINK_CREATE: i64 = 28;
    pub(super) const LINK_GET_NEXT_ID: i64 = 31;
}

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

/// What a program made of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestRun {
    /// The program's return value.
    pub verdict: i32,
    /// The packet afterwards.
    pub packet: Vec<u8>,
}

/// Runs a program once over a packet (`BPF_PROG_TEST_RUN`), in the calling thread's network
/// namespace. `context` is the start of `struct __sk_buff` or `struct xdp_md`.
///
/// # Errors
/// Those of the system call.
pub fn test_run(program: &OwnedFd, packet: &[u8], context: &[u32]) -> io::Result<TestRun> {
    const ROOM: usize = 4096;
    let mut out = vec![0_u8; ROOM];
    let mut attributes = Attributes([0; WORDS]);
    attributes.put(0, descriptor(program));
    attributes.put(2, length(packet.len())?);
    attributes.put(3, length(out.len())?);
    attributes.put_address(4, packet.as_ptr() as u64);
    attributes.put_address(6, out.as_mut_ptr() as u64);
    attributes.put(10, length(size_of_val(context))?);
    attributes.put_address(12, context.as_ptr() as u64);
    bpf(bpf_command::PROG_TEST_RUN, &mut attributes)?;
    out.truncate(attributes.0[3] as usize);
    Ok(TestRun {
        verdict: attributes.0[1].cast_signed(),
        packet: out,
    })
}

/// Runs programs over packets as [`test_run`] does, without asking for memory each time.
#[derive(Debug)]
pub struct Runner {
    out: Box<[u8]>,
}

impl Default for Runner {
    fn default() -> Self {
        Self {
            out: vec![0; 4096].into(),
        }
    }
}

impl Runner {
    /// The program's return value, and the packet afterwards.
    ///
    /// # Errors
    /// Those of the system call.
    pub fn run(
        &mut self,
        program: &OwnedFd,
        packet: &[u8],
        context: &[u32],
    ) -> io::Result<(i32, &[u8])> {
        let mut attributes = Attributes([0; WORDS]);
        attributes.put(0, descriptor(program));
        attributes.put(2, length(packet.len())?);
        attributes.put(3, length(self.out.len())?);
        attributes.put_address(4, packet.as_ptr() as u64);
        attributes.put_address(6, self.out.as_mut_ptr() as u64);
        attributes.put(10, length(size_of_val(context))?);
        attributes.put_address(12, context.as_ptr() as u64);
        bpf(bpf_command::PROG_TEST_RUN, &mut attributes)?;
        let after = attributes.0[3] as usize;
        Ok((attributes.0[1].cast_signed(), &self.out[..after]))
    }
}

/// All values of an array, `values` being as long as they are together: of a per-CPU array an element has
/// eight bytes for each possible CPU.
///
/// # Errors
/// Those of `BPF_MAP_LOOKUP_BATCH`.
pub fn array_values(map: &OwnedFd, count: u32, values: &mut [u8]) -> io::Result<()> {
    let mut keys = vec![0_u32; count as usize];
    let mut place = 0_u32;
    let mut attributes = Attributes([0; WORDS]);
    attributes.put_address(2, &raw mut place as u64);
    attributes.put_address(4, keys.as_mut_ptr() as u64);
    attributes.put_address(6, values.as_mut_ptr() as u64);
    attributes.put(8, count);
    attributes.put(9, descriptor(map));
    // The end of the array is told by an error.
    found(bpf(bpf_command::MAP_LOOKUP_BATCH, &mut attributes)).map(|_| ())
}

/// The value under `key` in a map, if it is there. `value` has to be as long as the map's, that of a
/// per-CPU map being one element for each possible CPU.
///
/// # Errors
/// Those of `BPF_MAP_LOOKUP_ELEM`.
pub fn map_value(map: &OwnedFd, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let mut attributes = Attributes([0; WORDS]);
    attributes.put(0, descriptor(map));
    attributes.put_address(2, key.as_ptr() as u64);
    attributes.put_address(4, value.as_mut_ptr() as u64);
    found(bpf(bpf_command::MAP_LOOKUP_ELEM, &mut attributes))
}

/// Puts a value under `key` into a map, in place of what is there.
///
/// # Errors
/// Those of `BPF_MAP_UPDATE_ELEM`.
pub fn put_map_value(map: &OwnedFd, key: &[u8], value: &[u8]) -> io::Result<()> {
    let mut attributes = Attributes([0; WORDS]);
    attributes.put(0, descriptor(map));
    attributes.put_address(2, key.as_ptr() as u64);
    attributes.put_address(4, value.as_ptr() as u64);
    bpf(bpf_command::MAP_UPDATE_ELEM, &mut attributes).map(|_| ())
}

/// Removes what is under `key`. Says whether anything was.
///
/// # Errors
/// Those of `BPF_MAP_DELETE_ELEM`.
pub fn remove_map_value(map: &OwnedFd, key: &[u8]) -> io::Result<bool> {
    let mut attributes = Attributes([0; WORDS]);
    attributes.put(0, descriptor(map));
    attributes.put_address(2, key.as_ptr() as u64);
    found(bpf(bpf_command::MAP_DELETE_ELEM, &mut attributes))
}

/// The keys of a hash table, each `size` bytes long. Nobody may change it meanwhile.
///
/// # Errors
/// Those of the system calls.
pub fn keys(map: &OwnedFd, size: usize) -> io::Result<Vec<Vec<u8>>> {
    let mut keys = Vec::new();
    let mut key = next_key(map, None, size)?;
    while let Some(current) = key {
        key = next_key(map, Some(&current), size)?;
        keys.push(current);
    }
    Ok(keys)
}

/// Removes every element of a hash table whose keys are `size` bytes long.
///
/// # Errors
/// Those of the system calls.
pub fn clear_map(map: &OwnedFd, size: usize) -> io::Result<()> {
    let mut key = next_key(map, None, size)?;
    while let Some(current) = key {
        // Asked for first: what follows a key that is gone is the table's beginning.
        key = next_key(map, Some(&current), size)?;
        let mut attributes = Attributes([0; WORDS]);
        attributes.put(0, descriptor(map));
        attributes.put_address(2, current.as_ptr() as u64);
        found(bpf(bpf_command::MAP_DELETE_ELEM, &mut attributes))?;
    }
    Ok(())
}

/// The key after `key`, or the first.
fn next_key(map: &OwnedFd, key: Option<&[u8]>, size: usize) -> io::Result<Option<Vec<u8>>> {
    let mut next = vec![0_u8; size];
    let mut attributes = Attributes([0; WORDS]);
    attributes.put(0, descriptor(map));
    attributes.put_address(2, key.map_or(0, |key| key.as_ptr() as u64));
    attributes.put_address(4, next.as_mut_ptr() as u64);
    Ok(found(bpf(bpf_command::MAP_GET_NEXT_KEY, &mut attributes))?.then_some(next))
}

/// The length of a map's keys.
///
/// # Panics
/// When the descriptor is no map's.
#[must_use]
pub fn key_size(map: &OwnedFd) -> usize {
    told(map, "key_size:")
}

/// The length of a map's values.
///
/// # Panics
/// When the descriptor is no map's.
#[must_use]
pub fn value_size(map: &OwnedFd) -> usize {
    told(map, "value_size:")
}

/// A number that the kernel tells of a map.
fn told(map: &OwnedFd, name: &str) -> usize {
    let path = format!("/proc/self/fdinfo/{}", map.as_raw_fd());
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
        .unwrap_or_else(|| panic!("{path} is not of a map"))
}

/// Whether an element was there.
fn found(result: io::Result<i32>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A program that counts the packets it sees and lets each go on (`TCX_NEXT`), with its counter.
#[derive(Debug)]
pub struct Observer {
    program: OwnedFd,
    counter: OwnedFd,
}

impl Observer {
    /// Loads it.
    ///
    /// # Panics
    /// When the kernel refuses.
    #[must_use]
    pub fn load() -> Self {
        let counter = array_of_one(8);
        let program = classifier(&counting_program(descriptor(&counter)));
        Self { program, counter }
    }

    /// Puts it last on the TCX ingress hook of a device of the calling thread's namespace, until
    /// what is given back is dropped.
    ///
    /// # Panics
    /// When the kernel refuses.
    #[must_use]
    pub fn attach(&self, device: u32) -> OwnedFd {
        at_ingress(&self.program, device)
    }

    /// Pins the program, for `tc filter ... bpf da pinned`.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn pin(&self, path: &Path) {
        let name = CString::new(path.as_os_str().as_bytes()).expect("no zero byte");
        let mut attributes = Attributes([0; WORDS]);
        attributes.put_address(0, name.as_ptr() as u64);
        attributes.put(2, descriptor(&self.program));
        bpf(bpf_command::OBJ_PIN, &mut attributes).expect("pin a program");
    }

    /// How many packets it has seen.
    ///
    /// # Panics
    /// When the map cannot be read.
    #[must_use]
    pub fn packets(&self) -> u64 {
        let (key, mut value) = (0_u32, 0_u64);
        let mut attributes = Attributes([0; WORDS]);
        attributes.put(0, descriptor(&self.counter));
        attributes.put_address(2, &raw const key as u64);
        attributes.put_address(4, &raw mut value as u64);
        bpf(bpf_command::MAP_LOOKUP_ELEM, &mut attributes).expect("read a map");
        value
    }
}

/// `counter[0] += 1; return TCX_NEXT;`
fn counting_program(map: u32) -> [u64; 11] {
    [
        instruction(0x62, 10, 0, -4, 0), // *(u32 *)(r10 - 4) = 0
        instruction(0xbf, 2, 10, 0, 0),  // r2 = r10
        instruction(0x07, 2, 0, 0, -4),  // r2 += -4
        instruction(0x18, 1, 1, 0, map.cast_signed()), // r1 = the map
        0,                               // (second half of the load)
        instruction(0x85, 0, 0, 0, 1),   // r0 = bpf_map_lookup_elem(r1, r2)
        instruction(0x15, 0, 0, 2, 0),   // if r0 == 0 skip two
        instruction(0xb7, 1, 0, 0, 1),   // r1 = 1
        instruction(0xdb, 0, 1, 0, 0),   // lock *(u64 *)(r0 + 0) += r1
        instruction(0xb7, 0, 0, 0, -1),  // r0 = TCX_NEXT
        instruction(0x95, 0, 0, 0, 0),   // return r0
    ]
}

/// How many sums [`Sums`] notes.
const NOTED: i32 = 255;

/// A program that notes of each packet what the device says that its bytes add up to, from the network
/// header on (`CHECKSUM_COMPLETE`), and lets each go on.
#[derive(Debug)]
pub struct Sums {
    program: OwnedFd,
    noted: OwnedFd,
}

impl Sums {
    /// Loads it.
    ///
    /// # Panics
    /// When the kernel refuses.
    #[must_use]
    pub fn load() -> Self {
        let noted = array_of_one(8 * (1 + NOTED.cast_unsigned()));
        let program = classifier(&noting_program(descriptor(&noted)));
        Self { program, noted }
    }

    /// As [`Observer::attach`].
    ///
    /// # Panics
    /// When the kernel refuses.
    #[must_use]
    pub fn attach(&self, device: u32) -> OwnedFd {
        at_ingress(&self.program, device)
    }

    /// The sums of those packets that have one, folded, in the order of bytes in memory.
    ///
    /// # Panics
    /// When the map cannot be read, or has no room for more.
    #[must_use]
    pub fn noted(&self) -> Vec<u16> {
        let mut value = vec![0; value_size(&self.noted)];
        let found = map_value(&self.noted, &0_u32.to_ne_bytes(), &mut value).expect("read a map");
        assert!(found, "an array has all its elements");
        let words: Vec<u64> = value
            .chunks_exact(8)
            .map(|word| u64::from_ne_bytes(word.try_into().expect("eight bytes")))
            .collect();
        let count = usize::try_from(words[0]).expect("a small number");
        assert!(count < words.len() - 1, "more packets than are noted");
        // What is no number of 32 bits is an error: there is no such sum.
        let sums = words[1..=count].iter().map(|sum| u32::try_from(*sum));
        sums.filter_map(|sum| Some(fold(sum.ok()?))).collect()
    }
}

/// The one's complement sum of bytes, as [`Sums`] has them.
#[must_use]
pub fn sum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| [pair[0], *pair.get(1).unwrap_or(&0)];
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_ne_bytes(word(pair))));
    fold(words.sum())
}

fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    u16::try_from((sum & 0xffff) + (sum >> 16)).expect("folded twice")
}

/// ```text
/// if noted.count < NOTED { noted.count += 1; noted.sums[noted.count] = bpf_csum_update(packet, 0); }
/// return TCX_NEXT;
/// ```
fn noting_program(map: u32) -> [u64; 21] {
    [
        instruction(0xbf, 6, 1, 0, 0),                 // r6 = r1, the packet
        instruction(0x62, 10, 0, -4, 0),               // *(u32 *)(r10 - 4) = 0
        instruction(0xbf, 2, 10, 0, 0),                // r2 = r10
        instruction(0x07, 2, 0, 0, -4),                // r2 += -4
        instruction(0x18, 1, 1, 0, map.cast_signed()), // r1 = the map
        0,                                             // (second half of the load)
        instruction(0x85, 0, 0, 0, 1),                 // r0 = bpf_map_lookup_elem(r1, r2)
        instruction(0x15, 0, 0, 11, 0),                // if r0 == 0 skip eleven
        instruction(0xbf, 7, 0, 0, 0),                 // r7 = r0
        instruction(0xbf, 1, 6, 0, 0),                 // r1 = r6
        instruction(0xb7, 2, 0, 0, 0),                 // r2 = 0
        instruction(0x85, 0, 0, 0, 40),                // r0 = bpf_csum_update(r1, r2)
        instruction(0x79, 8, 7, 0, 0),                 // r8 = *(u64 *)(r7 + 0)
        instruction(0x35, 8, 0, 5, NOTED),             // if r8 >= NOTED skip five
        instruction(0x07, 8, 0, 0, 1),                 // r8 += 1
        instruction(0x7b, 7, 8, 0, 0),                 // *(u64 *)(r7 + 0) = r8
        instruction(0x67, 8, 0, 0, 3),                 // r8 <<= 3
        instruction(0x0f, 7, 8, 0, 0),                 // r7 += r8
        instruction(0x7b, 7, 0, 0, 0),                 // *(u64 *)(r7 + 0) = r0
        instruction(0xb7, 0, 0, 0, -1),                // r0 = TCX_NEXT
        instruction(0x95, 0, 0, 0, 0),                 // return r0
    ]
}

/// An instruction as RFC 9669 encodes it.
fn instruction(code: u8, target: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    u64::from(code)
        | u64::from(target | source << 4) << 8
        | u64::from(offset.cast_unsigned()) << 16
        | u64::from(immediate.cast_unsigned()) << 32
}

/// A map with a single element of so many bytes.
fn array_of_one(size: u32) -> OwnedFd {
    const ARRAY: u32 = 2;
    make(bpf_command::MAP_CREATE, |attributes| {
        for (word, value) in [ARRAY, 4, size, 1].into_iter().enumerate() {
            attributes.put(word, value);
        }
    })
}

fn classifier(instructions: &[u64]) -> OwnedFd {
    const SCHED_CLS: u32 = 3;
    let license = c"GPL";
    make(bpf_command::PROG_LOAD, |attributes| {
        attributes.put(0, SCHED_CLS);
        attributes.put(1, length(instructions.len()).expect("a short program"));
        attributes.put_address(2, instructions.as_ptr() as u64);
        attributes.put_address(4, license.as_ptr() as u64);
    })
}

/// Puts a program last on the TCX ingress hook of a device of the calling thread's namespace.
fn at_ingress(program: &OwnedFd, device: u32) -> OwnedFd {
    make(bpf_command::LINK_CREATE, |attributes| {
        attributes.put(0, descriptor(program));
        attributes.put(1, device);
        attributes.put(2, TCX[0]);
    })
}

fn make(command: i64, fill: impl FnOnce(&mut Attributes)) -> OwnedFd {
    let mut attributes = Attributes([0; WORDS]);
    fill(&mut attributes);
    let fd = bpf(command, &mut attributes)
        .unwrap_or_else(|error| panic!("bpf command {command}: {error}"));
    // SAFETY: the kernel has just made the descriptor for us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn descriptor(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn length(length: usize) -> io::Result<u32> {
    u32::try_from(length).map_err(io::Error::other)
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

/// Enough for every command used here; the kernel wants what it does not know to be zero.
const WORDS: usize = 32;

/// The start of `union bpf_attr` as 32-bit words.
#[repr(align(8))]
struct Attributes([u32; WORDS]);

impl Attributes {
    fn put(&mut self, word: usize, value: u32) {
        self.0[word] = value;
    }

    fn put_address(&mut self, word: usize, address: u64) {
        let [low, high] = bytemuck::cast::<u64, [u32; 2]>(address);
        self.0[word] = low;
        self.0[word + 1] = high;
    }
}

fn bpf(command: i64, attributes: &mut Attributes) -> io::Result<i32> {
    // SAFETY: the attributes are readable and writable for their size, and the addresses in them
    // were taken from buffers that live through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attributes.0.as_mut_ptr(),
            size_of::<Attributes>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}
