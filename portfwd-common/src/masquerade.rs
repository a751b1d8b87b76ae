//! Masquerade: connections that containers open through the host, under an address of the host.
//!
//! A masqueraded flow has two entries, its halves: [`Direction::Out`] is keyed as the container's
//! packets are, [`Direction::In`] as the far side's. The in-half is also the claim of the host's port: it
//! is inserted where nothing is, or not at all. Each half says all that the other one does, so either can
//! be made again from the other; two halves are a pair only if their claims are the same number.

use bytemuck::{Pod, Zeroable};

use crate::{
    flow::State,
    net::{Ip, NetPort},
};

/// Halves of flows that are established, two a flow.
pub const MAX_ESTABLISHED: u32 = 131_072;
/// Halves of flows that open, close, or were never answered.
pub const MAX_YOUNG: u32 = 65_536;
/// Subnets that can be masqueraded.
pub const MAX_SUBNETS: u32 = 4_096;

/// Who is masqueraded: an attached container or a subnet. What names an owner that packets do not see
/// does not exist.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Owner {
    /// First transaction that sees it.
    pub since: u64,
    /// First transaction that no longer sees it.
    pub until: u64,
    /// First transaction from which its packets are masqueraded; [`Self::NEVER`] if they are not.
    pub masqueraded: u64,
    /// First transaction from which they are no longer; [`Self::NEVER`] if none says so.
    pub unmasqueraded: u64,
}

impl Owner {
    /// `until`, `masqueraded` and `unmasqueraded` of what does not end or does not begin.
    pub const NEVER: u64 = u64::MAX;

    /// Whether packets see it when `committed` is the last transaction.
    #[inline(always)]
    pub const fn is_visible(&self, committed: u64) -> bool {
        crate::forward::is_visible(self.since, self.until, committed)
    }
    /// Whether what comes from its addresses is masqueraded.
    #[inline(always)]
    pub const fn is_masqueraded(&self, committed: u64) -> bool {
        self.is_visible(committed)
            && crate::forward::is_visible(self.masqueraded, self.unmasqueraded, committed)
    }
    /// The record without what a transaction wrote that never took place, if it was before that.
    pub const fn settled(self, committed: u64) -> Option<Self> {
        if self.since > committed || self.until <= committed {
            return None;
        }
        let masqueraded = match self.is_masqueraded(committed) {
            true => self.masqueraded,
            false => Self::NEVER,
        };
        Some(Self {
            since: self.since,
            until: Self::NEVER,
            masqueraded,
            unmasqueraded: Self::NEVER,
        })
    }
}

/// What every masqueraded packet depends on. Written by the loader alone.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Settings {
    /// Whether anything is masqueraded. Set before the first owner is visible, and cleared after the last
    /// one is not.
    pub active: u64,
    /// Makes ports hard to guess from outside.
    pub secret: u64,
    /// Length of the list of ports that may be given out.
    pub ports: u64,
}

/// Element of the table of ports, which holds two things: at index N whether port N may be given out, and
/// the Nth of those that may.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct PortElement {
    /// A port that may be given out, in host order.
    pub listed: u32,
    /// 1 if the port of this index may be given out: neither ephemeral nor reserved.
    pub free: u32,
}

/// Place of a protocol in the marks of a port: TCP, UDP, ICMP, ICMPv6.
#[inline(always)]
pub const fn plane(protocol: u8) -> u32 {
    match protocol {
        6 => 0,
        17 => 1,
        1 => 2,
        _ => 3,
    }
}

/// Key of the address that a device gives where the forwarding table cannot say.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Pod, Zeroable)]
pub struct DeviceFamily {
    /// Interface index.
    pub device: u32,
    /// As [`crate::net::Address::FAMILY`].
    pub family: u32,
}

/// Which way the packets of a half go.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From the container.
    Out = 0,
    /// To the container.
    In = 1,
}

