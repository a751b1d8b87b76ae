//! Packets made up: mostly of live flows and to published ports, some of nobody.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::build::{fragments, icmp_error, sctp};
use super::mutate::mutated;
use super::random::Random;
use super::step::{At, Step};
use crate::layers::Layers;
use crate::packet::{Frame, Transport, flag};
use crate::table::{Ends, at, families};
use crate::topology::{CLIENT_MAC, GATEWAY_MAC, HOST_MAC};

/// Host ports, published and not.
const HOST_PORTS: [u16; 10] = [8080, 8081, 8090, 80, 5000, 8100, 8443, 443, 9999, SCTP_PORT];
/// The one that is published over SCTP.
const SCTP_PORT: u16 = 9000;
/// Few, so that flows meet in one tuple.
const CLIENT_PORTS: [u16; 5] = [40_000, 40_001, 80, 8080, 1];
/// What TCP segments carry, likely ones more than once.
const FLAGS: [u8; 14] = [
    flag::ACK,
    flag::ACK,
    flag::ACK,
    flag::SYN,
    flag::SYN | flag::ACK,
    flag::SYN | flag::ACK,
    flag::FIN | flag::ACK,
    flag::FIN | flag::ACK,
    flag::RST,
    flag::RST | flag::ACK,
    flag::FIN,
    0,
    flag::SYN | flag::FIN,
    0xff,
];

/// What SCTP packets begin with (RFC 9260, section 3.2), likely chunks more than once.
const CHUNKS: [u8; 14] = [0, 0, 0, 1, 1, 2, 2, 3, 6, 7, 8, 10, 11, 14];

/// IP protocol numbers.
const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

/// A connection that was translated: who sent what to whom on either side of the host.
#[derive(Debug, Clone)]
struct Conversation {
    request: Step,
    /// The client's end and the container's, as the container sees them.
    inside: (SocketAddr, SocketAddr),
    /// Sequence number of the container's first segment.
    answer: u32,
}

/// Makes the packets of one sequence.
#[derive(Debug)]
pub struct Generator {
    random: Random,
    families: [Ends; 2],
    conversations: Vec<Conversation>,
    /// Packets that are still to be sent: fragments mostly.
    pending: Vec<Step>,
    number: u32,
}

impl Generator {
    /// The packets of sequence `number` of a seed. Sequences with other numbers have other clients.
    #[must_use]
    pub fn new(seed: u64, number: u32) -> Self {
        Self {
            random: Random::new(seed ^ u64::from(number).wrapping_mul(0x2545_f491_4f6c_dd1d)),
            families: families(),
            conversations: Vec::new(),
            pending: Vec::new(),
            number,
        }
    }

    /// How many packets the sequence should have.
    pub fn length(&mut self) -> usize {
        2 + self.random.below(60)
    }

    /// The next packet.
    pub fn step(&mut self) -> Step {
        if !self.pending.is_empty() && self.random.percent(80) {
            // Mostly in order.
            let place = if self.random.percent(70) {
                0
            } else {
                self.random.below(self.pending.len())
            };
            return self.pending.remove(place);
        }
        let mut step = match self.random.below(100) {
            0..10 if !self.conversations.is_empty() => self.error(),
            10..50 if !self.conversations.is_empty() => self.continued(),
            0..75 => self.opening(),
            75..88 => self.sent_by_container(),
            _ => self.noise(),
        };
        if self.random.percent(8) && self.fragmented(&step) {
            return self.pending.remove(0);
        }
        if self.random.percent(20) {
            step.frame = mutated(&mut self.random, step.frame);
        }
        if self.random.percent(2) {
            step.segment = self.random.pick(&[1, 536, 1400, 1448, 1460, 1500]);
        }
        step
    }

    /// Learns what became of a packet: whoever is translated talks on.
    pub fn learn(&mut self, step: &Step, after: &[u8]) {
        if step.at == At::EarlyDevice && self.random.percent(70) {
            // What XDP has translated comes to the hook behind it.
            self.pending.push(Step {
                at: At::Device,
                frame: after.to_vec(),
                ..step.clone()
            });
        }
        let (Some(before), Some(after)) = (ends(&step.frame), ends(after)) else {
            return;
        };
        if before.1 == after.1 || self.conversations.iter().any(|known| known.inside == after) {
            return;
        }
        if self.conversations.len() == 8 {
            self.conversations.remove(0);
        }
        let conversation = Conversation {
            request: step.clone(),
            inside: after,
            answer: self.random.next() as u32,
        };
        if self.random.percent(60) {
            self.shake_hands(&conversation);
        }
        self.conversations.push(conversation);
    }

