//! Commands that are killed at any of their system calls.
//!
//! A sweep kills at two dozen calls spread over the whole run; with `PORTFWD_FULL=1`, at every one.

use std::env;

use crate::ptrace::{self, End};
use crate::topology::Topology;

/// Kills in a sweep that is not full.
const KILLS: u32 = 25;

/// Runs a command under the tracer, killed at call `at`. Runs differ by a few calls, so that of the last ones some
/// may not be reached.
///
/// # Panics
/// When it ended by itself long before.
pub fn kill(topology: &Topology, arguments: &[&str], at: u32) {
    match ptrace::run(topology.command(arguments), at) {
        End::Killed => {}
        End::Exited { code: 0, calls } if calls + calls / 10 >= at => {}
        End::Exited { code, calls } => {
            panic!("{arguments:?} ended with {code} after {calls} calls, not killed at {at}")
        }
    }
}

/// How many system calls a whole run takes.
///
/// # Panics
/// When it fails.
#[must_use]
pub fn calls(topology: &Topology, arguments: &[&str]) -> u32 {
    match ptrace::run(topology.command(arguments), 0) {
        End::Exited { code: 0, calls } => calls,
        other => panic!("{arguments:?}: {other:?}"),
    }
}

/// The calls at which a command of so many is killed.
pub fn kills(calls: u32) -> impl Iterator<Item = u32> {
    some_of(calls, KILLS)
}

/// The same with another number of kills, where each takes long.
pub fn some_of(calls: u32, kills: u32) -> impl Iterator<Item = u32> {
    let full = env::var_os("PORTFWD_FULL").is_some();
    let stride = if full { 1 } else { (calls / kills).max(1) };
    (1..=calls).step_by(stride as usize)
}
