//! What the kernel does with BPF programs, found by trying.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use aya_obj::generated::bpf_cmd;
use nix::errno::Errno;
use nix::libc;

use crate::bpf::{bpf, descriptor};

/// `BPF_PROG_TYPE_SCHED_CLS`.
const SCHED_CLS: u32 = 3;
/// `BPF_TCX_INGRESS`.
const TCX_INGRESS: u32 = 46;
/// `LOOPBACK_IFINDEX` of linux/netdevice.h: the same in every namespace.
const LOOPBACK: u32 = 1;

/// The start of `union bpf_attr`, as the kernel sees it in eight-byte words.
type Attributes = [u64; 12];

/// Two words of four bytes as they lie in [`Attributes`].
fn pair(first: u32, second: u32) -> u64 {
    bytemuck::cast([first, second])
}

/// An instruction: operation, destination and source register, offset, immediate value.
const fn instruction(operation: u8, registers: u8, offset: i16, value: i32) -> [u8; 8] {
    let [a, b] = offset.to_ne_bytes();
    let [c, d, e, f] = value.to_ne_bytes();
    [operation, registers, a, b, c, d, e, f]
}

/// `BPF_EXIT`.
const EXIT: [u8; 8] = instruction(0x95, 0, 0, 0);
/// `r0 = 0`.
const NOTHING: [u8; 8] = instruction(0xb7, 0, 0, 0);

/// A program that does nothing: whether it becomes machine code.
///
/// # Errors
/// When the kernel refuses it.
pub fn compiles_programs() -> io::Result<bool> {
    let program = load(&[NOTHING, EXIT])?;
    // `struct bpf_prog_info`: type, ID, tag, then the length of the machine code.
    let mut info = [0u32; 8];
    let mut attributes = Attributes::default();
    attributes[0] = pair(descriptor(&program), size_of_val(&info) as u32);
    attributes[1] = info.as_mut_ptr() as u64;
    // SAFETY: the kernel writes at most the length that is passed to `info`, which is plain numbers.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attributes) }?;
    Ok(info[4] != 0)
}

/// Whether the kernel has TCX, which is TC with links.
///
/// # Errors
/// When it cannot be asked.
pub fn has_tcx() -> io::Result<bool> {
    let mut attributes = Attributes::default();
    attributes[0] = pair(LOOPBACK, TCX_INGRESS);
    // SAFETY: no address is passed.
    match unsafe { bpf(bpf_cmd::BPF_PROG_QUERY, &mut attributes) } {
        Ok(_) => Ok(true),
        // A kernel that does not know the hook takes the call for one with bad arguments.
        Err(Errno::EINVAL) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether `bpf_fib_lookup` tells source addresses.
///
/// # Errors
/// When it cannot be tried.
pub fn knows_route_source() -> io::Result<bool> {
    let program = load(&asks_for_source())?;
    let frame = [0u8; 64];
    let mut attributes = Attributes::default();
    attributes[0] = pair(descriptor(&program), 0);
    attributes[1] = pair(frame.len() as u32, 0);
    attributes[2] = frame.as_ptr() as u64;
    // SAFETY: the kernel reads as much of `frame` as is said, and writes to the attributes alone.
    unsafe { bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attributes) }?;
    let [_, answer]: [u32; 2] = bytemuck::cast(attributes[0]);
    // Flags are looked at before the device, which does not exist.
    Ok(answer.cast_signed() != -libc::EINVAL)
}

/// Runs a TC program over a frame as if it had come in by the device with that index, in the namespace of the thread:
/// what it returns, and the frame afterwards. Nothing goes anywhere.
///
/// # Errors
/// When the kernel refuses to.
pub fn test_run(program: BorrowedFd<'_>, frame: &[u8], device: u32) -> io::Result<(i32, Vec<u8>)> {
    /// Offset of `ifindex` in `struct __sk_buff`, in words.
    const DEVICE_AT: usize = 10;
    let mut context = [0u32; 48];
    context[DEVICE_AT] = device;
    // What is put before a frame.
    let mut after = vec![0; frame.len() + 64];
    let mut attributes = Attributes::default();
    attributes[0] = pair(program.as_raw_fd().unsigned_abs(), 0);
    attributes[1] = pair(frame.len() as u32, after.len() as u32);
    attributes[2] = frame.as_ptr() as u64;
    attributes[3] = after.as_mut_ptr() as u64;
    attributes[5] = pair(size_of_val(&context) as u32, 0);
    attributes[6] = context.as_ptr() as u64;
    // SAFETY: the kernel reads as much of `frame` and `context` as is said, and writes as much of `after`.
    unsafe { bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attributes) }?;
    let [_, verdict]: [u32; 2] = bytemuck::cast(attributes[0]);
    let [_, length]: [u32; 2] = bytemuck::cast(attributes[1]);
    after.truncate(length as usize);
    Ok((verdict.cast_signed(), after))
}

/// A program that asks for a route by no device, with the flags of the datapath, and returns the answer.
fn asks_for_source() -> Vec<[u8; 8]> {
    const LENGTH: i16 = 64;
    // `BPF_FIB_LOOKUP_SKIP_NEIGH` and `BPF_FIB_LOOKUP_SRC`.
    const FLAGS: i32 = 4 | 16;
    const FIB_LOOKUP: i32 = 69;
    let clear = |word: i16| instruction(0x7a, 10, word * 8 - LENGTH, 0);
    let mut code: Vec<[u8; 8]> = (0..LENGTH / 8).map(clear).collect();
    code.extend([
        // The first byte is the family.
        instruction(0x72, 10, -LENGTH, libc::AF_INET),
        // r2 = r10 - LENGTH, r3 = LENGTH, r4 = FLAGS.
        instruction(0xbf, 0xa2, 0, 0),
        instruction(0x07, 2, 0, -i32::from(LENGTH)),
        instruction(0xb7, 3, 0, i32::from(LENGTH)),
        instruction(0xb7, 4, 0, FLAGS),
        instruction(0x85, 0, 0, FIB_LOOKUP),
        EXIT,
    ]);
    code
}

/// Whether the kernel describes its types.
#[must_use]
pub fn has_btf() -> bool {
    Path::new("/sys/kernel/btf/vmlinux").exists()
}

fn load(code: &[[u8; 8]]) -> io::Result<OwnedFd> {
    let mut attributes = Attributes::default();
    attributes[0] = pair(SCHED_CLS, code.len() as u32);
    attributes[1] = code.as_ptr() as u64;
    attributes[2] = c"GPL".as_ptr() as u64;
    // SAFETY: the kernel reads as many instructions as are said, and a string with an end.
    let program = unsafe { bpf(bpf_cmd::BPF_PROG_LOAD, &mut attributes) }?;
    // SAFETY: the kernel has just made the descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(program) })
}
