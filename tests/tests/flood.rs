//! Floods of spoofed openings and of short connections, of ten times what the table of young flows holds,
//! beside connections that live.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::ops::Range;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use portfwd_common::flow::{ASSURED_AFTER, MAX_STREAMS, MAX_YOUNG_FLOWS};
use portfwd_common::maps;
use portfwd_common::masquerade::MAX_YOUNG;
use portfwd_tests::clients::{ask_stream, bound_socket, connect, datagram_socket, echo};
use portfwd_tests::datapath::{Burst, Datapath, Program};
use portfwd_tests::deadline::{PATIENCE, patient, until};
use portfwd_tests::kernel;
use portfwd_tests::packet::{Frame, Transport, flag};
use portfwd_tests::servers::Server;
use portfwd_tests::table::{Ends, at, families, inbound};
use portfwd_tests::topology::{FOREIGN, FOREIGN6, GATEWAY_MAC, HOST, HOST6, Shape, Topology};

const SYN: u8 = flag::SYN;
const ACK: u8 = flag::ACK;
const FIN: u8 = flag::FIN | flag::ACK;
const SYN_ACK: u8 = flag::SYN | flag::ACK;

/// How many spoofed senders of each family a flood has: full size, with `PORTFWD_FULL`, is ten times what the
/// table of young flows holds, 655,360; else three times, as the runs take their time.
static MANY: LazyLock<u32> = LazyLock::new(|| {
    let times = if std::env::var_os("PORTFWD_FULL").is_some() {
        10
    } else {
        3
    };
    times * MAX_YOUNG_FLOWS
});
/// Connections that live beside them, of each family and kind.
const ALIVE: usize = 50;
/// How many broken ones a failure shows: each takes its time.
const SHOWN: usize = 3;
/// A SYN that is lost is sent again after 1, and after 3 seconds (RFC 6298, section 2).
const TWO_RETRANSMISSIONS: Duration = Duration::from_secs(4);

fn published() -> Topology {
    let topology = Topology::new(Shape::default());
    topology.attach("web", 0, &["8080:80", "8081:81", "8080:80/udp"]);
    topology
}

/// Writes the number of a spoofer into a frame: the low half into the address, the rest into the port. No
/// program looks at the checksums.
fn spoof(frame: &mut [u8], number: u32, (address, port): (usize, usize)) {
    let half = |number: u32| u16::try_from(number).expect("16 bits").to_be_bytes();
    frame[address..address + 2].copy_from_slice(&half(number & 0xffff));
    frame[port..port + 2].copy_from_slice(&half(2_000 + (number >> 16)));
}

/// What is sent of each spoofed connection, and by whom it comes in.
struct Step {
    program: Program,
    frame: Vec<u8>,
    spoofed: (usize, usize),
}

/// A spoofer, as its first frame has it, of a range for tests (RFC 2544) or for documentation.
fn spoofer(ends: &Ends) -> SocketAddr {
    let text = if ends.client.is_ipv4() {
        "198.18.0.1"
    } else {
        "2001:db8:2::1"
    };
    at(text.parse().expect("an address"), 2_000)
}

/// Where the frame has the address's number and the port of a spoofer.
fn places(ends: &Ends, program: Program) -> (usize, usize) {
    match (ends.client.is_ipv4(), program) {
        (true, Program::Link) => (32, 36),
        (true, _) => (28, 34),
        (false, Program::Link) => (50, 56),
        (false, _) => (34, 54),
    }
}

fn step(ends: &Ends, program: Program, frame: Frame) -> Step {
    let frame = match program {
        Program::Link => frame.on_link([2, 0, 0, 88, 0, 2], GATEWAY_MAC),
        _ => inbound(frame),
    };
    Step {
        program,
        frame: frame.to_bytes(),
        spoofed: places(ends, program),
    }
}

