//! Whose packets are masqueraded.

use aya_ebpf::maps::lpm_trie::Key as Prefix;
use portfwd_common::{masquerade::Owner, net::Ip};

use crate::maps::{CONTAINER_IPS, JOURNAL, MASQUERADE, OWNERS, SUBNETS};

/// A whole address as a key of the trie; aligned, because a packed key on the stack would be written byte
/// by byte.
#[repr(C, align(8))]
struct Whole(Prefix<[u32; 4]>);

/// Whether anything is masqueraded at all.
#[inline(always)]
pub fn is_active() -> bool {
    // SAFETY: a word of a map that the loader stores.
    MASQUERADE.get_ptr(0).is_some_and(|settings| unsafe {
        core::ptr::read_volatile(&raw const (*settings).active) != 0
    })
}

#[inline(always)]
fn committed() -> u64 {
    // SAFETY: a word of a map that the loader stores.
    JOURNAL.get_ptr(0).map_or(0, |journal| unsafe {
        core::ptr::read_volatile(&raw const (*journal).committed)
    })
}

#[inline(always)]
fn record(id: u32) -> Option<&'static Owner> {
    // SAFETY: the loader replaces elements whole.
    unsafe { OWNERS.get(&id) }
}

/// Whether the flows of this owner count.
#[inline(always)]
pub fn is_masqueraded(id: u32) -> bool {
    record(id).is_some_and(|owner| owner.is_masqueraded(committed()))
}

/// The owner by which packets from this address are masqueraded.
#[inline(always)]
pub fn of_source(address: &Ip) -> Option<u32> {
    // SAFETY: the loader replaces elements whole.
    let container = unsafe { CONTAINER_IPS.get(address) }.copied();
    container
        .filter(|id| is_masqueraded(*id))
        .or_else(|| of_subnet(address))
}

#[inline(always)]
fn of_subnet(address: &Ip) -> Option<u32> {
    let [high, low] = address.halves();
    let words = [
        high as u32,
        (high >> 32) as u32,
        low as u32,
        (low >> 32) as u32,
    ];
    let whole = Whole(Prefix::new(128, words));
    SUBNETS
        .get(&whole.0)
        .copied()
        .filter(|id| is_masqueraded(*id))
}

/// Whether packets to this address stay as they are: to an attached container, or into a masqueraded
/// subnet.
#[inline(always)]
pub fn is_inside(address: &Ip) -> bool {
    // SAFETY: the loader replaces elements whole.
    let container = unsafe { CONTAINER_IPS.get(address) }.copied();
    let is_attached = container
        .and_then(record)
        .is_some_and(|owner| owner.is_visible(committed()));
    is_attached || of_subnet(address).is_some()
}
