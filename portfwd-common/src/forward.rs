//! Published ports: who owns a host port and where it leads.
//!
//! A packet finds a [`PortSlot`] by its destination port, the slot names a [`Forward`] by index and
//! generation, and the forward counts only while it is visible at the transaction that the
//! [`Journal`] last committed. One store to [`Journal::committed`] therefore publishes or withdraws
//! any number of forwards at one instant; whatever an unfinished transaction wrote stays invisible.

use bytemuck::{Pod, Zeroable};

use crate::{
    flow::Lifetimes,
    net::{Ip, NetPort, Protocol},
    verdict::Reason,
};

/// Length of the table of forwards. Index 0 is never used, so that an all-zero slot means nothing.
pub const MAX_FORWARDS: u32 = 65_536;
/// Planes of the port table: three protocols in each of two families.
pub const PLANES: u32 = 6;
/// Length of the port table.
pub const PORT_SLOTS: u32 = PLANES << 16;

/// Index into the port table. `family` as in [`crate::net::Address::FAMILY`].
#[inline(always)]
pub const fn port_index(family: u32, protocol: Protocol, port: NetPort) -> u32 {
    (family * 3 + protocol.plane()) << 16 | port.get() as u32
}

/// Ports of a block. Of a range that is bound to one host address, the table of those has one element for each
/// block that the range covers whole, and else one for each port.
pub const BLOCK: u16 = 256;

/// What one port of one protocol and family is to the datapath. Eight bytes, always stored as one.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct PortSlot {
    /// Bits 0 to 23: index of the forward that owns the port on every host address, 0 for none.
    /// Bits 29 to 31: [`Self::BY_BLOCK`], [`Self::CONTAINER_SIDE`], [`Self::BY_ADDRESS`].
    bits: u32,
    /// Generation of that forward; with another one in the record the slot is void.
    pub generation: u32,
}

impl PortSlot {
    /// Some forward of a single host address has this port: look in `address_ports` as well.
    pub const BY_ADDRESS: u32 = 1 << 31;
    /// Some forward of a single host address has the whole [`BLOCK`] of this port: look for that, if there is nothing
    /// of the port itself.
    pub const BY_BLOCK: u32 = 1 << 29;
    /// Some forward leads to this port of a container: a packet from this port can be a reply.
    pub const CONTAINER_SIDE: u32 = 1 << 30;
    const INDEX: u32 = (1 << 24) - 1;

    /// A slot owned by `index` (0: nobody) with `flags` out of the constants above.
    #[inline(always)]
    pub const fn new(index: u32, generation: u32, flags: u32) -> Self {
        Self {
            bits: index & Self::INDEX | flags & !Self::INDEX,
            generation,
        }
    }
    /// As the eight bytes that are stored at once.
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self {
            bits: bits as u32,
            generation: (bits >> 32) as u32,
        }
    }
    /// The other way.
    #[inline(always)]
    pub const fn to_bits(self) -> u64 {
        self.bits as u64 | (self.generation as u64) << 32
    }
    /// Index of the owner, 0 for none.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self.bits & Self::INDEX
    }
    /// Whether no forward has anything to do with the port.
    #[inline(always)]
    pub const fn is_empty(self) -> bool {
        self.bits == 0
    }
    /// Whether one of `flags` is set.
    #[inline(always)]
    pub const fn has(self, flags: u32) -> bool {
        self.bits & flags != 0
    }
    /// Whether some forward publishes the port, on whichever address.
    #[inline(always)]
    pub const fn is_published(self) -> bool {
        self.index() != 0 || self.has(Self::BY_ADDRESS | Self::BY_BLOCK)
    }
    /// All flags of the slot.
    #[inline(always)]
    pub const fn flags(self) -> u32 {
        self.bits & !Self::INDEX
    }
}

/// Key of a forward that is bound to one host address, at one port or at a [`BLOCK`] of ports.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Pod, Zeroable)]
pub struct AddressPort {
    /// Host address.
    pub address: Ip,
    /// Host port; the first one of a block.
    pub port: NetPort,
    /// IP protocol number.
    pub protocol: u16,
    /// Number of ports: 1 or [`BLOCK`].
    pub span: u32,
}

