//! The two halves of a masqueraded flow: what becomes of one that has lost the other.

use std::collections::BTreeSet;
use std::hint;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use portfwd_common::flow::State;
use portfwd_common::maps;
use portfwd_common::masquerade::{Direction, Half, Key};
use portfwd_common::net::{Ip, NetPort};
use portfwd_tests::datapath::{Datapath, Program, Verdict};
use portfwd_tests::deadline::{PATIENCE, until};
use portfwd_tests::kernel;
use portfwd_tests::layers::Layers;
use portfwd_tests::packet::Frame;
use portfwd_tests::table::{at, families, inbound};
use portfwd_tests::taken::{comes_out_as, second};
use portfwd_tests::topology::{Shape, Topology};

const UDP: u8 = 17;

/// A host that masquerades, with a flow of each family.
struct Stand {
    topology: Topology,
    /// The tables of young and of settled flows.
    tables: [OwnedFd; 2],
}

/// A flow: the container's end, the host's, and the far one.
#[derive(Clone, Copy)]
struct Flow {
    inside: SocketAddr,
    outside: SocketAddr,
    far: SocketAddr,
}

fn end(socket: SocketAddr) -> (Ip, NetPort) {
    (Ip::from(socket.ip()), NetPort::new(socket.port()))
}

impl Flow {
    fn keys(&self) -> [Key; 2] {
        [
            Key::new(Direction::Out, UDP, end(self.inside), end(self.far)),
            Key::new(Direction::In, UDP, end(self.far), end(self.outside)),
        ]
    }
}

impl Stand {
    fn new() -> Self {
        let topology = Topology::new(Shape::forwarding());
        topology.masquerade_containers();
        let tables = [maps::MASQUERADED_YOUNG, maps::MASQUERADED].map(|name| topology.pinned(name));
        Self { topology, tables }
    }

    fn flows() -> [Flow; 2] {
        families().map(|ends| {
            let host = if ends.foreign.is_ipv4() {
                "203.0.113.1"
            } else {
                "2001:db8:3::1"
            };
            Flow {
                inside: at(ends.web, 5_000),
                outside: at(host.parse().expect("an address"), 5_000),
                far: at(ends.foreign, 53),
            }
        })
    }

    /// What becomes of a question: from where it leaves.
    fn question(&self, flow: &Flow) -> SocketAddr {
        let frame = Frame::udp(flow.inside, flow.far, b"question");
        let datapath = Datapath::open(&self.topology);
        let (verdict, bytes) = datapath.run(Program::Egress, "eth1", &frame.to_bytes());
        assert_eq!(verdict, Verdict::Next);
        let at = bytes.len() - b"question".len() - 8;
        let port = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let outside = SocketAddr::new(flow.outside.ip(), port);
        assert_eq!(bytes, frame.between(outside, flow.far).to_bytes());
        outside
    }

    /// Whether an answer reaches the container.
    fn answer(&self, flow: &Flow) -> bool {
        let frame = inbound(Frame::udp(flow.far, flow.outside, b"answer"));
        let datapath = Datapath::open(&self.topology);
        let (_, bytes) = datapath.run(Program::Device, "eth0", &frame.to_bytes());
        let translated = frame.clone().between(flow.far, flow.inside).to_bytes();
        assert!(
            bytes == translated || bytes == frame.to_bytes(),
            "{bytes:02x?}"
        );
        bytes == translated
    }

    fn half(&self, key: &Key) -> Option<Half> {
        let mut value = [0; size_of::<Half>()];
        let mut has = |table: &&OwnedFd| {
            kernel::map_value(table, bytemuck::bytes_of(key), &mut value).expect("a lookup")
        };
        let found = self.tables.iter().any(|table| has(&table));
        found.then(|| bytemuck::pod_read_unaligned(&value))
    }

    fn remove(&self, key: &Key) {
        let remove = |table: &OwnedFd| {
            kernel::remove_map_value(table, bytemuck::bytes_of(key)).expect("a removal")
        };
        let removed = self.tables.each_ref().map(remove);
        assert!(removed.contains(&true), "{key:?} was not there");
    }

