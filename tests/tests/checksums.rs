//! Every checksum that a translation touches is right, whoever completes it.

use std::net::SocketAddr;

use portfwd_tests::capture::{Capture, faults};
use portfwd_tests::clients::{self, Protocol};
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
