//! Much data through a published port.

use std::net::SocketAddr;

use portfwd_tests::clients::{self, Churn, bulk_length};
use portfwd_tests::servers::Server;
use portfwd_tests::topology::{HOST, HOST6, Shape, Topology};

/// Connections a second beside the transfer.
const RATE: u32 = 200;

#[test]
fn a_transfer_arrives_intact_while_connections_come_and_go() {
    for (shape, address) in [(Shape::default(), HOST), (Shape::routed(), HOST6)] {
        let topology = Topology::new(shape);
        let container = &topology.containers[0];
        let _sink = Server::hash(&container.namespace, &container.addresses(), 81);
        let _servers = topology.serve();
        topology.attach("web", 0, &["8080:80", "8081:81"]);
        let features = |name: &str| topology.host.output("ethtool", &["-k", name]);
        let before = [features("eth0"), features("veth1")];

        let churn = Churn::start(&topology.client, SocketAddr::new(address, 8080), RATE);
        let to = SocketAddr::new(address, 8081);
        let (sent, received) = clients::bulk(&topology.client, to, bulk_length())
            .unwrap_or_else(|error| panic!("{shape:?}: {error}"));
        let report = churn.finish();
        assert_eq!(sent, received);
        assert_eq!(report.failures, Vec::<String>::new());
        // Not a matter of speed: without them the transfer would have been alone.
        let due = report.duration.as_secs() * u64::from(RATE);
        assert!(report.served >= due / 4, "{report:?}");
        println!(
            "{} MiB; {} connections in {:?} beside it",
            bulk_length() >> 20,
            report.served,
            report.duration
        );
        assert_eq!(
            before,
            [features("eth0"), features("veth1")],
            "offloads have changed"
        );
    }
}

#[test]
fn data_the_other_way_arrives_intact() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology.attach("web", 0, &["8080:80"]);
    for address in [HOST, HOST6] {
        let stream =
            clients::connect(&topology.client, SocketAddr::new(address, 8080)).expect("connect");
        clients::ask_stream(&stream).expect("an answer");
        let block: Vec<u8> = (0..=u8::MAX).cycle().take(64 << 10).collect();
        for _ in 0..256 {
            clients::echo(&stream, &block).expect("every byte comes back");
        }
    }
}
