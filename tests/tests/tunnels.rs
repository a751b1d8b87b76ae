//! Devices that carry IP packets without an Ethernet header: a tun device stands for WireGuard, PPP and
//! IP tunnels, which this machine need not have.

use std::net::{IpAddr, SocketAddr};

use portfwd_tests::capture::{Capture, faults};
use portfwd_tests::clients::{self, Answer, Closed, Protocol, bound_socket};
use portfwd_tests::deadline::{PATIENCE, until};
use portfwd_tests::namespace::Namespace;
use portfwd_tests::needs::{Need, need};
use portfwd_tests::portfwd::expect_error;
use portfwd_tests::servers::Server;
use portfwd_tests::topology::{CLIENT, CLIENT6, HOST, HOST6, Shape, Topology};
use portfwd_tests::tunnel::{Kind, Tunnel};

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
const BOTH: [&str; 2] = ["8080:80", "8080:80/udp"];

/// A topology with a tun device on the host, and somebody behind it.
struct Stand {
    topology: Topology,
    remote: Namespace,
    _wire: Tunnel,
}

impl Stand {
    fn new(shape: Shape) -> Self {
        Self::join(Topology::new(shape))
    }

    /// Adds the device to a topology.
    fn join(topology: Topology) -> Self {
        Self::by(Kind::Tun, topology)
    }

    fn by(kind: Kind, topology: Topology) -> Self {
        let remote = Namespace::new("remote");
        let wire = Tunnel::new(kind, (&topology.host, "tun0"), (&remote, "tun0"));
        for (namespace, number) in [(&topology.host, 1), (&remote, 2)] {
            namespace.ip(&format!(
                "addr add 198.18.0.{number}/24 dev tun0
                 addr add fd18::{number}/64 dev tun0 nodad
                 link set tun0 up\n"
            ));
        }
        remote.ip("route add default via 198.18.0.1\nroute add default via fd18::1\n");
        Self {
            topology,
            remote,
            _wire: wire,
        }
    }

    #[track_caller]
    fn ask(&self, protocol: Protocol, address: IpAddr, port: u16) -> Answer {
        ask(&self.remote, protocol, address, port)
    }
}

#[track_caller]
fn ask(from: &Namespace, protocol: Protocol, address: IpAddr, port: u16) -> Answer {
    let to = SocketAddr::new(address, port);
    clients::ask(from, protocol, to)
        .unwrap_or_else(|error| panic!("{protocol:?} {to} from {}: {error}", from.name()))
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The host's addresses that the remote asks, with its own of the family.
fn ways() -> [(IpAddr, IpAddr); 4] {
    let (own, own6) = (ip("198.18.0.2"), ip("fd18::2"));
    [
        (ip("198.18.0.1"), own),
        (HOST, own),
        (ip("fd18::1"), own6),
        (HOST6, own6),
    ]
}

// Fails if the programs read an Ethernet header where there is none, or give the container a packet
// without one.
#[test]
fn a_client_behind_a_tun_device_reaches_a_published_port() {
    for wiring in [Shape::default(), Shape::routed()] {
        for forwarding in [false, true] {
            let stand = Stand::new(Shape {
                forwarding,
                ..wiring
            });
            let topology = &stand.topology;
            let _servers = topology.serve();
            let _own = Server::start(
                &topology.host,
                &[ip("198.18.0.1"), ip("fd18::1")],
                22,
                "host",
            );
            topology.attach("web", 0, &BOTH);
            let capture = Capture::start(&topology.containers[0].namespace, "eth0");
            for protocol in PROTOCOLS {
                for (address, own) in ways() {
                    for _ in 0..2 {
                        let answer = stand.ask(protocol, address, 8080);
                        assert_eq!((answer.label.as_str(), answer.seen.ip()), ("web", own));
                    }
                }
                for (address, own) in [(HOST, CLIENT), (HOST6, CLIENT6)] {
                    assert_eq!(
                        ask(&topology.client, protocol, address, 8080).seen.ip(),
                        own
                    );
                }
                // What is not published stays the host's.
                for address in ["198.18.0.1", "fd18::1"] {
                    assert_eq!(stand.ask(protocol, ip(address), 22).label, "host");
                    let closed = SocketAddr::new(ip(address), 8081);
                    let closed = clients::closed(&stand.remote, protocol, closed);
                    assert_eq!(closed, Closed::Refused);
                }
            }
            let frames = capture.finish();
            assert_eq!(faults(&frames, false), Vec::<String>::new());
            let of_remote = |address: IpAddr| {
                let is = |frame: &&portfwd_tests::capture::Captured| {
                    frame
                        .layers()
                        .is_some_and(|layers| layers.source == address)
                };
                frames.iter().filter(is).count()
            };
            assert!(of_remote(ip("198.18.0.2")) > 0 && of_remote(ip("fd18::2")) > 0);
        }
    }
}

// Fails if the programs for such devices are loaded with the instance alone, or with maps of their own.
#[test]
fn a_tun_device_that_comes_later_is_served_after_up() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology.attach("web", 0, &BOTH);
    let stand = Stand::join(topology);
    stand.topology.portfwd(&["up"]).expect_ok();
    for protocol in PROTOCOLS {
        for (address, own) in ways() {
            assert_eq!(stand.ask(protocol, address, 8080).seen.ip(), own);
        }
    }
    let objects = stand.topology.objects();
    stand.topology.portfwd(&["down"]).expect_ok();
    until("the instance's objects to go", PATIENCE, || {
        objects.iter().all(|object| !object.lives()).then_some(())
    });
}

