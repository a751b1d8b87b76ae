//! Clients that come again from the port of a connection that has just ended, while one end of it is in
//! TIME_WAIT.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use portfwd_common::maps;
use portfwd_common::masquerade::{Direction, Half, Key};
use portfwd_common::net::{Ip, NetPort};
use portfwd_tests::clients::connect_from;
use portfwd_tests::deadline::{PATIENCE, until};
use portfwd_tests::kernel;
use portfwd_tests::namespace::Namespace;
use portfwd_tests::table::at;
use portfwd_tests::topology::{CLIENT, CLIENT6, FOREIGN, FOREIGN6, HOST, HOST6, Shape, Topology};

/// The number of TCP, and of its state TIME_WAIT in /proc/net/tcp.
const TCP: u8 = 6;
const TIME_WAIT: &str = "06";

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// The client closes first, and is in TIME_WAIT.
    Client,
    /// The service closes first, and is.
    Service,
    /// The client resets it, and nobody is.
    Reset,
}

/// Whether the namespace has a connection from or to this port in TIME_WAIT.
fn waits(namespace: &Namespace, port: u16) -> bool {
    let digits = format!(":{port:04X}");
    namespace.run(|| {
        ["tcp", "tcp6"].into_iter().any(|table| {
            let table = fs::read_to_string(format!("/proc/thread-self/net/{table}"));
            table.expect("a table of sockets").lines().any(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                let ends = words.get(1..3).unwrap_or_default();
                words.get(3) == Some(&TIME_WAIT) && ends.iter().any(|end| end.ends_with(&digits))
            })
        })
    })
}

/// A client that always comes from the same port, and the service that it gets to.
struct Pair<'a> {
    client: &'a Namespace,
    service: &'a Namespace,
    listener: TcpListener,
    from: SocketAddr,
    to: SocketAddr,
}

impl Pair<'_> {
    /// Connects, as soon as the kernel gives the port again: after a second, if it has it in TIME_WAIT
    /// (`tcp_tw_reuse`).
    fn connect(&self) -> [TcpStream; 2] {
        let stream = until(
            "the port to be given again",
            PATIENCE,
            || match connect_from(self.client, self.from, self.to) {
                Ok(stream) => Some(stream),
                Err(error) if is_taken(&error) => None,
                Err(error) => panic!("{} to {}: {error}", self.from, self.to),
            },
        );
        let (accepted, seen) = self.listener.accept().expect("a connection");
        assert_eq!(seen.port(), self.from.port());
        [stream, accepted]
    }

    fn end(&self, ending: Ending, [mut client, mut service]: [TcpStream; 2]) {
        let port = self.from.port();
        match ending {
            Ending::Client => {
                drop(client);
                assert_eq!(service.read(&mut [0; 16]).expect("its end"), 0);
                drop(service);
                until("TIME_WAIT", PATIENCE, || {
                    waits(self.client, port).then_some(())
                });
            }
            Ending::Service => {
                drop(service);
                assert_eq!(client.read(&mut [0; 16]).expect("its end"), 0);
                drop(client);
                until("TIME_WAIT", PATIENCE, || {
                    waits(self.service, port).then_some(())
                });
            }
            Ending::Reset => {
                let at_once = libc::linger {
                    l_onoff: 1,
                    l_linger: 0,
                };
                setsockopt(&client, sockopt::Linger, &at_once).expect("no waiting");
                drop(client);
                let error = service.read(&mut [0; 16]).expect_err("a reset");
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            }
        }
    }

    /// One connection after the other, each of them like the first.
    fn comes_again(&self, is_settled: impl Fn() -> bool) {
        self.client.set_sysctl("ipv4/tcp_tw_reuse", "1");
        for ending in [Ending::Client, Ending::Service, Ending::Reset] {
            for time in 0..2 {
                let mut ends = self.connect();
                for (from, to) in [(0, 1), (1, 0)] {
                    ends[from].write_all(b"across").expect("send");
                    ends[to].read_exact(&mut [0; 6]).expect("receive");
                }
                assert!(is_settled(), "{ending:?}, time {time}, {}", self.to);
                self.end(ending, ends);
            }
        }
        // What the last one has left serves as well.
        self.connect();
    }
}

fn is_taken(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::AddrNotAvailable | ErrorKind::AddrInUse
    )
}

fn listener(namespace: &Namespace, address: SocketAddr) -> TcpListener {
    namespace
        .run(|| TcpListener::bind(address))
        .expect("listen")
}

// Fails if a SYN does not open a new flow in place of one that is closed or reset (`request` in first.rs):
// the connection would stay among those that are closed.
#[test]
fn a_client_comes_again_through_a_published_port() {
    let topology = Topology::new(Shape::default());
    topology.attach("web", 0, &["8080:80"]);
    let web = &topology.containers[0];
    for ((own, host), container) in [(CLIENT, HOST), (CLIENT6, HOST6)]
        .into_iter()
        .zip(web.addresses())
    {
        let pair = Pair {
            client: &topology.client,
            service: &web.namespace,
            listener: listener(&web.namespace, at(container, 80)),
            from: at(own, 41_000),
            to: at(host, 8080),
        };
        let client = pair.from.to_string();
        pair.comes_again(|| {
            let flows = topology.portfwd(&["--json", "flows"]).expect_ok().json();
            let flows = flows.as_array().expect("an array").clone();
            let own = flows.iter().find(|flow| flow["client"] == client.as_str());
            own.is_some_and(|flow| flow["state"] == "established")
        });
    }
}

// Fails if a closed flow does not serve the next connection of its port (`out` in masquerade.rs): that one
// would leave from another port.
#[test]
fn a_container_comes_again_under_the_hosts_address() {
    let topology = Topology::new(Shape::forwarding());
    topology.masquerade_containers();
    let settled = topology.pinned(maps::MASQUERADED);
    let web = &topology.containers[0];
    let end = |end: SocketAddr| (Ip::from(end.ip()), NetPort::new(end.port()));
    for (own, far) in web.addresses().into_iter().zip([FOREIGN, FOREIGN6]) {
        let pair = Pair {
            client: &web.namespace,
            service: &topology.foreign,
            listener: listener(&topology.foreign, at(far, 7000)),
            from: at(own, 5_000),
            to: at(far, 7000),
        };
        let key = Key::new(Direction::Out, TCP, end(pair.from), end(pair.to));
        pair.comes_again(|| {
            let mut value = [0; size_of::<Half>()];
            kernel::map_value(&settled, bytemuck::bytes_of(&key), &mut value).expect("a lookup")
        });
    }
}

// Fails if a socket in TIME_WAIT owns its connection (`host_owns` in forward.rs).
#[test]
fn a_port_that_the_host_has_in_time_wait_is_the_containers() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    for (number, (own, host)) in [(CLIENT, HOST), (CLIENT6, HOST6)].into_iter().enumerate() {
        let port = 8_100 + u16::try_from(number).expect("a small number");
        let (from, to): (SocketAddr, IpAddr) = (at(own, 42_000), host);
        let pair = Pair {
            client: &topology.client,
            service: &topology.host,
            listener: listener(&topology.host, at(to, port)),
            from,
            to: at(to, port),
        };
        pair.end(Ending::Service, pair.connect());
        drop(pair);
        topology.attach(&format!("web{number}"), 0, &[&format!("{port}:80")]);
        let stream = connect_from(&topology.client, from, at(to, port)).expect("connect");
        let answer = portfwd_tests::clients::ask_stream(&stream).expect("an answer");
        assert_eq!((answer.label.as_str(), answer.seen), ("web", from));
        assert!(waits(&topology.host, 42_000), "and the host still has it");
    }
}
