//! Published ports work: both families, both protocols, from everywhere, on both wirings.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use portfwd_tests::clients::{self, Answer, Closed, Protocol};
use portfwd_tests::deadline::{PATIENCE, patient};
use portfwd_tests::namespace::Namespace;
use portfwd_tests::topology::{
    CLIENT, CLIENT6, GATEWAY, GATEWAY6, HOST, HOST_SECOND, HOST6, HOST6_SECOND, Shape, Topology,
};

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
const BOTH: [&str; 2] = ["8080:80", "8080:80/udp"];
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LOOPBACK6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

fn shapes() -> [Shape; 3] {
    let forwarding = Shape::forwarding();
    [Shape::default(), Shape::routed(), forwarding]
}

#[track_caller]
fn ask(from: &Namespace, protocol: Protocol, address: IpAddr, port: u16) -> Answer {
    let to = SocketAddr::new(address, port);
    clients::ask(from, protocol, to)
        .unwrap_or_else(|error| panic!("{protocol:?} {to} from {}: {error}", from.name()))
}

#[test]
fn clients_reach_a_published_port_on_every_host_address_and_keep_their_own() {
    for shape in shapes() {
        let topology = Topology::new(shape);
        let _servers = topology.serve();
        topology.attach("web", 0, &BOTH);
        for address in [HOST, HOST_SECOND, HOST6, HOST6_SECOND] {
            let client = if address.is_ipv4() { CLIENT } else { CLIENT6 };
            for protocol in PROTOCOLS {
                let answer = ask(&topology.client, protocol, address, 8080);
                assert_eq!(answer.label, "web");
                assert_eq!(
                    answer.seen,
                    SocketAddr::new(client, answer.own.port()),
                    "{shape:?}"
                );
            }
        }
    }
}

#[test]
fn the_host_reaches_it_over_loopback_and_over_every_own_address() {
    for shape in [Shape::default(), Shape::routed()] {
        let topology = Topology::new(shape);
        let _servers = topology.serve();
        topology.attach("web", 0, &BOTH);
        let mapped = |address: IpAddr| match address {
            IpAddr::V4(v4) => IpAddr::V6(v4.to_ipv6_mapped()),
            IpAddr::V6(_) => address,
        };
        let own = [
            LOOPBACK,
            LOOPBACK6,
            HOST,
            HOST6,
            HOST_SECOND,
            HOST6_SECOND,
            GATEWAY,
            GATEWAY6,
        ];
        let all = own.into_iter().chain([mapped(LOOPBACK), mapped(HOST)]);
        for address in all {
            for protocol in PROTOCOLS {
                assert_eq!(
                    ask(&topology.host, protocol, address, 8080).label,
                    "web",
                    "{address}"
                );
            }
            let to = SocketAddr::new(address, 8080);
            let answer = clients::ask_unconnected(&topology.host, to)
                .unwrap_or_else(|error| panic!("unconnected datagram to {to}: {error}"));
            assert_eq!(answer.label, "web");
        }
    }
}

// Fails without the hook of getpeername (socket.rs).
#[test]
fn a_host_process_sees_the_peer_that_it_asked_for() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology.attach("web", 0, &BOTH);
    for address in [LOOPBACK, LOOPBACK6, HOST, HOST6] {
        let to = SocketAddr::new(address, 8080);
        let stream = clients::connect(&topology.host, to).expect("connect");
        assert_eq!(stream.peer_addr().expect("a peer"), to);
        let socket = clients::datagram_socket(&topology.host, to).expect("connect");
        assert_eq!(socket.peer_addr().expect("a peer"), to);
    }
}

