//! Seconds on the kernel's monotonic clock, for the price of a memory read a packet.

use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_coarse_ns};

use crate::maps::CLOCK;

/// What one CPU last read.
#[repr(C)]
pub struct Tick {
    jiffies: u64,
    seconds: u64,
}

/// Seconds since boot (`CLOCK_MONOTONIC_COARSE`). The clock is asked once a tick and CPU: the verifier
/// turns `bpf_jiffies64` into a load, while the coarse clock costs some 15 ns.
#[inline(always)]
pub fn now() -> u32 {
    let Some(tick) = CLOCK.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: the entry is this CPU's own, and programs of one CPU that interrupt each other write the
    // same values.
    unsafe {
        let jiffies = bpf_jiffies64();
        if (*tick).jiffies != jiffies {
            (*tick).seconds = bpf_ktime_get_coarse_ns() / 1_000_000_000;
            (*tick).jiffies = jiffies;
        }
        (*tick).seconds as u32
    }
}
