//! Published ports need no firewall rule and no forwarding, and survive what firewalls do.

use std::net::SocketAddr;

use portfwd_tests::clients::{self, Protocol};
use portfwd_tests::servers::Server;
use portfwd_tests::topology::{HOST, HOST6, Shape, Topology};

const DROP_FORWARDED: &str = "
    table inet filter {
        chain forward {
            type filter hook forward priority 0; policy drop;
            ct state invalid drop
        }
    }
";

#[test]
fn ports_work_with_a_drop_policy_and_without_forwarding() {
    for shape in [Shape::default(), Shape::routed()] {
        let topology = Topology::new(shape);
        let _servers = topology.serve();
        // Else the policy would also take the neighbour discovery of containers on one bridge, and no
        // IPv6 packet could go between them, whoever sends it.
        let bridged_frames = "bridge/bridge-nf-call-ip6tables";
        if topology.host.has_sysctl(bridged_frames) {
            topology.host.set_sysctl(bridged_frames, "0");
        }
        for tool in ["iptables", "ip6tables"] {
            topology.host.output(tool, &["-w", "-P", "FORWARD", "DROP"]);
        }
        topology.host.feed("nft", &["-f", "-"], DROP_FORWARDED);
        topology.attach("web", 0, &["8080:80", "8080:80/udp"]);
        for address in [HOST, HOST6] {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let to = SocketAddr::new(address, 8080);
                for from in [&topology.client, &topology.containers[1].namespace] {
                    let answer = clients::ask(from, protocol, to).unwrap_or_else(|error| {
                        panic!("{shape:?}: {protocol:?} {to} from {}: {error}", from.name())
                    });
                    assert_eq!(answer.label, "web");
                }
            }
        }
    }
}

#[test]
fn a_transfer_goes_on_while_rules_are_flushed() {
    for address in [HOST, HOST6] {
        let topology = Topology::new(Shape::default());
        let container = &topology.containers[0];
        let _sink = Server::hash(&container.namespace, &container.addresses(), 80);
        topology.host.feed("nft", &["-f", "-"], DROP_FORWARDED);
        topology
            .host
            .output("iptables", &["-w", "-P", "FORWARD", "DROP"]);
        topology.attach("web", 0, &["8080:80"]);
        let to = SocketAddr::new(address, 8080);
        std::thread::scope(|scope| {
            let transfer =
                scope.spawn(|| clients::bulk(&topology.client, to, clients::bulk_length()));
            let mut flushes = 0;
            while !transfer.is_finished() {
                topology.host.output("iptables", &["-w", "-F"]);
                topology.host.output("nft", &["flush", "ruleset"]);
                topology.host.feed("nft", &["-f", "-"], DROP_FORWARDED);
                flushes += 1;
            }
            let (sent, received) = transfer
                .join()
                .expect("the transfer's thread")
                .unwrap_or_else(|error| panic!("after {flushes} flushes: {error}"));
            assert_eq!(sent, received);
            assert!(flushes > 2, "the transfer was over after {flushes} flushes");
        });
    }
}
