//! `attach --connect` makes the container's link, and it goes with the container.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::net::if_::if_nametoindex;
use portfwd_common::{maps, net::Ip};
use portfwd_tests::clients::{self, Closed, Protocol};
use portfwd_tests::deadline::{PATIENCE, until};
use portfwd_tests::kernel;
use portfwd_tests::namespace::Namespace;
use portfwd_tests::needs::{Need, need};
use portfwd_tests::portfwd::{Outcome, expect_error};
use portfwd_tests::servers::Server;
use portfwd_tests::snapshot::Snapshot;
use portfwd_tests::topology::{FOREIGN, FOREIGN6, HOST, HOST6, Shape, Topology};
use serde_json::Value;

const V4: &str = "10.99.0.1/24,10.99.0.2/24";
const V6: &str = "fd99::1/64,fd99::2/64";
const GATEWAYS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 99, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 1)),
];
const CONTAINER: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 99, 0, 2)),
    IpAddr::V6(Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 2)),
];

/// A topology with a container beside it that has no network.
struct Stand {
    topology: Topology,
    bare: Namespace,
}

impl Stand {
    fn new(shape: Shape) -> Self {
        Self::beside(Topology::new(shape))
    }

    fn beside(topology: Topology) -> Self {
        Self {
            topology,
            bare: Namespace::new("bare"),
        }
    }

    /// Attaches the container as `web`, port 8080 to its port 80.
    fn try_attach(&self, more: &[&str]) -> Outcome {
        let netns = self.bare.path().display().to_string();
        let attach = ["attach", "web", "--netns", &netns, "-p", "8080:80"];
        self.topology.portfwd(&[&attach[..], more].concat())
    }

    #[track_caller]
    fn attach(&self) -> Outcome {
        self.try_attach(&["--connect", V4, "--connect", V6])
            .expect_ok()
    }

    fn serve(&self) -> Server {
        Server::start(&self.bare, &CONTAINER, 80, "web")
    }

    fn made(&self) -> Vec<String> {
        made(&self.topology.host)
    }

    #[track_caller]
    fn assert_served(&self) {
        for from in [&self.topology.client, &self.topology.host, &self.bare] {
            for address in [HOST, HOST6] {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    let answer = clients::ask(from, protocol, SocketAddr::new(address, 8080));
                    answer.unwrap_or_else(|error| {
                        panic!("{} {protocol:?} {address}: {error}", from.name())
                    });
                }
            }
        }
    }
}

/// What `ip -j` prints.
fn json(namespace: &Namespace, arguments: &[&str]) -> Vec<Value> {
    let text = namespace.output("ip", &[&["-j", "-d"], arguments].concat());
    let Ok(Value::Array(found)) = serde_json::from_str(&text) else {
        panic!("ip {arguments:?} printed no array: {text}");
    };
    found
}

/// Names of the devices that begin as those of portfwd do.
fn made(host: &Namespace) -> Vec<String> {
    let links = json(host, &["link", "show"]);
    let names = links.iter().filter_map(|link| link["ifname"].as_str());
    let own = names.filter(|name| name.starts_with("pf"));
    own.map(str::to_owned).collect()
}

/// Addresses with their lengths and whether they are tentative, and default routes, of a namespace.
fn network(namespace: &Namespace) -> Vec<String> {
    let mut lines = Vec::new();
    for device in json(namespace, &["addr", "show"]) {
        for own in device["addr_info"].as_array().into_iter().flatten() {
            if own["scope"] == "global" {
                let tentative = if own["tentative"] == true {
                    " tentative"
                } else {
                    ""
                };
                lines.push(format!(
                    "{} {}/{}{tentative}",
                    device["ifname"], own["local"], own["prefixlen"]
                ));
            }
        }
    }
    for family in ["-4", "-6"] {
        for route in json(namespace, &[family, "route", "show", "default"]) {
            lines.push(format!(
                "default via {} by {}",
                route["gateway"], route["dev"]
            ));
        }
    }
    lines
        .into_iter()
        .map(|line| line.replace('"', ""))
        .collect()
}

/// Whether the programs take the address for the host's own.
fn knows(topology: &Topology, address: IpAddr) -> bool {
    let table = topology.pinned(maps::HOST_ADDRESSES);
    let keys = kernel::keys(&table, kernel::key_size(&table)).expect("keys");
    let key = Ip::from(address).octets();
    keys.iter().any(|known| known[..] == key[..])
}

