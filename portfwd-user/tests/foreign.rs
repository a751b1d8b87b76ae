//! Rules of other tools, made by the real `nft` and `iptables` as those tools make them. Needs root.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail as the tests themselves do"
)]

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use portfwd_user::collision::{Addresses, Family, Rule};
use portfwd_user::observe::foreign;
use portfwd_user::observe::netns::Netns;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A namespace of the test's own, gone when it ends.
struct Host {
    name: String,
}

impl Host {
    fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let host = Self {
            name: format!("ff-{}-{number}", std::process::id()),
        };
        succeeds(Command::new("ip").args(["netns", "add", &host.name]));
        host
    }

    fn open(&self) -> Netns {
        Netns::open(&PathBuf::from("/run/netns").join(&self.name)).unwrap()
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        succeeds(command.args(arguments));
    }

    /// Rules as `nft -f` reads them.
    fn nft(&self, rules: &str) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), rules).unwrap();
        self.run("nft", &["-f", file.path().to_str().unwrap()]);
    }

    /// Rules as `iptables-restore` reads them, of the nat table.
    fn restore(&self, program: &str, rules: &str) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("*nat\n{}\nCOMMIT\n", rules.trim())).unwrap();
        self.run(program, &["-w", "10", file.path().to_str().unwrap()]);
    }

    /// What is found, a line each, sorted.
    fn found(&self) -> Vec<String> {
        let rules = foreign::rules(&self.open()).unwrap();
        let mut lines: Vec<String> = rules.iter().map(line).collect();
        lines.sort();
        lines
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "delete", &self.name])
            .status();
    }
}

fn succeeds(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    output
}

/// `tcp v4 any 80,90-95 | nftables rule: ...`
fn line(rule: &Rule) -> String {
    let protocol = rule.protocol.map_or("any", |protocol| protocol.name());
    let family = match rule.family {
        Family::V4 => "v4",
        Family::V6 => "v6",
        Family::Both => "both",
    };
    let addresses = match &rule.addresses {
        Addresses::Any => "any".to_owned(),
        Addresses::Within(ranges) => {
            let ranges = ranges
                .iter()
                .map(|range| match (range.start(), range.end()) {
                    (first, last) if first == last => first.to_string(),
                    (first, last) => format!("{first}-{last}"),
                });
            ranges.collect::<Vec<_>>().join(",")
        }
    };
    let ports: Vec<String> = rule.ports.iter().map(ToString::to_string).collect();
    let ports = ports.join(",");
    format!("{protocol} {family} {addresses} {ports} | {}", rule.place)
}

/// How a chain of a program's nat table is written.
type Written = fn(&str) -> String;

/// Every program that puts rules of this form somewhere.
const IPTABLES: [(&str, Written); 4] = [
    ("iptables-nft-restore", |chain| {
        format!("nftables rule: table ip nat, chain {chain}")
    }),
    ("iptables-legacy-restore", |chain| {
        format!("iptables rule: table nat, chain {chain} (legacy)")
    }),
    ("ip6tables-nft-restore", |chain| {
        format!("nftables rule: table ip6 nat, chain {chain}")
    }),
    ("ip6tables-legacy-restore", |chain| {
        format!("ip6tables rule: table nat, chain {chain} (legacy)")
    }),
];

#[test]
fn nothing_is_found_where_nothing_is() {
    let host = Host::new();
    assert_eq!(host.found(), Vec::<String>::new());
    host.nft(
        "table inet f {
           chain input { type filter hook input priority 0; policy accept; tcp dport 80 accept; }
           chain out { type nat hook postrouting priority 100; masquerade; }
           chain unused { tcp dport 80 redirect to :81; }
         }",
    );
    assert_eq!(host.found(), Vec::<String>::new());
    host.restore("iptables-legacy-restore", "-A POSTROUTING -j MASQUERADE");
    assert_eq!(host.found(), Vec::<String>::new());
}

/// As Docker makes them, of every iptables there is.
#[test]
fn ports_that_docker_publishes_are_found() {
    for (program, place) in IPTABLES {
        let v6 = program.starts_with("ip6");
        let (family, loopback, own, container) = if v6 {
            ("v6", "::1/128", "2001:db8::1", "[fd00::2]:80")
        } else {
            ("v4", "127.0.0.0/8", "192.0.2.1", "172.17.0.2:80")
        };
        let host = Host::new();
        let rules = format!(
            ":DOCKER - [0:0]
             -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
             -A OUTPUT ! -d {loopback} -m addrtype --dst-type LOCAL -j DOCKER
             -A DOCKER -i docker0 -j RETURN
             -A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination {container}
             -A DOCKER -d {own} ! -i docker0 -p udp -m udp --dport 53 -j DNAT --to-destination {container}
             -A DOCKER ! -i docker0 -p sctp -m sctp --dport 5060 -j DNAT --to-destination {container}"
        );
        host.restore(program, &rules.replace("             ", ""));
        let docker = place("DOCKER");
        assert_eq!(
            host.found(),
            [
                format!("sctp {family} any 5060 | {docker}"),
                format!("tcp {family} any 8080 | {docker}"),
                format!("udp {family} {own} 53 | {docker}"),
            ],
            "{program}"
        );
    }
}

