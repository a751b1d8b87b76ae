//! Another build of portfwd over an instance that is up: its programs take the place of those that run, and nobody who
//! is connected notices. The other build is the mutant `reason`, which counts one reason under another number.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use portfwd_tests::clients::{self, Churn};
use portfwd_tests::deadline::until;
use portfwd_tests::kernel::{self, Object};
use portfwd_tests::kills::some_of;
use portfwd_tests::namespace::Namespace;
use portfwd_tests::portfwd::{self, Outcome, expect_error};
use portfwd_tests::ptrace::{self, Call, End, bpf};
use portfwd_tests::refusing::Refused;
use portfwd_tests::servers::Server;
use portfwd_tests::topology::{HOST, HOST6, Shape, Topology};
use portfwd_tests::tunnel::{Kind, Tunnel};

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

/// By which of its ways the kernel runs programs of TC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Tc {
    /// As it can.
    Any,
    /// As filters of a `clsact` qdisc, which is all that there is before Linux 6.6.
    Filters,
}

/// An instance that another build has brought up, with a container behind ports.
struct Stand {
    topology: Topology,
    other: PathBuf,
    tc: Tc,
    _servers: [Server; 2],
}

impl Stand {
    fn new(shape: Shape, tc: Tc, up: &[&str]) -> Self {
        let topology = Topology::watched(shape);
        let stand = Self {
            _servers: topology.serve(),
            topology,
            other: portfwd::mutant("reason"),
            tc,
        };
        let netns = stand.topology.containers[0].netns();
        stand.other(&[&["up"], up].concat());
        stand.other(&[
            "attach",
            "web",
            "--netns",
            &netns,
            "-p",
            "8080:80",
            "-p",
            "8080:80/udp",
        ]);
        stand
    }

    /// A command of the other build.
    fn other(&self, arguments: &[&str]) -> Outcome {
        let command = self.topology.command_of(&self.other, arguments);
        let outcome = match self.tc {
            Tc::Any => portfwd::finish(command),
            Tc::Filters => {
                ptrace::refuse(command, |call| call.attaches_tcx().then_some(Errno::EINVAL))
            }
        };
        outcome.expect_ok()
    }

    fn run(&self, arguments: &[&str]) -> Outcome {
        self.topology.portfwd(arguments)
    }

    /// SHA-256 of the object that runs.
    fn object(&self) -> String {
        let status = self.run(&["--json", "status"]).expect_ok().json();
        let hash = status["datapath"]["objectSha256"].as_str();
        hash.expect("a hash").to_owned()
    }

    /// The programs that are attached, as the kernel tells.
    fn attached(&self) -> BTreeSet<Object> {
        let mut found = kernel::pinned_objects(&self.topology.layout().join("links"));
        found.retain(|object| matches!(object, Object::Program(_)));
        // A filter has no link: its device tells of it.
        if self.tc == Tc::Filters || !kernel::has_tcx() {
            found.extend(self.filters());
        }
        found
    }

    fn filters(&self) -> BTreeSet<Object> {
        let mut found = BTreeSet::new();
        for device in self.devices() {
            for hook in ["ingress", "egress"] {
                let list = ["-j", "filter", "show", "dev", &device, hook];
                let filters = self.topology.host.output("tc", &list);
                let filters: serde_json::Value = serde_json::from_str(&filters).expect("JSON");
                let ids = filters.as_array().expect("a list").iter();
                let ids = ids.filter_map(|filter| filter["options"]["prog"]["id"].as_u64());
                found.extend(ids.map(|id| Object::Program(id.try_into().expect("an ID"))));
            }
        }
        found
    }

    fn devices(&self) -> Vec<String> {
        let links = self.topology.host.output("ip", &["-j", "link", "show"]);
        let links: serde_json::Value = serde_json::from_str(&links).expect("JSON");
        let links = links.as_array().expect("a list").iter();
        let name = |link: &serde_json::Value| link["ifname"].as_str().map(str::to_owned);
        links.filter_map(name).collect()
    }

