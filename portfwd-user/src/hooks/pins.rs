//! Links that are pinned in the bpffs, and the devices behind them.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use aya_obj::generated::{BPF_F_AFTER, BPF_F_BEFORE, bpf_cmd};
use nix::errno::Errno;

use crate::bpf::{bpf, descriptor};

/// A TCX hook, as `enum bpf_attach_type` has it.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(super) enum Tcx {
    /// `BPF_TCX_INGRESS`.
    Ingress = 46,
    /// `BPF_TCX_EGRESS`.
    Egress = 47,
}

/// The start of `union bpf_attr` for `BPF_LINK_CREATE`, with what it has for TCX.
#[repr(C)]
struct Creation {
    program: u32,
    device: u32,
    hook: u32,
    flags: u32,
    /// Descriptor of the program that the flags place this one by.
    other: u32,
    padding: u32,
    revision: u64,
}

/// The start of `union bpf_attr`, for all other commands.
#[repr(C)]
struct Request {
    /// Of the path, or the descriptor, and the length of the answer or another descriptor.
    first: u64,
    /// Address of the answer.
    answer: u64,
    zero: u64,
}

/// The start of `struct bpf_link_info`, of TCX, XDP and control group links alike.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    /// 0 once the device has gone.
    device: u32,
    rest: [u32; 3],
}

/// Attaches the program pinned at `program` to a hook of the device with that index, before all others or right behind the
/// one pinned at `before`, and pins the link at `path`. A name could be another device's by then.
///
/// # Errors
/// When the kernel refuses; a kernel that does not know TCX takes the call for one with bad arguments.
pub(super) fn make(
    path: &Path,
    program: &Path,
    (hook, index): (Tcx, u32),
    before: Option<&Path>,
) -> io::Result<()> {
    let program = open(program)?;
    let other = before.map(open).transpose()?;
    let mut creation = Creation {
        program: descriptor(&program),
        device: index,
        hook: hook as u32,
        flags: if other.is_some() {
            BPF_F_AFTER
        } else {
            BPF_F_BEFORE
        },
        other: other.as_ref().map_or(0, descriptor),
        padding: 0,
        revision: 0,
    };
    // SAFETY: the command takes descriptors and no address.
    let link = unsafe { bpf(bpf_cmd::BPF_LINK_CREATE, &mut creation) }?;
    // SAFETY: the kernel has just made the descriptor for us.
    let link = unsafe { OwnedFd::from_raw_fd(link) };
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut request = Request {
        first: name.as_ptr() as u64,
        answer: u64::from(descriptor(&link)),
        zero: 0,
    };
    // SAFETY: `name` is a terminated string that outlives the call.
    unsafe { bpf(bpf_cmd::BPF_OBJ_PIN, &mut request) }?;
    Ok(())
}

/// Whether the link pinned at `path` is attached to the device with that index.
///
/// # Errors
/// When there is a pin that cannot be opened.
pub(super) fn is_on(path: &Path, index: u32) -> io::Result<bool> {
    match device_of(path) {
        Ok(device) => Ok(device == index),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the link pinned at `path` is attached to the device with that index. The kernel gives an
/// index again to a device that moves in from another namespace, so the pin's name alone does not say.
/// A pin whose device has gone is removed.
///
/// # Errors
/// When there is a pin that cannot be opened or removed.
pub(super) fn holds(path: &Path, index: u32) -> io::Result<bool> {
    match device_of(path) {
        Ok(device) if device == index => Ok(true),
        Ok(_) => fs::remove_file(path).map(|()| false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Detaches the program of the link pinned at `path` at once, then removes the pin. Removing the pin alone
/// would let the kernel free the link some time later (`bpf_free_inode` waits for an RCU grace period):
/// until then the program runs, and the same one cannot be attached again. A kill in between leaves a pin
/// that attaches nothing, and that the same call removes.
///
/// # Errors
/// When there is no such pin, or the kernel refuses.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let link = open(path)?;
    let mut request = Request {
        first: u64::from(descriptor(&link)),
        answer: 0,
        zero: 0,
    };
    // SAFETY: the command takes a descriptor and no address.
    match unsafe { bpf(bpf_cmd::BPF_LINK_DETACH, &mut request) } {
        Ok(_) => {}
        // It was detached before, its device has gone, or its kind does not know how: then the pin is
        // all that holds it.
        Err(Errno::ENOLINK | Errno::EINVAL | Errno::EOPNOTSUPP) => {}
        Err(errno) => return Err(errno.into()),
    }
    fs::remove_file(path)
}

/// Lets the link pinned at `path` run the program pinned at `program`, from one packet on. A link whose device has gone runs
/// none, and stays as it is.
///
/// # Errors
/// When there is no such pin, or the kernel refuses.
pub(super) fn swap(path: &Path, program: &Path) -> io::Result<()> {
    let (link, program) = (open(path)?, open(program)?);
    let mut request = Request {
        first: u64::from(descriptor(&link)) | u64::from(descriptor(&program)) << 32,
        answer: 0,
        zero: 0,
    };
    // SAFETY: the command takes descriptors and no address.
    match unsafe { bpf(bpf_cmd::BPF_LINK_UPDATE, &mut request) } {
        Ok(_) | Err(Errno::ENOLINK) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// The ID of the program that a pinned link runs.
///
/// # Errors
/// When there is no such pin.
pub(super) fn program_of(path: &Path) -> io::Result<u32> {
    info_of(path).map(|info| info.program)
}

/// The index of the device that a pinned link is attached to; 0 if it has gone.
fn device_of(path: &Path) -> io::Result<u32> {
    info_of(path).map(|info| info.device)
}

/// The ID of the control group that a pinned link is attached to.
///
/// # Errors
/// When there is no such pin.
pub(super) fn cgroup_of(path: &Path) -> io::Result<u64> {
    // The ID lies where those of devices have their index, and is twice as long.
    info_of(path).map(|info| u64::from(info.device) | u64::from(info.rest[0]) << 32)
}

fn info_of(path: &Path) -> io::Result<LinkInfo> {
    let link = open(path)?;
    let mut info = LinkInfo::default();
    let length = size_of::<LinkInfo>() as u64;
    let mut request = Request {
        first: u64::from(descriptor(&link)) | length << 32,
        answer: (&raw mut info) as u64,
        zero: 0,
    };
    // SAFETY: the kernel writes at most `length` bytes to `info`, which is plain numbers.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut request) }?;
    Ok(info)
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut request = Request {
        first: name.as_ptr() as u64,
        answer: 0,
        zero: 0,
    };
    // SAFETY: `name` is a terminated string that outlives the call.
    let descriptor = unsafe { bpf(bpf_cmd::BPF_OBJ_GET, &mut request) }?;
    // SAFETY: the kernel has just made the descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
