//! What the loader reads of namespaces, links and addresses, against real ones.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::Path;

use crate::support::{Namespaces, ip};
use portfwd_user::error::Missing;
use portfwd_user::observe::addresses;
use portfwd_user::observe::container::{self, ContainerError};
use portfwd_user::observe::links::LinkKind;
use portfwd_user::observe::netns::{self, Netns, NetnsError};

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_namespace_is_the_same_however_it_is_named() {
    let mut all = Namespaces::new();
    let host = all.add();
    let child = std::process::Command::new("nsenter")
        .args([&format!("--net=/run/netns/{host}"), "sleep", "60"])
        .spawn();
    let mut child = child.unwrap();
    let by_path = all.open(&host);
    let deadline = crate::support::deadline();
    loop {
        let by_pid = Netns::of_process(child.id()).unwrap();
        if by_pid.is_same(&by_path) {
            assert_eq!(by_pid.cookie().unwrap(), by_path.cookie().unwrap());
            break;
        }
        assert!(std::time::Instant::now() < deadline);
        std::thread::yield_now();
    }
    let own = Netns::current().unwrap();
    assert!(!own.is_same(&by_path));
    assert_ne!(own.cookie().unwrap(), by_path.cookie().unwrap());
    assert_eq!(own.cookie().unwrap(), netns::current_cookie().unwrap());
    child.kill().unwrap();
    // Killed and not waited for: a zombie, which has no namespace any more.
    let gone = loop {
        match Netns::of_process(child.id()) {
            Err(error) => break error,
            Ok(_) => assert!(std::time::Instant::now() < deadline),
        }
    };
    assert!(
        matches!(gone, NetnsError::Missing(Missing::Process(pid)) if pid == child.id()),
        "{gone}"
    );
    child.wait().unwrap();
}

#[test]
fn what_is_no_namespace_is_refused_by_name() {
    let missing = Netns::open(Path::new("/run/netns/portfwd-none")).unwrap_err();
    assert!(
        matches!(missing, NetnsError::Missing(Missing::Namespace(_))),
        "{missing}"
    );
    for path in [
        "/etc/passwd",
        "/",
        "/dev/null",
        "/proc/self/ns/mnt",
        "/proc/self/ns/user",
    ] {
        let error = Netns::open(Path::new(path)).unwrap_err();
        assert!(
            matches!(error, NetnsError::Missing(Missing::NotNamespace(_))),
            "{error}"
        );
        assert!(error.to_string().contains(path), "{error}");
    }
    let error = Netns::of_process(u32::MAX).unwrap_err();
    assert_eq!(error.to_string(), "no such process: 4294967295");
}

#[test]
fn the_calling_thread_stays_where_it_is() {
    let mut all = Namespaces::new();
    let host = all.add();
    let netns = all.open(&host);
    let before = netns::current_cookie().unwrap();
    let inside = netns.run_in(|| netns::current_cookie().unwrap()).unwrap();
    assert_eq!(inside, netns.cookie().unwrap());
    assert_eq!(netns::current_cookie().unwrap(), before);
    let panic = std::panic::catch_unwind(|| netns.run_in(|| panic!("in there")));
    assert_eq!(panic.unwrap_err().downcast_ref::<&str>(), Some(&"in there"));
}

#[test]
fn a_bridged_container_is_reached_by_its_bridge() {
    let mut all = Namespaces::new();
    let (host, web) = (all.add(), all.add());
    all.bridge(&host, "br0", &["10.88.0.1/24", "fd88::1/64"]);
    all.veth(
        &host,
        "v1",
        &web,
        "eth0",
        &["10.88.0.2/24", "10.88.0.3/24", "fd88::2/64"],
    );
    ip(&format!("-n {host} link set v1 master br0"));
    let link = container::find(&all.open(&host), &all.open(&web)).unwrap();
    assert_eq!(link.v4, Some("10.88.0.2".parse().unwrap()));
    assert_eq!(link.v6, Some("fd88::2".parse().unwrap()));
    let expected: HashSet<IpAddr> = ["10.88.0.2", "10.88.0.3", "fd88::2"].map(addr).into();
    assert_eq!(
        link.addresses.iter().copied().collect::<HashSet<_>>(),
        expected
    );
    let interface = link.interface.unwrap();
    assert_eq!(
        (interface.name.as_str(), &interface.kind),
        ("eth0", &LinkKind::Veth)
    );
    let end = link.host.unwrap();
    assert_eq!(
        (end.link.name.as_str(), end.link.index),
        ("v1", all.index(&host, "v1"))
    );
    assert_eq!(end.l3_ifindex, all.index(&host, "br0"));
    assert!(end.link.mac.is_some() && end.link.mtu == 1500 && end.link.up);
}

