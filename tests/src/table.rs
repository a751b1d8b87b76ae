//! What packet tables are made of: addresses, frames that open flows, and a table's verdict.

use std::net::{IpAddr, SocketAddr};

use crate::datapath::{Datapath, Row};
use crate::packet::{Frame, Transport, flag};
use crate::topology::{
    CLIENT, CLIENT_MAC, CLIENT6, FOREIGN, FOREIGN6, GATEWAY, GATEWAY6, HOST, HOST_MAC, HOST_SECOND,
    HOST6, HOST6_SECOND, Shape, Topology,
};

/// TCP options of a real SYN: largest segment, window scale, SACK, timestamps.
const SYN_OPTIONS: [u8; 20] = [
    2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7,
];

/// The addresses of one family.
#[derive(Debug, Clone, Copy)]
pub struct Ends {
    /// The client.
    pub client: IpAddr,
    /// The host's address toward the client.
    pub host: IpAddr,
    /// The second one.
    pub host_second: IpAddr,
    /// The host's address toward the containers.
    pub gateway: IpAddr,
    /// The container that publishes 8080.
    pub web: IpAddr,
    /// The container that publishes 8090.
    pub db: IpAddr,
    /// A server elsewhere.
    pub foreign: IpAddr,
    /// Never translated, whatever the port.
    pub never: [&'static str; 5],
}

/// Both families.
///
/// # Panics
/// Never: the addresses are literals.
#[must_use]
pub fn families() -> [Ends; 2] {
    let address = |text: &str| text.parse().expect("an address");
    [
        Ends {
            client: CLIENT,
            host: HOST,
            host_second: HOST_SECOND,
            gateway: GATEWAY,
            web: address("10.88.0.2"),
            db: address("10.88.0.3"),
            foreign: FOREIGN,
            never: [
                "127.0.0.1",
                "255.255.255.255",
                "192.0.2.255",
                "224.0.0.251",
                "0.0.0.0",
            ],
        },
        Ends {
            client: CLIENT6,
            host: HOST6,
            host_second: HOST6_SECOND,
            gateway: GATEWAY6,
            web: address("fd88::2"),
            db: address("fd88::3"),
            foreign: FOREIGN6,
            never: ["::1", "ff02::1", "ff05::2", "fe80::1", "::"],
        },
    ]
}

/// Two containers that publish their port 80 over both protocols: `web` at 8080, `db` at 8090.
pub fn topology() -> Topology {
    published(Topology::new(Shape::default()))
}

/// The same of this topology.
#[must_use]
pub fn published(topology: Topology) -> Topology {
    topology.attach("web", 0, &["8080:80", "8080:80/udp"]);
    topology.attach("db", 1, &["8090:80", "8090:80/udp"]);
    topology
}

/// Asserts that every row comes out as it says.
///
/// # Panics
/// When some do not, showing each.
#[track_caller]
pub fn play(datapath: &Datapath, rows: &[Row]) {
    let faults = datapath.faults(rows);
    assert!(
        faults.is_empty(),
        "{} of {} rows fail:\n{}",
        faults.len(),
        rows.len(),
        faults.join("\n")
    );
}

/// An address with a port.
#[must_use]
pub fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

/// A frame of the client to the host.
pub fn inbound(frame: Frame) -> Frame {
    frame.on_link(CLIENT_MAC, HOST_MAC)
}

/// What a redirected frame looks like: other ends, one hop less.
pub fn hopped(frame: &Frame, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut frame = frame.clone().between(source, destination);
    frame.hops -= 1;
    frame.to_bytes()
}

/// A SYN and a datagram, plain and with everything that a header can carry.
pub fn opening_frames(source: SocketAddr, destination: SocketAddr) -> Vec<(&'static str, Frame)> {
    let syn = Frame::tcp(source, destination, flag::SYN);
    let mut full_syn = syn.clone().carrying(b"data with the SYN");
    full_syn.transport = Transport::Tcp {
        flags: flag::SYN | 0xc0, // with the two bits of ECN
        sequence: u32::MAX,
        acknowledgment: 0,
        options: SYN_OPTIONS.to_vec(),
    };
    let datagram = Frame::udp(source, destination, b"odd");
    let empty = Frame::udp(source, destination, b"");
    let mut options = syn.clone();
    options.ipv4_options = vec![148, 4, 0, 0]; // router alert (RFC 2113)
    options.ipv6_extensions = vec![(60, vec![0, 0, 1, 4, 0, 0, 0, 0])];
    let mut many_options = datagram.clone();
    many_options.ipv4_options = vec![1; 40];
    many_options.ipv6_extensions = vec![
        (0, vec![0, 0, 1, 4, 0, 0, 0, 0]),
        (60, vec![0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ];
    vec![
        ("a SYN", syn),
        ("a SYN with options and data", full_syn),
        ("a datagram of odd length", datagram),
        ("an empty datagram", empty),
        ("a SYN behind an option", options),
        ("a datagram behind many options", many_options),
    ]
}

/// Whether a frame has IPv6 extension headers: a program need not look behind them, but must not get
/// them wrong either.
pub fn is_extended(frame: &Frame) -> bool {
    frame.source.is_ipv6() && !frame.ipv6_extensions.is_empty()
}
