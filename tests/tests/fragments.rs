//! Datagrams in fragments, through a published port and beside it.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use portfwd_common::fragment::{Datagram, DatagramKey};
use portfwd_common::maps;
use portfwd_common::net::NetPort;
use portfwd_tests::capture::{self, Capture, Captured};
use portfwd_tests::clients;
use portfwd_tests::datapath::{Datapath, Program, Verdict};
use portfwd_tests::deadline::{PATIENCE, patient};
use portfwd_tests::packet::Frame;
use portfwd_tests::servers::Server;
use portfwd_tests::table::{at, families, inbound};
use portfwd_tests::taken::{comes_out_as, only_entry, second};
use portfwd_tests::topology::{
    CLIENT, CLIENT_MAC, CLIENT6, GATEWAY_MAC, HOST, HOST_MAC, HOST6, Shape, Topology,
};

/// Longest payload of a UDP datagram over IPv4: 65,535 less the headers of 20 and 8 bytes.
const LONGEST: usize = 65_507;

fn pattern(length: usize) -> Vec<u8> {
    (0..=250).cycle().take(length).collect()
}

fn bound(topology: &Topology, address: SocketAddr) -> UdpSocket {
    let mut containers = topology.containers.iter();
    let own = containers.find(|container| container.addresses().contains(&address.ip()));
    let server = own
        .expect("a container")
        .namespace
        .run(|| UdpSocket::bind(address))
        .expect("bind");
    server
        .set_read_timeout(Some(patient(PATIENCE)))
        .expect("a limit");
    server
}

// Fails if a later fragment is not readdressed, or goes to the stack (`follow` in first.rs).
#[test]
fn the_longest_datagrams_go_both_ways() {
    let topology = Topology::new(Shape::default());
    topology.attach("web", 0, &["8080:80/udp"]);
    let [own, _] = &topology.containers;
    for (address, container) in [(HOST, own.addresses()[0]), (HOST6, own.addresses()[1])] {
        let server = bound(&topology, SocketAddr::new(container, 80));
        let to = SocketAddr::new(address, 8080);
        let client = clients::datagram_socket(&topology.client, to).expect("a socket");
        for length in [1_473, 2_000, 3_000, LONGEST] {
            let question = pattern(length);
            client.send(&question).expect("send");
            let mut buffer = vec![0; LONGEST + 1];
            let (received, peer) = server.recv_from(&mut buffer).expect("the question");
            assert_eq!(&buffer[..received], question, "to {container}");
            server.send_to(&question, peer).expect("answer");
            let received = client.recv(&mut buffer).expect("the answer");
            assert_eq!(&buffer[..received], question, "from {container}");
        }
    }
}

// Fails if a first fragment of no published port is not remembered (`let_pass` in first.rs): the others
// wait for ever then.
#[test]
fn the_hosts_own_fragments_arrive_beside_published_ports() {
    let topology = Topology::new(Shape::default());
    let _own = Server::start(&topology.host, &[HOST, HOST6], 7, "host");
    topology.attach("web", 0, &["8080:80/udp"]);
    for address in [HOST, HOST6] {
        let to = SocketAddr::new(address, 7);
        let socket = clients::datagram_socket(&topology.client, to).expect("a socket");
        let large = pattern(1_900);
        socket.send(&large).expect("send");
        let mut buffer = vec![0; LONGEST + 1];
        let length = socket.recv(&mut buffer).expect("an answer");
        assert!(buffer[..length].ends_with(&large));
    }
}

