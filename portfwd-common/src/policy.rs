//! Who may open connections through a forward, by the client's address.
//!
//! Rules are prefixes in a trie, under the number of the policy that they are of: the data of a key are
//! [`number_of_family`], in the byte order of the machine, and the 16 bytes of the address ([`crate::net::Ip`]). Of
//! those that match a client, the longest counts.

/// Rules of all policies together.
pub const MAX_RULES: u32 = 65_536;
/// Bits of a key before those of the address.
pub const POLICY_BITS: u32 = 32;
/// Bytes of a key's data.
pub const KEY_LENGTH: usize = 20;

/// The number under which a policy has its rules of one family: `::/0` says nothing of IPv4 clients, whose addresses
/// stand within it.
#[inline(always)]
pub const fn number_of_family(policy: u32, is_v4: bool) -> u32 {
    policy << 1 | is_v4 as u32
}

/// What a rule says of the clients that match it: the value of the trie.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// They may not.
    Deny = 0,
    /// They may.
    Allow = 1,
}
