//! The clock that the programs note times by.

use nix::time::{ClockId, clock_gettime};

/// Seconds since boot, as in [`portfwd_common::flow::Flow::last_seen`].
#[must_use]
pub fn seconds() -> u32 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE);
    now.expect("every Linux since 2.6.32 has this clock, and it is anybody's to read")
        .tv_sec() as u32
}
