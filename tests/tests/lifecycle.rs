//! What is withdrawn is gone at once, and what is taken down leaves nothing.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use portfwd_tests::capture::{Capture, Captured};
use portfwd_tests::clients::{self, Churn, Closed, Protocol};
use portfwd_tests::deadline::{PATIENCE, until, until_ok};
use portfwd_tests::topology::{CLIENT, CLIENT6, HOST, HOST6, Shape, Topology};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LOOPBACK6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

/// Whether a captured frame comes from the client's `port`.
fn comes_from(frame: &Captured, port: u16) -> bool {
    let layers = frame.layers();
    layers.is_some_and(|layers| {
        [CLIENT, CLIENT6].contains(&layers.source)
            && layers.ports().is_some_and(|(source, _)| source == port)
    })
}

#[test]
fn after_detach_no_packet_follows_an_old_flow() {
    for address in [HOST, HOST6] {
        let topology = Topology::new(Shape::default());
        let _servers = topology.serve();
        topology.attach("web", 0, &["8080:80", "8080:80/udp"]);
        topology.attach("mark", 0, &["9999:80/udp"]);
        let stream = clients::connect(&topology.client, at(address, 8080)).expect("connect");
        clients::ask_stream(&stream).expect("an answer before");
        let datagrams =
            clients::datagram_socket(&topology.client, at(address, 8080)).expect("a socket");
        clients::ask_datagram(&datagrams).expect("an answer before");
        let ports = [
            stream.local_addr().expect("an address").port(),
            datagrams.local_addr().expect("an address").port(),
        ];

        topology.portfwd(&["detach", "web"]).expect_ok();
        let capture = Capture::start(&topology.containers[0].namespace, "eth0");
        assert!(clients::echo(&stream, b"anybody?").is_err());
        assert!(clients::ask_datagram(&datagrams).is_err());
        clients::ask(&topology.client, Protocol::Udp, at(address, 9999)).expect("the mark");
        let late: Vec<Captured> = capture
            .finish()
            .into_iter()
            .filter(|frame| ports.iter().any(|port| comes_from(frame, *port)))
            .collect();
        assert!(late.is_empty(), "{late:?}");
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let closed = clients::closed(&topology.client, protocol, at(address, 8080));
            assert_eq!(closed, Closed::Refused);
        }
        let flows = topology.portfwd(&["--json", "flows"]).expect_ok().json();
        let flows = flows.as_array().expect("an array");
        assert!(
            flows.iter().all(|flow| flow["container"] == "mark"),
            "{flows:?}"
        );
    }
}

#[test]
fn under_a_new_owner_packets_of_the_same_client_port_go_to_the_new_owner() {
    for address in [HOST, HOST6] {
        let topology = Topology::new(Shape::default());
        let _servers = topology.serve();
        topology.attach("web", 0, &["8080:80", "8080:80/udp"]);
        let datagrams =
            clients::datagram_socket(&topology.client, at(address, 8080)).expect("a socket");
        assert_eq!(
            clients::ask_datagram(&datagrams).expect("an answer").label,
            "web"
        );
        let client = if address.is_ipv4() { CLIENT } else { CLIENT6 };
        let from = SocketAddr::new(client, 41_000);
        let old =
            clients::connect_from(&topology.client, from, at(address, 8080)).expect("connect");
        assert_eq!(clients::ask_stream(&old).expect("an answer").label, "web");

        topology.portfwd(&["detach", "web"]).expect_ok();
        topology.attach("db", 1, &["8080:80", "8080:80/udp"]);
        assert_eq!(
            clients::ask_datagram(&datagrams).expect("an answer").label,
            "db"
        );
        assert!(clients::echo(&old, b"anybody?").is_err());
        drop(old);
        let new =
            clients::connect_from(&topology.client, from, at(address, 8080)).expect("connect");
        assert_eq!(clients::ask_stream(&new).expect("an answer").label, "db");
    }
}

