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

/// Which end of a flow sent a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The client.
    Client,
    /// The container.
    Container,
}

/// A translated connection.
#[derive(Debug, Clone, Copy)]
pub struct Flow {
    /// Index of the forward that opened it.
    pub forward: usize,
    /// The host's end, toward the client.
    pub host: SocketAddr,
    /// The container's link; `None` if packets go through the stack.
    pub link: Option<u32>,
    /// The container's own address, if it is its own client.
    pub itself: Option<IpAddr>,
    /// How far its connection has come.
    pub progress: Progress,
}

/// How far a connection has come.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    /// Sequence number of the container's SYN.
    answer: Option<u32>,
    /// Whether the client has shown that it saw the container's SYN.
    established: bool,
    /// Who has sent a FIN: client, container.
    closed: [bool; 2],
    /// Whether a RST was the last word.
    reset: bool,
}

impl Progress {
    /// Whether a SYN may open a new connection in place of this one (RFC 9293, section 3.6.1).
    #[must_use]
    pub fn gives_way_to_syn(&self) -> bool {
        self.reset || self.closed == [true; 2]
    }

    /// After a TCP segment of `side`.
    pub(crate) fn advance(&mut self, side: Side, segment: Segment) {
        let Segment {
            flags,
            sequence,
            acknowledgment,
        } = segment;
        if self.reset {
            return;
        }
        if flags & RST != 0 {
            self.reset = true;
            return;
        }
        if side == Side::Container && flags & SYN != 0 && self.answer.is_none() {
            self.answer = Some(sequence);
            return;
        }
        let proven = self
            .answer
            .is_some_and(|syn| acknowledgment.wrapping_sub(syn.wrapping_add(1)) < 1 << 24);
        if side == Side::Client && flags & ACK != 0 && proven {
            self.established = true;
        }
        if flags & FIN != 0 {
            match side {
                Side::Client => self.closed[0] |= self.established || self.closed[1],
                Side::Container => self.closed[1] |= self.answer.is_some(),
            }
        }
    }
}

/// All flows.
pub(crate) type Table = HashMap<Key, Flow>;
