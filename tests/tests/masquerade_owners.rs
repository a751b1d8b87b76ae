//! Whose packets are masqueraded: addresses that several attachments share, targets elsewhere, devices
//! that come later, and what the host leaves.

use std::net::{IpAddr, SocketAddr};

use portfwd_tests::clients::{self, Protocol, ask};
use portfwd_tests::namespace::Namespace;
use portfwd_tests::portfwd::expect_error;
use portfwd_tests::servers::Server;
use portfwd_tests::topology::{CLIENT, FOREIGN, FOREIGN6, Shape, Topology};
use serde_json::Value;

const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// The host's address toward the foreign server.
const LEAVING: &str = "203.0.113.1";

struct World {
    topology: Topology,
    _server: Server,
}

impl World {
    fn new() -> Self {
        let topology = Topology::watched(Shape::forwarding());
        let _server = Server::start(&topology.foreign, &[FOREIGN, FOREIGN6], 7000, "foreign");
        Self { topology, _server }
    }

    /// Attaches the first container under a name.
    fn attach(&self, name: &str, spec: &str, more: &[&str]) {
        let netns = self.topology.containers[0].netns();
        let mut arguments = vec!["attach", name, "--netns", &netns, "-p", spec];
        arguments.extend(more);
        self.topology.portfwd(&arguments).expect_ok();
    }

    fn detach(&self, name: &str) {
        self.topology.portfwd(&["detach", name]).expect_ok();
    }

    fn inside(&self) -> &Namespace {
        &self.topology.containers[0].namespace
    }

    #[track_caller]
    fn expect_masqueraded(&self, when: &str) {
        for protocol in BOTH {
            let to = SocketAddr::new(FOREIGN, 7000);
            let seen = ask(self.inside(), protocol, to).expect(when).seen;
            assert_eq!(seen.ip().to_string(), LEAVING, "{protocol:?}, {when}");
        }
    }

    #[track_caller]
    fn expect_untouched(&self, when: &str) {
        for protocol in BOTH {
            let to = SocketAddr::new(FOREIGN, 7000);
            let answer = ask(self.inside(), protocol, to).expect(when);
            assert_eq!(answer.seen, answer.own, "{protocol:?}, {when}");
        }
    }

    /// Whose the container's IPv4 address is, as far as it is masqueraded.
    fn owners(&self) -> Vec<String> {
        let list = self
            .topology
            .portfwd(&["--json", "masquerade", "list", "10.88.0.2/32"]);
        let rows = list.expect_ok().json();
        let rows = rows.as_array().cloned().unwrap_or_default();
        let name = |row: &Value| row["container"].as_str().unwrap_or("nobody").to_owned();
        rows.iter().map(name).collect()
    }
}

// Fails if a lookup among subnets takes a wider one (`of_source` in owner.rs asks a trie by the whole
// address), or if a flow goes on under another owner than its own (`is_masqueraded` there).
#[test]
fn of_subnets_within_one_another_the_narrowest_counts_and_its_flows_end_with_it() {
    let world = World::new();
    let change = |verb: &str, subnet: &str| {
        let arguments = ["masquerade", verb, subnet];
        world.topology.portfwd(&arguments).expect_ok();
    };
    change("add", "10.88.0.0/16");
    change("add", "10.88.0.0/24");
    let to = SocketAddr::new(FOREIGN, 7000);
    let stream = clients::connect(world.inside(), to).expect("connect");
    clients::ask_stream(&stream).expect("an answer");
    change("remove", "10.88.0.0/24");
    clients::echo(&stream, b"late").expect_err("the flow was the narrow one's");
    world.expect_masqueraded("the wider one is left");
    let stream = clients::connect(world.inside(), to).expect("connect");
    clients::ask_stream(&stream).expect("an answer");
    change("add", "10.88.0.0/24");
    clients::echo(&stream, b"still").expect("the flow is the wide one's");
    change("remove", "10.88.0.0/16");
    clients::echo(&stream, b"late").expect_err("the flow was the wide one's");
    world.expect_masqueraded("the narrower one is left");
}

// Fails if an attach takes the address from who has it (`set_addresses`).
#[test]
fn an_address_is_masqueraded_as_long_as_one_of_those_that_share_it_is() {
    let world = World::new();
    world.attach("a", "8083:80", &["--masquerade"]);
    let to = SocketAddr::new(FOREIGN, 7000);
    let stream = clients::connect(world.inside(), to).expect("connect");
    clients::ask_stream(&stream).expect("an answer");
    world.attach("b", "8084:81", &[]);
    world.expect_masqueraded("b does not ask for it");
    assert_eq!(world.owners(), ["a"]);
    world.detach("b");
    world.expect_masqueraded("b is gone");
    world.attach("b", "8084:81", &[]);
    clients::echo(&stream, b"still").expect("a connection of a");
    world.detach("a");
    world.expect_untouched("a is gone, and b never asked");
    assert!(clients::echo(&stream, b"late").is_err());
    world.attach("b", "8085:82", &["--masquerade"]);
    world.expect_masqueraded("b asks");
    assert_eq!(world.owners(), ["b"]);
    world.attach("a", "8083:80", &[]);
    world.detach("a");
    world.expect_masqueraded("a came and went");
    world.detach("b");
    world.expect_untouched("nobody is left");
    world.topology.take_down();
}