/// A segment of the spoofer, or of the container; the spoofer's acknowledges what it has seen, or a number
/// that it made up.
fn segment(ends: &Ends, program: Program, flags: u8, acknowledgment: u32) -> Step {
    let (spoofer, host, web) = (spoofer(ends), at(ends.host, 8080), at(ends.web, 80));
    let (source, destination) = match program {
        Program::Link => (web, spoofer),
        _ => (spoofer, host),
    };
    let mut frame = Frame::tcp(source, destination, flags);
    frame.transport = Transport::Tcp {
        flags,
        sequence: 5_000,
        acknowledgment,
        options: Vec::new(),
    };
    step(ends, program, frame)
}

/// The steps of each of these spoofed connections, one connection after the other.
fn flood(burst: &mut Burst, steps: &mut [Step], numbers: Range<u32>) {
    for number in numbers {
        for step in &mut *steps {
            spoof(&mut step.frame, number, step.spoofed);
            burst.run(step.program, &step.frame);
        }
    }
}

/// Connections over TCP, half of them idle from the beginning, with both ends: nobody gives them up.
struct Alive(Vec<[TcpStream; 2]>);

impl Alive {
    fn open(topology: &Topology) -> Self {
        let [web, _] = &topology.containers;
        let mut pairs = Vec::new();
        for (host, container) in [HOST, HOST6].into_iter().zip(web.addresses()) {
            let listener = web
                .namespace
                .run(|| TcpListener::bind(at(container, 81)))
                .expect("listen");
            for number in 0..ALIVE {
                let client = connect(&topology.client, at(host, 8081)).expect("connect");
                let (server, _) = listener.accept().expect("accept");
                let limit = Some(patient(PATIENCE));
                server.set_read_timeout(limit).expect("a limit");
                let pair = [client, server];
                if number % 2 == 0 {
                    carries(&pair).expect("data both ways");
                }
                pairs.push(pair);
            }
        }
        Self(pairs)
    }
    #[track_caller]
    fn all_go_on(&self, after: &str) {
        let broken: Vec<String> = (0..)
            .zip(&self.0)
            .filter_map(|(number, pair): (u32, _)| {
                let error = carries(pair).err()?;
                Some(format!("{number}: {error}"))
            })
            .take(SHOWN)
            .collect();
        assert!(broken.is_empty(), "after {after}: {broken:?}");
    }
}

/// Data from the container first: what is idle has to be found from that side too.
fn carries([client, server]: &[TcpStream; 2]) -> io::Result<()> {
    for (mut from, mut to) in [(server, client), (client, server)] {
        from.write_all(b"still here")?;
        to.read_exact(&mut [0; 10])?;
    }
    Ok(())
}

/// A real client comes in while `work` goes on, again and again: in time, each of them.
fn while_clients_come(topology: &Topology, what: &str, work: impl FnOnce()) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients = scope.spawn(|| {
            let mut slowest = Duration::ZERO;
            let mut number = 0;
            while !done.load(Ordering::Relaxed) || number == 0 {
                for address in [HOST, HOST6] {
                    let begin = Instant::now();
                    let stream = connect(&topology.client, at(address, 8080));
                    let stream = stream.unwrap_or_else(|error| panic!("{what}: {error}"));
                    slowest = slowest.max(begin.elapsed());
                    ask_stream(&stream).unwrap_or_else(|error| panic!("{what}: {error}"));
                    number += 1;
                }
            }
            slowest
        });
        work();
        done.store(true, Ordering::Relaxed);
        let slowest = clients.join().expect("every client is served");
        assert!(
            slowest < patient(TWO_RETRANSMISSIONS),
            "{what}: {slowest:?}"
        );
    });
}

/// What becomes of connections, old and new, beside many of these.
fn survives(what: &str, count: u32, steps: fn(&Ends) -> Vec<Step>) {
    let topology = published();
    let _servers = topology.serve();
    let datapath = Datapath::open(&topology);
    let alive = Alive::open(&topology);
    while_clients_come(&topology, what, || {
        topology.host.run(|| {
            for ends in families() {
                let mut burst = datapath.burst("eth0", "veth1");
                flood(&mut burst, &mut steps(&ends), 0..count);
            }
        });
    });
    alive.all_go_on(what);
}

