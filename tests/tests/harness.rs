//! The harness itself: what it builds without portfwd works, and it leaves nothing.

use std::net::SocketAddr;
use std::time::Duration;

use portfwd_tests::capture::{self, Capture};
use portfwd_tests::clients::{self, Churn, Closed, Protocol};
use portfwd_tests::kernel::{Observer, index_of};
use portfwd_tests::needs::{Need, need};
use portfwd_tests::servers::Server;
use portfwd_tests::snapshot::Snapshot;
use portfwd_tests::topology::{FOREIGN, FOREIGN6, HOST, HOST6, Shape, Topology, Wiring};

/// Every wiring, with and without offloads, in a host that forwards.
fn forwarding_shapes() -> impl Iterator<Item = Shape> {
    [Wiring::Bridged, Wiring::Routed]
        .into_iter()
        .flat_map(|wiring| {
            [true, false].map(|offloads| Shape {
                wiring,
                forwarding: true,
                offloads,
            })
        })
}

#[test]
fn containers_answer_the_foreign_server_where_the_host_forwards() {
    for shape in forwarding_shapes() {
        let topology = Topology::new(shape);
        for container in &topology.containers {
            let _server = Server::start(&container.namespace, &container.addresses(), 80, "web");
            for address in container.addresses() {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    let to = SocketAddr::new(address, 80);
                    let answer = clients::ask(&topology.foreign, protocol, to)
                        .unwrap_or_else(|error| panic!("{shape:?} {protocol:?} {to}: {error}"));
                    assert_eq!(answer.label, "web");
                    assert_eq!(answer.seen.port(), answer.own.port());
                    let own = if to.is_ipv4() { FOREIGN } else { FOREIGN6 };
                    assert_eq!(answer.seen.ip(), own);
                }
            }
        }
    }
}

#[test]
fn a_closed_port_refuses_over_both_protocols() {
    let topology = Topology::new(Shape::default());
    for address in [HOST, HOST6] {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let to = SocketAddr::new(address, 8080);
            assert_eq!(
                clients::closed(&topology.client, protocol, to),
                Closed::Refused
            );
        }
    }
}

#[test]
fn captures_tell_owed_checksums_from_bad_ones() {
    for offloads in [true, false] {
        let topology = Topology::new(Shape {
            offloads,
            ..Shape::default()
        });
        let _server = Server::start(&topology.host, &[HOST, HOST6], 80, "host");
        let capture = Capture::start(&topology.client, "eth0");
        for address in [HOST, HOST6] {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                clients::ask(&topology.client, protocol, SocketAddr::new(address, 80))
                    .expect("the host's own server answers");
            }
        }
        let frames = capture.finish();
        assert!(frames.len() > 20, "{} frames", frames.len());
        assert!(frames.iter().any(|frame| frame.outgoing));
        assert!(frames.iter().any(|frame| !frame.outgoing));
        assert_eq!(frames.iter().any(|frame| frame.partial), offloads);
        assert_eq!(capture::faults(&frames, !offloads), Vec::<String>::new());
    }
}

#[test]
fn bulk_arrives_intact_while_connections_come_and_go() {
    let topology = Topology::new(Shape::default());
    let host = [HOST];
    let _sink = Server::hash(&topology.host, &host, 81);
    let _server = Server::start(&topology.host, &host, 80, "host");
    let churn = Churn::start(&topology.client, SocketAddr::new(HOST, 80), 200);
    let (sent, received) = clients::bulk(&topology.client, SocketAddr::new(HOST, 81), 32 << 20)
        .expect("the sink answers");
    let report = churn.finish();
    assert_eq!(sent, received);
    assert_eq!(report.failures, Vec::<String>::new());
    assert!(report.served > 0 && report.duration < Duration::from_secs(60));
}

#[test]
fn a_snapshot_sees_a_new_device_a_qdisc_and_a_sysctl() {
    let topology = Topology::new(Shape::default());
    let before = Snapshot::of(&topology.host);
    assert_eq!(before.difference(&Snapshot::of(&topology.host)), "");
    topology
        .host
        .output("tc", &["qdisc", "add", "dev", "eth0", "clsact"]);
    topology.host.set_sysctl("ipv4/conf/eth0/arp_announce", "2");
    topology
        .host
        .ip("link add extra type veth peer name extra2\n");
    let difference = before.difference(&Snapshot::of(&topology.host));
    for change in ["clsact", "arp_announce", "device extra2"] {
        assert!(
            difference.contains(change),
            "{change} is not in {difference}"
        );
    }
}

#[test]
fn the_kernel_lists_pins_and_forgets_objects() {
    let topology = Topology::watched(Shape::default());
    let pin = topology.bpffs().join("program");
    let observer = Observer::load();
    observer.pin(&pin);
    let objects = topology.objects();
    assert_eq!(objects.len(), 2, "a program, and the map that it counts in");
    assert!(objects.iter().all(|object| object.lives()));
    drop(observer);
    std::fs::remove_file(&pin).expect("remove the pin");
    topology.assert_nothing_left(&objects);
}

#[test]
fn an_observer_counts_packets_on_both_kinds_of_hook() {
    need(Need::Tcx);
    let topology = Topology::new(Shape::default());
    let (on_tcx, on_clsact) = (Observer::load(), Observer::load());
    let pin = topology.bpffs().join("observer");
    on_clsact.pin(&pin);
    let filter = format!(
        "filter add dev eth0 ingress bpf da pinned {}",
        pin.display()
    );
    topology
        .host
        .output("tc", &["qdisc", "add", "dev", "eth0", "clsact"]);
    topology
        .host
        .output("tc", &filter.split(' ').collect::<Vec<_>>());
    let _link = topology.host.run(|| on_tcx.attach(index_of("eth0")));
    let to = SocketAddr::new(HOST, 8080);
    assert_eq!(
        clients::closed(&topology.client, Protocol::Tcp, to),
        Closed::Refused
    );
    assert!(on_tcx.packets() > 0 && on_clsact.packets() > 0);
}
