//! Flows: what connects the two directions of a translated connection, and how long it lives.
//!
//! There is one entry a flow, keyed as the container sees it. Requests compute the key after the port
//! lookup, replies carry it: no pair can be half written or half evicted.

use bytemuck::{Pod, Zeroable};

use crate::net::{Address, NetPort, V4, V6};

/// Entries of the flow table of each family.
pub const MAX_FLOWS: u32 = 131_072;

/// A flow as the container sees it.
#[repr(C)]
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

/// Where replies leave the host, as the FIB said when it was last asked.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Zeroable)]
pub struct Route<A> {
    /// Second in which it was asked.
    pub refreshed: u32,
    /// Interface index.
    pub device: u32,
    /// Largest packet that the device takes, in bytes from the IP header on.
    pub mtu: u32,
    /// 1 if `next_hop` is set: else the kernel looks the route up itself.
    pub has_next_hop: u32,
    /// Neighbour that the packet goes to, by `device`; before the FIB was asked, and for ever in a flow of
    /// a container with itself ([`crate::forward::Delivery::Hairpin`]), the client's own address.
    pub next_hop: A,
}

/// A translated connection.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Zeroable)]
pub struct Flow<A> {
    /// Address that the client sent to.
    pub host: A,
    /// Port that the client sent to.
    pub host_port: NetPort,
    /// [`State`].
    pub state: u8,
    /// [`crate::forward::Delivery`].
    pub delivery: u8,
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
    /// Where replies leave.
    pub route: Route<A>,
}

const _: () = {
    assert!(size_of::<FlowKey<V4>>() == 16 && size_of::<FlowKey<V6>>() == 40);
    assert!(size_of::<Flow<V4>>() == 56 && size_of::<Flow<V6>>() == 80);
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

/// Which end of a flow a packet comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The client.
    Client,
    /// The container.
    Container,
}

/// Flags of a TCP segment (RFC 9293, section 3.1): byte 13 of its header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// Last segment of its sender.
    pub const FIN: u8 = 0x01;
    /// First segment of its sender.
    pub const SYN: u8 = 0x02;
    /// Abort.
    pub const RST: u8 = 0x04;
    /// The acknowledgment number counts.
    pub const ACK: u8 = 0x10;

    /// Whether one of `flags` is set.
    #[inline(always)]
    pub const fn has(self, flags: u8) -> bool {
        self.0 & flags != 0
    }
    /// A segment that opens a connection.
    #[inline(always)]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST | Self::FIN) == Self::SYN
    }
}

/// Where a flow is in its life.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// TCP: the client's SYN was seen.
    Opening = 1,
    /// TCP: the container's SYN was seen.
    Answered = 2,
    /// TCP: the client acknowledged it.
    Established = 3,
    /// TCP: the client has sent its FIN.
    ClientClosed = 4,
    /// TCP: the container has sent its FIN.
    ContainerClosed = 5,
    /// TCP: both have sent a FIN.
    Closed = 6,
    /// TCP: a RST was seen. Kept, because the RST may never arrive (RFC 7857, section 2.2).
    Reset = 7,
    /// UDP: only the client has sent.
    UdpUnanswered = 8,
    /// UDP: both have sent.
    UdpAnswered = 9,
}

impl State {
    /// From what lies in the map.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Opening,
            2 => Self::Answered,
            3 => Self::Established,
            4 => Self::ClientClosed,
            5 => Self::ContainerClosed,
            6 => Self::Closed,
            7 => Self::Reset,
            8 => Self::UdpUnanswered,
            9 => Self::UdpAnswered,
            _ => return None,
        })
    }
    /// As listings show it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Answered => "answered",
            Self::Established => "established",
            Self::ClientClosed => "client-closed",
            Self::ContainerClosed => "container-closed",
            Self::Closed => "closed",
            Self::Reset => "reset",
            Self::UdpUnanswered => "unanswered",
            Self::UdpAnswered => "answered",
        }
    }
    /// Seconds without a packet after which the flow is gone. Established: RFC 5382, REQ-5 (2 h 4 min);
    /// opening, closing and reset: the same (4 min), which also outlasts TIME_WAIT; UDP: RFC 4787,
    /// REQ-5 (at least 2 min, 5 min recommended).
    #[inline(always)]
    pub const fn lifetime(self) -> u32 {
        match self {
            Self::Established => 7_440,
            Self::UdpAnswered => 300,
            Self::UdpUnanswered => 120,
            _ => 240,
        }
    }
    /// Whether a SYN of the client opens a new connection in place of this one (RFC 9293, section
    /// 3.6.1, lets a client reuse a tuple that its peer holds in TIME_WAIT).
    #[inline(always)]
    pub const fn gives_way_to_syn(self) -> bool {
        matches!(self, Self::Closed | Self::Reset)
    }
    /// The state after a TCP segment. `proven`: its acknowledgment number covers the container's SYN,
    /// so that the client is not a blind spoofer.
    #[inline(always)]
    pub const fn after(self, side: Side, flags: TcpFlags, proven: bool) -> Self {
        if flags.has(TcpFlags::RST) {
            return Self::Reset;
        }
        let fin = flags.has(TcpFlags::FIN);
        match (self, side) {
            (Self::Opening, Side::Container) if flags.has(TcpFlags::SYN) => Self::Answered,
            (Self::Answered, Side::Client) if proven && fin => Self::ClientClosed,
            (Self::Answered, Side::Client) if proven => Self::Established,
            (Self::Established, Side::Client) if fin => Self::ClientClosed,
            (Self::Established, Side::Container) if fin => Self::ContainerClosed,
            (Self::Answered, Side::Container) if fin => Self::ContainerClosed,
            (Self::ClientClosed, Side::Container) if fin => Self::Closed,
            (Self::ContainerClosed, Side::Client) if fin => Self::Closed,
            (state, _) => state,
        }
    }
    /// The state after a UDP datagram.
    #[inline(always)]
    pub const fn after_datagram(self, side: Side) -> Self {
        match side {
            Side::Container => Self::UdpAnswered,
            Side::Client => self,
        }
    }
}