#[test]
fn a_routed_container_is_reached_by_its_own_link() {
    let mut all = Namespaces::new();
    let (host, web) = (all.add(), all.add());
    all.veth(&host, "v1", &web, "eth0", &["10.88.1.2/24"]);
    ip(&format!("-n {host} address add 10.88.1.1/24 dev v1"));
    let link = container::find(&all.open(&host), &all.open(&web)).unwrap();
    let end = link.host.unwrap();
    assert_eq!(end.link.index, all.index(&host, "v1"));
    assert_eq!(end.l3_ifindex, end.link.index);
    assert_eq!(link.v6, None);
}

#[test]
fn of_several_interfaces_the_one_with_the_default_route_is_chosen() {
    let mut all = Namespaces::new();
    let (host, web) = (all.add(), all.add());
    all.veth(&host, "v1", &web, "eth0", &["10.1.0.2/24"]);
    all.veth(&host, "v2", &web, "eth1", &["10.2.0.2/24"]);
    let name = |all: &Namespaces| {
        let link = container::find(&all.open(&host), &all.open(&web)).unwrap();
        assert_eq!(link.addresses.len(), 1);
        (link.interface.unwrap().name, link.host.unwrap().link.name)
    };
    assert_eq!(name(&all), ("eth0".to_owned(), "v1".to_owned()));
    ip(&format!(
        "-n {web} route add default via 10.2.0.1 metric 50"
    ));
    assert_eq!(name(&all), ("eth1".to_owned(), "v2".to_owned()));
    ip(&format!(
        "-n {web} route add default via 10.1.0.1 metric 20"
    ));
    assert_eq!(name(&all), ("eth0".to_owned(), "v1".to_owned()));
    ip(&format!("-n {web} link set eth0 down"));
    assert_eq!(name(&all), ("eth1".to_owned(), "v2".to_owned()));
}

#[test]
fn a_peer_in_another_namespace_is_not_taken_for_one_on_the_host() {
    let mut all = Namespaces::new();
    let (host, web, router) = (all.add(), all.add(), all.add());
    let other = all.add();
    all.veth(&host, "v1", &other, "eth0", &["10.88.2.2/24"]);
    all.veth(&router, "v1", &web, "eth0", &["10.88.2.2/24"]);
    // By index alone, the host's v1 could be the peer of either.
    assert_eq!(all.index(&host, "v1"), all.index(&router, "v1"));
    let error = container::find(&all.open(&host), &all.open(&web)).unwrap_err();
    assert_eq!(error.to_string(), "no route to 10.88.2.2");
    ip(&format!("-n {host} address add 10.88.2.1/24 dev v1"));
    let link = container::find(&all.open(&host), &all.open(&web)).unwrap();
    assert_eq!(link.host, None);
    assert_eq!(link.v4, Some("10.88.2.2".parse().unwrap()));
}

#[test]
fn a_macvlan_container_is_told_to_use_its_own_address() {
    let mut all = Namespaces::new();
    let (host, lan, web) = (all.add(), all.add(), all.add());
    all.veth(&host, "up0", &lan, "eth0", &["192.0.2.1/24"]);
    ip(&format!(
        "-n {host} link add mv0 link up0 type macvlan mode bridge"
    ));
    ip(&format!("-n {host} link set mv0 netns {web} name eth0"));
    ip(&format!("-n {web} address add 192.0.2.77/24 dev eth0"));
    ip(&format!("-n {web} link set eth0 up"));
    let error = container::find(&all.open(&host), &all.open(&web)).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("eth0") && text.contains("macvlan") && text.contains("192.0.2.77"),
        "{text}"
    );
    assert!(error.hint().unwrap().contains("192.0.2.77"));
}

#[test]
fn a_container_without_a_network_of_its_own_is_refused() {
    let mut all = Namespaces::new();
    let (host, web) = (all.add(), all.add());
    let error = container::find(&all.open(&host), &all.open(&host)).unwrap_err();
    assert!(
        matches!(error, ContainerError::HostNetwork { .. }),
        "{error}"
    );
    let error = container::find(&all.open(&host), &all.open(&web)).unwrap_err();
    assert!(
        error.to_string().ends_with(&format!("/run/netns/{web}")),
        "{error}"
    );
    all.veth(&host, "v1", &web, "eth0", &["10.88.3.2/24"]);
    ip(&format!("-n {web} link set eth0 down"));
    let error = container::find(&all.open(&host), &all.open(&web)).unwrap_err();
    assert!(error.to_string().ends_with("eth0 is down"), "{error}");
}

