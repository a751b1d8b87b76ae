//! An error of the kernel is told with what was to be done. A tracer refuses one system call of a command.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::libc;
use portfwd_common::maps;
use portfwd_tests::clients;
use portfwd_tests::portfwd::{self, Outcome, expect_error};
use portfwd_tests::ptrace::{self, Call, End, bpf};
use portfwd_tests::refusing::{Refused, Refusing};
use portfwd_tests::servers::Server;
use portfwd_tests::topology::{HOST, Shape, Topology};

/// Of `include/uapi/linux/rtnetlink.h` and `netlink.h`.
const RTM_GETLINK: u16 = 18;
const RTM_GETROUTE: u16 = 26;
const RTM_DELQDISC: u16 = 37;
const NLM_F_DUMP: u16 = 0x300;

/// Whether it asks for unicast routes: `rtm_type` is the last byte but four of `struct rtmsg`, after `struct nlmsghdr`.
fn lists_routes(call: &Call) -> bool {
    const RTN_UNICAST: u8 = 1;
    let is_dump = |(kind, flags)| kind == RTM_GETROUTE && flags & NLM_F_DUMP == NLM_F_DUMP;
    call.sends().is_some_and(is_dump) && call.memory(call.arguments[1] + 23) == [RTN_UNICAST]
}

/// Refuses calls for want of memory.
fn refuse(stand: &Refusing, line: &str, refused: Refused) -> Outcome {
    stand.refuse(line, refused, Errno::ENOMEM)
}

/// Refuses the first of them alone.
fn refuse_once(stand: &Refusing, line: &str, refused: Refused) -> Outcome {
    let done = AtomicBool::new(false);
    refuse(stand, line, &|call| {
        !done.load(Ordering::Relaxed) && refused(call) && !done.swap(true, Ordering::Relaxed)
    })
}

const ATTACH: &str = "attach web --netns {0} -p 8080:80";

/// Asserts what a command could not do that is refused some calls.
#[track_caller]
fn each(stand: &Refusing, cases: &[(&str, Refused, &str)]) {
    for (line, refused, says) in cases {
        let outcome = refuse(stand, line, refused);
        expect_error(outcome, 1, &format!("cannot {says}: "));
    }
}

#[test]
fn what_is_looked_at_and_printed_is_told() {
    let stand = Refusing::default();
    stand.run(ATTACH).expect_ok();
    // Routes matter where sources are checked strictly.
    stand
        .topology
        .host
        .set_sysctl("ipv4/conf/eth0/rp_filter", "1");
    let parent = stand.topology.bpffs().join("portfwd").display().to_string();
    let looks = |call: &Call| call.number == libc::SYS_statx && call.names(&parent);
    let reads_status = |call: &Call| call.opens("/proc/thread-self/status");
    let reads_input = |call: &Call| call.number == libc::SYS_read && call.arguments[0] == 0;
    let writes = |call: &Call| call.number == libc::SYS_write && call.arguments[0] == 1;
    each(
        &stand,
        &[
            ("list", &looks, &format!("look at {parent}")),
            ("list", &reads_status, "read /proc/thread-self/status"),
            ("doctor", &reads_status, "read /proc/thread-self/status"),
            ("up", &lists_routes, "list routes"),
            ("apply -f -", &reads_input, "read standard input"),
            ("completions bash", &writes, "write to standard output"),
        ],
    );
    let mut command = portfwd::command();
    command
        .args(["--instance", stand.topology.instance(), "--bpffs"])
        .arg(stand.topology.bpffs())
        .arg("--host-netns")
        .arg(stand.topology.client.path())
        .arg("list");
    let outcome = ptrace::refuse(command, |call| call.opens("/proc").then_some(Errno::EMFILE));
    expect_error(outcome, 1, "cannot look for network namespace net:[");
}

