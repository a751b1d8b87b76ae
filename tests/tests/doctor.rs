//! What `doctor` says of hosts that lack something.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::Command;

use portfwd_tests::clients;
use portfwd_tests::kernel;
use portfwd_tests::namespace::unique;
use portfwd_tests::portfwd::{self, Outcome};
use portfwd_tests::topology::{HOST, Shape, Topology};
use serde_json::Value;

/// Runs a command of portfwd by another program, which gets it as its last arguments.
fn by(topology: &Topology, program: &str, arguments: &[&str], of_portfwd: &[&str]) -> Outcome {
    let inner = topology.command(of_portfwd);
    let mut command = Command::new(program);
    command.args(arguments);
    command.arg(inner.get_program()).args(inner.get_args());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    portfwd::finish(command)
}

/// The checks by their names.
#[track_caller]
fn checks(outcome: &Outcome) -> BTreeMap<String, Value> {
    let document = outcome.json();
    let checks = document.as_array().expect("an array of checks");
    let name = |check: &Value| check["name"].as_str().expect("a name").to_owned();
    checks
        .iter()
        .map(|check| (name(check), check.clone()))
        .collect()
}

/// Asserts what a check finds, and words of what it says.
#[track_caller]
fn expect(checks: &BTreeMap<String, Value>, name: &str, finding: &str, words: &[&str]) {
    let check = checks
        .get(name)
        .unwrap_or_else(|| panic!("no check {name} in {checks:?}"));
    assert_eq!(check["finding"], finding, "{check}");
    for word in words {
        assert!(check.to_string().contains(word), "{word:?} in {check}");
    }
}

#[track_caller]
fn doctor(topology: &Topology, code: i32) -> BTreeMap<String, Value> {
    checks(&topology.portfwd(&["--json", "doctor"]).expect_code(code))
}

#[test]
fn a_host_that_has_everything_is_told_so_with_and_without_an_instance() {
    let topology = Topology::watched(Shape::forwarding());
    let found = doctor(&topology, 0);
    expect(&found, "instance", "ok", &["not up"]);
    assert!(
        kernel::pins(topology.bpffs()).is_empty(),
        "doctor has made something"
    );
    topology.attach("web", 0, &["8080:80"]);
    let state = topology.state();
    let found = doctor(&topology, 0);
    for (name, check) in &found {
        // Kernels before 6.7 lack these.
        if !["tc", "route-source"].contains(&name.as_str()) {
            assert_eq!(check["finding"], "ok", "{check}");
        }
    }
    expect(&found, "devices", "ok", &["eth0", "eth1", "br0"]);
    expect(&found, "socket-hooks", "ok", &["root"]);
    assert_eq!(topology.state(), state);
    topology.take_down();
}

#[test]
fn the_text_is_one_line_a_check() {
    let topology = Topology::new(Shape::default());
    let count = doctor(&topology, 0).len();
    let outcome = topology.portfwd(&["doctor"]).expect_ok();
    assert_eq!(outcome.stderr, "");
    assert_eq!(outcome.stdout.lines().count(), count);
    let starts = ["ok ", "warn ", "unseen "];
    for line in outcome.stdout.lines() {
        assert!(starts.iter().any(|start| line.starts_with(start)), "{line}");
    }
}

/// Fails if `hooks::sockets::attached` names a control group where there is none, or the checks do not ask.
#[test]
fn where_no_cgroup2_is_mounted_host_processes_are_named_as_the_cost() {
    const UNMOUNT: &str = "awk '$3 == \"cgroup2\" { print $2 }' /proc/self/mounts \
                           | xargs -r umount -l && exec \"$@\"";
    let unshare = ["--mount", "sh", "-c", UNMOUNT, "sh"];
    let topology = Topology::watched(Shape::default());
    let run = |arguments: &[&str]| by(&topology, "unshare", &unshare, arguments).expect_ok();
    let found = checks(&run(&["--json", "doctor"]));
    expect(
        &found,
        "cgroup2",
        "warn",
        &["none is mounted", "host processes"],
    );
    let _warned = run(&["up"]);
    // What counts for the instance is what was mounted when it was brought up.
    let found = doctor(&topology, 0);
    expect(&found, "cgroup2", "ok", &[]);
    expect(
        &found,
        "socket-hooks",
        "warn",
        &["host processes", "down and up"],
    );
    topology.take_down();
}

/// A control group, as long as it lives.
struct ControlGroup(PathBuf);

impl ControlGroup {
    fn new() -> Self {
        let name = format!("pf-{}", unique());
        let path = kernel::cgroup_root().join(name);
        fs::create_dir(&path).expect("make a control group");
        Self(path)
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("remove {}: {error}", self.0.display());
        }
    }
}

