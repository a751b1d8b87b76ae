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
use portfwd_tests::topology::{HOST, Shape, Topology};

#[test]
fn an_opened_flow_is_logged_with_its_client() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology.portfwd(&["up", "--log-level", "info"]).expect_ok();
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
    let to = SocketAddr::new(HOST, 8080);
    let answer = clients::ask(&topology.client, Protocol::Tcp, to).expect("an answer");
    let own = answer.own.to_string();
    let mut seen = Vec::new();
    let found = loop {
        match receiver.recv_timeout(PATIENCE) {
            Ok(line) if line.contains(&own) => break true,
            Ok(line) => seen.push(line),
            Err(_) => break false,
        }
    };
    let pid = Pid::from_raw(i32::try_from(log.id()).expect("a process ID fits"));
    kill(pid, Signal::SIGTERM).expect("end portfwd log");
    log.wait().expect("wait for portfwd log");
    reader.join().expect("the reader");
    assert!(found, "{own} is not in {seen:?}");
}
