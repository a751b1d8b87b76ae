//! Which devices are served and by which hooks: as told by `up`, and as devices come and go.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;

use portfwd_tests::clients::{self, Closed, Protocol};
use portfwd_tests::deadline::{PATIENCE, until_ok};
use portfwd_tests::kernel::{self, Object};
use portfwd_tests::portfwd::{self, Outcome};
use portfwd_tests::topology::{CLIENT6, FOREIGN, HOST, HOST6, Shape, Topology};

/// What `status` shows: the hooks of each device by its name.
#[track_caller]
fn served(topology: &Topology) -> BTreeMap<String, Vec<String>> {
    let status = topology.portfwd(&["--json", "status"]).expect_ok().json();
    let devices = status["datapath"]["devices"].as_array();
    let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
    devices
        .expect("an array of devices")
        .iter()
        .map(|device| {
            let hooks = device["hooks"].as_array().expect("an array of hooks");
            (text(&device["name"]), hooks.iter().map(text).collect())
        })
        .collect()
}

#[track_caller]
fn names(topology: &Topology) -> Vec<String> {
    served(topology).into_keys().collect()
}

/// Asks the published port from the client over TCP and UDP.
#[track_caller]
fn answers(topology: &Topology, address: IpAddr) {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let to = SocketAddr::new(address, 8080);
        let answer = clients::ask(&topology.client, protocol, to)
            .unwrap_or_else(|error| panic!("{protocol:?} {to}: {error}"));
        assert_eq!(answer.label, "web");
    }
}

/// The ID of a pinned program.
fn program_id(path: &Path) -> u32 {
    let pin = kernel::open_pin(path).expect("a pinned program");
    let facts = fs::read_to_string(format!("/proc/self/fdinfo/{}", pin.as_raw_fd()));
    let facts = facts.expect("facts of the program");
    let id = facts.lines().find_map(|line| line.strip_prefix("prog_id:"));
    id.and_then(|id| id.trim().parse().ok()).expect("its ID")
}

#[test]
fn up_serves_the_devices_that_it_names_and_a_second_one_adds_to_them() {
    let topology = Topology::watched(Shape::default());
    let _servers = topology.serve();
    topology.portfwd(&["up", "--device", "eth1"]).expect_ok();
    topology.attach("web", 0, &["8080:80", "8080:80/udp"]);
    assert_eq!(names(&topology), ["eth1", "veth1"]);
    let closed = clients::closed(&topology.client, Protocol::Tcp, SocketAddr::new(HOST, 8080));
    assert_eq!(closed, Closed::Refused);
    topology.portfwd(&["up", "--device", "eth0"]).expect_ok();
    // What was not named stays out, whatever follows.
    topology.portfwd(&["up"]).expect_ok();
    assert_eq!(names(&topology), ["eth0", "eth1", "veth1"]);
    answers(&topology, HOST);
    answers(&topology, HOST6);
    topology.take_down();
}

#[test]
fn a_device_that_is_not_there_or_bears_no_address_is_named() {
    let topology = Topology::watched(Shape::default());
    for fresh in [true, false] {
        for (device, why) in [("nosuch0", "no such device"), ("veth1", "no address")] {
            let outcome = topology.portfwd(&["up", "--device", "eth0", "--device", device]);
            let outcome = outcome.expect_code(4).expect_stderr(device);
            let _ = outcome.expect_stderr(why);
        }
        if fresh {
            assert!(
                !topology.pins().exists(),
                "something is left of a failed up"
            );
            topology.portfwd(&["up", "--device", "eth0"]).expect_ok();
        }
    }
    assert_eq!(names(&topology), ["eth0"]);
    topology.take_down();
}

#[test]
fn xdp_goes_from_one_mode_to_the_other_and_away_with_down() {
    let topology = Topology::watched(Shape {
        offloads: false,
        ..Shape::default()
    });
    let _servers = topology.serve();
    topology.attach("web", 0, &["8080:80", "8080:80/udp"]);
    for mode in ["native", "generic", "native"] {
        topology
            .portfwd(&["up", "--device", "eth0", "--xdp", mode])
            .expect_ok();
        assert_eq!(
            served(&topology)["eth0"],
            [format!("xdp {mode}"), "tc ingress".to_owned()]
        );
        let link = topology.host.output("ip", &["link", "show", "eth0"]);
        let shown = [" xdp ", " xdpgeneric "][usize::from(mode == "generic")];
        assert!(link.contains(shown), "{mode}: {link}");
        answers(&topology, HOST);
        answers(&topology, HOST6);
    }
    topology.take_down();
    let link = topology.host.output("ip", &["link", "show", "eth0"]);
    assert!(!link.contains("xdp"), "{link}");
}

