//! How long flows live, as `up --lifetime` says.

use std::thread;
use std::time::{Duration, Instant};

use portfwd_tests::datapath::{Datapath, Program, Verdict};
use portfwd_tests::deadline;
use portfwd_tests::packet::{Frame, flag};
use portfwd_tests::table::{at, families, inbound, topology};
use portfwd_tests::topology::{GATEWAY_MAC, Topology};
use serde_json::Value;

/// Longer than the lifetime that the tests set, by far.
const LIMIT: Duration = Duration::from_secs(20);

// Fails if a flow is alive for longer than the journal says (`is_alive` in flow/state.rs).
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

/// Whether there is a flow.
fn has_flows(topology: &Topology) -> bool {
    let flows = topology.portfwd(&["--json", "flows"]).expect_ok().json();
    !flows.as_array().expect("an array").is_empty()
}

/// Sends what `frame` says again and again, for longer than a flow lives without packets.
fn longer_than_its_life(mut frame: impl FnMut()) {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(5) {
        frame();
        thread::sleep(Duration::from_millis(200));
    }
}

// Fails if packets of one of the two directions do not count: of a young flow (`note` in flow.rs), or of a settled
// one (`touch`), which this one is from the first request after 2 seconds on.
#[test]
fn packets_of_either_direction_keep_a_flow_alive() {
    let topology = topology();
    let datapath = Datapath::open(&topology);
    let change = [
        "up",
        "--lifetime",
        "answered=2",
        "--lifetime",
        "unanswered=2",
    ];
    topology.portfwd(&change).expect_ok();
    for ends in families() {
        let (client, web) = (at(ends.client, 30_000), at(ends.web, 80));
        let request = inbound(Frame::udp(client, at(ends.host, 8080), b"question")).to_bytes();
        let reply = Frame::udp(web, client, b"answer")
            .on_link([2, 0, 0, 88, 0, 2], GATEWAY_MAC)
            .to_bytes();
        let run = |program, device, frame: &[u8]| datapath.run(program, device, frame).0;
        assert_eq!(run(Program::Device, "eth0", &request), Verdict::Redirect);
        longer_than_its_life(|| {
            assert_eq!(run(Program::Link, "veth1", &reply), Verdict::Redirect);
        });
        let of = |forward: &Value| forward["connections"].as_u64().expect("a number");
        let connections = || topology.list().iter().map(of).sum::<u64>();
        let before = connections();
        longer_than_its_life(|| {
            assert_eq!(run(Program::Device, "eth0", &request), Verdict::Redirect);
        });
        assert_eq!(connections(), before, "it is still the first flow");
        deadline::until("the flow to be forgotten", LIMIT, || {
            (!has_flows(&topology)).then_some(())
        });
    }
}

// Fails if an error counts as a packet of the flow that it is about (`translate` in error.rs).
#[test]
fn errors_do_not_keep_a_flow_alive() {
    let topology = topology();
    let datapath = Datapath::open(&topology);
    let change = ["up", "--lifetime", "unanswered=2"];
    topology.portfwd(&change).expect_ok();
    for ends in families() {
        let (client, host) = (at(ends.client, 30_000), at(ends.host, 8080));
        let request = inbound(Frame::udp(client, host, b"question")).to_bytes();
        let reply = Frame::udp(host, client, b"answer").to_bytes();
        let message = if ends.client.is_ipv4() { 3 } else { 1 };
        let error = Frame::icmp(ends.client, ends.host, message, &reply[14..]);
        let error = inbound(error).to_bytes();
        let run = |frame: &[u8]| datapath.run(Program::Device, "eth0", frame).0;
        assert_eq!(run(&request), Verdict::Redirect);
        assert_eq!(run(&error), Verdict::Redirect);
        deadline::until("the flow to be forgotten", LIMIT, || {
            let verdict = run(&error);
            (verdict == Verdict::Next && !has_flows(&topology)).then_some(())
        });
    }
}
