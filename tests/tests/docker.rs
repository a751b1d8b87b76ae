//! Beside Docker itself, with its userland proxy and without: whose port is whose.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use portfwd_tests::chosen::{choose_twenty_times_over, first_choice};
use portfwd_tests::clients::{self, Protocol};
use portfwd_tests::deadline::{PATIENCE, until_ok};
use portfwd_tests::docker::{Docker, Userland};
use portfwd_tests::namespace::Namespace;
use portfwd_tests::portfwd::Outcome;
use portfwd_tests::portmap::{BACKENDS, portmap};
use portfwd_tests::topology::{HOST, Shape, Topology};

/// How Docker says that it may not bind a port.
const IN_USE: &str = "bind: address already in use";

/// Who serves a port of the host, as `client` sees it.
#[track_caller]
fn server(client: &Namespace, port: u16) -> String {
    let to = SocketAddr::new(HOST, port);
    // What Docker has started listens a moment later.
    let ask = || clients::ask(client, Protocol::Tcp, to);
    until_ok(&format!("{to} to answer"), PATIENCE, ask).label
}

/// Asserts that the port is refused as that of a process of Docker's, which is named.
#[track_caller]
fn expect_held_by_docker(outcome: Outcome, docker: &Docker, userland: Userland) {
    let outcome = outcome.expect_code(3);
    let begin = format!("held by: process {} (pid ", userland.listener());
    let (_, rest) = outcome.stderr.split_once(&begin).expect("its listener");
    let pid = rest.split(')').next().and_then(|pid| pid.parse().ok());
    assert!(docker.has_process(pid.expect("its process")), "{outcome:?}");
}

/// Fails if rules, or rules and listeners, are not looked at (`taken` in collision.rs).
#[test]
fn of_two_containers_each_has_ports_of_its_own_twenty_times_over() {
    for (userland, backend) in Userland::BOTH.into_iter().zip(BACKENDS) {
        let topology = Topology::new(Shape::default());
        // What the first would choose is Docker's, what the second would choose is the plugin's, and more.
        let [first, mut second] = first_choice(&topology);
        let docker = Docker::start(&topology.host, userland);
        let [own, other] = [first[0], first[1]].map(|port| format!("{port}:80"));
        let published = docker.run("one", &[&own, &other, "49153-49155:81-83", "80", "90"]);
        assert_eq!(published.len(), 7);
        second.extend([49_156, 49_157]);
        portmap(&topology, backend, "ADD", &second);
        let foreign: BTreeSet<u16> = published.iter().chain(&second).copied().collect();
        choose_twenty_times_over(&topology, &foreign);
        for port in foreign {
            let refused = topology.try_attach("a0", 0, &[&format!("{port}:80")]);
            refused.expect_code(3).expect_stderr("held by: ");
        }
    }
}

/// Fails if listeners are not looked at: then a rule is named, or nothing.
#[test]
fn a_port_of_docker_s_is_refused_until_its_container_goes() {
    for userland in Userland::BOTH {
        let topology = Topology::new(Shape::default());
        let _servers = topology.serve();
        let docker = Docker::start(&topology.host, userland);
        docker.run("one", &["8080:80"]);
        for spec in ["8080:80", "0.0.0.0:8080:80", "127.0.0.1:8080:80"] {
            let refused = topology.try_attach("web", 0, &[spec]);
            expect_held_by_docker(refused, &docker, userland);
        }
        // Without its proxies it has nothing in IPv6, where its network has none.
        let v6 = topology.try_attach("six", 0, &["[::]:8080:80"]);
        match userland {
            Userland::Proxies => expect_held_by_docker(v6, &docker, userland),
            Userland::Nothing => drop(v6.expect_ok()),
        }
        // Neither is in the other's way, although Docker has the host drop what it forwards.
        topology.attach("web", 0, &["8081:80"]);
        let servers = [8080, 8081].map(|port| server(&topology.client, port));
        assert_eq!(servers, ["docker", "web"]);
        docker.remove("one");
        topology
            .portfwd(&["detach", "six", "--ignore-missing"])
            .expect_ok();
        topology.attach("web", 0, &["8080:80"]);
        assert_eq!(server(&topology.client, 8080), "web");
    }
}

/// Docker's containers outlive its daemon where that is wanted (`live-restore`), and so do the rules: then there is no
/// listener. Fails if rules are not looked at (`taken` in collision.rs).
#[test]
fn a_port_of_docker_s_is_refused_while_its_daemon_is_away() {
    for userland in Userland::BOTH {
        let topology = Topology::new(Shape::default());
        let docker = Docker::start(&topology.host, userland);
        docker.run("one", &["8080:80"]);
        docker.end_daemon();
        topology
            .try_attach("web", 0, &["8080:80"])
            .expect_code(3)
            .expect_stderr("held by: nftables rule: table ip nat, chain DOCKER");
        topology.attach("web", 0, &["8081:80"]);
    }
}

/// Docker binds each port that it publishes, in whichever way: a forward's is refused to it as to every process. Fails
/// without the hooks of `bind`.
#[test]
fn a_published_port_is_refused_to_docker() {
    for userland in Userland::BOTH {
        let topology = Topology::new(Shape::default());
        let _servers = topology.serve();
        let docker = Docker::start(&topology.host, userland);
        topology.attach("web", 0, &["8080:80", "127.0.0.1:8081:80"]);
        for taken in ["8080:80", "127.0.0.1:8080:80", "8081:80"] {
            let error = docker.try_run("one", &[taken]).expect_err("refused");
            assert!(error.contains(IN_USE), "{userland:?} {taken}: {error}");
        }
        assert_eq!(server(&topology.client, 8080), "web");
        docker.run("other", &["192.0.2.1:8081:80"]);
        topology.portfwd(&["detach", "web"]).expect_ok();
        docker.run("one", &["8080:80"]);
        assert_eq!(server(&topology.client, 8080), "docker");
    }
}

/// It takes the next one, but gives up after ten. Fails without the hooks of `bind`.
#[test]
fn docker_chooses_no_published_port() {
    for userland in Userland::BOTH {
        let topology = Topology::new(Shape::default());
        topology
            .host
            .set_sysctl("ipv4/ip_local_port_range", "32768 33000");
        let docker = Docker::start(&topology.host, userland);
        topology.attach("web", 0, &["32768-32773:1-6"]);
        let chosen = docker.run("one", &["80"]);
        assert_eq!(chosen, BTreeSet::from([32_774]), "{userland:?}");
        topology.attach("db", 1, &["32775-32790:1-16"]);
        let error = docker.try_run("two", &["80"]).expect_err("refused");
        assert!(error.contains(IN_USE), "{userland:?}: {error}");
    }
}

#[test]
fn a_container_of_docker_s_is_published_by_its_process() {
    let topology = Topology::new(Shape::default());
    let docker = Docker::start(&topology.host, Userland::Proxies);
    docker.run("one", &[]);
    let process = docker.process_of("one").to_string();
    let arguments = ["attach", "one", "--pid", &process, "-p", "8080:80"];
    topology.portfwd(&arguments).expect_ok();
    assert_eq!(server(&topology.client, 8080), "docker");
}

/// What runs of it, and its control groups; its rules and links go with the namespace.
#[test]
fn nothing_of_docker_is_left() {
    let topology = Topology::new(Shape::default());
    let docker = Docker::start(&topology.host, Userland::Proxies);
    docker.run("one", &["8080:80"]);
    let group = docker.group();
    assert!(group.exists());
    drop(docker);
    assert!(!group.exists(), "{}", group.display());
}