#[test]
fn an_address_alone_leads_to_the_container_that_has_it() {
    let mut all = Namespaces::new();
    let (host, web, db) = (all.add(), all.add(), all.add());
    all.bridge(&host, "br0", &["10.88.0.1/24", "fd88::1/64"]);
    all.veth(&host, "v1", &web, "eth0", &["10.88.0.2/24", "fd88::2/64"]);
    all.veth(&host, "v2", &db, "eth0", &["10.88.0.3/24", "fd88::3/64"]);
    for port in ["v1", "v2"] {
        ip(&format!("-n {host} link set {port} master br0"));
    }
    let host_netns = all.open(&host);
    let find = |ips: &[&str]| {
        container::find_by_address(
            &host_netns,
            &ips.iter().map(|ip| addr(ip)).collect::<Vec<_>>(),
        )
    };
    let link = find(&["10.88.0.3", "fd88::3"]).unwrap();
    let end = link.host.unwrap();
    assert_eq!(
        (end.link.name.as_str(), end.l3_ifindex),
        ("v2", all.index(&host, "br0"))
    );
    assert_eq!(link.v6, Some("fd88::3".parse().unwrap()));
    assert_eq!(link.interface.unwrap().name, "eth0");
    let link = find(&["10.88.0.2"]).unwrap();
    assert_eq!((link.v6, link.addresses.len()), (None, 2));
    assert_eq!(find(&["10.88.0.99"]).unwrap().host, None);
    let text = find(&["10.88.0.2", "fd88::3"]).unwrap_err().to_string();
    assert_eq!(
        text,
        "10.88.0.2 and fd88::3 lead to different links: v1, v2"
    );
    for (ip, expected) in [
        ("10.88.0.1", "10.88.0.1 is an address of the host itself"),
        (
            "10.88.0.255",
            "10.88.0.255 is not the address of a container",
        ),
        ("127.0.0.1", "127.0.0.1 is not the address of a container"),
        ("203.0.113.9", "no route to 203.0.113.9"),
        ("2001:db8::9", "no route to 2001:db8::9"),
    ] {
        assert_eq!(find(&[ip]).unwrap_err().to_string(), expected);
    }
    ip(&format!("-n {host} route add default via 10.88.0.2"));
    let link = find(&["203.0.113.9"]).unwrap();
    assert_eq!(
        (link.host, link.v4),
        (None, Some("203.0.113.9".parse().unwrap()))
    );
    ip(&format!("-n {host} route add unreachable 203.0.113.9"));
    assert_eq!(
        find(&["203.0.113.9"]).unwrap_err().to_string(),
        "no route to 203.0.113.9"
    );
}

#[test]
fn the_hosts_own_addresses_come_with_their_devices() {
    let mut all = Namespaces::new();
    let (host, lan, web) = (all.add(), all.add(), all.add());
    ip(&format!("-n {host} link set lo up"));
    all.bridge(&host, "br0", &["10.88.0.1/24", "fd88::1/64"]);
    all.veth(&host, "eth0", &lan, "eth0", &["192.0.2.9/24"]);
    ip(&format!(
        "-n {host} address add 192.0.2.1/24 broadcast 192.0.2.255 dev eth0"
    ));
    ip(&format!(
        "-n {host} address add 198.51.100.1 peer 198.51.100.2/32 dev eth0"
    ));
    all.veth(&host, "v1", &web, "eth0", &["10.88.0.2/24"]);
    ip(&format!("-n {host} link set v1 master br0"));
    ip(&format!("-n {host} route add local 203.0.113.0/28 dev lo"));
    ip(&format!("-n {host} route add local 203.0.113.99 dev lo"));
    let found = addresses::of_host(&all.open(&host)).unwrap();
    let devices: Vec<&str> = found
        .devices
        .iter()
        .map(|link| link.name.as_str())
        .collect();
    // v1 has nothing but fe80::, lo is never among them.
    assert_eq!(
        devices.iter().copied().collect::<HashSet<_>>(),
        HashSet::from(["br0", "eth0"])
    );
    let kinds: HashSet<String> = found
        .devices
        .iter()
        .map(|link| link.kind.to_string())
        .collect();
    assert_eq!(
        kinds,
        HashSet::from(["bridge".to_owned(), "veth".to_owned()])
    );
    for ip in [
        "127.0.0.1",
        "127.9.9.9",
        "::1",
        "10.88.0.1",
        "fd88::1",
        "192.0.2.1",
        "198.51.100.1",
        "203.0.113.7",
        "203.0.113.99",
    ] {
        assert!(found.owns(addr(ip)), "{ip}");
    }
    for ip in [
        "192.0.2.255",
        "192.0.2.0",
        "198.51.100.2",
        "10.88.0.2",
        "203.0.113.98",
        "255.255.255.255",
    ] {
        assert!(!found.owns(addr(ip)), "{ip}");
    }
    let of = |ip: &str| {
        found
            .addresses
            .iter()
            .find(|own| own.ip == addr(ip))
            .unwrap()
    };
    assert!(of("127.0.0.1").loopback && of("::1").loopback && !of("192.0.2.1").loopback);
    assert_eq!(of("192.0.2.1").ifindex, all.index(&host, "eth0"));
    assert!(found.addresses.iter().any(|own| own.link_local));
}
