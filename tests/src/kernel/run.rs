//! Programs over packets that tests make.

use std::io;
use std::os::fd::OwnedFd;

use super::call::{Attributes, WORDS, bpf, bpf_command, descriptor, length};

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
