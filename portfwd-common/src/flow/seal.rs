//! Seals: whether all that a reply reads of a flow's entry was said of one flow.
//!
//! The kernel may give an entry of an LRU table to another flow while a program reads it, and stores what that
//! one says in any order. A seal is the sum of what belongs together, the key included, each word multiplied
//! by a factor of its own (multilinear hashing; Carter and Wegman, "Universal classes of hash functions",
//! 1979): of a mixture of two flows it comes out right only by an accident that nobody will see.

use super::{Flow, FlowKey};
use crate::net::{Address, NetPort};

/// Odd, so that no difference of a word is lost, and of 31 bits, which an instruction of BPF holds.
const FACTORS: [u64; 14] = [
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
    0x66b0_d1ad,
    0x4b97_2a0f,
    0x3e70_5c91,
];

impl<A: Address> Flow<A> {
    /// The seal of the flow of `key`: of where its replies seem to come from, and go. What a packet is compared
    /// with needs none.
    #[inline(always)]
    pub fn sealed(&self, key: &FlowKey<A>) -> u64 {
        let (client, container) = (key.client.halves(), key.container.halves());
        let (host, next_hop) = (self.host.halves(), self.route.next_hop.halves());
        let words = [
            client[0],
            client[1],
            container[0],
            container[1],
            pair(key.client_port, key.container_port),
            key.protocol as u64,
            host[0],
            host[1],
            self.host_port.wire() as u64,
            self.route.device as u64,
            self.route.mtu as u64,
            self.route.has_next_hop as u64,
            next_hop[0],
            next_hop[1],
        ];
        let mut sum = 0u64;
        let mut at = 0;
        while at < words.len() {
            sum = sum.wrapping_add(words[at].wrapping_mul(FACTORS[at]));
            at += 1;
        }
        sum
    }
}

#[inline(always)]
fn pair(a: NetPort, b: NetPort) -> u64 {
    (a.wire() as u64) << 16 | b.wire() as u64
}