// Fails if the programs do not note whom they sent where (`target` in socket.rs).
#[test]
fn host_sockets_that_were_sent_to_the_container_are_ended() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology.attach("web", 0, &["8080:80", "8080:80/udp"]);
    topology.attach("db", 1, &["8090:80", "8090:80/udp"]);
    for address in [LOOPBACK, LOOPBACK6, HOST, HOST6] {
        let mut ended = clients::connect(&topology.host, at(address, 8080)).expect("connect");
        clients::ask_stream(&ended).expect("an answer before");
        let datagrams =
            clients::datagram_socket(&topology.host, at(address, 8080)).expect("a socket");
        clients::ask_datagram(&datagrams).expect("an answer before");
        let other = clients::connect(&topology.host, at(address, 8090)).expect("connect");
        clients::ask_stream(&other).expect("an answer before");

        topology.portfwd(&["detach", "web"]).expect_ok();
        let error = match ended.read(&mut [0; 16]) {
            Ok(length) => panic!("read {length} bytes from an ended connection"),
            Err(error) => error,
        };
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted, "{error}");
        assert!(clients::ask_datagram(&datagrams).is_err());
        clients::echo(&other, b"still there").expect("the other container's connection goes on");
        let closed = clients::closed(&topology.host, Protocol::Tcp, at(address, 8080));
        assert_eq!(closed, Closed::Refused);
        topology.attach("web", 0, &["8080:80", "8080:80/udp"]);
    }
}

/// More than the table of host sockets holds.
const MANY: u32 = 70_000;

#[test]
fn a_host_connection_is_ended_however_many_others_came_and_went() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology.attach("web", 0, &["8080:80", "8080:80/udp"]);
    let to = at(LOOPBACK, 8080);
    let mut old = clients::connect(&topology.host, to).expect("connect");
    clients::ask_stream(&old).expect("an answer");
    topology.host.run(|| {
        for _ in 0..MANY {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("bind");
            socket.connect(to).expect("connect");
        }
    });
    assert_eq!(old.peer_addr().expect("a peer"), to);
    topology.portfwd(&["detach", "web"]).expect_ok();
    let error = old
        .read(&mut [0; 16])
        .expect_err("the end of the connection");
    assert_eq!(error.kind(), ErrorKind::ConnectionAborted, "{error}");
}

#[test]
fn some_ports_are_withdrawn_and_the_others_stay() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology.attach("web", 0, &["8080:80", "8081:80", "8081:80/udp"]);
    topology
        .portfwd(&["detach", "web", "-p", "8081:80"])
        .expect_ok();
    for from in [&topology.client, &topology.host] {
        for address in [HOST, HOST6] {
            clients::ask(from, Protocol::Tcp, at(address, 8080)).expect("the port that stays");
            clients::ask(from, Protocol::Udp, at(address, 8081)).expect("the other protocol stays");
            let closed = clients::closed(from, Protocol::Tcp, at(address, 8081));
            assert_eq!(closed, Closed::Refused);
        }
    }
    topology
        .portfwd(&["detach", "web", "-p", "8081:80"])
        .expect_code(4);
}

#[test]
fn detach_needs_the_name_alone_and_is_idempotent() {
    let topology = Topology::new(Shape::default());
    topology.attach("web", 0, &["8080:80"]);
    // The container is gone with its link, as after a crash of its runtime.
    topology.host.ip("link del veth1\n");
    topology.portfwd(&["list"]).expect_ok();
    topology.portfwd(&["detach", "web"]).expect_ok();
    assert_eq!(topology.published(), Vec::<String>::new());
    topology
        .portfwd(&["detach", "web"])
        .expect_code(4)
        .expect_stderr("web");
    topology
        .portfwd(&["detach", "web", "--ignore-missing"])
        .expect_ok();
    topology.attach("db", 1, &["8080:80"]);
}

#[test]
fn down_leaves_nothing_behind() {
    for shape in [Shape::default(), Shape::routed()] {
        let topology = Topology::watched(shape);
        let _servers = topology.serve();
        topology.attach("web", 0, &["8080:80", "8080:80/udp", "127.0.0.1:8081:80"]);
        topology.attach("db", 1, &["8090:80", "[::1]:8091:80"]);
        for from in [&topology.client, &topology.host] {
            for address in [HOST, HOST6] {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    clients::ask(from, protocol, at(address, 8080)).expect("an answer");
                }
            }
        }
        let open = clients::connect(&topology.client, at(HOST, 8080)).expect("connect");
        clients::ask_stream(&open).expect("an answer");
        topology.take_down();
        assert!(clients::echo(&open, b"anybody?").is_err());
        for address in [HOST, HOST6] {
            let closed = clients::closed(&topology.client, Protocol::Tcp, at(address, 8080));
            assert_eq!(closed, Closed::Refused);
        }
        // Down again is no error, and what comes up again works.
        topology.portfwd(&["down"]).expect_ok();
        topology.attach("web", 0, &["8080:80"]);
        clients::ask(&topology.client, Protocol::Tcp, at(HOST, 8080)).expect("an answer");
        topology.take_down();
    }
}