/// Whether a flow last seen at `last_seen` still lives at `now` (seconds on the same clock).
#[inline(always)]
pub const fn is_alive(state: State, last_seen: u32, now: u32) -> bool {
    // A packet on another CPU may already have seen the next second.
    now <= last_seen || now - last_seen < state.lifetime()
}

#[cfg(test)]
mod tests {
    use Side::{Client, Container};
    use proptest::prelude::*;

    use super::*;

    const FIN: u8 = TcpFlags::FIN | TcpFlags::ACK;
    const ACK: u8 = TcpFlags::ACK;
    const SYN_ACK: u8 = TcpFlags::SYN | TcpFlags::ACK;

    fn play(steps: &[(Side, u8, State)]) {
        let mut state = State::Opening;
        for (side, flags, expected) in steps {
            state = state.after(*side, TcpFlags(*flags), true);
            assert_eq!(state, *expected, "after {side:?} {flags:#x}");
        }
    }

    #[test]
    fn a_connection_opens_and_closes_from_either_end() {
        let open = [
            (Container, SYN_ACK, State::Answered),
            (Client, ACK, State::Established),
        ];
        play(
            &[
                &open[..],
                &[
                    (Client, FIN, State::ClientClosed),
                    (Container, ACK, State::ClientClosed),
                    (Container, FIN, State::Closed),
                ],
            ]
            .concat(),
        );
        play(
            &[
                &open[..],
                &[
                    (Container, FIN, State::ContainerClosed),
                    (Client, FIN, State::Closed),
                    (Client, ACK, State::Closed),
                ],
            ]
            .concat(),
        );
    }

    #[test]
    fn a_blind_ack_does_not_establish() {
        assert_eq!(
            State::Answered.after(Client, TcpFlags(ACK), false),
            State::Answered
        );
        assert_eq!(
            State::Opening.after(Client, TcpFlags(ACK), true),
            State::Opening
        );
    }

    #[test]
    fn only_a_lone_syn_opens() {
        assert!(TcpFlags(TcpFlags::SYN).opens());
        assert!(
            TcpFlags(TcpFlags::SYN | 0xc0).opens(),
            "ECN bits do not matter"
        );
        for flags in [
            SYN_ACK,
            ACK,
            FIN,
            TcpFlags::SYN | TcpFlags::RST,
            TcpFlags::SYN | TcpFlags::FIN,
            0,
        ] {
            assert!(!TcpFlags(flags).opens(), "{flags:#x}");
        }
    }

    #[test]
    fn a_flow_lives_for_its_lifetime_and_no_longer() {
        assert!(is_alive(State::Established, 100, 100 + 7_439));
        assert!(!is_alive(State::Established, 100, 100 + 7_440));
        assert!(
            is_alive(State::UdpAnswered, 100, 99),
            "another CPU's clock may be ahead"
        );
    }

    proptest! {
        #[test]
        fn a_reset_is_final_and_every_state_keeps_its_number(number in 0u8..12, side: bool, flags: u8, proven: bool) {
            let Some(state) = State::from_number(number) else { return Ok(()) };
            prop_assert_eq!(state as u8, number);
            let side = if side { Client } else { Container };
            let reset = state.after(side, TcpFlags(flags | TcpFlags::RST), proven);
            prop_assert_eq!(reset, State::Reset);
            prop_assert_eq!(reset.after(side, TcpFlags(flags & !TcpFlags::RST), proven), State::Reset);
        }
    }
}
