//! Containers, devices and namespaces that change while they are published, and commands that fail.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::process::Stdio;

use portfwd_tests::clients::{self, Protocol};
use portfwd_tests::deadline::{PATIENCE, until};
use portfwd_tests::kernel::{self, Object};
use portfwd_tests::namespace::Namespace;
use portfwd_tests::portfwd::{self, Outcome, expect_error};
use portfwd_tests::topology::{FOREIGN, HOST, HOST6, Shape, Topology};

fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

#[test]
fn a_container_that_has_moved_is_not_attached_to_where_it_was() {
    for address in ["10.88.0.2", "10.88.0.9"] {
        let topology = Topology::new(Shape::default());
        topology.attach("web", 0, &["8080:80"]);
        topology.lose_link();
        topology.make_link_again(address);
        let before = topology.published();
        for spec in ["8080:80", "8081:80"] {
            let outcome = topology.try_attach("web", 0, &[spec]);
            expect_error(outcome, 1, &format!("not with address {address}"));
            let known = topology.portfwd(&["attach", "web", "-p", spec]);
            expect_error(known, 1, "the link of container \"web\" is gone");
        }
        assert_eq!(topology.published(), before);
        topology.portfwd(&["detach", "web"]).expect_ok();
        topology.attach("web", 0, &["8080:80"]);
        let published = topology.published();
        assert!(
            published.contains(&format!("web tcp 0.0.0.0:8080 -> {address}:80")),
            "{published:?}"
        );
    }
}

#[test]
fn a_container_by_address_that_was_made_anew_is_refused_too() {
    let topology = Topology::new(Shape::default());
    let attach = ["attach", "web", "--ip", "10.88.0.2", "-p", "8080:80"];
    topology.portfwd(&attach).expect_ok();
    topology.lose_link();
    topology.make_link_again("10.88.0.2");
    expect_error(topology.portfwd(&attach), 1, "not with address 10.88.0.2");
}

#[test]
fn a_family_that_a_container_gets_later_is_published() {
    let topology = Topology::new(Shape::default());
    let container = &topology.containers[0].namespace;
    container.ip("addr del fd88::2/64 dev eth0\n");
    topology.attach("web", 0, &["8080:80"]);
    container.ip("addr add fd88::2/64 dev eth0 nodad\n");
    let _servers = topology.serve();
    let outcome = topology.attach("web", 0, &["8081:80"]);
    assert_eq!(
        outcome.stdout,
        "80/tcp -> 0.0.0.0:8081\n80/tcp -> [::]:8081\n"
    );
    for address in [HOST, HOST6] {
        clients::ask(&topology.client, Protocol::Tcp, at(address, 8081)).expect("an answer");
    }
}

#[test]
fn an_identical_attach_lets_the_container_send_from_the_addresses_that_it_has_now() {
    let topology = Topology::new(Shape::forwarding());
    let foreign = &topology.foreign;
    let _server = portfwd_tests::servers::Server::start(foreign, &[FOREIGN], 7, "foreign");
    topology.attach("web", 0, &["8080:80"]);
    let container = &topology.containers[0].namespace;
    container.ip("addr add 10.88.0.77/24 dev eth0\n");
    let asks_from = |own: &str| {
        let own = SocketAddr::new(own.parse().expect("an address"), 0);
        let socket = container
            .run(|| std::net::UdpSocket::bind(own))
            .expect("bind an address");
        clients::ask_from(&socket, at(FOREIGN, 7))
    };
    topology.attach("web", 0, &["8080:80"]);
    assert_eq!(asks_from("10.88.0.77").expect("an answer").label, "foreign");
    // And no more from one that it had.
    let sources = || {
        let text = topology.host.output(
            "bpftool",
            &[
                "map",
                "dump",
                "pinned",
                &topology
                    .layout()
                    .join("maps/link_sources")
                    .display()
                    .to_string(),
            ],
        );
        text.matches("key").count()
    };
    let before = sources();
    container.ip("addr del 10.88.0.77/24 dev eth0\n");
    topology.attach("web", 0, &["8080:80"]);
    assert!(sources() < before, "a former address stays allowed");
}

