//! Datagrams in fragments: only the first tells the ports, so it decides for the others.

use bytemuck::{Pod, Zeroable};

use crate::net::{Ip, NetPort};

/// Datagrams of which a decision is known.
pub const MAX_DATAGRAMS: u32 = 16_384;
/// Fragments that wait for the first of their datagram, all datagrams together.
pub const MAX_HELD: u32 = 512;
/// Fragments of one datagram that wait for the first: 65,535 bytes in pieces of 1,500, and some more.
pub const MAX_HELD_OF_DATAGRAM: u32 = 64;
/// Longest frame that waits, in bytes.
pub const MAX_HELD_LENGTH: usize = 2_044;
/// Seconds for which a decision holds: the kernel's own reassembly gives up then (`IP_FRAG_TIME`,
/// `IPV6_FRAG_TIMEOUT` is longer). The first fragment of a later datagram with the same identification
/// replaces it at once.
pub const DATAGRAM_LIFETIME: u32 = 30;

/// What fragments of one datagram have in common (RFC 791, section 3.2; RFC 8200, section 4.5), and by
/// which kind of hook they were seen.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Pod, Zeroable)]
pub struct DatagramKey {
    /// Source address.
    pub source: Ip,
    /// Destination address.
    pub destination: Ip,
    /// Identification, in network order.
    pub identification: u32,
    /// Interface index of the container's link; [`Self::ANY_DEVICE`] for what comes from the devices of the
    /// host, because fragments may come by several, and [`Self::EGRESS`] for what leaves.
    pub link: u32,
    /// IP protocol number in IPv4, 0 in IPv6, where the fragments of one datagram may tell different ones.
    pub protocol: u32,
    padding: u32,
}

impl DatagramKey {
    /// No link: seen where it comes in.
    pub const ANY_DEVICE: u32 = 0;
    /// No link: seen where it leaves.
    pub const EGRESS: u32 = u32::MAX;

    /// The key.
    #[inline(always)]
    pub const fn new(
        source: Ip,
        destination: Ip,
        identification: u32,
        protocol: u32,
        link: u32,
    ) -> Self {
        Self {
            source,
            destination,
            identification,
            link,
            protocol,
            padding: 0,
        }
    }
}

/// What was decided about a datagram.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Nothing: the first fragment has not come yet.
    Waiting = 1,
    /// It is not ours.
    Pass = 2,
    /// Of a flow, to the container.
    ToContainer = 3,
    /// Of a flow, to the client.
    ToClient = 4,
    /// Its first fragment was dropped.
    Drop = 5,
}

impl Decision {
    /// From what lies in the map.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Waiting,
            2 => Self::Pass,
            3 => Self::ToContainer,
            4 => Self::ToClient,
            5 => Self::Drop,
            _ => return None,
        })
    }
}

/// A datagram in fragments.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Datagram {
    /// [`Decision`].
    pub decision: u32,
    /// Second in which it was made.
    pub since: u32,
    /// Number of fragments that wait.
    pub held: u32,
    /// Of the flow's key.
    pub protocol: u32,
    /// Of the flow's key.
    pub client_port: NetPort,
    /// Of the flow's key.
    pub container_port: NetPort,
    padding: u32,
    /// Of the flow's key.
    pub client: Ip,
    /// Of the flow's key.
    pub container: Ip,
}

impl Datagram {
    /// Without a flow, but with room for one. `blank` and `none` are zeros; an eBPF program passes such as
    /// LLVM does not know for zeros, because it would fill the record with a call of `memset`.
    #[inline(always)]
    pub const fn new(decision: Decision, since: u32, held: u32, blank: u32, none: Ip) -> Self {
        Self {
            decision: decision as u32,
            since,
            held,
            protocol: blank,
            client_port: NetPort::new(0),
            container_port: NetPort::new(0),
            padding: 0,
            client: none,
            container: none,
        }
    }
}

/// Place of a fragment that waits.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Pod, Zeroable)]
pub struct HeldKey {
    /// Its datagram.
    pub datagram: DatagramKey,
    /// The how many-th that came, from 0.
    pub place: u32,
    padding: u32,
}

impl HeldKey {
    /// The key.
    #[inline(always)]
    pub const fn new(datagram: DatagramKey, place: u32) -> Self {
        Self {
            datagram,
            place,
            padding: 0,
        }
    }
}

/// A fragment that waits. Only programs read it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// Length of the frame in bytes.
    pub length: u32,
    /// The frame, from the Ethernet header on.
    pub frame: [u8; MAX_HELD_LENGTH],
}

const _: () = {
    assert!(size_of::<DatagramKey>() == 48);
    assert!(size_of::<Datagram>() == 56);
    assert!(size_of::<HeldKey>() == 56);
    assert!(size_of::<Held>() == 2_048);
};
