//! Who may open connections: `--allow`, `--deny`, `--deny-silently`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use portfwd_tests::clients::{self, Closed, Protocol};
use portfwd_tests::namespace::Namespace;
use portfwd_tests::portfwd::{Outcome, expect_error};
use portfwd_tests::servers::Server;
use portfwd_tests::topology::{GATEWAY, GATEWAY6, HOST, HOST6, Shape, Topology};
use serde_json::Value;

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LOCAL6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
const PORT: u16 = 8080;

struct Stand {
    topology: Topology,
    _servers: [Server; 2],
}

impl Stand {
    fn new() -> Self {
        let topology = Topology::new(Shape::default());
        let servers = topology.serve();
        Self {
            topology,
            _servers: servers,
        }
    }

    /// Publishes [`PORT`] of the first container, TCP and UDP.
    fn attach(&self, policy: &[&str]) -> Outcome {
        let netns = self.topology.containers[0].netns();
        let attach = [
            "attach",
            "web",
            "--netns",
            &netns,
            "-p",
            "8080:80",
            "-p",
            "8080:80/udp",
        ];
        self.topology.portfwd(&[&attach[..], policy].concat())
    }

    /// How the port answers `from` at `address`: None if it serves.
    fn answer(&self, from: &Namespace, address: IpAddr, protocol: Protocol) -> Option<Closed> {
        let to = SocketAddr::new(address, PORT);
        match clients::ask(from, protocol, to) {
            Ok(answer) => {
                assert_eq!(answer.label, "web");
                None
            }
            Err(_) => Some(clients::closed(from, protocol, to)),
        }
    }

    /// Asserts how the port answers the client, another container and the host itself, over each family.
    #[track_caller]
    fn answers(&self, policy: &[&str], expected: [(Option<Closed>, Option<Closed>); 3]) {
        let Topology {
            client,
            host,
            containers,
            ..
        } = &self.topology;
        let from = [
            (client, [HOST, HOST6]),
            (&containers[1].namespace, [GATEWAY, GATEWAY6]),
            (host, [LOCAL, LOCAL6]),
            // Whichever address it connects to.
            (host, [HOST, HOST6]),
        ];
        let [.., of_host] = expected;
        let expected = expected.into_iter().chain([of_host]);
        for ((from, [v4, v6]), expected) in from.into_iter().zip(expected) {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let answers = (
                    self.answer(from, v4, protocol),
                    self.answer(from, v6, protocol),
                );
                assert_eq!(
                    answers,
                    expected,
                    "{policy:?}: {protocol:?} from {}",
                    from.name()
                );
            }
        }
    }

    fn flows(&self) -> usize {
        let flows = self.topology.portfwd(&["--json", "flows"]).expect_ok();
        flows.json().as_array().map_or(0, Vec::len)
    }

    /// Rules that are left in the table.
    fn rules(&self) -> usize {
        let pin = self
            .topology
            .layout()
            .join("maps/policies")
            .display()
            .to_string();
        let dump = ["-j", "map", "dump", "pinned", &pin];
        let rules = self.topology.host.output("bpftool", &dump);
        let rules: Value = serde_json::from_str(&rules).expect("a document");
        rules.as_array().expect("an array").len()
    }
}

/// Serves, of both families.
const OPEN: (Option<Closed>, Option<Closed>) = (None, None);
/// Closed, of both.
const CLOSED: (Option<Closed>, Option<Closed>) = (Some(Closed::Refused), Some(Closed::Refused));
const V4_CLOSED: (Option<Closed>, Option<Closed>) = (Some(Closed::Refused), None);
const V6_CLOSED: (Option<Closed>, Option<Closed>) = (None, Some(Closed::Refused));