impl AddressPort {
    /// The key of a single port.
    #[inline(always)]
    pub const fn new(address: Ip, port: NetPort, protocol: Protocol) -> Self {
        Self {
            address,
            port,
            protocol: protocol.number() as u16,
            span: 1,
        }
    }
    /// The key of the block that the port of this one lies in.
    #[inline(always)]
    pub const fn block(self) -> Self {
        Self {
            port: NetPort::new(self.port.get() & !(BLOCK - 1)),
            span: BLOCK as u32,
            ..self
        }
    }
    /// Its ports.
    pub fn ports(&self) -> impl Iterator<Item = NetPort> + use<> {
        ports(self.port, self.span)
    }
    /// The flag that the slots of its ports have.
    pub const fn flag(&self) -> u32 {
        match self.span {
            1 => PortSlot::BY_ADDRESS,
            _ => PortSlot::BY_BLOCK,
        }
    }
    /// Whether it stands for `port`.
    #[inline(always)]
    pub const fn has(&self, port: NetPort) -> bool {
        (port.get().wrapping_sub(self.port.get()) as u32) < self.span
    }
}

/// `count` ports from `first` on, or from 0 on again after the last.
fn ports(first: NetPort, count: u32) -> impl Iterator<Item = NetPort> {
    (0..count).map(move |offset| NetPort::new(first.get().wrapping_add(offset as u16)))
}

/// How packets get to the container and back.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivery {
    /// `bpf_redirect_peer` through the host-side link in, `bpf_redirect_neigh` out.
    Redirect = 0,
    /// Translated and handed to the stack; replies are translated back where they leave the host.
    Stack = 1,
    /// Of a flow only: a container that calls itself through its own host port. Both directions go back
    /// through the link that they came by, under the host's address.
    Hairpin = 2,
}

/// One published port or range of ports, in one family.
///
/// It opens connections from [`Self::since`] to [`Self::until`]. Connections that are open then end with it, or,
/// if another forward follows it, may live on: it drains until [`Self::ended`].
///
/// Written by the loader alone. The first cache line is what packets of established flows need.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Forward {
    /// First transaction that sees it.
    pub since: u64,
    /// First transaction in which it opens no connection any more; [`Self::FOREVER`] while nobody withdraws it.
    pub until: u64,
    /// First transaction in which no flow lives that it opened: the same, or a later one; 0 in a free record.
    pub ended: u64,
    /// Address of the container.
    pub target: Ip,
    /// Changes each time the record is taken anew.
    pub generation: u32,
    /// [`crate::host::Attachment::id`] of the owner.
    pub attachment: u32,
    /// Interface index of the container's host-side link; 0 with [`Delivery::Stack`].
    pub link: u32,
    /// First host port.
    pub host_port: NetPort,
    /// First container port.
    pub target_port: NetPort,
    /// Number of ports.
    pub count: u16,
    /// [`Delivery`].
    pub delivery: u8,
    /// IP protocol number.
    pub protocol: u8,
    /// Out of the constants below.
    pub flags: u8,
    padding: [u8; 3],
    /// Host address it is bound to; `0.0.0.0` or `::` for all.
    pub host: Ip,
    /// The forward that it follows at its ports, or at some of them, as their slots had it; stored at once.
    pub former: PortSlot,
    /// Second on `CLOCK_MONOTONIC` from which it drains no more; [`Self::FOREVER`] if it may take as long as its
    /// flows do.
    pub drained: u64,
    /// Number of the policy that says who may open connections ([`crate::policy`]), 0 if everybody may.
    pub policy: u32,
    reserved: [u32; 7],
}

impl Forward {
    /// Of [`Self::until`], [`Self::ended`] and [`Self::drained`]: never.
    pub const FOREVER: u64 = u64::MAX;
    /// Of [`Self::flags`]: the service may listen on the container's loopback address alone.
    pub const LOOPBACK: u8 = 1;
    /// Of [`Self::flags`]: whom no rule of the policy names may not open connections.
    pub const DENIES_OTHERS: u8 = 2;
    /// Of [`Self::flags`]: who may not gets no answer.
    pub const DENIES_SILENTLY: u8 = 4;
    /// Of [`Self::flags`]: with the forward of the ports before it is one range, in pieces because each piece has
    /// followed a forward of its own.
    pub const CONTINUES: u8 = 8;
    /// A free record.
    pub const FREE: Self = Self {
        since: 0,
        until: 0,
        ended: 0,
        target: Ip::NONE,
        generation: 0,
        attachment: 0,
        link: 0,
        host_port: NetPort::new(0),
        target_port: NetPort::new(0),
        count: 0,
        delivery: 0,
        protocol: 0,
        flags: 0,
        padding: [0; 3],
        host: Ip::NONE,
        former: PortSlot::from_bits(0),
        drained: 0,
        policy: 0,
        reserved: [0; 7],
    };