/// As CNI's portmap makes them through iptables: the list of `--dports` in front, a rule a port behind.
#[test]
fn every_port_of_a_container_of_cni_is_found() {
    for (program, place) in IPTABLES {
        let v6 = program.starts_with("ip6");
        let (family, first, second) = if v6 {
            ("v6", "[fd00::2]:80", "[fd00::2]:443")
        } else {
            ("v4", "10.4.0.2:80", "10.4.0.2:443")
        };
        let host = Host::new();
        let rules = format!(
            ":CNI-HOSTPORT-DNAT - [0:0]
             :CNI-HOSTPORT-SETMARK - [0:0]
             :CNI-DN-abc - [0:0]
             -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
             -A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
             -A CNI-HOSTPORT-SETMARK -m comment --comment \"CNI portfwd masquerade mark\" -j MARK --set-xmark 0x2000/0x2000
             -A CNI-HOSTPORT-DNAT -p tcp -m comment --comment \"dnat name: \\\"bridge\\\" id: \\\"c1\\\"\" -m multiport --dports 49153,49154 -j CNI-DN-abc
             -A CNI-DN-abc -s ff00::/128 -p tcp -m tcp --dport 49153 -j CNI-HOSTPORT-SETMARK
             -A CNI-DN-abc -p tcp -m tcp --dport 49153 -j DNAT --to-destination {first}
             -A CNI-DN-abc -p tcp -m tcp --dport 49154 -j DNAT --to-destination {second}"
        );
        let rules = if v6 {
            rules
        } else {
            rules.replace("ff00::/128", "10.4.0.2/32")
        };
        host.restore(program, &rules.replace("             ", ""));
        let chain = place("CNI-DN-abc");
        assert_eq!(
            host.found(),
            [
                format!("tcp {family} any 49153 | {chain}"),
                format!("tcp {family} any 49154 | {chain}"),
            ],
            "{program}"
        );
    }
}

