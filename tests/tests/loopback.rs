//! `attach --loopback`: a service on the container's own 127.0.0.1 and ::1 is reached by its published
//! port, and by nothing else.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use portfwd_tests::clients::{self, Closed, Protocol};
use portfwd_tests::deadline::{PATIENCE, until};
use portfwd_tests::kernel;
use portfwd_tests::namespace::Namespace;
use portfwd_tests::needs::{Need, need};
use portfwd_tests::portfwd::{Outcome, expect_error};
use portfwd_tests::ptrace::{self, End};
use portfwd_tests::servers::Server;
use portfwd_tests::topology::{CLIENT, CLIENT6, GATEWAY, GATEWAY6, HOST, HOST6, Shape, Topology};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LOOPBACK6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
const BOTH: [IpAddr; 2] = [LOOPBACK, LOOPBACK6];
/// Kills in a sweep over a command's system calls.
const KILLS: u32 = 60;

fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

fn attach(topology: &Topology, name: &str, container: usize, more: &[&str]) -> Outcome {
    let netns = topology.containers[container].netns();
    topology.portfwd(&[&["attach", name, "--netns", &netns], more].concat())
}

/// A service on the first container's loopback addresses alone.
fn serve(topology: &Topology, port: u16) -> Server {
    Server::start(&topology.containers[0].namespace, &BOTH, port, "valkey")
}

#[track_caller]
fn answers(from: &Namespace, to: SocketAddr) -> SocketAddr {
    let answer = clients::ask(from, Protocol::Tcp, to)
        .unwrap_or_else(|error| panic!("{to} from {}: {error}", from.name()));
    assert_eq!(answer.label, "valkey");
    answer.seen
}

#[track_caller]
fn refuses(from: &Namespace, to: SocketAddr) {
    assert_eq!(
        clients::closed(from, Protocol::Tcp, to),
        Closed::Refused,
        "{to}"
    );
}

// Fails if the programs look the listener up on the address that the packet is sent to, if flows
// (clients, containers) or `host_sockets` (host processes) are not asked, or if the hairpin's are not.
#[test]
fn a_service_on_the_containers_loopback_is_reached_from_everywhere() {
    need(Need::Tcx);
    for shape in [Shape::default(), Shape::routed()] {
        let topology = Topology::watched(shape);
        let _service = serve(&topology, 6379);
        attach(&topology, "db", 0, &["--loopback", "-p", "8080:6379"]).expect_ok();
        for (address, own) in [(HOST, CLIENT), (HOST6, CLIENT6)] {
            assert_eq!(answers(&topology.client, at(address, 8080)).ip(), own);
        }
        for address in [LOOPBACK, LOOPBACK6, HOST, HOST6] {
            answers(&topology.host, at(address, 8080));
        }
        let [itself, neighbour] = &topology.containers;
        for attached in [false, true] {
            if attached {
                topology.attach("neighbour", 1, &["8090:80"]);
            }
            for (address, own) in [
                (HOST, neighbour.v4.into()),
                (HOST6, neighbour.v6.into()),
                (GATEWAY, IpAddr::from(neighbour.v4)),
            ] {
                let seen = answers(&neighbour.namespace, at(address, 8080));
                assert_eq!(seen.ip(), own);
            }
        }
        for address in [HOST, HOST6, GATEWAY, GATEWAY6] {
            answers(&itself.namespace, at(address, 8080));
        }
        topology.take_down();
    }
}

// Fails if the program gives the listener to every packet of the port.
#[test]
fn nothing_of_the_container_is_reached_beside_the_published_port() {
    need(Need::Tcx);
    let topology = Topology::new(Shape::forwarding());
    let _service = serve(&topology, 6379);
    let _other = serve(&topology, 6380);
    let _third = serve(&topology, 6381);
    attach(&topology, "db", 0, &["--loopback", "-p", "8080:6379"]).expect_ok();
    attach(&topology, "db", 0, &["-p", "8081:6381"]).expect_ok();
    let [itself, neighbour] = &topology.containers;
    for address in itself.addresses() {
        for from in [&topology.client, &topology.host, &neighbour.namespace] {
            for port in [6379, 6380, 6381] {
                refuses(from, at(address, port));
            }
            // Published without --loopback, and not published.
            let host = if address.is_ipv4() { HOST } else { HOST6 };
            refuses(from, at(host, 8081));
            refuses(from, at(host, 6379));
        }
    }
    answers(&topology.client, at(HOST, 8080));
}

