//! What the programs tell when they are asked to.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portfwd_tests::clients::{self, Protocol};
use portfwd_tests::deadline::{PATIENCE, patient, until};
use portfwd_tests::portfwd::{self, Outcome};
use portfwd_tests::servers::Server;
use portfwd_tests::topology::{CLIENT, FOREIGN, HOST, Shape, Topology};

/// A `portfwd log` that goes on.
struct Following {
    log: Child,
    lines: mpsc::Receiver<String>,
}

impl Following {
    fn start(topology: &Topology) -> Self {
        let mut log = topology
            .command(&["log"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start portfwd log");
        let (sender, lines) = mpsc::channel();
        let output = log.stdout.take().expect("a pipe");
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { log, lines }
    }

    /// What the programs tell up to a flow that the client opens.
    fn told(&self, topology: &Topology) -> Vec<String> {
        let to = SocketAddr::new(HOST, 8080);
        let answer = clients::ask(&topology.client, Protocol::Tcp, to).expect("an answer");
        let own = answer.own.to_string();
        let mut seen = Vec::new();
        while !seen.last().is_some_and(|line: &String| line.contains(&own)) {
            match self.lines.recv_timeout(patient(PATIENCE)) {
                Ok(line) => seen.push(line),
                Err(error) => panic!("{own} is not in {seen:?}: {error}"),
            }
        }
        seen
    }

    /// Waits for it to end by itself.
    fn end(mut self) -> Outcome {
        until("portfwd log to end", PATIENCE, || {
            self.log.try_wait().expect("ask for its status")
        });
        let output = self.log.wait_with_output().expect("what it said");
        portfwd::outcome("portfwd log".to_owned(), &output)
    }

    fn interrupt(mut self) {
        let pid = Pid::from_raw(i32::try_from(self.log.id()).expect("a process ID fits"));
        kill(pid, Signal::SIGTERM).expect("end portfwd log");
        self.log.wait().expect("wait for portfwd log");
    }
}

/// What the programs tell of an opened flow of the client, and of everything before.
fn told(topology: &Topology, level: &str, before: impl FnOnce()) -> Vec<String> {
    topology.portfwd(&["up", "--log-level", level]).expect_ok();
    topology.attach("web", 0, &["8080:80"]);
    let following = Following::start(topology);
    before();
    let seen = following.told(topology);
    following.interrupt();
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

#[test]
fn a_log_that_is_followed_ends_when_nothing_comes_any_more_and_says_why() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology.portfwd(&["up", "--log-level", "info"]).expect_ok();
    topology.attach("web", 0, &["8080:80"]);
    let following = Following::start(&topology);
    following.told(&topology);
    let level = |level| topology.portfwd(&["up", "--log-level", level]).expect_ok();
    level("debug");
    following.told(&topology);
    level("off");
    let ended = following.end().expect_ok();
    let says = format!(
        "instance \"{}\" logs nothing any more\n",
        topology.instance()
    );
    assert_eq!(ended.stderr, says);
    level("info");
    let following = Following::start(&topology);
    following.told(&topology);
    topology.portfwd(&["down"]).expect_ok();
    let ended = following.end().expect_ok();
    assert_eq!(ended.stderr, "the instance is down\n");
}
