//! The clock that the programs note times by.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Seconds since boot, as in [`portfwd_common::flow::Flow::last_seen`].
#[must_use]
pub fn seconds() -> u32 {
    now(ClockId::CLOCK_MONOTONIC_COARSE).as_secs() as u32
}

/// The first of those seconds that begins when `time` is over.
#[must_use]
pub fn second_after(time: Duration) -> u64 {
    whole(now(ClockId::CLOCK_MONOTONIC) + time)
}

fn now(clock: ClockId) -> Duration {
    let now = clock_gettime(clock);
    now.expect("every Linux since 2.6.32 has these clocks, and they are anybody's to read")
        .into()
}

/// Rounded up.
fn whole(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails if what is less than a second is cut off.
    #[test]
    fn a_second_that_has_begun_counts_as_a_whole_one() {
        for (time, second) in [
            (Duration::from_millis(2_000), 2),
            (Duration::from_nanos(2_000_000_001), 3),
            (Duration::from_millis(2_999), 3),
            (Duration::ZERO, 0),
        ] {
            assert_eq!(whole(time), second, "{time:?}");
        }
        assert!(second_after(Duration::from_millis(1_500)) > u64::from(seconds()) + 1);
    }
}