#[test]
fn much_data_comes_through_a_tun_device_unharmed() {
    let stand = Stand::new(Shape::default());
    let container = &stand.topology.containers[0];
    let _sink = Server::hash(&container.namespace, &container.addresses(), 80);
    stand.topology.attach("web", 0, &["8080:80"]);
    for (address, _) in ways() {
        let to = SocketAddr::new(address, 8080);
        let (sent, received) = clients::bulk(&stand.remote, to, 8 << 20).expect("a transfer");
        assert_eq!(sent, received);
    }
}

// Larger than the device takes: in fragments both ways.
#[test]
fn datagrams_in_fragments_come_through_a_tun_device() {
    let stand = Stand::new(Shape::default());
    stand.topology.attach("web", 0, &BOTH);
    let container = &stand.topology.containers[0];
    for (address, own) in ways() {
        let target = if address.is_ipv4() {
            container.v4.into()
        } else {
            container.v6.into()
        };
        let server = bound_socket(&container.namespace, SocketAddr::new(target, 80)).expect("bind");
        let client = bound_socket(&stand.remote, SocketAddr::new(own, 0)).expect("bind");
        let to = SocketAddr::new(address, 8080);
        let datagram: Vec<u8> = (0..=250).cycle().take(5_000).collect();
        let mut buffer = [0; 8_192];
        client.send_to(&datagram, to).expect("send");
        let (length, peer) = server.recv_from(&mut buffer).expect("a request");
        assert_eq!(&buffer[..length], datagram);
        server.send_to(&datagram, peer).expect("answer");
        let (length, from) = client.recv_from(&mut buffer).expect("an answer");
        assert_eq!((&buffer[..length], from), (&datagram[..], to));
    }
}

// A network card may leave all but the Ethernet header in pages, where programs cannot read it at once. Fails
// if the headers are not pulled up (`pull_headers` in packet.rs).
#[test]
fn headers_that_lie_in_pages_are_translated() {
    let stand = Stand::by(Kind::Scattered, Topology::new(Shape::default()));
    let topology = &stand.topology;
    // The kernel would pull up what it looks at.
    topology
        .host
        .output("ethtool", &["-K", "tun0", "generic-receive-offload", "off"]);
    let _servers = topology.serve();
    topology.attach("web", 0, &BOTH);
    let capture = Capture::start(&topology.containers[0].namespace, "eth0");
    for (address, own) in ways() {
        for protocol in PROTOCOLS {
            assert_eq!(stand.ask(protocol, address, 8080).seen.ip(), own);
        }
        let to = SocketAddr::new(address, 8080);
        let stream = clients::connect(&stand.remote, to).expect("connect");
        clients::ask_stream(&stream).expect("an answer");
        clients::echo(&stream, &[7; 100_000]).expect("much more");
    }
    assert_eq!(faults(&capture.finish(), false), Vec::<String>::new());
}

// The same of fragments, and of errors with what they quote. Fails if those headers are not pulled up
// (`pull_extended_headers` in packet.rs).
#[test]
fn fragments_and_errors_that_lie_in_pages_are_translated() {
    let stand = Stand::by(Kind::Scattered, Topology::new(Shape::default()));
    let topology = &stand.topology;
    topology
        .host
        .output("ethtool", &["-K", "tun0", "generic-receive-offload", "off"]);
    topology.attach("web", 0, &BOTH);
    let container = &topology.containers[0];
    for (address, own) in ways() {
        let target = if address.is_ipv4() {
            container.v4.into()
        } else {
            container.v6.into()
        };
        let server = bound_socket(&container.namespace, SocketAddr::new(target, 80)).expect("bind");
        let client = bound_socket(&stand.remote, SocketAddr::new(own, 0)).expect("bind");
        let datagram: Vec<u8> = (0..=250).cycle().take(5_000).collect();
        let to = SocketAddr::new(address, 8080);
        client.send_to(&datagram, to).expect("send");
        let mut buffer = [0; 8_192];
        let (length, peer) = server.recv_from(&mut buffer).expect("a request");
        assert_eq!(&buffer[..length], datagram);
        // Nobody is there any more, and the container is told.
        drop(client);
        server.connect(peer).expect("connect");
        until("the server to be told", PATIENCE, || {
            let error = server.send(b"answer").err()?;
            (error.kind() == std::io::ErrorKind::ConnectionRefused).then_some(())
        });
    }
}

