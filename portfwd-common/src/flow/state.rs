//! Where flows are in their lives, and what their packets make of that.

use bytemuck::{Pod, Zeroable};

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

    /// What the first chunk of an SCTP packet is, as the flags of the segment that does the same (RFC
    /// 9260, section 3.2 for the numbers): INIT and INIT ACK open, ABORT resets, each SHUTDOWN closes.
    #[inline(always)]
    pub const fn of_chunk(chunk: u8) -> Self {
        Self(match chunk {
            1 => Self::SYN,
            2 => Self::SYN | Self::ACK,
            6 => Self::RST,
            7 | 8 | 14 => Self::FIN | Self::ACK,
            _ => Self::ACK,
        })
    }
    /// A segment that answers an opening.
    #[inline(always)]
    pub const fn answers(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST) == Self::SYN | Self::ACK
    }
    /// Whether the segment is more than a step of an established connection.
    #[inline(always)]
    pub const fn turns(self) -> bool {
        self.has(Self::SYN | Self::FIN | Self::RST)
    }
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

/// Where a flow is in its life. SCTP goes through the states of TCP.
#[repr(u32)]
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
    /// TCP: refused, or reset by both.
    Reset = 7,
    /// UDP: only the client has sent.
    UdpUnanswered = 8,
    /// UDP: both have sent.
    UdpAnswered = 9,
    /// UDP: the client went on after it was answered.
    UdpAssured = 10,
    /// TCP: the client has sent a RST. Kept, because it may never arrive (RFC 7857, section 2.2): when
    /// the client goes on, the connection does.
    ClientReset = 11,
    /// TCP: the container has sent a RST.
    ContainerReset = 12,
}

/// Seconds without a packet after which flows are gone, by state. Set by `up`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Lifetimes {
    /// TCP connections that are open on at least one side's word.
    pub established: u32,
    /// TCP connections that are opening, closing, closed or reset.
    pub transitory: u32,
    /// UDP flows in which both ends have sent.
    pub answered: u32,
    /// UDP flows in which only the client has.
    pub unanswered: u32,
}

const _: () = assert!(size_of::<Lifetimes>() == 16);

impl Lifetimes {
    /// Established: RFC 5382, REQ-5 (2 h 4 min); transitory: the same (4 min), which also outlasts
    /// TIME_WAIT; UDP: RFC 4787, REQ-5 (at least 2 min, 5 min recommended).
    pub const DEFAULT: Self = Self {
        established: 7_440,
        transitory: 240,
        answered: 300,
        unanswered: 120,
    };
    /// Names of the fields, as `up` takes them.
    pub const NAMES: [&'static str; 4] = ["established", "transitory", "answered", "unanswered"];

    /// The values, in the order of the names.
    pub const fn values(&self) -> [u32; 4] {
        [
            self.established,
            self.transitory,
            self.answered,
            self.unanswered,
        ]
    }
    /// The other way.
    pub const fn of_values([established, transitory, answered, unanswered]: [u32; 4]) -> Self {
        Self {
            established,
            transitory,
            answered,
            unanswered,
        }
    }
}

/// Seconds after which a UDP flow that goes on counts as a stream.
pub const ASSURED_AFTER: u32 = 2;

impl State {
    /// From what lies in the map.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Option<Self> {
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
            10 => Self::UdpAssured,
            11 => Self::ClientReset,
            12 => Self::ContainerReset,
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
            Self::UdpAssured => "assured",
            Self::ClientReset => "client-reset",
            Self::ContainerReset => "container-reset",
        }
    }
    /// Seconds without a packet after which the flow is gone.
    #[inline(always)]
    pub const fn lifetime(self, lifetimes: &Lifetimes) -> u32 {
        match self {
            Self::Established => lifetimes.established,
            Self::UdpAnswered | Self::UdpAssured => lifetimes.answered,
            Self::UdpUnanswered => lifetimes.unanswered,
            _ => lifetimes.transitory,
        }
    }
    /// Whether the flow belongs into a table of settled flows: both ends have proven that they want
    /// it, and at least one of them still does.
    #[inline(always)]
    pub const fn is_settled(self) -> bool {
        matches!(
            self,
            Self::Established | Self::ClientClosed | Self::ContainerClosed | Self::UdpAssured
        )
    }
    /// Whether a SYN of the client opens a new connection in place of this one (RFC 9293, section
    /// 3.6.1, lets a client reuse a tuple that its peer holds in TIME_WAIT).
    #[inline(always)]
    pub const fn gives_way_to_syn(self) -> bool {
        matches!(
            self,
            Self::Closed | Self::Reset | Self::ClientReset | Self::ContainerReset
        )
    }
    /// The state after a TCP segment. `proven`: it shows that its sender has accepted the other end, so
    /// that the client is no blind spoofer. The client's does if it acknowledges the container's SYN by
    /// number; the container's if it carries data, which follows the client's acknowledgment (RFC 9293,
    /// section 3.5).
    #[inline(always)]
    pub const fn after(self, side: Side, flags: TcpFlags, proven: bool) -> Self {
        if flags.has(TcpFlags::RST) {
            return self.after_reset(side);
        }
        let (fin, syn) = (flags.has(TcpFlags::FIN), flags.has(TcpFlags::SYN));
        match (self, side) {
            (Self::Opening, Side::Container) if syn => Self::Answered,
            (Self::Answered, Side::Client) if proven && fin => Self::ClientClosed,
            (Self::Opening | Self::Answered, Side::Container) if proven && fin => {
                Self::ContainerClosed
            }
            // It has accepted the client before: a forged reset and SYN have made the flow look new.
            (Self::Opening, Side::Container) if proven => Self::Established,
            (Self::Answered, _) if proven && !syn => Self::Established,
            (Self::Established, Side::Client) if fin => Self::ClientClosed,
            (Self::Established, Side::Container) if fin => Self::ContainerClosed,
            (Self::ClientClosed, Side::Container) if fin => Self::Closed,
            (Self::ContainerClosed, Side::Client) if fin => Self::Closed,
            (Self::ClientReset, Side::Client) | (Self::ContainerReset, Side::Container) if !syn => {
                Self::Established
            }
            (state, _) => state,
        }
    }
    #[inline(always)]
    const fn after_reset(self, side: Side) -> Self {
        match (self, side) {
            (Self::Closed, _) => Self::Closed,
            (Self::Opening | Self::Answered | Self::Reset, _)
            | (Self::ClientReset, Side::Container)
            | (Self::ContainerReset, Side::Client) => Self::Reset,
            (_, Side::Client) => Self::ClientReset,
            (_, Side::Container) => Self::ContainerReset,
        }
    }
    /// The state after a UDP datagram of a flow of that age in seconds. An answer alone proves nothing: a
    /// server answers a spoofed source as well.
    #[inline(always)]
    pub const fn after_datagram(self, side: Side, age: u32) -> Self {
        match (self, side) {
            (Self::UdpUnanswered, Side::Container) => Self::UdpAnswered,
            (Self::UdpAnswered, Side::Client) if age >= ASSURED_AFTER => Self::UdpAssured,
            (state, _) => state,
        }
    }
}

