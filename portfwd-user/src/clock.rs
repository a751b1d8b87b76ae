//! The clock that the programs note times by.

use nix::time::{ClockId, clock_gettime};

use crate::error::{Doing, Error};

/// Seconds since boot, as in [`portfwd_common::flow::Flow::last_seen`].
///
/// # Errors
/// When the clock cannot be read.
pub fn seconds() -> Result<u32, Error> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)
        .map_err(std::io::Error::from)
        .doing(|| "read the clock".to_owned())?;
    Ok(now.tv_sec() as u32)
}
