//! A host with several ways to its clients: replies take the one of the routing table.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};

use portfwd_tests::capture::{Capture, Captured, faults};
use portfwd_tests::clients;
use portfwd_tests::deadline::{PATIENCE, until};
use portfwd_tests::topology::{CLIENT, HOST, HOST_SECOND, HOST6, Shape, Topology};

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

// Fails if `fib::route` of the datapath always gives its fallback, the device that the request came in by.
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

// Fails if `deliver` never asks for the route of a flow again.
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

/// A source that the host knows no way to.
const UNKNOWN: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 5));

/// An address behind the host's link to the foreign server.
const CLIENT_ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 77));

/// The host's `rp_filter` of its first uplink, from the next command on.
fn check_sources(topology: &Topology, mode: &str) {
    topology.host.set_sysctl("ipv4/conf/eth0/rp_filter", mode);
    topology.portfwd(&["up"]).expect_ok();
}

/// How many packets the datapath has left to the host's own check, and how many that has dropped.
fn refused(topology: &Topology) -> [u64; 2] {
    [
        topology.counted("reverse-path"),
        topology.host.counter("TcpExt", "IPReversePathFilter"),
    ]
}

/// Whether a datagram from this address of the client, which leaves by its first link, is answered.
fn is_served(topology: &Topology, from: IpAddr) -> bool {
    is_served_at(topology, from, HOST)
}

/// The same of another address of the host. What is not answered has been refused by the host.
fn is_served_at(topology: &Topology, from: IpAddr, host: IpAddr) -> bool {
    let before = refused(topology);
    let bound = topology.client.run(|| UdpSocket::bind((from, 0)));
    let socket = bound.expect("a socket");
    socket
        .send_to(b"across and back", (host, 8080))
        .expect("send");
    socket.set_nonblocking(true).expect("not to wait");
    until("an answer or a refusal", PATIENCE, || {
        if socket.recv(&mut [0; 64]).is_ok() {
            assert_eq!(refused(topology), before, "{from}");
            return Some(true);
        }
        let now = refused(topology);
        (now == before.map(|count| count + 1)).then_some(false)
    })
}

/// Fails if `forward::fits_reverse_path` of the datapath lets everything in, or looks at another device than
/// the one that the packet came in by.
#[test]
fn sources_are_checked_as_the_hosts_own_rp_filter_has_it() {
    let topology = topology(Shape::default());
    let _servers = topology.serve();
    topology.client.ip("addr add 198.18.0.5/32 dev lo\n");
    topology.attach("web", 0, &["8080:80", "8080:80/udp"]);
    // Each mode with whom it serves: a client on this link, one of another link, one without a way back.
    for (mode, served) in [
        ("1", [true, false, false]),
        ("2", [true, true, false]),
        ("0", [true, true, true]),
        ("1", [true, false, false]),
    ] {
        check_sources(&topology, mode);
        if mode == "0" {
            // Only with a way back there is an answer.
            topology.host.ip("route add 198.18.0.5 via 192.0.2.2\n");
        }
        let sources = [CLIENT, SECOND, UNKNOWN];
        assert_eq!(
            sources.map(|from| is_served(&topology, from)),
            served,
            "{mode}"
        );
        if mode == "0" {
            topology.host.ip("route del 198.18.0.5\n");
        }
        let own = connect(&topology, CLIENT, SocketAddr::new(HOST, 8080));
        clients::ask_stream(&own).expect("an answer");
    }
    // The host's own check is of IPv4 alone, and so is this.
    let v6 = connect(&topology, SECOND6, SocketAddr::new(HOST6, 8080));
    clients::ask_stream(&v6).expect("an answer");
    // The other link is not checked, and a connection that is open is not checked again.
    let to = SocketAddr::new("198.51.100.1".parse().expect("an address"), 8080);
    let stream = connect(&topology, SECOND, to);
    topology.host.set_sysctl("ipv4/conf/all/rp_filter", "1");
    topology.portfwd(&["up"]).expect_ok();
    topology
        .host
        .ip("route add 198.51.100.2 via 192.0.2.2 dev eth0\n");
    clients::ask_stream(&stream).expect("an answer");
}

/// Fails if the loader does not tell the programs which devices share a route.
#[test]
fn a_strict_check_takes_each_way_of_a_route_with_several() {
    let topology = topology(Shape::default());
    let _servers = topology.serve();
    topology
        .client
        .ip("addr add 198.18.0.5/32 dev lo\naddr add 203.0.113.77/32 dev lo\n");
    topology.attach("web", 0, &["8080:80/udp"]);
    topology
        .host
        .ip("route add 198.18.0.5 nexthop via 192.0.2.2 nexthop via 198.51.100.2\n");
    // By either link. Which of the two an answer takes depends on the ports.
    topology
        .host
        .set_sysctl("ipv4/fib_multipath_hash_policy", "1");
    topology
        .client
        .ip("route add 192.0.2.10 via 198.51.100.1 dev eth1\n");
    topology.host.set_sysctl("ipv4/conf/eth2/rp_filter", "1");
    check_sources(&topology, "1");
    for host in [HOST, HOST_SECOND] {
        for _ in 0..16 {
            assert!(is_served_at(&topology, UNKNOWN, host), "{host}");
        }
        assert!(!is_served_at(&topology, CLIENT_ELSEWHERE, host), "{host}");
    }
}

/// Fails if a table that tells nothing counts as one without a way back.
#[test]
fn where_the_host_does_not_forward_its_routes_are_not_known_and_sources_not_checked() {
    let topology = topology(Shape::default());
    topology.host.set_sysctl("ipv4/ip_forward", "0");
    let _servers = topology.serve();
    topology.attach("web", 0, &["8080:80", "8080:80/udp"]);
    check_sources(&topology, "1");
    for from in [CLIENT, SECOND] {
        assert!(is_served(&topology, from), "{from}");
    }
}