// Fails without the hook of recvmsg (socket.rs).
#[test]
fn a_host_socket_may_ask_by_one_address_after_another() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology.attach("web", 0, &BOTH);
    for (any, addresses) in [
        ("0.0.0.0:0", [LOOPBACK, HOST, LOOPBACK]),
        ("[::]:0", [LOOPBACK6, HOST6, LOOPBACK6]),
    ] {
        let socket = topology
            .host
            .run(|| UdpSocket::bind(any))
            .expect("bind any port");
        for address in addresses {
            // Answers that do not come from where the question went are errors.
            let to = SocketAddr::new(address, 8080);
            clients::ask_from(&socket, to).unwrap_or_else(|error| panic!("{to}: {error}"));
        }
    }
}

/// Which of its calls took a host socket to the container last.
#[derive(Clone, Copy, Debug)]
enum Before {
    Nothing,
    Connected,
    Disconnected,
}

// Fails if what a call has noted (`HOST_SOCKETS`, `HOST_PEERS` in socket.rs) outlives the next that goes to
// the same container.
#[test]
fn a_host_socket_is_told_the_address_that_it_asked_last() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology.attach("web", 0, &BOTH);
    let [v4, v6] = topology.containers[0].addresses();
    for (any, loopback, host, container) in [
        ("0.0.0.0:0", LOOPBACK, HOST, v4),
        ("[::]:0", LOOPBACK6, HOST6, v6),
    ] {
        let published = SocketAddr::new(loopback, 8080);
        let other = SocketAddr::new(host, 8080);
        let direct = SocketAddr::new(container, 80);
        for before in [Before::Nothing, Before::Connected, Before::Disconnected] {
            for order in [[published, direct, other], [other, direct, published]] {
                let what = format!("{before:?}, {order:?}");
                let socket = topology.host.run(|| UdpSocket::bind(any)).expect("bind");
                if !matches!(before, Before::Nothing) {
                    socket.connect(published).expect("connect");
                    asks_its_peer(&socket, published);
                }
                if matches!(before, Before::Disconnected) {
                    clients::disconnect(&socket).expect("disconnect");
                }
                for to in order {
                    let asked = clients::ask_from(&socket, to);
                    asked.unwrap_or_else(|error| panic!("{to}, {what}: {error}"));
                    if matches!(before, Before::Connected) {
                        assert_eq!(socket.peer_addr().expect("a peer"), published, "{what}");
                    }
                }
                for to in [other, direct, published] {
                    socket.connect(to).expect("connect");
                    asks_its_peer(&socket, to);
                    assert_eq!(socket.peer_addr().expect("a peer"), to, "{what}");
                }
            }
        }
    }
}

/// Sends to the peer of a connected socket, and is told that it answered.
#[track_caller]
fn asks_its_peer(socket: &UdpSocket, peer: SocketAddr) {
    let patience = Some(patient(PATIENCE));
    socket.set_read_timeout(patience).expect("a time limit");
    socket.send(b"across and back").expect("send");
    let (_, from) = socket.recv_from(&mut [0; 256]).expect("an answer");
    assert_eq!(from, peer);
}

#[test]
fn a_host_socket_that_connects_anew_sees_its_new_peer() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology.attach("web", 0, &BOTH);
    let published = SocketAddr::new(LOOPBACK, 8080);
    let direct = SocketAddr::new(topology.containers[0].v4.into(), 80);
    let socket = clients::datagram_socket(&topology.host, published).expect("connect");
    for to in [direct, published, direct] {
        socket.connect(to).expect("connect anew");
        assert_eq!(
            clients::ask_datagram(&socket).expect("an answer").label,
            "web"
        );
        assert_eq!(socket.peer_addr().expect("a peer"), to);
    }
}