    /// The rest of a TCP handshake, so that the connection is one.
    fn shake_hands(&mut self, conversation: &Conversation) {
        let request = &conversation.request;
        let (client, container) = conversation.inside;
        let is_tcp = Layers::of(&request.frame).is_some_and(|layers| layers.protocol == TCP);
        let Some((from, to)) = ends(&request.frame).filter(|_| is_tcp) else {
            return;
        };
        let mut answer = Frame::tcp(container, client, flag::SYN | flag::ACK);
        self.number(&mut answer, Some(conversation.answer), 1_001);
        let (at, device) = self.way_of(container.ip());
        self.pending.push(addressed(at, device, answer.to_bytes()));
        let mut ack = Frame::tcp(from, to, flag::ACK);
        self.number(&mut ack, None, conversation.answer.wrapping_add(1));
        let frame = ack.to_bytes();
        self.pending
            .push(addressed(request.at, request.device, frame));
    }

    /// A packet of a connection that was translated, either way.
    fn continued(&mut self) -> Step {
        let conversation = self.random.pick(&self.conversations);
        let Some(layers) = Layers::of(&conversation.request.frame) else {
            return conversation.request;
        };
        if self.random.percent(3) {
            return conversation.request;
        }
        let protocol = layers.protocol;
        if self.random.percent(50) {
            let ends = ends(&conversation.request.frame).unwrap_or(conversation.inside);
            let mut frame = self.frame(protocol, ends.0, ends.1);
            self.number(&mut frame, None, conversation.answer.wrapping_add(1));
            let Step { at, device, .. } = conversation.request;
            let at = match at {
                At::EarlyDevice if self.random.percent(50) => At::Device,
                At::Device if device == "eth0" && self.random.percent(40) => At::EarlyDevice,
                at => at,
            };
            return self.placed(at, device, frame);
        }
        let (client, container) = conversation.inside;
        let mut frame = self.frame(protocol, container, client);
        self.number(&mut frame, Some(conversation.answer), 1_001);
        let (at, device) = self.way_of(container.ip());
        self.placed(at, device, frame)
    }

    /// Cuts a packet into fragments, to be sent from now on.
    fn fragmented(&mut self, step: &Step) -> bool {
        let size = 8 * (1 + self.random.below(12));
        let identification = self.random.below(4) as u16;
        let Some(fragments) = fragments(&step.frame, size, identification) else {
            return false;
        };
        // A lost one, now and then.
        let lost = self.random.below(3 * fragments.len());
        for (place, frame) in fragments.into_iter().enumerate().take(12) {
            if place != lost {
                let segment = 0;
                self.pending.push(Step {
                    frame,
                    segment,
                    ..step.clone()
                });
            }
        }
        !self.pending.is_empty()
    }

    /// An ICMP error about a packet of a connection, either way.
    fn error(&mut self) -> Step {
        let conversation = self.random.pick(&self.conversations);
        let Conversation {
            request, inside, ..
        } = conversation;
        let Some((client, host)) = ends(&request.frame) else {
            return request;
        };
        let protocol = Layers::of(&request.frame).map_or(UDP, |layers| layers.protocol);
        let families = self.families;
        let near = &families[usize::from(client.is_ipv6())];
        let about_reply = self.random.percent(50);
        let (about, from) = if about_reply {
            let from = self.random.pick(&[client.ip(), near.foreign, near.client]);
            (self.frame(protocol, host, client), from)
        } else {
            let from = self
                .random
                .pick(&[inside.1.ip(), inside.1.ip(), near.foreign]);
            (self.frame(protocol, inside.0, inside.1), from)
        };
        let mut about = about.to_bytes();
        if self.random.percent(10) {
            about = mutated(&mut self.random, about);
        }
        let quote = self
            .random
            .pick(&[20, 27, 28, 28, 36, 40, 48, 60, 68, 128, 548]);
        let Some(frame) = icmp_error(&mut self.random, from, &about, quote) else {
            return request;
        };
        let (at, device) = if about_reply {
            match request.at {
                At::EarlyDevice if self.random.percent(80) => (At::Device, request.device),
                at => (at, request.device),
            }
        } else {
            self.way_of(inside.1.ip())
        };
        addressed(at, device, frame)
    }

