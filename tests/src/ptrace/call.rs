//! A system call on its entry, and one that is not made although something comes of it.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace;
use nix::unistd::Pid;

/// `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS`, and `BPF_XDP`, of `enum bpf_attach_type`.
const TCX: [u32; 2] = [46, 47];
const XDP: u32 = 37;

/// A system call that a traced thread is about to make.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    thread: Pid,
    /// Its number, one of `SYS_*`.
    pub number: i64,
    /// Its arguments.
    pub arguments: [u64; 6],
}

impl Call {
    /// The one on whose entry the thread stands.
    pub(super) fn of(thread: Pid) -> Result<Self, Errno> {
        let info = ptrace::syscall_info(thread)?;
        assert_eq!(info.op, libc::PTRACE_SYSCALL_INFO_ENTRY, "{thread}");
        // SAFETY: that is the variant which the kernel has filled in on an entry.
        let entry = unsafe { info.u.entry };
        Ok(Self {
            thread,
            number: i64::try_from(entry.nr).expect("a number of a system call"),
            arguments: entry.args,
        })
    }

    /// Whether it is bpf(2) with this command.
    #[must_use]
    pub fn is_bpf(&self, command: u32) -> bool {
        // The upper half of a register that holds an int may be anything.
        self.number == libc::SYS_bpf && self.arguments[0] as u32 == command
    }

    /// Whether it attaches a program to a TCX hook, which older kernels take for a call with bad arguments.
    #[must_use]
    pub fn attaches_tcx(&self) -> bool {
        self.makes_link_of(&TCX)
    }

    /// Whether it attaches a program to a TCX hook or the XDP hook of the device with that index.
    #[must_use]
    pub fn attaches_to(&self, index: u32) -> bool {
        let target = || self.memory(self.arguments[1] + bpf::TARGET);
        (self.makes_link_of(&TCX) || self.makes_link_of(&[XDP]))
            && u32::from_ne_bytes(target()) == index
    }

    /// Whether the thread is in the network namespace that this file stands for.
    #[must_use]
    pub fn is_in(&self, namespace: &Path) -> bool {
        let inode = |path: &Path| fs::metadata(path).map(|facts| facts.ino()).ok();
        inode(Path::new(&format!("/proc/{}/ns/net", self.thread))) == inode(namespace)
    }

    fn makes_link_of(&self, kinds: &[u32]) -> bool {
        let kind = || self.memory(self.arguments[1] + bpf::ATTACH_TYPE);
        self.is_bpf(bpf::LINK_CREATE) && kinds.contains(&u32::from_ne_bytes(kind()))
    }

    /// A field of the attributes of bpf(2).
    #[must_use]
    pub fn attribute(&self, offset: u64) -> u64 {
        u64::from_ne_bytes(self.memory(self.arguments[1] + offset))
    }

    /// Whether it is such a command of bpf(2) for a pin whose path ends so.
    #[must_use]
    pub fn is_pin(&self, command: u32, end: &str) -> bool {
        self.is_bpf(command) && self.text(self.attribute(bpf::PATHNAME)).ends_with(end)
    }

    /// Whether it is such a command of bpf(2) for this map, which commands name by a descriptor.
    #[must_use]
    pub fn is_of_map(&self, command: u32, map: &OwnedFd) -> bool {
        let ours = format!("/proc/self/fdinfo/{}", map.as_raw_fd());
        let place = match command {
            bpf::MAP_LOOKUP_BATCH | bpf::MAP_DELETE_BATCH => bpf::BATCH_MAP,
            _ => 0,
        };
        let theirs = || {
            format!(
                "/proc/{}/fdinfo/{}",
                self.thread,
                self.attribute(place) as u32
            )
        };
        self.is_bpf(command) && map_id(&ours).is_some_and(|id| map_id(&theirs()) == Some(id))
    }

    /// Whether it is openat(2) of this path.
    #[must_use]
    pub fn opens(&self, path: &str) -> bool {
        self.number == libc::SYS_openat && self.text(self.arguments[1]) == path
    }

    /// Whether one of the arguments leads to a path that ends so.
    #[must_use]
    pub fn names(&self, end: &str) -> bool {
        let mut arguments = self.arguments[..2].iter();
        arguments.any(|argument| self.text(*argument).ends_with(end))
    }

    /// Type and flags of the netlink message that it sends, if it is sendto(2).
    #[must_use]
    pub fn sends(&self) -> Option<(u16, u16)> {
        let is_send = self.number == libc::SYS_sendto;
        let half = |offset| u16::from_ne_bytes(self.memory(self.arguments[1] + offset));
        is_send.then(|| (half(4), half(6)))
    }

