//! Entries of LRU tables that the kernel gives to others while programs look at them.

use std::fmt::Debug;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use bytemuck::Pod;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{self, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use crate::deadline::{PATIENCE, patient};
use crate::kernel::{self, Taker};

/// How often [`comes_out_as`] wants to see what comes of the own entry. A program that does not care whose it is
/// errs a thousand times more seldom.
const ENOUGH: u32 = 20_000;

/// Asserts that what `send` sends comes out as `expected`, the one way or the other, while on another CPU an entry of
/// a table is taken from it, over and over: under `own` is the first of `values` for a moment, and then the second in
/// its place, under one of `others`. The first of `expected` is what has to come of the own entry, the other what
/// comes of none; both have to be seen. Use it on a thread that ends afterwards: it stays on one CPU. The table is
/// empty then.
///
/// # Panics
/// If it comes out otherwise, or never as one of them.
#[track_caller]
pub fn comes_out_as<T: PartialEq + Debug, K: Pod + Sync, V: Pod>(
    expected: &[T; 2],
    table: &OwnedFd,
    own: K,
    others: impl Fn(u16) -> K + Sync,
    values: impl Fn() -> [V; 2] + Sync,
    mut send: impl FnMut() -> T,
) {
    let taker = Taker::load(table, [size_of::<K>(), size_of::<V>()]);
    let entries = || {
        let [value, other] = values();
        let mut entries = Vec::new();
        let mut add = |part: &[u8]| {
            entries.extend_from_slice(part);
            entries.resize(entries.len().next_multiple_of(8), 0);
        };
        add(bytemuck::bytes_of(&own));
        add(bytemuck::bytes_of(&value));
        for number in 0..Taker::OTHERS {
            add(bytemuck::bytes_of(&others(number)));
            add(bytemuck::bytes_of(&other));
        }
        entries
    };
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            stay_on(1);
            while !is_over.load(Ordering::Relaxed) {
                taker.play(&entries()).expect("some rounds");
            }
        });
        let _end = AtLast(&is_over);
        stay_on(0);
        let (interrupt, start) = (Interrupt::new(), Instant::now());
        let mut seen = [0; 2];
        let limit = |seen: &[u32; 2]| match seen.contains(&0) {
            true => patient(PATIENCE),
            false => PATIENCE,
        };
        while seen[0] < ENOUGH && start.elapsed() < limit(&seen) {
            for turn in 0..1_000 {
                interrupt.within(turn * 997 % 4_096);
                let outcome = send();
                let place = expected.iter().position(|one| *one == outcome);
                seen[place.unwrap_or_else(|| panic!("{outcome:02x?} after {seen:?}"))] += 1;
            }
        }
        assert!(!seen.contains(&0), "{seen:?}");
    });
    kernel::clear_map(table, size_of::<K>()).expect("an empty table");
}

/// Says so when its scope is left, by a panic too.
struct AtLast<'a>(&'a AtomicBool);

impl Drop for AtLast<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A timer whose interrupt stops what this CPU does for longer than an entry takes to change hands: programs too, in
/// the midst of what they do.
struct Interrupt(TimerFd);

impl Interrupt {
    fn new() -> Self {
        let timer = TimerFd::new(timerfd::ClockId::CLOCK_MONOTONIC, TimerFlags::empty());
        Self(timer.expect("a timer"))
    }
    fn within(&self, nanoseconds: i64) {
        let once = Expiration::OneShot(TimeSpec::new(0, 1 + nanoseconds));
        let set = self.0.set(once, TimerSetTimeFlags::empty());
        set.expect("an interrupt");
    }
}

/// Keeps the calling thread on a CPU.
fn stay_on(cpu: usize) {
    let mut own = CpuSet::new();
    own.set(cpu).expect("a CPU");
    sched_setaffinity(Pid::from_raw(0), &own).expect("a CPU of its own");
}

/// Key and value of the one entry of a table.
///
/// # Panics
/// When there is not one.
#[must_use]
pub fn only_entry<K: Pod, V: Pod>(table: &OwnedFd) -> (K, V) {
    let keys = kernel::keys(table, size_of::<K>()).expect("keys");
    let [key] = &keys[..] else {
        panic!("{} entries", keys.len());
    };
    let mut value = vec![0; size_of::<V>()];
    assert!(kernel::map_value(table, key, &mut value).expect("a look"));
    let key = bytemuck::pod_read_unaligned(key);
    (key, bytemuck::pod_read_unaligned(&value))
}

/// The second that it is, as programs count them.
///
/// # Panics
/// When the kernel does not tell.
#[must_use]
pub fn second() -> u32 {
    let uptime = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).expect("the time");
    u32::try_from(uptime.tv_sec()).expect("32 bits of seconds")
}