    /// Where a reply of a container or another target is seen.
    fn way_of(&mut self, container: IpAddr) -> (At, &'static str) {
        let [v4, v6] = self.families;
        if self.random.percent(2) {
            (At::Link, self.random.pick(&["veth1", "veth2"]))
        } else if container == v4.web || container == v6.web {
            (At::Link, "veth1")
        } else if container == v4.db || container == v6.db {
            (At::Link, "veth2")
        } else {
            (At::Egress, self.random.pick(&["eth0", "br0"]))
        }
    }

    /// A client to a host port.
    fn opening(&mut self) -> Step {
        let ends = self.random.pick(&self.families);
        let client = self.client(&ends);
        let host = self
            .random
            .pick(&[ends.host, ends.host, ends.host_second, ends.gateway]);
        let port = self.random.pick(&HOST_PORTS);
        let from = at(client, self.random.pick(&CLIENT_PORTS));
        let mut frame = self.opening_frame(from, at(host, port));
        let device = if self.random.percent(90) {
            "eth0"
        } else {
            "br0"
        };
        if self.random.percent(3) {
            frame.destination_mac = self.random.pick(&[[0xff; 6], [2, 9, 9, 9, 9, 9]]);
            let at = self.random.pick(&[At::Device, At::EarlyDevice]);
            return step(at, device, &frame);
        }
        let at = if self.random.percent(20) {
            At::EarlyDevice
        } else {
            At::Device
        };
        self.placed(at, device, frame)
    }

    /// A container to a host port, its own or another's.
    fn sent_by_container(&mut self) -> Step {
        let ends = self.random.pick(&self.families);
        let (link, own) = self.random.pick(&[("veth1", ends.web), ("veth2", ends.db)]);
        let source = if self.random.percent(92) {
            own
        } else {
            self.anybody(&ends)
        };
        let to = self
            .random
            .pick(&[ends.gateway, ends.host, ends.host_second, ends.foreign]);
        let port = 20_000 + (self.number % 8_000) as u16 * 4 + self.random.below(3) as u16;
        let from = at(source, self.random.pick(&[port, port, port, 80]));
        let port = self.random.pick(&HOST_PORTS);
        let frame = self.opening_frame(from, at(to, port));
        self.placed(At::Link, link, frame)
    }

    /// Anybody to anybody, by any hook.
    fn noise(&mut self) -> Step {
        let ends = self.random.pick(&self.families);
        let (from, to) = (self.anybody(&ends), self.anybody(&ends));
        let ports: [u16; 2] =
            std::array::from_fn(|_| self.random.pick(&[80, 8080, 8090, 443, 0, 65_535, 40_000]));
        let protocol = self.random.pick(&[TCP, UDP]);
        let frame = self.frame(protocol, at(from, ports[0]), at(to, ports[1]));
        let (at, device) = self.random.pick(&[
            (At::Device, "eth0"),
            (At::Device, "br0"),
            (At::EarlyDevice, "eth0"),
            (At::Link, "veth1"),
            (At::Link, "veth2"),
            (At::Egress, "eth0"),
            (At::Egress, "br0"),
        ]);
        self.placed(at, device, frame)
    }

    /// One of the sequence's own clients, or the real one.
    fn client(&mut self, ends: &Ends) -> IpAddr {
        if self.random.percent(5) {
            return self.anybody(ends);
        }
        let number = self.number << 1 | u32::from(self.random.percent(50));
        match ends.client {
            IpAddr::V4(_) => Ipv4Addr::from(0xc612_0000 | (number & 0x1_ffff)).into(), // 198.18/15
            IpAddr::V6(_) => {
                let [.., high, low] = [(number >> 16) as u16, number as u16];
                Ipv6Addr::new(0x2001, 0xdb8, 5, 0, 0, 0, high, low).into()
            }
        }
    }

    fn anybody(&mut self, ends: &Ends) -> IpAddr {
        let never = ends.never.map(|text| text.parse().expect("an address"));
        let known = [
            ends.client,
            ends.host,
            ends.host_second,
            ends.gateway,
            ends.web,
            ends.db,
            ends.foreign,
        ];
        if self.random.percent(30) {
            return self.random.pick(&never);
        }
        self.random.pick(&known)
    }

