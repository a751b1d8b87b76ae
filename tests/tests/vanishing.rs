//! Devices that go, or get another name, while a command is at work on them: a tracer changes them between two of its
//! system calls.

use std::fs;

use nix::errno::Errno;
use portfwd_tests::kernel;
use portfwd_tests::portfwd::{Outcome, expect_error};
use portfwd_tests::ptrace::{Call, bpf};
use portfwd_tests::refusing::{Refused, Refusing};
use portfwd_tests::topology::Topology;

/// The index of `eth9`, and that of its peer.
const FLEETING: u32 = 91;
const PEER: u32 = 92;

/// Gives the host the device `eth9`, which its peer `peer9` goes along with.
fn make_fleeting(topology: &Topology) {
    topology.host.ip(&format!(
        "link add eth9 index {FLEETING} type veth peer name peer9 index {PEER}
         addr add 198.51.100.1/24 dev eth9\n"
    ));
}

const GOES: &str = "link del eth9\n";
/// Its peer, which the host has no address on, gets its name.
const RENAMED: &str = "link set eth9 name other9\nlink set peer9 name eth9\n";

/// What the kernel has hooks by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Tcx,
    /// As before Linux 6.6.
    Filters,
}

/// Runs a line, and changes the host's devices on entry to the first call that is like this.
fn meanwhile(stand: &Refusing, by: By, line: &str, at: Refused, change: &str) -> Outcome {
    let mut done = false;
    let outcome = stand.fake(line, |call| {
        if !done && at(call) {
            done = true;
            stand.topology.host.ip(change);
        }
        (by == By::Filters && call.attaches_tcx()).then_some(-i64::from(Errno::EINVAL as i32))
    });
    assert!(done, "{line}: no such call");
    outcome
}

/// Whether it sends this kind of netlink message of the traffic control of `eth9`: `tcm_ifindex` follows
/// `struct nlmsghdr` and four bytes of `struct tcmsg`.
fn is_tc(call: &Call, kind: u16) -> bool {
    call.sends().is_some_and(|(sent, _)| sent == kind)
        && u32::from_ne_bytes(call.memory(call.arguments[1] + 20)) == FLEETING
}

/// Of `include/uapi/linux/rtnetlink.h`.
const RTM_NEWQDISC: u16 = 36;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;

fn attaches(call: &Call) -> bool {
    call.attaches_to(FLEETING)
}

/// Every moment between a look at the devices and the last thing that is done to `eth9`.
const MOMENTS: [(By, Refused); 6] = [
    (By::Tcx, &attaches),
    (By::Filters, &attaches),
    (By::Filters, &|call| is_tc(call, RTM_GETTFILTER)),
    (By::Filters, &|call| is_tc(call, RTM_GETQDISC)),
    (By::Filters, &|call| is_tc(call, RTM_NEWQDISC)),
    (By::Filters, &|call| is_tc(call, RTM_NEWTFILTER)),
];

/// What is pinned or marked for a device.
fn kept_of(topology: &Topology, index: u32) -> Vec<String> {
    let end = format!("-{index}");
    let entries = fs::read_dir(topology.layout().join("links")).expect("the links");
    let names = entries.map(|entry| entry.expect("a link").file_name());
    let names = names.map(|name| name.to_string_lossy().into_owned());
    names.filter(|name| name.ends_with(&end)).collect()
}

#[track_caller]
fn expect_nothing_of_it(stand: &Refusing, outcome: Outcome, case: &str) {
    let outcome = outcome.expect_ok();
    assert!(!outcome.stderr.contains("eth9"), "{case}: {outcome:?}");
    let kept = kept_of(&stand.topology, FLEETING);
    assert_eq!(kept, Vec::<String>::new(), "{case}");
    let eth0 = stand.topology.host.run(|| kernel::index_of("eth0"));
    assert_ne!(kept_of(&stand.topology, eth0), Vec::<String>::new());
}

