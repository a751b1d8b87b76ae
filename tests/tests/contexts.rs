//! An error of the kernel is told with what was to be done. A tracer refuses one system call of a command.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::libc;
use portfwd_common::maps;
use portfwd_tests::clients;
use portfwd_tests::portfwd::{self, Outcome, expect_error};
use portfwd_tests::ptrace::{self, Call, End, bpf};
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

/// A call to be refused, by what it looks like.
type Refused<'a> = &'a (dyn Fn(&Call) -> bool + Sync);

struct Stand {
    topology: Topology,
}

impl Stand {
    fn new() -> Self {
        Self {
            topology: Topology::new(Shape::default()),
        }
    }

    /// A command line, in which `{0}` and `{1}` stand for the namespaces of the containers.
    fn command(&self, line: &str) -> Command {
        let [web, db] = &self.topology.containers;
        let line = line
            .replace("{0}", &web.netns())
            .replace("{1}", &db.netns());
        let arguments: Vec<&str> = line.split_whitespace().collect();
        self.topology.command(&arguments)
    }

    fn run(&self, line: &str) -> Outcome {
        portfwd::finish(self.command(line))
    }

    fn refuse(&self, line: &str, refused: Refused) -> Outcome {
        ptrace::refuse(self.command(line), |call| {
            refused(call).then_some(Errno::ENOMEM)
        })
    }

    /// Refuses the command's first use of a map.
    fn refuse_map(&self, line: &str, command: u32, map: &str) -> Outcome {
        let map = self.topology.pinned(map);
        self.refuse(line, &|call| call.is_of_map(command, &map))
    }
}

const ATTACH: &str = "attach web --netns {0} -p 8080:80";

#[test]
fn tables_are_told_with_what_they_were_to_hold() {
    let stand = Stand::new();
    stand.topology.host.set_sysctl("ipv4/ip_forward", "1");
    let full = format!("{ATTACH} -p 127.0.0.1:8081:81 --deny 192.0.2.9 --masquerade");
    let subnet = "masquerade add 10.99.0.0/24";
    let update = bpf::MAP_UPDATE_ELEM;
    let delete = bpf::MAP_DELETE_ELEM;
    let next = bpf::MAP_GET_NEXT_KEY;
    for (before, line, command, map, says) in [
        (
            "up",
            &*full,
            update,
            maps::POLICIES,
            "store who may connect: map policies",
        ),
        (
            "up",
            &full,
            update,
            maps::ATTACHMENTS,
            "record container web: map attachments",
        ),
        (
            &full,
            "list",
            next,
            maps::POLICIES,
            "read who may use what: map policies",
        ),
        (
            &full,
            "detach web",
            delete,
            maps::POLICIES,
            "forget who may use what: map policies",
        ),
        (
            &full,
            "detach web",
            delete,
            maps::ADDRESS_PORTS,
            "free what was withdrawn: map address_ports",
        ),
        (
            &full,
            "detach web",
            next,
            maps::MASQUERADED,
            "purge masqueraded flows: map masqueraded",
        ),
        (
            &full,
            "status",
            next,
            maps::MASQUERADED,
            "read masqueraded flows: map masqueraded",
        ),
        (
            subnet,
            "masquerade remove 10.99.0.0/24",
            delete,
            maps::SUBNETS,
            "masquerade 10.99.0.0/24 no longer: map subnets",
        ),
        (
            "up",
            subnet,
            update,
            maps::SUBNETS,
            "masquerade 10.99.0.0/24: map subnets",
        ),
        (
            subnet,
            "down",
            next,
            maps::SUBNETS,
            "end what is masqueraded: map subnets",
        ),
    ] {
        stand.run(before).expect_ok();
        let outcome = stand.refuse_map(line, command, map);
        expect_error(outcome, 1, &format!("cannot {says}: `bpf_map_"));
        stand.run("down").expect_ok();
    }
}

