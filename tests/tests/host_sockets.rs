//! What belongs to sockets of the host stays theirs, although its port is published.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use portfwd_common::host::{SocketKey, SocketOrigin};
use portfwd_common::maps;
use portfwd_common::net::{Ip, NetPort};
use portfwd_tests::clients::{self, Protocol};
use portfwd_tests::datapath::{Datapath, Program, Row};
use portfwd_tests::packet::{Frame, flag};
use portfwd_tests::servers::Server;
use portfwd_tests::table::{inbound, play};
use portfwd_tests::taken::{comes_out_as, only_entry};
use portfwd_tests::topology::{
    CLIENT, CLIENT6, FOREIGN, FOREIGN6, HOST, HOST_SECOND, HOST6, HOST6_SECOND, Shape, Topology,
};

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LOOPBACK6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

// Fails if no socket of the host owns its connection (`host_owns` in forward.rs): the container would
// answer the segment.
#[test]
fn a_syn_for_a_connection_of_the_host_is_the_hosts() {
    let topology = Topology::new(Shape::default());
    let _peer = Server::start(&topology.client, &[CLIENT, CLIENT6], 7, "peer");
    let mut rows = Vec::new();
    let mut streams = Vec::new();
    for (own, peer) in [(HOST, CLIENT), (HOST6, CLIENT6)] {
        let (own, peer) = (SocketAddr::new(own, 40_000), SocketAddr::new(peer, 7));
        let input = inbound(Frame::tcp(peer, own, flag::SYN)).to_bytes();
        streams.push(clients::connect_from(&topology.host, own, peer).expect("connect"));
        rows.push(Row::untouched("a SYN", Program::Device, "eth0", input));
    }
    topology.attach("web", 0, &["40000:80"]);
    play(&Datapath::open(&topology), &rows);
}

// Fails if a segment opens a flow without being asked whether it may (`admits` in forward.rs): the peer would
// talk to the container from then on.
#[test]
fn a_host_connection_whose_ephemeral_port_gets_published_goes_on() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    let _peer = Server::start(&topology.client, &[CLIENT, CLIENT6], 7, "peer");
    for (number, (own, peer)) in [(HOST, CLIENT), (HOST6, CLIENT6)].into_iter().enumerate() {
        let port = 40_000 + u16::try_from(number).expect("a small number");
        let (from, to) = (SocketAddr::new(own, port), SocketAddr::new(peer, 7));
        let stream = clients::connect_from(&topology.host, from, to).expect("connect");
        clients::ask_stream(&stream).expect("an answer before");
        let datagrams = clients::bound_socket(&topology.host, from).expect("bind");
        datagrams.connect(to).expect("connect");
        let name = format!("web{number}");
        topology.attach(&name, 0, &[&format!("{port}:80")]);
        for _ in 0..3 {
            clients::echo(&stream, b"still there").expect("an echo after");
        }
        // The same port is published over TCP only; its UDP socket is asked about as well.
        assert_eq!(
            clients::ask_datagram(&datagrams).expect("an answer").label,
            "peer"
        );
        // And the published port serves others.
        let published = SocketAddr::new(own, port);
        let answer = clients::ask(&topology.client, Protocol::Tcp, published).expect("an answer");
        assert_eq!(answer.label, "web");
    }
}

// Fails if an unconnected socket does not own the answers that it has asked for (`asked_by_host` in
// forward.rs).
#[test]
fn a_host_connection_opened_from_a_published_port_works() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    let _peer = Server::start(&topology.client, &[CLIENT, CLIENT6], 7, "peer");
    topology.attach("web", 0, &["40000-40009:80-89", "40000-40009:80-89/udp"]);
    for peer in [CLIENT, CLIENT6] {
        let to = SocketAddr::new(peer, 7);
        // Every port that the host may choose by itself is published.
        topology
            .host
            .set_sysctl("ipv4/ip_local_port_range", "40000\t40009");
        for _ in 0..3 {
            for protocol in PROTOCOLS {
                let answer = clients::ask(&topology.host, protocol, to)
                    .unwrap_or_else(|error| panic!("{protocol:?} {to}: {error}"));
                assert_eq!(answer.label, "peer");
                assert!((40_000..40_010).contains(&answer.own.port()), "{answer:?}");
                assert_eq!(answer.seen, answer.own);
            }
            let answer = clients::ask_unconnected(&topology.host, to)
                .unwrap_or_else(|error| panic!("unconnected {to}: {error}"));
            assert_eq!(answer.label, "peer");
        }
    }
}

