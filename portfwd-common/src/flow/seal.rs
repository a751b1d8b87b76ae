//! Seals: whether all that a reply reads of a flow's entry was said of one flow.
//!
//! The kernel may give an entry of an LRU table to another flow while a program reads it, and stores what that
//! one says in any order. A seal is the sum of what belongs together, the key included, each word multiplied
//! by a factor of its own (multilinear hashing; Carter and Wegman, "Universal classes of hash functions",
//! 1979): of a mixture of two flows it comes out right only by an accident that nobody will see.

use super::{Flow, FlowKey};
use crate::net::Address;

/// Odd, so that no difference of a word is lost, and of 31 bits, which an instruction of BPF holds.
const FACTORS: [u64; 11] = [
    0x6c8e_9cf5,
    0x5d58_8b65,
    0x2f4b_5e1d,
    0x7a31_c6b7,
    0x4cf5_ad43,
    0x2745_937f,
    0x635d_eed3,
    0x53c5_ca59,
    0x3141_5927,
    0x7095_3c3b,
    0x1c69_b3f9,
];

impl<A: Address> Flow<A> {
    /// The seal of the flow of `key`: of what its replies get. What a packet is compared with needs none.
    #[inline(always)]
    pub fn sealed(&self, key: &FlowKey<A>) -> u64 {
        weighted(key, 0).wrapping_add(weighted(&self.reply, 5))
    }
}

/// The sum of the words of a part of a flow or of its key, each with its factor, the first of which is at `place`.
#[inline(always)]
fn weighted<T: Copy>(of: &T, place: usize) -> u64 {
    const { assert!(align_of::<T>() == 8) };
    let words: *const T = of;
    let (mut sum, mut at) = (0u64, 0);
    while at < size_of::<T>() / 8 {
        // SAFETY: within `of`, all of whose bytes are numbers.
        let word = unsafe { words.cast::<u64>().add(at).read() };
        sum = sum.wrapping_add(word.wrapping_mul(FACTORS[place + at]));
        at += 1;
    }
    sum
}
