//! What published ports pass by of the host's firewall: `explain` and `doctor` name it, and so it is.

use std::net::{IpAddr, SocketAddr};

use nix::errno::Errno;
use nix::libc;
use portfwd_tests::clients::{self, Closed, Protocol};
use portfwd_tests::ptrace::Call;
use portfwd_tests::refusing::Refusing;
use portfwd_tests::servers::Server;
use portfwd_tests::topology::{CLIENT, CLIENT6, FOREIGN, FOREIGN6, HOST, HOST6, Shape, Topology};
use serde_json::Value;

/// As `ufw` has it, in the chains that it makes: closed but for what users open, and neighbours have to be found.
const UFW: &str = "*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:ufw-before-input - [0:0]
:ufw-user-input - [0:0]
-A INPUT -j ufw-before-input
-A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-input -p ICMP -j ACCEPT
-A ufw-before-input -j ufw-user-input
-A ufw-user-input -p tcp -m tcp --dport 22 -j ACCEPT
COMMIT
";

/// As firewalld has it: it rejects by rules, which chains of its zones come before.
const FIREWALLD: &str = "table inet firewalld {
    chain zones { tcp dport 22 accept; }
    chain filter_PREROUTING {
        type filter hook prerouting priority filter + 10; policy accept;
        icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept
        meta nfproto ipv6 ip6 saddr 2001:db8:bad::/48 drop
    }
    chain filter_INPUT {
        type filter hook input priority filter + 10; policy accept;
        ct state { established, related } accept
        meta l4proto ipv6-icmp accept
        jump zones
        ct state invalid drop
        reject with icmpx admin-prohibited
    }
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept
        goto denied
    }
    chain denied { reject with icmpx admin-prohibited; }
    chain filter_OUTPUT {
        type filter hook output priority filter + 10; policy drop;
        accept
    }
}
";

/// Every other way to deny what comes for the port, in both families.
const DENIALS: &str = "
table inet odd {
    map verdicts { type inet_service : verdict; elements = { 22 : accept, 8080 : drop } }
    chain mapped { type filter hook input priority 1; tcp dport vmap @verdicts; }
    chain early { type filter hook prerouting priority -300; tcp dport 8080 drop; }
    chain natted { type nat hook input priority 3; tcp dport 8080 drop; }
}
table netdev odd {
    chain on_eth0 { type filter hook ingress device \"eth0\" priority 0; tcp dport 8080 drop; }
    chain on_eth1 { type filter hook ingress device \"eth1\" priority 0; policy drop; }
}
";

/// Chains that deny nothing, and one that nobody comes to.
const HARMLESS: &str = "
table inet open {
    map verdicts { type inet_service : verdict; elements = { 22 : accept, 80 : jump empty } }
    chain empty { }
    chain unused { drop; }
    chain none { type filter hook input priority 0; policy accept; }
    chain some {
        type filter hook forward priority 0; policy accept;
        counter accept
        tcp dport vmap @verdicts
        jump empty
        log
    }
    chain output { type filter hook output priority 0; policy drop; accept; }
}
";

/// A topology on whose host `web` publishes 8080.
struct Stand {
    topology: Topology,
    _servers: [Server; 2],
}

impl Stand {
    fn new() -> Self {
        let topology = Topology::new(Shape::default());
        let servers = topology.serve();
        topology.attach("web", 0, &["8080:80"]);
        Self {
            topology,
            _servers: servers,
        }
    }

    /// The doctor's check of the firewall.
    #[track_caller]
    fn doctor(&self) -> Value {
        doctor(&self.topology)
    }

    /// Asserts that the port serves the client, by both addresses.
    #[track_caller]
    fn serves(&self) {
        for host in [HOST, HOST6] {
            let to = SocketAddr::new(host, 8080);
            assert!(clients::serves(&self.topology.client, Protocol::Tcp, to));
        }
    }
}

#[track_caller]
fn doctor(topology: &Topology) -> Value {
    let said = topology.portfwd(&["--json", "doctor"]).expect_ok().json();
    let mut checks = said.as_array().expect("checks").iter();
    let check = checks.find(|check| check["name"] == "firewall");
    check.expect("a check of the firewall").clone()
}

#[track_caller]
fn notes(topology: &Topology, host: IpAddr, client: IpAddr) -> Vec<String> {
    let (to, from) = (SocketAddr::new(host, 8080).to_string(), client.to_string());
    let arguments = ["--json", "explain", &to, "--from", &from];
    let said = topology.portfwd(&arguments).expect_ok().json();
    let notes = said["notes"].as_array().expect("notes").iter();
    notes
        .map(|note| note.as_str().expect("a note").to_owned())
        .collect()
}

/// The chains that a note names after these words.
#[track_caller]
fn named(note: &str, words: &str) -> Vec<String> {
    let chains = note.strip_prefix(words);
    let chains = chains.unwrap_or_else(|| panic!("{note:?} does not begin with {words:?}"));
    let mut chains: Vec<String> = chains.split("; ").map(str::to_owned).collect();
    chains.sort();
    chains
}

/// Asserts what `explain` names of what a packet to the port passes by: in IPv4, and in IPv6.
#[track_caller]
fn passes(topology: &Topology, v4: &[&str], v6: &[&str]) {
    const BY: &str = "it passes the host's stack by";
    for (host, client, chains) in [(HOST, CLIENT, v4), (HOST6, CLIENT6, v6)] {
        let notes = notes(topology, host, client);
        if chains.is_empty() {
            let none = format!(
                "{BY}, where no rule denies such packets at ingress, prerouting, input or forward"
            );
            assert_eq!(notes, [none]);
        } else {
            assert_eq!(notes.len(), 1, "{notes:?}");
            let said = named(&notes[0], &format!("{BY}; these do not see it: "));
            assert_eq!(said, chains);
        }
    }
}

#[track_caller]
fn finds(check: &Value, finding: &str, words: &[&str]) {
    assert_eq!(check["finding"], finding, "{check}");
    let text = check.to_string();
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text}");
    }
}

