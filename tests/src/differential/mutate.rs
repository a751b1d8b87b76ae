//! Damage: what wires, bugs and attackers do to packets.

use super::random::Random;
use crate::layers::repaired;

/// Shorter than this is no frame.
const LEAST: usize = 14;
/// Bytes that are the edge of something.
const EDGES: [u8; 8] = [0, 1, 0x7f, 0x80, 0xff, 6, 17, 0x45];

/// A frame damaged in one to three ways; half of the time with checksums that fit it again.
pub(super) fn mutated(random: &mut Random, mut frame: Vec<u8>) -> Vec<u8> {
    for _ in 0..=random.below(3) {
        damage(random, &mut frame);
    }
    if random.percent(50) {
        repaired(&mut frame);
    }
    frame
}

fn damage(random: &mut Random, frame: &mut Vec<u8>) {
    // Headers matter more than what follows them.
    let reach = if random.percent(80) {
        frame.len().min(80)
    } else {
        frame.len()
    };
    let place = random.below(reach.max(1));
    match random.below(8) {
        0 | 1 => frame[place] ^= 1 << random.below(8),
        2 => frame[place] = random.pick(&EDGES),
        3 => frame[place] = random.byte(),
        4 => frame.truncate(place.max(LEAST)),
        5 => {
            let more = random.below(30);
            let more = random.bytes(more);
            frame.extend(more);
        }
        6 => swap(random, frame),
        _ => copy(random, frame),
    }
}

/// Swaps two fields of one size, such as addresses or ports.
fn swap(random: &mut Random, frame: &mut [u8]) {
    let (first, second, size) = random.pick(&[
        (26, 30, 4),
        (34, 36, 2),
        (22, 38, 16),
        (54, 56, 2),
        (0, 6, 6),
    ]);
    if second + size <= frame.len() {
        for offset in 0..size {
            frame.swap(first + offset, second + offset);
        }
    }
}

/// Copies some bytes elsewhere.
fn copy(random: &mut Random, frame: &mut [u8]) {
    let size = random.pick(&[1, 2, 4]);
    if frame.len() > LEAST + size {
        let from = random.below(frame.len() - size);
        let to = LEAST + random.below(frame.len() - size - LEAST);
        frame.copy_within(from..from + size, to);
    }
}