// Fails if rules are not asked before a flow is opened (`open` in ebpf/first.rs), or not for a process of the host
// (`target` in ebpf/socket.rs); mutants policy-asked, policy-longest, policy-others, policy-host.
#[test]
fn clients_are_let_in_by_the_longest_prefix_that_holds_them() {
    let stand = Stand::new();
    for (policy, expected) in [
        (&["--deny", "192.0.2.0/24"][..], [V4_CLOSED, OPEN, OPEN]),
        (
            &["--deny", "192.0.2.0/24,2001:db8::/32"],
            [CLOSED, OPEN, OPEN],
        ),
        (&["--allow", "192.0.2.2"], [V6_CLOSED, CLOSED, CLOSED]),
        (
            &["--allow", "2001:db8:1::/64", "--allow", "10.88.0.0/16"],
            [V4_CLOSED, V6_CLOSED, CLOSED],
        ),
        (&["--allow", "127.0.0.1,::1"], [CLOSED, CLOSED, OPEN]),
        (
            &["--deny", "127.0.0.0/8", "--deny", "::1"],
            [OPEN, OPEN, CLOSED],
        ),
        // What is said of all of one family says nothing of the other.
        (&["--deny", "::/0"], [V6_CLOSED, V6_CLOSED, V6_CLOSED]),
        (&["--allow", "::/0"], [V4_CLOSED, V4_CLOSED, V4_CLOSED]),
        (
            &["--deny", "0.0.0.0/0", "--deny", "::/0"],
            [CLOSED, CLOSED, CLOSED],
        ),
        (
            &["--deny", "0.0.0.0/0", "--allow", "192.0.2.0/24"],
            [V6_CLOSED, CLOSED, CLOSED],
        ),
        (
            &[
                "--allow",
                "0.0.0.0/0,::/0",
                "--deny",
                "10.88.0.3,192.0.0.0/8",
            ],
            [V4_CLOSED, V4_CLOSED, OPEN],
        ),
        (
            &[
                "--deny",
                "192.0.2.0/24",
                "--allow",
                "192.0.2.2/31,fd88::/64",
            ],
            [V6_CLOSED, V4_CLOSED, CLOSED],
        ),
    ] {
        stand.attach(policy).expect_ok();
        stand.answers(policy, expected);
        stand.topology.portfwd(&["detach", "web"]).expect_ok();
        assert_eq!(stand.rules(), 0, "{policy:?}");
    }
}

// Fails if a denied client opens a flow, or if it is told although it is not to be; mutant policy-silent.
#[test]
fn a_denied_client_opens_no_flow_and_may_get_no_answer() {
    let stand = Stand::new();
    let deny = ["--deny", "192.0.2.0/24"];
    for (policy, answer, reason, dropped) in [
        (&deny[..], Closed::Refused, "denied", 0),
        (
            &[&deny[..], &["--deny-silently"]].concat(),
            Closed::Silent,
            "denied-silently",
            1,
        ),
    ] {
        stand.attach(policy).expect_ok();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let to = SocketAddr::new(HOST, PORT);
            assert_eq!(
                clients::closed(&stand.topology.client, protocol, to),
                answer
            );
        }
        assert_eq!(stand.flows(), 0, "{policy:?}");
        assert!(stand.topology.counted(reason) >= 2, "{reason}");
        let drops = |row: &Value| row["drops"].as_u64().unwrap_or_default();
        let drops: u64 = stand.topology.list().iter().map(drops).sum();
        assert!(drops >= dropped && (dropped > 0 || drops == 0), "{drops}");
        stand.topology.portfwd(&["detach", "web"]).expect_ok();
    }
}

#[test]
fn who_may_is_listed_and_stays_until_it_is_replaced() {
    let stand = Stand::new();
    let policy = ["--allow", "10.0.0.0/8", "--deny", "10.9.0.0/16"];
    stand.attach(&policy).expect_ok();
    for row in stand.topology.list() {
        assert_eq!(row["allow"], serde_json::json!(["10.0.0.0/8"]), "{row}");
        assert_eq!(row["deny"], serde_json::json!(["10.9.0.0/16"]), "{row}");
    }
    let table = stand.topology.portfwd(&["list"]).expect_ok().stdout;
    assert!(table.contains("10.0.0.0/8, not 10.9.0.0/16"), "{table}");
    // The same again is no change; anything else would be lost.
    stand.attach(&policy).expect_ok();
    assert_eq!(stand.rules(), 2);
    for other in [
        &[][..],
        &["--allow", "10.0.0.0/8"],
        &[&policy[..], &["--deny-silently"]].concat(),
    ] {
        let refused = stand.attach(other);
        expect_error(refused, 1, "already, with other --allow or --deny");
    }
    // Another container gets the ports with their rules.
    let netns = stand.topology.containers[1].netns();
    let repoint = ["repoint", "web", "db", "--netns", &netns];
    stand.topology.portfwd(&repoint).expect_ok();
    let to = SocketAddr::new(HOST, PORT);
    assert_eq!(
        clients::closed(&stand.topology.client, Protocol::Tcp, to),
        Closed::Refused
    );
    assert_eq!(stand.rules(), 2);
    let back = [
        "repoint",
        "db",
        "web",
        "--netns",
        &stand.topology.containers[0].netns(),
    ];
    stand.topology.portfwd(&back).expect_ok();
    stand
        .attach(&["--replace", "--deny", "10.9.0.0/16"])
        .expect_ok();
    assert_eq!(stand.rules(), 1);
    stand.answers(&["replaced"], [OPEN, OPEN, OPEN]);
    stand.attach(&["--replace"]).expect_ok();
    assert_eq!(stand.rules(), 0);
}