// Fails if `explain` or `doctor` do not ask for chains, or if policies are not read (`base_chain` in nftables/chain.rs,
// `Info::parse` in legacy/table.rs).
#[test]
fn a_drop_policy_of_iptables_of_either_kind_is_named_and_does_not_keep_clients_out() {
    let nft = [
        &[
            "nftables chain: table ip filter, chain FORWARD (policy drop)",
            "nftables chain: table ip filter, chain INPUT (policy drop)",
        ],
        &[
            "nftables chain: table ip6 filter, chain FORWARD (policy drop)",
            "nftables chain: table ip6 filter, chain INPUT (policy drop)",
        ],
    ];
    let legacy = [
        &[
            "iptables chain: table filter, chain FORWARD (legacy) (policy drop)",
            "iptables chain: table filter, chain INPUT (legacy) (policy drop)",
        ],
        &[
            "ip6tables chain: table filter, chain FORWARD (legacy) (policy drop)",
            "ip6tables chain: table filter, chain INPUT (legacy) (policy drop)",
        ],
    ];
    for (kind, [v4, v6]) in [("nft", nft), ("legacy", legacy)] {
        let stand = Stand::new();
        let Topology { host, client, .. } = &stand.topology;
        finds(&stand.doctor(), "ok", &["denies nothing"]);
        host.feed(
            &format!("iptables-{kind}-restore"),
            &[],
            &UFW.replace("ICMP", "icmp"),
        );
        passes(&stand.topology, v4, &[]);
        let v6_rules = UFW.replace("ICMP", "ipv6-icmp");
        host.feed(&format!("ip6tables-{kind}-restore"), &[], &v6_rules);
        passes(&stand.topology, v4, v6);
        stand.serves();
        let words = [
            v4[0],
            v6[1],
            "gets in here: port 8080 of container",
            "--allow",
        ];
        finds(&stand.doctor(), "warn", &words);

        stand.topology.portfwd(&["detach", "web"]).expect_ok();
        finds(&stand.doctor(), "ok", &["no port is published past it"]);
        let netns = stand.topology.containers[0].netns();
        let attach = ["attach", "web", "--netns", &netns, "-p", "8080:80"];
        let allow = ["--allow", "2001:db8:1::2,198.51.100.0/24"];
        stand
            .topology
            .portfwd(&[&attach[..], &allow].concat())
            .expect_ok();
        finds(&stand.doctor(), "ok", &[v4[0], "--allow or --deny"]);
        // Whom --allow does not name is left to the firewall.
        let closed = clients::closed(client, Protocol::Tcp, SocketAddr::new(HOST, 8080));
        assert_eq!(closed, Closed::Silent);
        let to = SocketAddr::new(HOST6, 8080);
        assert!(clients::serves(client, Protocol::Tcp, to));

        stand.topology.portfwd(&["detach", "web"]).expect_ok();
        stand.topology.attach("web", 0, &["127.0.0.1:8080:80"]);
        finds(&stand.doctor(), "ok", &["no port is published past it"]);
    }
}

