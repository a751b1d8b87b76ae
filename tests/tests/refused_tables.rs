//! An error of a table is told with what was to be done and the table's name. A tracer refuses what a command does with
//! it.

use nix::errno::Errno;
use portfwd_common::maps;
use portfwd_tests::portfwd::expect_error;
use portfwd_tests::ptrace::bpf;
use portfwd_tests::refusing::Refusing;

const ATTACH: &str =
    "attach web --netns {0} -p 8080:80 -p 127.0.0.1:8081:81 --deny 192.0.2.9 --masquerade";
const DETACH: &str = "detach web";
const ADD: &str = "masquerade add 10.99.0.0/24";
const REMOVE: &str = "masquerade remove 10.99.0.0/24";

const GET: u32 = bpf::MAP_LOOKUP_ELEM;
const PUT: u32 = bpf::MAP_UPDATE_ELEM;
const DELETE: u32 = bpf::MAP_DELETE_ELEM;
const NEXT: u32 = bpf::MAP_GET_NEXT_KEY;
const READ_ALL: u32 = bpf::MAP_LOOKUP_BATCH;

/// What is run before, the command, what it is refused, of which table, and what it could not do then.
type Use = (&'static str, &'static str, u32, &'static str, &'static str);

const READ: &[Use] = &[
    ("up", "flows", READ_ALL, maps::YOUNG_V4, "read the flows"),
    ("up", "status", READ_ALL, maps::FLOWS_V6, "count the flows"),
    ("up", "status", GET, maps::REASONS, "read the reasons"),
    (
        "up",
        "masquerade list",
        NEXT,
        maps::SUBNETS,
        "read what is masqueraded",
    ),
    (
        "up",
        "up",
        NEXT,
        maps::HOST_ADDRESSES,
        "refresh the host's addresses",
    ),
    (
        ATTACH,
        "list",
        NEXT,
        maps::ATTACHMENTS,
        "read the containers",
    ),
    (
        ATTACH,
        "list",
        NEXT,
        maps::POLICIES,
        "read who may use what",
    ),
    (ATTACH, "list", GET, maps::COUNTERS, "read the counters"),
    (
        ATTACH,
        "status",
        READ_ALL,
        maps::MASQUERADED,
        "read masqueraded flows",
    ),
    (ATTACH, DETACH, READ_ALL, maps::YOUNG_V4, "purge flows"),
    (
        ATTACH,
        DETACH,
        READ_ALL,
        maps::MASQUERADED,
        "purge masqueraded flows",
    ),
    (
        ATTACH,
        DETACH,
        READ_ALL,
        maps::HOST_SOCKETS,
        "read host sockets",
    ),
    (
        ATTACH,
        DETACH,
        GET,
        maps::OWNERS,
        "end what containers send",
    ),
    (
        ATTACH,
        DETACH,
        NEXT,
        maps::OWNERS,
        "end what is masqueraded no longer",
    ),
    (ADD, "down", NEXT, maps::SUBNETS, "end what is masqueraded"),
];

const WRITTEN: &[Use] = &[
    ("up", ATTACH, PUT, maps::ATTACHMENTS, "record container web"),
    (
        "up",
        ATTACH,
        PUT,
        maps::OWNERS,
        "record the addresses of web",
    ),
    ("up", ATTACH, PUT, maps::LINKS, "record link veth1"),
    ("up", ATTACH, PUT, maps::POLICIES, "store who may connect"),
    ("up", ATTACH, PUT, maps::ADDRESS_PORTS, "publish port 8081"),
    ("up", "up", PUT, maps::DEVICES, "refresh the host's devices"),
    ("up", ADD, PUT, maps::SUBNETS, "masquerade 10.99.0.0/24"),
    (
        ATTACH,
        "up",
        PUT,
        maps::DEVICE_IPS,
        "refresh the ports and addresses of masqueraded flows",
    ),
    (ATTACH, DETACH, DELETE, maps::LINKS, "forget containers"),
    (
        ATTACH,
        DETACH,
        DELETE,
        maps::POLICIES,
        "forget who may use what",
    ),
    (
        ATTACH,
        DETACH,
        DELETE,
        maps::ADDRESS_PORTS,
        "free what was withdrawn",
    ),
    (
        ADD,
        REMOVE,
        DELETE,
        maps::SUBNETS,
        "masquerade 10.99.0.0/24 no longer",
    ),
];

#[track_caller]
fn each(uses: &[Use]) {
    let stand = Refusing::default();
    stand.topology.host.set_sysctl("ipv4/ip_forward", "1");
    for (before, line, command, name, says) in uses {
        stand.run(before).expect_ok();
        let map = stand.topology.pinned(name);
        let outcome = stand.refuse(line, &|call| call.is_of_map(*command, &map), Errno::ENOMEM);
        drop(map);
        expect_error(outcome, 1, &format!("cannot {says}: map {name}: `bpf_map_"));
        stand.run("down").expect_ok();
    }
}

#[test]
fn tables_that_cannot_be_read_are_told_with_what_for() {
    each(READ);
}

#[test]
fn tables_that_cannot_be_written_are_told_with_what_for() {
    each(WRITTEN);
}