/// Fails if an end, or the container's `lo`, is not set up, an IPv6 address waits for duplicate detection, the new
/// device is not served (`Writable::follow` in `connect` of apply.rs).
#[test]
fn a_connected_container_is_reached_at_once_from_outside_the_host_and_itself() {
    let stand = Stand::new(Shape::default());
    stand.bare.ip("link set lo down\n");
    for namespace in [&stand.topology.host, &stand.bare] {
        namespace.set_sysctl("ipv6/conf/all/accept_dad", "1");
        namespace.set_sysctl("ipv6/conf/default/accept_dad", "1");
    }
    let outcome = stand
        .try_attach(&["--connect", V6, "--connect", V4, "-p", "8080:80/udp"])
        .expect_ok();
    assert_eq!(
        outcome.stdout.lines().collect::<Vec<_>>(),
        [
            "80/tcp -> 0.0.0.0:8080",
            "80/tcp -> [::]:8080",
            "80/udp -> 0.0.0.0:8080",
            "80/udp -> [::]:8080",
        ]
    );
    let [device] = &stand.made()[..] else {
        panic!("{:?}", stand.made());
    };
    assert_eq!(device.len(), 10, "{device}");
    let of_host = network(&stand.topology.host);
    for address in ["10.99.0.1/24", "fd99::1/64"] {
        assert!(
            of_host.contains(&format!("{device} {address}")),
            "{of_host:?}"
        );
    }
    assert_eq!(
        network(&stand.bare),
        [
            "eth0 10.99.0.2/24",
            "eth0 fd99::2/64",
            "default via 10.99.0.1 by eth0",
            "default via fd99::1 by eth0",
        ]
    );
    let alias = json(&stand.topology.host, &["link", "show", "dev", device])[0]["ifalias"].clone();
    assert_eq!(alias, "portfwd: container web");
    let lo = stand.bare.output("ip", &["link", "show", "dev", "lo"]);
    assert!(lo.contains("LOOPBACK,UP"), "{lo}");
    let _server = stand.serve();
    stand.assert_served();
    for gateway in GATEWAYS {
        let to = SocketAddr::new(gateway, 8080);
        clients::ask(&stand.bare, Protocol::Tcp, to).expect("by the host's end of its own link");
        clients::ask(&stand.topology.host, Protocol::Tcp, to).expect("the same from the host");
    }
}

/// Fails if the plan forgets it when it is put onto the link (`onto` in plan.rs).
#[test]
fn what_a_connected_container_sends_is_masqueraded() {
    let stand = Stand::new(Shape::forwarding());
    let _server = Server::start(
        &stand.topology.foreign,
        &[FOREIGN, FOREIGN6],
        7000,
        "foreign",
    );
    let outcome = stand
        .try_attach(&["--connect", V4, "--connect", V6, "--masquerade"])
        .expect_ok();
    assert_eq!(outcome.stderr, "");
    for (to, leaving) in [(FOREIGN, "203.0.113.1"), (FOREIGN6, "2001:db8:3::1")] {
        let answer = clients::ask(&stand.bare, Protocol::Tcp, SocketAddr::new(to, 7000));
        let answer = answer.expect("an answer");
        assert_eq!(answer.seen.ip().to_string(), leaving);
    }
}

/// Fails if `onto` in plan.rs leaves out the hook inside the container.
#[test]
fn a_service_on_the_loopback_address_of_a_connected_container_is_reached() {
    need(Need::Tcx);
    let stand = Stand::new(Shape::default());
    stand
        .try_attach(&["--connect", V4, "--loopback"])
        .expect_ok();
    let _server = Server::start(&stand.bare, &[Ipv4Addr::LOCALHOST.into()], 80, "web");
    for from in [&stand.topology.client, &stand.topology.host] {
        let to = SocketAddr::new(HOST, 8080);
        clients::ask(from, Protocol::Tcp, to).expect("an answer");
    }
}