#[test]
fn what_is_read_and_written_is_told_with_its_table() {
    let stand = Stand::new();
    stand.topology.host.set_sysctl("ipv4/ip_forward", "1");
    let attach = format!("{ATTACH} -p 127.0.0.1:8081:81 --masquerade");
    let lookup = bpf::MAP_LOOKUP_ELEM;
    let update = bpf::MAP_UPDATE_ELEM;
    let delete = bpf::MAP_DELETE_ELEM;
    let next = bpf::MAP_GET_NEXT_KEY;
    for (before, line, command, map, says) in [
        (
            "up",
            &*attach,
            update,
            maps::OWNERS,
            "record the addresses of web: map owners",
        ),
        (
            "up",
            &attach,
            update,
            maps::ADDRESS_PORTS,
            "publish port 8081: map address_ports",
        ),
        (
            "up",
            &attach,
            update,
            maps::LINKS,
            "record link veth1: map links",
        ),
        (
            "up",
            "up",
            update,
            maps::DEVICES,
            "refresh the host's devices: map devices",
        ),
        (
            &attach,
            "up",
            update,
            maps::DEVICE_IPS,
            "refresh the addresses of devices: map device_ips",
        ),
        (
            "up",
            "flows",
            next,
            maps::YOUNG_V4,
            "read the flows: map young_v4",
        ),
        (
            "up",
            "status",
            lookup,
            maps::REASONS,
            "read the reasons: map reasons",
        ),
        (
            "up",
            "masquerade list",
            next,
            maps::SUBNETS,
            "read what is masqueraded: map subnets",
        ),
        (
            &attach,
            "list",
            next,
            maps::ATTACHMENTS,
            "read the containers: map attachments",
        ),
        (
            &attach,
            "list",
            lookup,
            maps::COUNTERS,
            "read the counters: map counters",
        ),
        (
            &attach,
            "detach web",
            next,
            maps::YOUNG_V4,
            "purge flows: map young_v4",
        ),
        (
            &attach,
            "detach web",
            next,
            maps::HOST_SOCKETS,
            "read host sockets: map host_sockets",
        ),
        (
            &attach,
            "detach web",
            delete,
            maps::LINKS,
            "forget containers: map links",
        ),
        (
            &attach,
            "detach web",
            lookup,
            maps::OWNERS,
            "end what containers send: map owners",
        ),
        (
            &attach,
            "detach web",
            next,
            maps::OWNERS,
            "end what is masqueraded no longer: map owners",
        ),
        (
            "up",
            "up",
            next,
            maps::HOST_ADDRESSES,
            "refresh the host's addresses: map host_addresses",
        ),
    ] {
        stand.run(before).expect_ok();
        let outcome = stand.refuse_map(line, command, map);
        expect_error(outcome, 1, &format!("cannot {says}: `bpf_map_"));
        stand.run("down").expect_ok();
    }
}

#[test]
fn what_a_command_looks_at_is_told() {
    let stand = Stand::new();
    stand.run(ATTACH).expect_ok();
    // Routes matter where sources are checked strictly.
    stand
        .topology
        .host
        .set_sysctl("ipv4/conf/eth0/rp_filter", "1");
    let map = |name| stand.topology.pinned(name);
    let (sources, devices) = (map(maps::LINK_SOURCES), map(maps::DEVICES));
    let ran = AtomicBool::new(false);
    let reads_after = |call: &Call| {
        ran.fetch_or(call.is_bpf(bpf::PROG_TEST_RUN), Ordering::Relaxed);
        ran.load(Ordering::Relaxed) && call.is_bpf(bpf::MAP_LOOKUP_ELEM)
    };
    let containers = map(maps::ATTACHMENTS);
    let recorded = AtomicBool::new(false);
    let reads_again = |call: &Call| {
        let records = call.is_of_map(bpf::MAP_UPDATE_ELEM, &containers);
        recorded.fetch_or(records, Ordering::Relaxed);
        let reads = call.is_of_map(bpf::MAP_GET_NEXT_KEY, &containers);
        reads && recorded.swap(false, Ordering::Relaxed)
    };
    let cases: [(&str, Refused, &str); 13] = [
        (
            "attach web -p 8081:80",
            &reads_again,
            "record the addresses of containers: map attachments: ",
        ),
        (
            "list",
            &|call| call.number == libc::SYS_statx && call.names("/portfwd"),
            "look at /run/",
        ),
        (
            "list",
            &|call| call.opens("/proc/thread-self/status"),
            "read /proc/thread-self/status: ",
        ),
        (
            "doctor",
            &|call| call.opens("/proc/thread-self/status"),
            "read /proc/thread-self/status: ",
        ),
        ("up", &lists_routes, "list routes: "),
        (
            "explain 192.0.2.1:8080",
            &|call| call.is_bpf(bpf::PROG_LOAD),
            "load the eBPF programs once more: ",
        ),
        ("explain 192.0.2.1:8080", &reads_after, "read why: "),
        (
            "explain 192.0.2.1:8080 --from 10.88.0.2",
            &|call| call.is_of_map(bpf::MAP_GET_NEXT_KEY, &sources),
            "read the addresses of containers: map link_sources: ",
        ),
        (
            "explain 192.0.2.1:9",
            &|call| call.is_of_map(bpf::MAP_LOOKUP_ELEM, &devices),
            "read what devices are served: map devices: ",
        ),
        (
            "explain 192.0.2.1:8080",
            &|call| call.is_bpf(bpf::PROG_TEST_RUN),
            "run program tc_device over a packet: ",
        ),
        (
            "explain 192.0.2.1:8080",
            &|call| {
                call.sends()
                    .is_some_and(|(kind, flags)| kind == RTM_GETROUTE && flags & NLM_F_DUMP == 0)
            },
            "look up the route to 192.0.2.",
        ),
        (
            "apply -f -",
            &|call| call.number == libc::SYS_read && call.arguments[0] == 0,
            "read standard input: ",
        ),
        (
            "completions bash",
            &|call| call.number == libc::SYS_write && call.arguments[0] == 1,
            "write to standard output: ",
        ),
    ];
    for (line, refused, says) in cases {
        expect_error(stand.refuse(line, refused), 1, &format!("cannot {says}"));
    }
    let mut asked = false;
    let command = stand.command("explain 192.0.2.1:8080");
    let outcome = ptrace::refuse(command, |call| {
        let first = !asked && call.sends().is_some_and(|(kind, _)| kind == RTM_GETLINK);
        asked |= first;
        first.then_some(Errno::ENOMEM)
    });
    expect_error(outcome, 1, "cannot list the links: ");
    let client = stand.topology.client.path();
    let mut command = portfwd::command();
    command
        .args(["--instance", stand.topology.instance(), "--bpffs"])
        .arg(stand.topology.bpffs())
        .arg("--host-netns")
        .arg(client)
        .arg("list");
    let outcome = ptrace::refuse(command, |call| call.opens("/proc").then_some(Errno::EMFILE));
    expect_error(outcome, 1, "cannot look for network namespace net:[");
}