#[test]
fn chains_that_deny_by_rules_are_named_for_the_families_of_these() {
    let stand = Stand::new();
    stand.topology.host.feed("nft", &["-f", "-"], FIREWALLD);
    let [forward, input, prerouting] = ["FORWARD", "INPUT", "PREROUTING"].map(|hook| {
        format!("nftables chain: table inet firewalld, chain filter_{hook} (rules that deny)")
    });
    passes(
        &stand.topology,
        &[&forward, &input],
        &[&forward, &input, &prerouting],
    );
    stand.serves();
    finds(&stand.doctor(), "warn", &["chain filter_INPUT"]);
}

#[test]
fn rules_of_legacy_tables_are_named_with_their_table() {
    let stand = Stand::new();
    let rules = "*raw
-A PREROUTING -p tcp -m tcp --dport 8080 -j DROP
COMMIT
*filter
:closed - [0:0]
-A INPUT -p tcp -j closed
-A FORWARD -j ACCEPT
-A closed -j REJECT
COMMIT
";
    for program in ["iptables", "ip6tables"] {
        let restore = format!("{program}-legacy-restore");
        stand.topology.host.feed(&restore, &[], rules);
    }
    let [v4, v6] = ["iptables", "ip6tables"].map(|program| {
        [("filter", "INPUT"), ("raw", "PREROUTING")].map(|(table, chain)| {
            format!("{program} chain: table {table}, chain {chain} (legacy) (rules that deny)")
        })
    });
    passes(&stand.topology, &[&v4[0], &v4[1]], &[&v6[0], &v6[1]]);
    stand.serves();
}

// Fails if a chain that comes after the programs is taken for one before them.
#[test]
fn every_way_to_deny_is_passed_by_down_to_the_device() {
    let stand = Stand::new();
    stand.topology.host.feed("nft", &["-f", "-"], DENIALS);
    let chain = |family, name| {
        format!("nftables chain: table {family} odd, chain {name} (rules that deny)")
    };
    let all = [
        chain("inet", "early"),
        chain("inet", "mapped"),
        chain("inet", "natted"),
        chain("netdev", "on_eth0"),
    ];
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    passes(&stand.topology, &all, &all);
    stand.serves();
    finds(&stand.doctor(), "warn", &["and 1 more"]);
}

#[test]
fn chains_that_deny_nothing_are_not_named() {
    let stand = Stand::new();
    stand.topology.host.feed("nft", &["-f", "-"], HARMLESS);
    let open = UFW.replace("DROP", "ACCEPT").replace("ICMP", "icmp");
    for kind in ["nft", "legacy"] {
        let restore = format!("iptables-{kind}-restore");
        stand.topology.host.feed(&restore, &[], &open);
    }
    passes(&stand.topology, &[], &[]);
    finds(&stand.doctor(), "ok", &["denies nothing"]);
}