#[test]
fn a_first_attach_that_fails_leaves_nothing() {
    let topology = Topology::new(Shape::default());
    let _holder = topology
        .host
        .run(|| TcpListener::bind("0.0.0.0:8080"))
        .expect("listen");
    let netns = topology.containers[0].netns();
    let attempts: [(&[&str], i32, &str); 3] = [
        (&["attach", "nobody", "-p", "8081:80"], 4, "nobody"),
        (
            &["attach", "web", "--netns", &netns, "-p", "8080:80"],
            3,
            "8080",
        ),
        (
            &["attach", "web", "--ip", "10.88.0.2", "-p", "[::]:8081:80"],
            1,
            "no IPv6 address",
        ),
    ];
    for (arguments, code, named) in attempts {
        expect_error(topology.portfwd(arguments), code, named);
        assert!(kernel::pins(topology.bpffs()).is_empty(), "{arguments:?}");
    }
}

/// Runs portfwd on a directory that is no bpffs yet; what it mounts is unmounted when this is dropped.
struct Unmounted(tempfile::TempDir);

impl Unmounted {
    fn new() -> Self {
        Self(tempfile::tempdir_in("/run").expect("a directory"))
    }

    fn run<'a>(&self, host: impl Into<Option<&'a Namespace>>, arguments: &[&str]) -> Outcome {
        let mut command = portfwd::command();
        command.arg("--bpffs").arg(self.0.path());
        if let Some(host) = host.into() {
            command.arg("--host-netns").arg(host.path());
        }
        command.args(arguments);
        portfwd::finish(command)
    }

    fn is_mounted(&self) -> bool {
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("read the mounts");
        mounts.contains(&format!(" {} ", self.0.path().display()))
    }
}

