use std::net::IpAddr;

use portfwd_common::net::Protocol::{self, Tcp, Udp};

use super::*;
use crate::error::Error;

pub(super) fn label(name: &str) -> Label {
    name.parse().unwrap()
}

pub(super) fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn one(port: u16) -> PortRange {
    PortRange::single(port).unwrap()
}

fn ports(first: u16, last: u16) -> PortRange {
    PortRange::new(first, last).unwrap()
}

pub(super) fn held(
    owner: &str,
    protocol: Protocol,
    host: &str,
    ports: PortRange,
    container: u16,
) -> Held {
    Held {
        owner: label(owner),
        protocol,
        host: address(host),
        ports,
        container: PortRange::from_count(container, ports.count()).unwrap(),
    }
}

pub(super) fn listener(protocol: Protocol, at: &str, port: u16, dual_stack: bool) -> Listener {
    Listener {
        process: Some("nginx".to_owned()),
        pid: Some(812),
        protocol,
        address: address(at),
        port,
        dual_stack,
    }
}

/// The host ports and addresses that `web` gets for `specs`, or the whole error.
fn resolve(held: &[Held], listeners: &[Listener], specs: &[&str]) -> Result<Vec<String>, String> {
    let reserved = PortSet::new();
    let occupied = Occupied {
        held,
        replaced: None,
        listeners,
        rules: &[],
        reserved: &reserved,
    };
    let specs: Vec<Spec> = specs.iter().map(|spec| spec.parse().unwrap()).collect();
    let show = |resolved: &Resolved| {
        let hosts: Vec<String> = resolved.hosts.iter().map(IpAddr::to_string).collect();
        format!("{} on {}", resolved.ports, hosts.join(" "))
    };
    match occupied.resolve(&label("web"), &specs) {
        Ok(resolved) => Ok(resolved.iter().map(show).collect()),
        Err(error) => Err(Error::from(error).report()),
    }
}

#[test]
fn a_taken_port_is_refused_in_dockers_words_and_names_the_container() {
    let held = [
        held("db", Tcp, "0.0.0.0", one(8080), 80),
        held("db", Tcp, "::", one(8080), 80),
    ];
    assert_eq!(
        resolve(&held, &[], &["8080:80"]).unwrap_err(),
        "error: bind for 0.0.0.0:8080 failed: port is already allocated\n\
         held by: container \"db\" (tcp)\n\
         hint: detach it, or publish another port\n"
    );
    assert_eq!(
        resolve(&held, &[], &["[::]:8080:80"]).unwrap_err(),
        "error: bind for [::]:8080 failed: port is already allocated\n\
         held by: container \"db\" (tcp)\n\
         hint: detach it, or publish another port\n"
    );
}

#[test]
fn a_listener_is_named_by_process_and_pid() {
    let listeners = [listener(Udp, "0.0.0.0", 53, false)];
    assert_eq!(
        resolve(&[], &listeners, &["127.0.0.1:53:53/udp"]).unwrap_err(),
        "error: bind for 127.0.0.1:53 failed: port is already allocated\n\
         held by: process nginx (pid 812)\n\
         hint: stop it, publish another port, or take this one with --force\n"
    );
    let nameless = Listener {
        process: None,
        pid: None,
        ..listener(Tcp, "::", 80, true)
    };
    let error = resolve(&[], &[nameless], &["80:80"]).unwrap_err();
    assert!(
        error.contains("held by: a process of the host that cannot be named\n"),
        "{error}"
    );
}

#[test]
fn every_further_spec_that_collides_has_a_line() {
    let crowd = [
        held("db", Tcp, "0.0.0.0", one(8080), 80),
        held("dns", Udp, "0.0.0.0", ports(50, 60), 1050),
    ];
    assert_eq!(
        resolve(&crowd, &[], &["8080:80", "53:53/udp", "9000:90"]).unwrap_err(),
        "error: bind for 0.0.0.0:8080 failed: port is already allocated\n\
         held by: container \"db\" (tcp)\n\
         also taken: 0.0.0.0:53 by container \"dns\" (udp)\n\
         hint: detach it, or publish another port\n"
    );
    let taken: Vec<Held> = (1..=30)
        .map(|port| held("db", Tcp, "0.0.0.0", one(port), 80))
        .collect();
    let specs: Vec<String> = (1..=30).map(|port| format!("{port}:80")).collect();
    let specs: Vec<&str> = specs.iter().map(String::as_str).collect();
    let error = resolve(&taken, &[], &specs).unwrap_err();
    assert_eq!(error.lines().count(), 12, "{error}");
    assert!(error.contains("also taken: and 21 more\n"), "{error}");
}

