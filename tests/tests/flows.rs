//! `portfwd flows`: whose connections are translated, and what they have carried.

use std::net::SocketAddr;

use portfwd_tests::clients;
use portfwd_tests::deadline::{PATIENCE, until};
use portfwd_tests::topology::{HOST, HOST6, Shape, Topology};
use serde_json::Value;

const BOTH: [&str; 2] = ["8080:80", "8080:80/udp"];

#[test]
fn flows_name_client_host_and_container() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology.attach("web", 0, &BOTH);
    let stream = clients::connect(&topology.client, SocketAddr::new(HOST, 8080)).expect("connect");
    clients::ask_stream(&stream).expect("an answer");
    let own = stream.local_addr().expect("an address").to_string();
    let flows = topology
        .portfwd(&["--json", "flows", "web"])
        .expect_ok()
        .json();
    let flows = flows.as_array().expect("an array");
    let flow = flows
        .iter()
        .find(|flow| flow["client"] == own.as_str())
        .unwrap_or_else(|| panic!("no flow of {own} in {flows:?}"));
    assert_eq!(flow["container"], "web");
    assert_eq!(flow["protocol"], "tcp");
    assert_eq!(flow["host"], "192.0.2.1:8080");
    assert_eq!(flow["containerAddress"], "10.88.0.2:80");
    assert_eq!(flow["state"], "established");
    topology.portfwd(&["flows", "db"]).expect_code(4);
    topology.portfwd(&["flows", "purge"]).expect_ok();
    let left = topology.portfwd(&["--json", "flows"]).expect_ok().json();
    assert_eq!(left.as_array().map(Vec::len), Some(0), "{left}");
}

/// Protocol, whether of IPv4, and the bytes of both directions.
type Carried = (String, bool, [u64; 2]);

fn carried(rows: &Value, address: &str) -> Vec<Carried> {
    let rows = rows.as_array().expect("an array");
    let carried = rows.iter().map(|row| {
        let number = |key: &str| {
            row[key]
                .as_u64()
                .unwrap_or_else(|| panic!("{key} of {row}"))
        };
        let address = row[address].as_str().expect("an address");
        let protocol = row["protocol"].as_str().expect("a protocol");
        let bytes = [number("rxBytes"), number("txBytes")];
        (protocol.to_owned(), address.contains('.'), bytes)
    });
    let mut carried: Vec<Carried> = carried.collect();
    carried.sort();
    carried
}

/// The container answers by the way its requests came: by redirection, and through the stack. A connection from
/// the container itself is of its own kind.
#[test]
fn a_flow_carries_what_its_forward_has_counted() {
    for shape in [Shape::default(), Shape::routed()] {
        let topology = Topology::new(shape);
        let _servers = topology.serve();
        topology.portfwd(&["up", "--flow-bytes", "on"]).expect_ok();
        topology.attach("web", 0, &BOTH);
        let open = [HOST, HOST6].map(|address| {
            let to = SocketAddr::new(address, 8080);
            let stream = clients::connect(&topology.client, to).expect("connect");
            clients::ask_stream(&stream).expect("an answer");
            for _ in 0..20 {
                clients::echo(&stream, &[7; 50_000]).expect("an answer");
            }
            let socket = clients::datagram_socket(&topology.client, to).expect("a socket");
            for _ in 0..20 {
                clients::ask_datagram(&socket).expect("an answer");
            }
            (stream, socket)
        });
        let shown = |command: &[&str]| topology.portfwd(command).expect_ok().json();
        let flows = until("flows carry what forwards count", PATIENCE, || {
            let flows = carried(&shown(&["--json", "flows"]), "host");
            let forwards = carried(&shown(&["--json", "list"]), "hostIp");
            (flows == forwards).then_some(flows)
        });
        let of_tcp = flows.iter().filter(|(protocol, ..)| protocol == "tcp");
        assert!(
            of_tcp
                .clone()
                .all(|(_, _, bytes)| bytes.iter().all(|count| *count > 1_000_000))
        );
        assert_eq!((flows.len(), of_tcp.count()), (4, 2));
        // It can be ended while connections go on, and what was counted is shown no longer.
        topology.portfwd(&["up", "--flow-bytes", "off"]).expect_ok();
        clients::echo(&open[0].0, b"still there?").expect("an answer");
        let flows = shown(&["--json", "flows"]);
        assert!(
            flows
                .as_array()
                .is_some_and(|rows| rows.iter().all(|row| row["rxBytes"].is_null()))
        );
    }
}

#[test]
fn a_container_that_calls_itself_carries_its_bytes_both_ways() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology.portfwd(&["up", "--flow-bytes", "on"]).expect_ok();
    topology.attach("web", 0, &["8080:80"]);
    let inside = &topology.containers[0].namespace;
    let stream = clients::connect(inside, SocketAddr::new(HOST, 8080)).expect("connect");
    clients::ask_stream(&stream).expect("an answer");
    clients::echo(&stream, &[7; 50_000]).expect("an answer");
    let flows = topology.portfwd(&["--json", "flows"]).expect_ok().json();
    let [(_, _, [rx, tx])] = &carried(&flows, "host")[..] else {
        panic!("not one flow: {flows}");
    };
    assert!(*rx > 50_000 && *tx > 50_000, "{flows}");
}
