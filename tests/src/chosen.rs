//! The bug that portfwd began with: of two containers each is to have two ports of its own, whatever others have
//! published on the host.

use std::collections::BTreeSet;

use crate::topology::Topology;

/// How often the two are attached.
const TIMES: u32 = 20;

/// The ports that are chosen first for either container of the topology, where they are free.
#[must_use]
pub fn first_choice(topology: &Topology) -> [Vec<u16>; 2] {
    attach_two(topology, 0);
    ["a0", "b0"].map(|name| {
        let chosen = ports(topology, name);
        topology.portfwd(&["detach", name]).expect_ok();
        chosen
    })
}

/// Attaches the two twenty times over with two ports each to be chosen.
///
/// # Panics
/// When a port is chosen twice, or is one of `foreign`.
pub fn choose_twenty_times_over(topology: &Topology, foreign: &BTreeSet<u16>) {
    for number in 0..TIMES {
        attach_two(topology, number);
    }
    let chosen = ports(topology, "");
    let distinct: BTreeSet<u16> = chosen.iter().copied().collect();
    assert_eq!((chosen.len(), distinct.len()), (80, 80), "{chosen:?}");
    let taken: Vec<&u16> = distinct.intersection(foreign).collect();
    assert!(taken.is_empty(), "{taken:?} of {foreign:?}");
}

fn attach_two(topology: &Topology, number: u32) {
    topology.attach(&format!("a{number}"), 0, &["80", "90"]);
    topology.attach(&format!("b{number}"), 1, &["80", "90"]);
}

/// The IPv4 host ports of a container, or of all of them.
fn ports(topology: &Topology, container: &str) -> Vec<u16> {
    let rows = topology.list();
    let sought = rows.iter().filter(|row| {
        let is_its = container.is_empty() || row["container"] == container;
        is_its && row["hostIp"] == "0.0.0.0"
    });
    let ports = sought.map(|row| row["hostPort"].as_u64().expect("a port"));
    ports
        .map(|port| u16::try_from(port).expect("a port"))
        .collect()
}
