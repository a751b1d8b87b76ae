//! What a command does about the flows of the whole host takes few system calls, however many there are.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use nix::libc;
use portfwd_common::maps;
use portfwd_tests::portfwd::Outcome;
use portfwd_tests::topology::{HOST, HOST6, Shape, Topology};
use portfwd_tests::{clients, kernel, ptrace};

/// Flows in each of some tables; `PORTFWD_FULL=1`: nearly as many as they hold.
const MANY: u32 = 25_000;
const FULL: u32 = 100_000;
/// System calls of bpf(2) that no command may need: it makes about 200 without any flows, to open the tables above all.
const FEW: u32 = 400;

/// The flow of a connection to the first container.
struct Template {
    key: Vec<u8>,
    flow: Vec<u8>,
}

impl Template {
    /// That of the one connection in a table.
    fn of(table: &OwnedFd) -> Self {
        let mut keys = kernel::keys(table, kernel::key_size(table)).expect("keys");
        assert_eq!(keys.len(), 1);
        let key = keys.remove(0);
        let mut flow = vec![0; kernel::value_size(table)];
        assert!(kernel::map_value(table, &key, &mut flow).expect("a look"));
        Self { key, flow }
    }

    /// Puts the same flow of so many other clients into a table.
    fn multiply(&self, table: &OwnedFd, count: u32) {
        let end = match self.key.len() {
            16 => 4,
            _ => 16,
        };
        for number in 0..count {
            let mut key = self.key.clone();
            key[end - 4..end].copy_from_slice(&(0x0a40_0000 + number).to_be_bytes());
            kernel::put_map_value(table, &key, &self.flow).expect("room");
        }
    }
}

/// Two containers with a port each, and connections to the first one alone, of both families. Gives how many.
fn crowded(topology: &Topology) -> u32 {
    let many = if std::env::var_os("PORTFWD_FULL").is_some() {
        FULL
    } else {
        MANY
    };
    let _servers = topology.serve();
    topology.attach("web", 0, &["8080:80"]);
    topology.attach("db", 1, &["9090:80"]);
    let ask = |host: IpAddr| {
        let stream = clients::connect(&topology.client, SocketAddr::new(host, 8080));
        clients::ask_stream(stream.as_ref().expect("connect")).expect("an answer");
        stream
    };
    let _open = [HOST, HOST6].map(ask);
    let pinned = |name| topology.pinned(name);
    let (v4, v6) = (pinned(maps::FLOWS_V4), pinned(maps::FLOWS_V6));
    let (of_v4, of_v6) = (Template::of(&v4), Template::of(&v6));
    of_v4.multiply(&v4, many);
    of_v4.multiply(&pinned(maps::STREAMS_V4), many);
    of_v6.multiply(&v6, many);
    3 * many + 2
}

/// Runs portfwd, and sees to it that few system calls are of bpf(2).
#[track_caller]
fn expect_few(topology: &Topology, arguments: &[&str]) -> Outcome {
    let mut calls = 0;
    let outcome = ptrace::refuse(topology.command(arguments), |call| {
        calls += u32::from(call.number == libc::SYS_bpf);
        None
    });
    assert!(calls < FEW, "{arguments:?} made {calls}");
    outcome.expect_ok()
}

#[track_caller]
fn expect_flows(topology: &Topology, count: u32) {
    let status = expect_few(topology, &["--json", "status"]).json();
    assert_eq!(status["datapath"]["flows"], count, "{status}");
}

#[test]
fn a_port_is_withdrawn_beside_any_number_of_flows_by_few_system_calls() {
    let topology = Topology::new(Shape::default());
    let flows = crowded(&topology);
    expect_flows(&topology, flows);
    expect_few(&topology, &["detach", "db"]);
    expect_flows(&topology, flows);
    expect_few(&topology, &["gc"]);
    expect_few(&topology, &["detach", "web"]);
    expect_flows(&topology, 0);
}

#[test]
fn any_number_of_flows_is_forgotten_by_few_system_calls() {
    let topology = Topology::new(Shape::default());
    let flows = crowded(&topology);
    let outcome = expect_few(&topology, &["flows", "purge"]);
    let says = format!("{flows} flows forgotten");
    assert!(outcome.stderr.contains(&says), "{outcome:?}");
    expect_flows(&topology, 0);
}
