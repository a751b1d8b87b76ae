//! The bug that this began with, beside the plugin that it was found with: of two containers each is to have two
//! ports of its own, whatever the CNI plugin portmap has published.

use portfwd_tests::chosen::{choose_twenty_times_over, first_choice};
use portfwd_tests::portmap::{BACKENDS, portmap};
use portfwd_tests::topology::{Shape, Topology};

#[test]
fn of_two_containers_each_has_ports_of_its_own_twenty_times_over() {
    for backend in BACKENDS {
        let topology = Topology::new(Shape::default());
        // What the first two would choose is the plugin's, and more.
        let mut foreign = first_choice(&topology).concat();
        foreign.extend([49_153, 49_154, 49_155]);
        portmap(&topology, backend, "ADD", &foreign);
        choose_twenty_times_over(&topology, &foreign.iter().copied().collect());
        for port in &foreign {
            let refused = topology.try_attach("a0", 0, &[&format!("{port}:80")]);
            refused.expect_code(3).expect_stderr("rule: table ");
        }
        portmap(&topology, backend, "DEL", &foreign);
        topology.attach("a0", 0, &["49153:80"]);
    }
}
