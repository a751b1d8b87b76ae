//! Nothing opens wider than asked, and what is not ours is left alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use portfwd_tests::capture::{Capture, Captured, inject};
use portfwd_tests::clients::{self, Closed, Protocol};
use portfwd_tests::deadline::{SILENCE, patient};
use portfwd_tests::kernel::{Observer, index_of};
use portfwd_tests::namespace::Namespace;
use portfwd_tests::needs::{Need, need};
use portfwd_tests::packet::{Frame, flag};
use portfwd_tests::servers::Server;
use portfwd_tests::topology::{
    CLIENT, CLIENT_MAC, CLIENT6, FOREIGN, FOREIGN6, GATEWAY, GATEWAY_MAC, GATEWAY6, HOST, HOST_MAC,
    HOST6, Shape, Topology,
};

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LOOPBACK6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
const LOOPBACK_ONLY: [&str; 4] = [
    "127.0.0.1:8080:80",
    "127.0.0.1:8080:80/udp",
    "[::1]:8080:80",
    "[::1]:8080:80/udp",
];

/// Whether a captured frame is TCP or UDP from or to `address` and `port`.
fn involves(frame: &Captured, address: IpAddr, port: u16) -> bool {
    frame.layers().is_some_and(|layers| {
        layers.ports().is_some_and(|(source, destination)| {
            (layers.source, source) == (address, port)
                || (layers.destination, destination) == (address, port)
        })
    })
}

/// A request over the same way after frames that must be lost: when it has been answered, they have
/// been dealt with.
fn mark(from: &Namespace, address: IpAddr, port: u16) {
    let to = SocketAddr::new(address, port);
    clients::ask(from, Protocol::Udp, to)
        .unwrap_or_else(|error| panic!("{to} from {}: {error}", from.name()));
}

#[test]
fn a_port_published_on_loopback_serves_the_host_alone() {
    for shape in [Shape::default(), Shape::routed()] {
        let topology = Topology::new(shape);
        let servers = topology.serve();
        topology.attach("web", 0, &LOOPBACK_ONLY);
        for protocol in PROTOCOLS {
            for address in [LOOPBACK, LOOPBACK6] {
                let to = SocketAddr::new(address, 8080);
                clients::ask(&topology.host, protocol, to)
                    .unwrap_or_else(|error| panic!("{protocol:?} {to}: {error}"));
            }
            let [own, other] = &topology.containers;
            for from in [&topology.client, &own.namespace, &other.namespace] {
                for address in [HOST, HOST6] {
                    let to = SocketAddr::new(address, 8080);
                    assert_eq!(clients::closed(from, protocol, to), Closed::Refused);
                }
            }
            for address in [GATEWAY, GATEWAY6, LOOPBACK, LOOPBACK6] {
                let to = SocketAddr::new(address, 8080);
                assert_eq!(
                    clients::closed(&other.namespace, protocol, to),
                    Closed::Refused
                );
            }
        }
        assert_eq!(servers[0].accepted(), 2);
    }
}

// Two checks keep these out, `request` in first.rs and `admits` in forward.rs. Fails without both.
#[test]
fn frames_crafted_to_loopback_never_reach_a_container() {
    for publish in [&LOOPBACK_ONLY[..], &["8080:80", "8080:80/udp"]] {
        let topology = Topology::new(Shape::default());
        let _servers = topology.serve();
        topology.attach("web", 0, publish);
        topology.attach("mark", 0, &["9999:80/udp"]);
        topology.attach("db", 1, &["9998:80"]);
        let [own, other] = &topology.containers;
        let capture = Capture::start(&own.namespace, "eth0");
        let senders = [
            (&topology.client, CLIENT_MAC, HOST_MAC, [CLIENT, CLIENT6]),
            (&other.namespace, other.mac, GATEWAY_MAC, other.addresses()),
        ];
        for (from, own_mac, host_mac, own_addresses) in senders {
            let sources = own_addresses.into_iter().chain([LOOPBACK, LOOPBACK6]);
            for source in sources.map(|address| SocketAddr::new(address, 4321)) {
                let loopback = if source.is_ipv4() {
                    LOOPBACK
                } else {
                    LOOPBACK6
                };
                let to = SocketAddr::new(loopback, 8080);
                for frame in [
                    Frame::tcp(source, to, flag::SYN),
                    Frame::udp(source, to, b"crafted"),
                ] {
                    inject(from, "eth0", &frame.on_link(own_mac, host_mac).to_bytes());
                }
            }
            mark(from, HOST, 9999);
        }
        let reached: Vec<Captured> = capture
            .finish()
            .into_iter()
            .filter(|frame| {
                let ports = frame.layers().and_then(|layers| layers.ports());
                ports.is_some_and(|(source, destination)| source == 4321 || destination == 4321)
            })
            .collect();
        assert!(reached.is_empty(), "{reached:?}");
    }
}

