use std::net::IpAddr;

use portfwd_common::net::Protocol::{Sctp, Tcp, Udp};

use super::*;
use SpecErrorKind as Kind;

fn spec(text: &str) -> Spec {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

pub(super) fn ports(first: u16, last: u16) -> PortRange {
    PortRange::new(first, last).unwrap()
}

pub(super) fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_spec_means_what_docker_means_by_it() {
    use HostPorts::{Chosen, Fixed, Pool};
    let one = |port| ports(port, port);
    for (text, host, host_ports, container, protocol) in [
        ("80", None, Chosen, one(80), Tcp),
        (":80", None, Chosen, one(80), Tcp),
        ("80/udp", None, Chosen, one(80), Udp),
        ("8080:80", None, Fixed(one(8080)), one(80), Tcp),
        ("8080:80/tcp", None, Fixed(one(8080)), one(80), Tcp),
        ("8080:80/UDP", None, Fixed(one(8080)), one(80), Udp),
        ("8080:80/sctp", None, Fixed(one(8080)), one(80), Sctp),
        ("1:65535", None, Fixed(one(1)), one(65_535), Tcp),
        (
            "127.0.0.1:53:53/udp",
            Some("127.0.0.1"),
            Fixed(one(53)),
            one(53),
            Udp,
        ),
        ("127.0.0.1::80", Some("127.0.0.1"), Chosen, one(80), Tcp),
        (
            "0.0.0.0:8080:80",
            Some("0.0.0.0"),
            Fixed(one(8080)),
            one(80),
            Tcp,
        ),
        ("[::]:8080:80", Some("::"), Fixed(one(8080)), one(80), Tcp),
        ("[::1]:8080:80", Some("::1"), Fixed(one(8080)), one(80), Tcp),
        (
            "[2001:db8::1]::80/udp",
            Some("2001:db8::1"),
            Chosen,
            one(80),
            Udp,
        ),
        (
            "[::ffff:192.0.2.1]:8080:80",
            Some("192.0.2.1"),
            Fixed(one(8080)),
            one(80),
            Tcp,
        ),
        (
            "[::ffff:0.0.0.0]:8080:80",
            Some("0.0.0.0"),
            Fixed(one(8080)),
            one(80),
            Tcp,
        ),
        (
            "8000-8099:9000-9099",
            None,
            Fixed(ports(8000, 8099)),
            ports(9000, 9099),
            Tcp,
        ),
        ("8000-8000:80", None, Fixed(one(8000)), one(80), Tcp),
        ("8000-8010:80", None, Pool(ports(8000, 8010)), one(80), Tcp),
        (
            "192.0.2.1:8000-8010:80/udp",
            Some("192.0.2.1"),
            Pool(ports(8000, 8010)),
            one(80),
            Udp,
        ),
        ("9000-9009", None, Chosen, ports(9000, 9009), Tcp),
        (":9000-9009/udp", None, Chosen, ports(9000, 9009), Udp),
    ] {
        let want = Spec {
            host: host.map(address),
            ports: host_ports,
            container,
            protocol,
        };
        assert_eq!(spec(text), want, "{text}");
    }
}

/// Every way to get it wrong, with the words that name it.
const MALFORMED: &[(&str, &str)] = &[
    ("", "is empty"),
    (" ", "holds the character ' '"),
    ("8080: 80", "holds the character ' '"),
    ("80\n", "holds the character '\\n'"),
    ("8080:80\0", "holds the character '\\0'"),
    ("８０", "holds the character '８'"),
    ("8080:80/tcp\u{301}", "holds the character '\\u{301}'"),
    ("0", "container port 0"),
    ("8080:0", "container port 0"),
    ("0:80", "host port 0"),
    ("8080:00", "container port 0"),
    ("0-10:80-90", "host port 0"),
    ("65536", "container port \"65536\" is above 65535"),
    ("65536:80", "host port \"65536\" is above 65535"),
    ("8080:99999999999999999999", "is above 65535"),
    ("http", "container port \"http\" is not a number"),
    ("8080:http", "container port \"http\" is not a number"),
    ("abc:80", "host port \"abc\" is not a number"),
    ("0x50:80", "host port \"0x50\" is not a number"),
    ("80.5:80", "host port \"80.5\" is not a number"),
    ("8080,8081:80", "host port \"8080,8081\" is not a number"),
    ("-1:80", "host port \"-1\" is negative"),
    ("8080:-80", "container port \"-80\" is negative"),
    ("-", "container port \"-\" is not a number"),
    ("+80:80", "host port \"+80\" has a sign"),
    ("080:80", "host port \"080\" starts with a zero"),
    (
        "90-80:90-80",
        "the range 90-80 of the host port runs backwards",
    ),
    (
        "8080:90-80",
        "the range 90-80 of the container port runs backwards",
    ),
    ("80-:80", "the range \"80-\" of the host port has no end"),
    (
        "8080:80-",
        "the range \"80-\" of the container port has no end",
    ),
    (
        "80-85-90:80",
        "the range \"80-85-90\" of the host port has more than two ends",
    ),
    ("80--90:80", "has more than two ends"),
    (
        "8000-8010:80-85",
        "11 host ports cannot lead to 6 container ports",
    ),
    (
        "8000:80-85",
        "1 host ports cannot lead to 6 container ports",
    ),
    ("8080:80/", "names no protocol"),
    ("/tcp", "the container port is missing"),
    ("/", "names no protocol"),
    ("8080:80/foo", "unknown protocol \"foo\""),
    ("8080:80/icmp", "unknown protocol \"icmp\""),
    ("8080:80/tcp/udp", "more than one protocol"),
    ("8080:80//tcp", "more than one protocol"),
    (":", "the container port is missing"),
    ("8080:", "the container port is missing"),
    ("127.0.0.1:8080:", "the container port is missing"),
    ("[::1]", "the container port is missing"),
    ("[::1]:", "the container port is missing"),
    ("[::1]:80", "the host port is missing"),
    (
        "127.0.0.1:80",
        "\"127.0.0.1\" is an address where the host port belongs",
    ),
    ("127.0.0.1", "container port \"127.0.0.1\" is not a number"),
    (":8080:80", "the host address is missing"),
    ("::80", "the host address is missing"),
    ("[]:8080:80", "the host address is missing"),
    (
        "[::1:8080:80",
        "the bracket of the host address is not closed",
    ),
    ("[::1", "the bracket of the host address is not closed"),
    ("[::1]8080:80", "followed by \"8080:80\""),
    ("[[::1]]:8080:80", "\"[::1\" is not an IPv6 address"),
    (
        "[127.0.0.1]:8080:80",
        "\"127.0.0.1\" is not an IPv6 address",
    ),
    (
        "[localhost]:8080:80",
        "\"localhost\" is not an IPv6 address",
    ),
    ("[2001:db8::1]:1:2:3", "has 4 parts"),
    ("::1:8080:80", "belongs into brackets"),
    ("2001:db8::1:8080:80", "belongs into brackets"),
    ("2001:db8::1", "belongs into brackets"),
    ("1:2:3:4", "has 4 parts"),
    (
        "localhost:8080:80",
        "\"localhost\" is not an IP address, and names are not looked up",
    ),
    ("*:8080:80", "\"*\" is not an IP address"),
    ("tcp://8080:80", "more than one protocol"),
    (
        "10.0.0.256:8080:80",
        "\"10.0.0.256\" is not an IPv4 address",
    ),
    ("127.1:8080:80", "\"127.1\" is not an IPv4 address"),
    ("010.0.0.1:8080:80", "\"010.0.0.1\" is not an IPv4 address"),
    ("10.0.0.1/8:8080:80", "unknown protocol \"8:8080:80\""),
    ("[fe80::1%eth0]:8080:80", "\"fe80::1%eth0\" has a scope"),
    ("127.0.0.1%lo:8080:80", "\"127.0.0.1%lo\" has a scope"),
    ("224.0.0.1:8080:80", "224.0.0.1 is multicast"),
    ("[ff02::1]:8080:80", "ff02::1 is multicast"),
    ("[::ffff:224.0.0.1]:8080:80", "224.0.0.1 is multicast"),
    (
        "255.255.255.255:8080:80",
        "255.255.255.255 is the broadcast address",
    ),
    ("169.254.1.1:8080:80", "169.254.1.1 is link-local"),
    ("[fe80::1]:8080:80", "fe80::1 is link-local"),
    ("0.1.2.3:8080:80", "0.1.2.3 is reserved"),
    ("240.0.0.1:8080:80", "240.0.0.1 is reserved"),
];

#[test]
fn a_malformed_spec_is_refused_in_words_of_its_own() {
    for (text, says) in MALFORMED {
        let error = text.parse::<Spec>().unwrap_err();
        let message = error.to_string();
        assert!(message.contains(says), "{text:?}: {message}");
        assert!(
            message.starts_with(&format!("SPEC \"{}", text.escape_debug())),
            "{message}"
        );
        for line in [message, error.hint()] {
            assert!(
                !line.is_empty() && !line.contains(char::is_control),
                "{line}"
            );
        }
    }
}

#[test]
fn more_than_twenty_kinds_of_error_are_told_apart() {
    let kinds: std::collections::HashSet<_> = MALFORMED
        .iter()
        .map(|(text, _)| std::mem::discriminant(text.parse::<Spec>().unwrap_err().kind()))
        .collect();
    assert!(kinds.len() > 20, "{}", kinds.len());
}

#[test]
fn an_overlong_spec_is_refused_and_not_repeated_in_full() {
    let error = "8".repeat(100_000).parse::<Spec>().unwrap_err();
    assert_eq!(error.kind(), &Kind::TooLong(100_000));
    assert!(error.to_string().len() < 200, "{error}");
}

#[test]
fn the_longest_spec_is_taken() {
    let text = "[2001:db8:1111:2222:3333:4444:5555:6666]:10000-19999:20000-29999/sctp";
    assert_eq!(spec(text).to_string(), text);
}

#[test]
fn a_host_address_stands_alone_with_or_without_brackets() {
    for (text, want) in [
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("0.0.0.0", "0.0.0.0"),
        ("::", "::"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
    ] {
        assert_eq!(host_address(text).unwrap(), address(want), "{text}");
    }
    for text in [
        "",
        "localhost",
        "[::1",
        "[::1]x",
        "10.0.0.1:80",
        "fe80::1",
        "ff02::1",
        "1.2.3",
    ] {
        let message = host_address(text).unwrap_err().to_string();
        assert!(message.starts_with("PORTFWD_HOST_IP \""), "{message}");
    }
}

#[test]
fn a_port_query_is_tcp_unless_it_says_otherwise() {
    for (text, port, protocol) in [("80", 80, Tcp), ("80/tcp", 80, Tcp), ("53/udp", 53, Udp)] {
        assert_eq!(
            text.parse::<PortQuery>().unwrap(),
            PortQuery { port, protocol }
        );
    }
    for text in [
        "", "0", "x", "-1", "80-90", "80/", "80/foo", "8080:80", "65536", " 80",
    ] {
        let error = text.parse::<PortQuery>().unwrap_err();
        assert!(error.to_string().starts_with("PORT \""), "{error}");
    }
}

#[test]
fn without_a_host_address_both_wildcards_are_held() {
    let hosts = |text| spec(text).hosts().collect::<Vec<_>>();
    assert_eq!(hosts("8080:80"), [address("0.0.0.0"), address("::")]);
    assert_eq!(hosts("0.0.0.0:8080:80"), [address("0.0.0.0")]);
    assert_eq!(hosts("[::1]:8080:80"), [address("::1")]);
    let default = Some(address("127.0.0.1"));
    assert_eq!(spec("8080:80").or_host(default), spec("127.0.0.1:8080:80"));
    assert_eq!(
        spec("[::1]:8080:80").or_host(default),
        spec("[::1]:8080:80")
    );
    assert_eq!(spec("8080:80").or_host(None), spec("8080:80"));
}

#[test]
fn a_spec_selects_what_it_published() {
    let any = address("0.0.0.0");
    let one = |port| ports(port, port);
    for (text, host, host_ports, container, selects) in [
        ("8080:80", any, one(8080), one(80), true),
        ("8080:80", address("::"), one(8080), one(80), true),
        ("8080:80", address("127.0.0.1"), one(8080), one(80), false),
        ("8080:80", any, one(8081), one(80), false),
        ("8080:80", any, one(8080), one(81), false),
        ("8080:80/udp", any, one(8080), one(80), false),
        ("80", any, one(8080), one(80), true),
        ("80", any, one(61_234), one(80), true),
        ("127.0.0.1::80", any, one(8080), one(80), false),
        ("8000-8010:80", any, one(8004), one(80), true),
        ("8000-8010:80", any, one(8011), one(80), false),
        (
            "8000-8010:80-90",
            any,
            ports(8000, 8010),
            ports(80, 90),
            true,
        ),
        ("8001:81", any, ports(8000, 8010), ports(80, 90), false),
    ] {
        let got = spec(text).selects(Tcp, host, host_ports, container);
        assert_eq!(got, selects, "{text} {host} {host_ports} {container}");
    }
}

#[test]
fn specs_of_one_command_share_no_host_port() {
    let check = |texts: &[&str]| {
        let specs: Vec<Spec> = texts.iter().map(|text| spec(text)).collect();
        check_list(&specs).map_err(|(_, error)| error.to_string())
    };
    for list in [
        &["8080:80", "8081:80"][..],
        &["8080:80", "8080:80/udp"],
        &["127.0.0.1:8080:80", "127.0.0.2:8080:80"],
        &["0.0.0.0:8080:80", "[::]:8080:80"],
        &["0.0.0.0:8080:80", "[::1]:8080:80"],
        &["80", "81", "80/udp", "127.0.0.1::80"],
        &["8000-8010:80", "8000-8010:81", "8005:82"],
        &["8000-8009:80-89", "8010-8019:80-89"],
        &[],
    ] {
        assert_eq!(check(list), Ok(()), "{list:?}");
    }
    for (list, says) in [
        (&["80", "80/tcp"][..], "SPEC \"80/tcp\" is given twice"),
        (
            &["8080:80", "80", "8080:80"],
            "SPEC \"8080:80/tcp\" is given twice",
        ),
        (
            &["8080:80", "8080:81"],
            "SPEC \"8080:81/tcp\" shares host port 8080 with SPEC \"8080:80/tcp\"",
        ),
        (
            &["8080:80", "127.0.0.1:8080:80"],
            "SPEC \"127.0.0.1:8080:80/tcp\" shares host port 8080 with SPEC \"8080:80/tcp\"",
        ),
        (&["0.0.0.0:80:80", "192.0.2.1:80:80"], "shares host port 80"),
        (
            &["[::]:80:80", "[2001:db8::1]:80:80"],
            "shares host port 80",
        ),
        (&["8000-8009:80-89", "8005:99"], "shares host port 8005"),
        (
            &["8000-8009:80-89", "8009-8010:1-2"],
            "shares host port 8009",
        ),
    ] {
        let error = check(list).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn a_range_is_never_empty_and_never_holds_port_0() {
    assert_eq!(PortRange::new(0, 5), None);
    assert_eq!(PortRange::new(6, 5), None);
    assert_eq!(PortRange::single(0), None);
    assert_eq!(PortRange::from_count(80, 0), None);
    assert_eq!(PortRange::from_count(65_535, 2), None);
    assert_eq!(PortRange::from_count(65_535, 1), PortRange::single(65_535));
    let all = ports(1, 65_535);
    assert_eq!((all.count(), all.ports().count()), (65_535, 65_535));
    assert_eq!(ports(1, 5).intersection(ports(5, 9)), PortRange::single(5));
    assert_eq!(ports(1, 4).intersection(ports(5, 9)), None);
}
