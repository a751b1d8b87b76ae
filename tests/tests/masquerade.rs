//! What is masqueraded: the commands, and what they leave.

use portfwd_tests::portfwd::expect_error;
use portfwd_tests::topology::{Shape, Topology};
use serde_json::{Value, json};

/// What `masquerade list --json` says.
fn listed(topology: &Topology) -> Value {
    topology
        .portfwd(&["--json", "masquerade", "list"])
        .expect_ok()
        .json()
}

fn row(subnet: &str, container: Option<&str>) -> Value {
    json!({"subnet": subnet, "container": container, "flows": 0})
}

#[test]
fn a_subnet_is_masqueraded_until_it_is_removed() {
    let topology = Topology::watched(Shape::default());
    assert_eq!(listed(&topology), json!([]), "nothing is up");
    topology
        .portfwd(&["masquerade", "add", "10.88.0.0/24"])
        .expect_ok();
    topology
        .portfwd(&["masquerade", "add", "fd88::/64"])
        .expect_ok();
    let both = json!([row("10.88.0.0/24", None), row("fd88::/64", None)]);
    assert_eq!(listed(&topology), both);
    let state = topology.state();
    topology
        .portfwd(&["masquerade", "add", "fd88::/64"])
        .expect_ok();
    assert_eq!(
        (listed(&topology), topology.state()),
        (both, state),
        "again"
    );
    topology
        .portfwd(&["masquerade", "remove", "10.88.0.0/24"])
        .expect_ok();
    assert_eq!(listed(&topology), json!([row("fd88::/64", None)]));
    let one = topology.portfwd(&["--json", "masquerade", "list", "fd88::/64"]);
    assert_eq!(one.expect_ok().json(), json!([row("fd88::/64", None)]));
    topology
        .portfwd(&["masquerade", "remove", "fd88::/64"])
        .expect_ok();
    assert_eq!(listed(&topology), json!([]));
    topology.take_down();
}

#[test]
fn a_subnet_that_is_not_masqueraded_cannot_be_removed() {
    let topology = Topology::new(Shape::default());
    for _ in ["down", "up"] {
        for command in ["remove", "list"] {
            let outcome = topology.portfwd(&["masquerade", command, "10.0.0.0/8"]);
            expect_error(outcome, 4, "10.0.0.0/8");
        }
        // One that is wider or narrower is another one.
        topology
            .portfwd(&["masquerade", "add", "10.0.0.0/16"])
            .expect_ok();
    }
}

#[test]
fn malformed_subnets_are_named_and_make_nothing() {
    let topology = Topology::new(Shape::default());
    for subnet in [
        "",
        "web",
        "10.88.0.0/33",
        "10.88.0.1/24",
        "0.0.0.0/0",
        "127.0.0.0/8",
        "ff02::/16",
    ] {
        for command in ["add", "remove", "list"] {
            let outcome = topology.portfwd(&["masquerade", command, subnet]);
            expect_error(outcome, 2, &format!("{subnet:?}"));
        }
    }
    assert!(!topology.pins().exists());
}

#[test]
fn a_containers_own_addresses_are_masqueraded_as_long_as_it_is_attached() {
    let topology = Topology::watched(Shape::default());
    let [web, _] = &topology.containers;
    web.namespace.ip("addr add 10.88.0.77/24 dev eth0\n");
    let netns = web.netns();
    let attach = |spec: &str, more: &[&str]| {
        let mut arguments = vec!["attach", "web", "--netns", &netns, "-p", spec];
        arguments.extend(more);
        topology.portfwd(&arguments).expect_ok();
    };
    attach("8080:80", &[]);
    assert_eq!(listed(&topology), json!([]), "only what was asked for");
    attach("8081:81", &["--masquerade"]);
    let all = json!([
        row("10.88.0.2/32", Some("web")),
        row("10.88.0.77/32", Some("web")),
        row("fd88::2/128", Some("web")),
    ]);
    assert_eq!(listed(&topology), all);
    attach("8080:80", &[]);
    assert_eq!(listed(&topology), all, "another attach does not end it");
    topology
        .portfwd(&["detach", "web", "-p", "8081:81"])
        .expect_ok();
    assert_eq!(listed(&topology), all, "nor does the loss of a port");
    topology
        .portfwd(&["detach", "web", "-p", "8080:80"])
        .expect_ok();
    assert_eq!(listed(&topology), json!([]), "the loss of all does");
    attach("8080:80", &["--masquerade"]);
    topology.portfwd(&["detach", "web"]).expect_ok();
    attach("8080:80", &[]);
    assert_eq!(listed(&topology), json!([]), "a new attachment is new");
    web.namespace.ip("addr del 10.88.0.77/24 dev eth0\n");
    topology.take_down();
}

#[test]
fn the_egress_hooks_come_with_what_is_masqueraded_and_go_with_it() {
    let topology = Topology::new(Shape::default());
    topology.attach("web", 0, &["8080:80"]);
    let egress = || {
        let status = topology.portfwd(&["--json", "status"]).expect_ok().json();
        let devices = status["datapath"]["devices"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let hooked = |device: &&Value| device["hooks"].to_string().contains("egress");
        devices.iter().filter(hooked).count()
    };
    assert_eq!(egress(), 0);
    topology
        .portfwd(&["masquerade", "add", "10.88.0.0/24"])
        .expect_ok();
    assert_eq!(egress(), 3, "eth0, eth1 and the bridge");
    let netns = topology.containers[1].netns();
    let attach = [
        "attach",
        "db",
        "--netns",
        &netns,
        "-p",
        "90:90",
        "--masquerade",
    ];
    topology.portfwd(&attach).expect_ok();
    topology
        .portfwd(&["masquerade", "remove", "10.88.0.0/24"])
        .expect_ok();
    assert_eq!(egress(), 3, "the container still needs them");
    topology.portfwd(&["detach", "db"]).expect_ok();
    assert_eq!(egress(), 0);
}
