//! Masqueraded packets of real sockets, across namespaces.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use portfwd_common::flow::ASSURED_AFTER;
use portfwd_common::maps;
use portfwd_tests::clients::{self, Protocol, ask};
use portfwd_tests::deadline::{PATIENCE, SILENCE, patient, until};
use portfwd_tests::kernel;
use portfwd_tests::namespace::Namespace;
use portfwd_tests::needs::{Need, need};
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
        topology.masquerade_containers();
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
        let status = topology.portfwd(&["--json", "status"]).expect_ok().json();
        // Two containers, two families, three protocols.
        assert_eq!(status["datapath"]["masqueradedFlows"], 12, "{status}");
        assert_eq!(status["datapath"]["flows"], 0, "{status}");
    }
}

// Fails if a flow keeps the address with which it opened, come what may (`has_lost_address` in masquerade.rs).
#[test]
fn a_flow_whose_address_the_host_has_lost_goes_on_under_another() {
    let topology = forwarding(Shape::default());
    let _server = foreign_server(&topology);
    topology.masquerade_containers();
    let to = SocketAddr::new(FOREIGN, 7000);
    let socket = clients::datagram_socket(&topology.containers[0].namespace, to).expect("a socket");
    let before = clients::ask_datagram(&socket).expect("an answer");
    assert_eq!(before.seen.ip(), leaving(FOREIGN));
    let next: IpAddr = [203, 0, 113, 77].into();
    topology
        .host
        .ip("addr del 203.0.113.1/24 dev eth1\naddr add 203.0.113.77/24 dev eth1\n");
    topology.portfwd(&["up"]).expect_ok();
    socket.set_read_timeout(Some(SILENCE)).expect("a limit");
    until("an answer to the new address", PATIENCE, || {
        let answer = clients::ask_datagram(&socket).ok()?;
        (answer.seen.ip() == next).then_some(())
    });
}

