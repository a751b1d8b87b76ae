//! Containers without a veth on the host: translated, and through the host's stack both ways, past
//! conntrack and a strict firewall.

use std::net::{IpAddr, SocketAddr};

use portfwd_tests::capture::{Capture, faults};
use portfwd_tests::clients::{self, Protocol};
use portfwd_tests::namespace::Namespace;
use portfwd_tests::needs::{Need, need};
use portfwd_tests::servers::Server;
use portfwd_tests::topology::{
    CLIENT, CLIENT6, FOREIGN, FOREIGN6, GATEWAY, GATEWAY6, HOST, HOST6, Shape, Topology,
};
use portfwd_tests::tunnel::{Kind, Tunnel};

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// What a careful administrator has: nothing is forwarded but connections to the service, and nothing
/// whose connection is not known. What leaves by eth1 is masqueraded only where the test says so.
const STRICT: &str = "
    table inet filter {
        chain forward {
            type filter hook forward priority 0; policy drop;
            ct state invalid counter drop
            ct state established,related accept
            icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
            ct state new th dport 80 accept
        }
    }
";
const MASQUERADE: &str = "
    table inet nat {
        chain postrouting {
            type nat hook postrouting priority srcnat;
            oifname \"eth1\" masquerade
        }
    }
";

/// Addresses of a server behind a router: no link of the host leads to it.
const FAR: [&str; 2] = ["198.51.100.9", "2001:db8:51::9"];

fn forwarding() -> Topology {
    Topology::new(Shape::forwarding())
}

/// The far server, behind the foreign host as its router.
fn serve_far(topology: &Topology) -> Server {
    topology.host.ip(&format!(
        "route add {} via {FOREIGN}\nroute add {} via {FOREIGN6}\n",
        FAR[0], FAR[1]
    ));
    topology.foreign.ip(&format!(
        "addr add {}/32 dev lo\naddr add {}/128 dev lo nodad\n",
        FAR[0], FAR[1]
    ));
    let addresses = FAR.map(|address| address.parse().expect("an address"));
    Server::start(&topology.foreign, &addresses, 80, "far")
}

#[track_caller]
fn ask(from: &Namespace, protocol: Protocol, address: IpAddr) -> clients::Answer {
    let to = SocketAddr::new(address, 8080);
    let answer = clients::ask(from, protocol, to)
        .unwrap_or_else(|error| panic!("{protocol:?} {to} from {}: {error}", from.name()));
    assert_eq!(answer.label, "far");
    answer
}

/// Publishes port 80 of these addresses.
fn attach(topology: &Topology, addresses: &str) {
    let arguments = [
        "attach",
        "far",
        "--ip",
        addresses,
        "-p",
        "8080:80",
        "-p",
        "8080:80/udp",
    ];
    topology.portfwd(&arguments).expect_ok();
}

/// Packets that the firewall found invalid.
fn invalid(topology: &Topology) -> String {
    let rules = topology
        .host
        .output("nft", &["list", "chain", "inet", "filter", "forward"]);
    let rule = rules.lines().find(|line| line.contains("invalid"));
    rule.unwrap_or(&rules).trim().to_owned()
}

// Fails if replies are translated back before conntrack has seen them (at the ingress of eth1), or not
// at all.
#[test]
fn a_server_elsewhere_is_published_past_conntrack_and_a_strict_firewall() {
    let topology = forwarding();
    let _far = serve_far(&topology);
    topology.host.feed("nft", &["-f", "-"], STRICT);
    attach(&topology, &FAR.join(","));
    let captures =
        [&topology.client, &topology.foreign].map(|namespace| Capture::start(namespace, "eth0"));
    for protocol in PROTOCOLS {
        for (address, own) in [(HOST, CLIENT), (HOST6, CLIENT6)] {
            for _ in 0..3 {
                assert_eq!(ask(&topology.client, protocol, address).seen.ip(), own);
            }
            ask(&topology.host, protocol, address);
        }
    }
    assert!(
        invalid(&topology).contains("packets 0 "),
        "{}",
        invalid(&topology)
    );
    for capture in captures {
        assert_eq!(faults(&capture.finish(), false), Vec::<String>::new());
    }
}

// A bridge may show netfilter what passes it (`br_netfilter`). Conntrack then knows a connection by its
// first destination, before the program of the bridge's device has changed that; the program of the
// container's link is in front of both.
#[test]
fn a_container_reaches_what_is_published_of_a_server_elsewhere() {
    let topology = forwarding();
    let _far = serve_far(&topology);
    attach(&topology, &FAR.join(","));
    let neighbour = &topology.containers[1];
    let bridged_frames =
        ["iptables", "ip6tables"].map(|tool| format!("bridge/bridge-nf-call-{tool}"));
    for attached in [false, true] {
        let calls = if attached { "1" } else { "0" };
        for sysctl in bridged_frames
            .iter()
            .filter(|key| topology.host.has_sysctl(key))
        {
            topology.host.set_sysctl(sysctl, calls);
        }
        if attached {
            topology.attach("neighbour", 1, &["8090:80"]);
        }
        topology
            .host
            .feed("nft", &["-f", "-"], &format!("flush ruleset\n{STRICT}"));
        for protocol in PROTOCOLS {
            for (address, own) in [
                (GATEWAY, IpAddr::from(neighbour.v4)),
                (GATEWAY6, neighbour.v6.into()),
            ] {
                assert_eq!(ask(&neighbour.namespace, protocol, address).seen.ip(), own);
            }
        }
    }
}

