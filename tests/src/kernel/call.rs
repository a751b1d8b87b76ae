//! `bpf(2)` itself.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::libc;

/// Commands of `bpf(2)` (include/uapi/linux/bpf.h).
pub(super) mod bpf_command {
    pub(in crate::kernel) const MAP_CREATE: i64 = 0;
    pub(in crate::kernel) const MAP_LOOKUP_ELEM: i64 = 1;
    pub(in crate::kernel) const MAP_UPDATE_ELEM: i64 = 2;
    pub(in crate::kernel) const MAP_DELETE_ELEM: i64 = 3;
    pub(in crate::kernel) const MAP_GET_NEXT_KEY: i64 = 4;
    pub(in crate::kernel) const PROG_LOAD: i64 = 5;
    pub(in crate::kernel) const OBJ_PIN: i64 = 6;
    pub(in crate::kernel) const OBJ_GET: i64 = 7;
    pub(in crate::kernel) const PROG_TEST_RUN: i64 = 10;
    pub(in crate::kernel) const PROG_GET_NEXT_ID: i64 = 11;
    pub(in crate::kernel) const MAP_GET_NEXT_ID: i64 = 12;
    pub(in crate::kernel) const OBJ_GET_INFO_BY_FD: i64 = 15;
    pub(in crate::kernel) const PROG_QUERY: i64 = 16;
    pub(in crate::kernel) const MAP_LOOKUP_BATCH: i64 = 24;
    pub(in crate::kernel) const LINK_CREATE: i64 = 28;
    pub(in crate::kernel) const LINK_GET_NEXT_ID: i64 = 31;
}

pub(super) fn make(command: i64, fill: impl FnOnce(&mut Attributes)) -> OwnedFd {
    let mut attributes = Attributes([0; WORDS]);
    fill(&mut attributes);
    let fd = bpf(command, &mut attributes)
        .unwrap_or_else(|error| panic!("bpf command {command}: {error}"));
    // SAFETY: the kernel has just made the descriptor for us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

pub(super) fn descriptor(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

pub(super) fn length(length: usize) -> io::Result<u32> {
    u32::try_from(length).map_err(io::Error::other)
}

/// Enough for every command used here; the kernel wants what it does not know to be zero.
pub(super) const WORDS: usize = 32;

/// The start of `union bpf_attr` as 32-bit words.
#[repr(align(8))]
pub(super) struct Attributes(pub(super) [u32; WORDS]);

impl Attributes {
    pub(super) fn put(&mut self, word: usize, value: u32) {
        self.0[word] = value;
    }

    pub(super) fn put_address(&mut self, word: usize, address: u64) {
        let [low, high] = bytemuck::cast::<u64, [u32; 2]>(address);
        self.0[word] = low;
        self.0[word + 1] = high;
    }
}

pub(super) fn bpf(command: i64, attributes: &mut Attributes) -> io::Result<i32> {
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
