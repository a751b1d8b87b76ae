//! bpf(2) itself, for what aya has no call for.

use std::os::fd::AsRawFd;

use aya_obj::generated::bpf_cmd;
use nix::{errno::Errno, libc};

/// Makes the call. `request` is the start of a `union bpf_attr`; the kernel takes what lies behind it for zeros.
///
/// # Errors
/// Those of the command.
///
/// # Safety
/// The addresses in `request` must be what the command takes them for.
pub(crate) unsafe fn bpf<T>(command: bpf_cmd, request: &mut T) -> nix::Result<libc::c_int> {
    // SAFETY: the request is as long as is said; its addresses are the caller's promise.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_int,
            std::ptr::from_mut(request),
            size_of::<T>(),
        )
    };
    // Descriptors and 0 fit.
    Ok(Errno::result(result)? as libc::c_int)
}

/// A descriptor as `union bpf_attr` has it: none is negative.
pub(crate) fn descriptor(of: &impl AsRawFd) -> u32 {
    of.as_raw_fd().unsigned_abs()
}
