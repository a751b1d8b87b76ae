//! Masqueraded packets of real sockets, across namespaces.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use portfwd_tests::clients::{self, Protocol, ask};
use portfwd_tests::ping::ping;
use portfwd_tests::servers::Server;
use portfwd_tests::topology::{CLIENT, CLIENT6, FOREIGN, FOREIGN6, Shape, Topology};

/// The host's addresses toward the foreign server.
const LEAVING: [&str; 2] = ["203.0.113.1", "2001:db8:3::1"];

fn forwarding(shape: Shape) -> Topology {
    Topology::new(Shape {
        forwarding: true,
        ..shape
    })
}

fn foreign_server(topology: &Topology) -> Server {
    Server::start(&topology.foreign, &[FOREIGN, FOREIGN6], 7000, "foreign")
}

fn masquerade_all(topology: &Topology) {
    for subnet in ["10.88.0.0/24", "fd88::/64"] {
        topology.portfwd(&["masquerade", "add", subnet]).expect_ok();
    }
}

/// The address that the far side is to see.
fn leaving(to: IpAddr) -> IpAddr {
    LEAVING[usize::from(to.is_ipv6())]
        .parse()
        .expect("an address")
}

#[test]
fn what_containers_send_leaves_under_the_hosts_address_and_answers_come_back() {
    for shape in [Shape::default(), Shape::routed()] {
        let topology = forwarding(shape);
        let _server = foreign_server(&topology);
        masquerade_all(&topology);
        for container in &topology.containers {
            for address in [FOREIGN, FOREIGN6] {
                let to = SocketAddr::new(address, 7000);
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    let answer = ask(&container.namespace, protocol, to)
                        .unwrap_or_else(|error| panic!("{shape:?} {protocol:?} {to}: {error}"));
                    assert_eq!(answer.seen.ip(), leaving(address));
                    // What the container was given is of the host's own sockets.
                    assert_ne!(answer.seen.port(), answer.own.port());
                    assert!(
                        !(32_768..61_000).contains(&answer.seen.port()),
                        "{answer:?}"
                    );
                }
                ping(&container.namespace, 77, address, 56)
                    .unwrap_or_else(|error| panic!("{shape:?} ping {address}: {error}"));
            }
        }
    }
}

#[test]
fn what_the_host_sends_and_what_goes_to_containers_keeps_its_address() {
    let topology = forwarding(Shape::routed());
    let _server = foreign_server(&topology);
    let _servers = topology.serve();
    masquerade_all(&topology);
    let [web, db] = &topology.containers;
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let own = ask(&topology.host, protocol, SocketAddr::new(FOREIGN, 7000)).expect("the host");
        assert_eq!(own.seen, own.own);
        for to in db.addresses() {
            let to = SocketAddr::new(to, 80);
            let answer = ask(&web.namespace, protocol, to).expect("a neighbour");
            assert_eq!(answer.seen, answer.own, "between containers");
        }
        for to in web.addresses() {
            let to = SocketAddr::new(to, 80);
            let answer = ask(&topology.client, protocol, to).expect("from outside");
            assert_eq!(answer.seen, answer.own, "to a container");
        }
    }
}

#[test]
fn two_containers_with_one_source_port_are_told_apart() {
    let topology = forwarding(Shape::default());
    let _server = foreign_server(&topology);
    masquerade_all(&topology);
    for (number, to) in [FOREIGN, FOREIGN6].into_iter().enumerate() {
        let to = SocketAddr::new(to, 7000);
        // One that may be kept, and one that may not.
        for port in [5_000, 40_000] {
            let streams: Vec<_> = topology
                .containers
                .iter()
                .map(|container| {
                    let from = SocketAddr::new(container.addresses()[number], port);
                    clients::connect_from(&container.namespace, from, to).expect("connect")
                })
                .collect();
            let seen: BTreeSet<SocketAddr> = streams
                .iter()
                .map(|stream| clients::ask_stream(stream).expect("an answer").seen)
                .collect();
            assert_eq!(seen.len(), 2, "{seen:?}");
            let kept = seen.iter().any(|seen| seen.port() == port);
            assert_eq!(kept, port == 5_000, "{seen:?}");
        }
        for container in &topology.containers {
            ping(&container.namespace, 4711, to.ip(), 8).expect("a reply of its own");
        }
    }
}

#[test]
fn a_detached_container_is_masqueraded_no_longer() {
    let topology = forwarding(Shape::default());
    let _server = foreign_server(&topology);
    let container = &topology.containers[0];
    let netns = container.netns();
    let attach = [
        "attach",
        "web",
        "--netns",
        &netns,
        "-p",
        "8080:80",
        "--masquerade",
    ];
    topology.portfwd(&attach).expect_ok();
    let to = SocketAddr::new(FOREIGN, 7000);
    let before = ask(&container.namespace, Protocol::Udp, to).expect("masqueraded");
    assert_eq!(before.seen.ip(), leaving(FOREIGN));
    let neighbour = ask(&topology.containers[1].namespace, Protocol::Udp, to).expect("its own");
    assert_eq!(
        neighbour.seen, neighbour.own,
        "only the one that asked for it"
    );
    topology.portfwd(&["detach", "web"]).expect_ok();
    let after = ask(&container.namespace, Protocol::Udp, to).expect("as without portfwd");
    assert_eq!(after.seen, after.own);
    topology.take_down();
}

#[test]
fn the_way_out_decides_the_address() {
    let topology = forwarding(Shape::default());
    let _server = foreign_server(&topology);
    let _client = Server::start(&topology.client, &[CLIENT, CLIENT6], 7000, "client");
    masquerade_all(&topology);
    let [web, _] = &topology.containers;
    for (to, leaves_by) in [
        (CLIENT, "192.0.2.1"),
        (CLIENT6, "2001:db8:1::"),
        (FOREIGN, "203.0.113.1"),
    ] {
        let answer = ask(&web.namespace, Protocol::Tcp, SocketAddr::new(to, 7000)).expect("answer");
        let seen = answer.seen.ip().to_string();
        assert!(seen.starts_with(leaves_by), "{seen}");
    }
}