#[test]
fn a_client_behind_a_tun_device_reaches_a_service_on_the_containers_loopback() {
    need(Need::Tcx);
    let stand = Stand::new(Shape::default());
    let topology = &stand.topology;
    let container = &topology.containers[0];
    let _service = Server::start(
        &container.namespace,
        &[ip("127.0.0.1"), ip("::1")],
        80,
        "db",
    );
    let netns = container.netns();
    let arguments = [
        "attach",
        "db",
        "--netns",
        &netns,
        "--loopback",
        "-p",
        "8080:80",
    ];
    topology.portfwd(&arguments).expect_ok();
    for (address, _) in ways() {
        assert_eq!(stand.ask(Protocol::Tcp, address, 8080).label, "db");
    }
}

// Fails if the egress program of the tun device reads an Ethernet header: replies then keep the
// server's address.
#[test]
fn a_client_behind_a_tun_device_reaches_what_goes_through_the_stack() {
    let stand = Stand::new(Shape::forwarding());
    let topology = &stand.topology;
    topology
        .host
        .ip("route add 198.51.100.9 via 203.0.113.9\nroute add 2001:db8:51::9 via 2001:db8:3::9\n");
    topology
        .foreign
        .ip("addr add 198.51.100.9/32 dev lo\naddr add 2001:db8:51::9/128 dev lo nodad\n");
    let far = [ip("198.51.100.9"), ip("2001:db8:51::9")];
    let _far = Server::start(&topology.foreign, &far, 80, "far");
    let target = ["attach", "far", "--ip", "198.51.100.9,2001:db8:51::9"];
    let publish = ["-p", "8080:80", "-p", "8080:80/udp"];
    topology
        .portfwd(&[&target[..], &publish].concat())
        .expect_ok();
    for protocol in PROTOCOLS {
        for (address, own) in ways() {
            let answer = stand.ask(protocol, address, 8080);
            assert_eq!((answer.label.as_str(), answer.seen.ip()), ("far", own));
        }
    }
}

#[test]
fn a_guest_behind_a_tun_device_is_published() {
    let stand = Stand::new(Shape::forwarding());
    let topology = &stand.topology;
    let own = [ip("198.18.0.2"), ip("fd18::2")];
    let _guest = Server::start(&stand.remote, &own, 80, "guest");
    let netns = stand.remote.path().display().to_string();
    for target in [["--ip", "198.18.0.2,fd18::2"], ["--netns", &netns]] {
        let publish = ["-p", "8080:80", "-p", "8080:80/udp"];
        topology
            .portfwd(&[&["attach", "guest"], &target[..], &publish].concat())
            .expect_ok();
        for protocol in PROTOCOLS {
            for (address, client) in [(HOST, CLIENT), (HOST6, CLIENT6)] {
                let answer = ask(&topology.client, protocol, address, 8080);
                assert_eq!((answer.label.as_str(), answer.seen.ip()), ("guest", client));
                assert_eq!(ask(&topology.host, protocol, address, 8080).label, "guest");
            }
        }
        topology.portfwd(&["detach", "guest"]).expect_ok();
    }
}

#[test]
fn a_guest_behind_a_tun_device_may_serve_on_its_loopback_address() {
    need(Need::Tcx);
    let stand = Stand::new(Shape::forwarding());
    let topology = &stand.topology;
    let _guest = Server::start(&stand.remote, &[ip("127.0.0.1"), ip("::1")], 80, "guest");
    let netns = stand.remote.path().display().to_string();
    let arguments = [
        "attach",
        "guest",
        "--netns",
        &netns,
        "--loopback",
        "-p",
        "8080:80",
    ];
    topology.portfwd(&arguments).expect_ok();
    for address in [HOST, HOST6] {
        assert_eq!(
            ask(&topology.client, Protocol::Tcp, address, 8080).label,
            "guest"
        );
    }
}

#[test]
fn xdp_leaves_devices_without_frames_to_the_other_programs() {
    let stand = Stand::new(Shape {
        offloads: false,
        ..Shape::default()
    });
    let topology = &stand.topology;
    let _servers = topology.serve();
    expect_error(
        topology.portfwd(&["up", "--device", "tun0", "--xdp", "generic"]),
        1,
        "tun0 (generic): the device carries no Ethernet frames",
    );
    topology.portfwd(&["up", "--xdp", "generic"]).expect_ok();
    topology.attach("web", 0, &BOTH);
    for protocol in PROTOCOLS {
        for (address, _) in ways() {
            assert_eq!(stand.ask(protocol, address, 8080).label, "web");
        }
        assert_eq!(ask(&topology.client, protocol, HOST, 8080).label, "web");
    }
}