    /// Asserts that every attachment runs a program of the object whose programs are the instance's.
    #[track_caller]
    fn assert_one_object_runs(&self) {
        let pinned = kernel::pinned_objects(&self.topology.layout().join("object/programs"));
        let attached = self.attached();
        assert!(attached.len() > 10, "{attached:?}");
        assert!(attached.is_subset(&pinned), "{attached:?} of {pinned:?}");
    }
}

/// SHA-256 of the object that the binary under test carries.
fn carried() -> String {
    let version = portfwd::finish({
        let mut command = portfwd::command();
        command.arg("--version");
        command
    });
    let line = version.stdout.lines().nth(1).expect("a second line");
    line.rsplit(' ').next().expect("a last word").to_owned()
}

/// Connections of the client, over both families and protocols, and one of a process of the host.
struct Open {
    streams: [TcpStream; 3],
    datagrams: [UdpSocket; 2],
}

impl Open {
    fn to(topology: &Topology) -> Self {
        let connect = |from, address| {
            let stream = clients::connect(from, at(address, 8080)).expect("connect");
            clients::ask_stream(&stream).expect("an answer");
            stream
        };
        let (client, host) = (&topology.client, &topology.host);
        let socket =
            |address| clients::datagram_socket(client, at(address, 8080)).expect("a socket");
        Self {
            streams: [
                connect(client, HOST),
                connect(client, HOST6),
                connect(host, LOCAL),
            ],
            datagrams: [socket(HOST), socket(HOST6)],
        }
    }

    #[track_caller]
    fn goes_on(&self) {
        for stream in &self.streams {
            clients::echo(stream, b"still there?").expect("an answer");
        }
        for socket in &self.datagrams {
            let answer = clients::ask_datagram(socket).expect("an answer");
            assert_eq!(answer.label, "web");
        }
    }
}

fn nobody_notices(stand: &Stand) {
    let open = Open::to(&stand.topology);
    let churns =
        [HOST, HOST6].map(|host| Churn::start(&stand.topology.client, at(host, 8080), 200));
    let (former, before) = (stand.object(), stand.attached());
    assert_ne!(former, carried());
    let listed = stand.topology.published();

    // What does not say so changes no program.
    stand.topology.attach("web", 0, &["8081:80"]);
    assert_eq!(stand.object(), former);
    stand
        .run(&["explain", "192.0.2.1:8080"])
        .expect_ok()
        .expect_stderr("warning: the programs that run are of another build");
    assert!(
        stand
            .run(&["doctor"])
            .stdout
            .contains("are of another build")
    );

    stand
        .run(&["up"])
        .expect_ok()
        .expect_stderr("the programs of another build are replaced");
    assert_eq!(stand.object(), carried());
    stand.assert_one_object_runs();
    until(
        "the former programs to be gone",
        Duration::from_secs(10),
        || (!before.iter().any(|program| program.lives())).then_some(()),
    );
    open.goes_on();
    for churn in churns {
        let report = churn.finish();
        assert!(report.failures.is_empty(), "{:?}", report.failures);
        assert!(report.served > 20, "{}", report.served);
    }

    stand.run(&["detach", "web", "-p", "8081:80"]).expect_ok();
    assert_eq!(stand.topology.published(), listed);
    let again = stand.run(&["up"]).expect_ok();
    assert!(!again.stderr.contains("another build"), "{again:?}");
    let explained = stand.run(&["explain", "192.0.2.1:8080"]).expect_ok();
    assert_eq!(explained.stderr, "");
    stand.topology.take_down();
}

#[test]
fn programs_are_swapped_under_traffic_and_nobody_notices() {
    nobody_notices(&Stand::new(
        Shape::default(),
        Tc::Any,
        &["--xdp", "generic"],
    ));
}

#[test]
fn programs_are_swapped_where_native_xdp_runs() {
    let up = ["--device", "eth0", "--xdp", "native"];
    nobody_notices(&Stand::new(Shape::routed(), Tc::Any, &up));
}