#[test]
fn detach_leaves_the_links_of_containers_as_they_were() {
    let topology = Topology::new(Shape::default());
    topology.portfwd(&["up"]).expect_ok();
    let programs = || topology.ingress_programs("veth1");
    let before = programs();
    topology.attach("web", 0, &["8080:80"]);
    assert!(programs().len() > before.len());
    topology.portfwd(&["detach", "web"]).expect_ok();
    until("the link's program to go", PATIENCE, || {
        (programs() == before).then_some(())
    });
}

#[test]
fn up_is_idempotent_and_keeps_what_is_published() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology.attach("web", 0, &["8080:80"]);
    let stream = clients::connect(&topology.client, at(HOST, 8080)).expect("connect");
    clients::ask_stream(&stream).expect("an answer");
    topology.portfwd(&["up"]).expect_ok();
    topology.portfwd(&["status"]).expect_ok();
    clients::echo(&stream, b"still there").expect("the connection goes on");
    clients::ask(&topology.client, Protocol::Tcp, at(HOST, 8080)).expect("an answer");
}

#[test]
fn a_device_and_an_address_that_come_later_are_served_after_up() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology.attach("web", 0, &["8080:80"]);
    topology
        .host
        .ip("addr add 192.0.2.77/24 dev eth0\naddr add 2001:db8:1::77/64 dev eth0 nodad\n");
    topology.portfwd(&["up"]).expect_ok();
    for address in ["192.0.2.77:8080", "[2001:db8:1::77]:8080"] {
        let to = address.parse().expect("an address");
        clients::ask(&topology.client, Protocol::Tcp, to)
            .unwrap_or_else(|error| panic!("{to}: {error}"));
    }
}

#[test]
fn a_container_that_comes_again_is_attached_again() {
    let topology = Topology::new(Shape::default());
    topology.attach("web", 0, &["8080:80"]);
    // Its link goes, as when its runtime stops it, and comes again with another index.
    topology.host.ip("link del veth1\n");
    topology.portfwd(&["detach", "web"]).expect_ok();
    let container = &topology.containers[0];
    topology.host.ip(&format!(
        "link add veth1 type veth peer name eth0 netns {}
         link set veth1 master br0
         link set veth1 up\n",
        container.namespace.name()
    ));
    container.namespace.ip("addr add 10.88.0.2/24 dev eth0
         addr add fd88::2/64 dev eth0 nodad
         link set eth0 up
         route add default via 10.88.0.1
         route add default via fd88::1\n");
    let _servers = topology.serve();
    topology.attach("web", 0, &["8080:80"]);
    for from in [&topology.client, &topology.host] {
        for address in [HOST, HOST6] {
            until_ok("the container to be reached", PATIENCE, || {
                clients::ask(from, Protocol::Tcp, at(address, 8080))
            });
        }
    }
}

#[test]
fn publishing_and_withdrawing_never_disturbs_another_port() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology.attach("db", 1, &["8090:80"]);
    let churn = [HOST, HOST6].map(|address| Churn::start(&topology.client, at(address, 8090), 200));
    let lasting = clients::connect(&topology.client, at(HOST, 8090)).expect("connect");
    clients::ask_stream(&lasting).expect("an answer");
    for _ in 0..20 {
        topology.attach("web", 0, &["8080:80", "8081:80/udp", "9000-9999:9000-9999"]);
        clients::echo(&lasting, b"still there").expect("an echo");
        topology.portfwd(&["detach", "web"]).expect_ok();
        clients::echo(&lasting, b"still there").expect("an echo");
    }
    for churn in churn {
        let report = churn.finish();
        assert_eq!(report.failures, Vec::<String>::new());
        assert!(report.served > 0);
    }
}