/// Fails if forwarding is switched on, or not asked about, or only one family is (`warn_of_forwarding`).
#[test]
fn a_host_that_forwards_nothing_stays_so_and_it_is_said() {
    let stand = Stand::new(Shape::default());
    let said = "warning: the host does not forward";
    stand
        .attach()
        .expect_stderr(&format!(
            "{said} IPv4, so container \"web\" can open no connection"
        ))
        .expect_stderr("sysctl -w net.ipv4.ip_forward=1")
        .expect_stderr(&format!(
            "{said} IPv6, so container \"web\" can open no connection"
        ))
        .expect_stderr("sysctl -w net.ipv6.conf.all.forwarding=1");
    // What is there already is not made, and gives no cause to speak.
    assert_eq!(stand.attach().stderr, "");
    let forward = stand
        .topology
        .host
        .run(|| fs::read_to_string("/proc/sys/net/ipv4/ip_forward"));
    assert_eq!(forward.expect("a setting").trim(), "0");
    stand.topology.portfwd(&["detach", "web"]).expect_ok();
    stand.topology.host.set_sysctl("ipv4/ip_forward", "1");
    let outcome = stand.attach();
    assert!(!outcome.stderr.contains("IPv4"), "{}", outcome.stderr);
    outcome.expect_stderr(&format!("{said} IPv6"));
}

/// Until then a container could take over the host's IPv6 (as CVE-2020-13401 was about). Fails if only one of the
/// settings is asked that make the kernel heed router advertisements (`heeds_routers_here` in observe/settings.rs).
#[test]
fn a_host_that_heeds_routers_is_told_that_the_container_may_be_one() {
    let stand = Stand::new(Shape::default());
    let host = &stand.topology.host;
    let said = "warning: the host takes IPv6 routes that container \"web\" may announce to it";
    for (accepts, forwards, off, warned) in [
        ("1", "0", "0", true),
        ("1", "1", "0", false),
        ("2", "1", "0", true),
        ("0", "0", "0", false),
        ("2", "0", "1", false),
    ] {
        host.set_sysctl("ipv6/conf/default/accept_ra", accepts);
        host.set_sysctl("ipv6/conf/all/forwarding", forwards);
        host.set_sysctl("ipv6/conf/default/disable_ipv6", off);
        let outcome = stand.try_attach(&["--connect", V4]).expect_ok();
        assert_eq!(
            outcome.stderr.contains(said),
            warned,
            "{accepts} {forwards} {off}"
        );
        if warned {
            let [device] = &stand.made()[..] else {
                panic!("{:?}", stand.made());
            };
            let remedy = format!("sysctl -w net.ipv6.conf.{device}.accept_ra=0");
            outcome.expect_stderr(&remedy);
        }
        stand.topology.portfwd(&["detach", "web"]).expect_ok();
    }
}

/// Fails if a pair that is there is not recognised (`find` in commands/attach/connect.rs), or taken for what was
/// asked for whatever its addresses (`check_made` in connection/fit.rs).
#[test]
fn the_same_again_changes_nothing_and_other_addresses_are_refused() {
    let stand = Stand::new(Shape::default());
    stand.try_attach(&["--connect", V4]).expect_ok();
    let look = || {
        let host = json(&stand.topology.host, &["link", "show"]);
        let names = host
            .iter()
            .map(|link| (link["ifname"].clone(), link["ifindex"].clone()));
        let networks = (network(&stand.topology.host), network(&stand.bare));
        (names.collect::<Vec<_>>(), networks, stand.topology.state())
    };
    let before = look();
    let again = stand.try_attach(&["--connect", V4]).expect_ok();
    assert_eq!(again.stdout.lines().count(), 1, "{}", again.stdout);
    assert_eq!(look(), before);
    for (asked, shown) in [
        (
            &["--connect", "10.99.0.1/24,10.99.0.3/24"][..],
            "10.99.0.1/24,10.99.0.3/24".to_owned(),
        ),
        (
            &["--connect", "10.99.0.1/25,10.99.0.2/25"],
            "10.99.0.1/25,10.99.0.2/25".to_owned(),
        ),
        (
            &["--connect", "10.98.0.1/24,10.98.0.2/24"],
            "10.98.0.1/24,10.98.0.2/24".to_owned(),
        ),
        (
            &["--connect", V4, "--connect", V6],
            format!("{V4} and {V6}"),
        ),
    ] {
        let named =
            format!("the container is connected with {V4}, not with {shown}\nhint: give those");
        expect_error(stand.try_attach(asked), 1, &named);
        assert_eq!(look(), before, "{asked:?}");
    }
    // Further ports need no --connect, and are as welcome with it.
    let netns = stand.bare.path().display().to_string();
    let more = ["attach", "web", "-p", "8081:81"];
    stand.topology.portfwd(&more).expect_ok();
    let more = [
        "attach",
        "web",
        "--netns",
        &netns,
        "--connect",
        V4,
        "-p",
        "8082:82",
    ];
    stand.topology.portfwd(&more).expect_ok();
    assert_eq!(stand.made().len(), 1);
}

