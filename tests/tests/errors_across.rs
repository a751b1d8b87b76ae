//! ICMP errors that kernels send, across namespaces: narrow links, closed ports, hops that end.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};

use portfwd_tests::clients::{ask_stream, bound_socket, connect, datagram_socket, echo};
use portfwd_tests::deadline::{PATIENCE, SILENCE, patient, until};
use portfwd_tests::namespace::Namespace;
use portfwd_tests::servers::Server;
use portfwd_tests::table::at;
use portfwd_tests::topology::{HOST, HOST6, Shape, Topology};

const HOSTS: [IpAddr; 2] = [HOST, HOST6];
/// More than a narrow link of 1,300 bytes takes.
const LARGE: [u8; 1_400] = [7; 1_400];
/// What it takes.
const SMALL: [u8; 1_200] = [8; 1_200];

/// A namespace behind the router that the topology's client, or its foreign server, becomes; the link
/// between them takes 1,300 bytes. Its addresses are 198.51.100.2 and 2001:db8:51::2.
fn behind(topology: &Topology, router: &Namespace) -> Namespace {
    let beyond = Namespace::new("beyond");
    router.set_sysctl("ipv4/ip_forward", "1");
    router.set_sysctl("ipv6/conf/all/forwarding", "1");
    router.ip(&format!(
        "link add eth9 index 91 type veth peer name eth0 index 92 netns {}
         addr add 198.51.100.1/24 dev eth9
         addr add 2001:db8:51::1/64 dev eth9 nodad
         addr add fe80::1/64 dev eth9 nodad
         link set eth9 mtu 1300 up\n",
        beyond.name()
    ));
    // It claims to take more than its link does: else TCP would never send what is too large.
    beyond.ip("addr add 198.51.100.2/24 dev eth0
         addr add 2001:db8:51::2/64 dev eth0 nodad
         addr add fe80::2/64 dev eth0 nodad
         link set eth0 mtu 1300 up
         route add default via 198.51.100.1 advmss 1460
         route add default via 2001:db8:51::1 advmss 1440\n");
    let (v4, v6) = if router.name() == topology.client.name() {
        ("192.0.2.2", "2001:db8:1::2")
    } else {
        ("203.0.113.9", "2001:db8:3::9")
    };
    topology.host.ip(&format!(
        "route add 198.51.100.0/24 via {v4}\nroute add 2001:db8:51::/64 via {v6}\n"
    ));
    beyond
}

const BEYOND: &str = "198.51.100.2,2001:db8:51::2";

fn beyond() -> [IpAddr; 2] {
    [0, 1].map(|place| {
        let text = BEYOND.split(',').nth(place).expect("two");
        text.parse().expect("an address")
    })
}

fn attach(topology: &Topology) {
    let specs = ["8080:80", "8080:80/udp", "8081:81/udp"];
    topology.attach("web", 0, &specs);
}

/// Publishes the namespace beyond: packets to it go through the host's stack.
fn attach_beyond(topology: &Topology) {
    let ports = ["-p", "8080:80", "-p", "8080:80/udp", "-p", "8081:81/udp"];
    let arguments = [&["attach", "far", "--ip", BEYOND][..], &ports].concat();
    topology.portfwd(&arguments).expect_ok();
}

fn shape(forwarding: bool) -> Shape {
    Shape {
        forwarding,
        offloads: false,
        ..Shape::default()
    }
}

fn bound(namespace: &Namespace, address: IpAddr) -> UdpSocket {
    bound_socket(namespace, at(address, 80)).expect("bind")
}

/// Much in both directions.
#[track_caller]
fn transfers(stream: &TcpStream) {
    let block: Vec<u8> = (0..=u8::MAX).cycle().take(100_000).collect();
    ask_stream(stream).expect("an answer");
    for _ in 0..3 {
        echo(stream, &block).expect("the same back");
    }
}

/// The sender of datagrams that may not be cut is told that they are too large; what fits arrives.
#[track_caller]
fn learns_of_the_narrow_link(sender: &UdpSocket, receiver: &UdpSocket) {
    until("the sender to be told", PATIENCE, || {
        let error = sender.send(&LARGE).err()?;
        assert_eq!(error.raw_os_error(), Some(Errno::EMSGSIZE as i32));
        Some(())
    });
    sender.send(&SMALL).expect("what fits is sent");
    let mut buffer = [0; 2_048];
    assert_eq!(
        receiver.recv(&mut buffer).expect("what fits arrives"),
        SMALL.len()
    );
}

/// A client and a server that has heard of it.
fn acquainted(client: &UdpSocket, server: &UdpSocket) {
    client.send(b"question").expect("send");
    let (_, peer) = server.recv_from(&mut [0; 64]).expect("the question");
    server.connect(peer).expect("connect");
}

// Fails if what a router says about a reply does not reach the container (`about_reply` in error.rs), or
// not in its own terms.
#[test]
fn a_container_learns_of_a_narrow_link_before_the_client() {
    let topology = Topology::new(shape(false));
    let beyond = behind(&topology, &topology.client);
    attach(&topology);
    let [web, _] = &topology.containers;
    for (host, container) in HOSTS.into_iter().zip(web.addresses()) {
        let server = bound(&web.namespace, container);
        let client = datagram_socket(&beyond, at(host, 8080)).expect("a socket");
        acquainted(&client, &server);
        learns_of_the_narrow_link(&server, &client);
    }
    let _servers = topology.serve();
    for host in HOSTS {
        transfers(&connect(&beyond, at(host, 8080)).expect("connect"));
    }
}

// Fails if what a router says about a request through the stack does not reach the client, or not in its
// own terms (`Egress` in error.rs).
#[test]
fn a_client_learns_of_a_narrow_link_before_the_container() {
    let topology = Topology::new(shape(true));
    let beyond = behind(&topology, &topology.foreign);
    attach_beyond(&topology);
    for (host, container) in HOSTS.into_iter().zip(self::beyond()) {
        let server = bound(&beyond, container);
        let client = datagram_socket(&topology.client, at(host, 8080)).expect("a socket");
        acquainted(&client, &server);
        learns_of_the_narrow_link(&client, &server);
    }
    let _server = Server::start(&beyond, &self::beyond(), 80, "far");
    for host in HOSTS {
        transfers(&connect(&topology.client, at(host, 8080)).expect("connect"));
    }
}

// Fails if what the host itself says is not translated where it leaves.
#[test]
fn a_client_learns_of_a_narrow_link_of_the_host_before_the_container() {
    let topology = Topology::new(shape(true));
    let beyond = behind(&topology, &topology.foreign);
    topology.host.ip("link set eth1 mtu 1300\n");
    attach_beyond(&topology);
    let _server = Server::start(&beyond, &self::beyond(), 80, "far");
    for host in HOSTS {
        let client = datagram_socket(&topology.client, at(host, 8080)).expect("a socket");
        until("the client to be told", PATIENCE, || {
            let error = client.send(&LARGE).err()?;
            (error.raw_os_error() == Some(Errno::EMSGSIZE as i32)).then_some(())
        });
        transfers(&connect(&topology.client, at(host, 8080)).expect("connect"));
    }
}

/// What the first receipt says.
fn refused(socket: &UdpSocket) -> io::Result<usize> {
    socket.send(b"anybody there?")?;
    socket.recv(&mut [0; 64])
}

// Fails if the error of a container about a request does not look to the client as if the host had sent it
// (`about_request` in error.rs): a connected socket ignores it then.
#[test]
fn a_closed_port_of_a_container_refuses_datagrams() {
    let topology = Topology::new(shape(true));
    let _beyond = behind(&topology, &topology.foreign);
    attach(&topology);
    let [web, db] = &topology.containers;
    // From outside, from another container, and from the container itself.
    for client in [&topology.client, &db.namespace, &web.namespace] {
        for host in HOSTS {
            let socket = datagram_socket(client, at(host, 8081)).expect("a socket");
            let error = refused(&socket).expect_err("nobody listens");
            let what = format!("{host} from {}", client.name());
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{what}");
        }
    }
    topology.portfwd(&["detach", "web"]).expect_ok();
    attach_beyond(&topology);
    for host in HOSTS {
        let socket = datagram_socket(&topology.client, at(host, 8081)).expect("a socket");
        let error = refused(&socket).expect_err("nobody listens");
        assert_eq!(
            error.kind(),
            ErrorKind::ConnectionRefused,
            "through the stack"
        );
    }
}

// Fails if a client's error about a reply does not reach the container's socket.
#[test]
fn a_container_is_told_that_its_client_has_gone() {
    let topology = Topology::new(shape(false));
    attach(&topology);
    let [web, _] = &topology.containers;
    for client in [&topology.client, &web.namespace] {
        for (host, container) in HOSTS.into_iter().zip(web.addresses()) {
            let server = bound(&web.namespace, container);
            let socket = datagram_socket(client, at(host, 8080)).expect("a socket");
            acquainted(&socket, &server);
            drop(socket);
            server
                .set_read_timeout(Some(patient(SILENCE)))
                .expect("a limit");
            until("the server to be told", PATIENCE, || {
                let error = refused(&server).err()?;
                (error.kind() == ErrorKind::ConnectionRefused).then_some(())
            });
        }
    }
}

/// Lets the datagrams of a socket go only so many hops, and asks for all errors about them.
fn with_hops(socket: &UdpSocket, address: IpAddr, hops: u32) {
    if address.is_ipv4() {
        socket.set_ttl(hops).expect("a TTL");
        setsockopt(socket, sockopt::Ipv4RecvErr, &true).expect("errors");
    } else {
        let hops = i32::try_from(hops).expect("a small number");
        setsockopt(socket, sockopt::Ipv6Ttl, &hops).expect("a hop limit");
        setsockopt(socket, sockopt::Ipv6RecvErr, &true).expect("errors");
    }
}

// Fails if a router's word that a packet's hops have come to their end is not translated.
#[test]
fn both_ends_are_told_when_their_hops_end_at_a_router() {
    let topology = Topology::new(shape(true));
    let beyond = behind(&topology, &topology.client);
    attach(&topology);
    let [web, _] = &topology.containers;
    for (host, container) in HOSTS.into_iter().zip(web.addresses()) {
        let server = bound(&web.namespace, container);
        let client = datagram_socket(&beyond, at(host, 8080)).expect("a socket");
        acquainted(&client, &server);
        // Past the host, and not past the router.
        with_hops(&server, container, 2);
        expect_expired(&server, "the container");
    }
}

#[test]
fn a_client_is_told_when_its_hops_end_behind_the_host() {
    let topology = Topology::new(shape(true));
    let _beyond = behind(&topology, &topology.foreign);
    attach_beyond(&topology);
    for host in HOSTS {
        let client = datagram_socket(&topology.client, at(host, 8080)).expect("a socket");
        // At the host itself, where its stack forwards, and at the router behind it.
        for hops in [1, 2] {
            with_hops(&client, host, hops);
            expect_expired(&client, &format!("{host}, {hops} hops"));
        }
    }
}

#[track_caller]
fn expect_expired(socket: &UdpSocket, who: &str) {
    let limit = patient(Duration::from_secs(2));
    socket.set_read_timeout(Some(limit)).expect("a limit");
    let error = refused(socket).expect_err("nothing arrives");
    assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{who}: {error}");
}