impl Drop for Unmounted {
    fn drop(&mut self) {
        // Nothing is mounted if all is well.
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn no_mount_is_left_of_a_dry_run_or_a_failed_up() {
    let topology = Topology::new(Shape::default());
    let netns = topology.containers[0].netns();
    let unmounted = Unmounted::new();
    let dry = [
        "attach",
        "web",
        "--netns",
        &netns,
        "-p",
        "8080:80",
        "--dry-run",
    ];
    unmounted.run(&topology.host, &dry).expect_ok();
    assert!(!unmounted.is_mounted(), "a dry run mounts");
    for arguments in [["--device", "nosuch0"], ["--xdp", "native"]] {
        let arguments = [&["up"][..], &arguments].concat();
        let outcome = unmounted.run(&topology.host, &arguments);
        assert_ne!(outcome.code, 0);
        assert!(!unmounted.is_mounted(), "{arguments:?} leaves its mount");
    }
}

#[test]
fn a_second_instance_in_another_bpffs_is_refused() {
    let topology = Topology::watched(Shape::default());
    topology.attach("web", 0, &["8080:80"]);
    let unmounted = Unmounted::new();
    let netns = topology.containers[1].netns();
    let attach = ["attach", "db", "--netns", &netns, "-p", "8081:80"];
    let outcome = unmounted.run(&topology.host, &attach);
    expect_error(outcome, 1, "already has an instance in another bpffs");
    assert!(!unmounted.is_mounted());
    // After `down` there is none.
    topology.take_down();
    let attached = unmounted.run(&topology.host, &attach);
    let down = unmounted.run(&topology.host, &["down"]);
    attached.expect_ok();
    down.expect_ok();
}

#[test]
fn an_instance_whose_namespace_is_gone_can_be_taken_down() {
    let unmounted = Unmounted::new();
    let run = |arguments: &[&str]| unmounted.run(None, arguments);
    let host = Namespace::new("gone");
    unmounted.run(&host, &["up"]).expect_ok();
    let objects = kernel::pinned_objects(unmounted.0.path());
    for command in ["list", "down"] {
        expect_error(run(&[command]), 1, "belongs to network namespace");
    }
    drop(host);
    expect_error(run(&["list"]), 1, "a network namespace that is gone");
    run(&["down"]).expect_ok();
    assert!(!unmounted.is_mounted());
    until("maps, programs and links to go", PATIENCE, || {
        objects
            .iter()
            .all(|object: &Object| !object.lives())
            .then_some(())
    });
}

#[test]
fn an_instance_with_missing_pins_can_be_taken_down() {
    let topology = Topology::watched(Shape::default());
    topology.attach("web", 0, &["8080:80"]);
    let objects = topology.objects();
    std::fs::remove_file(topology.layout().join("maps/forwards")).expect("remove a pin");
    expect_error(topology.portfwd(&["list"]), 1, "forwards");
    let down = topology.portfwd(&["down"]).expect_ok();
    let _ = down.expect_stderr("warning: cannot open");
    topology.assert_nothing_left(&objects);
}

#[test]
fn the_egress_hooks_go_with_the_last_forward_through_the_stack() {
    let topology = Topology::watched(Shape::default());
    let shown = || topology.portfwd(&["status"]).expect_ok().stdout;
    topology
        .host
        .ip("route add 198.51.100.0/24 via 203.0.113.9\n");
    let attach = ["attach", "far", "--ip", "198.51.100.9", "-p", "8500:80"];
    topology.portfwd(&attach).expect_ok();
    topology.attach("web", 0, &["8080:80"]);
    assert!(shown().contains("tc egress"));
    topology.portfwd(&["detach", "far"]).expect_ok();
    assert!(!shown().contains("tc egress"), "{}", shown());
    topology.host.ip("route del 198.51.100.0/24\n");
    topology.take_down();
}

#[test]
fn xdp_is_attached_to_all_devices_or_to_none() {
    let topology = Topology::watched(Shape::default());
    topology.attach("web", 0, &["8080:80"]);
    let before = topology.state();
    // A bridge has no driver to run a program in.
    expect_error(
        topology.portfwd(&["up", "--xdp", "native"]),
        1,
        "br0 (native)",
    );
    assert_eq!(topology.state(), before);
    let native = ["up", "--device", "eth0", "--xdp", "native"];
    topology.portfwd(&native).expect_ok();
    assert_ne!(topology.state(), before);
    topology.portfwd(&["up"]).expect_ok();
    assert_ne!(topology.state(), before, "up alone leaves XDP as it is");
    topology.portfwd(&["up", "--xdp", "off"]).expect_ok();
    assert_eq!(topology.state(), before);
    topology.take_down();
}

#[test]
fn the_log_ends_with_its_instance() {
    let topology = Topology::new(Shape::default());
    topology.portfwd(&["up", "--log-level", "info"]).expect_ok();
    let mut log = topology
        .command(&["log"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start portfwd log");
    topology.portfwd(&["down"]).expect_ok();
    let ended = until("portfwd log to end", PATIENCE, || {
        log.try_wait().expect("ask for its status")
    });
    // It may have been too late to find the instance at all.
    assert!(matches!(ended.code(), Some(0 | 1)), "{ended}");
}

#[test]
fn a_container_port_alone_names_every_forward_to_it() {
    let topology = Topology::new(Shape::default());
    let all = [
        "8080:80",
        "192.0.2.1:8081:80",
        "127.0.0.1:8082:80",
        "8083:81",
    ];
    topology.attach("web", 0, &all);
    topology.portfwd(&["detach", "web", "-p", "80"]).expect_ok();
    assert_eq!(
        topology.published(),
        [
            "web tcp 0.0.0.0:8083 -> 10.88.0.2:81",
            "web tcp [::]:8083 -> [fd88::2]:81",
        ]
    );
}

#[test]
fn an_address_that_is_not_the_hosts_is_warned_of() {
    let topology = Topology::new(Shape::default());
    let outcome = topology.attach("web", 0, &["203.0.113.77:8080:80", "127.0.0.1:8081:80"]);
    assert_eq!(
        outcome.stderr,
        "warning: 203.0.113.77 is not an address of the host now\n"
    );
}