/// Tuple of a packet before it is translated. An ICMP echo has its identifier in place of the port of the
/// end that asks (RFC 5508, section 3.1), and 0 for the other one.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Pod, Zeroable)]
pub struct Key {
    /// Source address.
    pub source: Ip,
    /// Destination address.
    pub destination: Ip,
    /// Source port.
    pub source_port: NetPort,
    /// Destination port.
    pub destination_port: NetPort,
    /// IP protocol number.
    protocol: u8,
    /// [`Direction`].
    direction: u8,
    padding: u16,
}

impl Key {
    /// The key of a packet.
    #[inline(always)]
    pub const fn new(
        direction: Direction,
        protocol: u8,
        source: (Ip, NetPort),
        destination: (Ip, NetPort),
    ) -> Self {
        Self {
            source: source.0,
            destination: destination.0,
            source_port: source.1,
            destination_port: destination.1,
            protocol,
            direction: direction as u8,
            padding: 0,
        }
    }
    /// IP protocol number.
    #[inline(always)]
    pub const fn protocol(&self) -> u8 {
        self.protocol
    }
    /// Whether it is the key of a half that goes out.
    #[inline(always)]
    pub const fn is_out(&self) -> bool {
        self.direction == Direction::Out as u8
    }
}

/// A half of a flow.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Half {
    /// The container's address; [`Ip::NONE`] in an in-half that holds its port for nobody, the host's in one
    /// that holds it for the host.
    pub container: Ip,
    /// The host's address, chosen when the flow opened and kept as long as it lives.
    pub host: Ip,
    /// The container's port.
    pub container_port: NetPort,
    /// The host's port.
    pub host_port: NetPort,
    /// ID of the [`Owner`]; 0 in an in-half that only holds its port.
    pub owner: u32,
    /// The same number in both halves, and in no others: never 0.
    pub claim: u32,
    /// Second of the last packet of either direction, give or take one.
    pub last_seen: u32,
    /// Second of the first packet.
    pub created: u32,
    /// As [`crate::flow::Flow::client_ack`]; the container is the client.
    pub client_ack: u32,
    /// [`State`].
    pub state: u32,
    padding: u32,
}

impl Half {
    /// A half without a life of its own yet.
    #[inline(always)]
    pub const fn new(container: (Ip, NetPort), host: (Ip, NetPort), owner: u32, now: u32) -> Self {
        Self {
            container: container.0,
            host: host.0,
            container_port: container.1,
            host_port: host.1,
            owner,
            claim: 0,
            last_seen: now,
            created: now,
            client_ack: 0,
            state: 0,
            padding: 0,
        }
    }
    /// Whether packets keep their addresses: the flow was opened from outside, toward the container's own.
    #[inline(always)]
    pub const fn is_noted(&self) -> bool {
        let (container, host) = (self.container.halves(), self.host.halves());
        container[0] == host[0]
            && container[1] == host[1]
            && self.container_port.wire() == self.host_port.wire()
    }
    /// The key of the other half, given this one's.
    #[inline(always)]
    pub const fn counterpart(&self, key: &Key) -> Key {
        if key.is_out() {
            Key::new(
                Direction::In,
                key.protocol,
                (key.destination, key.destination_port),
                (self.host, self.host_port),
            )
        } else {
            Key::new(
                Direction::Out,
                key.protocol,
                (self.container, self.container_port),
                (key.source, key.source_port),
            )
        }
    }
    /// Whether this is a half of the flow of packets with this key. An entry that was found under the key may
    /// be another flow's by the time it is read.
    #[inline(always)]
    pub fn is_of(&self, key: &Key) -> bool {
        let (own, seen) = match key.is_out() {
            true => (
                (self.container, self.container_port),
                (key.source, key.source_port),
            ),
            false => (
                (self.host, self.host_port),
                (key.destination, key.destination_port),
            ),
        };
        own.0.halves() == seen.0.halves() && own.1.wire() == seen.1.wire()
    }
    /// What is left of an in-half whose owner is gone: nothing leads anywhere, but nobody gets the port
    /// while the far side may be in TIME_WAIT (RFC 5382 allows 4 minutes), or answer its next user with
    /// what it has of the last one. None if there is nothing to wait for.
    pub const fn held(self, protocol: u8, now: u32) -> Option<Self> {
        if protocol != 6 {
            return None;
        }
        let already = self.container.is_unspecified();
        Some(Self {
            container: Ip::NONE,
            container_port: NetPort::new(0),
            owner: 0,
            state: State::Closed as u32,
            last_seen: if already { self.last_seen } else { now },
            ..self
        })
    }
}

