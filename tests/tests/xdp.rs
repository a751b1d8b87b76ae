//! The same ports with the XDP program in front.

use std::net::SocketAddr;

use portfwd_tests::capture::{Capture, faults};
use portfwd_tests::clients::{self, Closed, Protocol};
use portfwd_tests::servers::Server;
use portfwd_tests::topology::{CLIENT, CLIENT6, HOST, HOST6, Shape, Topology};

#[test]
fn published_ports_work_behind_xdp_and_the_rest_is_left_alone() {
    for mode in ["generic", "native"] {
        for shape in [Shape::default(), Shape::routed()] {
            // Checksums that are still owed are beyond XDP: a wire carries none.
            let shape = Shape {
                offloads: false,
                ..shape
            };
            let topology = Topology::watched(shape);
            let _servers = topology.serve();
            let _own = Server::start(&topology.host, &[HOST, HOST6], 22, "host");
            topology
                .portfwd(&["up", "--device", "eth0", "--xdp", mode])
                .expect_ok();
            topology.attach("web", 0, &["8080:80", "8080:80/udp"]);
            // What XDP has translated for the first one goes to a port that the second one publishes.
            topology.attach("db", 1, &["80:80", "80:80/udp"]);
            let captures = [&topology.client, &topology.containers[0].namespace]
                .map(|namespace| Capture::start(namespace, "eth0"));
            for (address, own) in [(HOST, CLIENT), (HOST6, CLIENT6)] {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    let ask = |port| {
                        clients::ask(&topology.client, protocol, SocketAddr::new(address, port))
                            .unwrap_or_else(|error| panic!("{mode} {protocol:?} {port}: {error}"))
                    };
                    let answer = ask(8080);
                    assert_eq!(answer.label, "web");
                    assert_eq!(answer.seen.ip(), own);
                    assert_eq!(ask(80).label, "db");
                    assert_eq!(ask(22).label, "host");
                    let closed = SocketAddr::new(address, 8081);
                    let closed = clients::closed(&topology.client, protocol, closed);
                    assert_eq!(closed, Closed::Refused);
                }
            }
            for capture in captures {
                assert_eq!(
                    faults(&capture.finish(), true),
                    Vec::<String>::new(),
                    "{mode}"
                );
            }
            topology.take_down();
        }
    }
}
