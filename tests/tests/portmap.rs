//! The bug that this began with, beside the plugin that it was found with: of two containers each is to have two
//! ports of its own, whatever the CNI plugin portmap has published.

use std::collections::BTreeSet;
use std::env;

use portfwd_tests::topology::{Shape, Topology};
use serde_json::json;

/// As the plugin's configuration names them.
const BACKENDS: [&str; 2] = ["iptables", "nftables"];

/// Has the plugin publish `ports` for the second container, or withdraw them.
fn portmap(topology: &Topology, backend: &str, verb: &str, ports: &[u16]) {
    let plugin = env::var("PORTFWD_PORTMAP").expect("cargo xtask test says where portmap is");
    let netns = topology.containers[1].netns();
    let mappings = ports.iter().enumerate().map(
        |(number, port)| json!({"hostPort": port, "containerPort": 80 + number, "protocol": "tcp"}),
    );
    let request = json!({
        "cniVersion": "1.0.0",
        "name": "other",
        "type": "portmap",
        "backend": backend,
        "capabilities": {"portMappings": true},
        "runtimeConfig": {"portMappings": mappings.collect::<Vec<_>>()},
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "eth0", "sandbox": netns}],
            "ips": [{"address": "10.88.0.3/24", "gateway": "10.88.0.1", "interface": 0}],
        },
    });
    let environment = [
        format!("CNI_COMMAND={verb}"),
        "CNI_CONTAINERID=foreign".to_owned(),
        format!("CNI_NETNS={netns}"),
        "CNI_IFNAME=eth0".to_owned(),
        "CNI_PATH=/nowhere".to_owned(),
    ];
    let arguments: Vec<&str> = environment
        .iter()
        .map(String::as_str)
        .chain([plugin.as_str()])
        .collect();
    topology.host.feed("env", &arguments, &request.to_string());
}

/// The IPv4 host ports of everything that is published.
fn ports(topology: &Topology) -> Vec<u16> {
    let rows = topology.list();
    let v4 = rows.iter().filter(|row| row["hostIp"] == "0.0.0.0");
    let ports = v4.map(|row| row["hostPort"].as_u64().expect("a port"));
    ports
        .map(|port| u16::try_from(port).expect("a port"))
        .collect()
}

#[test]
fn of_two_containers_each_has_ports_of_its_own_twenty_times_over() {
    for backend in BACKENDS {
        let topology = Topology::new(Shape::default());
        let attach_two = |number: u32| {
            topology.attach(&format!("a{number}"), 0, &["80", "90"]);
            topology.attach(&format!("b{number}"), 1, &["80", "90"]);
        };
        // What the first two would choose is the plugin's, and more.
        attach_two(0);
        let mut foreign = ports(&topology);
        for name in ["a0", "b0"] {
            topology.portfwd(&["detach", name]).expect_ok();
        }
        foreign.extend([49_153, 49_154, 49_155]);
        portmap(&topology, backend, "ADD", &foreign);
        for number in 0..20 {
            attach_two(number);
        }
        let chosen = ports(&topology);
        let distinct: BTreeSet<u16> = chosen.iter().copied().collect();
        assert_eq!(
            (chosen.len(), distinct.len()),
            (80, 80),
            "{backend}: {chosen:?}"
        );
        let taken: Vec<&u16> = foreign
            .iter()
            .filter(|port| distinct.contains(port))
            .collect();
        assert!(taken.is_empty(), "{backend}: {taken:?} of {foreign:?}");
        for port in &foreign {
            let refused = topology.try_attach("a0", 0, &[&format!("{port}:80")]);
            refused.expect_code(3).expect_stderr("rule: table ");
        }
        portmap(&topology, backend, "DEL", &foreign);
        topology.attach("a0", 0, &["49153:80"]);
    }
}
