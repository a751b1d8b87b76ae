//! Making a sequence small that shows a disagreement.

use std::time::{Duration, Instant};

use super::step::Step;
use crate::layers::repaired;

/// Longer than this takes nobody's time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Drops packets, then simplifies what is left, as long as `fails` says that the rest still fails.
///
/// Stops at some point: a fixture that is not quite as small is better than none.
pub(super) fn shrunk(steps: &[Step], mut fails: impl FnMut(&[Step]) -> bool) -> Vec<Step> {
    let end = Instant::now() + PATIENCE;
    let mut fails = |steps: &[Step]| Instant::now() < end && fails(steps);
    let mut steps = steps.to_vec();
    let mut chunk = steps.len().div_ceil(2);
    while chunk > 0 {
        let mut start = 0;
        while start < steps.len() {
            let mut fewer = steps.clone();
            fewer.drain(start..(start + chunk).min(fewer.len()));
            if fails(&fewer) {
                steps = fewer;
            } else {
                start += chunk;
            }
        }
        chunk /= 2;
    }
    for place in 0..steps.len() {
        simplify(&mut steps, place, &mut fails);
    }
    steps
}

/// Simplifies one packet: no segmentation, no more bytes than needed, and those 0 that do not matter.
fn simplify(steps: &mut Vec<Step>, place: usize, fails: &mut impl FnMut(&[Step]) -> bool) {
    let mut attempt = |steps: &mut Vec<Step>, change: &dyn Fn(&mut Step)| {
        let mut simpler = steps.clone();
        change(&mut simpler[place]);
        if simpler != *steps && fails(&simpler) {
            *steps = simpler;
        }
    };
    attempt(steps, &|step| step.segment = 0);
    let mut less = steps[place].frame.len() / 2;
    while less > 0 {
        attempt(steps, &move |step| {
            let keep = step.frame.len().saturating_sub(less).max(14);
            step.frame.truncate(keep);
        });
        less -= less.div_ceil(4);
    }
    for at in (12..steps[place].frame.len()).rev() {
        for repair in [true, false] {
            attempt(steps, &move |step| {
                if let Some(byte) = step.frame.get_mut(at) {
                    *byte = 0;
                }
                if repair {
                    repaired(&mut step.frame);
                }
            });
        }
    }
}