// Fails if `attach_if_there` of hooks.rs is `attach`.
#[test]
fn a_device_that_goes_before_it_has_its_hook_is_left_out() {
    let stand = Refusing::default();
    for by in [By::Tcx, By::Filters] {
        bring_up(&stand, by);
        let moments = MOMENTS.into_iter().filter(|(of, _)| *of == by);
        for (number, (_, moment)) in moments.enumerate() {
            make_fleeting(&stand.topology);
            let outcome = meanwhile(&stand, by, "gc", moment, GOES);
            expect_nothing_of_it(&stand, outcome, &format!("{by:?} {number}"));
        }
        stand.run("down").expect_ok();
    }
    // Where there is no instance yet.
    make_fleeting(&stand.topology);
    let line = "attach web --netns {0} -p 8080:80";
    let outcome = meanwhile(&stand, By::Tcx, line, &attaches, GOES);
    expect_nothing_of_it(&stand, outcome, line);
}

// Fails if `attach_egress` of devices.rs attaches by `hooks::attach`.
#[test]
fn a_device_that_goes_before_it_has_the_hook_for_what_leaves_is_left_out() {
    let stand = Refusing::default();
    // With one for what comes in, only this is left to do.
    let moments: [(By, Refused); 2] = [
        (By::Tcx, &attaches),
        (By::Filters, &|call| is_tc(call, RTM_NEWTFILTER)),
    ];
    for (by, moment) in moments {
        make_fleeting(&stand.topology);
        bring_up(&stand, by);
        meanwhile(&stand, by, "masquerade add 10.88.0.0/24", moment, GOES).expect_ok();
        stand.run("gc").expect_ok();
        assert_eq!(kept_of(&stand.topology, FLEETING), Vec::<String>::new());
        stand.run("down").expect_ok();
    }
}

fn bring_up(stand: &Refusing, by: By) {
    let refused = |call: &Call| by == By::Filters && call.attaches_tcx();
    stand.refuse("up", &refused, Errno::EINVAL).expect_ok();
}

#[test]
fn a_device_that_goes_before_its_filter_runs_the_next_program_is_left_out() {
    let stand = Refusing::default();
    let topology = &stand.topology;
    make_fleeting(topology);
    bring_up(&stand, By::Filters);
    let shown = || {
        let show = ["filter", "show", "dev", "eth0", "ingress"];
        topology.host.output("tc", &show)
    };
    let before = shown();
    let line = "up --log-level info";
    let refused = |call: &Call| call.attaches_tcx() || is_tc(call, RTM_NEWTFILTER);
    let outcome = stand.refuse(line, &refused, Errno::EINVAL);
    expect_error(outcome, 1, ": cannot change a filter: ");
    let changes = |call: &Call| is_tc(call, RTM_NEWTFILTER);
    meanwhile(&stand, By::Filters, line, &changes, GOES).expect_ok();
    assert_eq!(programs(topology, By::Filters, "eth0"), 1);
    assert_ne!(shown(), before);
}

// Fails if `serve_xdp` attaches by `xdp::attach`.
#[test]
fn a_device_that_goes_before_it_has_xdp_is_left_out_and_not_warned_of() {
    let stand = Refusing::default();
    for mode in ["auto", "generic"] {
        make_fleeting(&stand.topology);
        bring_up(&stand, By::Tcx);
        let line = format!("up --xdp {mode}");
        let outcome = meanwhile(&stand, By::Tcx, &line, &attaches, GOES).expect_ok();
        assert!(!outcome.stderr.contains("eth9"), "{outcome:?}");
        stand.run("down").expect_ok();
    }
}

