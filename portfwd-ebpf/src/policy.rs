//! Which clients may open connections through a forward.

use aya_ebpf::maps::lpm_trie::Key as Prefix;
use portfwd_common::{
    forward::Forward,
    net::Ip,
    policy::{POLICY_BITS, Rule, number_of_family},
    verdict::Reason,
};

use crate::{forward::Published, maps::POLICIES};

/// A client as a key of the trie.
#[repr(C, align(8))]
struct Client(Prefix<[u32; 5]>);

/// Whether the client with that address may open a connection, or why not.
#[inline(always)]
pub fn admits(published: &Published, client: Ip) -> Result<(), Reason> {
    let record = published.record;
    let (policy, flags) = (record.policy, record.flags);
    if policy == 0 {
        return Ok(());
    }
    let [high, low] = client.halves();
    let data = [
        number_of_family(policy, client.is_v4()),
        high as u32,
        (high >> 32) as u32,
        low as u32,
        (low >> 32) as u32,
    ];
    let client = Client(Prefix::new(POLICY_BITS + 128, data));
    let may = match POLICIES.get(&client.0) {
        Some(rule) => *rule == Rule::Allow as u32,
        None => flags & Forward::DENIES_OTHERS == 0,
    };
    if may && published.is_unchanged() {
        Ok(())
    } else if flags & Forward::DENIES_SILENTLY == 0 {
        Err(Reason::Denied)
    } else {
        Err(Reason::DeniedSilently)
    }
}