/// Fails if the hooks do not tell their control group.
#[test]
fn a_part_of_the_hierarchy_is_told_from_its_root() {
    let topology = Topology::watched(Shape::default());
    let group = ControlGroup::new();
    let point = tempfile::tempdir().expect("a directory");
    let (part, point) = (group.0.display(), point.path().display());
    let mount = format!(
        "mount -o bind {part} {point} \
         && awk '$3 == \"cgroup2\" && $2 != \"{point}\" {{ print $2 }}' /proc/self/mounts \
         | xargs -r umount -l && exec \"$@\""
    );
    let arguments = ["--mount", "sh", "-c", &mount, "sh"];
    let found = checks(&by(&topology, "unshare", &arguments, &["--json", "doctor"]).expect_ok());
    let words = [&*point.to_string(), "only those in it"];
    expect(&found, "cgroup2", "warn", &words);
    let _warned = by(&topology, "unshare", &arguments, &["up"]).expect_ok();
    let found = doctor(&topology, 0);
    expect(&found, "socket-hooks", "warn", &["only those in it"]);
    topology.take_down();
}

#[test]
fn without_privileges_it_says_what_it_cannot_see() {
    let topology = Topology::watched(Shape::default());
    topology.portfwd(&["up"]).expect_ok();
    let without = ["--inh-caps=-all", "--bounding-set=-all"];
    let outcome = by(&topology, "setpriv", &without, &["--json", "doctor"]).expect_code(5);
    assert_eq!(
        outcome.stderr,
        "error: something necessary is missing: capabilities\n"
    );
    let found = checks(&outcome);
    expect(
        &found,
        "capabilities",
        "fail",
        &["CAP_BPF", "CAP_NET_ADMIN"],
    );
    for name in ["bpf", "programs", "instance", "firewall"] {
        expect(&found, name, "unseen", &["CAP_BPF"]);
    }
    // The namespace that plays the host is another one than the caller's.
    expect(&found, "forwarding-ipv4", "unseen", &["not permitted"]);
    expect(&found, "cgroup2", "ok", &[]);
    topology.take_down();
}

#[test]
fn forwarding_that_is_off_fails_what_goes_through_the_stack() {
    let topology = Topology::new(Shape::default());
    let off = ["forwarding-ipv4", "forwarding-ipv6"];
    topology.attach("web", 0, &["8080:80"]);
    let found = doctor(&topology, 0);
    for name in off {
        expect(&found, name, "ok", &["nothing needs it"]);
    }
    topology
        .portfwd(&["masquerade", "add", "10.88.0.0/16"])
        .expect_ok();
    let found = doctor(&topology, 5);
    expect(
        &found,
        off[0],
        "fail",
        &["masqueraded", "sysctl -w net.ipv4.ip_forward=1"],
    );
    expect(&found, off[1], "ok", &[]);
    topology.host.set_sysctl("ipv4/ip_forward", "1");
    topology.host.set_sysctl("ipv4/conf/br0/forwarding", "0");
    let found = doctor(&topology, 0);
    expect(
        &found,
        off[0],
        "warn",
        &["by br0", "net.ipv4.conf.br0.forwarding=1"],
    );
    // Behind a router: no link of the host leads to it.
    let far = "2001:db8:51::9";
    topology
        .host
        .ip(&format!("route add {far} via 2001:db8:3::9\n"));
    let target = ["attach", "far", "--ip", far, "-p", "[::]:81:80"];
    topology.portfwd(&target).expect_ok();
    let found = doctor(&topology, 5);
    expect(
        &found,
        off[1],
        "fail",
        &["without a veth", "net.ipv6.conf.all.forwarding=1"],
    );
    for key in ["ipv4/conf/br0/forwarding", "ipv6/conf/all/forwarding"] {
        topology.host.set_sysctl(key, "1");
    }
    let found = doctor(&topology, 0);
    for name in off {
        expect(&found, name, "ok", &["on, and"]);
    }
    topology.host.set_sysctl("ipv6/conf/all/forwarding", "0");
    topology.host.set_sysctl("ipv4/ip_forward", "0");
}

