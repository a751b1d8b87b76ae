//! A host port has one owner.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::Stdio;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn6, bind, listen, setsockopt, socket,
    sockopt::Ipv6V6Only,
};

use portfwd_tests::clients::{self, Closed, Protocol};
use portfwd_tests::namespace::Namespace;
use portfwd_tests::portfwd::{self, Outcome};
use portfwd_tests::servers::Server;
use portfwd_tests::topology::{HOST, HOST6, Shape, Topology};

#[test]
fn a_second_owner_is_refused_and_told_who_holds_the_port() {
    let topology = Topology::new(Shape::default());
    topology.attach("web", 0, &["8080:80"]);
    let before = topology.published();
    let outcome = topology.try_attach("db", 1, &["8080:80"]).expect_code(3);
    let lines: Vec<&str> = outcome.stderr.lines().collect();
    assert_eq!(
        lines[..2],
        [
            "error: bind for 0.0.0.0:8080 failed: port is already allocated",
            "held by: container \"web\" (tcp)",
        ]
    );
    assert!(lines[2].starts_with("hint: "), "{lines:?}");
    assert_eq!(outcome.stdout, "");
    assert_eq!(topology.published(), before);
}

#[test]
fn the_wildcard_overlaps_every_address_and_the_other_way_round() {
    let topology = Topology::new(Shape::default());
    topology.attach(
        "web",
        0,
        &["8080:80", "192.0.2.1:8081:80", "[2001:db8:1::1]:8082:80"],
    );
    for (taken, named) in [
        ("192.0.2.1:8080:80", "192.0.2.1:8080"),
        ("127.0.0.1:8080:80", "127.0.0.1:8080"),
        ("[::1]:8080:80", "[::1]:8080"),
        ("8081:80", "0.0.0.0:8081"),
        ("8082:80", "[::]:8082"),
        ("192.0.2.1:8081:81", "192.0.2.1:8081"),
        ("8070-8089:70-89", "0.0.0.0:8080"),
    ] {
        topology
            .try_attach("db", 1, &[taken])
            .expect_code(3)
            .expect_stderr(&format!(
                "bind for {named} failed: port is already allocated"
            ))
            .expect_stderr("held by: container \"web\" (tcp)");
    }
}

#[test]
fn another_protocol_address_or_family_does_not_collide() {
    let topology = Topology::new(Shape::default());
    topology.attach("web", 0, &["192.0.2.1:8080:80", "0.0.0.0:8081:80"]);
    topology.attach(
        "db",
        1,
        &[
            "192.0.2.10:8080:80",
            "192.0.2.1:8080:80/udp",
            "[::]:8080:80",
            "[::]:8081:80",
        ],
    );
    assert_eq!(topology.published().len(), 6);
}

#[test]
fn an_attach_of_ten_ports_of_which_one_is_taken_publishes_none() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology.attach("web", 0, &["8085:80"]);
    let before = topology.published();
    let specs: Vec<String> = (8080..8090).map(|port| format!("{port}:80")).collect();
    let specs: Vec<&str> = specs.iter().map(String::as_str).collect();
    topology
        .try_attach("db", 1, &specs)
        .expect_code(3)
        .expect_stderr("0.0.0.0:8085");
    assert_eq!(topology.published(), before);
    for port in (8080..8090).filter(|port| *port != 8085) {
        for address in [HOST, HOST6] {
            let to = SocketAddr::new(address, port);
            assert_eq!(
                clients::closed(&topology.client, Protocol::Tcp, to),
                Closed::Refused
            );
        }
    }
}

