//! Programs of everyday use. From a masqueraded container, beside the same behind nftables: they print the
//! same and end the same, and the server sees the host. And one on the host that wants a published port.

use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::thread;

use serde_json::Value;

use portfwd_tests::beside::{Family, Said, Side};
use portfwd_tests::daemons::{LINES, dnsmasq, dropbear, iperf3_server, nginx, pyftpdlib, socat};
use portfwd_tests::deadline::{PATIENCE, until_ok};
use portfwd_tests::portfwd::expect_error;
use portfwd_tests::topology::{Shape, Topology};

/// A line of the shell in a container, how it ends, and what it prints among other things.
struct Line<'a>(&'a str, i32, &'a [&'a str]);

/// What the line says behind portfwd, and behind nftables.
fn said(sides: &[Side; 2], line: &str) -> [Said; 2] {
    sides.each_ref().map(|side| side.run(line))
}

/// Each line says the same on both sides, and what is expected.
#[track_caller]
fn alike(sides: &[Side; 2], family: Family, lines: &[Line<'_>]) {
    for Line(line, code, parts) in lines {
        let line = family.fill(line);
        let [ours, theirs] = said(sides, &line);
        assert_eq!(ours, theirs, "{line}: portfwd's and nftables'");
        assert_eq!(ours.code, *code, "{line}: {}", ours.text);
        for part in *parts {
            let part = family.fill(part);
            assert!(
                ours.text.contains(&part),
                "{line}: no {part:?} in {}",
                ours.text
            );
        }
    }
}

#[track_caller]
fn masqueraded(sides: [Side; 2], families: &[Family]) {
    for side in sides {
        side.assert_masqueraded(families);
    }
}

#[test]
fn ping() {
    let sides = Side::both();
    for family in Family::BOTH {
        let too_large = match family {
            Family::V4 => "From {router} icmp_seq=1 Frag needed and DF set (mtu = 1400)",
            Family::V6 => "From {router} icmp_seq=1 Packet too big: mtu=1400",
        };
        let expired = match family {
            Family::V4 => "From {router} icmp_seq=1 Time to live exceeded",
            Family::V6 => "From {router} icmp_seq=1 Time exceeded: Hop limit",
        };
        let lines = [
            Line(
                "ping -n -c 3 -i 0.2 {server}",
                0,
                &["3 received, 0% packet loss"],
            ),
            Line("ping -n -c 200 -i 0.002 -q {server}", 0, &["200 received"]),
            Line("ping -n -c 1 -s 0 {server}", 0, &["1 received"]),
            Line(
                "ping -n -c 2 -i 0.2 -M do -s 1300 {server}",
                0,
                &["2 received"],
            ),
            Line(
                "ping -n -c 2 -i 0.2 -W 1 -M do -s 1400 {server}",
                1,
                &[too_large],
            ),
            Line(
                "ping -n -c 3 -i 0.2 -W 1 -s 4000 {server}",
                0,
                &["received"],
            ),
            Line("ping -n -c 1 -W 1 -t 2 {server}", 1, &[expired]),
            Line(
                "ping -n -c 1 -W 1 {absent}",
                1,
                &["From {router} icmp_seq=1 Destination"],
            ),
        ];
        alike(&sides, family, &lines);
    }
    let with_options = [Line("ping -n -c 1 -R {server}", 0, &["1 received"])];
    alike(&sides, Family::V4, &with_options);
    masqueraded(sides, &Family::BOTH);
}

#[test]
fn traceroute() {
    let sides = Side::both();
    let hops = &["1 {gateway}\n", "2 {router}\n", "3 {server}"];
    for family in Family::BOTH {
        let lines = [
            Line("traceroute -n -w 3 {server}", 0, hops),
            Line("traceroute -n -w 3 -I {server}", 0, hops),
            Line("traceroute -n -w 3 -T {server}", 0, hops),
            Line(
                "traceroute -n -w 3 -q 1 -N 1 --mtu {server} 4000",
                0,
                &[
                    "1 {gateway} F=1500\n",
                    "2 {router}\n",
                    "3 {server} F=1400\n",
                ],
            ),
            Line("traceroute -n -w 3 -m 4 {absent}", 0, &["2 {router}"]),
        ];
        alike(&sides, family, &lines);
    }
    masqueraded(sides, &Family::BOTH);
}

#[test]
fn mtr() {
    let sides = Side::both();
    let hops = &[
        "1.|-- {gateway} 0.0% 3\n",
        "2.|-- {router} 0.0% 3\n",
        "3.|-- {server} 0.0% 3\n",
    ];
    for family in Family::BOTH {
        let lines = ["", "--udp", "--tcp"].map(|probes| {
            format!("mtr --report --no-dns -c 3 -i 0.2 -G 1 {probes} {{server}} | awk 'NR > 2 {{ print $1, $2, $3, $4 }}'")
        });
        let lines = lines.each_ref().map(|line| Line(line, 0, hops));
        alike(&sides, family, &lines);
    }
    masqueraded(sides, &Family::BOTH);
}

#[test]
fn nc() {
    let sides = Side::both();
    let _servers = sides.each_ref().map(|side| {
        [
            ("TCP6-LISTEN:7000,fork EXEC:cat", 7000),
            ("UDP6-RECVFROM:7000,fork EXEC:cat", 7000),
            ("TCP6-LISTEN:7001,fork 'SYSTEM:echo $SOCAT_PEERPORT'", 7001),
        ]
        .map(|(ends, port)| socat(&side.server, ends, port))
    });
    for family in Family::BOTH {
        let absent = match family {
            Family::V4 => "No route to host",
            Family::V6 => "Network is unreachable",
        };
        let lines = [
            Line(
                "seq 200000 | nc -nN {server} 7000 | sha256sum",
                0,
                &[&sum(200_000)],
            ),
            // The server closes first, and meets the port again in TIME_WAIT.
            Line(
                "for n in 1 2 3; do nc -dn -p 5000 {server} 7001; done",
                0,
                &["5000\n5000\n5000\n"],
            ),
            Line("nc -nzv {server} 7000", 0, &["succeeded"]),
            Line("nc -nzv {server} 7002", 1, &["Connection refused"]),
            Line("nc -nzv {absent} 7000", 1, &[absent]),
            Line("echo hello | nc -nu -w 1 {server} 7000", 0, &["hello"]),
            Line("nc -nuzv {server} 7002", 1, &[]),
        ];
        alike(&sides, family, &lines);
    }
    masqueraded(sides, &Family::BOTH);
}

/// What `sha256sum` says of the first so many numbers.
fn sum(lines: u32) -> String {
    let output = Command::new("sh")
        .args(["-c", &format!("seq {lines} | sha256sum")])
        .output();
    let output = output.expect("start a shell");
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    said.split(' ').next().expect("a sum").to_owned()
}

#[test]
fn curl() {
    let sides = Side::both();
    let _servers = sides.each_ref().map(|side| nginx(&side.server));
    let sum = sum(LINES);
    let eight = format!("{sum} -\n").repeat(8);
    for family in Family::BOTH {
        let lines = [
            Line("curl -gsS http://{[server]}/who", 0, &["{host}"]),
            Line(
                "curl -gsS http://{[server]}/numbers | sha256sum",
                0,
                &[&sum],
            ),
            Line(
                "seq 400000 | curl -gsS -T - http://{[server]}/put{family} && curl -gsS http://{[server]}/put{family} | sha256sum",
                0,
                &[&sum],
            ),
            Line(
                "for n in 1 2 3 4 5 6 7 8; do curl -gsS http://{[server]}/numbers | sha256sum & done; wait",
                0,
                &[&eight],
            ),
            // A port that the host's own sockets do not get is kept.
            Line(
                "curl -gsS --local-port 500{family} http://{[server]}/port",
                0,
                &["500{family}"],
            ),
            Line("curl -gsS http://{[server]}:81/", 7, &["Couldn't connect"]),
        ];
        alike(&sides, family, &lines);
    }
    masqueraded(sides, &Family::BOTH);
}

#[test]
fn dig() {
    let sides = Side::both();
    let _servers = sides.each_ref().map(|side| dnsmasq(&side.server));
    for family in Family::BOTH {
        let lines = [
            Line("dig +short @{server} small.test TXT", 0, &["hello"]),
            Line("dig +short +tcp @{server} small.test TXT", 0, &["hello"]),
            Line(
                "dig @{server} large.test TXT | grep -E 'xxx|SIZE|SERVER|Trunc'",
                0,
                &["retrying in TCP", "(TCP)", "rcvd: 3"],
            ),
            Line(
                "dig +bufsize=4096 @{server} large.test TXT | grep -E 'xxx|SIZE|SERVER|Trunc'",
                0,
                &["(UDP)", "rcvd: 3"],
            ),
            Line(
                "dig +tries=1 +timeout=1 -p 54 @{server} small.test TXT",
                9,
                &["connection refused"],
            ),
        ];
        alike(&sides, family, &lines);
    }
    masqueraded(sides, &Family::BOTH);
}

#[test]
fn ssh() {
    let sides = Side::both();
    let daemons = sides.each_ref().map(|side| dropbear(&side.server));
    let sum = sum(LINES);
    for family in Family::BOTH {
        for (command, part) in [
            ("ssh 'set -- $SSH_CONNECTION; echo $1'", "{host}\n"),
            ("ssh 'exit 7' || echo $?", "7\n"),
            ("seq 400000 | ssh sha256sum", &sum),
            ("ssh seq 400000 | sha256sum", &sum),
        ] {
            let said = [0, 1].map(|number| {
                let key = daemons[number].directory().join("key");
                let ssh = format!(
                    "ssh -F none -i {} -o BatchMode=yes -o LogLevel=ERROR -o StrictHostKeyChecking=no \
                     -o UserKnownHostsFile=/dev/null root@{{server}}",
                    key.display()
                );
                sides[number].run(&family.fill(&command.replace("ssh", &ssh)))
            });
            assert_eq!(said[0], said[1], "{command}");
            assert!(
                said[0].text.contains(&family.fill(part)),
                "{command}: {}",
                said[0].text
            );
        }
    }
    masqueraded(sides, &Family::BOTH);
}

#[test]
fn ftp() {
    let sides = Side::both();
    let _servers = sides.each_ref().map(|side| pyftpdlib(&side.server));
    let sum = sum(LINES);
    for family in Family::BOTH {
        let url = "ftp://{[server]}";
        let active = match family {
            Family::V4 => 30,
            Family::V6 => 28,
        };
        let lines = [
            Line(&format!("curl -gsS {url}/numbers | sha256sum"), 0, &[&sum]),
            Line(
                &format!("curl -gsS --disable-epsv {url}/numbers | sha256sum"),
                0,
                &[&sum],
            ),
            Line(
                &format!(
                    "seq 400000 | curl -gsS -T - {url}/put{{family}} && curl -gsS {url}/put{{family}} | sha256sum"
                ),
                0,
                &[&sum],
            ),
            // Active: the server is told the container's address, refuses it or does not reach it.
            Line(
                &format!("curl -gs -m 3 --ftp-port - {url}/numbers"),
                active,
                &[],
            ),
        ];
        alike(&sides, family, &lines);
    }
    masqueraded(sides, &Family::BOTH);
}

/// How a run of iperf3 ended, as far as it does not depend on the machine's speed.
#[derive(Debug, PartialEq)]
struct Measured {
    code: i32,
    error: Option<String>,
    streams: usize,
    enough: bool,
}

fn measure(side: &Side, container: usize, options: &str) -> Measured {
    let Said { code, text } =
        side.run_in(container, &format!("iperf3 -J -c {options} 2>/dev/null"));
    let report: Value =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let end = &report["end"];
    let number = |value: &Value| value.as_f64().unwrap_or_default();
    // What is in the sender's buffer when iperf3 ends is not counted.
    let enough = if end["sum"]["packets"].is_number() {
        number(&end["sum"]["packets"]) > 100.0 && number(&end["sum"]["lost_percent"]) < 50.0
    } else {
        number(&end["sum_received"]["bytes"]) > 2e6
    };
    Measured {
        code,
        error: report["error"].as_str().map(str::to_owned),
        streams: end["streams"].as_array().map_or(0, Vec::len),
        enough,
    }
}

#[test]
fn iperf3() {
    let sides = Side::both();
    let _servers = sides.each_ref().map(|side| iperf3_server(&side.server));
    for family in Family::BOTH {
        for (options, streams) in [
            ("-n 20M", 1),
            ("-n 20M --reverse", 1),
            ("-n 20M --bidir", 2),
            ("-n 40M -P 4", 4),
            ("-n 40M -P 4 --reverse", 4),
            ("-n 600K -u -b 10M -l 1200", 1),
            ("-n 600K -u -b 10M -l 1200 --reverse", 1),
            // In fragments, as TCP has learned what the link to the server takes.
            ("-n 1M -u -b 10M -l 8000", 1),
            ("-n 1M -u -b 10M -l 8000 --reverse", 1),
        ] {
            let expected = Measured {
                code: 0,
                error: None,
                streams,
                enough: true,
            };
            for side in &sides {
                let measured = measure(side, 0, &family.fill(&format!("{{server}} {options}")));
                assert_eq!(measured, expected, "{:?} {family:?} {options}", side.by);
            }
        }
        let closed = family.fill("{server} -p 5202");
        let [ours, theirs] = sides.each_ref().map(|side| measure(side, 0, &closed));
        assert_eq!(ours, theirs);
        assert!(ours.error.is_some_and(|error| error.contains("refused")));
    }
    masqueraded(sides, &Family::BOTH);
}

/// One of them keeps the port, the other gets another one, whether the first still has it or has just closed.
#[test]
fn two_containers_use_one_port() {
    let sides = Side::both();
    let sum = sum(LINES);
    for side in &sides {
        let web = nginx(&side.server);
        let _measuring = iperf3_server(&side.server);
        for family in Family::BOTH {
            let line = "curl -gsS --local-port 500{family} --limit-rate 2M http://{[server]}/numbers | sha256sum";
            let sums = at_once(side, &family.fill(line));
            assert!(
                sums.iter().all(|said| said.text.starts_with(&sum)),
                "{sums:?}"
            );
            let log = web.log();
            let ports: Vec<&str> = log.lines().rev().take(2).collect();
            let kept = family.fill("500{family}");
            let keeping = ports.iter().filter(|port| **port == kept).count();
            assert_eq!((ports.len(), keeping), (2, 1), "{:?}: {ports:?}", side.by);
            let pings = at_once(side, &family.fill("ping -n -c 5 -i 0.2 -e 4711 {server}"));
            assert!(
                pings.iter().all(|said| said.text.contains("5 received")),
                "{pings:?}"
            );
            for container in [0, 1] {
                let measured = measure(
                    side,
                    container,
                    &family.fill("{server} -n 20M --cport 51{family}"),
                );
                assert_eq!((measured.code, measured.enough), (0, true), "{measured:?}");
            }
        }
    }
    masqueraded(sides, &Family::BOTH);
}

/// What the line says in each container, both at the same time.
fn at_once(side: &Side, line: &str) -> [Said; 2] {
    thread::scope(|scope| {
        let running = [0, 1].map(|number| scope.spawn(move || side.run_in(number, line)));
        running.map(|one| one.join().expect("a program runs"))
    })
}

/// docs/nat-behaviour.md has the list of these.
#[test]
fn what_differs_from_nftables() {
    let sides = Side::both();
    let _servers = sides
        .each_ref()
        .map(|side| (nginx(&side.server), iperf3_server(&side.server)));
    for family in Family::BOTH {
        // A port of those that the host gives to its own sockets.
        let line = family.fill("curl -gsS --local-port 4000{family} http://{[server]}/port");
        let [ours, theirs] = said(&sides, &line);
        assert_eq!((ours.code, theirs.code), (0, 0), "{ours:?} {theirs:?}");
        assert_eq!(theirs.text, family.fill("4000{family}\n"));
        let port: u16 = ours.text.trim().parse().expect("a port");
        assert!(!(32_768..61_000).contains(&port), "{port}");
        // A protocol without ports.
        let line = family.fill("traceroute -n -w 2 -q 1 -m 3 -P 253 {server}");
        let [ours, theirs] = said(&sides, &line);
        assert!(
            theirs.text.contains(&family.fill("3 {server}")),
            "{theirs:?}"
        );
        assert!(
            ours.text.ends_with(&family.fill("1 {gateway}\n2 *\n3 *\n")),
            "{ours:?}"
        );
        // Datagrams that the container knows to be too large for the way and sends in fragments. Netfilter
        // puts those of IPv6 together and sends them as one packet, which a router on the way does not take
        // (Linux 6.18; what others do is theirs).
        let [ours, theirs] = sides.each_ref().map(|side| {
            let learned = measure(side, 0, &family.fill("{server} -n 20M"));
            assert!(learned.enough, "{learned:?}");
            measure(side, 0, &family.fill("{server} -n 800K -u -b 10M -l 1450"))
        });
        assert!(ours.enough, "{ours:?}");
        let too_long = theirs
            .error
            .as_ref()
            .is_some_and(|error| error.contains("Message too long"));
        assert!(
            theirs.enough || too_long && family == Family::V6,
            "{theirs:?}"
        );
    }
}

/// A published port is taken for Python's web server, in both families, and free for it again after the detach; where
/// it was first, the attach names it.
#[test]
fn python_http_server_and_a_published_port_exclude_each_other() {
    let topology = Topology::new(Shape::default());
    let netns = topology.host.path().display().to_string();
    let serve = |address: &str| {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={netns}"));
        command.args(["python3", "-m", "http.server", "8080", "--bind", address]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    };
    for (address, ask) in [("0.0.0.0", "127.0.0.1"), ("::", "::1")] {
        topology.attach("web", 0, &["8080:80"]);
        let refused = serve(address).output().expect("start python3");
        assert!(!refused.status.success());
        let says = String::from_utf8_lossy(&refused.stderr);
        assert!(says.contains("Address already in use"), "{says}");
        topology.portfwd(&["detach", "web"]).expect_ok();
        let mut server = serve(address).spawn().expect("start python3");
        let to = SocketAddr::new(ask.parse().expect("an address"), 8080);
        until_ok("the server answers", PATIENCE, || {
            topology.host.run(|| TcpStream::connect(to))
        });
        let collides = topology.try_attach("web", 0, &["8080:80"]);
        let holder = format!("(pid {})", server.id());
        server.kill().expect("end the server");
        server.wait().expect("end the server");
        expect_error(collides, 3, &holder);
    }
}