    /// What may open a flow: a lone SYN or INIT mostly, or a datagram.
    fn opening_frame(&mut self, from: SocketAddr, to: SocketAddr) -> Frame {
        let protocol = match to.port() {
            SCTP_PORT if self.random.percent(90) => SCTP,
            _ if self.random.percent(60) => TCP,
            _ => UDP,
        };
        let mut frame = self.frame(protocol, from, to);
        if self.random.percent(85) {
            match &mut frame.transport {
                Transport::Tcp { flags, .. } => *flags = flag::SYN,
                Transport::Sctp(chunk) => *chunk = 1,
                _ => {}
            }
        }
        frame
    }

    fn frame(&mut self, protocol: u8, from: SocketAddr, to: SocketAddr) -> Frame {
        // A mapped address or another family in a damaged packet: then any packet will do.
        let to = if from.is_ipv4() == to.is_ipv4() {
            to
        } else {
            from
        };
        let size = match self.random.below(20) {
            0..14 => self.random.below(40),
            14..19 => self.random.below(400),
            _ => 1_380 + self.random.below(200),
        };
        let payload = self.random.bytes(size);
        let mut frame = match protocol {
            TCP => Frame::tcp(from, to, self.random.pick(&FLAGS)).carrying(&payload),
            SCTP => Frame::sctp(from, to, self.random.pick(&CHUNKS)).carrying(&payload),
            _ => Frame::udp(from, to, &payload),
        };
        match &mut frame.transport {
            Transport::Tcp { options, .. } if self.random.percent(20) => {
                *options = vec![1; 4 * self.random.below(11)];
            }
            Transport::Udp if from.is_ipv4() && self.random.percent(10) => {
                frame.transport = Transport::UdpWithoutChecksum;
            }
            _ => {}
        }
        if self.random.percent(15) {
            let count = 1 + self.random.below(4);
            frame.ipv6_extensions = (0..count).map(|_| self.extension()).collect();
        }
        if self.random.percent(10) {
            frame.ipv4_options = vec![1; 4 * self.random.below(11)];
        }
        frame.hops = self.random.pick(&[64, 64, 64, 64, 255, 2, 1, 0]);
        frame
    }

    /// An IPv6 extension header: its number and its bytes.
    fn extension(&mut self) -> (u8, Vec<u8>) {
        let number = self.random.pick(&[0, 60, 60, 60, 43, 44, 51]);
        let units = if number == 44 {
            0
        } else {
            self.random.pick(&[0, 0, 0, 1, 2, 40])
        };
        let mut bytes = vec![0; 8 + 8 * usize::from(units)];
        bytes[1] = units;
        if number == 43 && self.random.percent(30) {
            bytes[3] = 1; // a segment is left
        }
        (number, bytes)
    }

    /// Sequence numbers that fit the container's first segment, mostly.
    fn number(&mut self, frame: &mut Frame, first: Option<u32>, expected: u32) {
        let far = self.random.percent(15);
        let noise = self.random.next() as u32;
        if let Transport::Tcp {
            flags,
            sequence,
            acknowledgment,
            ..
        } = &mut frame.transport
        {
            let beyond = u32::from(*flags & flag::SYN == 0);
            *sequence = first.map_or(1_001, |first| first.wrapping_add(beyond));
            *acknowledgment = if far { noise } else { expected };
        }
    }

    /// The frame with the hardware addresses that belong to its hook.
    fn placed(&mut self, at: At, device: &'static str, frame: Frame) -> Step {
        if self.random.percent(4) {
            let frame = sctp(&mut self.random, frame.source, frame.destination);
            return addressed(at, device, frame);
        }
        addressed(at, device, frame.to_bytes())
    }
}

/// The frame with the hardware addresses that belong to its hook.
fn addressed(at: At, device: &'static str, mut frame: Vec<u8>) -> Step {
    let (to, from) = match (at, device) {
        (At::Device | At::EarlyDevice, "eth0") => (HOST_MAC, CLIENT_MAC),
        _ => (GATEWAY_MAC, [2, 0, 0, 88, 0, 2]),
    };
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    Step {
        at,
        device,
        segment: 0,
        frame,
    }
}

fn step(at: At, device: &'static str, frame: &Frame) -> Step {
    Step {
        at,
        device,
        segment: 0,
        frame: frame.to_bytes(),
    }
}

/// Both ends of a frame, if it has ports.
fn ends(frame: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let layers = Layers::of(frame)?;
    let (source, destination) = layers.ports()?;
    Some((
        at(layers.source, source),
        at(layers.destination, destination),
    ))
}