// Fails if openings share a table with established connections, or push one another out before a real
// client has answered.
#[test]
fn a_flood_of_spoofed_syns_breaks_and_holds_up_nothing() {
    survives("spoofed SYNs", *MANY, |ends| {
        vec![segment(ends, Program::Device, SYN, 0)]
    });
}

// Fails if an acknowledgment settles a flow whatever its number (`proves` in parse.rs).
#[test]
fn a_flood_of_spoofed_syns_with_blind_acknowledgments_breaks_and_holds_up_nothing() {
    survives("SYNs and blind ACKs", *MANY, |ends| {
        vec![
            segment(ends, Program::Device, SYN, 0),
            segment(ends, Program::Device, ACK, 77),
        ]
    });
}

// Fails if the container's answer settles a flow.
#[test]
fn a_flood_of_spoofed_syns_that_are_answered_breaks_and_holds_up_nothing() {
    survives("answered SYNs", *MANY, |ends| {
        vec![
            segment(ends, Program::Device, SYN, 0),
            segment(ends, Program::Link, SYN_ACK, 5_001),
        ]
    });
    survives("answered SYNs and blind ACKs", *MANY, |ends| {
        vec![
            segment(ends, Program::Device, SYN, 0),
            segment(ends, Program::Link, SYN_ACK, 5_001),
            segment(ends, Program::Device, ACK, 77),
            segment(ends, Program::Link, flag::RST, 0),
        ]
    });
}

// Fails if a closed connection stays among the settled ones (`is_settled` in flow/state.rs).
#[test]
fn many_short_connections_break_and_hold_up_nothing() {
    survives("short connections", *MANY, |ends| {
        vec![
            segment(ends, Program::Device, SYN, 0),
            segment(ends, Program::Link, SYN_ACK, 5_001),
            segment(ends, Program::Device, ACK, 5_001),
            segment(ends, Program::Device, FIN, 5_001),
            segment(ends, Program::Link, FIN, 5_002),
            segment(ends, Program::Device, ACK, 5_002),
        ]
    });
}

/// A stream of datagrams between a client and a container's socket.
struct Stream {
    client: UdpSocket,
    server: UdpSocket,
}

impl Stream {
    /// Goes on until it counts as a stream.
    fn open(topology: &Topology, host: IpAddr, container: IpAddr) -> Self {
        let [web, _] = &topology.containers;
        let server = bound_socket(&web.namespace, at(container, 80)).expect("bind");
        let client = datagram_socket(&topology.client, at(host, 8080)).expect("a socket");
        let own = client.local_addr().expect("an address").to_string();
        until("the stream to be assured", PATIENCE, || {
            client.send(b"question").expect("send");
            let (_, peer) = server.recv_from(&mut [0; 64]).expect("a question");
            server.send_to(b"answer", peer).expect("send");
            client.recv(&mut [0; 64]).expect("an answer");
            let flows = topology.portfwd(&["--json", "flows"]).expect_ok().json();
            let flows = flows.as_array().expect("an array").clone();
            let mut flows = flows.iter().filter(|flow| flow["client"] == own.as_str());
            flows.any(|flow| flow["state"] == "assured").then_some(())
        });
        server
            .connect(client.local_addr().expect("an address"))
            .expect("connect");
        Self { client, server }
    }
}

// Fails if datagrams that are answered, as they are to spoofed sources too, count as streams
// (`after_datagram` in flow/state.rs): nothing that the container sends afterwards would arrive.
#[test]
fn a_flood_of_spoofed_datagrams_ends_no_stream() {
    let topology = published();
    let datapath = Datapath::open(&topology);
    let streams = families().map(|ends| (ends, Stream::open(&topology, ends.host, ends.web)));
    for (ends, stream) in &streams {
        topology.host.run(|| {
            let mut burst = datapath.burst("eth0", "veth1");
            flood(&mut burst, &mut datagrams(ends), 0..*MANY);
        });
        stream.server.send(b"more").expect("send");
        let length = stream
            .client
            .recv(&mut [0; 64])
            .expect("the stream goes on");
        assert_eq!(length, 4);
    }
}