    /// The container port that `host_port` leads to, given that it lies in the range.
    #[inline(always)]
    pub const fn target_port_of(&self, host_port: NetPort) -> NetPort {
        let offset = host_port.get().wrapping_sub(self.host_port.get());
        NetPort::new(self.target_port.get().wrapping_add(offset))
    }
    /// Whether the host port is one of its own.
    #[inline(always)]
    pub const fn has(&self, host_port: NetPort) -> bool {
        host_port.get().wrapping_sub(self.host_port.get()) < self.count
    }
    /// Whether it has the whole [`BLOCK`] in which `port` lies.
    pub const fn has_block_of(&self, port: NetPort) -> bool {
        let first = port.get() & !(BLOCK - 1);
        self.has(NetPort::new(first)) && self.has(NetPort::new(first + (BLOCK - 1)))
    }
    /// The host ports.
    pub fn host_ports(&self) -> impl Iterator<Item = NetPort> + use<> {
        ports(self.host_port, self.count.into())
    }
    /// Whether `key` is one of those that [`Self::address_ports`] gives, whatever its address and protocol.
    pub const fn has_key(&self, key: &AddressPort) -> bool {
        self.has(key.port) && self.has_block_of(key.port) == (key.span == BLOCK as u32)
    }
    /// The keys by which one that is bound to a single host address is found.
    pub fn address_ports(&self, protocol: Protocol) -> impl Iterator<Item = AddressPort> + use<> {
        let forward = *self;
        let end = u32::from(self.host_port.get()) + u32::from(self.count);
        let mut next = u32::from(self.host_port.get());
        core::iter::from_fn(move || {
            let port = NetPort::new(u16::try_from(next).ok().filter(|_| next < end)?);
            let key = AddressPort::new(forward.host, port, protocol);
            let key = match forward.has_block_of(port) {
                true => key.block(),
                false => key,
            };
            next += key.span;
            Some(key)
        })
    }
    /// Whether the service may listen on the container's loopback address alone.
    #[inline(always)]
    pub const fn serves_loopback(&self) -> bool {
        self.flags & Self::LOOPBACK != 0
    }
    /// Whether it opens connections when `committed` is the last transaction.
    #[inline(always)]
    pub const fn is_visible(&self, committed: u64) -> bool {
        is_visible(self.since, self.until, committed)
    }
    /// Whether it opens none, but those that it opened may live, in second `now`.
    #[inline(always)]
    pub const fn is_draining(&self, committed: u64, now: u64) -> bool {
        is_visible(self.until, self.ended, committed) && now < self.drained
    }
    /// Whether the record describes nothing that any later transaction could see.
    #[inline(always)]
    pub const fn is_free(&self, committed: u64) -> bool {
        self.ended <= committed
    }
}

/// Seconds for which a claim holds: longer than a look at the host's sockets takes, and no longer than people
/// wait who wonder why a port is still taken after a command was killed.
pub const CLAIM_LIFETIME: u32 = 10;

/// How many forwards back, of those that drain, a connection is looked for: of more that follow each other within the
/// time that the first one drains, the oldest connections end.
pub const MAX_FORMERS: u32 = 8;

/// The rule behind [`Forward::is_visible`].
#[inline(always)]
pub const fn is_visible(since: u64, until: u64, committed: u64) -> bool {
    since <= committed && committed < until
}

/// The instance's transactions. Written by the loader alone, under its lock.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Journal {
    /// Number of the last transaction that took place: the commit point.
    pub committed: u64,
    /// Not 0 while a transaction writes: its number. Found by the next command after a crash.
    pub open: u64,
    /// When the open transaction claimed what it will publish, for [`CLAIM_LIFETIME`]: processes of the host
    /// cannot bind it any more. Seconds on `CLOCK_MONOTONIC`, 0 for not yet.
    pub claimed: u64,
    /// One more than the highest index of a forward ever used.
    pub forwards_used: u32,
    /// ID that was given to an attachment last.
    pub last_attachment: u32,
    /// Cookie of the namespace that plays the host.
    pub host_netns: u64,
    /// Device and inode of that namespace's file.
    pub host_netns_file: [u64; 2],
    /// How long flows live.
    pub lifetimes: Lifetimes,
    /// Not 0 if each flow counts its bytes. All packets of a flow write to its entry then, those of both directions.
    pub flow_bytes: u64,
}

/// Traffic of one forward, as one CPU counted it. `rx` is client to container.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable, PartialEq, Eq)]
pub struct Counters {
    /// Packets to the container; a GSO packet counts as one.
    pub rx_packets: u64,
    /// Bytes to the container, from the IP header on.
    pub rx_bytes: u64,
    /// Packets from the container.
    pub tx_packets: u64,
    /// Bytes from the container, from the IP header on.
    pub tx_bytes: u64,
    /// Flows opened, those of the socket programs included.
    pub connections: u64,
    /// Packets dropped on account of this forward.
    pub drops: u64,
    /// [`Self::drop`] of the last of them.
    pub last_drop: u64,
}