#[test]
fn lists_ranges_and_what_is_inverted_are_understood() {
    for (program, place) in IPTABLES {
        let v6 = program.starts_with("ip6");
        let family = if v6 { "v6" } else { "v4" };
        let (net, within, others) = if v6 {
            (
                "2001:db8::/33",
                "2001:db8::-2001:db8:7fff:ffff:ffff:ffff:ffff:ffff",
                "::-2001:db7:ffff:ffff:ffff:ffff:ffff:ffff,\
                 2001:db8:8000::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            )
        } else {
            (
                "192.0.2.0/25",
                "192.0.2.0-192.0.2.127",
                "0.0.0.0-192.0.1.255,192.0.2.128-255.255.255.255",
            )
        };
        let host = Host::new();
        host.restore(
            program,
            &format!(
                "-A PREROUTING -p tcp -m multiport --dports 80,90:95,97 -j REDIRECT --to-ports 1\n\
                 -A PREROUTING -p udp -m multiport ! --dports 1:1000,2000 -j REDIRECT --to-ports 1\n\
                 -A PREROUTING -p udp -m multiport --ports 67,68 -j REDIRECT --to-ports 1\n\
                 -A PREROUTING -p tcp -m multiport --sports 5 -j REDIRECT --to-ports 1\n\
                 -A OUTPUT -p tcp -m tcp --dport 100:200 -d {net} -j REDIRECT --to-ports 1\n\
                 -A OUTPUT -p tcp -m tcp ! --dport 100:65535 ! -d {net} -j REDIRECT --to-ports 1\n\
                 -A OUTPUT -p tcp -m addrtype ! --dst-type LOCAL -j REDIRECT --to-ports 1\n\
                 -A OUTPUT ! -p tcp -m mark --mark 7 -j DNAT --to-destination {}",
                if v6 { "fd00::9" } else { "10.0.0.9" }
            ),
        );
        let (pre, out) = (place("PREROUTING"), place("OUTPUT"));
        let mut expected = [
            format!("tcp {family} any 80,90-95,97 | {pre}"),
            format!("udp {family} any 1001-1999,2001-65535 | {pre}"),
            format!("udp {family} any 67-68 | {pre}"),
            format!("tcp {family} any 1-65535 | {pre}"),
            format!("tcp {family} {within} 100-200 | {out}"),
            format!("tcp {family} {others} 1-99 | {out}"),
            format!("udp {family} any 1-65535 | {out}"),
            format!("sctp {family} any 1-65535 | {out}"),
        ];
        expected.sort();
        assert_eq!(host.found(), expected, "{program}");
    }
}

/// As CNI's portmap makes them through nftables.
#[test]
fn ports_of_cni_in_nftables_are_found() {
    let host = Host::new();
    host.nft(
        "table ip cni_hostport {
           comment \"CNI portmap plugin\"
           chain hostports { tcp dport 8080 dnat to 10.4.0.2:80 comment \"c1\"; udp dport 53 dnat to 10.4.0.2:53; }
           chain hostip_hostports { ip daddr 192.0.2.1 tcp dport 443 dnat to 10.4.0.2:443; }
           chain prerouting {
             type nat hook prerouting priority dstnat;
             jump hostip_hostports
             jump hostports
           }
           chain output {
             type nat hook output priority -100;
             jump hostip_hostports
             fib daddr type local jump hostports
           }
         }
         table ip6 cni_hostport {
           chain hostports { tcp dport 8081 dnat to [fd00::2]:80; }
           chain hostip_hostports { ip6 daddr 2001:db8::1 tcp dport 443 dnat to [fd00::2]:443; }
           chain prerouting {
             type nat hook prerouting priority dstnat;
             jump hostip_hostports
             jump hostports
           }
         }",
    );
    assert_eq!(
        host.found(),
        [
            "tcp v4 192.0.2.1 443 | nftables rule: table ip cni_hostport, chain hostip_hostports",
            "tcp v4 any 8080 | nftables rule: table ip cni_hostport, chain hostports",
            "tcp v6 2001:db8::1 443 | nftables rule: table ip6 cni_hostport, chain hostip_hostports",
            "tcp v6 any 8081 | nftables rule: table ip6 cni_hostport, chain hostports",
            "udp v4 any 53 | nftables rule: table ip cni_hostport, chain hostports",
        ]
    );
}

/// As netavark makes them: a chain a subnet, entered by ports, in a table of both families.
#[test]
fn ports_of_netavark_are_found() {
    let host = Host::new();
    host.nft(
        "table inet netavark {
           chain NETAVARK-HOSTPORT-SETMARK { meta mark set meta mark or 0x2000; }
           chain nv_2f259bab_10_88_0_0_nm16_dnat {
             ip saddr 10.88.0.0/16 tcp dport 8080 jump NETAVARK-HOSTPORT-SETMARK
             ip saddr 127.0.0.1 tcp dport 8080 jump NETAVARK-HOSTPORT-SETMARK
             tcp dport 8080 dnat ip to 10.88.0.2:80
             ip daddr 192.0.2.1 udp dport 53 dnat ip to 10.88.0.2:53
           }
           chain NETAVARK-HOSTPORT-DNAT {
             ip daddr 10.88.0.1 meta l4proto { tcp, udp } th dport 53 dnat ip to 10.88.0.1:1153
             tcp dport 8080-8089 jump nv_2f259bab_10_88_0_0_nm16_dnat
             ip daddr 192.0.2.1 udp dport 53 jump nv_2f259bab_10_88_0_0_nm16_dnat
           }
           chain PREROUTING {
             type nat hook prerouting priority dstnat;
             fib daddr type local jump NETAVARK-HOSTPORT-DNAT
           }
           chain OUTPUT {
             type nat hook output priority -100;
             fib daddr type local jump NETAVARK-HOSTPORT-DNAT
           }
         }",
    );
    let place = "nftables rule: table inet netavark, chain";
    assert_eq!(
        host.found(),
        [
            format!("tcp v4 10.88.0.1 53 | {place} NETAVARK-HOSTPORT-DNAT"),
            format!("tcp v4 any 8080 | {place} nv_2f259bab_10_88_0_0_nm16_dnat"),
            format!("udp v4 10.88.0.1 53 | {place} NETAVARK-HOSTPORT-DNAT"),
            format!("udp v4 192.0.2.1 53 | {place} nv_2f259bab_10_88_0_0_nm16_dnat"),
        ]
    );
}

