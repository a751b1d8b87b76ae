//! The CNI plugin portmap, which publishes ports of the second container of a topology.

use std::env;

use serde_json::json;

use crate::topology::Topology;

/// As the plugin's configuration names the ways that it knows.
pub const BACKENDS: [&str; 2] = ["iptables", "nftables"];

/// Has the plugin publish `ports`, or withdraw them: `ADD` or `DEL`.
///
/// # Panics
/// When it fails.
pub fn portmap(topology: &Topology, backend: &str, verb: &str, ports: &[u16]) {
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