#[test]
fn filters_are_swapped_and_nobody_notices() {
    nobody_notices(&Stand::new(Shape::default(), Tc::Filters, &[]));
}

/// Kills `up` from the first pin of its programs on, of this build and of the other in turn.
fn killed_anywhere(tc: Tc) {
    let stand = Stand::new(Shape::default(), tc, &[]);
    let former = stand.object();
    let open = Open::to(&stand.topology);
    let up = ["up"];
    let (mut calls, mut begun) = (0, 0);
    let count = |call: &Call| {
        calls += 1;
        let next = call.is_pin(bpf::OBJ_PIN, "/next/stages");
        begun = if next { calls } else { begun };
        None
    };
    ptrace::refuse(stand.topology.command(&up), count).expect_ok();
    assert!(0 < begun && begun < calls, "{begun} of {calls}");
    // Each takes the kernel two verifications of all programs.
    for (turn, call) in some_of(calls - begun, 10).enumerate() {
        let (own, other) = (
            stand.topology.command(&up),
            stand.topology.command_of(&stand.other, &up),
        );
        let (command, becomes) = match turn % 2 {
            0 => (other, &former),
            _ => (own, &carried()),
        };
        let end = ptrace::run(command, begun + call);
        open.goes_on();
        stand.topology.attach("web", 0, &["8081:80"]);
        let next = stand.topology.layout().join("next");
        assert!(!next.exists(), "killed at {call}: {end:?}");
        stand.assert_one_object_runs();
        stand.run(&["detach", "web", "-p", "8081:80"]).expect_ok();
        match turn % 2 {
            0 => stand.other(&up),
            _ => stand.run(&up).expect_ok(),
        };
        assert_eq!(&stand.object(), becomes, "killed at {call}: {end:?}");
        stand.assert_one_object_runs();
        open.goes_on();
    }
    stand.topology.take_down();
}

#[test]
fn a_swap_that_is_killed_anywhere_serves_and_leaves_nothing_to_the_next_command() {
    killed_anywhere(Tc::Any);
}

#[test]
fn a_swap_of_filters_that_is_killed_anywhere_leaves_nothing_either() {
    killed_anywhere(Tc::Filters);
}

#[test]
fn an_instance_whose_swap_was_killed_is_taken_down_whole() {
    for tc in [Tc::Any, Tc::Filters] {
        let stand = Stand::new(Shape::default(), tc, &[]);
        let exchanges = |call: &Call| {
            let path = stand.topology.layout().join("next").display().to_string();
            call.number == nix::libc::SYS_renameat2 && call.text(call.arguments[1]) == path
        };
        let end = ptrace::kill_at(stand.topology.command(&["up"]), exchanges);
        assert!(matches!(end, End::Killed), "{end:?}");
        stand.topology.take_down();
    }
}

#[test]
fn a_swap_that_the_kernel_refuses_is_told_and_serves() {
    let stand = Stand::new(Shape::default(), Tc::Any, &[]);
    let former = stand.object();
    let open = Open::to(&stand.topology);
    let updates = |call: &Call| call.is_bpf(bpf::LINK_UPDATE);
    let looks = |call: &Call| call.is_pin(bpf::OBJ_GET, "/object/programs/tc_link");
    let exchanges = |call: &Call| call.number == nix::libc::SYS_renameat2;
    let rows: [(Refused, &str); 3] = [
        (&updates, "cannot swap the program of "),
        (&looks, "cannot look at /"),
        (&exchanges, "cannot exchange /"),
    ];
    for (refused, says) in rows {
        let up = stand.topology.command(&["up"]);
        let outcome = ptrace::refuse(up, |call| refused(call).then_some(Errno::ENOMEM));
        expect_error(outcome, 1, says);
        open.goes_on();
        stand.topology.attach("db", 1, &["9090:80"]);
        stand.run(&["detach", "db"]).expect_ok();
        assert_eq!(stand.object(), former);
        stand.assert_one_object_runs();
    }
    stand.topology.take_down();
}