/// As firewalld makes them: chains a zone, entered by interface.
#[test]
fn a_forward_port_of_firewalld_is_found_once() {
    let host = Host::new();
    host.nft(
        "table inet firewalld {
           chain nat_PRE_public_allow { meta nfproto ipv4 tcp dport 8443 dnat ip to 10.0.0.5:443; }
           chain nat_PRE_public { jump nat_PRE_public_allow; }
           chain nat_PREROUTING_ZONES {
             iifname \"eth0\" goto nat_PRE_public
             iifname \"eth1\" goto nat_PRE_public
             goto nat_PRE_public
           }
           chain nat_PREROUTING {
             type nat hook prerouting priority dstnat + 10; policy accept;
             jump nat_PREROUTING_ZONES
           }
         }",
    );
    assert_eq!(
        host.found(),
        ["tcp v4 any 8443 | nftables rule: table inet firewalld, chain nat_PRE_public_allow"]
    );
}

#[test]
fn maps_and_sets_of_every_kind_are_read() {
    let host = Host::new();
    host.nft(
        "table inet t {
           set ports { type inet_service; flags interval; elements = { 1000-2000, 65000-65535 }; }
           set listed { type inet_service; elements = { 5000, 5001 }; }
           set blocked { type ipv4_addr; elements = { 198.51.100.1 }; }
           map both { type ipv4_addr . inet_service : ipv4_addr . inet_service; elements = { 192.0.2.1 . 80 : 10.0.0.1 . 81 }; }
           map chains { type ipv4_addr . inet_proto . inet_service : verdict; }
           chain target { dnat ip to 10.0.0.7; }
           chain to { meta l4proto tcp redirect to :99; }
           chain p { type nat hook prerouting priority -100
             meta l4proto { tcp, udp } th dport @ports redirect
             tcp dport @listed ip saddr != @blocked redirect
             udp dport != @listed redirect
             ip daddr . tcp dport { 10.0.0.0/8 . 80-90, 192.0.2.1 . 443 } redirect
             dnat ip addr . port to ip daddr . tcp dport map @both
             dnat ip to tcp dport map { 3000 : 10.0.0.1, 3002 : 10.0.0.2 }
             udp dport { 4000, 4002-4005 } dnat ip to numgen inc mod 2 map { 0 : 10.0.0.1, 1 : 10.0.0.2 }
             ip daddr . meta l4proto . th dport vmap @chains
             tcp dport 6000 numgen inc mod 2 vmap { 0 : goto target, 1 : goto target }
           }
           chain v { type nat hook output priority -100
             fib daddr type local tcp dport vmap { 80 : jump to, 100-200 : goto to, 300 : accept }
           }
         }
         add element inet t chains { 192.0.2.9 . udp . 7000 : goto target }",
    );
    let place = "nftables rule: table inet t, chain";
    let mut expected = [
        format!("tcp both any 1000-2000,65000-65535 | {place} p"),
        format!("udp both any 1000-2000,65000-65535 | {place} p"),
        format!("tcp v4 any 5000-5001 | {place} p"),
        format!("udp both any 1-4999,5002-65535 | {place} p"),
        format!("tcp v4 10.0.0.0-10.255.255.255 80-90 | {place} p"),
        format!("tcp v4 192.0.2.1 443 | {place} p"),
        format!("tcp v4 192.0.2.1 80 | {place} p"),
        format!("tcp v4 any 3000,3002 | {place} p"),
        format!("udp v4 any 4000,4002-4005 | {place} p"),
        format!("udp v4 192.0.2.9 7000 | {place} target"),
        format!("tcp v4 any 6000 | {place} target"),
        format!("tcp both any 80,100-200 | {place} to"),
    ];
    expected.sort();
    assert_eq!(host.found(), expected);
}