/// Fails if the pair goes with any port, or does not go with the last one (`remove_pairs` in sweep.rs), or the host's
/// address stays among those that the programs know (`sweep` in apply.rs).
#[test]
fn the_link_goes_with_the_last_port_and_nothing_is_left() {
    let stand = Stand::beside(Topology::watched(Shape::default()));
    let before = Snapshot::of(&stand.bare);
    stand.attach();
    stand
        .try_attach(&["--connect", V4, "-p", "8081:80"])
        .expect_ok();
    let server = stand.serve();
    let to = |port| SocketAddr::new(HOST, port);
    stand
        .topology
        .portfwd(&["detach", "web", "-p", "8080:80"])
        .expect_ok();
    clients::ask(&stand.topology.client, Protocol::Tcp, to(8081)).expect("the port that stays");
    assert!(knows(&stand.topology, GATEWAYS[0]));
    drop(server);
    stand
        .topology
        .portfwd(&["detach", "web", "-p", "8081:80"])
        .expect_ok();
    assert_eq!(stand.made(), Vec::<String>::new());
    let difference = before.difference(&Snapshot::of(&stand.bare));
    assert!(difference.is_empty(), "{difference}");
    assert_eq!(
        clients::closed(&stand.topology.client, Protocol::Tcp, to(8081)),
        Closed::Refused
    );
    let status = stand.topology.portfwd(&["status"]).expect_ok();
    assert!(!status.stdout.contains("pf0"), "{}", status.stdout);
    assert!(
        !knows(&stand.topology, GATEWAYS[0]),
        "the address is known still"
    );
    stand.attach();
    stand.topology.take_down();
    let difference = before.difference(&Snapshot::of(&stand.bare));
    assert!(difference.is_empty(), "{difference}");
}

/// Fails if the forwards of a container whose namespace took the link along are not collected.
#[test]
fn gc_removes_what_a_connected_container_left_that_is_gone() {
    let stand = Stand::new(Shape::default());
    stand.attach();
    let Stand { topology, bare } = stand;
    topology
        .portfwd(&["gc"])
        .expect_ok()
        .expect_stderr("nothing to remove");
    drop(bare);
    until("the link to go", PATIENCE, || {
        made(&topology.host).is_empty().then_some(())
    });
    topology
        .portfwd(&["gc"])
        .expect_ok()
        .expect_stderr("removed: 1 container");
    assert_eq!(topology.published(), Vec::<String>::new());
}

/// Fails if one container's pair is taken for left over when another one's goes, or is made (`links` in state.rs).
#[test]
fn the_links_of_other_containers_stay() {
    let stand = Stand::new(Shape::default());
    stand.attach();
    let _server = stand.serve();
    let other = Namespace::new("other");
    let netns = other.path().display().to_string();
    let attach = ["attach", "other", "--netns", &netns, "-p", "8090:80"];
    let connect = ["--connect", "10.99.1.0/31,10.99.1.1/31"];
    stand
        .topology
        .portfwd(&[&attach[..], &connect].concat())
        .expect_ok();
    assert_eq!(stand.made().len(), 2);
    let address: IpAddr = [10, 99, 1, 1].into();
    let other_server = Server::start(&other, &[address], 80, "other");
    let to = SocketAddr::new(HOST, 8090);
    for from in [&stand.topology.client, &stand.bare] {
        let answer = clients::ask(from, Protocol::Tcp, to).expect("an answer");
        assert_eq!(answer.label, "other");
    }
    drop(other_server);
    stand.topology.portfwd(&["detach", "other"]).expect_ok();
    assert_eq!(stand.made().len(), 1);
    let answer = clients::ask(
        &stand.topology.client,
        Protocol::Tcp,
        SocketAddr::new(HOST, 8080),
    );
    answer.expect("the other container's port");
}

