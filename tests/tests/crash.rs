//! A command that is killed at any of its system calls leaves what was there, or what is new.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use portfwd_tests::clients::{self, Protocol};
use portfwd_tests::kernel::Object;
use portfwd_tests::kills::{self, kills};
use portfwd_tests::namespace::Namespace;
use portfwd_tests::servers::Server;
use portfwd_tests::topology::{HOST, HOST6, Shape, Topology};

/// What the killed command publishes or withdraws, beside what is there throughout.
/// The last one has a block of ports, and a port on either side of it.
const SPECS: [&str; 4] = [
    "9090:80",
    "9091:80",
    "9090:80/udp",
    "192.0.2.1:9215-9472:1-258",
];
/// How many forwards they are: one of each family, but for an address.
const FORWARDS: usize = 2 * SPECS.len() - 1;
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A topology with servers, and a port of the second container that has to stay.
struct Stand {
    topology: Topology,
    _servers: [Server; 2],
}

impl Stand {
    fn new() -> Self {
        let topology = Topology::watched(Shape::default());
        let servers = topology.serve();
        Self {
            topology,
            _servers: servers,
        }
    }

    fn with_a_port_that_stays() -> Self {
        let stand = Self::new();
        stand.topology.attach("stays", 1, &["8070:80"]);
        stand
    }

    /// The arguments of the attach that is killed.
    fn attach_arguments(&self) -> Vec<String> {
        attach_arguments(self.topology.containers[0].netns())
    }

    /// Whether the host has a link that portfwd made.
    fn has_link(&self) -> bool {
        let links = self.topology.host.output("ip", &["-o", "link", "show"]);
        links.contains("portfwd: container") || links.contains(": pf0")
    }

    fn kill(&self, arguments: &[&str], at: u32) {
        kills::kill(&self.topology, arguments, at);
    }

    fn calls(&self, arguments: &[&str]) -> u32 {
        kills::calls(&self.topology, arguments)
    }

    /// Whether the ports of [`SPECS`] are published, as packets and host sockets see it.
    ///
    /// # Panics
    /// When some are and some are not.
    fn all_or_nothing(&self, at: u32) -> bool {
        let mut seen = Vec::new();
        for address in [HOST, HOST6] {
            for (protocol, port) in [
                (Protocol::Tcp, 9090),
                (Protocol::Tcp, 9091),
                (Protocol::Udp, 9090),
            ] {
                let to = SocketAddr::new(address, port);
                seen.push(clients::serves(&self.topology.client, protocol, to));
            }
        }
        for to in [SocketAddr::new(LOOPBACK, 9090), SocketAddr::new(HOST, 9294)] {
            seen.push(clients::serves(&self.topology.host, Protocol::Tcp, to));
        }
        let to = SocketAddr::new(HOST, 9294);
        seen.push(clients::serves(&self.topology.client, Protocol::Tcp, to));
        let all = seen.iter().all(|serves| *serves);
        let nothing = seen.iter().all(|serves| !*serves);
        assert!(all || nothing, "killed at {at}: {seen:?}");
        all
    }

    fn assert_the_other_port_stays(&self, at: u32) {
        for (from, address) in [
            (&self.topology.client, HOST),
            (&self.topology.client, HOST6),
            (&self.topology.host, LOOPBACK),
        ] {
            let answer = clients::ask(from, Protocol::Tcp, SocketAddr::new(address, 8070));
            assert!(answer.is_ok(), "killed at {at}: {answer:?}");
        }
    }

    /// The tables agree with the packets.
    fn assert_listed(&self, at: u32, published: bool) {
        let lines = self.topology.published();
        let of_web = lines.iter().filter(|line| line.starts_with("web ")).count();
        let expected = if published { FORWARDS } else { 0 };
        assert_eq!(of_web, expected, "killed at {at}: {lines:?}");
    }
}

/// An attach of [`SPECS`].
fn attach_arguments(netns: String) -> Vec<String> {
    let mut arguments = vec!["attach".to_owned(), "web".to_owned()];
    arguments.extend(["--netns".to_owned(), netns]);
    for spec in SPECS {
        arguments.extend(["-p".to_owned(), spec.to_owned()]);
    }
    arguments
}

/// A container without a network, with a server for when it has one, and the attach that connects it.
struct Unconnected {
    namespace: Namespace,
    _server: Server,
}

impl Unconnected {
    fn new() -> Self {
        let namespace = Namespace::new("bare");
        let server = Server::start(&namespace, &[Ipv6Addr::UNSPECIFIED.into()], 80, "web");
        Self {
            namespace,
            _server: server,
        }
    }