#[test]
fn auto_warns_of_a_device_without_xdp_and_serves_it_all_the_same() {
    let topology = Topology::watched(Shape::default());
    // A bridge has no driver to run a program in.
    let up = topology.portfwd(&["up", "--xdp", "auto"]).expect_ok();
    let _ = up.expect_stderr("warning: br0 runs without XDP");
    let served = served(&topology);
    assert_eq!(served["br0"], ["tc ingress"]);
    assert_eq!(served["eth0"], ["xdp native", "tc ingress"]);
    let native = topology.portfwd(&["up", "--device", "br0", "--xdp", "native"]);
    let _ = native.expect_code(1).expect_stderr("br0 (native)");
    topology.take_down();
}

#[test]
fn a_program_that_has_the_xdp_hook_already_keeps_it_and_is_named() {
    let topology = Topology::watched(Shape::default());
    topology.portfwd(&["up"]).expect_ok();
    let pin = topology.layout().join("object/programs/xdp_device");
    let occupy = format!("link set dev eth0 xdpgeneric pinned {}\n", pin.display());
    topology.host.ip(&occupy);
    let id = program_id(&pin);
    for mode in ["native", "generic"] {
        topology
            .portfwd(&["up", "--device", "eth0", "--xdp", mode])
            .expect_code(1)
            .expect_stderr("attach xdp_device to eth0")
            .expect_stderr(&format!(
                "another XDP program has the device: \"xdp_device\" (id {id})"
            ));
    }
    topology
        .portfwd(&["up", "--xdp", "auto"])
        .expect_ok()
        .expect_stderr("warning: eth0 runs without XDP")
        .expect_stderr("another XDP program");
    let link = topology.host.output("ip", &["link", "show", "eth0"]);
    assert!(link.contains("xdpgeneric"), "{link}");
    topology.host.ip("link set dev eth0 xdpgeneric off\n");
    topology.take_down();
}

/// Makes the host's link to the foreign server anew, with the index given.
fn rewire_foreign(topology: &Topology, index: u32) {
    topology.host.ip(&format!(
        "link add eth1 index {index} type veth peer name eth0 netns {}
         addr add 203.0.113.1/24 dev eth1
         link set eth1 up\n",
        topology.foreign.name()
    ));
    topology.foreign.ip("addr add 203.0.113.9/24 dev eth0
         link set eth0 up
         route add default via 203.0.113.1\n");
}

#[test]
fn a_device_that_goes_leaves_nothing_and_one_in_its_place_is_served() {
    for named in [false, true] {
        let topology = Topology::new(Shape::default());
        let _servers = topology.serve();
        let up: &[&str] = match named {
            true => &["up", "--device", "eth1", "--xdp", "native"],
            false => &["up", "--xdp", "auto"],
        };
        let _ = topology.portfwd(up).expect_ok();
        topology.attach("web", 0, &["8080:80"]);
        let index = topology.host.run(|| kernel::index_of("eth1"));
        topology.host.ip("link del eth1\n");
        assert!(
            names(&topology).contains(&"gone".to_owned()),
            "{:?}",
            served(&topology)
        );
        topology.portfwd(&["up"]).expect_ok();
        assert!(!names(&topology).contains(&"gone".to_owned()));

        // With the same index, and with none of the commands in between that would clean up.
        for index in [index, index + 1000, index + 1000] {
            rewire_foreign(&topology, index);
            topology.portfwd(&["up"]).expect_ok();
            assert_eq!(served(&topology)["eth1"], ["tc ingress"]);
            let to = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)), 8080);
            let answer = until_ok("an answer to the foreign server", PATIENCE, || {
                clients::ask(&topology.foreign, Protocol::Tcp, to)
            });
            assert_eq!((answer.label.as_str(), answer.seen.ip()), ("web", FOREIGN));
            topology.host.ip("link del eth1\n");
        }
        let objects = topology.objects();
        topology.portfwd(&["down"]).expect_ok();
        assert!(!topology.pins().exists());
        for object in objects {
            until_ok("the kernel to free an object", PATIENCE, || {
                if object.lives() { Err(object) } else { Ok(()) }
            });
        }
    }
}

