//! Ways that are narrower than the container's device.

use std::net::SocketAddr;

use portfwd_tests::capture::{Capture, Captured};
use portfwd_tests::clients;
use portfwd_tests::deadline::PATIENCE;
use portfwd_tests::topology::{HOST, HOST6, Shape, Topology};

/// Sends much over TCP, both ways.
#[track_caller]
fn transfer(topology: &Topology, shape: Shape) {
    let block: Vec<u8> = (0..=u8::MAX).cycle().take(100_000).collect();
    for address in [HOST, HOST6] {
        let to = SocketAddr::new(address, 8080);
        let stream = clients::connect(&topology.client, to)
            .unwrap_or_else(|error| panic!("{shape:?} {to}: {error}"));
        clients::ask_stream(&stream).expect("an answer");
        for _ in 0..5 {
            clients::echo(&stream, &block)
                .unwrap_or_else(|error| panic!("{shape:?} {to}: {error}"));
        }
    }
}

fn shapes() -> impl Iterator<Item = Shape> {
    [Shape::default(), Shape::routed()]
        .into_iter()
        .flat_map(|shape| [true, false].map(|offloads| Shape { offloads, ..shape }))
}

// Fails if the size of what is going to be cut is compared with the MTU (`fits` in deliver.rs).
#[test]
fn tcp_gets_through_to_a_client_on_a_narrow_link() {
    for shape in shapes() {
        let topology = Topology::new(shape);
        let _servers = topology.serve();
        topology.client.ip("link set eth0 mtu 1300\n");
        topology.host.ip("link set eth0 mtu 1300\n");
        topology.attach("web", 0, &["8080:80"]);
        transfer(&topology, shape);
    }
}

#[test]
fn tcp_gets_through_where_only_the_host_knows_of_the_narrow_link() {
    // Where the host forwards, its stack tells the container; where it does not, the programs do.
    let shapes = shapes().flat_map(|shape| {
        [true, false].map(|forwarding| Shape {
            forwarding,
            ..shape
        })
    });
    for shape in shapes {
        let topology = Topology::new(shape);
        let _servers = topology.serve();
        topology.host.ip("link set eth0 mtu 1300\n");
        // The client claims to take what it could, and sends no more than the host's device takes (a
        // veth loses what is larger).
        topology.client.ip(
            "route change 192.0.2.0/24 dev eth0 src 192.0.2.2 mtu 1300 advmss 1460
             route change 2001:db8:1::/64 dev eth0 proto kernel metric 256 mtu 1300 advmss 1440\n",
        );
        topology.attach("web", 0, &["8080:80"]);
        transfer(&topology, shape);
    }
}

// Fails if size does not count (`fits` in deliver.rs), or if the programs' message (`too_big` in family.rs) is
// summed up without its quote, or goes out by the link, which may change the quote (`answer` in too_big.rs).
#[test]
fn a_datagram_too_large_for_the_way_back_is_reported_to_its_sender() {
    for shape in [Shape::default(), Shape::routed()] {
        for forwarding in [true, false] {
            let shape = Shape {
                forwarding,
                ..shape
            };
            for finishes in [true, false] {
                reports_a_datagram_that_is_too_large(shape, finishes);
            }
        }
    }
}

#[track_caller]
fn reports_a_datagram_that_is_too_large(shape: Shape, link_finishes_checksums: bool) {
    let topology = Topology::new(shape);
    let [own, _] = &topology.containers;
    if !link_finishes_checksums {
        let arguments = ["-K", &own.host_link, "tx", "off"];
        topology.host.output("ethtool", &arguments);
    }
    topology.host.ip("link set eth0 mtu 1300\n");
    topology.client.ip("link set eth0 mtu 1300\n");
    topology.attach("web", 0, &["8080:80/udp"]);
    for (address, container) in [(HOST, own.addresses()[0]), (HOST6, own.addresses()[1])] {
        let at = SocketAddr::new(container, 80);
        let server = clients::bound_socket(&own.namespace, at).expect("bind");
        let client = clients::datagram_socket(&topology.client, SocketAddr::new(address, 8080))
            .expect("a socket");
        client.send(b"question").expect("send");
        let (_, peer) = server.recv_from(&mut [0; 100]).expect("the question");
        // Linux forbids fragments by default (ip(7), IP_MTU_DISCOVER): too large, until it is told.
        server.connect(peer).expect("connect");
        let large = [0; 1400];
        portfwd_tests::deadline::until("the sender to be told", PATIENCE, || {
            let sent = server.send(&large);
            let told = sent.is_err_and(|error| error.raw_os_error() == Some(90)); // EMSGSIZE
            told.then_some(())
        });
        server.send(&[0; 1200]).expect("what fits is sent");
        let mut buffer = [0; 2048];
        assert_eq!(client.recv(&mut buffer).expect("what fits arrives"), 1200);
    }
}

// Fails if such a reply is left to the stack (`too_large` in first.rs), which cuts it where the host forwards, and
// sends it on under the container's address.
#[test]
fn a_reply_that_may_be_cut_is_lost_and_counted_and_nothing_of_it_leaves() {
    for forwarding in [true, false] {
        let topology = Topology::new(Shape {
            forwarding,
            ..Shape::default()
        });
        let [own, _] = &topology.containers;
        topology.host.ip("link set eth0 mtu 1300\n");
        own.namespace.set_sysctl("ipv4/ip_no_pmtu_disc", "1");
        topology.attach("web", 0, &["8080:80/udp"]);
        let at = SocketAddr::new(own.addresses()[0], 80);
        let server = clients::bound_socket(&own.namespace, at).expect("bind");
        let to = SocketAddr::new(HOST, 8080);
        let client = clients::datagram_socket(&topology.client, to).expect("a socket");
        client.send(b"question").expect("send");
        let (_, peer) = server.recv_from(&mut [0; 100]).expect("the question");
        let capture = Capture::start(&topology.client, "eth0");
        server.send_to(&[0; 1_400], peer).expect("send");
        server.send_to(&[0; 1_200], peer).expect("send what fits");
        assert_eq!(client.recv(&mut [0; 2_048]).expect("what fits"), 1_200);
        let frames = capture.finish();
        let sources = frames.iter().filter_map(Captured::layers);
        let untranslated = sources.filter(|layers| layers.source == own.addresses()[0]);
        assert_eq!(untranslated.count(), 0, "forwarding: {forwarding}");
        let drops = topology
            .list()
            .iter()
            .map(|row| row["drops"].as_u64())
            .max();
        assert_eq!(drops, Some(Some(1)));
    }
}

// Fails if a request is measured against the container's device as a reply is against the host's (`fits` in
// deliver.rs).
#[test]
fn a_request_larger_than_the_containers_device_takes_is_delivered() {
    for shape in [Shape::default(), Shape::routed()] {
        let topology = Topology::new(shape);
        let [own, _] = &topology.containers;
        own.namespace.ip("link set eth0 mtu 1280\n");
        topology.attach("web", 0, &["8080:80/udp"]);
        for (address, container) in [HOST, HOST6].into_iter().zip(own.addresses()) {
            let at = SocketAddr::new(container, 80);
            let server = clients::bound_socket(&own.namespace, at).expect("bind");
            let to = SocketAddr::new(address, 8080);
            let client = clients::datagram_socket(&topology.client, to).expect("a socket");
            client.send(&[7; 1400]).expect("send");
            let mut buffer = [0; 2048];
            let length = server.recv(&mut buffer).expect("the request");
            assert_eq!(buffer[..length], [7; 1400], "{shape:?}");
        }
    }
}