#[test]
fn comparisons_of_every_kind_are_understood() {
    let host = Host::new();
    host.nft(
        "table inet t {
           chain p { type nat hook prerouting priority -100
             ip daddr 10.0.0.0/8 tcp dport 80-90 redirect
             ip daddr 192.0.2.128/25 tcp dport 91 redirect
             ip6 daddr 2001:db8::/64 tcp dport != 80-90 redirect
             tcp sport 1 tcp dport 92 redirect
             tcp dport & 0xff00 == 0x1f00 redirect
             tcp dport > 65000 redirect
             meta protocol ip udp dport 93 redirect
             meta nfproto ipv6 udp dport 94 redirect
             ip daddr != 198.51.100.0/24 tcp dport 95 redirect
             fib daddr type != local tcp dport 96 redirect
             fib daddr type { local, broadcast } tcp dport 97 redirect
             fib daddr type unicast tcp dport 98 redirect
             ip protocol udp th dport 99 redirect
             icmp type echo-request dnat ip to 10.0.0.1
             ct state new iif lo meta mark 1 tcp dport 100 counter log limit rate 1/second redirect
             tcp dport 0 redirect
             dnat ip to 10.0.0.2
             tcp dport 101 accept
           }
         }",
    );
    let place = "nftables rule: table inet t, chain p";
    let mut expected = [
        format!("tcp v4 10.0.0.0-10.255.255.255 80-90 | {place}"),
        format!("tcp v4 192.0.2.128-192.0.2.255 91 | {place}"),
        format!("tcp v6 2001:db8::-2001:db8::ffff:ffff:ffff:ffff 1-79,91-65535 | {place}"),
        format!("tcp both any 92 | {place}"),
        format!("tcp both any 7936-8191 | {place}"),
        format!("tcp both any 65001-65535 | {place}"),
        format!("udp v4 any 93 | {place}"),
        format!("udp v6 any 94 | {place}"),
        format!("tcp v4 0.0.0.0-198.51.99.255,198.51.101.0-255.255.255.255 95 | {place}"),
        format!("tcp both any 97 | {place}"),
        format!("udp v4 any 99 | {place}"),
        format!("tcp both any 100 | {place}"),
        format!("any v4 any 1-65535 | {place}"),
    ];
    expected.sort();
    assert_eq!(host.found(), expected);
}

#[test]
fn what_old_and_new_iptables_made_side_by_side_is_all_found() {
    let host = Host::new();
    for (program, _) in IPTABLES {
        host.restore(
            program,
            "-A PREROUTING -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 81",
        );
    }
    assert_eq!(host.found().len(), IPTABLES.len());
}

/// Rules that go and come while they are read.
#[test]
fn rules_that_change_meanwhile_are_read_whole() {
    let host = Host::new();
    let rules = |port: u16| {
        format!(
            "table ip t
             delete table ip t
             table ip t {{
               chain p {{ type nat hook prerouting priority -100
                 tcp dport vmap {{ {port} : jump q, 1 : jump q }}
               }}
               chain q {{ tcp dport {{ {port}, 1 }} redirect; }}
             }}"
        )
    };
    host.nft(&rules(1000));
    std::thread::scope(|scope| {
        let changes = scope.spawn(|| (1001..1030).for_each(|port| host.nft(&rules(port))));
        while !changes.is_finished() {
            match foreign::rules(&host.open()) {
                Ok(found) => {
                    assert_eq!(found.len(), 1, "{found:?}");
                    assert_eq!(found[0].ports.len(), 2, "{found:?}");
                }
                Err(foreign::ForeignError::Changing { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        }
    });
}

/// A thousand containers of CNI, in each form that their rules can have; every port is found. How long it took
/// is printed (`--nocapture`).
#[test]
fn a_thousand_containers_are_read_in_no_more_than_linear_time() {
    let mut rules = ":CNI-HOSTPORT-DNAT - [0:0]\n:CNI-HOSTPORT-SETMARK - [0:0]\n".to_owned();
    for container in 0..1000 {
        writeln!(rules, ":CNI-DN-{container} - [0:0]").unwrap();
    }
    rules += "-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A CNI-HOSTPORT-SETMARK -j MARK --set-xmark 0x2000/0x2000
";
    for container in 0..1000 {
        let (port, chain) = (10_000 + container, format!("CNI-DN-{container}"));
        write!(
            rules,
            "-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment \"id: {container}\" -m multiport --dports {port} -j {chain}
-A {chain} -s 10.4.0.0/16 -p tcp -m tcp --dport {port} -j CNI-HOSTPORT-SETMARK
-A {chain} -s 127.0.0.1 -p tcp -m tcp --dport {port} -j CNI-HOSTPORT-SETMARK
-A {chain} -p tcp -m tcp --dport {port} -j DNAT --to-destination 10.4.0.2:80
"
        )
        .unwrap();
    }
    for program in ["iptables-nft-restore", "iptables-legacy-restore"] {
        let host = Host::new();
        let none = fastest(&host);
        host.restore(program, &rules);
        assert_eq!(host.found().len(), 1000, "{program}");
        println!(
            "{program}: {none:?} without rules, {:?} with",
            fastest(&host)
        );
    }
}

/// The fastest of several readings.
fn fastest(host: &Host) -> Duration {
    let netns = host.open();
    let times = (0..20).map(|_| {
        let start = Instant::now();
        foreign::rules(&netns).unwrap();
        start.elapsed()
    });
    times.min().unwrap()
}