#[test]
fn a_device_that_was_asked_for_by_name_and_goes_is_told() {
    let stand = Refusing::default();
    let cases: [(By, &str, Refused, &str); 4] = [
        (
            By::Tcx,
            "up --device eth9",
            &attaches,
            "cannot attach tc_device to eth9: No such device",
        ),
        (
            By::Filters,
            "up --device eth9",
            &|call| is_tc(call, RTM_NEWQDISC),
            "cannot attach tc_device to eth9: cannot add a clsact qdisc: No such device",
        ),
        (
            By::Filters,
            "up --device eth9",
            &|call| is_tc(call, RTM_NEWTFILTER),
            "cannot attach tc_device to eth9: cannot add a filter: No such device",
        ),
        (
            By::Tcx,
            "up --device eth9 --xdp generic",
            &attaches,
            "cannot attach xdp_device to eth9 (generic): ",
        ),
    ];
    for (by, line, moment, says) in cases {
        make_fleeting(&stand.topology);
        expect_error(meanwhile(&stand, by, line, moment, GOES), 1, says);
        assert!(kernel::pins(stand.topology.bpffs()).is_empty(), "{says}");
    }
}

#[test]
fn a_containers_link_that_goes_is_told() {
    for (loopback, says) in [
        ("", "cannot attach tc_link to veth1: No such device"),
        (
            " --loopback",
            "cannot attach tc_loopback to eth0: No such device",
        ),
    ] {
        let stand = Refusing::default();
        stand.run("up").expect_ok();
        let (namespace, device) = match loopback.is_empty() {
            true => (&stand.topology.host, "veth1"),
            false => (&stand.topology.containers[0].namespace, "eth0"),
        };
        let index = namespace.run(|| kernel::index_of(device));
        let line = format!("attach web --netns {{0}} -p 8080:80{loopback}");
        let mut gone = false;
        let outcome = stand.fake(&line, |call| {
            if !gone && call.attaches_to(index) && call.is_in(&namespace.path()) {
                gone = true;
                namespace.ip(&format!("link del {device}\n"));
            }
            None
        });
        expect_error(outcome, 1, says);
        assert_eq!(stand.topology.published(), Vec::<String>::new());
    }
}

// Fails if a hook is attached by the name that the device had when the host was looked at.
#[test]
fn a_device_that_is_renamed_is_served_and_the_one_that_has_its_name_is_not() {
    for by in [By::Tcx, By::Filters] {
        let stand = Refusing::default();
        let topology = &stand.topology;
        stand.run("up").expect_ok();
        make_fleeting(topology);
        let looks = |call: &Call| call.is_pin(bpf::OBJ_GET, &format!("/links/device-{FLEETING}"));
        meanwhile(&stand, by, "up", &looks, RENAMED).expect_ok();
        assert_eq!(programs(topology, by, "other9"), 1, "{by:?}");
        assert_eq!(programs(topology, by, "eth9"), 0, "{by:?}");
        assert_eq!(kept_of(topology, PEER), Vec::<String>::new());
        stand.run("down").expect_ok();
        assert_eq!(programs(topology, by, "other9"), 0, "{by:?}");
    }
}

/// How many programs see what comes in by a device.
fn programs(topology: &Topology, by: By, device: &str) -> usize {
    match by {
        By::Tcx => topology.ingress_programs(device).len(),
        By::Filters => {
            let show = ["filter", "show", "dev", device, "ingress"];
            let filters = topology.host.output("tc", &show);
            filters.matches(" direct-action ").count()
        }
    }
}

// Fails if `Xdp::attach` is called with a name.
#[test]
fn xdp_goes_to_the_device_that_was_meant_whatever_its_name_is_by_then() {
    let stand = Refusing::default();
    let topology = &stand.topology;
    stand.run("up").expect_ok();
    make_fleeting(topology);
    let looks = |call: &Call| call.is_pin(bpf::OBJ_GET, &format!("/links/xdp-generic-{FLEETING}"));
    meanwhile(&stand, By::Tcx, "up --xdp generic", &looks, RENAMED).expect_ok();
    let has_xdp = |device| {
        let shown = topology.host.output("ip", &["link", "show", device]);
        shown.contains("xdpgeneric")
    };
    assert_eq!(["other9", "eth9"].map(has_xdp), [true, false]);
}