/// A packet from 127.0.0.1 cannot leave the host, so that such a socket has no way to a container.
#[test]
fn a_host_socket_bound_to_loopback_is_refused_at_once() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology.attach("web", 0, &BOTH);
    for (own, address) in [
        (LOOPBACK, LOOPBACK),
        (LOOPBACK, HOST),
        (LOOPBACK6, LOOPBACK6),
    ] {
        let from = SocketAddr::new(own, 0);
        let to = SocketAddr::new(address, 8080);
        let error = clients::connect_from(&topology.host, from, to).expect_err("no way");
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::ConnectionRefused,
            "{from} {to}"
        );
        let socket = clients::bound_socket(&topology.host, from).expect("bind loopback");
        socket.connect(to).expect("connect a datagram socket");
        let error = clients::ask_datagram(&socket).expect_err("no way");
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::ConnectionRefused,
            "{from} {to}"
        );
    }
    let own_address = SocketAddr::new(HOST, 0);
    let to = SocketAddr::new(LOOPBACK, 8080);
    let stream = clients::connect_from(&topology.host, own_address, to).expect("connect");
    assert_eq!(
        clients::ask_stream(&stream).expect("an answer").label,
        "web"
    );
}

// Without the type of the packet (`address_to_host` in packet.rs) this still passes where the kernel sets it itself,
// as it does since Linux 6.15 when it hands a packet to a peer (`skb_scrub_packet` in `skb_do_redirect`).
#[test]
fn containers_reach_published_ports_and_keep_their_addresses() {
    for shape in [Shape::default(), Shape::routed()] {
        let topology = Topology::new(shape);
        let _servers = topology.serve();
        topology.attach("web", 0, &BOTH);
        let [_, other] = &topology.containers;
        for attached in [false, true] {
            if attached {
                topology.attach("db", 1, &["8090:80", "8090:80/udp"]);
            }
            for address in [GATEWAY, GATEWAY6, HOST, HOST6] {
                let own: IpAddr = if address.is_ipv4() {
                    other.v4.into()
                } else {
                    other.v6.into()
                };
                for protocol in PROTOCOLS {
                    let answer = ask(&other.namespace, protocol, address, 8080);
                    assert_eq!(answer.label, "web");
                    assert_eq!(answer.seen.ip(), own, "{shape:?}, attached: {attached}");
                }
            }
        }
    }
}

// Fails if the source stays the container's own (`request` in first.rs).
#[test]
fn a_container_reaches_itself_through_its_own_published_port() {
    for shape in [Shape::default(), Shape::routed()] {
        let topology = Topology::new(shape);
        let _servers = topology.serve();
        topology.attach("web", 0, &BOTH);
        for address in [GATEWAY, GATEWAY6, HOST, HOST6] {
            for protocol in PROTOCOLS {
                let answer = ask(&topology.containers[0].namespace, protocol, address, 8080);
                assert_eq!(answer.label, "web", "{shape:?} {address}");
            }
        }
    }
}

// Fails if a port of one address is looked up by less than address, port and protocol (`published` in
// forward.rs).
#[test]
fn two_containers_are_told_apart_by_port_and_by_host_address() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology.attach(
        "web",
        0,
        &["192.0.2.1:8080:80", "[2001:db8:1::1]:8080:80", "8081:80"],
    );
    topology.attach(
        "db",
        1,
        &["192.0.2.10:8080:80", "[2001:db8:1::10]:8080:80", "8082:80"],
    );
    for (address, port, label) in [
        (HOST, 8080, "web"),
        (HOST6, 8080, "web"),
        (HOST_SECOND, 8080, "db"),
        (HOST6_SECOND, 8080, "db"),
        (HOST, 8081, "web"),
        (HOST6, 8082, "db"),
    ] {
        for from in [&topology.client, &topology.host] {
            assert_eq!(
                ask(from, Protocol::Tcp, address, port).label,
                label,
                "{address}:{port}"
            );
        }
    }
    let other = SocketAddr::new(GATEWAY, 8080);
    assert_eq!(
        clients::closed(&topology.host, Protocol::Tcp, other),
        Closed::Refused
    );
}