/// `sysctl -w` puts its value in the place of the one before: two commands would undo each other.
#[test]
fn ports_that_the_kernel_may_choose_are_warned_of_once_with_one_command() {
    let topology = Topology::new(Shape::default());
    let host = &topology.host;
    host.set_sysctl("ipv4/ip_local_port_range", "32768 60999");
    host.set_sysctl("ipv4/ip_local_reserved_ports", "45000-45010");
    let warned = |which: &str, them: &str, command: &str| {
        format!(
            "warning: the kernel may give {which} to connections of the host as well \
             (net.ipv4.ip_local_port_range): their peers cannot reach a container by {them}; {command}\n"
        )
    };
    let sysctl = |reserved| format!("sysctl -w net.ipv4.ip_local_reserved_ports={reserved}");
    let specs = ["8080:80", "40000:80", "40002:80/udp", "45010-45011:80-81"];
    let attached = topology.attach("web", 0, &specs);
    let reserved = "40000,40002,45000-45011";
    let three = warned("ports 40000, 40002, 45011", "them", &sysctl(reserved));
    assert_eq!(attached.stderr, three);
    host.set_sysctl("ipv4/ip_local_reserved_ports", reserved);
    let attached = topology.attach("web", 0, &["40001:80", "40002:80"]);
    let one = warned("port 40001", "it", &sysctl("40000-40002,45000-45011"));
    assert_eq!(attached.stderr, one);

    let singles: Vec<String> = (0..1_000)
        .map(|number| format!("{}:80", 50_000 + 2 * number))
        .collect();
    let singles: Vec<&str> = singles.iter().map(String::as_str).collect();
    let attached = topology.attach("db", 1, &singles);
    let lines: Vec<&str> = attached.stderr.lines().collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    let some = "1000 ports (50000, 50002, 50004, 50006, 50008, 50010, 50012, 50014 and others)";
    assert!(lines[0].contains(some), "{lines:?}");
    let (_, command) = lines[0].split_once("; ").expect("a command");
    host.output("sh", &["-c", command]);
    let again = [&singles[..], &["40003:83"]].concat();
    let attached = topology.attach("db", 1, &again);
    let reserved = command.split(' ').find(|word| word.starts_with("40000,"));
    let reserved = reserved
        .expect("a list")
        .replacen("40002,", "40002-40003,", 1);
    let dd = "dd bs=1M iflag=fullblock of=/proc/sys/net/ipv4/ip_local_reserved_ports";
    let command = format!("printf %s {reserved} | {dd}");
    assert_eq!(attached.stderr, warned("port 40003", "it", &command));
}

#[test]
fn a_host_socket_on_a_published_port_gets_the_answers_of_another_container() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology.attach("web", 0, &["5353:80/udp"]);
    topology.attach("db", 1, &["40000:80/udp"]);
    // The one port that the host may choose by itself is published.
    let range = "40000\t40000";
    topology.host.set_sysctl("ipv4/ip_local_port_range", range);
    for (any, addresses) in [
        ("0.0.0.0:0", [LOOPBACK, HOST]),
        ("[::]:0", [LOOPBACK6, HOST6]),
    ] {
        let socket = topology
            .host
            .run(|| std::net::UdpSocket::bind(any))
            .expect("bind the published port");
        let own = socket.local_addr().expect("an address");
        assert_eq!(own.port(), 40_000);
        for address in addresses {
            let to = SocketAddr::new(address, 5353);
            let answer = clients::ask_from(&socket, to)
                .unwrap_or_else(|error| panic!("{to} from {any}: {error}"));
            assert_eq!(answer.label, "web");
        }
    }
}

/// A resolver on one address of the host, and a container's on another.
#[test]
fn a_clients_socket_is_answered_by_host_and_container_on_one_port() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    let _own = Server::start(&topology.host, &[HOST, HOST6], 53, "host");
    topology.attach(
        "web",
        0,
        &["192.0.2.10:53:80/udp", "[2001:db8:1::10]:53:80/udp"],
    );
    for (own, addresses) in [
        (CLIENT, [HOST, HOST_SECOND, HOST]),
        (CLIENT6, [HOST6, HOST6_SECOND, HOST6]),
    ] {
        let socket = topology
            .client
            .run(|| std::net::UdpSocket::bind(SocketAddr::new(own, 5060)))
            .expect("bind");
        for (address, label) in addresses.into_iter().zip(["host", "web", "host"]) {
            let to = SocketAddr::new(address, 53);
            let answer =
                clients::ask_from(&socket, to).unwrap_or_else(|error| panic!("{to}: {error}"));
            assert_eq!(answer.label, label);
        }
    }
}

// An entry of an LRU table is used again at once, while a call may still be looking at it. Fails if a socket is
// told what the entry says of another one by then (`said` in socket.rs).
#[test]
fn no_socket_is_told_the_peer_of_one_that_has_taken_its_entry() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology.attach("web", 0, &["8080:80"]);
    let table = topology.pinned(maps::HOST_SOCKETS);
    let [web, _] = &topology.containers;
    for (host, other_host, container) in [
        (HOST, FOREIGN, web.addresses()[0]),
        (HOST6, FOREIGN6, web.addresses()[1]),
    ] {
        let published = SocketAddr::new(host, 8080);
        let stream = clients::connect(&topology.host, published).expect("connect");
        let (key, own): (SocketKey, SocketOrigin) = only_entry(&table);
        let others = |number| {
            let mut key = key;
            key.cookie ^= 1 << 40 | u64::from(number);
            key
        };
        let mut other = own;
        (other.address, other.port) = (Ip::from(other_host), NetPort::new(9_999));
        // Without an entry a socket is told what the kernel knows.
        let expected = [published, SocketAddr::new(container, 80)];
        let ask = || stream.peer_addr().expect("a peer");
        let race = || comes_out_as(&expected, &table, key, others, || [own, other], ask);
        topology.host.run(race);
    }
}
