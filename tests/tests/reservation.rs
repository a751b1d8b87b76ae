//! A published port is reserved: no process of the host binds it, and nobody holds a socket for that.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, socket};
use portfwd_tests::clients::{
    self,
    Protocol::{self, Tcp, Udp},
};
use portfwd_tests::namespace::Namespace;
use portfwd_tests::needs::{Need, need};
use portfwd_tests::topology::{HOST, HOST6, Shape, Topology};

/// Binds, and lets go at once.
fn try_bind(namespace: &Namespace, protocol: Protocol, to: &str) -> io::Result<SocketAddr> {
    let to: SocketAddr = to.parse().expect("an address");
    namespace.run(|| match protocol {
        Protocol::Tcp => TcpListener::bind(to)?.local_addr(),
        Protocol::Udp => UdpSocket::bind(to)?.local_addr(),
    })
}

/// What is wrong with the binds that must be refused, and with those that must not be.
fn faults(namespace: &Namespace, rows: &[(Protocol, &str, bool)]) -> Vec<String> {
    let fault = |(protocol, to, refused): &(Protocol, &str, bool)| {
        let outcome = try_bind(namespace, *protocol, to);
        let as_expected = match &outcome {
            Ok(_) => !refused,
            Err(error) => *refused && error.kind() == ErrorKind::AddrInUse,
        };
        (!as_expected).then(|| format!("{protocol:?} {to}: {outcome:?}"))
    };
    rows.iter().filter_map(fault).collect()
}

/// Instants within an attach at which a process tries to take the port.
const INSTANTS: u32 = 60;

/// Fails if a program of `bind` looks at another protocol, family, address or port than the call names
/// (`is_taken` in bind.rs).
#[test]
fn what_is_published_no_process_of_the_host_can_bind() {
    let topology = Topology::new(Shape::default());
    let specs = [
        "8080:80",
        "8081:81/udp",
        "192.0.2.1:8082:82",
        "127.0.0.1:8083:83",
        "[::1]:8084:84",
        "8100-8199:8100-8199",
        "0.0.0.0:8085:85",
        "[::]:8086:86",
        "192.0.2.1:9000-9600:9000-9600",
    ];
    topology.attach("web", 0, &specs);
    let published = [
        (Tcp, "0.0.0.0:8080", true),
        (Tcp, "127.0.0.1:8080", true),
        (Tcp, "192.0.2.1:8080", true),
        (Tcp, "[::]:8080", true),
        (Tcp, "[::1]:8080", true),
        (Tcp, "[2001:db8:1::1]:8080", true),
        (Tcp, "[::ffff:127.0.0.1]:8080", true),
        (Udp, "0.0.0.0:8081", true),
        (Udp, "[::]:8081", true),
        (Tcp, "192.0.2.1:8082", true),
        (Tcp, "[::ffff:192.0.2.1]:8082", true),
        (Tcp, "0.0.0.0:8082", true),
        (Tcp, "[::]:8082", true),
        (Tcp, "127.0.0.1:8083", true),
        (Tcp, "0.0.0.0:8083", true),
        (Tcp, "[::1]:8084", true),
        (Tcp, "[::]:8084", true),
        (Tcp, "127.0.0.1:8100", true),
        (Tcp, "127.0.0.1:8199", true),
        (Tcp, "127.0.0.1:8085", true),
        (Tcp, "[::1]:8086", true),
        (Tcp, "192.0.2.1:9000", true),
        (Tcp, "192.0.2.1:9300", true),
        (Tcp, "192.0.2.1:9600", true),
        (Tcp, "0.0.0.0:9300", true),
        (Tcp, "[::]:9600", true),
    ];
    let others = [
        (Udp, "0.0.0.0:8080", false),
        (Tcp, "0.0.0.0:8081", false),
        (Tcp, "127.0.0.1:8082", false),
        (Tcp, "[2001:db8:1::1]:8082", false),
        (Tcp, "192.0.2.1:8083", false),
        (Tcp, "127.0.0.1:8084", false),
        (Tcp, "0.0.0.0:8084", false),
        (Tcp, "0.0.0.0:8079", false),
        (Tcp, "0.0.0.0:8099", false),
        (Tcp, "0.0.0.0:8200", false),
        (Tcp, "[::1]:8085", false),
        (Tcp, "0.0.0.0:8086", false),
        (Tcp, "127.0.0.1:9000", false),
        (Tcp, "127.0.0.1:9300", false),
        (Udp, "192.0.2.1:9300", false),
        (Tcp, "[::1]:9300", false),
        (Tcp, "192.0.2.1:8999", false),
        (Tcp, "192.0.2.1:9601", false),
        (Udp, "224.0.0.251:8081", false),
        // The container's ports are not the host's.
        (Tcp, "0.0.0.0:80", false),
    ];
    let both = [&published[..], &others].concat();
    assert_eq!(faults(&topology.host, &both), [""; 0]);
    for elsewhere in [&topology.client, &topology.containers[0].namespace] {
        let rows = [(Tcp, "0.0.0.0:8080", false), (Udp, "[::]:8081", false)];
        assert_eq!(faults(elsewhere, &rows), [""; 0]);
    }
    topology.portfwd(&["detach", "web"]).expect_ok();
    let free: Vec<_> = both
        .iter()
        .map(|(protocol, to, _)| (*protocol, *to, false))
        .collect();
    assert_eq!(faults(&topology.host, &free), [""; 0]);
}

