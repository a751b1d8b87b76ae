//! What the programs tell when they are asked to.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portfwd_tests::clients::{self, Protocol};
use portfwd_tests::deadline::PATIENCE;
use portfwd_tests::servers::Server;
use portfwd_tests::topology::{CLIENT, FOREIGN, HOST, Shape, Topology};

/// What the programs tell of an opened flow of the client, and of everything before.
fn told(topology: &Topology, level: &str, before: impl FnOnce()) -> Vec<String> {
    topology.portfwd(&["up", "--log-level", level]).expect_ok();
    topology.attach("web", 0, &["8080:80"]);
    let mut log = topology
        .command(&["log"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start portfwd log");
    let (sender, receiver) = mpsc::channel();
    let output = log.stdout.take().expect("a pipe");
    let reader = thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    before();
    let to = SocketAddr::new(HOST, 8080);
    let answer = clients::ask(&topology.client, Protocol::Tcp, to).expect("an answer");
    let own = answer.own.to_string();
    let mut seen = Vec::new();
    let found = loop {
        let Ok(line) = receiver.recv_timeout(PATIENCE) else {
            break false;
        };
        seen.push(line);
        if seen.last().is_some_and(|line| line.contains(&own)) {
            break true;
        }
    };
    let pid = Pid::from_raw(i32::try_from(log.id()).expect("a process ID fits"));
    kill(pid, Signal::SIGTERM).expect("end portfwd log");
    log.wait().expect("wait for portfwd log");
    reader.join().expect("the reader");
    assert!(found, "{own} is not in {seen:?}");
    seen
}

#[test]
fn an_opened_flow_is_logged_with_its_client() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    told(&topology, "info", || ());
}

// Fails if flows are logged where they are masqueraded (`open` in masquerade.rs).
#[test]
fn masqueraded_flows_are_not_logged() {
    let topology = Topology::new(Shape::forwarding());
    let _servers = topology.serve();
    let _server = Server::start(&topology.foreign, &[FOREIGN], 7000, "foreign");
    let told = told(&topology, "debug", || {
        let masquerade = ["masquerade", "add", "10.88.0.0/24"];
        topology.portfwd(&masquerade).expect_ok();
        let to = SocketAddr::new(FOREIGN, 7000);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let answer = clients::ask(&topology.containers[0].namespace, protocol, to);
            let answer = answer.expect("an answer");
            assert_ne!(answer.seen.ip(), answer.own.ip(), "it is masqueraded");
        }
    });
    let of_client = |line: &&String| !line.contains(&CLIENT.to_string());
    let others: Vec<_> = told.iter().filter(of_client).collect();
    assert!(others.is_empty(), "{others:?}");
}
