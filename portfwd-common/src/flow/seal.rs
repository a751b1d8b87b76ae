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

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        flow::Reply,
        net::{NetPort, V6},
    };

    /// Key and reply of a flow, from one number for each of their words.
    fn made(words: [u64; 11]) -> (FlowKey<V6>, Flow<V6>) {
        let address = |at: usize| V6(words[at], words[at + 1]);
        let [a, b, c, d] = words[4].to_le_bytes()[..4] else {
            unreachable!("four of eight bytes")
        };
        let port = |low, high| NetPort::from_wire(u16::from_le_bytes([low, high]));
        let key = FlowKey {
            protocol: (words[4] >> 32) as u32,
            ..FlowKey::new(address(0), port(a, b), address(2), port(c, d), 0)
        };
        let reply = Reply {
            host_port: NetPort::from_wire(words[5] as u16),
            client_port: NetPort::from_wire((words[5] >> 16) as u16),
            device: (words[5] >> 32) as u32,
            mtu: words[6] as u32,
            has_next_hop: (words[6] >> 32) as u32,
            next_hop: address(7),
            host: address(9),
        };
        let flow = Flow {
            reply,
            ..Flow::zeroed()
        };
        (key, flow)
    }

    proptest! {
        #[test]
        fn a_seal_is_another_when_one_word_is(words: [u64; 11], at in 0usize..11, other: u64) {
            let mut changed = words;
            changed[at] = other;
            let [(key, flow), (other_key, other_flow)] = [words, changed].map(made);
            let same = flow.sealed(&key) == other_flow.sealed(&other_key);
            prop_assert_eq!(same, words == changed);
        }

        #[test]
        fn a_mixture_of_two_flows_has_the_seal_of_neither(
            own: [u64; 11], other: [u64; 11], from_other in 1u16..(1 << 11) - 1,
        ) {
            prop_assume!(own.iter().zip(&other).all(|(a, b)| a != b));
            let mut mixed = own;
            for at in (0..11).filter(|at| from_other >> at & 1 != 0) {
                mixed[at] = other[at];
            }
            let [own, other, mixed] = [own, other, mixed].map(|words| {
                let (key, flow) = made(words);
                flow.sealed(&key)
            });
            prop_assert!(mixed != own && mixed != other);
        }
    }
}