/// The frames of a datagram in fragments of `size` bytes of IP payload.
fn fragments(datagram: &Frame, size: usize, identification: u32) -> Vec<Vec<u8>> {
    let whole = datagram.to_bytes();
    let header = if datagram.source.is_ipv4() { 34 } else { 54 };
    let payload = &whole[header..];
    let pieces = payload.chunks(size).enumerate();
    pieces
        .map(|(number, piece)| {
            let offset = u16::try_from(number * size / 8).expect("13 bits");
            let more = (number + 1) * size < payload.len();
            let mut frame = whole[..header].to_vec();
            if datagram.source.is_ipv4() {
                let total = u16::try_from(20 + piece.len()).expect("16 bits");
                frame[16..18].copy_from_slice(&total.to_be_bytes());
                let low = u16::try_from(identification & 0xffff).expect("16 bits");
                frame[18..20].copy_from_slice(&low.to_be_bytes());
                frame[20..22].copy_from_slice(&(offset | u16::from(more) << 13).to_be_bytes());
                frame.extend_from_slice(piece);
            } else {
                let total = u16::try_from(8 + piece.len()).expect("16 bits");
                frame[18..20].copy_from_slice(&total.to_be_bytes());
                let next = std::mem::replace(&mut frame[20], 44);
                frame.extend_from_slice(&[next, 0]);
                frame.extend_from_slice(&(offset << 3 | u16::from(more)).to_be_bytes());
                frame.extend_from_slice(&identification.to_be_bytes());
                frame.extend_from_slice(piece);
            }
            portfwd_tests::layers::repaired(&mut frame);
            frame
        })
        .collect()
}

// Fails if what comes before the first fragment is not held, or is let go before the first
// (`release` in fragment.rs).
#[test]
fn fragments_arrive_in_any_order() {
    let topology = Topology::new(Shape::default());
    topology.attach("web", 0, &["8080:80/udp"]);
    let [own, _] = &topology.containers;
    let mut identification = 0x7700;
    for (client, host, container) in [
        (CLIENT, HOST, own.addresses()[0]),
        (CLIENT6, HOST6, own.addresses()[1]),
    ] {
        let server = bound(&topology, SocketAddr::new(container, 80));
        let question = pattern(5_000);
        let datagram = Frame::udp(
            SocketAddr::new(client, 4_000),
            SocketAddr::new(host, 8080),
            &question,
        )
        .on_link(CLIENT_MAC, HOST_MAC);
        for order in [
            [0, 1, 2, 3],
            [1, 0, 2, 3],
            [3, 2, 1, 0],
            [2, 3, 0, 1],
            [3, 1, 0, 2],
        ] {
            identification += 1;
            let frames = fragments(&datagram, 1_400, identification);
            assert_eq!(frames.len(), order.len());
            for place in order {
                capture::inject(&topology.client, "eth0", &frames[place]);
            }
            let mut buffer = vec![0; LONGEST];
            let received = server.recv(&mut buffer);
            let received = received.unwrap_or_else(|e| panic!("{host}, order {order:?}: {e}"));
            assert_eq!(&buffer[..received], question, "{host}, order {order:?}");
        }
    }
}

/// How many fragments the host's own stack has seen.
fn fragments_of_the_stack(topology: &Topology) -> u64 {
    topology.host.counter("Ip", "ReasmReqds")
}

// Fails if what waits goes to the stack as well (`KEPT` in verdict.rs), as it does by a return code that TCX does
// not know.
#[test]
fn what_waits_for_its_first_fragment_is_not_the_stacks_any_more() {
    let topology = Topology::new(Shape::default());
    topology.attach("web", 0, &["8080:80/udp"]);
    let [own, _] = &topology.containers;
    let server = bound(&topology, SocketAddr::new(own.addresses()[0], 80));
    let (client, host) = (SocketAddr::new(CLIENT, 4_000), SocketAddr::new(HOST, 8080));
    let question = pattern(5_000);
    let datagram = Frame::udp(client, host, &question).on_link(CLIENT_MAC, HOST_MAC);
    for frame in fragments(&datagram, 1_400, 0x7800).iter().rev() {
        capture::inject(&topology.client, "eth0", frame);
    }
    let received = server.recv(&mut vec![0; LONGEST]).expect("a datagram");
    assert_eq!(received, question.len());
    assert_eq!(fragments_of_the_stack(&topology), 0);
}

