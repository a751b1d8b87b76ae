use std::time::Duration;

use portfwd_common::net::Protocol::{Tcp, Udp};
use portfwd_common::verdict::Reason;
use serde_json::{Value, json};

use super::*;
use crate::cli::LogLevel;
use crate::label::Label;
use crate::spec::PortQuery;

fn published(container: &str, spec: &str, host_ip: &str, host_port: u16, to: &str) -> Published {
    let (container_ip, container_port) = to.rsplit_once(' ').unwrap();
    let (count, protocol) = spec.split_once('/').unwrap();
    Published {
        container: container.parse::<Label>().unwrap(),
        protocol: if protocol == "udp" { Udp } else { Tcp },
        host_ip: host_ip.parse().unwrap(),
        host_port,
        count: count.parse().unwrap(),
        container_ip: container_ip.parse().unwrap(),
        container_port: container_port.parse().unwrap(),
    }
}

fn row(published: Published, scale: u64) -> ForwardRow {
    ForwardRow {
        published,
        allow: Vec::new(),
        deny: Vec::new(),
        connections: scale,
        rx_packets: 2 * scale,
        rx_bytes: 1_000 * scale,
        tx_packets: 3 * scale,
        tx_bytes: 1_234_567 * scale,
        drops: 0,
    }
}

fn web() -> Vec<Published> {
    vec![
        published("web", "1/tcp", "::", 8443, "fd00::2 443"),
        published("web", "1/tcp", "0.0.0.0", 8443, "10.88.0.2 443"),
        published("web", "1/udp", "127.0.0.1", 8080, "10.88.0.2 80"),
        published("web", "1/tcp", "::", 8080, "fd00::2 80"),
        published("web", "1/tcp", "0.0.0.0", 8080, "10.88.0.2 80"),
        published("web", "100/udp", "0.0.0.0", 8000, "10.88.0.2 9000"),
        published("web", "100/udp", "2001:db8::1", 8000, "fd00::2 9000"),
    ]
}