    /// Bytes of the thread's memory; fewer if there are no more.
    #[must_use]
    pub fn memory<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        let memory = File::open(format!("/proc/{}/mem", self.thread));
        // What cannot be read is nothing that a test looks for.
        let _ = memory.and_then(|memory| memory.read_at(&mut bytes, address));
        bytes
    }

    /// Puts other bytes into the thread's memory.
    ///
    /// # Panics
    /// When they cannot be written.
    pub fn overwrite(&self, address: u64, bytes: &[u8]) {
        let path = format!("/proc/{}/mem", self.thread);
        let memory = OpenOptions::new().write(true).open(path);
        let written = memory.and_then(|memory| memory.write_all_at(bytes, address));
        written.unwrap_or_else(|error| panic!("write to {address:#x}: {error}"));
    }

    /// What the descriptor that is this argument leads to; nothing if it is none.
    #[must_use]
    pub fn file(&self, argument: usize) -> String {
        let path = format!("/proc/{}/fd/{}", self.thread, self.arguments[argument]);
        let target = fs::read_link(path).unwrap_or_default();
        target.display().to_string()
    }

    /// The text that an address of the thread's memory leads to, up to its NUL.
    #[must_use]
    pub fn text(&self, address: u64) -> String {
        let bytes = self.memory::<256>(address);
        let end = bytes.iter().position(|byte| *byte == 0);
        String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]).into_owned()
    }
}

/// The ID of the map that a descriptor is of.
fn map_id(fdinfo: &str) -> Option<String> {
    let text = fs::read_to_string(fdinfo).ok()?;
    let id = text.lines().find_map(|line| line.strip_prefix("map_id:"))?;
    Some(id.trim().to_owned())
}

/// Commands of bpf(2), from `include/uapi/linux/bpf.h`, and where `union bpf_attr` has what.
pub mod bpf {
    #![allow(missing_docs, reason = "the names are the kernel's")]

    pub const MAP_LOOKUP_ELEM: u32 = 1;
    pub const MAP_UPDATE_ELEM: u32 = 2;
    pub const MAP_DELETE_ELEM: u32 = 3;
    pub const MAP_GET_NEXT_KEY: u32 = 4;
    pub const PROG_LOAD: u32 = 5;
    pub const OBJ_PIN: u32 = 6;
    pub const OBJ_GET: u32 = 7;
    pub const PROG_TEST_RUN: u32 = 10;
    pub const MAP_LOOKUP_BATCH: u32 = 24;
    pub const MAP_DELETE_BATCH: u32 = 27;
    pub const LINK_CREATE: u32 = 28;
    pub const LINK_UPDATE: u32 = 29;
    /// Descriptor of the map, of the commands for many entries.
    pub const BATCH_MAP: u64 = 36;
    /// Address of a path, of the commands with one.
    pub const PATHNAME: u64 = 0;
    /// Address of a program's instructions.
    pub const INSTRUCTIONS: u64 = 8;
    /// A program's name itself.
    pub const PROG_NAME: u64 = 48;
    /// The device or descriptor that a link is attached to, and as what.
    pub const TARGET: u64 = 4;
    pub const ATTACH_TYPE: u64 = 8;
}

/// Keeps the thread, on the entry of a system call, from making it.
#[cfg(target_arch = "x86_64")]
pub(super) fn skip(thread: Pid) -> Result<(), Errno> {
    let mut registers = ptrace::getregs(thread)?;
    registers.orig_rax = u64::MAX;
    ptrace::setregs(thread, registers)
}

/// Lets the thread, on the exit of a system call, see this as what came of it.
#[cfg(target_arch = "x86_64")]
pub(super) fn answer(thread: Pid, result: i64) -> Result<(), Errno> {
    let mut registers = ptrace::getregs(thread)?;
    registers.rax = result.cast_unsigned();
    ptrace::setregs(thread, registers)
}

/// The same of arm64, where the number of the call is a register set of its own.
#[cfg(target_arch = "aarch64")]
pub(super) fn skip(thread: Pid) -> Result<(), Errno> {
    /// Of `include/uapi/linux/elf.h`.
    const NT_ARM_SYSTEM_CALL: libc::c_int = 0x404;
    let mut number: libc::c_int = -1;
    let mut part = libc::iovec {
        iov_base: (&raw mut number).cast(),
        iov_len: size_of_val(&number),
    };
    // SAFETY: the kernel reads `part`, and the number that it leads to.
    let result = unsafe {
        libc::ptrace(
            libc::PTRACE_SETREGSET,
            thread.as_raw(),
            NT_ARM_SYSTEM_CALL,
            &raw mut part,
        )
    };
    Errno::result(result).map(drop)
}

/// The same of arm64.
#[cfg(target_arch = "aarch64")]
pub(super) fn answer(thread: Pid, result: i64) -> Result<(), Errno> {
    let mut registers = ptrace::getregs(thread)?;
    registers.regs[0] = result.cast_unsigned();
    ptrace::setregs(thread, registers)
}
