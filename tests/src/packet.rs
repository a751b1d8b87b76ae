//! Building frames.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    EtherType, Ethernet2Header, IpFragOffset, IpNumber, Ipv4Header, Ipv4Options, Ipv6FlowLabel,
    Ipv6Header, SingleVlanHeader, TcpHeader, UdpHeader, VlanId,
};

use crate::layers::{fold, pseudo_header, sum};

/// TCP flag bits, as in the fourteenth byte of the header (RFC 9293 section 3.1).
pub mod flag {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// Opens a connection.
    pub const SYN: u8 = 2;
    /// Ends a connection at once.
    pub const RST: u8 = 4;
    /// The acknowledgment number is valid.
    pub const ACK: u8 = 16;
}

/// What follows the network header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// A TCP segment.
    Tcp {
        /// Bits of [`flag`].
        flags: u8,
        /// Sequence number.
        sequence: u32,
        /// Acknowledgment number.
        acknowledgment: u32,
        /// Options, a multiple of four bytes.
        options: Vec<u8>,
    },
    /// A UDP datagram with its checksum.
    Udp,
    /// A UDP datagram whose checksum field is 0: none was computed (RFC 768).
    UdpWithoutChecksum,
    /// An SCTP packet with one chunk of this type. Its checksum is none: whoever translates must leave it.
    Sctp(u8),
    /// An ICMP message of the packet's family, which quotes the payload. The ends' ports do not count.
    Icmp {
        /// Type and code.
        kind: (u8, u8),
        /// The four bytes behind the checksum.
        rest: u32,
    },
}

/// A frame to be built; its lengths and checksums follow from the rest.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Hardware address of the receiver.
    pub destination_mac: [u8; 6],
    /// Hardware address of the sender.
    pub source_mac: [u8; 6],
    /// The identifier of an 802.1Q tag, if there is one.
    pub vlan: Option<u16>,
    /// Source address and port.
    pub source: SocketAddr,
    /// Destination address and port, of the same family.
    pub destination: SocketAddr,
    /// Time to live or hop limit.
    pub hops: u8,
    /// IPv4 options, a multiple of four bytes; ignored for IPv6.
    pub ipv4_options: Vec<u8>,
    /// IPv6 extension headers, each its number and its bytes whose first is overwritten with the
    /// number that follows; ignored for IPv4.
    pub ipv6_extensions: Vec<(u8, Vec<u8>)>,
    /// IPv4 fragment offset in units of eight bytes, and whether more follow.
    pub fragment: (u16, bool),
    /// The transport header.
    pub transport: Transport,
    /// What the transport carries.
    pub payload: Vec<u8>,
}

impl Frame {
    /// A TCP segment with `flags` and no payload.
    #[must_use]
    pub fn tcp(source: SocketAddr, destination: SocketAddr, flags: u8) -> Self {
        let transport = Transport::Tcp {
            flags,
            sequence: 1_000,
            acknowledgment: if flags & flag::ACK == 0 { 0 } else { 2_000 },
            options: Vec::new(),
        };
        Self::new(source, destination, transport, Vec::new())
    }