// Fails if an answer that is on its way to the container is taken for the first packet of a flow from outside
// (`expect_answer` in masquerade.rs).
#[test]
fn an_exchange_of_datagrams_keeps_its_address_for_as_long_as_it_goes_on() {
    for shape in [Shape::default(), Shape::routed()] {
        let topology = forwarding(shape);
        let _server = foreign_server(&topology);
        topology.masquerade_containers();
        let from = &topology.containers[0].namespace;
        let exchanges = [FOREIGN, FOREIGN6].map(|address| {
            let to = SocketAddr::new(address, 7000);
            let socket = clients::datagram_socket(from, to).expect("a socket");
            let first = clients::ask_datagram(&socket).expect("an answer");
            assert_eq!(first.seen.ip(), leaving(address));
            (socket, first)
        });
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(u64::from(ASSURED_AFTER) + 2) {
            for (socket, first) in &exchanges {
                let answer = clients::ask_datagram(socket).expect("another answer");
                assert_eq!(answer.seen, first.seen, "{shape:?}");
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn what_the_host_sends_and_what_goes_to_containers_keeps_its_address() {
    let topology = forwarding(Shape::routed());
    let _server = foreign_server(&topology);
    let _servers = topology.serve();
    topology.masquerade_containers();
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

// Fails if the identifier of a ping changes without its checksum (`rewrite_echo`).
#[test]
fn two_containers_with_one_source_port_are_told_apart() {
    let topology = forwarding(Shape::default());
    let _server = foreign_server(&topology);
    topology.masquerade_containers();
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

// Fails if a ping of the host does not take its identifier (`hold` in pair.rs).
#[test]
fn the_host_and_a_container_ping_with_one_identifier() {
    let topology = forwarding(Shape::default());
    topology.masquerade_containers();
    let web = &topology.containers[0].namespace;
    for to in [FOREIGN, FOREIGN6] {
        // The large ones go in fragments.
        for (identifier, size) in [(77, 8), (78, 4_000)] {
            for turn in 0..3 {
                for (who, namespace) in [("container", web), ("host", &topology.host)] {
                    let done = ping(namespace, identifier, to, size);
                    done.unwrap_or_else(|error| panic!("{who}, {size} to {to}, {turn}: {error}"));
                }
            }
        }
    }
}

/// How many halves of flows there are in a table.
fn halves(topology: &Topology, table: &str) -> usize {
    let table = topology.pinned(table);
    kernel::keys(&table, kernel::key_size(&table))
        .expect("keys")
        .len()
}

// Fails if what the host sends is known by its address alone (`out` in masquerade.rs): this one is younger than
// the table of the host's addresses.
#[test]
fn a_ping_of_the_host_from_an_address_that_came_later_keeps_it() {
    let topology = forwarding(Shape::default());
    topology
        .portfwd(&["masquerade", "add", "10.99.0.0/24"])
        .expect_ok();
    topology.host.ip("addr add 10.99.0.1/32 dev lo
         route add 203.0.113.9/32 dev eth1 src 10.99.0.1\n");
    topology
        .foreign
        .ip("route replace 10.99.0.1/32 via 203.0.113.1\n");
    ping(&topology.host, 77, FOREIGN, 8).expect("a reply");
    assert_eq!(halves(&topology, maps::MASQUERADED_YOUNG), 0);
}

// Fails if a flow that was opened from outside, as any number of spoofed senders may, counts as a stream
// (`step` in masquerade.rs): it would be among what floods are not to push out.
#[test]
fn datagrams_to_a_containers_own_address_are_no_stream() {
    let topology = forwarding(Shape::routed());
    topology.masquerade_containers();
    let _servers = topology.serve();
    let to = SocketAddr::new(topology.containers[0].addresses()[0], 80);
    let socket = clients::datagram_socket(&topology.client, to).expect("a socket");
    // A masqueraded flow of this age is a stream.
    let end = Instant::now() + Duration::from_secs(u64::from(ASSURED_AFTER) + 1);
    while Instant::now() < end {
        clients::ask_datagram(&socket).expect("an answer");
    }
    assert_eq!(halves(&topology, maps::MASQUERADED_YOUNG), 2);
    assert_eq!(halves(&topology, maps::MASQUERADED), 0);
}

#[test]
fn a_detached_container_is_masqueraded_no_longer() {
    let topology = Topology::watched(Shape::forwarding());
    let _server = foreign_server(&topology);
    let container = &topology.containers[0];
    topology.attach_masqueraded("web", 0, "8080:80");
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
    topology.masquerade_containers();
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

// Fails if the address is the device's whatever the route says (`address` in masquerade.rs).
#[test]
fn a_route_that_names_a_source_decides_the_address() {
    need(Need::RouteSource);
    let topology = forwarding(Shape::default());
    let _server = foreign_server(&topology);
    topology.host.ip(&format!(
        "addr add 203.0.113.99/32 dev eth1
         addr add 2001:db8:3::99/128 dev eth1 nodad
         route add {FOREIGN}/32 dev eth1 src 203.0.113.99
         route add {FOREIGN6}/128 dev eth1 src 2001:db8:3::99\n"
    ));
    topology.masquerade_containers();
    let [web, _] = &topology.containers;
    for (to, named) in [(FOREIGN, "203.0.113.99"), (FOREIGN6, "2001:db8:3::99")] {
        let answer = ask(&web.namespace, Protocol::Tcp, SocketAddr::new(to, 7000)).expect("answer");
        assert_eq!(answer.seen.ip().to_string(), named);
    }
}

/// Asks from a port of choice and gives what the server saw; None if nothing comes back.
fn seen_from(namespace: &Namespace, from: SocketAddr, to: SocketAddr) -> Option<SocketAddr> {
    let socket = namespace.run(|| UdpSocket::bind(from)).expect("bind");
    socket.connect(to).expect("connect");
    socket.set_read_timeout(Some(SILENCE)).expect("a limit");
    match clients::ask_datagram(&socket) {
        Ok(answer) => Some(answer.seen),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("{from} to {to}: {error}"),
    }
}

/// How often a reason occurred.
fn occurred(topology: &Topology, reason: &str) -> u64 {
    let status = topology.portfwd(&["--json", "status"]).expect_ok().json();
    let reasons = status["datapath"]["reasons"].as_array().cloned();
    let mut reasons = reasons.unwrap_or_default().into_iter();
    let row = reasons.find(|row| row["reason"] == reason);
    row.and_then(|row| row["packets"].as_u64()).expect(reason)
}

/// Leaves the ports from `first` to `last` to masqueraded flows, and no others.
fn leave_ports(topology: &Topology, first: u16, last: u16) {
    let host = &topology.host;
    host.set_sysctl("ipv4/ip_local_port_range", "32768 60999");
    let reserved = format!("1-32767,61000-{},{}-65535", first - 1, last + 1);
    host.set_sysctl("ipv4/ip_local_reserved_ports", &reserved);
}

// Fails if answers go on to the stack untranslated (`back` in masquerade.rs).
#[test]
fn strict_rules_and_conntrack_see_whole_connections() {
    let topology = forwarding(Shape::default());
    let rules = "
        table inet filter {
            chain forward {
                type filter hook forward priority 0; policy drop;
                ct state invalid drop
                ct state established,related accept
                iifname br0 oifname eth1 accept
            }
            chain input {
                type filter hook input priority 0;
                ct state invalid drop
            }
        }
    ";
    topology.host.feed("nft", &["-f", "-"], rules);
    let _server = foreign_server(&topology);
    topology.masquerade_containers();
    let web = &topology.containers[0];
    for address in [FOREIGN, FOREIGN6] {
        let to = SocketAddr::new(address, 7000);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let answer = ask(&web.namespace, protocol, to)
                .unwrap_or_else(|error| panic!("{protocol:?} {to}: {error}"));
            assert_eq!(answer.seen.ip(), leaving(address));
            // An ICMP error is related to what it quotes.
            let closed = SocketAddr::new(address, 7001);
            let refused = clients::closed(&web.namespace, protocol, closed);
            assert_eq!(refused, clients::Closed::Refused, "{protocol:?} {closed}");
        }
        ping(&web.namespace, 99, address, 56).unwrap_or_else(|error| panic!("{address}: {error}"));
    }
}

// Edge case 44. Fails if a part of the list of ports is never tried (`open` in pair.rs).
#[test]
fn every_port_that_may_be_given_out_is_found_and_then_there_is_none() {
    let topology = forwarding(Shape::default());
    let _server = foreign_server(&topology);
    let _other = Server::start(&topology.foreign, &[FOREIGN, FOREIGN6], 7001, "other");
    leave_ports(&topology, 62_001, 62_300);
    topology.masquerade_containers();
    for (number, address) in [FOREIGN, FOREIGN6].into_iter().enumerate() {
        let [web, db] = &topology.containers;
        let to = SocketAddr::new(address, 7000);
        let from = |port| SocketAddr::new(web.addresses()[number], port);
        let mut seen = BTreeSet::new();
        for port in 40_001..=40_300 {
            let own = seen_from(&web.namespace, from(port), to)
                .unwrap_or_else(|| panic!("port {port} of 300 was lost: {}", seen.len()));
            assert!((62_001..=62_300).contains(&own.port()), "{own}");
            assert!(seen.insert(own), "{own} was given out twice");
        }
        let before = occurred(&topology, "masquerade-exhausted");
        let late = SocketAddr::new(db.addresses()[number], 40_001);
        assert_eq!(
            seen_from(&db.namespace, late, to),
            None,
            "a port more than there are"
        );
        assert!(occurred(&topology, "masquerade-exhausted") > before);
        // Toward another destination all are free, and who has one keeps it.
        let elsewhere = SocketAddr::new(address, 7001);
        assert!(seen_from(&db.namespace, late, elsewhere).is_some());
        let again = seen_from(&web.namespace, from(40_001), to).expect("its flow lives");
        assert!(seen.contains(&again));
    }
}

// Edge case 45. Fails without the lookup of the host's sockets (`forward::host_has`).
#[test]
fn ports_that_somebody_else_uses_are_neither_kept_nor_given_out() {
    let topology = forwarding(Shape::default());
    let _server = foreign_server(&topology);
    topology.masquerade_containers();
    topology.attach("db", 1, &["5001:80/udp"]);
    topology
        .host
        .set_sysctl("ipv4/ip_local_reserved_ports", "5002");
    // What is reserved from now on counts from the next command on.
    topology.attach("db", 1, &["5009:80/udp"]);
    let web = &topology.containers[0];
    for (number, address) in [FOREIGN, FOREIGN6].into_iter().enumerate() {
        let host = if number == 0 {
            "0.0.0.0:5003"
        } else {
            "[::]:5003"
        };
        let _socket = topology.host.run(|| UdpSocket::bind(host)).expect("bind");
        let to = SocketAddr::new(address, 7000);
        for port in [5_000, 5_001, 5_002, 5_003] {
            let from = SocketAddr::new(web.addresses()[number], port);
            let seen = seen_from(&web.namespace, from, to).expect("an answer");
            assert_eq!(seen.port() == port, port == 5_000, "{seen} for {port}");
        }
    }
}

#[test]
fn an_end_of_a_container_has_one_port_toward_everybody() {
    let topology = forwarding(Shape::default());
    let _server = foreign_server(&topology);
    let _other = Server::start(&topology.foreign, &[FOREIGN, FOREIGN6], 7001, "other");
    topology.masquerade_containers();
    let web = &topology.containers[0];
    for (number, address) in [FOREIGN, FOREIGN6].into_iter().enumerate() {
        let from = SocketAddr::new(web.addresses()[number], 40_000);
        let ports = [7000, 7001].map(|port| {
            let to = SocketAddr::new(address, port);
            seen_from(&web.namespace, from, to)
                .expect("an answer")
                .port()
        });
        assert_eq!(ports[0], ports[1]);
    }
}

// Fails if the quote keeps the container's address (`Out` in masquerade/error.rs).
#[test]
fn errors_about_what_a_container_has_been_sent_reach_the_sender() {
    let topology = forwarding(Shape::default());
    topology.masquerade_containers();
    let web = &topology.containers[0];
    for address in [FOREIGN, FOREIGN6] {
        let far = topology
            .foreign
            .run(|| UdpSocket::bind(SocketAddr::new(address, 7002)))
            .expect("bind");
        far.set_read_timeout(Some(patient(PATIENCE)))
            .expect("a limit");
        let any = if address.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let socket = web.namespace.run(|| UdpSocket::bind(any)).expect("bind");
        socket
            .send_to(b"question", SocketAddr::new(address, 7002))
            .expect("send");
        let (_, seen) = far.recv_from(&mut [0; 64]).expect("the question");
        drop(socket);
        far.connect(seen).expect("connect");
        until("the error to arrive", PATIENCE, || {
            match far.send(b"answer") {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => Some(()),
                Ok(_) => None,
                Err(error) => panic!("{error}"),
            }
        });
    }
}

// Edge cases 18 and 19. Fails if the first fragment is not noted (`note_fragment`).
#[test]
fn large_datagrams_go_in_fragments_both_ways() {
    for conntrack in [false, true] {
        let topology = forwarding(Shape::default());
        let _server = foreign_server(&topology);
        if conntrack {
            let rules = "
                table inet filter {
                    chain forward {
                        type filter hook forward priority 0;
                        ct state invalid drop
                    }
                }
            ";
            topology.host.feed("nft", &["-f", "-"], rules);
        }
        topology.masquerade_containers();
        for container in &topology.containers {
            for address in [FOREIGN, FOREIGN6] {
                let to = SocketAddr::new(address, 7000);
                let any = if address.is_ipv4() {
                    "0.0.0.0:0"
                } else {
                    "[::]:0"
                };
                let socket = container
                    .namespace
                    .run(|| UdpSocket::bind(any))
                    .expect("bind");
                socket.connect(to).expect("connect");
                socket
                    .set_read_timeout(Some(patient(PATIENCE)))
                    .expect("a limit");
                let question: Vec<u8> = (0..=250).cycle().take(2_000).collect();
                socket.send(&question).expect("send");
                let mut answer = [0; 4096];
                let length = socket.recv(&mut answer).expect("an answer in fragments");
                assert!(
                    answer[..length].ends_with(&question),
                    "conntrack {conntrack} {to}"
                );
            }
        }
    }
}

#[test]
fn two_hundred_transfers_at_once_arrive_intact() {
    let topology = forwarding(Shape::default());
    let _sink = Server::hash(&topology.foreign, &[FOREIGN, FOREIGN6], 7000);
    topology.masquerade_containers();
    std::thread::scope(|scope| {
        let transfers: Vec<_> = (0..200)
            .map(|number| {
                let container = &topology.containers[number % 2];
                let address = if number % 4 < 2 { FOREIGN } else { FOREIGN6 };
                let to = SocketAddr::new(address, 7000);
                scope.spawn(move || clients::bulk(&container.namespace, to, 32 << 10))
            })
            .collect();
        for transfer in transfers {
            let (sent, received) = transfer.join().expect("a thread").expect("a transfer");
            assert_eq!(sent, received);
        }
    });
}

// Edge case 35. Fails if no port is held (`Half::held`).
#[test]
fn after_a_detach_no_packet_comes_back_and_the_port_is_not_given_out_again() {
    let topology = Topology::watched(Shape::forwarding());
    let _server = foreign_server(&topology);
    let [web, db] = &topology.containers;
    for (number, address) in [FOREIGN, FOREIGN6].into_iter().enumerate() {
        topology.attach_masqueraded("web", 0, "8080:80");
        let to = SocketAddr::new(address, 7000);
        let from = SocketAddr::new(web.addresses()[number], 5_000);
        let stream = clients::connect_from(&web.namespace, from, to).expect("connect");
        let seen = clients::ask_stream(&stream).expect("an answer").seen;
        assert_eq!(seen.port(), 5_000);
        topology.portfwd(&["detach", "web"]).expect_ok();
        assert!(
            clients::echo(&stream, b"late").is_err(),
            "a connection of before"
        );
        let netns = db.netns();
        let attach = [
            "attach",
            "db",
            "--netns",
            &netns,
            "-p",
            "8090:80",
            "--masquerade",
        ];
        topology.portfwd(&attach).expect_ok();
        let from = SocketAddr::new(db.addresses()[number], 5_000);
        let stream = clients::connect_from(&db.namespace, from, to).expect("connect");
        let next = clients::ask_stream(&stream).expect("an answer").seen;
        assert_ne!(next.port(), 5_000, "the far side may be in TIME_WAIT");
        topology.portfwd(&["detach", "db"]).expect_ok();
    }
    topology.take_down();
}

/// A server behind the foreign one, by a link that is narrow toward it: `198.51.100.7` and `2001:db8:7::7`. It
/// does not know that, and asks for segments that do not fit.
fn narrow_beyond(topology: &Topology) -> Namespace {
    let far = Namespace::new("far");
    topology.foreign.set_sysctl("ipv4/ip_forward", "1");
    topology.foreign.set_sysctl("ipv6/conf/all/forwarding", "1");
    topology.foreign.ip(&format!(
        "link add narrow index 41 mtu 1300 type veth peer name eth0 index 51 netns {}
         addr add 198.51.100.1/24 dev narrow
         addr add 2001:db8:7::1/64 dev narrow nodad
         addr add fe80::1/64 dev narrow nodad
         link set narrow up\n",
        far.name()
    ));
    far.ip("addr add 198.51.100.7/24 dev eth0
         addr add 2001:db8:7::7/64 dev eth0 nodad
         addr add fe80::7/64 dev eth0 nodad
         link set eth0 up
         route add default via 198.51.100.1
         route add default via 2001:db8:7::1\n");
    topology.host.ip("route add 198.51.100.0/24 via 203.0.113.9
         route add 2001:db8:7::/64 via 2001:db8:3::9\n");
    far
}

// Fails if the quote keeps the host's address (`Back` in masquerade/error.rs).
#[test]
fn what_routers_on_the_way_tell_reaches_the_container() {
    let topology = forwarding(Shape::default());
    topology.masquerade_containers();
    let far = narrow_beyond(&topology);
    let addresses: [IpAddr; 2] = ["198.51.100.7", "2001:db8:7::7"].map(|a| a.parse().expect("one"));
    let _sink = Server::hash(&far, &addresses, 7000);
    let web = &topology.containers[0];
    for (address, router) in addresses.into_iter().zip(["203.0.113.9", "2001:db8:3::9"]) {
        // Path MTU discovery: the router asks for smaller packets.
        let to = SocketAddr::new(address, 7000);
        let (sent, received) = clients::bulk(&web.namespace, to, 4 << 20).expect("a transfer");
        assert_eq!(sent, received);
        // What traceroute does: the packet expires at the second router.
        let told = portfwd_tests::ping::expiring(&web.namespace, 300, address, 2)
            .unwrap_or_else(|error| panic!("{address}: {error}"));
        assert_eq!(told, router.parse::<IpAddr>().expect("an address"));
    }
}

// Edge case 21. Fails as the one above.
#[test]
fn large_pings_go_in_fragments_both_ways() {
    let topology = forwarding(Shape::default());
    topology.masquerade_containers();
    for container in &topology.containers {
        for address in [FOREIGN, FOREIGN6] {
            ping(&container.namespace, 500, address, 4_000)
                .unwrap_or_else(|error| panic!("{address}: {error}"));
        }
    }
}