// Fails if a port that nobody publishes is held up by fragments that wait, or if the bound is not kept.
#[test]
fn fragments_that_never_come_hold_up_nobody_else() {
    let topology = Topology::new(Shape::default());
    topology.attach("web", 0, &["8080:80/udp"]);
    let [own, _] = &topology.containers;
    let server = bound(&topology, SocketAddr::new(own.addresses()[0], 80));
    let question = pattern(3_000);
    let datagram = Frame::udp(
        SocketAddr::new(CLIENT, 4_000),
        SocketAddr::new(HOST, 8080),
        &question,
    )
    .on_link(CLIENT_MAC, HOST_MAC);
    for identification in 0..2_000 {
        let orphan = &fragments(&datagram, 1_400, identification)[2];
        capture::inject(&topology.client, "eth0", orphan);
    }
    for frame in [2, 1, 0].map(|place| fragments(&datagram, 1_400, 40_000)[place].clone()) {
        capture::inject(&topology.client, "eth0", &frame);
    }
    server
        .set_read_timeout(Some(patient(Duration::from_secs(10))))
        .expect("a limit");
    let mut buffer = vec![0; LONGEST];
    let received = server.recv(&mut buffer).expect("the whole datagram");
    assert_eq!(&buffer[..received], question);
}

// Fails if a first fragment that is dropped is not remembered (`dropped` in first.rs), or its others are
// counted as if it were not known (`follow`).
#[test]
fn the_fragments_of_a_datagram_that_is_dropped_are_dropped_and_counted_as_such() {
    const INIT: u8 = 1;
    let topology = Topology::new(Shape::default());
    topology.attach("web", 0, &["3868:3868/sctp"]);
    let datapath = Datapath::open(&topology);
    for ends in families() {
        let from = at(ends.client, 40_000);
        let init = |host| inbound(Frame::sctp(from, at(host, 3868), INIT));
        let own = init(ends.host).to_bytes();
        let verdict = |frame: &[u8]| datapath.run(Program::Device, "eth0", frame).0;
        assert_eq!(verdict(&own), Verdict::Redirect);
        // SCTP cannot have another port, so the same one by another address of the host is dropped.
        let other = init(ends.host_second).carrying(&pattern(3_000));
        let frames = fragments(&other, 1_400, 7);
        assert_eq!(frames.len(), 3);
        for frame in &frames {
            assert_eq!(verdict(frame), Verdict::Drop);
        }
    }
    let reasons = ["tuple-taken", "fragment-of-dropped", "fragment"];
    assert_eq!(reasons.map(|reason| topology.counted(reason)), [2, 4, 0]);
    let status = topology.portfwd(&["status"]).expect_ok().stdout;
    assert!(
        status.contains("dropped     fragment-of-dropped: 4"),
        "{status}"
    );
}

// RFC 6946: a packet that is whole has nothing in common with fragments of the same identification. Fails if
// it is taken for a first fragment (`walk` in family.rs).
#[test]
fn a_whole_packet_with_a_fragment_header_decides_for_itself_alone() {
    let topology = Topology::new(Shape::default());
    topology.attach("web", 0, &["8080:80/udp"]);
    let [own, _] = &topology.containers;
    let server = bound(&topology, SocketAddr::new(own.addresses()[1], 80));
    let capture = Capture::start(&own.namespace, "eth0");
    let ends = [(CLIENT6, 4_000), (HOST6, 8080)].map(|(ip, port)| SocketAddr::new(ip, port));
    let datagram = |payload: &[u8]| Frame::udp(ends[0], ends[1], payload);
    let orphan = datagram(&pattern(3_000)).on_link(CLIENT_MAC, HOST_MAC);
    let orphan = &fragments(&orphan, 1_400, 0x0102_0304)[1];
    let mut whole = datagram(b"whole").on_link(CLIENT_MAC, HOST_MAC);
    whole.ipv6_extensions = vec![(44, vec![0, 0, 0, 0, 1, 2, 3, 4])];
    for frame in [orphan, &whole.to_bytes(), orphan, &whole.to_bytes()] {
        capture::inject(&topology.client, "eth0", frame);
    }
    for _ in 0..2 {
        let length = server.recv(&mut [0; 64]).expect("the whole one");
        assert_eq!(length, b"whole".len());
    }
    let frames = capture.finish();
    let of_client = |frame: &&Captured| {
        let layers = frame.layers();
        layers.is_some_and(|layers| layers.source == CLIENT6 && layers.fragment)
    };
    let strays: Vec<_> = frames.iter().filter(of_client).collect();
    assert!(strays.is_empty(), "{strays:?}");
}