    /// Writes a half of a young flow.
    fn put(&self, key: &Key, half: &Half) {
        let [young, _] = &self.tables;
        kernel::put_map_value(young, bytemuck::bytes_of(key), bytemuck::bytes_of(half))
            .expect("an update");
    }
}

// Edge case 30. Fails if a packet writes the half alone that it has found (`advance` in pair.rs).
#[test]
fn a_half_that_was_evicted_is_made_again_from_the_other() {
    let stand = Stand::new();
    for flow in Stand::flows() {
        assert_eq!(stand.question(&flow), flow.outside);
        let [out, back] = flow.keys();
        let whole = stand.half(&out).expect("the out-half");
        assert_eq!(stand.half(&back), Some(whole), "both say the same");

        stand.remove(&back);
        until("the in-half to come back", PATIENCE, || {
            assert_eq!(stand.question(&flow), flow.outside, "the port stays");
            stand.half(&back)
        });
        assert!(stand.answer(&flow));

        stand.remove(&out);
        until("the out-half to come back", PATIENCE, || {
            assert!(stand.answer(&flow));
            stand.half(&out)
        });
        assert_eq!(stand.question(&flow), flow.outside, "the flow goes on");
        let claims = [&out, &back].map(|key| stand.half(key).expect("a half").claim);
        assert_eq!(claims, [whole.claim; 2], "they are a pair still");
    }
}

// Edge case 30. Fails if the claims of two halves are not compared (`pair::advance`).
#[test]
fn a_half_whose_port_another_flow_has_by_now_ends_and_leads_nowhere() {
    let stand = Stand::new();
    for (flow, ends) in Stand::flows().into_iter().zip(families()) {
        assert_eq!(stand.question(&flow), flow.outside);
        let [out, back] = flow.keys();
        // As if the in-half had been evicted and the port claimed for the other container meanwhile.
        let mut rival = stand.half(&back).expect("the in-half");
        rival.container = Ip::from(ends.db);
        rival.claim ^= 2;
        stand.put(&back, &rival);
        let next = until("the flow to notice", PATIENCE, || {
            let outside = stand.question(&flow);
            (outside != flow.outside).then_some(outside)
        });
        assert_eq!(
            stand.half(&back),
            Some(rival),
            "the rival's claim is left alone"
        );
        let moved = Flow {
            outside: next,
            ..flow
        };
        assert!(stand.answer(&moved), "the new port works");
        let own = stand.half(&out).expect("a flow");
        assert_eq!(own.host_port.get(), next.port());
    }
}

// Fails if a half that does not live is not taken away (`seize` in pair.rs).
#[test]
fn a_port_whose_time_is_over_is_claimed_anew() {
    let stand = Stand::new();
    for (flow, ends) in Stand::flows().into_iter().zip(families()) {
        assert_eq!(stand.question(&flow), flow.outside);
        for key in flow.keys() {
            let mut half = stand.half(&key).expect("a half");
            // Ten minutes ago; where the clock is younger, before it began, which is as long ago.
            half.last_seen = half.last_seen.wrapping_sub(600);
            half.last_seen = half.last_seen.min(half.created);
            stand.put(&key, &half);
        }
        assert!(!stand.answer(&flow), "a flow whose time is over");
        let other = Flow {
            inside: at(ends.db, 5_000),
            ..flow
        };
        assert_eq!(
            stand.question(&other),
            flow.outside,
            "the neighbour may keep it"
        );
        assert!(stand.answer(&other));
        assert_ne!(stand.question(&flow), flow.outside, "and has it now");
    }
}

