//! Waiting for something to become true, with an end.

use std::env;
use std::fmt::Debug;
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

/// How long anything that works takes at the very most, on a machine that does much else; [`until`] and
/// [`patient`] know of slower machines.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long silence must last before a test believes that nothing comes.
pub const SILENCE: Duration = Duration::from_millis(400);

/// How many times slower than a usual machine this one is: `PORTFWD_PATIENCE`, for emulated ones.
static SLOWNESS: LazyLock<u32> = LazyLock::new(|| match env::var("PORTFWD_PATIENCE") {
    Ok(text) => text
        .parse()
        .unwrap_or_else(|error| panic!("PORTFWD_PATIENCE={text}: {error}")),
    Err(_) => 1,
});

/// A time limit as long as it has to be on this machine.
#[must_use]
pub fn patient(limit: Duration) -> Duration {
    limit * *SLOWNESS
}

const PAUSE: Duration = Duration::from_millis(5);

/// The first `Some` of `probe`, asked again and again.
///
/// # Panics
/// When `limit` has passed without one, naming `what`.
pub fn until<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let limit = patient(limit);
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < end, "waited {limit:?} in vain for {what}");
        thread::sleep(PAUSE);
    }
}

/// Asks `probe` until it answers `Ok`.
///
/// # Panics
/// When `limit` has passed, naming `what` and the last error.
pub fn until_ok<T, E: Debug>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Result<T, E>,
) -> T {
    let limit = patient(limit);
    let end = Instant::now() + limit;
    loop {
        match probe() {
            Ok(found) => return found,
            Err(error) => assert!(
                Instant::now() < end,
                "waited {limit:?} in vain for {what}: {error:?}"
            ),
        }
        thread::sleep(PAUSE);
    }
}