// Fails if the flow of one published port opens the door for others of the same client.
#[test]
fn a_neighbour_with_a_connection_through_the_published_port_reaches_no_more_than_before() {
    need(Need::Tcx);
    let topology = Topology::new(Shape::default());
    let _service = serve(&topology, 6379);
    attach(&topology, "db", 0, &["--loopback", "-p", "8080:6379"]).expect_ok();
    let [itself, neighbour] = &topology.containers;
    let open = clients::connect(&neighbour.namespace, at(HOST, 8080)).expect("connect");
    clients::ask_stream(&open).expect("an answer");
    let open_of_host = clients::connect(&topology.host, at(LOOPBACK, 8080)).expect("connect");
    clients::ask_stream(&open_of_host).expect("an answer");
    for from in [&neighbour.namespace, &topology.host] {
        for address in itself.addresses() {
            refuses(from, at(address, 6379));
        }
    }
    clients::echo(&open, b"still there").expect("an echo");
    clients::echo(&open_of_host, b"still there").expect("an echo");
}

// Fails if the listener is looked up once and kept.
#[test]
fn a_service_that_is_down_is_refused_and_one_that_is_up_again_is_served() {
    need(Need::Tcx);
    let topology = Topology::new(Shape::default());
    attach(&topology, "db", 0, &["--loopback", "-p", "8080:6379"]).expect_ok();
    let ways = [
        (&topology.client, HOST),
        (&topology.client, HOST6),
        (&topology.host, LOOPBACK),
        (&topology.host, LOOPBACK6),
    ];
    for _ in 0..3 {
        for (from, address) in ways {
            refuses(from, at(address, 8080));
        }
        let service = serve(&topology, 6379);
        for (from, address) in ways {
            answers(from, at(address, 8080));
        }
        let open = clients::connect(&topology.client, at(HOST, 8080)).expect("connect");
        clients::ask_stream(&open).expect("an answer");
        drop(service);
        clients::echo(&open, b"still there").expect("a connection outlives the listener");
    }
}

// Fails if the listener on the loopback address goes before the one that the packet is sent to.
#[test]
fn a_service_on_the_containers_own_address_keeps_its_connections() {
    need(Need::Tcx);
    let topology = Topology::new(Shape::default());
    let container = &topology.containers[0];
    let _own = Server::start(&container.namespace, &container.addresses(), 80, "web");
    let _loopback = Server::start(&container.namespace, &BOTH, 80, "admin");
    let any = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let _any = Server::start(&container.namespace, &any[1..], 81, "any");
    attach(
        &topology,
        "web",
        0,
        &["--loopback", "-p", "8080-8081:80-81"],
    )
    .expect_ok();
    for (from, address) in [
        (&topology.client, HOST),
        (&topology.client, HOST6),
        (&topology.host, LOOPBACK),
    ] {
        for (port, label) in [(8080, "web"), (8081, "any")] {
            let answer = clients::ask(from, Protocol::Tcp, at(address, port)).expect("an answer");
            assert_eq!(answer.label, label);
        }
    }
}

// Fails if only SYNs are given the listener.
#[test]
fn syn_cookies_lead_to_the_listener_too() {
    need(Need::Tcx);
    let topology = Topology::new(Shape::default());
    let container = &topology.containers[0].namespace;
    container.set_sysctl("ipv4/tcp_syncookies", "2");
    let _service = serve(&topology, 6379);
    attach(&topology, "db", 0, &["--loopback", "-p", "8080:6379"]).expect_ok();
    for address in [HOST, HOST6] {
        answers(&topology.client, at(address, 8080));
        answers(&topology.host, at(address, 8080));
    }
    let received = container.counter("TcpExt", "SyncookiesRecv");
    assert!(received >= 4, "{received}");
}