#[test]
fn host_addresses_overlap_as_those_of_sockets_do() {
    let any = &["0.0.0.0", "::"][..];
    for (taken, spec, free_on) in [
        ("0.0.0.0", "127.0.0.1:80:80", None),
        ("127.0.0.1", "0.0.0.0:80:80", None),
        ("127.0.0.1", "80:80", None),
        ("::", "[::1]:80:80", None),
        ("::1", "80:80", None),
        ("192.0.2.1", "192.0.2.1:80:80", None),
        ("192.0.2.1", "192.0.2.2:80:80", Some(&["192.0.2.2"][..])),
        ("0.0.0.0", "[::]:80:80", Some(&["::"])),
        ("::", "0.0.0.0:80:80", Some(&["0.0.0.0"])),
        ("::", "127.0.0.1:80:80", Some(&["127.0.0.1"])),
        ("0.0.0.0", "80:80/udp", Some(any)),
        ("0.0.0.0", "81:80", Some(any)),
    ] {
        let want = free_on.map(|hosts| hosts.join(" "));
        for (held, listeners) in [
            (vec![held("db", Tcp, taken, one(80), 9)], vec![]),
            (vec![], vec![listener(Tcp, taken, 80, false)]),
        ] {
            let got = resolve(&held, &listeners, &[spec]).ok();
            let got = got.map(|lines| lines[0].split_once(" on ").unwrap().1.to_owned());
            assert_eq!(got, want, "{spec} beside {taken}");
        }
    }
}

#[test]
fn a_dual_stack_listener_has_the_port_in_both_families() {
    let dual = [listener(Tcp, "::", 80, true)];
    for spec in ["80:80", "0.0.0.0:80:80", "127.0.0.1:80:80", "[::1]:80:80"] {
        assert!(resolve(&[], &dual, &[spec]).is_err(), "{spec}");
    }
    let error = resolve(&[], &dual, &["80:80"]).unwrap_err();
    assert!(
        error.starts_with("error: bind for 0.0.0.0:80 failed"),
        "{error}"
    );
    let v6_only = [listener(Tcp, "::", 80, false)];
    assert!(resolve(&[], &v6_only, &["127.0.0.1:80:80"]).is_ok());
    let mapped = [listener(Tcp, "::ffff:127.0.0.1", 80, false)];
    assert!(resolve(&[], &mapped, &["127.0.0.1:80:80"]).is_err());
    assert!(resolve(&[], &mapped, &["[::1]:80:80"]).is_ok());
}

#[test]
fn the_lowest_taken_port_of_a_range_is_named_and_a_container_before_a_process() {
    let held = [
        held("b", Tcp, "0.0.0.0", one(8005), 80),
        held("a", Tcp, "0.0.0.0", ports(7990, 8003), 80),
    ];
    let listeners = [listener(Tcp, "0.0.0.0", 8000, false)];
    let error = resolve(&held, &listeners, &["8000-8009:80-89"]).unwrap_err();
    assert!(
        error.starts_with("error: bind for 0.0.0.0:8000 failed"),
        "{error}"
    );
    assert!(
        error.contains("held by: container \"a\" (tcp)\n"),
        "{error}"
    );
    let error = resolve(&held[..1], &listeners, &["8001-8009:80-88"]).unwrap_err();
    assert!(
        error.starts_with("error: bind for 0.0.0.0:8005 failed"),
        "{error}"
    );
}

