//! What containers leave that went without a detach.

use std::net::SocketAddr;

use nix::net::if_::if_nametoindex;
use portfwd_tests::clients::{self, Protocol};
use portfwd_tests::deadline::{PATIENCE, until};
use portfwd_tests::servers::Server;
use portfwd_tests::topology::{CLIENT, Container, HOST, Shape, Topology};
use serde_json::json;

/// Ends a container's namespace, and waits until its link has gone with it.
fn lose(topology: &Topology, container: Container) {
    let link = container.host_link.clone();
    drop(container);
    until("the link to go", PATIENCE, || {
        let index = topology.host.run(|| if_nametoindex(link.as_str()));
        index.is_err().then_some(())
    });
}

/// Fails if only forwards are withdrawn (`withdraw` in apply.rs), or containers that are there count as gone
/// (`gone` in commands/gc.rs).
#[test]
fn a_container_that_is_gone_goes_with_all_it_had() {
    let topology = Topology::new(Shape::forwarding());
    let web = topology.passing_container();
    let netns = web.netns();
    let attach = ["attach", "web", "--netns", &netns, "--masquerade"];
    let specs = ["-p", "8080:80", "-p", "127.0.0.1:8081:81/udp"];
    topology
        .portfwd(&[&attach[..], &specs].concat())
        .expect_ok();
    topology.attach("db", 1, &["9090:80"]);
    let server = Server::start(&web.namespace, &web.addresses(), 80, "web");
    clients::ask(&topology.client, Protocol::Tcp, SocketAddr::new(HOST, 8080)).expect("an answer");
    drop(server);
    lose(&topology, web);

    let outcome = topology.portfwd(&["gc"]).expect_ok();
    let lines = [
        "web  80/tcp -> 0.0.0.0:8080",
        "web  80/tcp -> [::]:8080",
        "web  81/udp -> 127.0.0.1:8081",
    ];
    assert_eq!(outcome.stdout.lines().collect::<Vec<_>>(), lines);
    outcome.expect_stderr("removed: 1 container, 1 flow");
    let left = topology.list();
    assert!(
        left.iter().all(|forward| forward["container"] == "db"),
        "{left:?}"
    );
    assert_eq!(left.len(), 2);
    let masquerade = ["--json", "masquerade", "list"];
    let masqueraded = topology.portfwd(&masquerade).expect_ok().json();
    assert_eq!(masqueraded, json!([]));

    // The port is free, and there is nothing more to do.
    topology.attach("next", 0, &["8080:80"]);
    let again = topology.portfwd(&["gc"]).expect_ok();
    assert_eq!(again.stdout, "");
    again.expect_stderr("nothing to remove");
}

#[test]
fn one_json_document_says_what_was_removed() {
    let topology = Topology::new(Shape::default());
    let web = topology.passing_container();
    let (netns, address) = (web.netns(), web.v4.to_string());
    let attach = [
        "attach",
        "web",
        "--netns",
        &netns,
        "-p",
        "192.0.2.1:8080:80",
    ];
    topology.portfwd(&attach).expect_ok();
    let nothing = json!({"containers": [], "flows": 0, "hostSockets": 0});
    let gc = ["--json", "gc"];
    assert_eq!(topology.portfwd(&gc).expect_ok().json(), nothing);
    lose(&topology, web);
    let forward = json!({
        "container": "web",
        "protocol": "tcp",
        "hostIp": "192.0.2.1",
        "hostPort": 8080,
        "count": 1,
        "containerIp": address,
        "containerPort": 80,
    });
    let web = json!({"container": "web", "forwards": [forward]});
    let document = json!({"containers": [web], "flows": 0, "hostSockets": 0});
    assert_eq!(topology.portfwd(&gc).expect_ok().json(), document);
    assert_eq!(topology.portfwd(&gc).expect_ok().json(), nothing);
}

/// A container at an address elsewhere has no link that could be gone.
#[test]
fn a_container_by_address_stays() {
    let topology = Topology::new(Shape::forwarding());
    let address = CLIENT.to_string();
    topology
        .portfwd(&["attach", "far", "--ip", &address, "-p", "8080:80"])
        .expect_ok();
    let before = topology.published();
    let outcome = topology.portfwd(&["gc"]).expect_ok();
    outcome.expect_stderr("nothing to remove");
    assert_eq!(topology.published(), before);
}

#[test]
fn without_an_instance_there_is_nothing_to_remove() {
    let topology = Topology::new(Shape::default());
    let outcome = topology.portfwd(&["gc"]).expect_ok();
    assert_eq!(outcome.stdout, "");
    outcome.expect_stderr("nothing to remove");
}