// Fails if packets of one of the two directions do not count (`advance` in pair.rs).
#[test]
fn packets_of_either_direction_keep_both_halves_alive() {
    let stand = Stand::new();
    for flow in Stand::flows() {
        assert_eq!(stand.question(&flow), flow.outside);
        let keys = flow.keys();
        let whole = stand.half(&keys[0]).expect("the out-half");
        for asks in [true, false] {
            let mut old = whole;
            old.last_seen -= 5;
            keys.iter().for_each(|key| stand.put(key, &old));
            match asks {
                true => assert_eq!(stand.question(&flow), flow.outside),
                false => assert!(stand.answer(&flow)),
            }
            for key in &keys {
                let seen = stand.half(key).expect("a half").last_seen;
                assert!(seen >= whole.last_seen, "{asks}: {seen}");
            }
        }
    }
}

// Fails if an error counts as a packet of the flow that it is about (`Back` in masquerade/error.rs).
#[test]
fn errors_do_not_keep_a_masqueraded_flow_alive() {
    let stand = Stand::new();
    for flow in Stand::flows() {
        assert_eq!(stand.question(&flow), flow.outside);
        let keys = flow.keys();
        let mut old = stand.half(&keys[0]).expect("the out-half");
        old.last_seen -= 5;
        keys.iter().for_each(|key| stand.put(key, &old));
        let v4 = flow.far.is_ipv4();
        let quoted = Frame::udp(flow.outside, flow.far, b"question").to_bytes();
        let message = if v4 { 3 } else { 1 };
        let error = Frame::icmp(flow.far.ip(), flow.outside.ip(), message, &quoted[14..]);
        let error = inbound(error).to_bytes();
        let datapath = Datapath::open(&stand.topology);
        let (_, bytes) = datapath.run(Program::Device, "eth0", &error);
        let layers = Layers::of(&bytes).expect("a packet");
        assert_eq!(layers.destination, flow.inside.ip(), "it is translated");
        for key in &keys {
            assert_eq!(stand.half(key), Some(old));
        }
    }
}

// An entry of an LRU table is used again at once, while a packet may still be looking at it. Fails if an answer is
// translated to what the entry says of another flow by then (`find` in pair.rs).
#[test]
fn no_answer_gets_the_ends_of_a_flow_that_has_taken_its_half() {
    let stand = Stand::new();
    let datapath = Datapath::open(&stand.topology);
    for (flow, ends) in Stand::flows().into_iter().zip(families()) {
        assert_eq!(stand.question(&flow), flow.outside);
        let [_, back] = flow.keys();
        let own = stand.half(&back).expect("the in-half");
        flow.keys().iter().for_each(|key| stand.remove(key));
        let mut other = own;
        (other.container, other.container_port) = (Ip::from(ends.db), NetPort::new(6_000));
        other.host_port = NetPort::new(9_999);
        other.claim ^= 2;
        let frame = inbound(Frame::udp(flow.far, flow.outside, b"answer"));
        let answer = frame.to_bytes();
        let translated = frame.between(flow.far, flow.inside).to_bytes();
        // In these states an answer changes nothing: unless a second ends just then, it writes nothing either.
        let states = [State::UdpAnswered, State::UdpAssured];
        for (table, state) in stand.tables.iter().zip(states) {
            let now = |mut half: Half| {
                (half.last_seen, half.state) = (second(), state as u32);
                half
            };
            let others = |number| {
                let mut key = back;
                key.destination_port = NetPort::new(9_000 + number);
                key
            };
            let expected = [translated.clone(), answer.clone()];
            stand.topology.host.run(|| {
                let mut burst = datapath.burst("eth0", "veth1");
                let send = || burst.send(Program::Device, &answer).1.to_vec();
                let values = || [own, other].map(now);
                comes_out_as(&expected, table, back, others, values, send);
            });
        }
    }
}

/// How often two CPUs are let loose on the same thing.
const ROUNDS: u16 = 3_000;