/// Fails with a hook that sees what the kernel has chosen (`post_bind`).
#[test]
fn what_the_kernel_chooses_is_left_to_it() {
    let topology = Topology::new(Shape::default());
    topology.attach("web", 0, &["8080-8083:8080-8083"]);
    topology
        .host
        .set_sysctl("ipv4/ip_local_port_range", "8080 8083");
    let chosen = (0..4)
        .map(|_| topology.host.run(|| TcpListener::bind("0.0.0.0:0")))
        .collect::<io::Result<Vec<_>>>()
        .expect("a port of the range");
    assert_eq!(chosen.len(), 4);
}

/// Fails if the last look at the host's sockets comes before the claim, or is not made (`claim` in apply.rs): then
/// both win.
#[test]
fn of_a_process_and_an_attach_that_race_for_a_port_exactly_one_wins() {
    let topology = Topology::new(Shape::default());
    topology.attach("first", 1, &["9000:90"]);
    let begin = Instant::now();
    topology.attach("web", 0, &["8080:80"]);
    let length = begin.elapsed();
    topology.portfwd(&["detach", "web"]).expect_ok();
    let mut winners = [0; 2];
    for instant in 0..INSTANTS {
        let start = Barrier::new(2);
        let (bound, attached) = thread::scope(|scope| {
            let racer = scope.spawn(|| {
                topology.host.run(|| {
                    start.wait();
                    thread::sleep(length * instant / INSTANTS);
                    TcpListener::bind("0.0.0.0:8080")
                })
            });
            start.wait();
            let attached = topology.try_attach("web", 0, &["8080:80"]);
            (racer.join().expect("no panic"), attached)
        });
        match (bound, attached.code) {
            (Err(error), 0) => {
                assert_eq!(error.kind(), ErrorKind::AddrInUse);
                winners[0] += 1;
                topology.portfwd(&["detach", "web"]).expect_ok();
            }
            (Ok(_), 3) => {
                attached.expect_stderr("held by: process reservation");
                winners[1] += 1;
            }
            (bound, code) => panic!("{bound:?}, and the attach ended with {code}"),
        }
    }
    assert!(winners.iter().all(|wins| *wins > 0), "{winners:?}");
}

/// Fails if the state of such sockets is not asked for (`BOUND_INACTIVE` in sockets.rs).
#[test]
fn a_socket_that_only_holds_a_port_is_a_listener() {
    need(Need::BoundSockets);
    let topology = Topology::new(Shape::default());
    let held = topology.host.run(|| {
        let held = socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .expect("a socket");
        let any: SocketAddr = "0.0.0.0:8080".parse().expect("an address");
        bind(held.as_raw_fd(), &SockaddrStorage::from(any)).expect("a port");
        held
    });
    topology
        .try_attach("web", 0, &["8080:80"])
        .expect_code(3)
        .expect_stderr("held by: process reservation");
    drop(held);
    topology.attach("web", 0, &["8080:80"]);
}

/// Fails if a claim outlives the transaction that it was made for (`CLAIM_LIFETIME`, and `roll_back`).
#[test]
fn an_attach_that_fails_leaves_its_ports_free() {
    let topology = Topology::new(Shape::default());
    topology.attach("first", 1, &["9000:90"]);
    topology
        .try_attach("web", 0, &["8080:80", "9000:90"])
        .expect_code(3);
    let free = [(Tcp, "0.0.0.0:8080", false), (Tcp, "0.0.0.0:9000", true)];
    assert_eq!(faults(&topology.host, &free), [""; 0]);
}

/// A host process still reaches what is published, and its own connections keep their ports.
#[test]
fn a_reserved_port_serves() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology.attach("web", 0, &["8080:80"]);
    for host in [HOST, HOST6] {
        let to = SocketAddr::new(host, 8080);
        for namespace in [&topology.client, &topology.host] {
            assert!(clients::serves(namespace, Tcp, to), "{to}");
        }
    }
    let own = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), 8080);
    assert!(clients::serves(&topology.host, Tcp, own));
}
