//! Packets that run while something changes beside them, on another CPU.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;
use std::{hint, thread};

use crate::deadline::{PATIENCE, patient};

/// How often a [`race`] is run.
pub const TURNS: u32 = 20_000;

/// What becomes of a packet that is sent [`TURNS`] times, while `change` runs once each time, now earlier and
/// now later.
///
/// # Panics
/// If one of the two does not go on.
pub fn race<T>(mut send: impl FnMut() -> T, mut change: impl FnMut() + Send) -> Vec<T> {
    let (begun, done) = (AtomicU32::new(0), AtomicU32::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            for turn in 1..=TURNS {
                wait(&begun, turn);
                for _ in 0..turn % 256 {
                    hint::spin_loop();
                }
                change();
                done.store(turn, Ordering::Release);
            }
        });
        let once = |turn| {
            begun.store(turn, Ordering::Release);
            let outcome = send();
            wait(&done, turn);
            outcome
        };
        (1..=TURNS).map(once).collect()
    })
}

fn wait(for_whom: &AtomicU32, turn: u32) {
    let start = Instant::now();
    while for_whom.load(Ordering::Acquire) < turn {
        assert!(
            start.elapsed() < patient(PATIENCE),
            "the other thread has ended"
        );
        thread::yield_now();
    }
}