#[test]
fn strict_source_checks_are_named_where_there_are_several_uplinks() {
    let topology = Topology::new(Shape::default());
    topology.host.set_sysctl("ipv4/conf/eth0/rp_filter", "1");
    let words = ["strict on eth0", "forwarding is off"];
    expect(&doctor(&topology, 0), "rp-filter", "warn", &words);
    topology.host.set_sysctl("ipv4/ip_forward", "1");
    expect(
        &doctor(&topology, 0),
        "rp-filter",
        "ok",
        &["strict on eth0"],
    );
    topology.host.ip("route add default via 192.0.2.2 dev eth0
         route add default via 203.0.113.9 dev eth1 metric 9\n");
    let words = ["strict on eth0", "net.ipv4.conf.eth0.rp_filter=2"];
    expect(&doctor(&topology, 0), "rp-filter", "warn", &words);
    topology.host.set_sysctl("ipv4/conf/all/rp_filter", "2");
    expect(&doctor(&topology, 0), "rp-filter", "ok", &["on no device"]);
}

#[test]
fn ports_published_in_ipv6_are_told_that_the_host_has_none() {
    let topology = Topology::new(Shape::default());
    topology.attach("web", 0, &["8080:80"]);
    topology.host.set_sysctl("ipv6/conf/all/disable_ipv6", "1");
    expect(
        &doctor(&topology, 0),
        "ipv6",
        "warn",
        &["switched off", "disable_ipv6=0"],
    );
    topology.portfwd(&["detach", "web"]).expect_ok();
    topology.attach("web", 0, &["192.0.2.1:8080:80"]);
    expect(&doctor(&topology, 0), "ipv6", "ok", &["switched off"]);
}

#[test]
fn devices_that_came_later_are_named_until_they_are_served() {
    let topology = Topology::watched(Shape::default());
    topology.portfwd(&["up"]).expect_ok();
    topology.host.ip("link add eth7 type veth peer name eth8
         addr add 198.51.100.1/24 dev eth7\n");
    expect(
        &doctor(&topology, 0),
        "devices",
        "warn",
        &["eth7", "portfwd up"],
    );
    topology.portfwd(&["up"]).expect_ok();
    expect(&doctor(&topology, 0), "devices", "ok", &["eth7"]);
    topology.host.ip("link del eth7\n");
    topology.take_down();
}

#[test]
fn sctp_ports_are_told_to_be_out_of_reach_of_host_processes() {
    let topology = Topology::new(Shape::default());
    topology.attach("web", 0, &["3868:3868/sctp"]);
    let words = ["port 3868 of container \\\"web\\\"", "host processes"];
    expect(&doctor(&topology, 0), "sctp", "warn", &words);
}

/// What the hooks have seen goes to the container, whatever it did before.
#[test]
fn sockets_that_are_older_than_the_port_are_named() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    let to = SocketAddr::new(HOST, 8080);
    let bind = || {
        topology
            .host
            .run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))
    };
    let (connected, unconnected) = (bind().expect("a socket"), bind().expect("a socket"));
    connected.connect(to).expect("connect");
    unconnected.send_to(b"before", to).expect("send");
    topology.attach("web", 0, &["8080:80/udp"]);
    // A socket that is not connected is served with its next datagram.
    let answer = clients::ask_from(&unconnected, to).expect("an answer");
    assert_eq!(answer.label, "web");
    let late = bind().expect("a socket");
    late.connect(to).expect("connect");
    let own = format!("(pid {}) to {to}", std::process::id());
    let found = doctor(&topology, 0);
    expect(&found, "old-sockets", "warn", &[&own]);
    assert_eq!(found["old-sockets"].to_string().matches(" to ").count(), 2);
    drop(connected);
    expect(&doctor(&topology, 0), "old-sockets", "ok", &[]);
}

#[test]
fn a_host_that_leaves_no_port_is_told_what_that_costs() {
    let topology = Topology::new(Shape::default());
    let name = "masquerade-ports";
    let range = |range| topology.host.set_sysctl("ipv4/ip_local_port_range", range);
    range("1024 65535");
    topology.attach("web", 0, &["8080:80"]);
    let found = doctor(&topology, 0);
    expect(&found, name, "ok", &["no port", "nothing is masqueraded"]);
    topology.host.set_sysctl("ipv4/ip_forward", "1");
    let netns = topology.containers[1].netns();
    let (attach, add) = (
        [
            "attach",
            "db",
            "--netns",
            &netns,
            "-p",
            "90:90",
            "--masquerade",
        ],
        ["masquerade", "add", "10.88.0.0/24"],
    );
    let warning = "warning: masquerade has no port to give out";
    let command = "sysctl -w net.ipv4.ip_local_port_range=";
    for arguments in [&attach[..], &add] {
        let outcome = topology.portfwd(arguments).expect_ok();
        outcome.expect_stderr(warning).expect_stderr(command);
    }
    topology.host.set_sysctl("ipv6/conf/all/forwarding", "1");
    expect(
        &doctor(&topology, 0),
        name,
        "warn",
        &["no port", "dropped", command],
    );
    range("2000 65535");
    expect(&doctor(&topology, 0), name, "warn", &["976", command]);
    range("32768 60999");
    expect(&doctor(&topology, 0), name, "ok", &["36280"]);
    let quiet = topology.portfwd(&add).expect_ok();
    assert!(!quiet.stderr.contains("port"), "{}", quiet.stderr);
    let all = "ipv4/ip_local_reserved_ports";
    topology.host.set_sysctl(all, "1-32767,61000-65535");
    let reserved = ["no port", "net.ipv4.ip_local_reserved_ports"];
    expect(&doctor(&topology, 0), name, "warn", &reserved);
}
