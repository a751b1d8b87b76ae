//! What `explain` says is what happens, and asking changes nothing.

use std::net::{IpAddr, SocketAddr, TcpListener};

use portfwd_tests::clients::{self, Closed, Protocol};
use portfwd_tests::namespace::Namespace;
use portfwd_tests::portfwd::expect_error;
use portfwd_tests::topology::{CLIENT, CLIENT6, FOREIGN, HOST, HOST6, Shape, Topology};
use serde_json::Value;

fn explain(topology: &Topology, to: &str, from: Option<IpAddr>) -> Value {
    let from = from.map(|from| from.to_string());
    let mut arguments = vec!["--json", "explain", to];
    if let Some(from) = &from {
        arguments.extend(["--from", from]);
    }
    topology.portfwd(&arguments).expect_ok().json()
}

fn to(address: IpAddr, port: u16) -> String {
    SocketAddr::new(address, port).to_string()
}

#[track_caller]
fn is(explanation: &Value, verdict: &str, target: Option<&str>) {
    assert_eq!(explanation["verdict"], verdict, "{explanation}");
    assert_eq!(explanation["target"].as_str(), target, "{explanation}");
}

#[track_caller]
fn notes(explanation: &Value, part: &str) {
    let notes = explanation["notes"].to_string();
    assert!(notes.contains(part), "no {part:?} in {notes}");
}

#[test]
fn a_packet_to_a_published_port_is_redirected_and_nothing_comes_of_asking() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology.attach("web", 0, &["8080:80", "8080:80/udp", "9000-9009:90-99"]);
    let before = (topology.list(), topology.objects());
    for (host, client, target) in [(HOST, CLIENT, "10.88.0.2"), (HOST6, CLIENT6, "[fd88::2]")] {
        for from in [None, Some(client)] {
            for protocol in ["", "/tcp", "/udp"] {
                let said = explain(&topology, &format!("{}{protocol}", to(host, 8080)), from);
                is(&said, "redirected", Some(&format!("{target}:80")));
                assert_eq!(said["packet"]["device"], "eth0", "{said}");
                assert_eq!(said["forward"]["container"], "web", "{said}");
                notes(
                    &said,
                    "it passes the host's stack by, where no rule denies such packets",
                );
            }
        }
        let of_range = explain(&topology, &to(host, 9004), Some(client));
        is(&of_range, "redirected", Some(&format!("{target}:94")));
    }
    // Another container, by its link.
    let neighbour = topology.containers[1].v4.into();
    let said = explain(&topology, &to(HOST, 8080), Some(neighbour));
    is(&said, "redirected", Some("10.88.0.2:80"));
    assert_eq!((topology.list(), topology.objects()), before);
    let flows = topology.portfwd(&["--json", "flows"]).expect_ok().json();
    assert_eq!(flows, serde_json::json!([]));
    let text = topology.portfwd(&["explain", &to(HOST, 8080), "--from", &CLIENT.to_string()]);
    let expected = "packet   tcp 192.0.2.2:50000 to 192.0.2.1:8080, in by eth0\n\
                    forward  web: 80/tcp -> 0.0.0.0:8080\n\
                    clients  all\n\
                    so far   0 connections, 0 drops\n\
                    verdict  redirected into the container: 10.88.0.2:80\n";
    let text = text.expect_ok().stdout;
    assert!(text.starts_with(expected), "{text}");
}

#[test]
fn a_client_that_may_not_is_told_so() {
    let topology = Topology::new(Shape::default());
    let netns = topology.containers[0].netns();
    let attach = ["attach", "web", "--netns", &netns, "-p", "8080:80"];
    for (policy, verdict, reason) in [
        (&["--deny", "192.0.2.0/24"][..], "passed", "denied"),
        (
            &["--allow", "10.0.0.0/8", "--deny-silently"],
            "dropped",
            "denied-silently",
        ),
    ] {
        topology
            .portfwd(&[&attach[..], policy].concat())
            .expect_ok();
        let said = explain(&topology, &to(HOST, 8080), Some(CLIENT));
        is(&said, verdict, None);
        assert_eq!(said["reason"], reason, "{said}");
        notes(&said, "--allow or --deny keeps the client out");
        topology.portfwd(&["detach", "web"]).expect_ok();
    }
}