#[test]
fn of_fifty_concurrent_attaches_exactly_one_wins() {
    let topology = Topology::watched(Shape::default());
    let _servers = topology.serve();
    let racers: Vec<_> = (0..50)
        .map(|number| {
            let netns = topology.containers[number % 2].netns();
            let name = format!("racer{number}");
            let mut command =
                topology.command(&["attach", &name, "--netns", &netns, "-p", "8080:80"]);
            command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            command.spawn().expect("start portfwd")
        })
        .collect();
    let outcomes: Vec<_> = racers
        .into_iter()
        .map(|racer| racer.wait_with_output().expect("wait for portfwd"))
        .collect();
    let winners = outcomes
        .iter()
        .filter(|outcome| outcome.status.success())
        .count();
    assert_eq!(winners, 1);
    let published = topology.published();
    assert_eq!(published.len(), 2, "{published:?}");
    let owner = published[0].split(' ').next().expect("a name").to_owned();
    for outcome in outcomes.iter().filter(|outcome| !outcome.status.success()) {
        let stderr = String::from_utf8_lossy(&outcome.stderr);
        assert_eq!(outcome.status.code(), Some(3), "{stderr}");
        assert!(
            stderr.contains(&format!("held by: container \"{owner}\" (tcp)")),
            "{stderr}"
        );
    }
    let answer = clients::ask(&topology.client, Protocol::Tcp, SocketAddr::new(HOST, 8080));
    assert!(answer.is_ok(), "{answer:?}");
    topology.take_down();
}

#[test]
fn a_listening_process_of_the_host_holds_its_port() {
    let topology = Topology::new(Shape::default());
    let server = Server::start(&topology.host, &[HOST], 8080, "host");
    let outcome = topology
        .try_attach("web", 0, &["8080:80"])
        .expect_code(3)
        .expect_stderr("8080 failed: port is already allocated")
        .expect_stderr("held by: process ");
    let pid = format!("(pid {})", std::process::id());
    assert!(
        outcome.stderr.contains(&pid),
        "{} lacks {pid}",
        outcome.stderr
    );
    // Another address, another port and a socket of another namespace do not matter.
    topology.attach("web", 0, &["192.0.2.10:8080:80", "8081:80"]);
    let _elsewhere = Server::start(
        &topology.client,
        &[portfwd_tests::topology::CLIENT],
        8082,
        "x",
    );
    topology.attach("web", 0, &["8082:80"]);
    drop(server);
    topology.portfwd(&["detach", "web"]).expect_ok();
    topology.attach("web", 0, &["8080:80"]);
}

/// A socket of IPv6 that receives IPv4 as well, or does not.
fn bind_v6(namespace: &Namespace, kind: SockType, port: u16, alone: bool) -> OwnedFd {
    namespace.run(|| {
        let flags = SockFlag::SOCK_CLOEXEC;
        let bound = socket(AddressFamily::Inet6, kind, flags, None).expect("a socket");
        setsockopt(&bound, Ipv6V6Only, &alone).expect("set IPV6_V6ONLY");
        let any = SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0);
        bind(bound.as_raw_fd(), &SockaddrIn6::from(any)).expect("bind");
        if kind == SockType::Stream {
            listen(&bound, Backlog::MAXCONN).expect("listen");
        }
        bound
    })
}

#[test]
fn a_socket_of_ipv6_holds_ipv4_as_well_unless_it_is_for_ipv6_alone() {
    let topology = Topology::new(Shape::default());
    for (kind, protocol) in [(SockType::Stream, "tcp"), (SockType::Datagram, "udp")] {
        for (port, alone) in [(7001, true), (7002, false)] {
            let _bound = bind_v6(&topology.host, kind, port, alone);
            let v4 = format!("0.0.0.0:{port}:80/{protocol}");
            let code = if alone { 0 } else { 3 };
            topology.try_attach("web", 0, &[&v4]).expect_code(code);
            let v6 = format!("[::]:{port}:80/{protocol}");
            topology.try_attach("web", 0, &[&v6]).expect_code(3);
        }
    }
}

/// Attaches by force, with these SPECs besides.
fn by_force(
    topology: &Topology,
    name: &str,
    container: usize,
    specs: &[&str],
    more: &[&str],
) -> Outcome {
    let netns = topology.containers[container].netns();
    let mut arguments = vec!["attach", name, "--netns", &netns, "--force"];
    arguments.extend(specs.iter().flat_map(|spec| ["-p", spec]));
    arguments.extend(more);
    topology.portfwd(&arguments)
}