#[test]
fn a_container_that_sends_to_a_foreign_host_at_a_published_port_reaches_that_host() {
    for wiring in [Shape::default(), Shape::routed()] {
        let topology = Topology::new(Shape {
            forwarding: true,
            ..wiring
        });
        let _servers = topology.serve();
        let _foreign = Server::start(&topology.foreign, &[FOREIGN, FOREIGN6], 8080, "foreign");
        topology.attach("web", 0, &["8080:80", "8080:80/udp"]);
        topology.attach("db", 1, &["8090:80", "8090:80/udp"]);
        let [own, other] = &topology.containers;
        for from in [
            &own.namespace,
            &other.namespace,
            &topology.client,
            &topology.host,
        ] {
            for address in [FOREIGN, FOREIGN6] {
                for protocol in PROTOCOLS {
                    let answer = clients::ask(from, protocol, SocketAddr::new(address, 8080))
                        .unwrap_or_else(|error| {
                            panic!("{protocol:?} {address} from {}: {error}", from.name())
                        });
                    assert_eq!(answer.label, "foreign");
                    assert_eq!(answer.seen, answer.own);
                }
            }
        }
    }
}

/// One socket may talk to the host and to somebody behind it: only one of its two connections is ours.
#[test]
fn a_clients_port_that_a_flow_has_reaches_foreign_hosts_all_the_same() {
    for wiring in [Shape::default(), Shape::routed()] {
        let topology = Topology::new(Shape {
            forwarding: true,
            ..wiring
        });
        let _servers = topology.serve();
        let _foreign = Server::start(&topology.foreign, &[FOREIGN, FOREIGN6], 8080, "foreign");
        topology.attach("web", 0, &["8080:80", "8080:80/udp"]);
        let other = &topology.containers[1];
        let [v4, v6] = other.addresses();
        for (from, own, host, foreign) in [
            (&topology.client, CLIENT, HOST, FOREIGN),
            (&topology.client, CLIENT6, HOST6, FOREIGN6),
            (&other.namespace, v4, HOST, FOREIGN),
            (&other.namespace, v6, HOST6, FOREIGN6),
        ] {
            let own = SocketAddr::new(own, 45_000);
            let ends = [(host, "web"), (foreign, "foreign"), (host, "web")]
                .map(|(address, label)| (SocketAddr::new(address, 8080), label));
            let datagrams = from
                .run(|| std::net::UdpSocket::bind(own))
                .expect("bind a client's port");
            for (to, label) in ends {
                let answer = clients::ask_from(&datagrams, to)
                    .unwrap_or_else(|error| panic!("{to} from {}: {error}", from.name()));
                assert_eq!(answer.label, label);
            }
            let streams = [ends[0], ends[1]].map(|(to, label)| {
                let stream = clients::connect_from(from, own, to)
                    .unwrap_or_else(|error| panic!("{to} from {}: {error}", from.name()));
                (stream, label)
            });
            for (stream, label) in &streams {
                assert_eq!(
                    clients::ask_stream(stream).expect("an answer").label,
                    *label
                );
            }
        }
    }
}

// Fails if any destination counts as the host's (`admits` in forward.rs). Where the host forwards, its routing
// table says so as well.
#[test]
fn without_forwarding_a_foreign_address_gets_nothing_from_us() {
    let topology = Topology::new(Shape::default());
    let servers = topology.serve();
    topology.attach("web", 0, &["8080:80", "8080:80/udp"]);
    let [own, other] = &topology.containers;
    for from in [&own.namespace, &other.namespace, &topology.client] {
        for address in [FOREIGN, FOREIGN6] {
            for protocol in PROTOCOLS {
                // The request is not answered, neither by the container nor by the foreign host.
                // (The host may say that it does not forward.)
                let to = SocketAddr::new(address, 8080);
                let asked = from.run(|| match protocol {
                    Protocol::Tcp => {
                        std::net::TcpStream::connect_timeout(&to, patient(SILENCE)).map(|_| ())
                    }
                    Protocol::Udp => {
                        let socket = clients::datagram_socket(from, to)?;
                        socket.set_read_timeout(Some(patient(SILENCE)))?;
                        clients::ask_datagram(&socket).map(|_| ())
                    }
                });
                assert!(asked.is_err(), "{protocol:?} {to} answers {}", from.name());
            }
        }
    }
    assert_eq!(servers[0].accepted(), 0);
}