    /// A UDP datagram that carries `payload`.
    #[must_use]
    pub fn udp(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Self {
        Self::new(source, destination, Transport::Udp, payload.to_vec())
    }

    /// An SCTP packet that begins with a chunk of this type (RFC 9260, section 3.2).
    #[must_use]
    pub fn sctp(source: SocketAddr, destination: SocketAddr, chunk: u8) -> Self {
        Self::new(source, destination, Transport::Sctp(chunk), Vec::new())
    }

    /// An ICMP message of this type, code 0, that quotes `quote`.
    #[must_use]
    pub fn icmp(source: IpAddr, destination: IpAddr, message: u8, quote: &[u8]) -> Self {
        let transport = Transport::Icmp {
            kind: (message, 0),
            rest: 0,
        };
        let end = |address| SocketAddr::new(address, 0);
        Self::new(end(source), end(destination), transport, quote.to_vec())
    }

    fn new(
        source: SocketAddr,
        destination: SocketAddr,
        transport: Transport,
        payload: Vec<u8>,
    ) -> Self {
        assert_eq!(
            source.is_ipv4(),
            destination.is_ipv4(),
            "one family a packet"
        );
        Self {
            destination_mac: [2, 0, 0, 0, 0, 1],
            source_mac: [2, 0, 0, 0, 0, 2],
            vlan: None,
            source,
            destination,
            hops: 64,
            ipv4_options: Vec::new(),
            ipv6_extensions: Vec::new(),
            fragment: (0, false),
            transport,
            payload,
        }
    }

    /// The same with other hardware addresses.
    #[must_use]
    pub fn on_link(mut self, source: [u8; 6], destination: [u8; 6]) -> Self {
        self.source_mac = source;
        self.destination_mac = destination;
        self
    }

    /// The same between other endpoints: what a translation must make of it.
    #[must_use]
    pub fn between(mut self, source: SocketAddr, destination: SocketAddr) -> Self {
        self.source = source;
        self.destination = destination;
        self
    }

    /// The same with a payload.
    #[must_use]
    pub fn carrying(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// The bytes on the wire.
    ///
    /// # Panics
    /// When the fields do not fit their headers.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.link_header();
        let mut segment = self.transport_header();
        segment.extend_from_slice(&self.payload);
        self.fill_checksum(&mut segment);
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = Ipv4Header {
                    total_len: 0,
                    identification: 7,
                    dont_fragment: self.fragment == (0, false),
                    more_fragments: self.fragment.1,
                    fragment_offset: IpFragOffset::try_new(self.fragment.0).expect("13 bits"),
                    time_to_live: self.hops,
                    protocol: IpNumber(self.protocol()),
                    source: source.octets(),
                    destination: destination.octets(),
                    options: Ipv4Options::try_from(self.ipv4_options.as_slice())
                        .expect("at most 40 bytes of options"),
                    ..Ipv4Header::default()
                };
                header
                    .set_payload_len(segment.len())
                    .expect("a length that fits");
                header.header_checksum = header.calc_header_checksum();
                bytes.extend_from_slice(&header.to_bytes());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let (first, extensions) = self.extension_headers();
                let header = Ipv6Header {
                    traffic_class: 0,
                    flow_label: Ipv6FlowLabel::ZERO,
                    payload_length: u16::try_from(extensions.len() + segment.len())
                        .expect("a length that fits"),
                    next_header: IpNumber(first),
                    hop_limit: self.hops,
                    source: source.octets(),
                    destination: destination.octets(),
                };
                bytes.extend_from_slice(&header.to_bytes());
                bytes.extend_from_slice(&extensions);
            }
            _ => unreachable!("the constructor saw to one family"),
        }
        bytes.extend_from_slice(&segment);
        bytes
    }

    /// The number of the transport protocol (IANA).
    fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Tcp { .. } => 6,
            Transport::Udp | Transport::UdpWithoutChecksum => 17,
            Transport::Sctp(_) => 132,
            Transport::Icmp { .. } if self.source.is_ipv4() => 1,
            Transport::Icmp { .. } => 58,
        }
    }

    fn link_header(&self) -> Vec<u8> {
        let network = if self.source.is_ipv4() {
            EtherType::IPV4
        } else {
            EtherType::IPV6
        };
        let ethernet = Ethernet2Header {
            destination: self.destination_mac,
            source: self.source_mac,
            ether_type: self.vlan.map_or(network, |_| EtherType::VLAN_TAGGED_FRAME),
        };
        let mut bytes = ethernet.to_bytes().to_vec();
        if let Some(vlan) = self.vlan {
            let tag = SingleVlanHeader {
                vlan_id: VlanId::try_new(vlan).expect("12 bits"),
                ether_type: network,
                ..SingleVlanHeader::default()
            };
            bytes.extend_from_slice(&tag.to_bytes());
        }
        bytes
    }

    /// The number of the first header after the IPv6 header, and all the extension headers.
    fn extension_headers(&self) -> (u8, Vec<u8>) {
        let mut bytes = Vec::new();
        let mut following = self.protocol();
        for (number, body) in self.ipv6_extensions.iter().rev() {
            let mut header = body.clone();
            header[0] = following;
            header.extend_from_slice(&bytes);
            bytes = header;
            following = *number;
        }
        (following, bytes)
    }

    /// The transport header with its checksum still 0.
    fn transport_header(&self) -> Vec<u8> {
        let (source, destination) = (self.source.port(), self.destination.port());
        match &self.transport {
            Transport::Tcp {
                flags,
                sequence,
                acknowledgment,
                options,
            } => {
                let mut header = TcpHeader::new(source, destination, *sequence, 64_000);
                header.acknowledgment_number = *acknowledgment;
                header.set_options_raw(options).expect("at most 40 bytes");
                let mut bytes = header.to_bytes().to_vec();
                bytes[13] = *flags;
                bytes
            }
            Transport::Udp | Transport::UdpWithoutChecksum => UdpHeader {
                source_port: source,
                destination_port: destination,
                length: u16::try_from(8 + self.payload.len()).expect("a length that fits"),
                checksum: 0,
            }
            .to_bytes()
            .to_vec(),
            Transport::Sctp(chunk) => {
                let length = u16::try_from(4 + self.payload.len()).expect("a length that fits");
                let mut bytes = [source.to_be_bytes(), destination.to_be_bytes()].concat();
                bytes.extend_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]); // tag and checksum
                bytes.extend_from_slice(&[*chunk, 0]);
                bytes.extend_from_slice(&length.to_be_bytes());
                bytes
            }
            Transport::Icmp { kind, rest } => {
                let mut bytes = vec![kind.0, kind.1, 0, 0];
                bytes.extend_from_slice(&rest.to_be_bytes());
                bytes
            }
        }
    }

    fn fill_checksum(&self, segment: &mut [u8]) {
        let offset = match self.transport {
            Transport::Tcp { .. } => 16,
            Transport::Udp => 6,
            Transport::Icmp { .. } => 2,
            Transport::UdpWithoutChecksum | Transport::Sctp(_) => return,
        };
        let start = match self.protocol() {
            1 => 0, // RFC 792 knows no pseudo header
            protocol => pseudo_header(
                self.source.ip(),
                self.destination.ip(),
                protocol,
                segment.len(),
            ),
        };
        let mut checksum = !fold(start + sum(segment));
        if checksum == 0 && self.protocol() == 17 {
            checksum = 0xffff; // 0 would mean that there is none (RFC 768)
        }
        segment[offset..offset + 2].copy_from_slice(&checksum.to_be_bytes());
    }
}
