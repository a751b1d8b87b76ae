//! Ports that other tools have taken by rules, where no socket shows it.

use portfwd_tests::portfwd::expect_error;
use portfwd_tests::topology::{Shape, Topology};

/// Docker's rules for a container that publishes 8080, and CNI's for one that has 49153 and 49154.
const IPTABLES: &str = "*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
:CNI-DN-0123456789abcdef01234 - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80
-A CNI-HOSTPORT-DNAT -p tcp -m multiport --dports 49153,49154 -j CNI-DN-0123456789abcdef01234
-A CNI-DN-0123456789abcdef01234 -p tcp -m tcp --dport 49153 -j DNAT --to-destination 10.4.0.2:80
-A CNI-DN-0123456789abcdef01234 -p tcp -m tcp --dport 49154 -j DNAT --to-destination 10.4.0.2:90
COMMIT
";

const NFTABLES: &str = "table inet proxy {
    map ports { type inet_service : verdict; elements = { 8443 : goto web } }
    chain web { dnat ip to 10.4.0.3; }
    chain prerouting {
        type nat hook prerouting priority dstnat
        tcp dport vmap @ports
        ip daddr 192.0.2.10 udp dport 5000-5009 redirect to :53;
    }
}
";

/// A topology on whose host other tools have taken ports, and what is wrong with each attach of `rows`: a SPEC, and
/// the words of the error; none if it has to work.
fn faults(rules: impl Fn(&Topology), rows: &[(&str, Option<[&str; 2]>)]) -> Vec<String> {
    let topology = Topology::new(Shape::default());
    rules(&topology);
    let fault = |(spec, expected): &(&str, Option<[&str; 2]>)| {
        let outcome = topology.try_attach("web", 0, &[spec]);
        let as_expected = match expected {
            None => outcome.code == 0,
            Some(words) => {
                outcome.code == 3 && words.iter().all(|word| outcome.stderr.contains(word))
            }
        };
        (!as_expected).then(|| format!("{spec}: {outcome:?}"))
    };
    rows.iter().filter_map(fault).collect()
}

fn with_iptables(restore: &'static str) -> Vec<String> {
    let legacy = restore.contains("legacy");
    let held = |chain: &'static str| match (legacy, chain) {
        (true, "DOCKER") => "held by: iptables rule: table nat, chain DOCKER (legacy)",
        (true, _) => "held by: iptables rule: table nat, chain CNI-",
        (false, "DOCKER") => "held by: nftables rule: table ip nat, chain DOCKER",
        (false, _) => "held by: nftables rule: table ip nat, chain CNI-",
    };
    let rows = [
        (
            "8080:80",
            Some([
                "bind for 0.0.0.0:8080 failed: port is already allocated",
                held("DOCKER"),
            ]),
        ),
        ("49154:80", Some(["0.0.0.0:49154", held("CNI")])),
        ("127.0.0.1:49153:80", Some(["127.0.0.1:49153", held("CNI")])),
        ("8080-8081:80", None),
        ("[::]:8080:80", None),
        ("8080:80/udp", None),
        ("8082:80", None),
    ];
    faults(|topology| topology.host.feed(restore, &[], IPTABLES), &rows)
}

/// Fails if the rules of iptables are not read (`rules_here` in observe/foreign), or not compared (`collision`).
#[test]
fn a_port_that_an_iptables_rule_has_taken_is_refused_or_avoided() {
    assert_eq!(with_iptables("iptables-nft-restore"), [""; 0]);
    assert_eq!(with_iptables("iptables-legacy-restore"), [""; 0]);
}

#[test]
fn a_port_that_an_nftables_rule_has_taken_is_refused_or_avoided() {
    let held = "held by: nftables rule: table inet proxy, chain ";
    let rows = [
        ("8443:443", Some(["0.0.0.0:8443", held])),
        // The rule gives packets an IPv4 destination.
        ("[::1]:8443:443", None),
        ("5005:53/udp", Some(["0.0.0.0:5005", held])),
        ("192.0.2.10:5009:53/udp", Some(["192.0.2.10:5009", held])),
        ("192.0.2.1:5005:53/udp", None),
        ("5010:53/udp", None),
        ("8443-8444:443", None),
    ];
    let rules = |topology: &Topology| topology.host.feed("nft", &["-f", "-"], NFTABLES);
    assert_eq!(faults(rules, &rows), [""; 0]);
}