#[test]
fn the_log_is_switched_on_and_off_under_traffic() {
    let stand = Stand::new(Shape::default(), Tc::Any, &[]);
    stand.run(&["up"]).expect_ok();
    let open = Open::to(&stand.topology);
    expect_error(stand.run(&["log"]), 1, "logs nothing");
    for level in ["info", "off"] {
        let before = stand.attached();
        let up = stand.run(&["up", "--log-level", level]).expect_ok();
        assert!(!up.stderr.contains("another build"), "{up:?}");
        assert!(stand.attached().is_disjoint(&before), "{level}");
        open.goes_on();
        // What does not name a level leaves it.
        let before = stand.attached();
        stand.run(&["up"]).expect_ok();
        assert_eq!(stand.attached(), before);
    }
    expect_error(stand.run(&["log"]), 1, "logs nothing");
    stand.topology.take_down();
}

#[test]
fn a_change_of_the_log_that_is_killed_is_known() {
    let stand = Stand::new(Shape::default(), Tc::Any, &[]);
    stand.run(&["up"]).expect_ok();
    let level = || {
        let status = stand.run(&["--json", "status"]).expect_ok().json();
        status["datapath"]["logLevel"].as_str().map(str::to_owned)
    };
    assert_eq!(level().as_deref(), Some("off"));
    let mut exchanged = false;
    let after_exchange = |call: &Call| {
        let is_after = exchanged;
        exchanged |= call.number == nix::libc::SYS_renameat2;
        is_after
    };
    let up = stand.topology.command(&["up", "--log-level", "info"]);
    let end = ptrace::kill_at(up, after_exchange);
    assert!(matches!(end, End::Killed), "{end:?}");
    assert_eq!(level().as_deref(), Some("info"));
    let before = stand.attached();
    stand.run(&["up", "--log-level", "off"]).expect_ok();
    assert_eq!(level().as_deref(), Some("off"));
    assert!(stand.attached().is_disjoint(&before));
    stand.topology.take_down();
}

/// Programs of two builds would call each other by one table of stages otherwise.
#[test]
fn a_device_that_needs_more_programs_gets_all_of_one_build() {
    let stand = Stand::new(Shape::default(), Tc::Any, &[]);
    let open = Open::to(&stand.topology);
    let remote = Namespace::new("remote");
    let host = &stand.topology.host;
    let _wire = Tunnel::new(Kind::Tun, (host, "tun0"), (&remote, "tun0"));
    host.output("ip", &["addr", "add", "198.18.0.1/24", "dev", "tun0"]);
    host.output("ip", &["link", "set", "tun0", "up"]);
    stand.topology.attach("db", 1, &["9090:80"]);
    assert_eq!(stand.object(), carried());
    stand.assert_one_object_runs();
    open.goes_on();
}

#[test]
fn what_is_asked_for_in_vain_changes_no_program() {
    let stand = Stand::new(Shape::default(), Tc::Any, &[]);
    let former = (stand.object(), stand.attached());
    for up in [
        &["up", "--device", "none9"][..],
        &["up", "--log-level", "info", "--device", "none9"],
    ] {
        expect_error(stand.run(up), 4, "no such device: \"none9\"");
        assert_eq!((stand.object(), stand.attached()), former);
    }
}

/// The kernel takes its time to verify them.
#[test]
fn nobody_waits_while_programs_are_loaded() {
    let stand = Stand::new(Shape::default(), Tc::Any, &[]);
    let (mut calls, mut loaded, mut locked) = (0, 0, 0);
    let count = |call: &Call| {
        calls += 1;
        if call.is_bpf(bpf::PROG_LOAD) {
            loaded = calls;
        }
        if call.number == nix::libc::SYS_flock && locked == 0 {
            locked = calls;
        }
        None
    };
    ptrace::refuse(stand.topology.command(&["up"]), count).expect_ok();
    assert!(0 < loaded && loaded < locked, "{loaded} {locked}");
    assert_eq!(stand.object(), carried());
}