#[test]
fn the_service_is_reached_behind_xdp() {
    need(Need::Tcx);
    let topology = Topology::new(Shape {
        offloads: false,
        ..Shape::default()
    });
    topology
        .portfwd(&["up", "--device", "eth0", "--xdp", "native"])
        .expect_ok();
    let _service = serve(&topology, 6379);
    attach(&topology, "db", 0, &["--loopback", "-p", "8080:6379"]).expect_ok();
    for address in [HOST, HOST6] {
        answers(&topology.client, at(address, 8080));
    }
}

/// Programs on the first container's device.
fn programs(topology: &Topology) -> Vec<u32> {
    topology.containers[0].namespace.run(|| {
        let index = kernel::index_of("eth0");
        kernel::device_programs(index).expect("ask the device")
    })
}

// Fails if the sweep leaves the hook, or takes it away with the first forward.
#[test]
fn the_program_in_the_container_goes_with_the_last_forward_that_needs_it() {
    need(Need::Tcx);
    let topology = Topology::watched(Shape::default());
    let _service = serve(&topology, 6379);
    let gone = || {
        until("the program to go", PATIENCE, || {
            programs(&topology).is_empty().then_some(())
        });
    };
    attach(&topology, "db", 0, &["-p", "8079:6379"]).expect_ok();
    assert_eq!(programs(&topology), Vec::<u32>::new());
    for _ in 0..2 {
        attach(&topology, "db", 0, &["--loopback", "-p", "8080:6379"]).expect_ok();
        // The same again changes nothing.
        attach(&topology, "db", 0, &["--loopback", "-p", "8080:6379"]).expect_ok();
        attach(&topology, "db", 0, &["--loopback", "-p", "8081:6379"]).expect_ok();
        assert_eq!(programs(&topology).len(), 1);
        topology
            .portfwd(&["detach", "db", "-p", "8080:6379"])
            .expect_ok();
        answers(&topology.client, at(HOST, 8081));
        topology
            .portfwd(&["detach", "db", "-p", "8081:6379"])
            .expect_ok();
        gone();
    }
    attach(&topology, "db", 0, &["--loopback", "-p", "8080:6379"]).expect_ok();
    topology.portfwd(&["detach", "db"]).expect_ok();
    gone();
    attach(&topology, "db", 0, &["--loopback", "-p", "8080:6379"]).expect_ok();
    topology.take_down();
    gone();
}

/// Attaches as `db` and `cache`, two containers of the first namespace.
fn attach_pod(topology: &Topology) {
    attach(topology, "db", 0, &["--loopback", "-p", "8090:6379"]).expect_ok();
    attach(topology, "cache", 0, &["--loopback", "-p", "8091:6380"]).expect_ok();
}

const POD: [(&str, u16); 2] = [("db", 8090), ("cache", 8091)];

// Fails if the program belongs to the container that it was attached for.
#[test]
fn containers_of_one_namespace_share_the_program() {
    need(Need::Tcx);
    let topology = Topology::watched(Shape::default());
    let _services = [6379, 6380].map(|port| serve(&topology, port));
    let gone = || {
        until("the program to go", PATIENCE, || {
            programs(&topology).is_empty().then_some(())
        });
    };
    for [(first, _), (last, port)] in [POD, [POD[1], POD[0]]] {
        attach_pod(&topology);
        assert_eq!(programs(&topology).len(), 1);
        for (_, port) in POD {
            answers(&topology.client, at(HOST, port));
        }
        topology.portfwd(&["detach", first]).expect_ok();
        assert_eq!(programs(&topology).len(), 1);
        for from in [&topology.client, &topology.host] {
            answers(from, at(HOST, port));
        }
        topology.portfwd(&["detach", last]).expect_ok();
        gone();
    }
    attach_pod(&topology);
    topology.take_down();
    gone();
}