#[test]
fn what_brings_the_datapath_up_is_told() {
    let stand = Stand::new();
    let mut asked = false;
    let outcome = ptrace::refuse(stand.command("up"), |call| {
        let first = !asked && call.opens("/proc/self/mountinfo");
        asked |= first;
        first.then_some(Errno::ENOMEM)
    });
    expect_error(outcome, 1, "cannot find the cgroup2 mount: ");
    let makes = |call: &Call| call.number != libc::SYS_statx && call.names("~building/maps");
    let says = format!(
        "cannot create directory {}/~building/maps: ",
        stand.topology.pins().display()
    );
    expect_error(stand.refuse("up", &makes), 1, &says);
    let outcome = stand.refuse("up", &|call| call.number == libc::SYS_renameat2);
    let says = format!(
        "cannot rename {}/~building to ",
        stand.topology.pins().display()
    );
    expect_error(outcome, 1, &says);
    stand.run("up --log-level info").expect_ok();
    let outcome = stand.refuse("log", &|call| {
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
    let stand = Stand::new();
    let host = &stand.topology.host;
    let _servers = stand.topology.serve();
    let listener = Server::start(host, &[HOST], 8080, "host");
    let outcome = stand.refuse(ATTACH, &|call| call.opens("/proc"));
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
        let outcome = stand.refuse("doctor", refused);
        assert!(outcome.stdout.contains(says), "{says}: {outcome:?}");
        portfwd::record(&outcome.stdout);
    }

    let _open = clients::connect(host, to).expect("connect");
    let outcome = stand.refuse_map("detach web", bpf::MAP_DELETE_ELEM, maps::HOST_SOCKETS);
    expect_error(outcome, 1, "cannot forget host sockets: map host_sockets: ");
}

#[test]
fn what_a_killed_command_left_is_repaired_or_that_is_told() {
    let stand = Stand::new();
    stand.run("up").expect_ok();
    let containers = stand.topology.pinned(maps::ATTACHMENTS);
    let dies = |call: &Call| call.is_of_map(bpf::MAP_UPDATE_ELEM, &containers);
    assert_eq!(ptrace::kill_at(stand.command(ATTACH), dies), End::Killed);
    for line in [ATTACH, "down"] {
        let outcome = stand.refuse_map(line, bpf::MAP_GET_NEXT_KEY, maps::OWNERS);
        expect_error(outcome, 1, "cannot repair the forwards: map owners: ");
    }
    stand.run(ATTACH).expect_ok();
}

#[test]
fn filters_of_older_kernels_are_told_with_their_device() {
    const TCX: [u32; 2] = [46, 47];
    let stand = Stand::new();
    let old = |call: &Call| {
        let kind = u32::from_ne_bytes(call.memory(call.arguments[1] + bpf::ATTACH_TYPE));
        call.is_bpf(bpf::LINK_CREATE) && TCX.contains(&kind)
    };
    let up = ptrace::refuse(stand.command("up"), |call| {
        old(call).then_some(Errno::EINVAL)
    });
    up.expect_ok();
    let opens = |call: &Call| call.is_pin(bpf::OBJ_GET, "/programs/tc_device");
    let outcome = stand.refuse("doctor", &opens);
    assert!(
        outcome
            .stdout
            .contains("cannot look at the filters of device "),
        "{outcome:?}"
    );
    portfwd::record(&outcome.stdout);
    let outcome = stand.refuse("down", &opens);
    expect_error(outcome, 1, "cannot remove the filters of device ");
    let removes = |call: &Call| call.sends().is_some_and(|(kind, _)| kind == RTM_DELQDISC);
    let outcome = stand.refuse("down", &removes);
    expect_error(outcome, 1, "cannot release device ");
    stand.run("down").expect_ok();
}