// Fails if a detach ends the owner of an address that another one masquerades too (`owners_ending_with`).
#[test]
fn connections_go_on_as_long_as_one_masquerades_their_address() {
    let world = World::new();
    let to = SocketAddr::new(FOREIGN, 7000);
    for (first, second) in [("a", "b"), ("b", "a")] {
        world.attach("a", "8083:80", &["--masquerade"]);
        let early = clients::connect(world.inside(), to).expect("connect");
        clients::ask_stream(&early).expect("an answer");
        world.attach("b", "8084:81", &["--masquerade"]);
        let late = clients::connect(world.inside(), to).expect("connect");
        clients::ask_stream(&late).expect("an answer");
        world.detach(first);
        for stream in [&early, &late] {
            clients::echo(stream, b"still").expect("a connection of the one that stays");
        }
        world.expect_masqueraded("one is left");
        assert_eq!(world.owners(), [second]);
        world.detach(second);
        for stream in [&early, &late] {
            assert!(clients::echo(stream, b"late").is_err(), "after all");
        }
        world.expect_untouched("nobody is left");
        let list = world
            .topology
            .portfwd(&["masquerade", "list", "10.88.0.2/32"]);
        expect_error(list, 4, "10.88.0.2/32");
    }
    world.topology.take_down();
}

// Fails if a target without a link counts as inside (`addresses` in plan.rs).
#[test]
fn what_goes_to_a_target_elsewhere_is_masqueraded() {
    let world = World::new();
    world.attach("web", "8080:80", &["--masquerade"]);
    // Behind a router: no link of the host leads to it.
    let far: IpAddr = "198.51.100.9".parse().expect("an address");
    let foreign = &world.topology.foreign;
    foreign.ip(&format!("addr add {far}/32 dev lo\n"));
    let host = &world.topology.host;
    host.ip(&format!("route add {far} via {FOREIGN}\n"));
    let _far = Server::start(foreign, &[far], 7000, "far");
    let address = far.to_string();
    let target = ["attach", "far", "--ip", &address, "-p", "9000:80"];
    world.topology.portfwd(&target).expect_ok();
    for protocol in BOTH {
        let seen = ask(world.inside(), protocol, SocketAddr::new(far, 7000)).expect("an answer");
        assert_eq!(seen.seen.ip().to_string(), LEAVING, "{protocol:?}");
    }
}

// Fails if `up` serves a device without giving it an address (`serve` in devices.rs).
#[test]
fn a_device_that_is_named_later_masquerades_at_once() {
    let world = World::new();
    let topology = &world.topology;
    topology.portfwd(&["up", "--device", "eth0"]).expect_ok();
    topology
        .portfwd(&["masquerade", "add", "10.88.0.0/24"])
        .expect_ok();
    let _client = Server::start(&topology.client, &[CLIENT], 7000, "client");
    let to = SocketAddr::new(CLIENT, 7000);
    let seen = ask(world.inside(), Protocol::Udp, to).expect("an answer");
    assert_eq!(
        seen.seen.ip(),
        "192.0.2.1".parse::<IpAddr>().expect("an address")
    );
    world.expect_untouched("eth1 is not served");
    topology.portfwd(&["up", "--device", "eth1"]).expect_ok();
    world.expect_masqueraded("eth1 is served");
    topology.take_down();
}

#[test]
fn a_containers_own_address_is_not_removed_as_a_subnet() {
    let world = World::new();
    world.attach("k1", "8080:80", &["--masquerade"]);
    let remove = ["masquerade", "remove", "10.88.0.2/32"];
    let outcome = world.topology.portfwd(&remove);
    assert!(
        outcome.stderr.contains("container \"k1\""),
        "{}",
        outcome.stderr
    );
    assert!(outcome.stderr.contains("detach k1"), "{}", outcome.stderr);
    expect_error(outcome, 4, "10.88.0.2/32");
    world.expect_masqueraded("it is");
    let other = world
        .topology
        .portfwd(&["masquerade", "remove", "10.88.0.3/32"]);
    let other = other.expect_stderr("is not masqueraded");
    expect_error(other, 4, "10.88.0.3/32");
    world.topology.take_down();
}

/// A declared set says whether a container is masqueraded, and a file without it takes it back.
#[test]
fn what_a_set_declares_no_longer_is_masqueraded_no_longer() {
    let world = World::new();
    let netns = world.topology.containers[0].netns();
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("host.toml");
    let apply = |masquerade: bool| {
        let text = format!(
            "[[container]]\nname = \"web\"\nnetns = \"{netns}\"\npublish = [\"8080:80\"]\nmasquerade = {masquerade}\n"
        );
        std::fs::write(&file, text).expect("write the file");
        let file = file.display().to_string();
        let outcome = world.topology.portfwd(&["apply", "-f", &file]);
        let stdout = outcome.expect_ok().stdout;
        let lines = stdout.lines().filter(|line| line.contains("masquerade"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    for _ in 0..2 {
        assert_eq!(apply(true), ["+ web: masquerade"]);
        world.expect_masqueraded("declared");
        assert_eq!(apply(true), [""; 0]);
        let to = SocketAddr::new(FOREIGN, 7000);
        let open = clients::connect(world.inside(), to).expect("connect");
        clients::ask_stream(&open).expect("an answer");
        assert_eq!(apply(false), ["- web: masquerade"]);
        world.expect_untouched("declared no longer");
        assert!(clients::echo(&open, b"still there?").is_err());
        assert_eq!(apply(false), [""; 0]);
    }
    // Another attachment of the same address keeps it masqueraded.
    apply(true);
    world.attach("pod", "8081:80", &["--masquerade"]);
    assert_eq!(apply(false), ["- web: masquerade"]);
    world.expect_masqueraded("by another one");
    world.detach("pod");
    world.expect_untouched("by nobody");
}