/// Datagrams in fragments of which it is known whose they are.
pub const MAX_FOLLOWED: u32 = 4_096;

/// What the first fragment of a datagram says of the others.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Followed {
    /// Key of its flow's half.
    pub key: Key,
    /// Second in which it came.
    pub since: u32,
    padding: u32,
}

impl Followed {
    /// The record.
    #[inline(always)]
    pub const fn new(key: Key, since: u32) -> Self {
        Self {
            key,
            since,
            padding: 0,
        }
    }
}

/// Where the search for a port begins: the same for the same end of a container, so that it has the same
/// port toward everybody while that is free (as RFC 4787, REQ-1, wants of a mapping).
#[inline(always)]
pub const fn first_candidate(container: Ip, port: NetPort, protocol: u8, secret: u64) -> u32 {
    let [high, low] = container.halves();
    // The finalizer of a 64-bit hash (multiplications and shifts), over each word in turn.
    let mut hash = secret ^ (port.wire() as u64) << 8 ^ protocol as u64;
    hash = mixed(hash ^ high);
    hash = mixed(hash ^ low);
    (hash >> 32) as u32
}

#[inline(always)]
const fn mixed(mut word: u64) -> u64 {
    word ^= word >> 32;
    word = word.wrapping_mul(0xd6e8_feb8_6659_fd93);
    word ^= word >> 32;
    word = word.wrapping_mul(0xd6e8_feb8_6659_fd93);
    word ^ word >> 32
}

/// Place in a list of `length` of the candidate after `tried` others. 0 if the list is empty.
#[inline(always)]
pub const fn candidate(first: u32, tried: u32, length: u32) -> u32 {
    match (first as u64 + tried as u64).checked_rem(length as u64) {
        Some(place) => place as u32,
        None => 0,
    }
}

const _: () = {
    assert!(size_of::<Owner>() == 32);
    assert!(size_of::<Settings>() == 24);
    assert!(size_of::<PortElement>() == 8);
    assert!(size_of::<DeviceFamily>() == 8);
    assert!(size_of::<Key>() == 40);
    assert!(size_of::<Half>() == 64);
    assert!(size_of::<Followed>() == 48);
};

#[cfg(feature = "user")]
mod user {
    // SAFETY: each is `bytemuck::Pod`: plain bytes without padding.
    unsafe impl aya::Pod for super::Owner {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Settings {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::PortElement {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::DeviceFamily {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Key {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Half {}
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn end() -> impl Strategy<Value = (Ip, NetPort)> {
        (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| (Ip::from(ip), NetPort::new(port)))
    }