impl Counters {
    /// When a packet was dropped, a second on `CLOCK_MONOTONIC`, and the number of the [`Reason`]. Of two, the later one is
    /// the greater.
    #[inline(always)]
    pub const fn drop(second: u32, reason: u32) -> u64 {
        (second as u64) << 32 | reason as u64
    }
    /// Second and reason of the last drop, if there was one.
    pub fn last_drop(&self) -> Option<(u32, Reason)> {
        let second = (self.last_drop >> 32) as u32;
        let reason = Reason::from_number(self.last_drop as u32)?;
        Some((second, reason))
    }
}

const _: () = {
    assert!(size_of::<PortSlot>() == 8);
    assert!(size_of::<AddressPort>() == 24);
    assert!(size_of::<Forward>() == 128);
    assert!(core::mem::offset_of!(Forward, host) == 64);
    assert!(size_of::<Journal>() == 80);
    assert!(size_of::<Counters>() == 56);
};

#[cfg(feature = "user")]
mod user {
    // SAFETY: each is `bytemuck::Pod`: plain bytes without padding.
    unsafe impl aya::Pod for super::PortSlot {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::AddressPort {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Forward {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Journal {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Counters {}
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_slot_survives_the_way_through_its_bits(index in 0u32..1 << 24, generation: u32, flags in 0u32..8) {
            let slot = PortSlot::new(index, generation, flags << 29);
            let back = PortSlot::from_bits(slot.to_bits());
            prop_assert_eq!(back, slot);
            prop_assert_eq!((back.index(), back.generation, back.flags()), (index, generation, flags << 29));
        }

        #[test]
        fn every_port_of_a_range_leads_to_its_neighbour(first in 1u16..60000, target in 1u16..60000, offset in 0u16..5000) {
            let forward = Forward {
                host_port: NetPort::new(first),
                target_port: NetPort::new(target),
                count: 5000,
                ..Forward::FREE
            };
            let host = NetPort::new(first + offset);
            prop_assert_eq!(forward.target_port_of(host).get(), target + offset);
        }

        #[test]
        fn each_port_of_a_range_has_one_key_and_no_other_port_has(first in 1u16.., count in 1u16.., other: u16) {
            let count = count.min(u16::MAX - first + 1);
            let forward = Forward { host_port: NetPort::new(first), count, ..Forward::FREE };
            let keys: std::vec::Vec<AddressPort> = forward.address_ports(Protocol::Udp).collect();
            prop_assert!(keys.len() < 2 * usize::from(BLOCK) + 256, "{} keys", keys.len());
            prop_assert_eq!(keys.iter().map(|key| key.span).sum::<u32>(), u32::from(count));
            let of = |port: u16| keys.iter().filter(|key| key.has(NetPort::new(port))).count();
            for port in [first, first + (count - 1), first + count / 2, other, first - 1] {
                prop_assert_eq!(of(port), usize::from(forward.has(NetPort::new(port))), "port {}", port);
            }
            for key in keys.iter().filter(|key| key.span != 1) {
                let inside = AddressPort::new(key.address, NetPort::new(key.port.get() + 77), Protocol::Udp);
                prop_assert_eq!(inside.block(), *key);
            }
        }

        #[test]
        fn ports_of_different_protocols_families_or_numbers_have_different_slots(
            a in (0u32..2, 0usize..3, any::<u16>()), b in (0u32..2, 0usize..3, any::<u16>()),
        ) {
            let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
            let index = |(family, protocol, port): (u32, usize, u16)| port_index(family, protocols[protocol], NetPort::new(port));
            prop_assert_eq!(index(a) == index(b), a == b);
            prop_assert!(index(a) < PORT_SLOTS);
        }
    }

    #[test]
    fn a_transaction_is_seen_from_its_commit_on_and_not_before() {
        let published = Forward {
            since: 5,
            until: Forward::FOREVER,
            ended: Forward::FOREVER,
            ..Forward::FREE
        };
        assert!(!published.is_visible(4) && published.is_visible(5) && published.is_visible(6));
        let withdrawn = Forward {
            until: 7,
            ended: 7,
            ..published
        };
        assert!(withdrawn.is_visible(6) && !withdrawn.is_visible(7));
        assert!(!withdrawn.is_free(6) && withdrawn.is_free(7));
        let draining = Forward {
            ended: 9,
            drained: 100,
            ..withdrawn
        };
        let drains = |committed, now| draining.is_draining(committed, now);
        assert!(!drains(6, 99) && drains(7, 99) && drains(8, 99));
        assert!(!drains(8, 100) && !drains(9, 99));
        assert!(!draining.is_free(8) && draining.is_free(9));
        assert!(!Forward::FREE.is_visible(0) && Forward::FREE.is_free(0));
    }
}