#[test]
fn a_process_of_the_host_is_connected_directly_or_finds_a_closed_port() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    let netns = topology.containers[0].netns();
    let attach = [
        "attach",
        "web",
        "--netns",
        &netns,
        "-p",
        "8080:80",
        "-p",
        "127.0.0.1:8081:80",
    ];
    topology.portfwd(&attach).expect_ok();
    for (to, from) in [
        ("127.0.0.1:8080", None),
        ("192.0.2.1:8080", Some(HOST)),
        (
            "127.0.0.1:8081",
            Some("127.0.0.1".parse().expect("an address")),
        ),
    ] {
        let said = explain(&topology, to, from);
        is(&said, "direct", Some("10.88.0.2:80"));
        assert_eq!(said["packet"]["device"], Value::Null, "{said}");
    }
    is(
        &explain(&topology, "[::1]:8080", None),
        "direct",
        Some("[fd88::2]:80"),
    );
    topology.portfwd(&["detach", "web"]).expect_ok();
    let denied = [&attach[..], &["--deny", "127.0.0.1"]].concat();
    topology.portfwd(&denied).expect_ok();
    is(&explain(&topology, "127.0.0.1:8080", None), "passed", None);
    is(
        &explain(&topology, "[::1]:8080", None),
        "direct",
        Some("[fd88::2]:80"),
    );
    let local = SocketAddr::new("127.0.0.1".parse().expect("an address"), 8080);
    let closed = clients::closed(&topology.host, Protocol::Tcp, local);
    assert_eq!(closed, Closed::Refused);
}

#[test]
fn what_is_left_to_the_host_has_its_reason() {
    let topology = Topology::new(Shape::default());
    let said = explain(&topology, &to(HOST, 8080), Some(CLIENT));
    is(&said, "passed", None);
    notes(&said, "the instance is not up");
    topology.attach("web", 0, &["8080:80", "127.0.0.1:8090:80"]);
    let listener = topology
        .host
        .run(|| TcpListener::bind(SocketAddr::new(HOST, 7000)));
    let _listener = listener.expect("listen");
    let said = explain(&topology, &to(HOST, 7000), Some(CLIENT));
    is(&said, "passed", None);
    notes(&said, "no container publishes that port");
    notes(&said, &format!("(pid {})", std::process::id()));
    // A port of the loopback address is nobody's from outside.
    let said = explain(&topology, &to(HOST, 8090), Some(CLIENT));
    is(&said, "passed", None);
    // One that a container holds, and has no address for.
    topology
        .portfwd(&["attach", "v4", "--ip", "10.88.0.2", "-p", "8070:80"])
        .expect_ok();
    let said = explain(&topology, &to(HOST6, 8070), Some(CLIENT6));
    is(&said, "passed", None);
    notes(&said, "holds the port, and has no IPv6 address");
    let elsewhere = explain(&topology, "198.51.100.1:8080", Some(CLIENT));
    is(&elsewhere, "passed", None);
    assert_eq!(elsewhere["reason"], "not-for-host", "{elsewhere}");
    notes(&elsewhere, "198.51.100.1 is not an address of the host");
}

#[test]
fn what_goes_through_the_stack_needs_the_host_to_forward() {
    for (shape, forwards) in [(Shape::default(), false), (Shape::forwarding(), true)] {
        let topology = Topology::new(shape);
        // Behind a router: no link of the host leads there.
        topology
            .host
            .ip(&format!("route add 198.51.100.9 via {FOREIGN}\n"));
        let attach = ["attach", "far", "--ip", "198.51.100.9", "-p", "8080:80"];
        topology.portfwd(&attach).expect_ok();
        let said = explain(&topology, &to(HOST, 8080), Some(CLIENT));
        is(&said, "translated", Some("198.51.100.9:80"));
        let complains = said["notes"].to_string().contains("net.ipv4.ip_forward=1");
        assert_eq!(complains, !forwards, "{said}");
    }
}

#[test]
fn what_cannot_be_asked_is_an_error() {
    let topology = Topology::new(Shape::default());
    topology.attach("web", 0, &["8080:80"]);
    for (arguments, code, says) in [
        (
            &["192.0.2.1"][..],
            2,
            "\"192.0.2.1\": no address with a port",
        ),
        (
            &["192.0.2.1:80/icmp"],
            2,
            "the protocol is none of tcp, udp, sctp",
        ),
        (
            &["192.0.2.1:0"],
            2,
            "\"192.0.2.1:0\": nothing is sent to port 0",
        ),
        (&["[::1]:0/udp"], 2, "nothing is sent to port 0"),
        (&["192.0.2.1:80", "--from", "::1"], 2, "of another family"),
        (
            &["192.0.2.1:80", "--from", "x"],
            2,
            "--from \"x\": not an address",
        ),
        (
            &["192.0.2.1:80", "--from", "100.64.0.1"],
            4,
            "the host has no route to 100.64.0.1",
        ),
    ] {
        let outcome = topology.portfwd(&[&["explain"], arguments].concat());
        expect_error(outcome, code, says);
    }
}