// Fails if listeners or rules count although they are to be overridden (`resolve_by_force` in collision.rs), or
// containers do not.
#[test]
fn force_takes_ports_from_processes_and_rules_and_says_so_but_not_from_containers() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    let _process = Server::start(&topology.host, &[HOST, HOST6], 8080, "host");
    let rule = "add table ip other
        add chain ip other pre { type nat hook prerouting priority -100; }
        add rule ip other pre tcp dport 8081 dnat to 10.4.0.9:80\n";
    topology.host.feed("nft", &["-f", "-"], rule);
    let specs = ["8080-8082:80-82", "8080:80/udp"];
    let before = topology.published();
    topology.try_attach("web", 0, &specs).expect_code(3);
    assert_eq!(topology.published(), before);

    let tried = by_force(&topology, "web", 0, &specs, &["--dry-run"]).expect_ok();
    assert_eq!(topology.published(), before);
    let outcome = by_force(&topology, "web", 0, &specs, &[]).expect_ok();
    assert_eq!(
        (&tried.stdout, &tried.stderr),
        (&outcome.stdout, &outcome.stderr)
    );
    let pid = format!("(pid {})", std::process::id());
    for words in [
        "warning: 0.0.0.0:8080 (tcp) no longer reaches process ",
        "warning: 0.0.0.0:8080 (udp) no longer reaches process ",
        "warning: [::]:8080 (tcp) no longer reaches process ",
        "warning: 0.0.0.0:8081 (tcp) no longer reaches nftables rule: table ip other, chain pre",
        &pid,
    ] {
        assert!(outcome.stderr.contains(words), "{words}: {outcome:?}");
    }
    for address in [HOST, HOST6] {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for from in [&topology.client, &topology.host] {
                let to = SocketAddr::new(address, 8080);
                let answer = clients::ask(from, protocol, to).expect("an answer");
                assert_eq!(answer.label, "web", "{protocol:?} {to}");
            }
        }
    }
    by_force(&topology, "db", 1, &["8080:80"], &[])
        .expect_code(3)
        .expect_stderr("held by: container \"web\" (tcp)");
    // A port that is chosen is one that nobody has, whether or not others could be overridden.
    let chosen = by_force(&topology, "db", 1, &["80"], &[]).expect_ok();
    assert!(!chosen.stderr.contains("no longer"), "{chosen:?}");
}

#[test]
fn an_identical_forward_again_changes_nothing_and_another_target_collides() {
    let topology = Topology::new(Shape::default());
    let first = topology.attach("web", 0, &["8080:80"]);
    let before = topology.published();
    assert_eq!(topology.attach("web", 0, &["8080:80"]).stdout, first.stdout);
    assert_eq!(topology.published(), before);
    topology
        .try_attach("web", 0, &["8080:81"])
        .expect_code(3)
        .expect_stderr("held by: container \"web\" (tcp)");
    // More ports are added; another namespace under a known name is an error with a way out.
    topology.attach("web", 0, &["8081:81"]);
    topology
        .try_attach("web", 1, &["8082:80"])
        .expect_code(1)
        .expect_stderr("container \"web\" is known with ")
        .expect_stderr("hint: ");
    assert_eq!(topology.published().len(), 4);
}

#[test]
fn a_second_instance_of_one_host_namespace_is_refused() {
    let topology = Topology::new(Shape::default());
    topology.attach("web", 0, &["8080:80"]);
    let netns = topology.containers[1].netns();
    let mut command = portfwd::command();
    command
        .args(["--instance", "second", "--bpffs"])
        .arg(topology.bpffs())
        .arg("--host-netns")
        .arg(topology.host.path())
        .args(["attach", "db", "--netns", &netns, "-p", "8081:80"]);
    portfwd::finish(command)
        .expect_code(1)
        .expect_stderr(topology.instance());
    assert_eq!(topology.published().len(), 2);
}