/// Whether a flow last seen at `last_seen` still lives at `now` (seconds on the same clock).
#[inline(always)]
pub const fn is_alive(state: State, last_seen: u32, now: u32, lifetimes: &Lifetimes) -> bool {
    // A packet on another CPU may already have seen the next second.
    now <= last_seen || now - last_seen < state.lifetime(lifetimes)
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
    fn a_container_that_sends_data_has_accepted_the_client() {
        let sent = |proven| State::Answered.after(Container, TcpFlags(ACK), proven);
        assert_eq!(sent(true), State::Established);
        assert_eq!(sent(false), State::Answered, "an answer to a wrong number");
    }

    #[test]
    fn a_reset_ends_nothing_that_its_sender_goes_on_with() {
        let reset = [(Client, TcpFlags::RST, State::ClientReset)];
        let open = [
            (Container, SYN_ACK, State::Answered),
            (Client, ACK, State::Established),
        ];
        let after = |rest: &[(Side, u8, State)]| play(&[&open[..], &reset, rest].concat());
        after(&[(Container, ACK, State::ClientReset)]);
        after(&[(Client, ACK, State::Established)]);
        after(&[
            (Container, TcpFlags::RST, State::Reset),
            (Client, ACK, State::Reset),
        ]);
        assert_eq!(
            State::Answered.after(Client, TcpFlags(TcpFlags::RST), true),
            State::Reset,
            "what was never established does not become so"
        );
    }

    #[test]
    fn datagrams_are_a_stream_when_the_client_goes_on_after_an_answer() {
        let answered = State::UdpUnanswered.after_datagram(Container, 0);
        assert_eq!(answered, State::UdpAnswered);
        assert_eq!(answered.after_datagram(Client, 1), State::UdpAnswered);
        assert_eq!(answered.after_datagram(Container, 9), State::UdpAnswered);
        assert_eq!(answered.after_datagram(Client, 2), State::UdpAssured);
        let alone = State::UdpUnanswered.after_datagram(Client, 9);
        assert_eq!(alone, State::UdpUnanswered);
    }

    #[test]
    fn no_lifetime_is_shorter_than_it_may_be() {
        let of = |state: State| state.lifetime(&Lifetimes::DEFAULT);
        // RFC 5382, REQ-5.
        assert!(of(State::Established) >= 2 * 3_600 + 4 * 60);
        for number in (1..=7).chain(11..=12) {
            let state = State::from_number(number).unwrap();
            assert!(of(state) >= 4 * 60, "{state:?}");
        }
        // RFC 4787, REQ-5, and RFC 5508, REQ-2: pings go through the states of UDP.
        assert!(of(State::UdpUnanswered) >= 2 * 60);
        assert!(of(State::UdpAnswered) >= 5 * 60 && of(State::UdpAssured) >= 5 * 60);
    }

    #[test]
    fn a_flow_lives_for_its_lifetime_and_no_longer() {
        let alive = |state, now| is_alive(state, 100, now, &Lifetimes::DEFAULT);
        assert!(alive(State::Established, 100 + 7_439));
        assert!(!alive(State::Established, 100 + 7_440));
        assert!(
            alive(State::UdpAnswered, 99),
            "another CPU's clock may be ahead"
        );
    }

    proptest! {
        #[test]
        fn a_reset_connection_is_settled_only_if_it_was_and_every_state_keeps_its_number(
            number in 0u32..16, side: bool, flags: u8, proven: bool,
        ) {
            let Some(state) = State::from_number(number) else { return Ok(()) };
            prop_assert_eq!(state as u32, number);
            prop_assume!(!(8..=10).contains(&number), "of UDP");
            let side = if side { Client } else { Container };
            let reset = state.after(side, TcpFlags(flags | TcpFlags::RST), proven);
            prop_assert!(!reset.is_settled() && reset.gives_way_to_syn());
            let later = reset.after(side, TcpFlags(flags & !TcpFlags::RST), proven);
            let was_open = state.is_settled() || matches!(state, State::ClientReset | State::ContainerReset);
            prop_assert!(was_open || !later.is_settled());
        }
    }
}