/// What becomes of questions that two CPUs let out at the same moment, round by round. `inside` says from
/// where each of them comes.
fn at_once(
    stand: &Stand,
    inside: [&(dyn Fn(u16) -> SocketAddr + Sync); 2],
) -> Vec<[SocketAddr; 2]> {
    let [flow, _] = Stand::flows();
    let datapath = Datapath::open(&stand.topology);
    let arrived = AtomicU32::new(0);
    let one = |cpu: usize, inside: &(dyn Fn(u16) -> SocketAddr + Sync)| {
        stand.topology.host.run(|| {
            let mut own = CpuSet::new();
            own.set(cpu).expect("a CPU");
            sched_setaffinity(Pid::from_raw(0), &own).expect("a CPU of its own");
            let mut burst = datapath.burst("eth1", "veth1");
            let left = (0..ROUNDS).map(|round| {
                let frame = Frame::udp(inside(round), flow.far, b"question").to_bytes();
                // Both at the same moment, which no lock that sleeps can arrange.
                arrived.fetch_add(1, Ordering::SeqCst);
                let both = (u32::from(round) + 1) * 2;
                for tries in 1_u32.. {
                    if arrived.load(Ordering::SeqCst) >= both {
                        break;
                    }
                    // Somebody else may have the other CPU for a while.
                    match tries % 10_000 {
                        0 => thread::yield_now(),
                        _ => hint::spin_loop(),
                    }
                }
                let layers = Layers::of(burst.leave(&frame)).expect("a packet");
                let (port, _) = layers.ports().expect("ports");
                SocketAddr::new(layers.source, port)
            });
            left.collect::<Vec<_>>()
        })
    };
    let [first, second] = thread::scope(|scope| {
        let second = scope.spawn(|| one(1, inside[1]));
        [one(0, inside[0]), second.join().expect("a thread")]
    });
    first.into_iter().zip(second).map(Into::into).collect()
}

fn port_of_round(round: u16) -> u16 {
    5_000 + round
}

// Fails if a port that was found free is taken although somebody else has it by now (`BPF_NOEXIST` in
// `insert_new` of pair.rs). A half without a claim is one that another CPU is about to take away.
#[test]
fn a_port_that_somebody_else_is_taking_is_left_to_him() {
    let stand = Stand::new();
    let up = ["up", "--lifetime", "unanswered=5"];
    stand.topology.portfwd(&up).expect_ok();
    for flow in Stand::flows() {
        assert_eq!(stand.question(&flow), flow.outside);
        let [out, back] = flow.keys();
        let mut half = stand.half(&back).expect("the in-half");
        stand.remove(&out);
        half.last_seen -= 5;
        half.claim = 0;
        stand.put(&back, &half);
        assert_ne!(stand.question(&flow), flow.outside);
        assert_eq!(stand.half(&back), Some(half), "it is left alone");
    }
}

// What the test above says, with real CPUs; they do not always meet, so that it may pass with that mistake.
#[test]
fn two_flows_that_open_at_once_never_get_one_port() {
    let stand = Stand::new();
    let [ends, _] = families();
    let of = |address| move |round| at(address, port_of_round(round));
    let left = at_once(&stand, [&of(ends.web), &of(ends.db)]);
    let shared: Vec<_> = left.iter().filter(|ends| ends[0] == ends[1]).collect();
    assert!(shared.is_empty(), "{} rounds: {shared:?}", shared.len());
}

// Fails if the half that is there already is left behind when the other one cannot be inserted (`claim` in
// pair.rs), or if the two CPUs disagree about the port.
#[test]
fn a_flow_that_two_cpus_open_at_once_is_one_flow() {
    let stand = Stand::new();
    let [ends, _] = families();
    let of_web = |round| at(ends.web, port_of_round(round));
    let left = at_once(&stand, [&of_web, &of_web]);
    let differ: Vec<_> = left.iter().filter(|ends| ends[0] != ends[1]).collect();
    assert!(differ.is_empty(), "{} rounds: {differ:?}", differ.len());
    let [young, settled] = &stand.tables;
    let keys = [young, settled].map(|table| kernel::keys(table, size_of::<Key>()).expect("keys"));
    let keys: BTreeSet<_> = keys.concat().into_iter().collect();
    assert_eq!(keys.len(), 2 * usize::from(ROUNDS), "two halves a flow");
}
