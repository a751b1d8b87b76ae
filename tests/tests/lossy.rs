//! A network that loses, delays, reorders and duplicates packets: netem, between client and host, in
//! both directions.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use sha2::{Digest, Sha256};

use portfwd_tests::capture::{Capture, Captured, faults};
use portfwd_tests::clients;
use portfwd_tests::deadline::patient;
use portfwd_tests::namespace::Namespace;
use portfwd_tests::needs::{Need, need};
use portfwd_tests::servers::{Server, hexadecimal};
use portfwd_tests::topology::{HOST, HOST6, Shape, Topology};

/// How many transfers are under way at the same time.
const TRANSFERS: u64 = 1000;
/// What each carries: more than the first window, so that losses in the middle are repaired.
const LENGTH: usize = 24 << 10;
/// A lost SYN is repeated after 1, 3 and 7 seconds, and so is whatever follows it.
const LIMIT: Duration = Duration::from_secs(60);

/// The limit is far above what a thousand transfers have on the way: only netem is to lose packets.
const CONDITIONS: &str = "root netem limit 100000 loss 2% delay 10ms 5ms reorder 1% duplicate 1%";

/// Makes the way between client and host bad, in both directions.
fn spoil(topology: &Topology) {
    for namespace in [&topology.client, &topology.host] {
        let arguments = format!("qdisc add dev eth0 {CONDITIONS}");
        namespace.output("tc", &arguments.split(' ').collect::<Vec<_>>());
    }
}

/// How many packets the discipline has lost.
fn lost(namespace: &Namespace) -> u64 {
    let text = namespace.output("tc", &["-s", "-j", "qdisc", "show", "dev", "eth0"]);
    let disciplines: Value = serde_json::from_str(&text).expect("tc prints JSON");
    disciplines[0]["drops"].as_u64().expect("a number")
}

/// Bytes that no other transfer sends (splitmix64).
fn content(transfer: u64) -> Vec<u8> {
    let words = (0..LENGTH as u64 / 8).map(|at| {
        let mut word = (transfer << 32 | at).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (word ^ word >> 27).to_le_bytes()
    });
    words.flatten().collect()
}

/// Sends a transfer's content, and compares the hash of what arrived.
fn transfer(client: &Namespace, to: SocketAddr, number: u64) -> io::Result<()> {
    let content = content(number);
    let mut stream = clients::connect(client, to)?;
    stream.set_read_timeout(Some(patient(LIMIT)))?;
    stream.set_write_timeout(Some(patient(LIMIT)))?;
    stream.write_all(&content)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer != hexadecimal(&Sha256::digest(&content)) {
        return Err(io::Error::other(format!("the hash is {answer:?}")));
    }
    Ok(())
}

fn transfers(topology: &Topology) -> Vec<String> {
    thread::scope(|scope| {
        let running: Vec<_> = (0..TRANSFERS)
            .map(|number| {
                let address = if number % 2 == 0 { HOST } else { HOST6 };
                let to = SocketAddr::new(address, 8080);
                scope.spawn(move || {
                    let result = transfer(&topology.client, to, number);
                    result.map_err(|error| format!("transfer {number} to {to}: {error}"))
                })
            })
            .collect();
        let ended = running.into_iter().map(|one| one.join().expect("a client"));
        ended.filter_map(Result::err).collect()
    })
}

/// What the captures of a bad way have to show, whatever was lost on it.
fn assert_sound(place: &str, frames: &[Captured], shape: Shape) {
    assert!(
        frames.len() > 1000,
        "{} frames at the {place}",
        frames.len()
    );
    let faults = faults(frames, !shape.offloads);
    assert_eq!(faults, Vec::<String>::new(), "{place}, {shape:?}");
}

fn a_thousand_transfers(shape: Shape) {
    need(Need::Netem);
    let topology = Topology::new(shape);
    let container = &topology.containers[0];
    let _sink = Server::hash(&container.namespace, &container.addresses(), 80);
    topology.attach("web", 0, &["8080:80"]);
    spoil(&topology);
    let at_client = Capture::start(&topology.client, "eth0");
    let at_container = Capture::start(&container.namespace, "eth0");
    let failures = transfers(&topology);
    let failed = failures.len();
    assert!(
        failures.is_empty(),
        "{failed} failed: {:#?}",
        &failures[..failed.min(5)]
    );
    for (place, capture) in [("client", at_client), ("container", at_container)] {
        assert_sound(place, &capture.finish(), shape);
    }
    for namespace in [&topology.client, &topology.host] {
        let lost = lost(namespace);
        assert!(
            lost > 100,
            "netem lost {lost} packets of {}",
            namespace.name()
        );
    }
}

#[test]
#[ignore = "needs netem: cargo xtask test --kernels"]
fn a_thousand_parallel_transfers_arrive_intact_over_a_bad_way() {
    a_thousand_transfers(Shape::default());
}

#[test]
#[ignore = "needs netem: cargo xtask test --kernels"]
fn a_thousand_parallel_transfers_arrive_intact_over_a_bad_way_without_offloads() {
    a_thousand_transfers(Shape {
        offloads: false,
        ..Shape::routed()
    });
}

#[test]
#[ignore = "needs netem: cargo xtask test --kernels"]
fn datagrams_that_come_back_over_a_bad_way_are_whole_and_from_the_container() {
    need(Need::Netem);
    // Fewer than a socket's buffer holds: only netem is to lose some.
    const DATAGRAMS: u32 = 150;
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology.attach("web", 0, &["8080:80/udp"]);
    spoil(&topology);
    let capture = Capture::start(&topology.client, "eth0");
    for address in [HOST, HOST6] {
        let to = SocketAddr::new(address, 8080);
        let socket = clients::datagram_socket(&topology.client, to).expect("a socket");
        let own = socket.local_addr().expect("an address");
        for number in 0..DATAGRAMS {
            socket
                .send(format!("question {number}").as_bytes())
                .expect("send");
        }
        // What does not come within this time is lost: delays are a hundredth of it.
        let silence = patient(Duration::from_secs(2));
        socket.set_read_timeout(Some(silence)).expect("a limit");
        let mut answered = BTreeSet::new();
        let mut buffer = [0; 256];
        while let Ok(length) = socket.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            let number = text.strip_prefix(&format!("web {own}\nquestion "));
            let number = number.unwrap_or_else(|| panic!("{to} answered {text:?}"));
            answered.insert(number.parse::<u32>().expect("a number"));
        }
        // Each way loses one in fifty; the server takes no part in that.
        let enough = DATAGRAMS as usize * 8 / 10;
        assert!(answered.len() > enough, "{to}: {} answers", answered.len());
    }
    assert_eq!(faults(&capture.finish(), false), Vec::<String>::new());
}
