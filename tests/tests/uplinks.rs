//! A host with several ways to its clients: replies take the one of the routing table.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};

use portfwd_tests::capture::{Capture, Captured, faults};
use portfwd_tests::clients;
use portfwd_tests::deadline::{PATIENCE, until};
use portfwd_tests::topology::{HOST, HOST6, Shape, Topology};

/// The client's addresses on its second link. Requests to [`HOST`] leave by its first one all the same.
const SECOND: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2));
const SECOND6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 5, 0, 0, 0, 0, 2));

/// Host and client with a second link between them: `eth2` there, `eth1` here.
fn topology(shape: Shape) -> Topology {
    let topology = Topology::new(Shape {
        forwarding: true,
        ..shape
    });
    topology.host.ip(&format!(
        "link add eth2 index 51 type veth peer name eth1 index 52 netns {}
         addr add 198.51.100.1/24 dev eth2
         addr add 2001:db8:5::1/64 dev eth2 nodad
         addr add fe80::51/64 dev eth2 nodad
         link set eth2 up\n",
        topology.client.name()
    ));
    topology.client.ip("addr add 198.51.100.2/24 dev eth1
         addr add 2001:db8:5::2/64 dev eth1 nodad
         addr add fe80::52/64 dev eth1 nodad
         link set eth1 up\n");
    topology
}

/// The frames from the published port that came in.
fn replies(frames: &[Captured]) -> usize {
    let is_reply = |frame: &&Captured| {
        let ports = frame.layers().and_then(|layers| layers.ports());
        !frame.outgoing && ports.is_some_and(|(source, _)| source == 8080)
    };
    frames.iter().filter(is_reply).count()
}

/// How many replies an exchange gets by each link of the client, the first one first.
fn replies_by_link(topology: &Topology, exchange: impl FnOnce()) -> [usize; 2] {
    let captures = ["eth0", "eth1"].map(|device| Capture::start(&topology.client, device));
    exchange();
    captures.map(|capture| {
        let frames = capture.finish();
        assert_eq!(faults(&frames, false), Vec::<String>::new());
        replies(&frames)
    })
}

fn connect(topology: &Topology, from: IpAddr, to: SocketAddr) -> TcpStream {
    clients::connect_from(&topology.client, SocketAddr::new(from, 0), to)
        .unwrap_or_else(|error| panic!("{from} to {to}: {error}"))
}

/// Fails if `fib::route` of the datapath always gives its fallback, the device that the request came in by.
#[test]
fn replies_leave_by_the_route_to_the_client_whatever_device_the_request_came_in_by() {
    for shape in [Shape::default(), Shape::routed()] {
        let topology = topology(shape);
        let _servers = topology.serve();
        topology.attach("web", 0, &["8080:80", "8080:80/udp"]);
        for (from, host) in [(SECOND, HOST), (SECOND6, HOST6)] {
            let to = SocketAddr::new(host, 8080);
            let by_link = replies_by_link(&topology, || {
                let stream = connect(&topology, from, to);
                let answer = clients::ask_stream(&stream).expect("an answer");
                assert_eq!(answer.seen.ip(), from);
            });
            assert!(by_link[0] == 0 && by_link[1] > 2, "TCP {to}: {by_link:?}");
            let by_link = replies_by_link(&topology, || {
                let bound = topology.client.run(|| UdpSocket::bind((from, 0)));
                let answer = clients::ask_from(&bound.expect("a socket"), to).expect("an answer");
                assert_eq!(answer.seen.ip(), from);
            });
            assert_eq!(by_link, [0, 1], "UDP {to}");
        }
    }
}

/// Fails if `deliver` never asks for the route of a flow again.
#[test]
fn a_connection_follows_a_change_of_the_route_to_its_client() {
    let topology = topology(Shape::default());
    let _servers = topology.serve();
    topology.attach("web", 0, &["8080:80"]);
    for (from, host, gateway) in [
        (SECOND, HOST, "192.0.2.2"),
        (SECOND6, HOST6, "2001:db8:1::2"),
    ] {
        let stream = connect(&topology, from, SocketAddr::new(host, 8080));
        clients::ask_stream(&stream).expect("an answer");
        topology
            .host
            .ip(&format!("route add {from} via {gateway} dev eth0\n"));
        // The datapath asks for the route about once a second.
        until("replies by the new route", PATIENCE, || {
            let echo = || clients::echo(&stream, b"by either link").expect("an echo");
            let by_link = replies_by_link(&topology, echo);
            assert!(by_link[0] + by_link[1] > 0, "{by_link:?}");
            (by_link[0] > 0 && by_link[1] == 0).then_some(())
        });
    }
}