#[test]
fn what_explain_asks_is_told() {
    const EXPLAIN: &str = "explain 192.0.2.1:8080";
    let stand = Refusing::default();
    stand.run(ATTACH).expect_ok();
    let map = |name| stand.topology.pinned(name);
    let [sources, devices, addresses] =
        [maps::LINK_SOURCES, maps::DEVICES, maps::HOST_ADDRESSES].map(map);
    let ran = AtomicBool::new(false);
    let reads_why = |call: &Call| {
        ran.fetch_or(call.is_bpf(bpf::PROG_TEST_RUN), Ordering::Relaxed);
        ran.load(Ordering::Relaxed) && call.is_bpf(bpf::MAP_LOOKUP_ELEM)
    };
    let is_lookup = |(kind, flags)| kind == RTM_GETROUTE && flags & NLM_F_DUMP == 0;
    let asks_way = |call: &Call| call.sends().is_some_and(is_lookup);
    let asks_sources = |call: &Call| call.is_of_map(bpf::MAP_GET_NEXT_KEY, &sources);
    let asks_device = |call: &Call| call.is_of_map(bpf::MAP_LOOKUP_ELEM, &devices);
    let asks_addresses = |call: &Call| call.is_of_map(bpf::MAP_LOOKUP_ELEM, &addresses);
    let from = format!("{EXPLAIN} --from 10.88.0.2");
    each(
        &stand,
        &[
            (
                EXPLAIN,
                &|call| call.is_bpf(bpf::PROG_LOAD),
                "load the eBPF programs once more",
            ),
            (
                EXPLAIN,
                &|call| call.is_bpf(bpf::PROG_TEST_RUN),
                "run program tc_device over a packet",
            ),
            (EXPLAIN, &reads_why, "read why"),
            (EXPLAIN, &asks_way, "look up the route to 192.0.2.3"),
            (
                &from,
                &asks_sources,
                "read the addresses of containers: map link_sources",
            ),
            (
                "explain 192.0.2.1:9",
                &asks_device,
                "read what devices are served: map devices",
            ),
            (
                "explain 192.0.2.1:8080 --from 192.0.2.1",
                &asks_addresses,
                "read the addresses that the programs know: map host_addresses",
            ),
        ],
    );
    let asks_links = |call: &Call| call.sends().is_some_and(|(kind, _)| kind == RTM_GETLINK);
    let outcome = refuse_once(&stand, EXPLAIN, &asks_links);
    expect_error(outcome, 1, "cannot list the links: ");
}

#[test]
fn what_follows_the_publishing_is_told() {
    let stand = Refusing::default();
    stand.run("up").expect_ok();
    let containers = stand.topology.pinned(maps::ATTACHMENTS);
    let recorded = AtomicBool::new(false);
    let reads_again = |call: &Call| {
        let records = call.is_of_map(bpf::MAP_UPDATE_ELEM, &containers);
        recorded.fetch_or(records, Ordering::Relaxed);
        recorded.load(Ordering::Relaxed) && call.is_of_map(bpf::MAP_GET_NEXT_KEY, &containers)
    };
    // It is tried again.
    refuse_once(&stand, ATTACH, &reads_again).expect_ok();
    let published = stand.topology.published();
    stand.run("detach web").expect_ok();

    let says = "what was asked for is done, but not all that goes with it: cannot read the containers: map attachments: ";
    let hint = "hint: portfwd list shows what is published; portfwd up does the rest";
    recorded.store(false, Ordering::Relaxed);
    let outcome = refuse(&stand, ATTACH, &reads_again);
    expect_error(outcome.clone(), 1, says);
    expect_error(outcome, 1, hint);
    assert_eq!(stand.topology.published(), published);

    let flows = stand.topology.pinned(maps::YOUNG_V4);
    let purges = |call: &Call| call.is_of_map(bpf::MAP_LOOKUP_BATCH, &flows);
    let replace = "attach web --replace --netns {0} -p 9090:80";
    let says = "what was asked for is done, but not all that goes with it: cannot purge flows: ";
    for line in [replace, "repoint web db --netns {1}", "detach db"] {
        stand.run("up").expect_ok();
        let outcome = refuse(&stand, line, &purges);
        expect_error(outcome.clone(), 1, says);
        expect_error(outcome, 1, hint);
    }
    assert_eq!(stand.topology.published(), [""; 0]);
}

#[test]
fn what_brings_the_datapath_up_is_told() {
    let stand = Refusing::default();
    let outcome = refuse_once(&stand, "up", &|call| call.opens("/proc/self/mountinfo"));
    expect_error(outcome, 1, "cannot find the cgroup2 mount: ");
    let makes = |call: &Call| call.number != libc::SYS_statx && call.names("~building/maps");
    let says = format!(
        "cannot create directory {}/~building/maps: ",
        stand.topology.pins().display()
    );
    expect_error(refuse(&stand, "up", &makes), 1, &says);
    let outcome = refuse(&stand, "up", &|call| call.number == libc::SYS_renameat2);
    let says = format!(
        "cannot rename {}/~building to ",
        stand.topology.pins().display()
    );
    expect_error(outcome, 1, &says);
    stand.run("up --log-level info").expect_ok();
    let outcome = refuse(&stand, "log", &|call| {
        call.is_pin(bpf::OBJ_GET, "/programs/tc_device")
    });
    expect_error(outcome, 1, "cannot read the log: ");
}

/// Refuses a call of a command for the bpffs at `path`.
fn refuse_of(bpffs: &Path, topology: &Topology, command: &str, refused: Refused) -> Outcome {
    let mut line = portfwd::command();
    line.arg("--bpffs")
        .arg(bpffs)
        .arg("--host-netns")
        .arg(topology.host.path())
        .arg(command);
    ptrace::refuse(line, |call| refused(call).then_some(Errno::ENOMEM))
}