#[test]
fn what_the_container_has_published_already_stays() {
    let both =
        |ports, container| ["0.0.0.0", "::"].map(|host| held("web", Tcp, host, ports, container));
    let fixed = both(one(8080), 80);
    assert_eq!(resolve(&fixed, &[], &["8080:80"]).unwrap(), ["8080 on "]);
    assert_eq!(resolve(&fixed, &[], &["80"]).unwrap(), ["8080 on "]);
    assert_eq!(
        resolve(&fixed, &[], &["8000-8090:80"]).unwrap(),
        ["8080 on "]
    );
    assert_eq!(
        resolve(&fixed, &[], &["8080:80", "8081:80"]).unwrap(),
        ["8080 on ", "8081 on 0.0.0.0 ::"]
    );
    // The same host port to another container port, or of another container, is another forward.
    assert!(resolve(&fixed, &[], &["8080:81"]).is_err());
    let others = fixed.clone().map(|held| Held {
        owner: label("db"),
        ..held
    });
    assert!(resolve(&others, &[], &["8080:80"]).is_err());
    // The missing family is added.
    assert_eq!(
        resolve(&fixed[..1], &[], &["8080:80"]).unwrap(),
        ["8080 on ::"]
    );
    assert_eq!(
        resolve(&fixed, &[], &["0.0.0.0:8080:80"]).unwrap(),
        ["8080 on "]
    );
    assert!(resolve(&fixed, &[], &["127.0.0.1:8080:80"]).is_err());
    let range = both(ports(8000, 8009), 80);
    assert_eq!(
        resolve(&range, &[], &["8000-8009:80-89"]).unwrap(),
        ["8000-8009 on "]
    );
    assert!(resolve(&range, &[], &["8000:80"]).is_err());
}

#[test]
fn a_pool_gives_its_first_free_port_and_given_ports_go_first() {
    let taken = [held("db", Tcp, "::", ports(8000, 8002), 1)];
    assert_eq!(
        resolve(&taken, &[], &["8000-8010:80", "8000-8010:81", "8003:82"]).unwrap(),
        [
            "8004 on 0.0.0.0 ::",
            "8005 on 0.0.0.0 ::",
            "8003 on 0.0.0.0 ::"
        ]
    );
    assert_eq!(
        resolve(&taken, &[], &["0.0.0.0:8000-8010:80"]).unwrap(),
        ["8000 on 0.0.0.0"]
    );
}

#[test]
fn a_pool_without_a_free_port_names_who_has_them() {
    let taken = [
        held("db", Tcp, "0.0.0.0", ports(8001, 8002), 1),
        held("dns", Tcp, "0.0.0.0", one(8000), 1),
        held("udp", Udp, "0.0.0.0", one(8000), 1),
    ];
    let listeners = [
        listener(Tcp, "::", 8002, true),
        listener(Tcp, "::", 9000, true),
    ];
    assert_eq!(
        resolve(&taken, &listeners, &["8000-8002:80"]).unwrap_err(),
        "error: bind for 0.0.0.0:8000-8002 failed: all ports are allocated\n\
         held by: container \"dns\" (tcp)\n\
         held by: container \"db\" (tcp)\n\
         held by: process nginx (pid 812)\n\
         hint: give a larger range of host ports, or detach what is not needed\n"
    );
    assert_eq!(Error::from(resolve_error(&taken)).exit_code(), 3);
}

fn resolve_error(held: &[Held]) -> CollisionError {
    let occupied = Occupied {
        held,
        replaced: None,
        listeners: &[],
        rules: &[],
        reserved: &PortSet::new(),
    };
    let spec = "8000-8002:80".parse().unwrap();
    occupied.resolve(&label("web"), &[spec]).unwrap_err()
}

#[test]
fn a_chosen_port_is_the_same_again_and_another_when_it_is_taken() {
    let first = resolve(&[], &[], &["80"]).unwrap();
    assert_eq!(first, resolve(&[], &[], &["80"]).unwrap());
    let port: u16 = first[0].split_once(' ').unwrap().0.parse().unwrap();
    assert!((61_000..=65_535).contains(&port), "{port}");
    let taken = [held("db", Tcp, "::1", one(port), 1)];
    let second = resolve(&taken, &[], &["80"]).unwrap();
    assert_ne!(first, second);
    // Not even a reserved one.
    let mut reserved = PortSet::new();
    reserved.insert(port);
    let occupied = Occupied {
        held: &[],
        replaced: None,
        listeners: &[],
        rules: &[],
        reserved: &reserved,
    };
    let spec = "80".parse().unwrap();
    let resolved = occupied.resolve(&label("web"), &[spec]).unwrap();
    assert_ne!(resolved[0].ports, one(port));
    // But it is published when asked for.
    let spec = format!("{port}:80").parse().unwrap();
    assert!(occupied.resolve(&label("web"), &[spec]).is_ok());
}