#[test]
fn on_a_containers_own_link_the_links_program_comes_first() {
    let topology = Topology::new(Shape::routed());
    topology.attach("web", 0, &["8080:80"]);
    let order = || topology.ingress_programs("veth1");
    let programs = topology.layout().join("object/programs");
    let expected = ["tc_link", "tc_device"].map(|name| program_id(&programs.join(name)));
    assert_eq!(order(), expected);
    // The device loses its addresses for a while: no device of the host any more.
    let addresses = "addr NN 10.88.0.1/32 dev veth1\naddr NN fd88::1/128 dev veth1\n";
    let shown = topology.host.output("ip", &["-o", "addr", "show", "veth1"]);
    topology.host.ip("addr flush dev veth1 scope global\n");
    topology.portfwd(&["up"]).expect_ok();
    assert_eq!(order(), expected[..1], "{shown}");
    topology.host.ip(&addresses.replace("NN", "add"));
    topology.portfwd(&["up"]).expect_ok();
    assert_eq!(order(), expected);
}

#[test]
fn a_host_with_ipv6_alone_publishes_its_ports() {
    let topology = Topology::new(Shape::default());
    for namespace in [
        &topology.host,
        &topology.client,
        &topology.foreign,
        &topology.containers[0].namespace,
        &topology.containers[1].namespace,
    ] {
        namespace.output("ip", &["-4", "addr", "flush", "scope", "global"]);
    }
    let container = &topology.containers[0];
    let _server = portfwd_tests::servers::Server::start(
        &container.namespace,
        &[container.v6.into()],
        80,
        "web",
    );
    let attach = topology.attach("web", 0, &["8080:80", "8080:80/udp"]);
    assert!(
        attach.stdout.contains("80/tcp -> [::]:8080"),
        "{}",
        attach.stdout
    );
    answers(&topology, HOST6);
    let loopback = IpAddr::V6(Ipv6Addr::LOCALHOST);
    for address in [loopback, HOST6] {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let to = SocketAddr::new(address, 8080);
            clients::ask(&topology.host, protocol, to)
                .unwrap_or_else(|error| panic!("{protocol:?} {to}: {error}"));
        }
    }
    let to = SocketAddr::new(HOST6, 8080);
    let answer = clients::ask(&topology.client, Protocol::Tcp, to).expect("an answer");
    assert_eq!(answer.seen.ip(), CLIENT6);
    topology.portfwd(&["detach", "web"]).expect_ok();
    let closed = clients::closed(&topology.client, Protocol::Tcp, to);
    assert_eq!(closed, Closed::Refused);
}

/// Runs portfwd where no cgroup2 is mounted: in a mount namespace of its own.
fn without_cgroup2(topology: &Topology, arguments: &[&str]) -> Outcome {
    const UNMOUNT: &str = "awk '$3 == \"cgroup2\" { print $2 }' /proc/self/mounts \
                           | xargs -r umount -l && exec \"$@\"";
    let inner = topology.command(arguments);
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", UNMOUNT, "sh"]);
    command.arg(inner.get_program()).args(inner.get_args());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    portfwd::finish(command)
}

#[test]
fn without_cgroup2_ports_are_published_with_a_warning() {
    let topology = Topology::watched(Shape::default());
    let _servers = topology.serve();
    let _ = without_cgroup2(&topology, &["up"])
        .expect_ok()
        .expect_stderr("warning: no cgroup2 is mounted");
    let attached = kernel::cgroup_programs();
    let own = topology.objects();
    assert!(
        !attached
            .iter()
            .any(|id| own.contains(&Object::Program(*id)))
    );
    topology.attach("web", 0, &["8080:80", "8080:80/udp"]);
    answers(&topology, HOST);
    answers(&topology, HOST6);
    topology.portfwd(&["detach", "web"]).expect_ok();
    topology.take_down();
}