// Fails if what is left of the one container takes the program from the other, or keeps it.
#[test]
fn a_kill_at_one_container_leaves_the_program_to_the_other_of_its_namespace() {
    need(Need::Tcx);
    let topology = Topology::new(Shape::default());
    let _services = [6379, 6380].map(|port| serve(&topology, port));
    let netns = topology.containers[0].netns();
    let attach_db = [
        "attach",
        "db",
        "--netns",
        &netns,
        "--loopback",
        "-p",
        "8090:6379",
    ];
    let detach_db = ["detach", "db"];
    for command in [&attach_db[..], &detach_db[..]] {
        let before = || {
            attach_pod(&topology);
            if command == attach_db {
                topology.portfwd(&detach_db).expect_ok();
            }
        };
        before();
        let End::Exited { code: 0, calls } = ptrace::run(topology.command(command), 0) else {
            panic!("{command:?} does not work under the tracer");
        };
        for at_call in (1..=calls).step_by((calls / KILLS).max(1) as usize) {
            before();
            let _: End = ptrace::run(topology.command(command), at_call);
            topology.portfwd(&["up"]).expect_ok();
            assert_eq!(programs(&topology).len(), 1, "{command:?}, {at_call}");
            answers(&topology.client, at(HOST, 8091));
            topology.portfwd(&["detach", "cache"]).expect_ok();
            let listed = topology.published();
            let expected = usize::from(listed.iter().any(|line| line.starts_with("db ")));
            until("the container's programs to fit", PATIENCE, || {
                (programs(&topology).len() == expected).then_some(())
            });
        }
        topology
            .portfwd(&["detach", "db", "--ignore-missing"])
            .expect_ok();
    }
}

// Fails if a connection's end depends on the service listening on the container's address.
#[test]
fn detach_ends_the_connections_of_host_processes_and_forgets_the_flows() {
    need(Need::Tcx);
    let topology = Topology::new(Shape::default());
    let _service = serve(&topology, 6379);
    attach(&topology, "db", 0, &["--loopback", "-p", "8080:6379"]).expect_ok();
    let mut of_host = clients::connect(&topology.host, at(LOOPBACK, 8080)).expect("connect");
    clients::ask_stream(&of_host).expect("an answer");
    topology.portfwd(&["detach", "db"]).expect_ok();
    let error = of_host
        .read(&mut [0; 16])
        .expect_err("the connection's end");
    assert_eq!(error.kind(), ErrorKind::ConnectionAborted, "{error}");
    refuses(&topology.client, at(HOST, 8080));
}

#[test]
fn detach_works_when_the_container_is_gone() {
    need(Need::Tcx);
    let topology = Topology::watched(Shape::default());
    let gone = Namespace::new("gone");
    topology.host.ip(&format!(
        "link add veth9 index 49 type veth peer name eth0 index 39 netns {0}
         link set veth9 master br0 up\n",
        gone.name()
    ));
    gone.ip("addr add 10.88.0.9/24 dev eth0\nlink set eth0 up\n");
    let netns = gone.path().display().to_string();
    let arguments = [
        "attach",
        "db",
        "--netns",
        &netns,
        "--loopback",
        "-p",
        "8080:6379",
    ];
    topology.portfwd(&arguments).expect_ok();
    drop(gone);
    until("the container's link to go", PATIENCE, || {
        (!topology
            .host
            .output("ip", &["-o", "link"])
            .contains("veth9"))
        .then_some(())
    });
    topology.portfwd(&["detach", "db"]).expect_ok();
    assert_eq!(topology.published(), Vec::<String>::new());
    let _service = serve(&topology, 6379);
    attach(&topology, "db", 0, &["--loopback", "-p", "8080:6379"]).expect_ok();
    answers(&topology.client, at(HOST, 8080));
    topology.take_down();
}

#[test]
fn what_cannot_reach_a_loopback_listener_is_refused_before_anything_is_done() {
    let topology = Topology::new(Shape::default());
    for (specs, named) in [
        (vec!["53:53/udp"], "53:53/udp"),
        (vec!["80:80", "7:7/sctp"], "7:7/sctp"),
    ] {
        let publish: Vec<&str> = specs.into_iter().flat_map(|spec| ["-p", spec]).collect();
        let outcome = attach(
            &topology,
            "db",
            0,
            &[&["--loopback"], &publish[..]].concat(),
        );
        assert!(
            outcome.stderr.contains("cannot leave the container"),
            "{}",
            outcome.stderr
        );
        expect_error(outcome, 2, named);
    }
    for target in [&["--ip", "10.88.0.2"][..], &[]] {
        let arguments = ["attach", "db", "--loopback", "-p", "80:80"];
        let outcome = topology.portfwd(&[&arguments, target].concat());
        expect_error(
            outcome,
            2,
            "--loopback needs the container's network namespace",
        );
    }
    assert!(!topology.pins().exists());
}