/// Fails if pairs are known by name or by Ethernet address alone (`is_on` in pair.rs), or one that is nobody's stays.
#[test]
fn what_others_made_stays_whatever_it_is_called() {
    let stand = Stand::new(Shape::default());
    stand.attach();
    let [name] = &stand.made()[..] else {
        panic!("{:?}", stand.made());
    };
    stand.topology.portfwd(&["detach", "web"]).expect_ok();
    stand.topology.host.ip(&format!(
        "link add pf00000001 type veth peer name other1
         link add notours address 06:70:00:00:00:02 type veth peer name other2
         link add pf00000003 address 06:70:00:00:00:03 type bridge
         link add pf0000000004 address 06:70:00:00:00:04 type veth peer name other4
         link add {name} type veth peer name other5
         link add pf00000006 address 06:70:00:00:00:06 type veth peer name left\n"
    ));
    // The place is taken by a device that stays.
    let refused = stand.try_attach(&["--connect", V4]);
    expect_error(refused, 1, &format!("cannot make link {name}: File exists"));
    let expected = ["pf00000001", "pf00000003", "pf0000000004", name];
    assert_eq!(stand.made(), expected);
    stand.topology.host.ip(&format!("link del {name}\n"));
    stand.attach();
    stand.topology.portfwd(&["detach", "web"]).expect_ok();
    assert_eq!(stand.made(), expected[..3]);
    let links = json(&stand.topology.host, &["link", "show", "type", "veth"]);
    assert!(links.iter().any(|link| link["ifname"] == "notours"));
}

/// A late step fails, on purpose: where a program's link is to be pinned there is a directory, which the kernel refuses
/// to open with EACCES (`bpf_inode_type`).
/// Fails if a step after the link leaves it (`finish` in apply.rs).
#[test]
fn an_attach_that_fails_after_its_link_takes_it_back() {
    need(Need::Tcx);
    let stand = Stand::new(Shape::default());
    stand.topology.attach("db", 1, &["9090:80"]);
    let before = (Snapshot::of(&stand.bare), stand.topology.state());
    stand.topology.host.ip("link add probe type bridge\n");
    let probe = stand.topology.host.run(|| if_nametoindex("probe"));
    stand.topology.host.ip("link del probe\n");
    let index = probe.expect("an index") + 1;
    let pin = stand.topology.layout().join(format!("links/link-{index}"));
    fs::create_dir(&pin).expect("a directory in the way");
    let refused = stand.try_attach(&["--connect", V4, "--connect", V6]);
    fs::remove_dir(&pin).expect("remove the directory");
    refused
        .expect_code(5)
        .expect_stderr("error: cannot attach ")
        .expect_stderr(&format!("left behind: cannot remove {}", pin.display()));
    assert_eq!(stand.made(), Vec::<String>::new());
    let difference = before.0.difference(&Snapshot::of(&stand.bare));
    assert!(difference.is_empty(), "{difference}");
    assert_eq!(stand.topology.state(), before.1);
    stand.attach();
    let _server = stand.serve();
    let answer = clients::ask(
        &stand.topology.client,
        Protocol::Tcp,
        SocketAddr::new(HOST, 8080),
    );
    answer.expect("an answer");
}

/// Fails if a dry run, or a port that is taken, is found only after the link was made.
#[test]
fn a_dry_run_and_a_collision_make_nothing() {
    let stand = Stand::new(Shape::default());
    let before = Snapshot::of(&stand.bare);
    let connect = ["--connect", V4];
    for is_up in [false, true] {
        let outcome = stand
            .try_attach(&[&connect[..], &["--dry-run"]].concat())
            .expect_ok();
        assert_eq!(outcome.stdout, "80/tcp -> 0.0.0.0:8080\n");
        assert_eq!(stand.topology.pins().exists(), is_up);
        stand.topology.portfwd(&["up"]).expect_ok();
    }
    stand.topology.attach("db", 1, &["8080:80"]);
    let taken = stand.try_attach(&connect);
    expect_error(taken, 3, "held by: container \"db\" (tcp)");
    assert_eq!(stand.made(), Vec::<String>::new());
    let difference = before.difference(&Snapshot::of(&stand.bare));
    assert!(difference.is_empty(), "{difference}");
}

