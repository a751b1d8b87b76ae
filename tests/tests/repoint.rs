//! Ports that become another container's, at one instant: by `repoint`, and by `attach --replace`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use portfwd_tests::clients::{self, Churn, Closed, Protocol};
use portfwd_tests::deadline::{PATIENCE, until};
use portfwd_tests::portfwd::expect_error;
use portfwd_tests::servers::Server;
use portfwd_tests::topology::{HOST, HOST6, Shape, Topology};

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

/// Both containers serve; the first has port 8080, the second port 9090.
fn attached() -> (Topology, [Server; 2]) {
    let topology = Topology::new(Shape::default());
    let servers = topology.serve();
    topology.attach("web", 0, &["8080:80", "8080:80/udp"]);
    topology.attach("db", 1, &["9090:80"]);
    (topology, servers)
}

/// Connections that the client has open to port 8080: TCP and UDP, over both families.
struct Open {
    streams: Vec<TcpStream>,
    datagrams: Vec<UdpSocket>,
}

impl Open {
    /// New ones, which `label` answers.
    #[track_caller]
    fn to(topology: &Topology, label: &str) -> Self {
        let client = &topology.client;
        let streams = [HOST, HOST6].map(|address| clients::connect(client, at(address, 8080)));
        let datagrams =
            [HOST, HOST6].map(|address| clients::datagram_socket(client, at(address, 8080)));
        let open = Self {
            streams: streams.map(|stream| stream.expect("connect")).into(),
            datagrams: datagrams.map(|socket| socket.expect("a socket")).into(),
        };
        // A server says who it is when a connection is opened.
        for stream in &open.streams {
            let answer = clients::ask_stream(stream).expect("an answer");
            assert_eq!(answer.label, label);
        }
        open.has_datagrams_to(label);
        open
    }
    #[track_caller]
    fn has_datagrams_to(&self, label: &str) {
        for socket in &self.datagrams {
            let answer = clients::ask_datagram(socket).expect("an answer");
            assert_eq!(answer.label, label);
        }
    }
    /// That they go on. (A server that does not know a connection resets it.)
    #[track_caller]
    fn goes_on(&self, label: &str) {
        for stream in &self.streams {
            clients::echo(stream, b"still there?").expect("an answer");
        }
        self.has_datagrams_to(label);
    }
    fn streams_have_ended(&self) -> bool {
        let mut streams = self.streams.iter();
        streams.all(|stream| clients::echo(stream, b"still there?").is_err())
    }
}

/// How many forwards a container has.
fn published_by(topology: &Topology, label: &str) -> usize {
    let begins = format!("{label} ");
    let published = topology.published();
    let own = published.iter().filter(|line| line.starts_with(&begins));
    own.count()
}

#[track_caller]
fn is_forgotten(topology: &Topology, label: &str) {
    let says = format!("no such container: {label}");
    expect_error(topology.portfwd(&["list", label]), 4, &says);
}

#[test]
fn new_connections_go_to_the_target_and_open_ones_stay() {
    let (topology, _servers) = attached();
    let old = Open::to(&topology, "web");
    let before = topology.published();
    let tried = topology.portfwd(&["repoint", "web", "db", "--dry-run"]);
    assert_eq!(topology.published(), before);
    let outcome = topology.portfwd(&["repoint", "web", "db"]).expect_ok();
    let lines = "80/tcp -> 0.0.0.0:8080\n80/tcp -> [::]:8080\n\
                 80/udp -> 0.0.0.0:8080\n80/udp -> [::]:8080\n";
    assert_eq!(outcome.stdout, lines);
    assert_eq!(tried.expect_ok().stdout, lines);
    assert_eq!(published_by(&topology, "web"), 0);
    assert_eq!(published_by(&topology, "db"), 6);
    let new = Open::to(&topology, "db");
    let from_host = clients::ask(&topology.host, Protocol::Tcp, at(LOCAL, 8080));
    assert_eq!(from_host.expect("an answer").label, "db");
    old.goes_on("web");
    let flows = topology.portfwd(&["--json", "flows", "web"]).expect_ok();
    let flows = flows.json();
    assert_eq!(flows.as_array().map(Vec::len), Some(4), "{flows}");
    // The old container goes, its connections with it, and the ports stay.
    topology.portfwd(&["detach", "web"]).expect_ok();
    assert!(old.streams_have_ended());
    is_forgotten(&topology, "web");
    new.goes_on("db");
    old.has_datagrams_to("db");
    // And with the new one everything.
    topology.portfwd(&["detach", "db"]).expect_ok();
    let closed = clients::closed(&topology.client, Protocol::Tcp, at(HOST, 8080));
    assert_eq!(closed, Closed::Refused);
}