#[test]
#[ignore = "needs a kernel without TCX: cargo xtask test --kernels"]
fn without_tcx_the_kernel_is_named_and_nothing_is_left() {
    need(Need::NoTcx);
    let topology = Topology::watched(Shape::default());
    topology.attach("web", 0, &["8079:80"]);
    let state = topology.state();
    let outcome = attach(&topology, "db", 1, &["--loopback", "-p", "8080:6379"]);
    expect_error(outcome, 5, "missing kernel feature: TCX (Linux 6.6)");
    assert_eq!(topology.state(), state);
    topology.take_down();
}

#[test]
fn a_forward_that_exists_is_not_silently_left_with_the_other_listener() {
    need(Need::Tcx);
    let topology = Topology::new(Shape::default());
    attach(&topology, "db", 0, &["-p", "8080:6379"]).expect_ok();
    attach(&topology, "db", 0, &["--loopback", "-p", "8081:6379"]).expect_ok();
    let state = topology.state();
    let outcome = attach(&topology, "db", 0, &["--loopback", "-p", "8080:6379"]);
    expect_error(
        outcome,
        1,
        "has forward 8080:6379/tcp already, without --loopback",
    );
    let outcome = attach(&topology, "db", 0, &["-p", "8081:6379"]);
    expect_error(
        outcome,
        1,
        "has forward 8081:6379/tcp already, with --loopback",
    );
    assert_eq!(topology.state(), state);
}

// The service closes first, so that its container holds the connection in TIME_WAIT. Fails if a packet
// that such a connection takes is given the listener.
#[test]
fn a_client_comes_again_from_the_port_of_a_connection_that_the_service_closed() {
    need(Need::Tcx);
    let topology = Topology::new(Shape::default());
    attach(&topology, "db", 0, &["--loopback", "-p", "8080:6379"]).expect_ok();
    for (own, loopback, host) in [(CLIENT, LOOPBACK, HOST), (CLIENT6, LOOPBACK6, HOST6)] {
        let container = &topology.containers[0].namespace;
        let listener = container
            .run(|| TcpListener::bind(at(loopback, 6379)))
            .expect("listen");
        for _ in 0..2 {
            // The client's end of the last connection waits for the acknowledgment of its FIN.
            let mut stream = until("the client's port to be free", PATIENCE, || {
                let (from, to) = (at(own, 41_000), at(host, 8080));
                match clients::connect_from(&topology.client, from, to) {
                    Err(error) if error.kind() == ErrorKind::AddrNotAvailable => None,
                    connected => Some(connected.expect("connect")),
                }
            });
            drop(listener.accept().expect("a connection"));
            assert_eq!(stream.read(&mut [0; 16]).expect("its end"), 0);
        }
    }
}

// Fails if the sweep forgets the hook of an attach that was never committed.
#[test]
fn an_attach_killed_anywhere_leaves_no_program_in_a_container_without_its_port() {
    need(Need::Tcx);
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology.attach("stays", 1, &["8070:80"]);
    let netns = topology.containers[0].netns();
    let arguments = [
        "attach",
        "db",
        "--netns",
        &netns,
        "--loopback",
        "-p",
        "8080:6379",
    ];
    let End::Exited { code: 0, calls } = ptrace::run(topology.command(&arguments), 0) else {
        panic!("the attach does not work under the tracer");
    };
    topology.portfwd(&["detach", "db"]).expect_ok();
    let stride = (calls / KILLS).max(1) as usize;
    let mut published = 0;
    for at in (1..=calls).step_by(stride) {
        let _: End = ptrace::run(topology.command(&arguments), at);
        // Any command that writes repairs.
        topology.portfwd(&["up"]).expect_ok();
        let listed = topology.published();
        let is_published = listed.iter().any(|line| line.starts_with("db "));
        let expected = usize::from(is_published);
        until("the container's programs to fit", PATIENCE, || {
            (programs(&topology).len() == expected).then_some(())
        });
        published += expected;
        topology
            .portfwd(&["detach", "db", "--ignore-missing"])
            .expect_ok();
    }
    println!("{calls} system calls, published after {published} kills");
    assert!(published > 0, "no kill after the commit");
}