#[test]
fn rules_about_other_packets_are_not_named() {
    let stand = Stand::new();
    let others = "table inet others {
        chain early { type filter hook prerouting priority 0; ip daddr 172.17.0.2 drop; }
        chain in { type filter hook input priority 0; udp dport 8080 drop; tcp dport 80 drop; }
        chain through { type filter hook forward priority 0; tcp dport 8080 drop; }
    }\n";
    stand.topology.host.feed("nft", &["-f", "-"], others);
    passes(&stand.topology, &[], &[]);
    // At forward it would have the container's address.
    let add = "add rule inet others through ip daddr 10.88.0.2 tcp dport 80 drop\n";
    stand.topology.host.feed("nft", &["-f", "-"], add);
    let through = "nftables chain: table inet others, chain through (rules that deny)";
    passes(&stand.topology, &[through], &[]);
}

#[test]
fn what_goes_through_the_stack_meets_forward_chains_and_no_input_chains() {
    let topology = Topology::new(Shape::forwarding());
    let far: IpAddr = "198.51.100.9".parse().expect("an address");
    let far6: IpAddr = "2001:db8:51::9".parse().expect("an address");
    topology.host.ip(&format!(
        "route add {far} via {FOREIGN}\nroute add {far6} via {FOREIGN6}\n"
    ));
    topology.foreign.ip(&format!(
        "addr add {far}/32 dev lo\naddr add {far6}/128 dev lo nodad\n"
    ));
    let _server = Server::start(&topology.foreign, &[far, far6], 80, "far");
    let target = format!("{far},{far6}");
    let attach = ["attach", "far", "--ip", &target, "-p", "8080:80"];
    topology.portfwd(&attach).expect_ok();
    let feed = |rules: &str| topology.host.feed("nft", &["-f", "-"], rules);
    let through = "it goes on through the host's stack, with the container's address; ";
    let said = |host, client| notes(&topology, host, client);
    let ends = [(HOST, CLIENT), (HOST6, CLIENT6)];
    feed(
        "table inet fw {
        chain in { type filter hook input priority 0; policy drop; meta l4proto ipv6-icmp accept; }
    }\n",
    );
    for (host, client) in ends {
        let free =
            format!("{through}no rule denies such packets at ingress, prerouting or forward");
        let input = "these do not see it: nftables chain: table inet fw, chain in (policy drop)";
        assert_eq!(said(host, client), [free, input.to_owned()]);
        let to = SocketAddr::new(host, 8080);
        assert!(clients::serves(&topology.client, Protocol::Tcp, to));
    }
    feed(
        "delete table inet fw
    table inet fw {
        chain through { type filter hook forward priority 0; policy drop; }
    }\n",
    );
    for (host, client) in ends {
        let seen = "these see it: nftables chain: table inet fw, chain through (policy drop)";
        assert_eq!(said(host, client), [format!("{through}{seen}")]);
        let to = SocketAddr::new(host, 8080);
        let closed = clients::closed(&topology.client, Protocol::Tcp, to);
        assert_eq!(closed, Closed::Silent);
    }
    finds(&doctor(&topology), "ok", &["no port is published past it"]);
}

#[test]
fn rules_that_cannot_be_read_are_a_note_and_no_failure() {
    let stand = Refusing::default();
    stand.run("attach web --netns {0} -p 8080:80").expect_ok();
    let asks = |call: &Call| {
        call.number == libc::SYS_socket
            && call.arguments[0] == libc::AF_NETLINK as u64
            && call.arguments[2] == libc::NETLINK_NETFILTER as u64
    };
    let explained = stand
        .refuse("explain 192.0.2.1:8080", &asks, Errno::EPERM)
        .expect_ok();
    let says = "it passes the host's stack by; whether rules of a firewall deny it there cannot be seen: \
                cannot read the rules of nf_tables: Operation not permitted";
    assert!(explained.stdout.contains(says), "{explained:?}");
    let seen = stand
        .refuse("--json doctor", &asks, Errno::EPERM)
        .expect_ok();
    assert!(
        seen.stdout.contains(
            "cannot be seen: cannot read the rules of nf_tables: Operation not permitted"
        ),
        "{seen:?}"
    );
}
