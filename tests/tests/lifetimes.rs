//! How long flows live, as `up --lifetime` says.

use std::time::Duration;

use portfwd_tests::datapath::{Datapath, Program, Verdict};
use portfwd_tests::deadline;
use portfwd_tests::packet::{Frame, flag};
use portfwd_tests::table::{at, families, inbound, topology};

/// Longer than the lifetime that the tests set, by far.
const LIMIT: Duration = Duration::from_secs(20);

// Fails if a flow is alive for longer than the journal says (`is_alive` in flow.rs).
#[test]
fn a_flow_is_gone_after_its_lifetime_and_lifetimes_can_be_changed_while_it_lives() {
    let topology = topology();
    let datapath = Datapath::open(&topology);
    let [ends, ends6] = families();
    let run = |frame: Frame| {
        let frame = inbound(frame).to_bytes();
        datapath.run(Program::Device, "eth0", &frame).0
    };
    let segment = |ends: portfwd_tests::table::Ends, flags: u8| {
        run(Frame::tcp(
            at(ends.client, 30_000),
            at(ends.host, 8080),
            flags,
        ))
    };
    for ends in [ends, ends6] {
        assert_eq!(segment(ends, flag::SYN), Verdict::Redirect);
        assert_eq!(segment(ends, flag::ACK), Verdict::Redirect);
    }
    let said = topology.portfwd(&["--json", "status"]).expect_ok().json();
    assert_eq!(said["datapath"]["lifetimes"]["transitory"], 240);
    let change = [
        "up",
        "--lifetime",
        "transitory=1",
        "--lifetime",
        "unanswered=2",
    ];
    topology.portfwd(&change).expect_ok();
    let said = topology.portfwd(&["--json", "status"]).expect_ok().json();
    let lifetimes = &said["datapath"]["lifetimes"];
    assert_eq!(lifetimes["transitory"], 1);
    assert_eq!(lifetimes["unanswered"], 2);
    assert_eq!(lifetimes["established"], 7_440);
    deadline::until("the flows to be forgotten", LIMIT, || {
        let flows = topology.portfwd(&["--json", "flows"]).expect_ok().json();
        (flows.as_array()?.is_empty()).then_some(())
    });
    for ends in [ends, ends6] {
        assert_eq!(segment(ends, flag::ACK), Verdict::Next, "its flow is gone");
    }
}
