//! Connections of one client from one port that lead to one port of a container: the container could not
//! tell them apart, so the later ones get another port toward it.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

use portfwd_tests::clients::{Answer, ask_from, ask_stream, bound_socket, connect_from, echo};
use portfwd_tests::datapath::{Datapath, Program, Row, Verdict};
use portfwd_tests::packet::{Frame, flag};
use portfwd_tests::table::{at, families, hopped, inbound, play};
use portfwd_tests::topology::{
    CLIENT, CLIENT6, GATEWAY_MAC, HOST, HOST_SECOND, HOST6, HOST6_SECOND, Shape, Topology,
};

/// Where one client's port comes to the same port of one container, by family.
const FAMILIES: [(IpAddr, [(IpAddr, u16); 4]); 2] = [
    (
        CLIENT,
        [
            (HOST, 8080),
            (HOST_SECOND, 8080),
            (HOST, 8081),
            (HOST_SECOND, 8081),
        ],
    ),
    (
        CLIENT6,
        [
            (HOST6, 8080),
            (HOST6_SECOND, 8080),
            (HOST6, 8081),
            (HOST6_SECOND, 8081),
        ],
    ),
];

fn published(shape: Shape) -> Topology {
    let topology = Topology::new(shape);
    let specs = ["8080:80", "8081:80", "8080:80/udp", "8081:80/udp"];
    topology.attach("web", 0, &specs);
    topology
}

/// The container saw the client's own address each time, its port first, and no port twice.
#[track_caller]
fn expect_told_apart(answers: &[Answer], client: SocketAddr) {
    assert!(answers.iter().all(|answer| answer.label == "web"));
    let seen: Vec<SocketAddr> = answers.iter().map(|answer| answer.seen).collect();
    assert_eq!(seen[0], client);
    assert!(seen.iter().all(|seen| seen.ip() == client.ip()), "{seen:?}");
    assert!(seen.iter().all(|seen| seen.port() >= 1_024), "{seen:?}");
    for (place, address) in seen.iter().enumerate() {
        assert!(!seen[..place].contains(address), "{seen:?}");
    }
}

fn asked(stream: &TcpStream) -> io::Result<Answer> {
    stream.set_nodelay(true)?;
    ask_stream(stream)
}

// Fails if the client's port is not changed (`open` in shift.rs), not changed back in replies (`to_client`
// in first.rs), or not found again for the next segment (`find`).
#[test]
fn connections_from_one_port_to_several_addresses_and_ports_work_at_once() {
    for shape in [Shape::default(), Shape::routed()] {
        let topology = published(shape);
        let _servers = topology.serve();
        for (client, hosts) in FAMILIES {
            let from = at(client, 47_001);
            let streams: Vec<TcpStream> = hosts
                .iter()
                .map(|(host, port)| {
                    let to = at(*host, *port);
                    connect_from(&topology.client, from, to)
                        .unwrap_or_else(|error| panic!("{from} to {to}: {error}"))
                })
                .collect();
            let answers: Vec<Answer> = streams
                .iter()
                .map(|stream| asked(stream).expect("an answer"))
                .collect();
            expect_told_apart(&answers, from);
            let block: Vec<u8> = (0..=u8::MAX).cycle().take(60_000).collect();
            for stream in streams.iter().chain(streams.iter().rev()) {
                echo(stream, &block).expect("the same back");
            }
        }
    }
}

// Fails if the end of one flow ends, or gives its port to, another of the same client's port.
#[test]
fn the_end_of_one_connection_does_not_harm_those_beside_it() {
    let topology = published(Shape::default());
    let _servers = topology.serve();
    for (client, hosts) in FAMILIES {
        let from = at(client, 47_002);
        let [first, second, third] = [0, 1, 2].map(|place| {
            let (host, port) = hosts[place];
            connect_from(&topology.client, from, at(host, port)).expect("connect")
        });
        let answers = [&first, &second, &third].map(|stream| asked(stream).expect("an answer"));
        expect_told_apart(&answers, from);
        drop(first);
        echo(&second, b"after the first has gone").expect("the same back");
        // A reset, as its data are never read.
        (&third).write_all(b"data").expect("send");
        drop(third);
        echo(&second, b"after the third has gone").expect("the same back");
        let again = connect_from(&topology.client, from, at(hosts[3].0, hosts[3].1));
        let again = asked(&again.expect("connect")).expect("an answer");
        assert_ne!(again.seen, answers[1].seen);
        echo(&second, b"beside a new one").expect("the same back");
    }
}

// Fails for the same reasons as with TCP.
#[test]
fn one_socket_asks_several_addresses_and_ports_by_datagrams() {
    let topology = published(Shape::default());
    let _servers = topology.serve();
    for (client, hosts) in FAMILIES {
        let from = at(client, 47_003);
        let socket = bound_socket(&topology.client, from).expect("bind");
        let ask =
            || hosts.map(|(host, port)| ask_from(&socket, at(host, port)).expect("an answer"));
        let answers = ask();
        let own = answers.clone().map(|answer| Answer {
            own: from,
            ..answer
        });
        expect_told_apart(&own, from);
        for _ in 0..20 {
            assert_eq!(ask(), answers, "a flow keeps the port that it got");
        }
    }
}

/// The port that a translated frame comes from.
fn source_port(frame: &[u8]) -> u16 {
    let transport = if frame[12] == 8 { 34 } else { 54 };
    u16::from_be_bytes([frame[transport], frame[transport + 1]])
}

// Fails if a changed port changes again with the next packet, if a checksum does not follow it, or if
// replies are not changed back.
#[test]
fn the_changed_port_is_translated_both_ways_to_the_byte() {
    let topology = published(Shape::default());
    let datapath = Datapath::open(&topology);
    for ends in families() {
        let client = at(ends.client, 47_004);
        let web = at(ends.web, 80);
        let [first, second] = [at(ends.host, 8080), at(ends.host_second, 8081)];
        for udp in [false, true] {
            let frame = |source, destination, flags, payload: &[u8]| {
                if udp {
                    Frame::udp(source, destination, payload)
                } else {
                    Frame::tcp(source, destination, flags).carrying(payload)
                }
            };
            let opening = |host| inbound(frame(client, host, flag::SYN, b"")).to_bytes();
            let (verdict, _) = datapath.run(Program::Device, "eth0", &opening(first));
            assert_eq!(verdict, Verdict::Redirect);
            let (verdict, after) = datapath.run(Program::Device, "eth0", &opening(second));
            assert_eq!(verdict, Verdict::Redirect);
            let port = source_port(&after);
            let shifted = at(ends.client, port);
            assert_ne!(shifted, client);
            let request = |flags, payload: &[u8]| {
                let input = inbound(frame(client, second, flags, payload));
                let output = hopped(&input, shifted, web);
                let input = input.to_bytes();
                Row::translated("a request", Program::Device, "eth0", input, output)
            };
            let reply = |flags, payload: &[u8]| {
                let input = frame(web, shifted, flags, payload);
                let input = input.on_link([2, 0, 0, 88, 0, 2], GATEWAY_MAC);
                let output = hopped(&input, second, client);
                let input = input.to_bytes();
                Row::translated("a reply", Program::Link, "veth1", input, output)
            };
            let rows = [
                reply(flag::SYN | flag::ACK, b""),
                request(flag::ACK, b"odd"),
                reply(flag::ACK, b"even"),
                request(flag::FIN | flag::ACK, b""),
                reply(flag::FIN | flag::ACK, b""),
                request(flag::SYN, b""),
            ];
            play(&datapath, &rows);
        }
    }
}
