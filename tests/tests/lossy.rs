//! A thousand transfers at once, to a published port and masqueraded, over a good link and over one that
//! loses, delays, reorders and duplicates packets in both directions (netem).

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
use portfwd_tests::topology::{Container, FOREIGN, FOREIGN6, HOST, HOST6, Shape, Topology};

/// How many transfers are under way at the same time.
const TRANSFERS: usize = 1000;
/// What each carries: more than the first window, so that losses in the middle are repaired.
const LENGTH: usize = 24 << 10;
/// A lost SYN is repeated after 1, 3 and 7 seconds, and so is whatever follows it.
const LIMIT: Duration = Duration::from_secs(60);

/// The limit is far above what a thousand transfers have on the way: only netem is to lose packets.
const CONDITIONS: &str = "root netem limit 100000 loss 2% delay 10ms 5ms reorder 1% duplicate 1%";

/// The ends of many transfers, on either side of the host.
struct Way<'a> {
    senders: Vec<&'a Namespace>,
    to: [SocketAddr; 2],
    /// Both ends of the link outside.
    link: [(&'a Namespace, &'static str); 2],
    outside: &'a Namespace,
    containers: Vec<&'a Container>,
}

/// From outside to a published port.
fn published(topology: &Topology) -> Way<'_> {
    topology.attach("web", 0, &["8080:80"]);
    Way {
        senders: vec![&topology.client],
        to: [HOST, HOST6].map(|address| SocketAddr::new(address, 8080)),
        link: [(&topology.client, "eth0"), (&topology.host, "eth0")],
        outside: &topology.client,
        containers: vec![&topology.containers[0]],
    }
}

/// From two containers to a server outside.
fn masqueraded(topology: &Topology) -> Way<'_> {
    for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        topology.host.set_sysctl(key, "1");
    }
    topology.masquerade_containers();
    let containers: Vec<_> = topology.containers.iter().collect();
    Way {
        senders: containers.iter().map(|one| &one.namespace).collect(),
        to: [FOREIGN, FOREIGN6].map(|address| SocketAddr::new(address, 80)),
        link: [(&topology.foreign, "eth0"), (&topology.host, "eth1")],
        outside: &topology.foreign,
        containers,
    }
}

impl Way<'_> {
    /// Makes the link bad, in both directions.
    fn spoil(&self) {
        for (namespace, device) in self.link {
            let arguments = format!("qdisc add dev {device} {CONDITIONS}");
            namespace.output("tc", &arguments.split(' ').collect::<Vec<_>>());
        }
    }

    /// How many packets the discipline has lost at either end.
    fn lost(&self) -> [u64; 2] {
        self.link.map(|(namespace, device)| {
            let text = namespace.output("tc", &["-s", "-j", "qdisc", "show", "dev", device]);
            let disciplines: Value = serde_json::from_str(&text).expect("tc prints JSON");
            disciplines[0]["drops"].as_u64().expect("a number")
        })
    }

    /// What went wrong with the transfers, all of which are under way at the same time.
    fn transfers(&self) -> Vec<String> {
        thread::scope(|scope| {
            let running: Vec<_> = (0..TRANSFERS)
                .map(|number| {
                    let to = self.to[number % 2];
                    let sender = self.senders[number / 2 % self.senders.len()];
                    scope.spawn(move || {
                        let result = transfer(sender, to, number as u64);
                        result.map_err(|error| format!("transfer {number} to {to}: {error}"))
                    })
                })
                .collect();
            let ended = running.into_iter().map(|one| one.join().expect("a sender"));
            ended.filter_map(Result::err).collect()
        })
    }

    /// Nothing of the containers is seen outside.
    fn assert_translated(&self, frames: &[Captured]) {
        let addresses: Vec<_> = self
            .containers
            .iter()
            .flat_map(|one| one.addresses())
            .collect();
        let untranslated = frames.iter().filter_map(Captured::layers).find(|layers| {
            addresses.contains(&layers.source) || addresses.contains(&layers.destination)
        });
        assert_eq!(
            untranslated, None,
            "an address of a container is seen outside"
        );
    }
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

/// What the captures have to show, whatever was lost: no wrong checksum, which is what `tcpdump -v` looks
/// for. It does not know which checksums the kernel has left to a device and calls them wrong; here they
/// are judged by what the device is to be given (`checksum_faults`), and without offloads there are none.
fn assert_sound(place: &str, frames: &[Captured], shape: Shape) {
    assert!(
        frames.len() > 1000,
        "{} frames at the {place}",
        frames.len()
    );
    let faults = faults(frames, !shape.offloads);
    assert_eq!(faults, Vec::<String>::new(), "{place}, {shape:?}");
}

/// What the link outside does to packets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Link {
    Good,
    Bad,
}

fn a_thousand_transfers(shape: Shape, link: Link, prepare: fn(&Topology) -> Way<'_>) {
    if link == Link::Bad {
        need(Need::Netem);
    }
    let topology = Topology::new(shape);
    let [web, _] = &topology.containers;
    let _sinks = [
        Server::hash(&web.namespace, &web.addresses(), 80),
        Server::hash(&topology.foreign, &[FOREIGN, FOREIGN6], 80),
    ];
    let way = prepare(&topology);
    if link == Link::Bad {
        way.spoil();
    }
    let outside = Capture::start(way.outside, "eth0");
    let inside: Vec<_> = way
        .containers
        .iter()
        .map(|one| Capture::start(&one.namespace, "eth0"))
        .collect();
    let failures = way.transfers();
    let failed = failures.len();
    assert!(
        failures.is_empty(),
        "{failed} failed: {:#?}",
        &failures[..failed.min(5)]
    );
    let frames = outside.finish();
    assert_sound("far side", &frames, shape);
    way.assert_translated(&frames);
    for capture in inside {
        assert_sound("container", &capture.finish(), shape);
    }
    if link == Link::Bad {
        let lost = way.lost();
        assert!(
            lost.iter().all(|lost| *lost > 100),
            "netem lost {lost:?} packets"
        );
    }
}

fn without_offloads() -> Shape {
    Shape {
        offloads: false,
        ..Shape::routed()
    }
}

#[test]
fn a_thousand_parallel_transfers_to_a_published_port_arrive_intact() {
    a_thousand_transfers(Shape::default(), Link::Good, published);
}

#[test]
fn a_thousand_parallel_masqueraded_transfers_arrive_intact() {
    a_thousand_transfers(without_offloads(), Link::Good, masqueraded);
}

#[test]
#[ignore = "needs netem: cargo xtask test --kernels"]
fn a_thousand_parallel_transfers_arrive_intact_over_a_bad_way() {
    a_thousand_transfers(Shape::default(), Link::Bad, published);
}

#[test]
#[ignore = "needs netem: cargo xtask test --kernels"]
fn a_thousand_parallel_transfers_arrive_intact_over_a_bad_way_without_offloads() {
    a_thousand_transfers(without_offloads(), Link::Bad, published);
}

#[test]
#[ignore = "needs netem: cargo xtask test --kernels"]
fn a_thousand_parallel_masqueraded_transfers_arrive_intact_over_a_bad_way() {
    a_thousand_transfers(Shape::default(), Link::Bad, masqueraded);
}

#[test]
#[ignore = "needs netem: cargo xtask test --kernels"]
fn a_thousand_parallel_masqueraded_transfers_arrive_intact_over_a_bad_way_without_offloads() {
    a_thousand_transfers(without_offloads(), Link::Bad, masqueraded);
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
    published(&topology).spoil();
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