#[test]
fn a_port_that_is_given_is_not_taken_for_the_chosen_one_of_before() {
    let both = |port| ["0.0.0.0", "::"].map(|host| held("web", Tcp, host, one(port), 80));
    let own = [both(8080), both(61_234)].concat();
    let again = resolve(&own, &[], &["8080:80", "80"]).unwrap();
    assert!(again[1].starts_with("61234"), "{again:?}");
    // Of the one alone nobody can tell which it was.
    let one_of_them = resolve(&own, &[], &["80"]).unwrap();
    assert!(one_of_them[0].starts_with("8080"), "{one_of_them:?}");
}

#[test]
fn what_is_replaced_is_in_nobodys_way() {
    let existing = [
        held("web", Tcp, "0.0.0.0", one(8080), 80),
        held("db", Tcp, "0.0.0.0", one(9090), 80),
    ];
    let (web, reserved) = (label("web"), PortSet::new());
    let occupied = Occupied {
        held: &existing,
        replaced: Some(&web),
        listeners: &[],
        rules: &[],
        reserved: &reserved,
    };
    let resolve = |spec: &str| occupied.resolve(&web, &[spec.parse().unwrap()]);
    assert!(resolve("8080:81").is_ok());
    assert!(resolve("8000-8100:80-180").is_ok());
    assert!(resolve("9090:81").is_err());
}

#[test]
fn chosen_ports_do_not_change_from_one_version_to_the_next() {
    let free = PortSet::new();
    let chosen = |name: &str, protocol, container| {
        let chosen = choose(&label(name), protocol, container, &free);
        chosen.map(|ports| ports.to_string())
    };
    assert_eq!(chosen("web", Tcp, one(80)), Some("62631".to_owned()));
    assert_eq!(chosen("web", Udp, one(80)), Some("63686".to_owned()));
    assert_eq!(
        chosen("db", Tcp, ports(80, 89)),
        Some("65521-65530".to_owned())
    );
}

#[test]
fn two_hundred_containers_get_two_hundred_ports() {
    let mut taken = PortSet::new();
    for number in 0..200 {
        let chosen = choose(&label(&format!("c{number}")), Tcp, one(80), &taken).unwrap();
        assert!(!taken.overlaps(chosen));
        taken.insert_range(chosen);
    }
}

#[test]
fn the_lower_ports_serve_when_the_upper_ones_are_gone_or_too_few() {
    let mut taken = PortSet::new();
    taken.insert_range(ports(61_000, 65_535));
    let chosen = choose(&label("web"), Tcp, one(80), &taken).unwrap();
    assert!(ports(49_153, 60_999).contains(chosen.first()), "{chosen}");
    let chosen = choose(&label("web"), Tcp, ports(1, 11_847), &PortSet::new()).unwrap();
    assert_eq!(chosen, ports(49_153, 60_999));
    assert_eq!(
        choose(&label("web"), Tcp, ports(1, 11_848), &PortSet::new()),
        None
    );
    taken.insert_range(ports(49_153, 60_999));
    assert_eq!(choose(&label("web"), Tcp, one(80), &taken), None);
    let held = [held("db", Tcp, "0.0.0.0", ports(49_153, 65_535), 1)];
    assert_eq!(
        resolve(&held, &[], &["80"]).unwrap_err(),
        "error: no free port in 61000-65535 and 49153-60999 for SPEC 80/tcp\n\
         hint: give a host port, or detach what is not needed\n"
    );
}

#[test]
fn the_kernels_list_of_reserved_ports_is_read() {
    let set = PortSet::from_kernel_list("8080,9000-9010,65535\n").unwrap();
    for port in [8080, 9000, 9005, 9010, 65_535] {
        assert!(set.contains(port), "{port}");
    }
    for port in [0, 8079, 8081, 8999, 9011, 65_534] {
        assert!(!set.contains(port), "{port}");
    }
    assert_eq!(PortSet::from_kernel_list("\n").unwrap(), PortSet::new());
    for text in ["x", "80-", "90-80", "65536", "1;2", "-"] {
        let error = PortSet::from_kernel_list(text).unwrap_err().to_string();
        assert!(error.contains(&format!("\"{text}\"")), "{error}");
    }
}