// Fails if datagrams between the same addresses are not told apart by their identification (`key_of` in
// fragment.rs).
#[test]
fn fragments_of_two_datagrams_follow_each_their_own_first() {
    let topology = Topology::new(Shape::default());
    topology.attach("web", 0, &["8080:80/udp"]);
    topology.attach("db", 1, &["8090:80/udp"]);
    for (ends, number) in families().into_iter().zip([0, 1]) {
        let servers = topology.containers.each_ref().map(|container| {
            let address = container.addresses()[number];
            bound(&topology, SocketAddr::new(address, 80))
        });
        let datagrams = [(8080, 1), (8090, 2)].map(|(port, identification)| {
            let (from, to) = (at(ends.client, 4_000), at(ends.host, port));
            let frame = inbound(Frame::udp(
                from,
                to,
                &pattern(1_000 * identification as usize),
            ));
            fragments(&frame, 504, identification)
        });
        let [web, db] = &datagrams;
        // One datagram's first fragment comes when others of the other one wait, or follow.
        for frame in [&db[0], &web[1], &db[3], &web[0], &db[2], &db[1]] {
            capture::inject(&topology.client, "eth0", frame);
        }
        for (server, length) in servers.iter().zip([1_000, 2_000]) {
            let mut buffer = vec![0; LONGEST];
            let received = server.recv(&mut buffer).expect("the whole datagram");
            assert_eq!(&buffer[..received], pattern(length));
        }
    }
}

// An entry of an LRU table is used again at once, while a fragment may still be looking at it. Fails if one is sent
// the way of the datagram that the entry is of by then (`decision` in fragment.rs).
#[test]
fn no_fragment_follows_a_datagram_that_has_taken_the_entry_of_its_own() {
    let topology = Topology::new(Shape::default());
    topology.attach("web", 0, &["8080:80/udp"]);
    let datapath = Datapath::open(&topology);
    let table = topology.pinned(maps::DATAGRAMS);
    for ends in families() {
        let web = at(ends.web, 80);
        // Two flows that differ in the client's port alone: there is nothing between them.
        let clients = [4_000, 4_001].map(|port| at(ends.client, port));
        let hosts = [ends.host, ends.host_second].map(|host| at(host, 8080));
        let open = || {
            for (client, host) in clients.into_iter().zip(hosts) {
                let question = inbound(Frame::udp(client, host, b"question")).to_bytes();
                let (verdict, _) = datapath.run_inside(Program::Device, "eth0", 0, &question);
                assert_eq!(verdict, Verdict::Redirect);
            }
        };
        topology.host.run(open);
        let reply = Frame::udp(web, clients[0], &pattern(2_000));
        let reply = reply.on_link([2, 0, 0, 88, 0, 2], GATEWAY_MAC);
        let mut translated = reply.clone().between(hosts[0], clients[0]);
        translated.hops -= 1;
        let [first, later] = pair(&reply);
        let [_, translated] = pair(&translated);
        let (verdict, _) = datapath.run(Program::Link, "veth1", &first);
        assert_eq!(verdict, Verdict::Redirect);
        let (key, datagram) = only_entry(&table);
        let mut other: Datagram = datagram;
        other.client_port = NetPort::new(clients[1].port());
        let others = |number| {
            let mut key: DatagramKey = key;
            key.identification ^= 0x100 + u32::from(number);
            key
        };
        let now = |mut datagram: Datagram| {
            datagram.since = second();
            datagram
        };
        // Without an entry it is as if the first had not come.
        let left_alone = (Verdict::Next, later.clone());
        let expected = [(Verdict::Redirect, translated), left_alone];
        topology.host.run(|| {
            let mut burst = datapath.burst("eth0", "veth1");
            let send = || {
                let (verdict, bytes) = burst.send(Program::Link, &later);
                (verdict, bytes.to_vec())
            };
            let values = || [datagram, other].map(now);
            comes_out_as(&expected, &table, key, others, values, send);
        });
    }
}

/// A datagram in two fragments.
fn pair(datagram: &Frame) -> [Vec<u8>; 2] {
    let pair = fragments(datagram, 1_400, 7).try_into();
    pair.expect("two fragments")
}
