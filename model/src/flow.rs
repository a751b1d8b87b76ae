//! Flows: what the model remembers of packets.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use crate::packet::{ACK, FIN, RST, SYN, Segment};
use crate::world::Protocol;

/// A flow as the container sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Its protocol.
    pub protocol: Protocol,
    /// The client's end toward the container.
    pub client: SocketAddr,
    /// The container's end.
    pub container: SocketAddr,
}

/// A flow as the client sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Request {
    /// Its protocol.
    pub protocol: Protocol,
    /// The client's end.
    pub client: SocketAddr,
    /// The host's end.
    pub host: SocketAddr,
}

/// Which end of a flow sent a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The client.
    Client,
    /// The container.
    Container,
}

impl Side {
    fn index(self) -> usize {
        match self {
            Self::Client => 0,
            Self::Container => 1,
        }
    }
}

/// A translated connection.
#[derive(Debug, Clone, Copy)]
pub struct Flow {
    /// Index of the forward that opened it.
    pub forward: usize,
    /// Both ends as the client sees them.
    pub request: Request,
    /// The container's link; `None` if packets go through the stack.
    pub link: Option<u32>,
    /// Whether the container is its own client.
    pub hairpin: bool,
    /// How far its connection has come.
    pub progress: Progress,
}

/// Whether both ends have shown that they want a flow, and at least one still does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// They have.
    Yes,
    /// They have not.
    No,
    /// That depends on how much time has passed.
    Perhaps,
}

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Of TCP, and of SCTP, whose chunks stand for segments.
    Connection(Connection),
    /// Of UDP: whether the container has sent something.
    Datagrams {
        /// It has.
        answered: bool,
    },
}

/// A connection that was opened by its client's SYN.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Connection {
    /// Whether the container has sent a SYN.
    answered: bool,
    /// What the client acknowledges if it has seen that SYN.
    proof: u32,
    /// Whether one end has shown that it accepts the other.
    established: bool,
    /// Who has sent a FIN.
    closed: [bool; 2],
    /// Whose RST was the last word.
    reset: [bool; 2],
    /// Whether there was a RST before it was established.
    refused: bool,
}

impl Progress {
    pub(crate) fn new(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Udp => Self::Datagrams { answered: false },
            Protocol::Tcp | Protocol::Sctp => Self::Connection(Connection::default()),
        }
    }

    /// Whether a SYN may open a new connection in place of this one (RFC 9293, section 3.6.1).
    pub(crate) fn gives_way_to_syn(&self) -> bool {
        match self {
            Self::Connection(connection) => connection.is_over(),
            Self::Datagrams { .. } => false,
        }
    }

    pub(crate) fn settled(&self) -> Settled {
        match self {
            Self::Connection(connection) if connection.established && !connection.is_over() => {
                Settled::Yes
            }
            Self::Datagrams { answered: true } => Settled::Perhaps,
            Self::Connection(_) | Self::Datagrams { answered: false } => Settled::No,
        }
    }

    /// After a packet of `side`.
    pub(crate) fn advance(&mut self, side: Side, segment: Option<Segment>) {
        match (self, segment) {
            (Self::Connection(connection), Some(segment)) => connection.advance(side, segment),
            (Self::Datagrams { answered }, _) => *answered |= side == Side::Container,
            (Self::Connection(_), None) => {}
        }
    }
}

impl Connection {
    /// Closed from both ends, or reset.
    fn is_over(&self) -> bool {
        self.refused || self.closed == [true; 2] || self.reset.contains(&true)
    }

    /// After a segment of `side` (RFC 9293, section 3.10.7; RFC 7857, section 2.2 for RST).
    fn advance(&mut self, side: Side, segment: Segment) {
        let own = side.index();
        let has = |flag: u8| segment.flags & flag != 0;
        if self.refused || self.closed == [true; 2] {
            return;
        }
        if has(RST) {
            self.refused = !self.established;
            self.reset[own] = true;
            return;
        }
        if side == Side::Container && has(SYN) && has(ACK) {
            self.proof = segment.sequence.wrapping_add(1);
        }
        match self.reset {
            // Both have: that is the end.
            [true, true] => {}
            // The one that has goes on all the same.
            reset if reset[own] && !has(SYN) => {
                self.reset = [false; 2];
                self.closed = [false; 2];
            }
            [false, false] => self.opened_or_closed(side, segment),
            _ => {}
        }
    }

    fn opened_or_closed(&mut self, side: Side, segment: Segment) {
        let has = |flag: u8| segment.flags & flag != 0;
        if !self.answered {
            let goes_on = side == Side::Container && !has(SYN) && (segment.data || has(FIN));
            self.answered = goes_on || (side == Side::Container && has(SYN));
            if !goes_on {
                return;
            }
        }
        if !self.established {
            let proven = match side {
                Side::Client => {
                    segment.acknowledges && has(ACK) && segment.acknowledgment == self.proof
                }
                Side::Container => segment.data || has(SYN | FIN),
            };
            if !proven || (has(SYN) && !has(FIN)) {
                return;
            }
            self.established = true;
        }
        self.closed[side.index()] |= has(FIN);
    }
}

/// All flows.
pub(crate) type Table = HashMap<Key, Flow>;

/// The client's address and port toward the container, by what the client sees.
pub(crate) type Shifts = HashMap<Request, u16>;

/// The client's end as the container sees it: where the container is its own client, the host stands for it.
pub(crate) fn client_inside(request: &Request, hairpin: bool, port: u16) -> SocketAddr {
    let address: IpAddr = if hairpin {
        request.host.ip()
    } else {
        request.client.ip()
    };
    SocketAddr::new(address, port)
}