// Fails if the source is not looked up (`may_send` in way.rs).
#[test]
fn a_container_sends_from_its_own_addresses_only() {
    for wiring in [Shape::default(), Shape::routed()] {
        let topology = Topology::new(Shape {
            forwarding: true,
            ..wiring
        });
        let _servers = topology.serve();
        let foreign = [FOREIGN, FOREIGN6];
        let _foreign = Server::start(&topology.foreign, &foreign, 7, "foreign");
        topology.attach("web", 0, &["8080:80", "8080:80/udp"]);
        topology.attach("db", 1, &["8090:80", "8090:80/udp"]);
        let [first, second] = &topology.containers;
        let at_foreign = Capture::start(&topology.foreign, "eth0");
        let at_first = Capture::start(&first.namespace, "eth0");
        let spoofed = [
            "198.51.100.7:4321",
            "10.88.0.2:4321",
            "192.0.2.2:4321",
            "192.0.2.1:4321",
            "[2001:db8:9::7]:4321",
            "[fd88::2]:4321",
            "[2001:db8:1::2]:4321",
        ];
        for source in spoofed.map(|text| text.parse::<SocketAddr>().expect("an address")) {
            let four = source.is_ipv4();
            let (beyond, host) = if four {
                (FOREIGN, HOST)
            } else {
                (FOREIGN6, HOST6)
            };
            for to in [SocketAddr::new(beyond, 9), SocketAddr::new(host, 8080)] {
                for frame in [
                    Frame::udp(source, to, b"spoofed"),
                    Frame::tcp(source, to, flag::SYN),
                ] {
                    let mut frame = frame.on_link(second.mac, GATEWAY_MAC);
                    inject(&second.namespace, "eth0", &frame.to_bytes());
                    // To the kernel a frame of VLAN 0 is one without a tag (IEEE 802.1Q, 6.9: only its
                    // priority counts).
                    frame.vlan = Some(0);
                    let mut tagged = frame.to_bytes();
                    inject(&second.namespace, "eth0", &tagged);
                    // It takes a second tag off as well.
                    tagged.splice(12..12, [0x81, 0, 0, 0]);
                    inject(&second.namespace, "eth0", &tagged);
                }
            }
        }
        mark(&second.namespace, HOST, 8080);
        mark(&second.namespace, FOREIGN, 7);
        for (place, capture) in [("foreign", at_foreign), ("container", at_first)] {
            let spoofed: Vec<Captured> = capture
                .finish()
                .into_iter()
                .filter(|frame| {
                    let ports = frame.layers().and_then(|layers| layers.ports());
                    ports.is_some_and(|(source, _)| source == 4321)
                })
                .collect();
            assert!(spoofed.is_empty(), "at the {place}: {spoofed:?}");
        }
        let status = topology.portfwd(&["--json", "status"]).expect_ok().json();
        let reasons = status["datapath"]["reasons"].as_array().expect("reasons");
        let counted = reasons
            .iter()
            .find(|reason| reason["reason"] == "foreign-source")
            .unwrap_or_else(|| panic!("no foreign-source in {reasons:?}"));
        assert_eq!(counted["dropped"], true);
        assert!(counted["packets"].as_u64() >= Some(84), "{counted}");
    }
}

// Fails if what is not ours ends the chain (TC_ACT_OK in verdict.rs).
#[test]
fn programs_behind_ours_still_see_what_is_not_ours() {
    need(Need::Tcx);
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    let _own = Server::start(&topology.host, &[HOST, HOST6], 22, "host");
    topology.attach("web", 0, &["8080:80", "8080:80/udp"]);
    let (on_tcx, on_clsact) = (Observer::load(), Observer::load());
    let directory = tempfile::tempdir_in("/run").expect("a directory");
    let pin = topology.bpffs().join("observer");
    on_clsact.pin(&pin);
    let filter = format!(
        "filter add dev eth0 ingress bpf da pinned {}",
        pin.display()
    );
    // There may be a clsact qdisc already, of portfwd's own, where the kernel has no TCX.
    let _ = topology
        .host
        .command("tc")
        .args(["qdisc", "add", "dev", "eth0", "clsact"])
        .output()
        .expect("run tc");
    topology
        .host
        .output("tc", &filter.split(' ').collect::<Vec<_>>());
    std::fs::remove_file(&pin).expect("remove the pin");
    drop(directory);
    let _link = topology.host.run(|| on_tcx.attach(index_of("eth0")));
    for protocol in PROTOCOLS {
        for address in [HOST, HOST6] {
            let before = [on_tcx.packets(), on_clsact.packets()];
            let own = SocketAddr::new(address, 22);
            clients::ask(&topology.client, protocol, own).expect("the host's own server");
            let closed = SocketAddr::new(address, 23);
            assert_eq!(
                clients::closed(&topology.client, protocol, closed),
                Closed::Refused
            );
            for (before, observer) in before.into_iter().zip([&on_tcx, &on_clsact]) {
                // The request and the one to the closed port, at least.
                assert!(observer.packets() >= before + 2, "{protocol:?} {address}");
            }
        }
    }
}