/// The bug that this began with: each of two containers is to have two ports of its own, beside what others have.
#[test]
fn chosen_ports_are_nobodys_however_many_containers_there_are() {
    let topology = Topology::new(Shape::default());
    topology.host.feed("iptables-nft-restore", &[], IPTABLES);
    // What would be chosen first is taken by a rule.
    let first = topology.attach("first", 0, &["80"]);
    let port = first
        .stdout
        .trim()
        .rsplit(':')
        .next()
        .expect("a port")
        .to_owned();
    topology.portfwd(&["detach", "first"]).expect_ok();
    let taken = format!(
        "add table ip other\nadd chain ip other pre {{ type nat hook prerouting priority -100; }}\nadd rule ip other pre tcp dport {port} dnat to 10.4.0.9:80\n"
    );
    topology.host.feed("nft", &["-f", "-"], &taken);
    let again = topology.attach("first", 0, &["80"]);
    assert!(!again.stdout.contains(&format!(":{port}\n")), "{again:?}");
    for number in 0..20 {
        topology.attach(&format!("a{number}"), 0, &["80", "90"]);
        topology.attach(&format!("b{number}"), 1, &["80", "90"]);
    }
    let mut ports: Vec<u64> = topology
        .list()
        .iter()
        .filter(|forward| forward["hostIp"] == "0.0.0.0")
        .map(|forward| forward["hostPort"].as_u64().expect("a port"))
        .collect();
    assert_eq!(ports.len(), 81);
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 81, "no port twice");
    assert!(!ports.contains(&port.parse().expect("a number")));
    assert!(!ports.contains(&49_153) && !ports.contains(&49_154));
}

#[test]
fn a_rule_for_every_port_is_warned_of_and_in_nobodys_way() {
    let topology = Topology::new(Shape::default());
    let proxy = "table ip proxy {
        chain prerouting { type nat hook prerouting priority dstnat; iifname \"br9\" meta l4proto tcp redirect to :3128; }
    }\n";
    topology.host.feed("nft", &["-f", "-"], proxy);
    let outcome = topology.attach("web", 0, &["8080:80"]);
    outcome.expect_stderr(
        "passes by a rule for every port: nftables rule: table ip proxy, chain prerouting",
    );
    let udp = topology.attach("web", 0, &["8080:80/udp"]);
    assert!(!udp.stderr.contains("every port"), "{udp:?}");
}

/// Fails if the protocol of a key with ranges is not understood, which `nft` turns the bytes of (`byteorder` in
/// expression.rs).
#[test]
fn a_key_of_protocol_and_port_takes_each_port_of_its_protocol_alone() {
    let topology = Topology::new(Shape::default());
    let keys = "table inet keys {
        set named { type inet_proto . inet_service; flags interval; elements = { tcp . 8974, udp . 8975 } }
        chain prerouting {
            type nat hook prerouting priority dstnat
            meta l4proto . th dport { tcp . 8970, udp . 8971 } dnat ip to 10.9.9.8
            meta l4proto . th dport { tcp . 8972, udp . 8973-8973 } dnat ip to 10.9.9.8
            meta l4proto . th dport @named dnat ip to 10.9.9.8
            meta l4proto . th dport { tcp . 8976, udp . 8977-8979 } dnat ip to 10.9.9.8
        }
    }\n";
    topology.host.feed("nft", &["-f", "-"], keys);
    for tcp in [8970, 8972, 8974, 8976] {
        let udp = tcp + 1;
        for spec in [format!("{tcp}:80"), format!("{udp}:80/udp")] {
            let refused = topology.try_attach("web", 0, &[&spec]);
            let says = "held by: nftables rule: table inet keys, chain prerouting";
            expect_error(refused, 3, says);
        }
        let free = [format!("{tcp}:80/udp"), format!("{udp}:80")];
        topology.attach("web", 0, &free.each_ref().map(String::as_str));
    }
}
