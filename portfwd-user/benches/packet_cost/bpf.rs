//! `bpf(2)`: an empty program, and running programs with a stop-watch.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
};

use nix::libc;

/// Commands (`enum bpf_cmd`, linux/bpf.h).
const PROG_LOAD: libc::c_long = 5;
const PROG_TEST_RUN: libc::c_long = 10;
const LINK_CREATE: libc::c_long = 28;

/// The loopback device.
const LOOPBACK: u32 = 1;

/// Where a program runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    Tc,
    Xdp,
}

/// A loaded program.
pub(crate) struct Program {
    fd: OwnedFd,
    hook: Hook,
}

impl Program {
    /// One that aya loaded.
    pub(crate) fn of(fd: &impl AsFd, hook: Hook) -> io::Result<Program> {
        let fd = fd.as_fd().try_clone_to_owned()?;
        Ok(Program { fd, hook })
    }

    /// One that lets every packet go on.
    pub(crate) fn empty(hook: Hook) -> io::Result<Program> {
        // `enum bpf_prog_type`, and what lets a packet go on there: TCX_NEXT, XDP_PASS.
        let (kind, verdict) = match hook {
            Hook::Tc => (3, -1),
            Hook::Xdp => (6, 2),
        };
        // r0 = verdict; exit (RFC 9669): the code in the lowest byte, the constant in the upper half.
        let constant = u64::from(i32::cast_unsigned(verdict)) << 32;
        let instructions: [u64; 2] = [0xb7 | constant, 0x95];
        let license = c"GPL";
        let mut attributes = Attributes([0; WORDS]);
        attributes.put(0, kind);
        attributes.put(1, instructions.len() as u32);
        attributes.put_address(2, instructions.as_ptr().addr());
        attributes.put_address(4, license.as_ptr().addr());
        let fd = bpf(PROG_LOAD, &mut attributes)?;
        // SAFETY: the kernel has just made the descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Program { fd, hook })
    }

    /// Makes the program ready for many short calls of [`run`], for as long as what is given back lives.
    ///
    /// The kernel's XDP dispatcher jumps straight into programs that are attached somewhere. A call
    /// with another one enters it for the duration, patches code and waits for every CPU to notice.
    pub(crate) fn hold(&self) -> io::Result<Option<OwnedFd>> {
        /// `enum bpf_attach_type`, and `XDP_FLAGS_SKB_MODE` of linux/if_link.h.
        const ATTACH_XDP: u32 = 37;
        const SKB_MODE: u32 = 2;

        if self.hook == Hook::Tc {
            return Ok(None);
        }
        let mut attributes = Attributes([0; WORDS]);
        attributes.put(0, self.fd.as_raw_fd().cast_unsigned());
        attributes.put(1, LOOPBACK);
        attributes.put(2, ATTACH_XDP);
        attributes.put(3, SKB_MODE);
        let fd = bpf(LINK_CREATE, &mut attributes)?;
        // SAFETY: the kernel has just made the descriptor for us.
        Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Where it runs.
    pub(crate) fn hook(&self) -> Hook {
        self.hook
    }
}

/// What came of some runs.
pub(crate) struct Outcome {
    /// The last run's.
    pub(crate) verdict: i32,
    /// After the last run.
    pub(crate) frame: Vec<u8>,
}

/// Runs a program so many times over the same buffer, which starts as `frame`.
pub(crate) fn run(program: &Program, frame: &[u8], times: u32) -> io::Result<Outcome> {
    let mut out = vec![0; frame.len()];
    let mut attributes = Attributes([0; WORDS]);
    attributes.put(0, program.fd.as_raw_fd().cast_unsigned());
    attributes.put(2, frame.len() as u32);
    attributes.put(3, out.len() as u32);
    attributes.put_address(4, frame.as_ptr().addr());
    attributes.put_address(6, out.as_mut_ptr().addr());
    attributes.put(8, times);
    bpf(PROG_TEST_RUN, &mut attributes)?;
    Ok(Outcome {
        verdict: attributes.0[1].cast_signed(),
        frame: out,
    })
}

/// Enough for both commands; the kernel wants what it does not know to be zero.
const WORDS: usize = 32;

/// The start of `union bpf_attr` as 32-bit words.
#[repr(align(8))]
struct Attributes([u32; WORDS]);

impl Attributes {
    fn put(&mut self, word: usize, value: u32) {
        self.0[word] = value;
    }

    fn put_address(&mut self, word: usize, address: usize) {
        let halves: [u32; 2] = bytemuck::cast(address as u64);
        self.0[word..word + 2].copy_from_slice(&halves);
    }
}

fn bpf(command: libc::c_long, attributes: &mut Attributes) -> io::Result<i32> {
    let size = size_of::<Attributes>();
    // SAFETY: the attributes are readable and writable for their size, and the addresses in them are
    // those of buffers that outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.0.as_mut_ptr(), size) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}