// Fails if the socket hooks do not ask for the socket's namespace (`of_host` in socket.rs).
#[test]
fn instances_of_two_host_namespaces_never_see_each_other() {
    let (one, two) = (
        Topology::watched(Shape::default()),
        Topology::watched(Shape::default()),
    );
    let (_servers, _others) = (one.serve(), two.serve());
    one.attach("web", 0, &["8080:80"]);
    two.attach("db", 1, &["8080:80"]);
    for (topology, label) in [(&one, "web"), (&two, "db")] {
        for from in [&topology.client, &topology.host] {
            let to = SocketAddr::new(HOST, 8080);
            let answer = clients::ask(from, Protocol::Tcp, to).expect("an answer");
            assert_eq!(answer.label, label);
        }
    }
    one.take_down();
    let to = SocketAddr::new(LOOPBACK, 8080);
    let answer = clients::ask(&two.host, Protocol::Tcp, to).expect("an answer");
    assert_eq!(answer.label, "db");
    let elsewhere = clients::closed(&one.host, Protocol::Tcp, to);
    assert_eq!(elsewhere, Closed::Refused);
}

#[test]
fn broadcasts_and_multicasts_at_a_published_port_are_left_alone() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology.attach("web", 0, &["8080:80/udp", "9999:80/udp"]);
    let capture = Capture::start(&topology.containers[0].namespace, "eth0");
    let source = SocketAddr::new(CLIENT, 4321);
    let source6 = SocketAddr::new(CLIENT6, 4321);
    for (source, to, mac) in [
        (source, "255.255.255.255:8080", [0xff; 6]),
        (source, "192.0.2.255:8080", [0xff; 6]),
        (source, "224.0.0.251:8080", [1, 0, 0x5e, 0, 0, 0xfb]),
        (source6, "[ff02::1]:8080", [0x33, 0x33, 0, 0, 0, 1]),
        // To the host's hardware address all the same.
        (source, "255.255.255.255:8080", HOST_MAC),
        (source, "224.0.0.251:8080", HOST_MAC),
        (source, "169.254.1.1:8080", HOST_MAC),
        (source6, "[ff02::1]:8080", HOST_MAC),
        (source6, "[fe80::1]:8080", HOST_MAC),
        // A unicast address in a frame for somebody else.
        (source, "192.0.2.1:8080", [2, 9, 9, 9, 9, 9]),
    ] {
        let to = to.parse().expect("an address and a port");
        let frame = Frame::udp(source, to, b"to all").on_link(CLIENT_MAC, mac);
        inject(&topology.client, "eth0", &frame.to_bytes());
    }
    mark(&topology.client, HOST, 9999);
    let frames = capture.finish();
    let reached: Vec<&Captured> = frames
        .iter()
        .filter(|frame| involves(frame, CLIENT, 4321) || involves(frame, CLIENT6, 4321))
        .collect();
    assert!(reached.is_empty(), "{reached:?}");
}

// Fails if a tag is not seen, or if one of VLAN 0 counts as one (`is_tagged` in packet.rs).
#[test]
fn a_priority_tag_changes_nothing_and_a_vlan_is_somebody_elses() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology.attach("web", 0, &["8080:80/udp", "9999:80/udp"]);
    let capture = Capture::start(&topology.containers[0].namespace, "eth0");
    for (client, host) in [(CLIENT, HOST), (CLIENT6, HOST6)] {
        for (port, vlan) in [(4320, 0), (4321, 7)] {
            let (source, to) = (SocketAddr::new(client, port), SocketAddr::new(host, 8080));
            let mut frame = Frame::udp(source, to, b"tagged").on_link(CLIENT_MAC, HOST_MAC);
            frame.vlan = Some(vlan);
            inject(&topology.client, "eth0", &frame.to_bytes());
        }
        mark(&topology.client, host, 9999);
    }
    let frames = capture.finish();
    for client in [CLIENT, CLIENT6] {
        let reached = |port| frames.iter().any(|frame| involves(frame, client, port));
        assert!(reached(4320) && !reached(4321), "{client}: {frames:?}");
    }
}