#[test]
fn the_last_drop_is_told_with_its_reason() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    let netns = topology.containers[0].netns();
    let attach = ["attach", "web", "--netns", &netns, "-p", "8080:80"];
    let deny = ["--deny", "192.0.2.0/24", "--deny-silently"];
    topology.portfwd(&[&attach[..], &deny].concat()).expect_ok();
    let said = explain(&topology, &to(HOST, 8080), Some(CLIENT));
    assert_eq!(
        (&said["drops"], &said["lastDrop"]),
        (&0.into(), &Value::Null)
    );
    let closed = clients::closed(&topology.client, Protocol::Tcp, SocketAddr::new(HOST, 8080));
    assert_eq!(closed, Closed::Silent);
    let said = explain(&topology, &to(HOST, 8080), Some(CLIENT));
    assert_eq!(said["lastDrop"]["reason"], "denied-silently", "{said}");
    assert!(
        said["lastDrop"]["age"].as_u64().is_some_and(|age| age < 60),
        "{said}"
    );
    let text = topology.portfwd(&["explain", &to(HOST, 8080)]).expect_ok();
    assert!(text.stdout.contains(" ago: denied-silently\n"), "{text:?}");
}

#[test]
fn a_container_whose_link_is_down_or_gone_is_not_reached() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology.attach("web", 0, &["8080:80"]);
    let container = &topology.containers[0];
    let unreached = |note: &str| {
        for from in [Some(CLIENT), Some(HOST)] {
            let said = explain(&topology, &to(HOST, 8080), from);
            is(&said, "dropped", None);
            notes(&said, note);
        }
    };
    topology
        .host
        .ip(&format!("link set {} down\n", container.host_link));
    unreached("is down; ip link set ");
    topology
        .host
        .ip(&format!("link del {}\n", container.host_link));
    unreached("is gone; portfwd gc removes");
}

/// Fails if the programs' own table of the host's addresses is not asked (`is_news` in commands/explain.rs).
#[test]
fn an_address_that_the_host_has_got_since_is_told_and_how_it_becomes_known() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology.attach("web", 0, &["8080:80"]);
    topology.host.ip("addr add 192.0.2.77/24 dev eth0
         addr add 2001:db8:1::77/64 dev eth0 nodad\n");
    let new = ["192.0.2.77", "2001:db8:1::77"].map(|new| new.parse::<IpAddr>().expect("one"));
    let answers = |address, from: &Namespace| {
        clients::ask(from, Protocol::Tcp, SocketAddr::new(address, 8080)).is_ok()
    };
    for (address, client, own) in [(new[0], CLIENT, HOST), (new[1], CLIENT6, HOST6)] {
        for from in [client, own] {
            let said = explain(&topology, &to(address, 8080), Some(from));
            is(&said, "passed", None);
            notes(
                &said,
                &format!(
                    "the host has {address}, and portfwd has not been told yet; portfwd up does so"
                ),
            );
            let said = said["notes"].to_string();
            assert!(!said.contains("not sent to an address"), "{said}");
        }
        assert!(!answers(address, &topology.client) && !answers(address, &topology.host));
    }
    topology.host.ip("addr add 169.254.7.7/16 dev eth0\n");
    topology.portfwd(&["up"]).expect_ok();
    let said = explain(&topology, "169.254.7.7:8080", Some(CLIENT));
    is(&said, "passed", None);
    assert_eq!(
        said["notes"],
        serde_json::json!(["nothing is published on link-local addresses"])
    );
    for (address, client, own) in [(new[0], CLIENT, HOST), (new[1], CLIENT6, HOST6)] {
        for (from, verdict) in [(client, "redirected"), (own, "direct")] {
            let said = explain(&topology, &to(address, 8080), Some(from));
            assert_eq!(said["verdict"], verdict, "{said}");
        }
        assert!(answers(address, &topology.client) && answers(address, &topology.host));
    }
}
