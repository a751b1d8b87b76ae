//! Flows: what connects the two directions of a translated connection, and how long it lives.
//!
//! There is one entry a flow, keyed as the container sees it. Requests compute the key after the port
//! lookup, replies carry it: no pair can be half written or half evicted.
//!
//! A flow is young until both ends have proven that they want it, and again once it is closed. Young
//! flows have a table of their own, so that neither a flood of openings nor any number of finished
//! connections pushes out what lives. So have UDP streams: of a connection a client has proven by a number
//! that it sees it, of a stream nobody can.

mod seal;
mod state;

use bytemuck::{Pod, Zeroable};

pub use state::{ASSURED_AFTER, Lifetimes, Side, State, TcpFlags, is_alive};

use crate::net::{Address, NetPort, V4, V6};

/// Entries of the table of settled connections of each family.
pub const MAX_FLOWS: u32 = 131_072;
/// Entries of the table of UDP streams of each family.
pub const MAX_STREAMS: u32 = 131_072;
/// Entries of the table of young flows of each family.
pub const MAX_YOUNG_FLOWS: u32 = 65_536;
/// Entries of the table of clients' ports that were changed, both families together.
pub const MAX_SHIFTS: u32 = 65_536;

/// A flow as the container sees it.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Zeroable)]
pub struct FlowKey<A> {
    /// The client.
    pub client: A,
    /// The container.
    pub container: A,
    /// The client's port.
    pub client_port: NetPort,
    /// The container's port.
    pub container_port: NetPort,
    /// IP protocol number; wide, so that the key has no padding.
    pub protocol: u32,
}

impl<A: Address> FlowKey<A> {
    /// The key.
    #[inline(always)]
    pub fn new(
        client: A,
        client_port: NetPort,
        container: A,
        container_port: NetPort,
        protocol: u8,
    ) -> Self {
        Self {
            client,
            container,
            client_port,
            container_port,
            protocol: protocol as u32,
        }
    }
}

/// What replies get, and where they leave the host, as the FIB said when it was last asked. A part of its own,
/// because all of it is read at once (see [`Flow::sealed`]).
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Zeroable)]
pub struct Reply<A> {
    /// Port that the client sent to.
    pub host_port: NetPort,
    /// Port that the client sends from; the key has another one if that was taken (see [`Shift`]).
    pub client_port: NetPort,
    /// Interface index.
    pub device: u32,
    /// Largest packet that the device takes, in bytes from the IP header on.
    pub mtu: u32,
    /// 1 if `next_hop` is set: else the kernel looks the route up itself.
    pub has_next_hop: u32,
    /// Neighbour that the packet goes to, by `device`; before the FIB was asked, and for ever in a flow of
    /// a container with itself ([`crate::forward::Delivery::Hairpin`]), the client's own address.
    pub next_hop: A,
    /// Address that the client sent to.
    pub host: A,
}

/// A translated connection.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Zeroable)]
pub struct Flow<A> {
    /// What replies get.
    pub reply: Reply<A>,
    /// [`Flow::sealed`], since the FIB was asked.
    pub seal: u64,
    /// Last transaction when the FIB was asked: as long as it is the last, the forward is published.
    pub transaction: u64,
    /// Second in which the FIB was asked.
    pub refreshed: u32,
    /// [`State`].
    pub state: u32,
    /// [`crate::forward::Delivery`].
    pub delivery: u32,
    /// Interface index of the container's host-side link.
    pub link: u32,
    /// Index of the forward that opened it.
    pub forward: u32,
    /// Generation of that forward.
    pub generation: u32,
    /// Second of the last packet, on the kernel's monotonic clock.
    pub last_seen: u32,
    /// Second of the first packet.
    pub created: u32,
    /// Acknowledgment number by which the client proves that it has seen the container's SYN.
    pub client_ack: u32,
    /// Interface index of the device that the first packet came in by, and that answers leave by when
    /// the FIB cannot be asked.
    pub ingress: u32,
    /// Bytes from the client, from the IP header on, while [`crate::forward::Journal::flow_bytes`] was set.
    pub rx_bytes: u64,
    /// Bytes from the container, counted alike.
    pub tx_bytes: u64,
}

/// A client's port as the client has it. Two connections of one client from one port, to two addresses or
/// ports of the host that lead to one port of a container, would look alike to the container: the later
/// one gets another port there, which stands here in network order.
pub type Shift = FlowKey<V6>;

const _: () = {
    assert!(size_of::<FlowKey<V4>>() == 16 && size_of::<FlowKey<V6>>() == 40);
    assert!(size_of::<Flow<V4>>() == 96 && size_of::<Flow<V6>>() == 120);
};

// SAFETY: repr(C), all fields Pod; the sizes asserted above are the sums of the fields' sizes, so there
// is no padding.
unsafe impl Pod for FlowKey<V4> {}
// SAFETY: as above.
unsafe impl Pod for FlowKey<V6> {}
// SAFETY: as above.
unsafe impl Pod for Flow<V4> {}
// SAFETY: as above.
unsafe impl Pod for Flow<V6> {}

#[cfg(feature = "user")]
mod user {
    use crate::net::{V4, V6};
    // SAFETY: each is `bytemuck::Pod`: plain bytes without padding.
    unsafe impl aya::Pod for super::FlowKey<V4> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::FlowKey<V6> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Flow<V4> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Flow<V6> {}
}