// The rule changes the source after us, and changes it back before us.
// Fails if replies are not translated where they leave (`Egress` in first.rs).
#[test]
fn a_rule_that_masquerades_toward_the_server_does_not_disturb() {
    let topology = forwarding();
    let _far = serve_far(&topology);
    topology
        .host
        .feed("nft", &["-f", "-"], &format!("{STRICT}{MASQUERADE}"));
    attach(&topology, &FAR.join(","));
    for protocol in PROTOCOLS {
        for address in [HOST, HOST6] {
            for _ in 0..3 {
                let seen = ask(&topology.client, protocol, address).seen.ip();
                assert!(
                    ![CLIENT, CLIENT6].contains(&seen),
                    "{seen} was not masqueraded"
                );
            }
        }
    }
    assert!(
        invalid(&topology).contains("packets 0 "),
        "{}",
        invalid(&topology)
    );
}

/// A virtual machine's kind of network: a tap device on the host, a guest behind it.
#[test]
fn a_guest_behind_a_tap_device_is_published() {
    let topology = forwarding();
    let guest = Namespace::new("guest");
    let _wire = Tunnel::new(Kind::Tap, (&topology.host, "tap0"), (&guest, "eth0"));
    topology.host.ip("addr add 10.77.0.1/24 dev tap0
        addr add fd77::1/64 dev tap0 nodad
        addr add fe80::1/64 dev tap0 nodad
        link set tap0 up\n");
    guest.ip("addr add 10.77.0.2/24 dev eth0
        addr add fd77::2/64 dev eth0 nodad
        addr add fe80::2/64 dev eth0 nodad
        link set eth0 up
        route add default via 10.77.0.1
        route add default via fd77::1\n");
    let addresses: [IpAddr; 2] = ["10.77.0.2", "fd77::2"].map(|ip| ip.parse().expect("an address"));
    let _far = Server::start(&guest, &addresses, 80, "far");
    topology.host.feed("nft", &["-f", "-"], STRICT);
    for target in [
        &["--ip", "10.77.0.2,fd77::2"][..],
        &["--netns", &guest.path().display().to_string()],
    ] {
        let publish = ["-p", "8080:80", "-p", "8080:80/udp"];
        topology
            .portfwd(&[&["attach", "far"], target, &publish].concat())
            .expect_ok();
        for protocol in PROTOCOLS {
            for (address, own) in [(HOST, CLIENT), (HOST6, CLIENT6)] {
                assert_eq!(ask(&topology.client, protocol, address).seen.ip(), own);
                ask(&topology.host, protocol, address);
            }
        }
        topology.portfwd(&["detach", "far"]).expect_ok();
    }
    assert!(
        invalid(&topology).contains("packets 0 "),
        "{}",
        invalid(&topology)
    );
}

// Fails if --loopback asks for the hook on the host's end of a pair.
#[test]
fn a_guest_behind_a_tap_device_may_serve_on_its_loopback_address() {
    need(Need::Tcx);
    let topology = forwarding();
    let guest = Namespace::new("guest");
    let _wire = Tunnel::new(Kind::Tap, (&topology.host, "tap0"), (&guest, "eth0"));
    topology
        .host
        .ip("addr add 10.77.0.1/24 dev tap0\nlink set tap0 up\n");
    guest.ip("addr add 10.77.0.2/24 dev eth0
        link set eth0 up
        route add default via 10.77.0.1\n");
    let loopback = "127.0.0.1".parse().expect("an address");
    let _far = Server::start(&guest, &[loopback], 80, "far");
    let netns = guest.path().display().to_string();
    let arguments = [
        "attach",
        "far",
        "--netns",
        &netns,
        "--loopback",
        "-p",
        "8080:80",
    ];
    topology.portfwd(&arguments).expect_ok();
    assert_eq!(ask(&topology.client, Protocol::Tcp, HOST).seen.ip(), CLIENT);
}

// A frame that is redirected into the container keeps the addresses that it has come with, and the bridge
// there would take it for somebody else's. Fails if what goes to such a container is redirected to its link,
// or if its replies are not translated where they leave.
#[test]
fn a_container_whose_address_is_on_a_bridge_of_its_own_is_published() {
    let topology = forwarding();
    let container = &topology.containers[0];
    let [v4, v6] = container.addresses();
    container.namespace.ip(&format!(
        "addr flush dev eth0
         link add inner type bridge
         link set eth0 master inner
         addr add {v4}/24 dev inner
         addr add {v6}/64 dev inner nodad
         link set inner up
         route replace default via {GATEWAY}
         route replace default via {GATEWAY6}\n"
    ));
    let _far = Server::start(&container.namespace, &[v4, v6], 80, "far");
    let (addresses, netns) = (format!("{v4},{v6}"), container.netns());
    for target in [["--netns", &netns], ["--ip", &addresses]] {
        let publish = ["-p", "8080:80", "-p", "8080:80/udp"];
        topology
            .portfwd(&[&["attach", "far"], &target[..], &publish].concat())
            .expect_ok();
        for protocol in PROTOCOLS {
            for (address, own) in [(HOST, CLIENT), (HOST6, CLIENT6)] {
                assert_eq!(ask(&topology.client, protocol, address).seen.ip(), own);
            }
        }
        topology.portfwd(&["detach", "far"]).expect_ok();
    }
}