/// Datagrams of a spoofer that counts as a stream: a question, an answer, and later another question.
fn datagrams(ends: &Ends) -> [Step; 2] {
    let request = Frame::udp(spoofer(ends), at(ends.host, 8080), b"question");
    let answer = Frame::udp(at(ends.web, 80), spoofer(ends), b"answer");
    [
        step(ends, Program::Device, request),
        step(ends, Program::Link, answer),
    ]
}

// Fails if UDP streams share a table with connections (`home` in flow.rs).
#[test]
fn a_flood_of_spoofed_streams_breaks_and_holds_up_nothing() {
    // What the table of young flows holds of them at a time.
    const AT_ONCE: u32 = 50_000;
    let topology = published();
    let _servers = topology.serve();
    let datapath = Datapath::open(&topology);
    let alive = Alive::open(&topology);
    while_clients_come(&topology, "spoofed streams", || {
        topology.host.run(|| {
            for first in (0..*MANY).step_by(AT_ONCE as usize) {
                let numbers = first..(first + AT_ONCE).min(*MANY);
                for ends in families() {
                    let mut burst = datapath.burst("eth0", "veth1");
                    flood(&mut burst, &mut datagrams(&ends), numbers.clone());
                }
                // The rule itself has this time: a flow of that age is a stream when its client goes on.
                thread::sleep(Duration::from_secs(ASSURED_AFTER.into()));
                for ends in families() {
                    let mut burst = datapath.burst("eth0", "veth1");
                    flood(&mut burst, &mut datagrams(&ends)[..1], numbers.clone());
                }
            }
        });
    });
    for table in [maps::STREAMS_V4, maps::STREAMS_V6] {
        let table = topology.pinned(table);
        let streams = kernel::keys(&table, kernel::key_size(&table)).expect("keys");
        assert!(streams.len() as u32 > MAX_STREAMS / 2, "{}", streams.len());
    }
    alive.all_go_on("spoofed streams");
}

// Fails if masqueraded flows that open share a table with those that are established (`table` in pair.rs).
#[test]
fn a_container_that_opens_many_connections_ends_none_of_others() {
    /// Toward each of 12 destinations, six times what the table takes.
    const AT_EACH: u16 = (MAX_YOUNG / 4) as u16;
    let topology = Topology::new(Shape::forwarding());
    let _server = Server::start(&topology.foreign, &[FOREIGN, FOREIGN6], 7000, "foreign");
    topology.masquerade_containers();
    let datapath = Datapath::open(&topology);
    let [web, greedy] = &topology.containers;
    let streams = [FOREIGN, FOREIGN6].map(|to| {
        let stream = connect(&web.namespace, at(to, 7000)).expect("connect");
        ask_stream(&stream).expect("an answer");
        stream
    });
    topology.host.run(|| {
        let mut burst = datapath.burst("eth1", "veth2");
        for (ends, from) in families().into_iter().zip(greedy.addresses()) {
            let frame = Frame::tcp(at(from, 2_000), at(ends.foreign, 80), SYN);
            let mut frame = frame.to_bytes();
            let (_, port) = places(&ends, Program::Device);
            let last = port - 2;
            for destination in 0..12 {
                frame[last..last + 2].copy_from_slice(&[destination, 80]);
                // Ports that are kept.
                for number in 2_000_u16..2_000 + AT_EACH {
                    frame[port..port + 2].copy_from_slice(&number.to_be_bytes());
                    burst.leave(&frame);
                }
            }
        }
    });
    for stream in &streams {
        echo(stream, b"still here").expect("the connection goes on");
    }
}