#[test]
fn a_host_process_keeps_the_connection_that_it_has() {
    let (topology, _servers) = attached();
    let stream = clients::connect(&topology.host, at(LOCAL, 8080)).expect("connect");
    let answer = clients::ask_stream(&stream).expect("an answer");
    assert_eq!(answer.label, "web");
    topology.portfwd(&["repoint", "web", "db"]).expect_ok();
    clients::echo(&stream, b"still there?").expect("an answer");
    topology.portfwd(&["gc"]).expect_ok();
    clients::echo(&stream, b"still there?").expect("an answer");
    topology.portfwd(&["detach", "web"]).expect_ok();
    assert!(clients::echo(&stream, b"gone?").is_err());
}

/// There and back again while connections of each time are open: each stays where it was opened.
#[test]
fn connections_of_every_time_stay_where_they_were_opened() {
    let (topology, _servers) = attached();
    let mut open = Vec::new();
    for _ in 0..3 {
        for (from, to) in [("web", "db"), ("db", "web")] {
            open.push((Open::to(&topology, from), from));
            // Port 9090 goes along.
            topology.portfwd(&["repoint", from, to]).expect_ok();
            for (connections, label) in &open {
                connections.goes_on(label);
            }
        }
    }
}

/// Hands the ports of `from` over to the first container, by another name.
fn repoint_back(topology: &Topology, from: &str, more: &[&str]) {
    let netns = topology.containers[0].netns();
    let repoint = ["repoint", from, "again", "--netns", &netns];
    topology.portfwd(&[&repoint[..], more].concat()).expect_ok();
}

/// Fails if a search ends at a forward that serves no longer (`look` in drain.rs): it does until the next ones
/// follow whom it has followed.
#[test]
fn a_connection_outlives_who_came_after_its_container() {
    let (topology, _servers) = attached();
    let old = Open::to(&topology, "web");
    topology.portfwd(&["repoint", "web", "db"]).expect_ok();
    repoint_back(&topology, "db", &[]);
    let stopped = AtomicBool::new(false);
    let exchanges = thread::scope(|scope| {
        let streams = old.streams.iter().map(|stream| {
            let stopped = &stopped;
            scope.spawn(move || {
                let mut exchanges = 0;
                while !stopped.load(Ordering::Relaxed) {
                    clients::echo(stream, b"still there?").expect("an answer");
                    exchanges += 1;
                }
                exchanges
            })
        });
        let streams: Vec<_> = streams.collect();
        // Of the one in the middle nothing is used, so it goes.
        topology.portfwd(&["gc"]).expect_ok();
        stopped.store(true, Ordering::Relaxed);
        let exchanges = streams
            .into_iter()
            .map(|stream| stream.join().expect("no panic"));
        exchanges.collect::<Vec<u32>>()
    });
    assert!(exchanges.iter().all(|count| *count > 10), "{exchanges:?}");
    is_forgotten(&topology, "db");
    old.goes_on("web");
}

#[test]
fn a_connection_outlives_the_time_of_who_came_after_its_container() {
    for more in [&["--drain", "1s"][..], &["--cut"]] {
        let (topology, _servers) = attached();
        let old = Open::to(&topology, "web");
        topology.portfwd(&["repoint", "web", "db"]).expect_ok();
        let middle = Open::to(&topology, "db");
        repoint_back(&topology, "db", more);
        until("the time is over", PATIENCE, || {
            middle.streams_have_ended().then_some(())
        });
        old.goes_on("web");
        topology.portfwd(&["gc"]).expect_ok();
        old.goes_on("web");
        is_forgotten(&topology, "db");
    }
}

/// The datapath looks for them no further, so they are nobody's.
#[test]
fn of_more_than_eight_swaps_the_oldest_connections_end() {
    let (topology, _servers) = attached();
    let oldest = Open::to(&topology, "web");
    let mut open = Vec::new();
    for number in 0..9 {
        let (from, to) = [("web", "db"), ("db", "web")][number % 2];
        topology.portfwd(&["repoint", from, to]).expect_ok();
        open.push((Open::to(&topology, to), to));
    }
    assert!(oldest.streams_have_ended());
    topology.portfwd(&["gc"]).expect_ok();
    let flows = topology.portfwd(&["--json", "flows", "--state", "established"]);
    let flows = flows.expect_ok().json();
    assert_eq!(
        flows.as_array().map(Vec::len),
        Some(2 * open.len()),
        "{flows}"
    );
    for (connections, label) in &open {
        connections.goes_on(label);
    }
}

#[test]
fn what_drains_ends_with_its_time() {
    let (topology, _servers) = attached();
    let old = Open::to(&topology, "web");
    let repoint = ["repoint", "web", "db", "--drain", "2s"];
    topology.portfwd(&repoint).expect_ok();
    old.goes_on("web");
    until("the time is over", PATIENCE, || {
        old.streams_have_ended().then_some(())
    });
    old.has_datagrams_to("db");
    topology.portfwd(&["gc"]).expect_ok();
    is_forgotten(&topology, "web");
}