#[test]
fn a_range_leads_to_each_port_of_a_range() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology.attach("web", 0, &["9078-9082:78-82"]);
    assert_eq!(
        ask(&topology.client, Protocol::Tcp, HOST, 9080).label,
        "web"
    );
    assert_eq!(
        ask(&topology.client, Protocol::Tcp, HOST6, 9080).label,
        "web"
    );
    // The container itself refuses the neighbours: the packet has reached it.
    let closed = SocketAddr::new(HOST, 9081);
    assert_eq!(
        clients::closed(&topology.client, Protocol::Tcp, closed),
        Closed::Refused
    );
    assert_eq!(
        topology.published(),
        [
            "web tcp 0.0.0.0:9078 -> 10.88.0.2:78 x5",
            "web tcp [::]:9078 -> [fd88::2]:78 x5",
        ]
    );
}

/// Fails without blocks (`published` in forward.rs), and with one that has a port too many.
#[test]
fn all_ports_of_an_address_lead_to_one_container() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology.attach("web", 0, &["192.0.2.1:1-65535:1-65535"]);
    topology.attach("db", 1, &["[2001:db8:1::1]:1-300:1-300"]);
    let ask = |address, port| ask(&topology.client, Protocol::Tcp, address, port).label;
    assert_eq!((ask(HOST, 80), ask(HOST6, 80)), ("web".into(), "db".into()));
    for port in [1, 255, 256, 65_535] {
        // The container refuses: the packet has reached it.
        let closed = clients::closed(&topology.client, Protocol::Tcp, SocketAddr::new(HOST, port));
        assert_eq!(closed, Closed::Refused, "{port}");
    }
    let counted = topology.list();
    let counted = counted.iter().map(|forward| &forward["connections"]);
    assert_eq!(counted.collect::<Vec<_>>(), [5, 1]);
    assert_eq!(
        topology.published(),
        [
            "db tcp [2001:db8:1::1]:1 -> [fd88::3]:1 x300",
            "web tcp 192.0.2.1:1 -> 10.88.0.2:1 x65535",
        ]
    );
    topology.portfwd(&["detach", "web"]).expect_ok();
    assert_eq!(ask(HOST6, 80), "db");
    topology.attach("db", 1, &["192.0.2.1:500-900:1-401"]);
    assert_eq!(ask(HOST, 579), "db");
}

#[test]
fn a_host_range_with_one_container_port_takes_the_first_free_port() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology.attach("db", 1, &["9000:80"]);
    let outcome = topology.attach("web", 0, &["9000-9010:80"]);
    assert_eq!(
        outcome.stdout,
        "80/tcp -> 0.0.0.0:9001\n80/tcp -> [::]:9001\n"
    );
    assert_eq!(
        ask(&topology.client, Protocol::Tcp, HOST, 9001).label,
        "web"
    );
}

#[test]
fn a_chosen_port_comes_from_the_upper_range_and_comes_back() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    let first = topology.attach("web", 0, &["80"]).stdout;
    let port: u16 = first
        .lines()
        .next()
        .and_then(|line| line.strip_prefix("80/tcp -> 0.0.0.0:"))
        .and_then(|port| port.parse().ok())
        .unwrap_or_else(|| panic!("attach printed {first:?}"));
    assert!(port >= 61_000);
    assert_eq!(
        ask(&topology.client, Protocol::Tcp, HOST, port).label,
        "web"
    );
    topology.portfwd(&["detach", "web"]).expect_ok();
    assert_eq!(topology.attach("web", 0, &["80"]).stdout, first);
}

#[test]
fn unpublished_ports_of_the_host_behave_as_before() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    let _own = portfwd_tests::servers::Server::start(&topology.host, &[HOST, HOST6], 22, "host");
    topology.attach("web", 0, &["8080:80"]);
    for address in [HOST, HOST6] {
        for protocol in PROTOCOLS {
            assert_eq!(ask(&topology.client, protocol, address, 22).label, "host");
            let closed = SocketAddr::new(address, 8081);
            assert_eq!(
                clients::closed(&topology.client, protocol, closed),
                Closed::Refused
            );
        }
        // Published for TCP alone.
        let udp = SocketAddr::new(address, 8080);
        assert_eq!(
            clients::closed(&topology.client, Protocol::Udp, udp),
            Closed::Refused
        );
    }
}