fn text(write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> String {
    let mut out = Vec::new();
    write(&mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn document(of: &(impl Serialize + ?Sized)) -> (String, Value) {
    let text = text(|out| write_json(out, of));
    let value = serde_json::from_str(&text).unwrap();
    (text, value)
}

#[test]
fn ports_are_listed_as_docker_lists_them() {
    assert_eq!(
        text(|out| write_ports(out, &web(), None)),
        "\
80/tcp -> 0.0.0.0:8080
80/tcp -> [::]:8080
80/udp -> 127.0.0.1:8080
443/tcp -> 0.0.0.0:8443
443/tcp -> [::]:8443
9000-9099/udp -> 0.0.0.0:8000-8099
9000-9099/udp -> [2001:db8::1]:8000-8099
"
    );
    assert_eq!(text(|out| write_ports(out, &[], None)), "");
}

#[test]
fn a_port_that_is_asked_for_is_answered_by_its_host_ports_alone() {
    for (query, want) in [
        ("80", "0.0.0.0:8080\n[::]:8080\n"),
        ("80/udp", "127.0.0.1:8080\n"),
        ("9007/udp", "0.0.0.0:8007\n[2001:db8::1]:8007\n"),
        ("9099/udp", "0.0.0.0:8099\n[2001:db8::1]:8099\n"),
        ("9100/udp", ""),
        ("9000/tcp", ""),
        ("8999/udp", ""),
    ] {
        let query: PortQuery = query.parse().unwrap();
        let got = text(|out| write_ports(out, &web(), Some(query)));
        assert_eq!(got, want, "{query}");
        assert_eq!(
            answering(web(), query).len(),
            want.lines().count(),
            "{query}"
        );
    }
}

#[test]
fn the_list_has_one_line_for_what_is_the_same_in_both_families() {
    let mut rows: Vec<ForwardRow> = web().into_iter().map(|row| self::row(row, 1)).collect();
    rows.push(row(
        published("db", "1/tcp", "0.0.0.0", 5432, "10.88.0.30 5432"),
        700,
    ));
    rows.push(row(
        published("db", "1/tcp", "::", 5433, "fd00::30 5432"),
        0,
    ));
    assert_eq!(
        text(|out| write_forwards(out, &rows)),
        "\
CONTAINER  PROTOCOL  HOST                     TARGET                        CONNECTIONS  RECEIVED     SENT  DROPS
db         tcp       0.0.0.0:5432             10.88.0.30:5432                       700    700 kB   864 MB      0
db         tcp       [::]:5433                [fd00::30]:5432                         0       0 B      0 B      0
web        tcp       *:8080                   10.88.0.2:80, [fd00::2]:80              2   2.00 kB  2.46 MB      0
web        udp       127.0.0.1:8080           10.88.0.2:80                            1   1.00 kB  1.23 MB      0
web        tcp       *:8443                   10.88.0.2:443, [fd00::2]:443            2   2.00 kB  2.46 MB      0
web        udp       0.0.0.0:8000-8099        10.88.0.2:9000-9099                     1   1.00 kB  1.23 MB      0
web        udp       [2001:db8::1]:8000-8099  [fd00::2]:9000-9099                     1   1.00 kB  1.23 MB      0
"
    );
}

#[test]
fn who_may_use_a_forward_is_a_column_if_anybody_may_not() {
    let open = row(published("db", "80/tcp", "0.0.0.0", 81, "10.88.0.3 80"), 1);
    let mut limited = row(published("web", "80/tcp", "0.0.0.0", 80, "10.88.0.2 80"), 1);
    limited.allow = vec!["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
    limited.deny = vec!["10.9.0.0/16".parse().unwrap()];
    let table = text(|out| write_forwards(out, &[open, limited]));
    let ends: Vec<&str> = table
        .lines()
        .map(|line| line.rsplit("  ").next().unwrap())
        .collect();
    assert_eq!(
        ends,
        ["CLIENTS", "all", "10.0.0.0/8, ::1/128, not 10.9.0.0/16"]
    );
}

#[test]
fn an_empty_list_is_its_headings() {
    let table = text(|out| write_forwards(out, &[]));
    assert_eq!(
        table,
        "CONTAINER  PROTOCOL  HOST  TARGET  CONNECTIONS  RECEIVED  SENT  DROPS\n"
    );
    assert_eq!(document(&Vec::<ForwardRow>::new()).0, "[]\n");
}

#[test]
fn the_document_of_the_list_has_the_keys_of_the_contract_in_their_order() {
    let mut row = row(published("web", "100/udp", "::", 8000, "fd00::2 9000"), 1);
    row.allow.push("192.0.2.0/24".parse().unwrap());
    row.deny.push("2001:db8::/32".parse().unwrap());
    let (text, value) = document(&[row]);
    assert_eq!(
        value,
        json!([{
            "container": "web",
            "protocol": "udp",
            "hostIp": "::",
            "hostPort": 8000,
            "count": 100,
            "containerIp": "fd00::2",
            "containerPort": 9000,
            "allow": ["192.0.2.0/24"],
            "deny": ["2001:db8::/32"],
            "connections": 1,
            "rxPackets": 2,
            "rxBytes": 1000,
            "txPackets": 3,
            "txBytes": 1_234_567,
            "drops": 0,
        }])
    );
    let keys = [
        "container",
        "protocol",
        "hostIp",
        "hostPort",
        "count",
        "containerIp",
        "containerPort",
        "allow",
        "deny",
        "connections",
        "rxPackets",
        "rxBytes",
        "txPackets",
        "txBytes",
        "drops",
    ];
    let places: Vec<_> = keys.map(|key| text.find(&format!("\"{key}\":"))).into();
    assert!(places.is_sorted() && places[0].is_some(), "{text}");
}

fn flow(container: &str, client: &str, host: &str, to: &str, state: &'static str) -> FlowRow {
    FlowRow {
        container: container.parse().unwrap(),
        protocol: Tcp,
        client: client.parse().unwrap(),
        host: host.parse().unwrap(),
        container_address: to.parse().unwrap(),
        state: state.into(),
        age: Duration::from_millis(185_900),
        idle: Duration::from_millis(900),
        rx_bytes: (container == "web").then_some(1_234_567),
        tx_bytes: (container == "web").then_some(60),
    }
}

#[test]
fn flows_are_shown_with_their_containers() {
    let rows = [
        flow(
            "web",
            "[2001:db8::9]:40001",
            "[2001:db8::1]:8080",
            "[fd00::2]:80",
            "established",
        ),
        flow(
            "web",
            "192.0.2.9:40000",
            "192.0.2.1:8080",
            "10.88.0.2:80",
            "closing",
        ),
        flow(
            "db",
            "192.0.2.9:40002",
            "192.0.2.1:5432",
            "10.88.0.3:5432",
            "opening",
        ),
    ];
    assert_eq!(
        text(|out| write_flows(out, &rows)),
        "\
CONTAINER  PROTOCOL  CLIENT               HOST                TARGET          STATE          AGE  IDLE       RX    TX
db         tcp       192.0.2.9:40002      192.0.2.1:5432      10.88.0.3:5432  opening      3m05s    0s        -     -
web        tcp       192.0.2.9:40000      192.0.2.1:8080      10.88.0.2:80    closing      3m05s    0s  1.23 MB  60 B
web        tcp       [2001:db8::9]:40001  [2001:db8::1]:8080  [fd00::2]:80    established  3m05s    0s  1.23 MB  60 B
"
    );
    assert_eq!(
        document(&rows[..1]).1,
        json!([{
            "container": "web",
            "protocol": "tcp",
            "client": "[2001:db8::9]:40001",
            "host": "[2001:db8::1]:8080",
            "containerAddress": "[fd00::2]:80",
            "state": "established",
            "age": 185,
            "idle": 0,
            "rxBytes": 1_234_567,
            "txBytes": 60,
        }])
    );
}

fn status() -> Status {
    let reason = |reason, packets| ReasonRow { reason, packets };
    Status {
        instance: "default".parse().unwrap(),
        datapath: Some(Datapath {
            lifetimes: portfwd_common::flow::Lifetimes::DEFAULT,
            flow_bytes: true,
            layout: 1,
            object_sha256: Some("c0ffee".to_owned()),
            log_level: LogLevel::Info,
            host_namespace: "net:[4026531840]".to_owned(),
            devices: vec![DeviceRow {
                name: "eth0".to_owned(),
                index: 2,
                hooks: vec!["tcx ingress".to_owned(), "tcx egress".to_owned()],
            }],
            containers: 1,
            forwards: 2,
            flows: 3,
            masqueraded_flows: 4,
            reasons: vec![
                reason(Reason::ForeignSource, 4),
                reason(Reason::FlowTableFull, 0),
                reason(Reason::Fragment, 5),
            ],
        }),
    }
}

#[test]
fn the_status_says_what_is_loaded_and_what_was_not_forwarded() {
    assert_eq!(
        text(|out| write_status(out, &status())),
        "\
instance    default
state       up
host        net:[4026531840]
layout      1
object      sha256 c0ffee
containers  1
forwards    2
flows       3
masqueraded 4
lifetimes   established 7440 s, transitory 240 s, answered 300 s, unanswered 120 s
flow bytes  on
log         info
device      eth0: tcx ingress, tcx egress
dropped     foreign-source: 4
passed      fragment: 5
"
    );
    assert_eq!(
        document(&status()).1,
        json!({"instance": "default", "datapath": {
            "layout": 1,
            "objectSha256": "c0ffee",
            "logLevel": "info",
            "hostNamespace": "net:[4026531840]",
            "devices": [{"name": "eth0", "index": 2, "hooks": ["tcx ingress", "tcx egress"]}],
            "containers": 1,
            "forwards": 2,
            "flows": 3,
            "masqueradedFlows": 4,
            "lifetimes": {
                "established": 7440, "transitory": 240, "answered": 300, "unanswered": 120,
            },
            "flowBytes": true,
            "reasons": [
                {"reason": "foreign-source", "dropped": true, "packets": 4},
                {"reason": "flow-table-full", "dropped": true, "packets": 0},
                {"reason": "fragment", "dropped": false, "packets": 5},
            ],
        }})
    );
}

#[test]
fn the_status_of_nothing_is_that_it_is_down() {
    let down = Status {
        instance: "lab".parse().unwrap(),
        datapath: None,
    };
    let lines = text(|out| write_status(out, &down));
    assert_eq!(lines, "instance    lab\nstate       down\n");
    assert_eq!(
        document(&down).1,
        json!({"instance": "lab", "datapath": null})
    );
}

#[test]
fn numbers_of_bytes_have_three_digits_and_never_say_more_than_there_was() {
    for (count, want) in [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1.00 kB"),
        (1_009, "1.00 kB"),
        (9_999, "9.99 kB"),
        (10_000, "10.0 kB"),
        (99_999, "99.9 kB"),
        (100_000, "100 kB"),
        (999_999, "999 kB"),
        (1_000_000, "1.00 MB"),
        (u64::MAX, "18.4 EB"),
    ] {
        assert_eq!(table::bytes(count), want);
    }
}

#[test]
fn times_are_told_in_their_two_largest_units() {
    for (seconds, want) in [
        (0, "0s"),
        (59, "59s"),
        (60, "1m00s"),
        (3_599, "59m59s"),
        (3_600, "1h00m"),
        (86_399, "23h59m"),
        (86_400, "1d00h"),
        (1_000_000, "11d13h"),
    ] {
        assert_eq!(table::duration(Duration::from_secs(seconds)), want);
    }
}

/// A writer whose reader has gone.
struct Closed;

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn no_writer_panics_when_the_reader_goes_away() {
    let rows = [row(web().remove(0), 1)];
    let ends = [
        write_ports(&mut Closed, &web(), None),
        write_forwards(&mut Closed, &rows),
        write_flows(&mut Closed, &[]),
        write_status(&mut Closed, &status()),
        write_json(&mut Closed, &rows),
    ];
    for end in ends {
        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}

#[test]
fn what_is_masqueraded_is_a_table_for_people_and_an_array_for_programs() {
    let row = |subnet: &str, container: Option<&str>, flows| MasqueradeRow {
        subnet: subnet.parse().unwrap(),
        container: container.map(|name| name.parse().unwrap()),
        flows,
    };
    let rows = [
        row("10.88.0.0/16", None, 12),
        row("fd88::2", Some("web"), 0),
    ];
    let mut text = Vec::new();
    write_masqueraded(&mut text, &rows).unwrap();
    let expected = "\
SUBNET        CONTAINER  FLOWS
10.88.0.0/16  -             12
fd88::2/128   web            0
";
    assert_eq!(String::from_utf8(text).unwrap(), expected);
    let mut json = Vec::new();
    write_json(&mut json, &rows).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(
        json,
        serde_json::json!([
            {"subnet": "10.88.0.0/16", "container": null, "flows": 12},
            {"subnet": "fd88::2/128", "container": "web", "flows": 0},
        ])
    );
}