#[test]
fn what_drains_ends_with_its_last_connection() {
    let (topology, _servers) = attached();
    topology.portfwd(&["repoint", "web", "db"]).expect_ok();
    topology.portfwd(&["list", "web"]).expect_ok();
    topology.portfwd(&["gc"]).expect_ok();
    is_forgotten(&topology, "web");
    let old = Open::to(&topology, "db");
    expect_error(
        topology.portfwd(&["repoint", "db", "web"]),
        4,
        "no such container: web",
    );
    let netns = topology.containers[0].netns();
    let repoint = ["repoint", "db", "web", "--netns", &netns];
    topology.portfwd(&repoint).expect_ok();
    topology.portfwd(&["gc"]).expect_ok();
    old.goes_on("db");
    let _new = Open::to(&topology, "web");
}

#[test]
fn cut_connections_end_at_once() {
    let (topology, _servers) = attached();
    let old = Open::to(&topology, "web");
    let repoint = ["repoint", "web", "db", "--cut"];
    topology.portfwd(&repoint).expect_ok();
    assert!(old.streams_have_ended());
    old.has_datagrams_to("db");
    is_forgotten(&topology, "web");
}

/// One container's ports, and those of all that followed it, are free once the last one is detached.
#[test]
fn what_nobody_follows_any_more_does_not_drain() {
    let (topology, _servers) = attached();
    let old = Open::to(&topology, "web");
    topology.portfwd(&["repoint", "web", "db"]).expect_ok();
    topology.portfwd(&["detach", "db"]).expect_ok();
    assert!(old.streams_have_ended());
    is_forgotten(&topology, "web");
    topology.attach("other", 1, &["8080:80"]);
    assert_eq!(published_by(&topology, "other"), 2);
}

/// A swap.
struct Swap {
    begun: Instant,
    done: Instant,
    to: &'static str,
}

/// Who may answer what is opened at that moment: the container that has the port then, or the one that is just
/// getting it or gets it next.
fn may_answer(swaps: &[Swap], opened: Instant, label: &str) -> bool {
    let owner = swaps.iter().rev().find(|swap| swap.done <= opened);
    let owner = owner.map_or("web", |swap| swap.to);
    let mut later = swaps.iter().filter(|swap| swap.done > opened);
    let next = later
        .next()
        .filter(|swap| swap.begun <= opened + Duration::from_millis(100));
    label == owner || next.is_some_and(|swap| label == swap.to)
}

#[test]
fn a_swap_under_load_loses_no_connection() {
    const CLIENTS: usize = 4;
    const BETWEEN: Duration = Duration::from_millis(400);
    for address in [HOST, HOST6] {
        let (topology, _servers) = attached();
        let start = || Churn::start(&topology.client, at(address, 8080), 1_250);
        let churns: Vec<Churn> = (0..CLIENTS).map(|_| start()).collect();
        let mut swaps = Vec::new();
        for (from, to) in [("web", "db"), ("db", "web"), ("web", "db")] {
            thread::sleep(BETWEEN);
            let begun = Instant::now();
            topology.portfwd(&["repoint", from, to]).expect_ok();
            let done = Instant::now();
            swaps.push(Swap { begun, done, to });
        }
        thread::sleep(BETWEEN);
        for churn in churns {
            let report = churn.finish();
            assert!(report.failures.is_empty(), "{:?}", report.failures);
            assert!(report.served > 100, "{}", report.served);
            for (opened, label) in report.answers {
                assert!(may_answer(&swaps, opened, &label), "{label} at {opened:?}");
            }
        }
    }
}

/// The arguments of an attach of `specs` to the second container, in the place of what is there.
fn replace(topology: &Topology, specs: &[&str]) -> portfwd_tests::portfwd::Outcome {
    let netns = topology.containers[1].netns();
    let mut arguments = vec!["attach", "web", "--netns", &netns, "--replace"];
    arguments.extend(specs.iter().flat_map(|spec| ["-p", spec]));
    topology.portfwd(&arguments)
}

#[test]
fn another_container_takes_the_place_behind_a_name() {
    let (topology, _servers) = attached();
    let old = Open::to(&topology, "web");
    let refused = topology.try_attach("web", 1, &["8080:80"]);
    expect_error(refused, 1, "attach --replace puts this one in its place");
    replace(&topology, &["8080:80", "8080:80/udp", "8090:80"]).expect_ok();
    let _new = Open::to(&topology, "db");
    assert!(old.streams_have_ended());
    old.has_datagrams_to("db");
    assert_eq!(published_by(&topology, "web"), 6);
    // It is the name's container from now on, and goes with it.
    topology.attach("web", 1, &["8091:80"]);
    topology.portfwd(&["detach", "web"]).expect_ok();
    assert_eq!(published_by(&topology, "db"), 2);
    assert_eq!(published_by(&topology, "web"), 0);
}