#[test]
fn a_mount_that_cannot_be_made_or_taken_away_is_told() {
    let topology = Topology::new(Shape::default());
    let directory = tempfile::tempdir_in("/run").expect("a directory");
    let path = directory.path();
    let refuse = |command, refused: Refused| refuse_of(path, &topology, command, refused);
    let outcome = refuse("up", &|call| call.number == libc::SYS_flock);
    expect_error(outcome, 1, "cannot mount a bpffs: cannot lock ");
    let outcome = refuse("up", &|call| call.number == libc::SYS_mount);
    expect_error(
        outcome,
        1,
        &format!("cannot mount a bpffs on {}: ", path.display()),
    );
    refuse("up", &|_| false).expect_ok();
    let outcome = refuse("down", &|call| call.opens("/proc/self/mountinfo"));
    expect_error(outcome, 1, "cannot read /proc/self/mountinfo: ");
    refuse("up", &|_| false).expect_ok();
    let outcome = refuse("down", &|call| call.number == libc::SYS_umount2);
    expect_error(
        outcome,
        1,
        &format!("cannot unmount the bpffs on {}: ", path.display()),
    );
    refuse("up", &|_| false).expect_ok();
    refuse("down", &|_| false).expect_ok();
}

#[test]
fn what_is_done_about_processes_and_their_sockets_is_told() {
    let stand = Refusing::default();
    let host = &stand.topology.host;
    let _servers = stand.topology.serve();
    let listener = Server::start(host, &[HOST], 8080, "host");
    let outcome = refuse(&stand, ATTACH, &|call| call.opens("/proc"));
    expect_error(outcome, 1, "cannot name processes: ");
    drop(listener);

    let to = SocketAddr::new(HOST, 8080);
    let old = host
        .run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))
        .expect("a socket");
    old.connect(to).expect("connect");
    stand.run(&format!("{ATTACH} -p 8080:80/udp")).expect_ok();
    // What doctor cannot see it says where it says everything.
    for (refused, says) in [
        (
            &(|call: &Call| call.opens("/proc")) as Refused,
            "cannot name processes: ",
        ),
        (&lists_routes, "cannot list routes: "),
        (
            &|call| {
                call.is_bpf(bpf::OBJ_GET)
                    && call
                        .text(call.attribute(bpf::PATHNAME))
                        .contains("/socket-")
            },
            "cannot look at the socket programs: ",
        ),
    ] {
        let outcome = refuse(&stand, "doctor", refused);
        assert!(outcome.stdout.contains(says), "{says}: {outcome:?}");
        portfwd::record(&outcome.stdout);
    }

    let sockets = stand.topology.pinned(maps::HOST_SOCKETS);
    let _open = clients::connect(host, to).expect("connect");
    let outcome = refuse(&stand, "detach web", &|call| {
        call.is_of_map(bpf::MAP_DELETE_BATCH, &sockets)
    });
    expect_error(outcome, 1, "cannot forget host sockets: map host_sockets: ");
}

#[test]
fn what_a_killed_command_left_is_repaired_or_that_is_told() {
    let stand = Refusing::default();
    stand.run("up").expect_ok();
    let containers = stand.topology.pinned(maps::ATTACHMENTS);
    let dies = |call: &Call| call.is_of_map(bpf::MAP_UPDATE_ELEM, &containers);
    assert_eq!(ptrace::kill_at(stand.command(ATTACH), dies), End::Killed);
    let owners = stand.topology.pinned(maps::OWNERS);
    let reads = |call: &Call| call.is_of_map(bpf::MAP_GET_NEXT_KEY, &owners);
    for line in [ATTACH, "down"] {
        let outcome = refuse(&stand, line, &reads);
        expect_error(outcome, 1, "cannot repair the forwards: map owners: ");
    }
    stand.run(ATTACH).expect_ok();
}

#[test]
fn filters_of_older_kernels_are_told_with_their_device() {
    let stand = Refusing::default();
    stand
        .refuse("up", &Call::attaches_tcx, Errno::EINVAL)
        .expect_ok();
    let opens = |call: &Call| call.is_pin(bpf::OBJ_GET, "/programs/tc_device");
    let outcome = refuse(&stand, "doctor", &opens);
    assert!(
        outcome
            .stdout
            .contains("cannot look at the filters of device "),
        "{outcome:?}"
    );
    portfwd::record(&outcome.stdout);
    let outcome = refuse(&stand, "down", &opens);
    expect_error(outcome, 1, "cannot remove the filters of device ");
    let removes = |call: &Call| call.sends().is_some_and(|(kind, _)| kind == RTM_DELQDISC);
    let outcome = refuse(&stand, "down", &removes);
    expect_error(outcome, 1, "cannot release device ");
    stand.run("down").expect_ok();
}