    proptest! {
        #[test]
        fn each_half_gives_the_key_of_the_other(
            container in end(), host in end(), far in end(), protocol in prop_oneof![Just(6u8), Just(17), Just(1)],
        ) {
            let half = Half::new(container, host, 7, 100);
            let out = Key::new(Direction::Out, protocol, container, far);
            let back = half.counterpart(&out);
            prop_assert_eq!(back, Key::new(Direction::In, protocol, far, host));
            prop_assert_eq!(half.counterpart(&back), out);
            prop_assert!(out.is_out() && !back.is_out());
            prop_assert!(half.is_of(&out) && half.is_of(&back));
        }

        #[test]
        fn a_half_of_another_flow_is_told_apart(container in end(), host in end(), other in end(), far in end()) {
            let half = Half::new(container, host, 7, 100);
            let is_of = |direction, from, to| half.is_of(&Key::new(direction, 6, from, to));
            prop_assert_eq!(is_of(Direction::Out, other, far), other == container);
            prop_assert_eq!(is_of(Direction::In, far, other), other == host);
        }

        #[test]
        fn a_search_meets_every_port_of_the_list_once(
            container in end(), length in 1u32..3_000, secret: u64,
        ) {
            let first = first_candidate(container.0, container.1, 6, secret);
            let mut met: Vec<u32> = (0..length).map(|tried| candidate(first, tried, length)).collect();
            met.sort_unstable();
            prop_assert!(met.into_iter().eq(0..length));
        }

        #[test]
        fn a_search_in_an_empty_list_does_not_divide(first: u32, tried: u32) {
            prop_assert_eq!(candidate(first, tried, 0), 0);
        }

        #[test]
        fn what_was_committed_stays_and_what_was_not_never_was(
            committed in 5u64..100, since in 1u64..200, withdrawn in 1u64..200, asked in 1u64..200, ended in 1u64..200,
        ) {
            let until = if withdrawn < since { Owner::NEVER } else { withdrawn };
            let unmasqueraded = if ended < asked { Owner::NEVER } else { ended };
            let owner = Owner { since, until, masqueraded: asked, unmasqueraded };
            match owner.settled(committed) {
                None => prop_assert!(!owner.is_visible(committed)),
                Some(settled) => {
                    prop_assert!(owner.is_visible(committed) && settled.is_visible(u64::MAX - 1));
                    let before = owner.is_masqueraded(committed);
                    prop_assert_eq!(before, settled.is_masqueraded(committed));
                    // Neither by the next transaction, which has the number of the one that failed.
                    prop_assert_eq!(before, settled.is_masqueraded(committed + 1));
                }
            }
        }
    }

    #[test]
    fn searches_of_different_ends_begin_at_different_places() {
        let container = Ip::from("10.88.0.2".parse::<IpAddr>().unwrap());
        let neighbour = Ip::from("10.88.0.3".parse::<IpAddr>().unwrap());
        let first = |ip, port, secret| first_candidate(ip, NetPort::new(port), 6, secret);
        let begin = first(container, 40_000, 1);
        assert_eq!(begin, first(container, 40_000, 1));
        for other in [
            first(container, 40_001, 1),
            first(neighbour, 40_000, 1),
            first(container, 40_000, 2),
        ] {
            assert_ne!(begin, other);
        }
    }

    #[test]
    fn the_ports_of_one_container_begin_all_over_the_list() {
        let container = Ip::from("10.88.0.2".parse::<IpAddr>().unwrap());
        let mut hit = [0u32; 64];
        for port in 0..=u16::MAX {
            let first = first_candidate(container, NetPort::new(port), 17, 0x5eed);
            hit[candidate(first, 0, 64) as usize] += 1;
        }
        // 1,024 each on average.
        assert!(
            hit.iter().all(|count| (850..1_200).contains(count)),
            "{hit:?}"
        );
    }

    #[test]
    fn the_port_of_a_container_that_is_gone_is_held_for_tcp_and_leads_nowhere() {
        let ip = |text: &str| Ip::from(text.parse::<IpAddr>().unwrap());
        let mut half = Half::new(
            (ip("10.88.0.2"), NetPort::new(40_000)),
            (ip("192.0.2.1"), NetPort::new(2_000)),
            9,
            100,
        );
        half.state = State::Established as u32;
        let held = half.held(6, 500).unwrap();
        assert!(held.container.is_unspecified() && held.owner == 0 && held.last_seen == 500);
        assert_eq!((held.host, held.host_port), (half.host, half.host_port));
        assert_eq!(State::from_number(held.state), Some(State::Closed));
        assert_eq!(
            held.held(6, 600).unwrap().last_seen,
            500,
            "held once, not for ever"
        );
        assert!(half.held(17, 500).is_none() && half.held(1, 500).is_none());
    }
}
