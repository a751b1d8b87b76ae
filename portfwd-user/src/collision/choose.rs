//! Which free port a container gets when it does not say.

use portfwd_common::net::Protocol;

use super::PortSet;
use crate::label::Label;
use crate::spec::PortRange;

/// Where chosen ports come from, in this order: above and below what the kernel itself hands out by
/// default (`ip_local_port_range`, 32768-60999), as far as there is room.
pub const CHOSEN: [(u16, u16); 2] = [(61_000, 65_535), (49_153, 60_999)];

/// As many free host ports in a row as `container` has. Where the search starts follows from the
/// arguments, so that a container gets the same ports again while they are free.
#[must_use]
pub fn choose(
    owner: &Label,
    protocol: Protocol,
    container: PortRange,
    taken: &PortSet,
) -> Option<PortRange> {
    let count = container.count();
    let hash = hash(owner, protocol, container.first());
    CHOSEN
        .iter()
        .filter_map(|(first, last)| PortRange::new(*first, *last))
        .filter(|from| from.count() >= count)
        .find_map(|from| {
            let starts = u64::from(from.count() - count) + 1;
            let offset = u16::try_from(hash % starts).unwrap_or(0);
            let tail = PortRange::new(from.first() + offset, from.last())?;
            first_gap(tail, count, taken).or_else(|| first_gap(from, count, taken))
        })
}

/// The lowest free port of a pool.
#[must_use]
pub fn first_free(pool: PortRange, taken: &PortSet) -> Option<PortRange> {
    first_gap(pool, 1, taken)
}

/// The first `count` free ports in a row within `range`.
fn first_gap(range: PortRange, count: u16, taken: &PortSet) -> Option<PortRange> {
    let mut free = 0;
    for port in range.ports() {
        free = if taken.contains(port) { 0 } else { free + 1 };
        if free == count {
            return PortRange::new(port - (count - 1), port);
        }
    }
    None
}

/// FNV-1a, 64 bits: the standard library's hasher may change from one release to the next.
fn hash(owner: &Label, protocol: Protocol, container_port: u16) -> u64 {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let [high, low] = container_port.to_be_bytes();
    owner
        .as_str()
        .bytes()
        .chain([0, protocol.number(), high, low])
        .fold(OFFSET_BASIS, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(PRIME)
        })
}