/// Fails if a network of the host is not looked at: addresses, routes of every table, ranges that it takes as a whole
/// (`networks` and `locals` in observe/routes.rs), or if routes that lead everywhere are in the way.
#[test]
fn networks_that_the_host_has_are_not_taken_from_it() {
    let stand = Stand::new(Shape::default());
    stand.topology.host.ip("route add 10.50.0.0/16 via 192.0.2.2
         route add 10.51.0.7/32 via 192.0.2.2
         route add 10.52.0.0/16 via 192.0.2.2 table 100
         route add local 10.53.0.0/16 dev lo
         addr add 10.54.0.7/32 dev lo
         route add default via 192.0.2.2
         route add 0.0.0.0/1 via 192.0.2.2
         route add 2000::/3 via 2001:db8:1::2
         route add fd50::/32 via 2001:db8:1::2\n");
    let before = stand.topology.host.output("ip", &["-o", "link", "show"]);
    for (asked, says, holder) in [
        (
            "10.88.0.1/24,10.88.0.9/24",
            "10.88.0.1 is an address of the host already",
            "br0 (10.88.0.1/24)",
        ),
        (
            "192.0.2.9/24,192.0.2.10/24",
            "192.0.2.10 is an address of the host already",
            "eth0 (192.0.2.10/24)",
        ),
        (
            "10.88.0.129/25,10.88.0.130/25",
            "subnet 10.88.0.128/25 overlaps a network of the host, 10.88.0.1/24",
            "br0 (10.88.0.1/24)",
        ),
        (
            "10.50.9.1/24,10.50.9.2/24",
            "subnet 10.50.9.0/24 overlaps a network of the host, 10.50.0.0/16",
            "eth0 (10.50.0.0/16)",
        ),
        (
            "10.51.0.1/24,10.51.0.2/24",
            "subnet 10.51.0.0/24 overlaps a network of the host, 10.51.0.7/32",
            "eth0 (10.51.0.7/32)",
        ),
        (
            "10.52.0.1/24,10.52.0.2/24",
            "subnet 10.52.0.0/24 overlaps a network of the host, 10.52.0.0/16",
            "eth0 (10.52.0.0/16)",
        ),
        (
            "10.53.0.1/24,10.53.0.2/24",
            "subnet 10.53.0.0/24 overlaps a network of the host, 10.53.0.0/16",
            "lo (10.53.0.0/16)",
        ),
        (
            "10.54.0.1/24,10.54.0.2/24",
            "subnet 10.54.0.0/24 overlaps a network of the host, 10.54.0.7/32",
            "lo (10.54.0.7/32)",
        ),
        (
            "fd88::1/64,fd88::9/64",
            "fd88::1 is an address of the host already",
            "br0 (fd88::1/64)",
        ),
        (
            "fd50::1/64,fd50::2/64",
            "subnet fd50::/64 overlaps a network of the host, fd50::/32",
            "eth0 (fd50::/32)",
        ),
    ] {
        let refused = stand.try_attach(&["--connect", asked]);
        let named = format!("{says}\nheld by: device {holder}\nhint: give each container a subnet");
        expect_error(refused, 1, &named);
    }
    assert_eq!(
        stand.topology.host.output("ip", &["-o", "link", "show"]),
        before
    );
    stand
        .try_attach(&[
            "--connect",
            V4,
            "--connect",
            "2001:db8:99::1/64,2001:db8:99::2/64",
        ])
        .expect_ok();
}

/// Fails if what a container has of its own is not looked at (`check_container` in connection/fit.rs).
#[test]
fn a_container_with_a_network_of_its_own_is_not_connected() {
    let stand = Stand::new(Shape::default());
    let wired = stand.topology.containers[0].netns();
    let attach = ["attach", "db", "--netns", &wired, "-p", "9090:80"];
    for connect in [V4, V6] {
        let refused = stand
            .topology
            .portfwd(&[&attach[..], &["--connect", connect]].concat());
        let named = "the container has an address already, 10.88.0.2/24\n\
                     held by: interface of the container eth0 (10.88.0.2/24)\nhint: attach it without";
        expect_error(refused, 1, named);
    }
    for (route, asked, other) in [
        ("route add default dev lo\n", V4, V6),
        ("-6 route add default dev lo\n", V6, V4),
    ] {
        let container = Namespace::new("routed");
        let netns = container.path().display().to_string();
        let arguments: Vec<&str> = route.trim().split(' ').collect();
        container.output("ip", &arguments);
        let attach = ["attach", "routed", "--netns", &netns, "-p", "9090:80"];
        let refused = stand
            .topology
            .portfwd(&[&attach[..], &["--connect", asked]].concat());
        let named = "held by: interface of the container lo (";
        expect_error(refused, 1, named);
        // The other family is as good as before.
        stand
            .topology
            .portfwd(&[&attach[..], &["--connect", other]].concat())
            .expect_ok();
        stand.topology.portfwd(&["detach", "routed"]).expect_ok();
    }
    let host = stand.topology.host.path().display().to_string();
    let attach = [
        "attach",
        "self",
        "--netns",
        &host,
        "-p",
        "9090:80",
        "--connect",
        V4,
    ];
    let named = "is the host's own: what listens there needs no publishing";
    expect_error(stand.topology.portfwd(&attach), 1, named);
}

/// Fails if only one side is asked, or that of devices that are there (`new_devices_take_v6_here`).
#[test]
fn without_ipv6_a_connection_of_ipv6_is_refused() {
    let stand = Stand::new(Shape::default());
    for (namespace, side, address) in [
        (&stand.topology.host, "host", "fd99::1"),
        (&stand.bare, "container", "fd99::2"),
    ] {
        namespace.set_sysctl("ipv6/conf/default/disable_ipv6", "1");
        let named =
            format!("IPv6 is off for new devices of the {side}, so they cannot have {address}");
        expect_error(stand.try_attach(&["--connect", V6]), 1, &named);
        stand.try_attach(&["--connect", V4]).expect_ok();
        stand.topology.portfwd(&["detach", "web"]).expect_ok();
        namespace.set_sysctl("ipv6/conf/default/disable_ipv6", "0");
    }
    assert_eq!(stand.made(), Vec::<String>::new());
}

/// Fails if a container whose link was removed by hand is connected anew beside forwards that lead nowhere.
#[test]
fn a_container_whose_link_was_removed_is_detached_first() {
    let stand = Stand::new(Shape::default());
    stand.attach();
    let [device] = &stand.made()[..] else {
        panic!("{:?}", stand.made());
    };
    stand.topology.host.ip(&format!("link del {device}\n"));
    let refused = stand.try_attach(&["--connect", V4]);
    let named = "the link of container \"web\" is gone\nhint: portfwd detach web, then";
    expect_error(refused, 1, named);
    stand.topology.portfwd(&["detach", "web"]).expect_ok();
    stand.attach();
    let _server = stand.serve();
    let answer = clients::ask(
        &stand.topology.client,
        Protocol::Tcp,
        SocketAddr::new(HOST6, 8080),
    );
    answer.expect("an answer");
}

/// Fails if a name that is taken inside the container is tried nevertheless (`free_name` in pair.rs).
#[test]
fn the_containers_end_gets_the_first_free_name() {
    let stand = Stand::new(Shape::default());
    stand
        .bare
        .ip("link add eth0 type veth peer name eth1\nlink add eth3 type bridge\n");
    stand.attach();
    let addresses = network(&stand.bare);
    assert!(
        addresses.contains(&"eth2 10.99.0.2/24".to_owned()),
        "{addresses:?}"
    );
}

/// Fails if what was typed is looked at only after something was made. The texts themselves are tested with the
/// parser (connection.rs).
#[test]
fn malformed_connections_are_named_and_make_nothing() {
    let stand = Stand::new(Shape::default());
    for asked in [
        "",
        "10.99.0.1/24",
        "10.99.0.1/24,10.99.0.1/24",
        "10.99.0.1/24,fd99::2/64",
    ] {
        expect_error(stand.try_attach(&["--connect", asked]), 2, asked);
    }
    let twice = ["--connect", V4, "--connect", "10.98.0.1/24,10.98.0.2/24"];
    expect_error(stand.try_attach(&twice), 2, "10.98.0.1/24,10.98.0.2/24");
    for target in [&["--ip", "10.88.0.2"][..], &[]] {
        let attach = ["attach", "web", "-p", "8080:80", "--connect", V4];
        let refused = stand.topology.portfwd(&[&attach[..], target].concat());
        let named = "--connect needs the container's network namespace\nhint: give --netns PATH or --pid PID";
        expect_error(refused, 2, named);
    }
    assert!(!stand.topology.pins().exists());
}
