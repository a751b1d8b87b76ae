//! ICMP errors about translated packets: frames that quote frames.

use std::net::SocketAddr;

use crate::packet::{Frame, Transport, flag};

/// A translated flow, as each of its ends has it.
#[derive(Debug, Clone, Copy)]
pub struct Flow {
    /// The client.
    pub client: SocketAddr,
    /// The host, as the client has it.
    pub host: SocketAddr,
    /// The client, as the container has it.
    pub seen: SocketAddr,
    /// The container.
    pub container: SocketAddr,
}

impl Flow {
    /// One whose client keeps its address and port.
    #[must_use]
    pub fn new(client: SocketAddr, host: SocketAddr, container: SocketAddr) -> Self {
        Self {
            client,
            host,
            seen: client,
            container,
        }
    }
}

/// What the quoted packet was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A TCP segment with data.
    Tcp,
    /// A datagram.
    Udp,
    /// A datagram without a checksum.
    BareUdp,
    /// An SCTP packet with a DATA chunk.
    Sctp,
}

impl Kind {
    /// Such a packet.
    #[must_use]
    pub fn frame(self, source: SocketAddr, destination: SocketAddr) -> Frame {
        match self {
            Self::Tcp => {
                Frame::tcp(source, destination, flag::ACK).carrying(b"twenty bytes of data")
            }
            Self::Udp => Frame::udp(source, destination, b"a datagram of some length"),
            Self::BareUdp => {
                let mut frame = Frame::udp(source, destination, b"a bare datagram");
                frame.transport = Transport::UdpWithoutChecksum;
                frame
            }
            Self::Sctp => Frame::sctp(source, destination, 0).carrying(b"a chunk of data"),
        }
    }

    /// The packet that opens its flow.
    #[must_use]
    pub fn opening(self, source: SocketAddr, destination: SocketAddr) -> Frame {
        match self {
            Self::Tcp => Frame::tcp(source, destination, flag::SYN),
            Self::Sctp => Frame::sctp(source, destination, 1),
            Self::Udp | Self::BareUdp => self.frame(source, destination),
        }
    }
}

/// Where the transport header of a frame without a tag begins.
#[must_use]
pub fn transport_at(frame: &Frame) -> usize {
    let extensions = frame.ipv6_extensions.iter().map(|(_, body)| body.len());
    if frame.source.is_ipv4() {
        34 + frame.ipv4_options.len()
    } else {
        54 + extensions.sum::<usize>()
    }
}

/// The packet in `frame` up to so many bytes of its transport header, as an error quotes it.
#[must_use]
pub fn quote(frame: &Frame, transport: usize) -> Vec<u8> {
    let mut bytes = frame.to_bytes();
    bytes.truncate(transport_at(frame).saturating_add(transport));
    bytes.split_off(14)
}
