//! Every checksum that a translation touches is right, whoever completes it.

use std::net::{IpAddr, SocketAddr};

use portfwd_tests::capture::{Capture, Captured, faults};
use portfwd_tests::clients::{self, Protocol};
use portfwd_tests::kernel::{Sums, index_of, sum};
use portfwd_tests::needs::{Need, need};
use portfwd_tests::topology::{GATEWAY, GATEWAY6, HOST, HOST6, Shape, Topology, Wiring};

// Fails if the helper takes ports for a part of the pseudo-header (`update_checksum` in packet.rs).
#[test]
fn every_captured_checksum_is_valid_with_offloads_on_and_off() {
    for wiring in [Wiring::Bridged, Wiring::Routed] {
        for offloads in [true, false] {
            captured_checksums_are_valid(Shape {
                wiring,
                offloads,
                ..Shape::default()
            });
        }
    }
}

fn captured_checksums_are_valid(shape: Shape) {
    let topology = Topology::new(shape);
    let _servers = topology.serve();
    topology.attach("web", 0, &["8080:80", "8080:80/udp"]);
    let [own, other] = &topology.containers;
    let captures: Vec<(&str, Capture)> = [
        ("client", &topology.client),
        ("own container", &own.namespace),
        ("other container", &other.namespace),
    ]
    .map(|(place, namespace)| (place, Capture::start(namespace, "eth0")))
    .into();
    let block: Vec<u8> = (0..=u8::MAX).cycle().take(40_001).collect();
    let from_outside = [HOST, HOST6].map(|address| (&topology.client, address));
    let from_inside = [GATEWAY, GATEWAY6].map(|address| (&other.namespace, address));
    for (from, address) in from_outside.into_iter().chain(from_inside) {
        let to = SocketAddr::new(address, 8080);
        let stream = clients::connect(from, to).unwrap_or_else(|error| panic!("{to}: {error}"));
        clients::ask_stream(&stream).expect("an answer");
        // More than fits one packet: segments, cut by the sender or by a device.
        clients::echo(&stream, &block).expect("an echo");
        for _ in 0..3 {
            clients::ask(from, Protocol::Udp, to).expect("an answer");
        }
    }
    for (place, capture) in captures {
        let frames = capture.finish();
        assert!(frames.len() > 20, "{} frames at the {place}", frames.len());
        assert!(
            shape.offloads || frames.iter().all(|frame| !frame.partial),
            "a checksum is owed at the {place} although offloads are off"
        );
        assert_eq!(
            faults(&frames, !shape.offloads),
            Vec::<String>::new(),
            "{place}, {shape:?}"
        );
    }
}

/// What a capture has of a packet that came in: the bytes from its network header on.
fn received(frame: &Captured, from: IpAddr) -> Option<&[u8]> {
    let is_of = frame.layers()?.source == from;
    (is_of && !frame.outgoing).then(|| &frame.bytes[14..])
}

// Edge case 13: an end of a tunnel, like many a network card, sums up the whole packet. Fails if that sum does
// not get what the helper leaves out of it (`uncovered_change` in packet.rs).
#[test]
fn what_a_device_has_summed_up_stays_the_sum_of_the_packet() {
    need(Need::Tcx);
    need(Need::Device("vxlan id 7 dstport 4789"));
    // With them the sender would leave checksums to the device, and the tunnel would make no sum.
    let topology = Topology::new(Shape {
        offloads: false,
        ..Shape::default()
    });
    let _servers = topology.serve();
    for (namespace, own, other) in [(&topology.host, 1, 2), (&topology.client, 2, 1)] {
        namespace.ip(&format!(
            "link add tunnel type vxlan id 7 dstport 4789 udpcsum local 192.0.2.{own} remote 192.0.2.{other}
             link set tunnel up
             addr add 10.77.0.{own}/24 dev tunnel
             addr add fd77::{own}/64 dev tunnel nodad\n"
        ));
    }
    topology.attach("web", 0, &["8080:80", "8080:80/udp"]);
    let web = &topology.containers[0].namespace;
    let capture = Capture::start(web, "eth0");
    let sums = Sums::load();
    let _link = web.run(|| sums.attach(index_of("eth0")));
    let ends = [["10.77.0.1", "10.77.0.2"], ["fd77::1", "fd77::2"]];
    let ends = ends.map(|pair| pair.map(|end| end.parse::<IpAddr>().expect("an address")));
    for [host, client] in ends {
        let to = SocketAddr::new(host, 8080);
        clients::ask(&topology.client, Protocol::Tcp, to).expect("an answer");
        let socket = clients::datagram_socket(&topology.client, to).expect("a socket");
        socket.send(&[7; 3_000]).expect("a datagram in fragments");
        capture.wait_for("the fragments", |frames| {
            let packets = frames.iter().filter_map(|frame| received(frame, client));
            (packets.filter(|packet| packet.ends_with(&[7; 8])).count() > 2).then_some(())
        });
    }
    let (frames, noted) = (capture.finish(), sums.noted());
    for [_, client] in ends {
        let packets: Vec<_> = frames
            .iter()
            .filter_map(|frame| received(frame, client))
            .collect();
        assert!(packets.len() > 5, "{} from {client}", packets.len());
        for packet in packets {
            assert!(noted.contains(&sum(packet)), "{noted:04x?}: {packet:02x?}");
        }
    }
}