    fn attach_arguments(&self) -> Vec<String> {
        let mut arguments = attach_arguments(self.namespace.path().display().to_string());
        for connection in ["10.99.0.1/24,10.99.0.2/24", "fd99::1/64,fd99::2/64"] {
            arguments.extend(["--connect".to_owned(), connection.to_owned()]);
        }
        arguments
    }

    /// Whether it has an address.
    fn is_connected(&self) -> bool {
        let addresses = self.namespace.output("ip", &["-o", "addr", "show"]);
        addresses.contains("scope global")
    }
}

fn borrowed(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

#[test]
fn an_attach_killed_anywhere_publishes_everything_or_nothing() {
    let stand = Stand::with_a_port_that_stays();
    let arguments = stand.attach_arguments();
    let attach = borrowed(&arguments);
    let calls = stand.calls(&attach);
    stand.topology.portfwd(&["detach", "web"]).expect_ok();
    let mut published_from = None;
    for at in kills(calls) {
        stand.kill(&attach, at);
        let published = stand.all_or_nothing(at);
        if published {
            published_from.get_or_insert(at);
        }
        stand.assert_the_other_port_stays(at);
        stand.assert_listed(at, published);
        // The next command works, and repairs what is left.
        stand.topology.portfwd(&attach).expect_ok();
        assert!(stand.all_or_nothing(at), "after {at} and again");
        stand.topology.portfwd(&["detach", "web"]).expect_ok();
        assert!(!stand.all_or_nothing(at), "after {at} and detach");
        stand.assert_listed(at, false);
    }
    let published_from = published_from.expect("a kill after the commit");
    assert!(published_from > 1, "published before it began");
    println!("{calls} system calls, published from {published_from} on");
    stand.topology.take_down();
}

#[test]
fn a_detach_killed_anywhere_withdraws_everything_or_nothing() {
    let stand = Stand::with_a_port_that_stays();
    let arguments = stand.attach_arguments();
    let attach = borrowed(&arguments);
    let detach = ["detach", "web"];
    stand.topology.portfwd(&attach).expect_ok();
    let calls = stand.calls(&detach);
    let mut withdrawn_from = None;
    for at in kills(calls) {
        stand.topology.portfwd(&attach).expect_ok();
        stand.kill(&detach, at);
        let published = stand.all_or_nothing(at);
        if !published {
            withdrawn_from.get_or_insert(at);
        }
        stand.assert_the_other_port_stays(at);
        stand.assert_listed(at, published);
        stand
            .topology
            .portfwd(&["detach", "web", "--ignore-missing"])
            .expect_ok();
        assert!(!stand.all_or_nothing(at), "after {at} and again");
        stand.assert_listed(at, false);
    }
    let withdrawn_from = withdrawn_from.expect("a kill after the commit");
    assert!(withdrawn_from > 1, "withdrawn before it began");
    println!("{calls} system calls, withdrawn from {withdrawn_from} on");
    stand.topology.take_down();
}

#[test]
fn an_attach_that_brings_the_datapath_up_may_be_killed_anywhere() {
    let stand = Stand::new();
    let arguments = stand.attach_arguments();
    let attach = borrowed(&arguments);
    let calls = stand.calls(&attach);
    stand.topology.take_down();
    for at in kills(calls) {
        stand.kill(&attach, at);
        stand.all_or_nothing(at);
        stand.topology.portfwd(&attach).expect_ok();
        assert!(stand.all_or_nothing(at), "after {at} and again");
        stand.topology.take_down();
        assert!(!stand.all_or_nothing(at), "after {at} and down");
    }
    println!("{calls} system calls");
}

#[test]
fn down_after_a_killed_first_attach_leaves_nothing() {
    let stand = Stand::new();
    let arguments = stand.attach_arguments();
    let attach = borrowed(&arguments);
    let calls = stand.calls(&attach);
    stand.topology.take_down();
    for at in kills(calls) {
        stand.kill(&attach, at);
        let objects = stand.topology.objects();
        stand.topology.portfwd(&["down"]).expect_ok();
        stand.topology.assert_nothing_left(&objects);
        assert!(!stand.all_or_nothing(at), "after {at} and down");
    }
}

#[test]
fn down_killed_anywhere_is_finished_by_the_next_down() {
    let stand = Stand::new();
    let arguments = stand.attach_arguments();
    let attach = borrowed(&arguments);
    stand.topology.portfwd(&attach).expect_ok();
    let calls = stand.calls(&["down"]);
    for at in kills(calls) {
        stand.topology.portfwd(&attach).expect_ok();
        let objects: std::collections::BTreeSet<Object> = stand.topology.objects();
        stand.kill(&["down"], at);
        stand.all_or_nothing(at);
        stand.topology.portfwd(&["down"]).expect_ok();
        stand.topology.assert_nothing_left(&objects);
        assert!(!stand.all_or_nothing(at), "after {at} and down");
    }
    println!("{calls} system calls");
}

/// Fails if a pair is known for portfwd's only some steps after it was made, or not looked for by the command that
/// comes next (`remove_pairs` in sweep.rs).
#[test]
fn an_attach_that_connects_killed_anywhere_leaves_a_link_with_its_ports_or_none() {
    let stand = Stand::with_a_port_that_stays();
    let container = Unconnected::new();
    let arguments = container.attach_arguments();
    let attach = borrowed(&arguments);
    let calls = stand.calls(&attach);
    stand.topology.portfwd(&["detach", "web"]).expect_ok();
    let mut published_from = None;
    let mut left_links = 0;
    for at in kills(calls) {
        stand.kill(&attach, at);
        let published = stand.all_or_nothing(at);
        if published {
            published_from.get_or_insert(at);
        }
        stand.assert_the_other_port_stays(at);
        stand.assert_listed(at, published);
        left_links += u32::from(stand.has_link() && !published);
        stand.topology.portfwd(&["up"]).expect_ok();
        assert_eq!(stand.has_link(), published, "killed at {at}");
        assert_eq!(container.is_connected(), published, "killed at {at}");
        stand.topology.portfwd(&attach).expect_ok();
        assert!(stand.all_or_nothing(at), "after {at} and again");
        stand.topology.portfwd(&["detach", "web"]).expect_ok();
        assert!(!stand.has_link(), "after {at} and detach");
        assert!(!container.is_connected(), "after {at} and detach");
    }
    let published_from = published_from.expect("a kill after the commit");
    println!("{calls} system calls, {left_links} links left, published from {published_from} on");
    assert!(left_links > 0, "no kill while the link was made");
    stand.topology.take_down();
}

/// Fails if the next attach stumbles over a link that is left, rather than to remove it first (`find` in
/// commands/attach/connect.rs, `connect` in apply.rs).
#[test]
fn an_attach_that_connects_works_at_once_after_one_that_was_killed() {
    let stand = Stand::with_a_port_that_stays();
    let container = Unconnected::new();
    let arguments = container.attach_arguments();
    let attach = borrowed(&arguments);
    let calls = stand.calls(&attach);
    stand.topology.portfwd(&["detach", "web"]).expect_ok();
    for at in kills(calls) {
        stand.kill(&attach, at);
        let dry = [&attach[..], &["--dry-run"]].concat();
        stand.topology.portfwd(&dry).expect_ok();
        stand.topology.portfwd(&attach).expect_ok();
        assert!(stand.all_or_nothing(at), "after {at} and again");
        stand.topology.portfwd(&["detach", "web"]).expect_ok();
        assert!(!stand.has_link(), "after {at} and detach");
    }
    stand.topology.take_down();
}

/// Fails if a link whose detach was killed after the commit stays.
#[test]
fn a_detach_that_is_killed_anywhere_leaves_no_link_to_the_next_command() {
    let stand = Stand::with_a_port_that_stays();
    let container = Unconnected::new();
    let arguments = container.attach_arguments();
    let attach = borrowed(&arguments);
    let detach = ["detach", "web"];
    stand.topology.portfwd(&attach).expect_ok();
    let calls = stand.calls(&detach);
    for at in kills(calls) {
        stand.topology.portfwd(&attach).expect_ok();
        stand.kill(&detach, at);
        let published = stand.all_or_nothing(at);
        assert!(stand.has_link() || !published, "killed at {at}");
        stand
            .topology
            .portfwd(&["detach", "web", "--ignore-missing"])
            .expect_ok();
        assert!(!stand.has_link(), "after {at} and again");
        assert!(!container.is_connected(), "after {at} and again");
    }
    stand.topology.take_down();
}

/// Fails if `down` leaves the link of an attach that was killed, be it the first one, which brings the datapath up.
#[test]
fn down_leaves_no_link_of_an_attach_that_was_killed() {
    let stand = Stand::new();
    let container = Unconnected::new();
    let arguments = container.attach_arguments();
    let attach = borrowed(&arguments);
    let calls = stand.calls(&attach);
    stand.topology.take_down();
    for at in kills(calls) {
        stand.kill(&attach, at);
        stand.topology.portfwd(&["down"]).expect_ok();
        assert!(!stand.has_link(), "killed at {at}");
        assert!(!container.is_connected(), "killed at {at}");
    }
}