#[test]
fn what_is_published_again_to_the_same_container_stays() {
    let (topology, _servers) = attached();
    let open = Open::to(&topology, "web");
    let netns = topology.containers[0].netns();
    let arguments = ["attach", "web", "--netns", &netns, "--replace"];
    let specs = ["-p", "8080:80/udp", "-p", "8080:80", "-p", "8090:80"];
    let outcome = topology.portfwd(&[&arguments[..], &specs].concat());
    outcome.expect_ok();
    open.goes_on("web");
    assert_eq!(published_by(&topology, "web"), 6);
    let fewer = [&arguments[..], &["-p", "8090:80"]].concat();
    topology.portfwd(&fewer).expect_ok();
    assert!(open.streams_have_ended());
    assert_eq!(published_by(&topology, "web"), 2);
}

#[test]
fn ranges_are_replaced_by_ranges_of_another_shape() {
    let (topology, _servers) = attached();
    let specs = ["7000-7009:70-79", "7010:80", "7020-7029:80-89"];
    topology.attach("web", 0, &specs);
    replace(&topology, &["7005-7025:75-95", "8080:80", "8080:80/udp"]).expect_ok();
    let ask = |port| clients::ask(&topology.client, Protocol::Tcp, at(HOST6, port));
    assert_eq!(ask(7010).expect("an answer").label, "db");
    for port in [7004, 7026, 7029] {
        let closed = clients::closed(&topology.client, Protocol::Tcp, at(HOST6, port));
        assert_eq!(closed, Closed::Refused, "{port}");
    }
    topology.portfwd(&["detach", "web"]).expect_ok();
    topology.attach("web", 0, &specs);
}

/// A range of one address has blocks, a port of it has none: each is replaced by the other.
#[test]
fn a_range_of_an_address_is_replaced_by_a_port_of_it_and_the_other_way_round() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    // 7430 leads to 80, and lies in the block from 7424 on.
    let range = ["192.0.2.1:7351-8000:1-650"];
    let ask = |port| clients::ask(&topology.client, Protocol::Tcp, at(HOST, port));
    let label = |port| ask(port).expect("an answer").label;
    topology.attach("web", 0, &range);
    assert_eq!(label(7430), "web");
    for _ in 0..2 {
        replace(&topology, &["192.0.2.1:7430:80"]).expect_ok();
        assert_eq!(label(7430), "db");
        let closed = clients::closed(&topology.client, Protocol::Tcp, at(HOST, 7431));
        assert_eq!(closed, Closed::Refused);
        replace(&topology, &range).expect_ok();
        assert_eq!(label(7430), "db");
    }
    topology.portfwd(&["detach", "web"]).expect_ok();
    assert!(ask(7430).is_err());
}

#[test]
fn a_replacement_that_fails_changes_nothing() {
    let (topology, _servers) = attached();
    let open = Open::to(&topology, "web");
    let before = topology.published();
    let refused = replace(&topology, &["8080:80", "9090:81"]);
    expect_error(refused, 3, "held by: container \"db\" (tcp)");
    assert_eq!(topology.published(), before);
    open.goes_on("web");
}

#[test]
fn a_range_that_takes_the_place_of_another_one_is_known_by_what_was_asked() {
    let (topology, _servers) = attached();
    topology.attach("web", 0, &["7000-7004:70-74"]);
    let specs = ["8080:80", "8080:80/udp", "7000-7009:70-79"];
    replace(&topology, &specs).expect_ok();
    assert_eq!(published_by(&topology, "web"), 6);
    let before = topology.published();
    topology.attach("web", 1, &specs);
    assert_eq!(topology.published(), before);
    topology
        .portfwd(&["detach", "web", "-p", "7000-7009:70-79"])
        .expect_ok();
    assert_eq!(published_by(&topology, "web"), 4);
}

/// Connections that have long ended keep nothing.
#[test]
fn what_drains_ends_when_its_connections_have_expired() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology
        .portfwd(&["up", "--lifetime", "transitory=2"])
        .expect_ok();
    topology.attach("web", 0, &["8080:80"]);
    clients::ask(&topology.client, Protocol::Tcp, at(HOST, 8080)).expect("an answer");
    let netns = topology.containers[1].netns();
    topology
        .portfwd(&["repoint", "web", "db", "--netns", &netns])
        .expect_ok();
    until("the container is forgotten", PATIENCE, || {
        topology.portfwd(&["gc"]).expect_ok();
        (topology.portfwd(&["list", "web"]).code == 4).then_some(())
    });
}