#[test]
fn a_container_without_ipv6_holds_its_port_in_both_families() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology
        .portfwd(&["attach", "web", "--ip", "10.88.0.2", "-p", "8080:80"])
        .expect_ok();
    assert_eq!(
        ask(&topology.client, Protocol::Tcp, HOST, 8080).label,
        "web"
    );
    let v6 = SocketAddr::new(HOST6, 8080);
    assert_eq!(
        clients::closed(&topology.client, Protocol::Tcp, v6),
        Closed::Refused
    );
    topology
        .try_attach("db", 1, &["[::]:8080:80"])
        .expect_code(3)
        .expect_stderr("container \"web\" (tcp)");
}

#[test]
fn a_container_given_by_addresses_alone_is_reached() {
    for shape in [Shape::default(), Shape::routed()] {
        let topology = Topology::new(shape);
        let _servers = topology.serve();
        let arguments = [
            "attach",
            "web",
            "--ip",
            "10.88.0.2,fd88::2",
            "-p",
            "8080:80",
        ];
        topology.portfwd(&arguments).expect_ok();
        for address in [HOST, HOST6] {
            assert_eq!(
                ask(&topology.client, Protocol::Tcp, address, 8080).label,
                "web"
            );
            assert_eq!(
                ask(&topology.host, Protocol::Tcp, address, 8080).label,
                "web"
            );
        }
    }
}

#[test]
fn counters_count_packets_both_ways_and_connections_of_every_origin() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology.attach("web", 0, &BOTH);
    for _ in 0..3 {
        ask(&topology.client, Protocol::Tcp, HOST, 8080);
    }
    ask(&topology.client, Protocol::Udp, HOST, 8080);
    ask(&topology.host, Protocol::Tcp, LOOPBACK, 8080);
    for forward in topology.list() {
        let number = |key: &str| forward[key].as_u64().expect("a counter is a number");
        let counted = [
            number("connections"),
            number("rxPackets"),
            number("txPackets"),
        ];
        match (forward["hostIp"].as_str(), forward["protocol"].as_str()) {
            (Some("0.0.0.0"), Some("tcp")) => {
                // Three from outside and one through the socket hooks, which counts no packets.
                assert_eq!(counted[0], 4, "{forward}");
                assert!(counted[1] >= 3 * 4 && counted[2] >= 3 * 3, "{forward}");
                assert!(number("rxBytes") > counted[1] * 40, "{forward}");
                assert!(number("txBytes") > counted[2] * 40, "{forward}");
            }
            // One datagram of 20 + 8 + 15 bytes, and its answer.
            (Some("0.0.0.0"), Some("udp")) => {
                assert_eq!(counted, [1, 1, 1], "{forward}");
                assert_eq!(number("rxBytes"), 43, "{forward}");
            }
            _ => assert_eq!(counted, [0, 0, 0], "{forward}"),
        }
        assert_eq!(number("drops"), 0, "{forward}");
    }
}

#[test]
fn port_prints_as_docker_port_does() {
    let topology = Topology::new(Shape::default());
    topology.attach("web", 0, &["8080:80", "127.0.0.1:5353:53/udp"]);
    let port = |arguments: &[&str]| topology.portfwd(&[&["port", "web"], arguments].concat());
    assert_eq!(
        port(&[]).expect_ok().stdout,
        "53/udp -> 127.0.0.1:5353\n80/tcp -> 0.0.0.0:8080\n80/tcp -> [::]:8080\n"
    );
    assert_eq!(
        port(&["80"]).expect_ok().stdout,
        "0.0.0.0:8080\n[::]:8080\n"
    );
    assert_eq!(port(&["53/udp"]).expect_ok().stdout, "127.0.0.1:5353\n");
    port(&["81"]).expect_code(4);
    topology.portfwd(&["port", "nobody"]).expect_code(4);
}
