//! A client, a host that publishes ports, two containers behind it, and a foreign server beyond it.
//!
//! ```text
//!  client 192.0.2.2 ---- eth0 192.0.2.1  host  br0 10.88.0.1 ---- containers 10.88.0.2, 10.88.0.3
//!                                192.0.2.10  eth1 203.0.113.1 ---- foreign 203.0.113.9
//! ```
//! IPv6 beside it: 2001:db8:1::/64, fd88::/64 and 2001:db8:3::/64, with the same last numbers
//! (documentation ranges of RFC 5737 and RFC 3849). Addresses are literals in the tests too: a
//! test reads best with what a user would type.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::bpffs::Bpffs;
use crate::deadline::{PATIENCE, until, until_ok};
use crate::kernel::{self, Object};
use crate::namespace::{Namespace, unique};
use crate::portfwd::{self, Outcome};
use crate::servers::Server;
use crate::snapshot::Snapshot;
use crate::wiring::{wire_bridge, wire_container, wire_outside};

/// The host's address toward the client.
pub const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
/// A second address of the host on the same device.
pub const HOST_SECOND: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10));
/// The host's IPv6 address toward the client.
pub const HOST6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1));
/// The host's second IPv6 address on the same device.
pub const HOST6_SECOND: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10));
/// The client's address.
pub const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
/// The client's IPv6 address.
pub const CLIENT6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2));
/// The foreign server's address.
pub const FOREIGN: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9));
/// The foreign server's IPv6 address.
pub const FOREIGN6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 9));
/// The host's address toward the containers.
pub const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 88, 0, 1));
/// The host's IPv6 address toward the containers.
pub const GATEWAY6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd88, 0, 0, 0, 0, 0, 0, 1));

/// Hardware address of the client's device.
pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 1, 0, 2];
/// Hardware address of the host's device toward the client.
pub const HOST_MAC: [u8; 6] = [2, 0, 0, 1, 0, 1];
/// Hardware address of the host's bridge, and of its side of every routed link.
pub const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 88, 0, 1];

/// How containers hang on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wiring {
    /// Veths on a bridge that holds the gateway address.
    Bridged,
    /// A veth each with a route, the gateway address on every host side (CNI's `ptp`).
    Routed,
}

/// What a topology is like.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// How containers hang on the host.
    pub wiring: Wiring,
    /// Whether the host forwards packets (`ip_forward` and its IPv6 sibling).
    pub forwarding: bool,
    /// Whether devices may delay checksums and segmentation.
    pub offloads: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            wiring: Wiring::Bridged,
            forwarding: false,
            offloads: true,
        }
    }
}

impl Shape {
    /// The default of a host that forwards.
    #[must_use]
    pub fn forwarding() -> Self {
        Self {
            forwarding: true,
            ..Self::default()
        }
    }

    /// The default with containers on routed links.
    #[must_use]
    pub fn routed() -> Self {
        Self {
            wiring: Wiring::Routed,
            ..Self::default()
        }
    }
}

/// A container's end of the topology.
#[derive(Debug)]
pub struct Container {
    /// Its namespace; its device is `eth0`.
    pub namespace: Namespace,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
    /// Hardware address of its device.
    pub mac: [u8; 6],
    /// The host's side of its veth.
    pub host_link: String,
}

impl Container {
    /// The container of that number, not wired yet.
    fn new(number: u8) -> Self {
        Self {
            namespace: Namespace::new(&format!("ctr{number}")),
            v4: Ipv4Addr::new(10, 88, 0, number + 1),
            v6: Ipv6Addr::new(0xfd88, 0, 0, 0, 0, 0, 0, u16::from(number) + 1),
            mac: [2, 0, 0, 88, 0, number + 1],
            host_link: format!("veth{number}"),
        }
    }

    /// The path to give to `--netns`.
    #[must_use]
    pub fn netns(&self) -> String {
        self.namespace.path().display().to_string()
    }

    /// Both addresses.
    #[must_use]
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

/// The whole arrangement; dropping it takes portfwd's instance down and removes everything.
#[derive(Debug)]
pub struct Topology {
    // Dropped in this order: pins first, then namespaces.
    bpffs: Bpffs,
    /// Where requests come from.
    pub client: Namespace,
    /// Where portfwd publishes.
    pub host: Namespace,
    /// A server elsewhere, reachable through the host only.
    pub foreign: Namespace,
    /// Two containers.
    pub containers: [Container; 2],
    instance: String,
    /// Another binary than the one under test.
    binary: Option<PathBuf>,
    before: Option<Vec<Snapshot>>,
}

impl Topology {
    /// Builds it and waits until every neighbour answers.
    ///
    /// # Panics
    /// When a step fails.
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        let instance = format!("t{}", unique());
        let bpffs = Bpffs::mount(&instance);
        let host = Namespace::new("host");
        let client = Namespace::new("client");
        let foreign = Namespace::new("foreign");
        wire_outside(&host, &client, &foreign);
        let containers = [1, 2].map(Container::new);
        if shape.wiring == Wiring::Bridged {
            wire_bridge(&host);
        }
        for container in &containers {
            wire_container(&host, container, shape.wiring);
        }
        let topology = Self {
            bpffs,
            client,
            host,
            foreign,
            containers,
            instance,
            binary: None,
            before: None,
        };
        topology.configure(shape);
        topology.wait_for_neighbours();
        topology
    }

    /// The same, for a test that takes it down: it remembers what it was like before. That is apart as it
    /// takes as long as everything else of a short test together.
    ///
    /// # Panics
    /// When a step fails.
    #[must_use]
    pub fn watched(shape: Shape) -> Self {
        let mut topology = Self::new(shape);
        topology.before = Some(topology.snapshots());
        topology
    }

    /// A third container on the bridge, whose namespace ends when it is dropped.
    ///
    /// # Panics
    /// When a step fails.
    #[must_use]
    pub fn passing_container(&self) -> Container {
        let container = Container::new(3);
        wire_container(&self.host, &container, Wiring::Bridged);
        container
    }

    /// The instance's name.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// From here on with another binary than the one under test.
    #[must_use]
    pub fn with_binary(self, binary: PathBuf) -> Self {
        let mut topology = self;
        topology.binary = Some(binary);
        topology
    }

    /// The BPF file system that only this topology uses.
    #[must_use]
    pub fn bpffs(&self) -> &Path {
        self.bpffs.path()
    }

    /// The directory of the instance's pins.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        self.bpffs().join("portfwd").join(&self.instance)
    }

    /// What the instance has pinned under this name: a program, or a table.
    ///
    /// # Panics
    /// When it is not there.
    #[must_use]
    #[track_caller]
    pub fn pinned(&self, name: &str) -> OwnedFd {
        let pins = kernel::pins(&self.pins());
        let path = pins.iter().find(|path| path.ends_with(name));
        let path = path.unwrap_or_else(|| panic!("{name} is not among {pins:?}"));
        kernel::open_pin(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// The directory of its pins by kind: links, maps and programs.
    #[must_use]
    pub fn layout(&self) -> PathBuf {
        let version = portfwd_common::LAYOUT;
        self.pins().join(format!("layout-{version}"))
    }

    /// The command line of portfwd for this topology's host, with `arguments`.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let binary = self.binary.as_deref();
        self.of_host(
            binary.map_or_else(portfwd::command, portfwd::command_of),
            arguments,
        )
    }

    /// Another build's command for this topology's host.
    #[must_use]
    pub fn command_of(&self, binary: &Path, arguments: &[&str]) -> Command {
        self.of_host(portfwd::command_of(binary), arguments)
    }

    fn of_host(&self, mut command: Command, arguments: &[&str]) -> Command {
        command
            .args(["--instance", &self.instance, "--bpffs"])
            .arg(self.bpffs())
            .arg("--host-netns")
            .arg(self.host.path())
            .args(arguments);
        command
    }

    /// Runs portfwd for this topology's host.
    #[must_use]
    pub fn portfwd(&self, arguments: &[&str]) -> Outcome {
        portfwd::finish(self.command(arguments))
    }

    /// Publishes `specs` of container 0 or 1 under `name`, and expects that it works.
    #[track_caller]
    pub fn attach(&self, name: &str, container: usize, specs: &[&str]) -> Outcome {
        self.try_attach(name, container, specs).expect_ok()
    }

    /// The same with any outcome.
    #[must_use]
    pub fn try_attach(&self, name: &str, container: usize, specs: &[&str]) -> Outcome {
        let netns = self.containers[container].netns();
        let mut arguments = vec!["attach", name, "--netns", &netns];
        for spec in specs {
            arguments.extend(["-p", spec]);
        }
        self.portfwd(&arguments)
    }

    /// Publishes port 80 of container 0 or 1 under `name` and masquerades what the container sends.
    #[track_caller]
    pub fn attach_masqueraded(&self, name: &str, container: usize, spec: &str) {
        let netns = self.containers[container].netns();
        let arguments = ["attach", name, "--netns", &netns, "-p", spec];
        self.portfwd(&[&arguments[..], &["--masquerade"]].concat())
            .expect_ok();
    }

    /// Masquerades the subnets of the containers.
    #[track_caller]
    pub fn masquerade_containers(&self) {
        for subnet in ["10.88.0.0/24", "fd88::/64"] {
            self.portfwd(&["masquerade", "add", subnet]).expect_ok();
        }
    }

    /// Servers on port 80 of both containers, which call themselves `web` and `db`.
    #[must_use]
    pub fn serve(&self) -> [Server; 2] {
        let [web, db] = &self.containers;
        [
            Server::start(&web.namespace, &web.addresses(), 80, "web"),
            Server::start(&db.namespace, &db.addresses(), 80, "db"),
        ]
    }

    /// The link of the first container goes, as when its runtime stops it.
    pub fn lose_link(&self) {
        self.host.ip("link del veth1\n");
    }

    /// It comes again, on the bridge, with another index.
    pub fn make_link_again(&self, v4: &str) {
        let container = &self.containers[0].namespace;
        self.host.ip(&format!(
            "link add veth1 type veth peer name eth0 netns {}
             link set veth1 master br0
             link set veth1 up\n",
            container.name()
        ));
        container.ip(&format!(
            "addr add {v4}/24 dev eth0
             addr add fd88::2/64 dev eth0 nodad
             link set eth0 up\n"
        ));
    }

    /// What `list --json` says.
    ///
    /// # Panics
    /// When it is no array.
    #[track_caller]
    #[must_use]
    pub fn list(&self) -> Vec<Value> {
        let document = self.portfwd(&["--json", "list"]).expect_ok().json();
        let Value::Array(forwards) = document else {
            panic!("list --json printed no array: {document}");
        };
        forwards
    }

    /// How often a packet was dropped or passed for this reason.
    ///
    /// # Panics
    /// When `status` does not name it.
    #[track_caller]
    #[must_use]
    pub fn counted(&self, reason: &str) -> u64 {
        let status = self.portfwd(&["--json", "status"]).expect_ok().json();
        let rows = status["datapath"]["reasons"].as_array();
        let mut rows = rows.into_iter().flatten();
        let row = rows.find(|row| row["reason"] == reason);
        let packets = row.and_then(|row| row["packets"].as_u64());
        packets.unwrap_or_else(|| panic!("no {reason} in {status}"))
    }

    /// What is published, one line a forward: `web tcp 0.0.0.0:8080 -> 10.88.0.2:80`, sorted.
    #[track_caller]
    #[must_use]
    pub fn published(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.list().iter().map(forward_line).collect();
        lines.sort();
        lines
    }

    /// Every BPF object that the instance has pinned at this moment.
    #[must_use]
    pub fn objects(&self) -> BTreeSet<Object> {
        kernel::pinned_objects(self.bpffs())
    }

    /// The IDs of the programs on the ingress hook of a device of the host, the first to run first.
    ///
    /// # Panics
    /// When the device cannot be asked.
    #[must_use]
    pub fn ingress_programs(&self, device: &str) -> Vec<u32> {
        if kernel::has_tcx() {
            let programs = || kernel::ingress_programs(kernel::index_of(device));
            return self.host.run(programs).expect("ask the device");
        }
        let arguments = ["filter", "show", "dev", device, "ingress"];
        let filters = self.host.output("tc", &arguments);
        let ids = filters.lines().filter_map(|line| {
            let (_, rest) = line.split_once(" id ")?;
            rest.split(' ').next()?.parse().ok()
        });
        ids.collect()
    }

    /// Everything that a failed command must not change: what is published, and with what objects.
    #[track_caller]
    #[must_use]
    pub fn state(&self) -> (Vec<String>, BTreeSet<Object>) {
        (self.published(), self.objects())
    }

    /// Takes the instance down and asserts that nothing of it is left: no pin, no map, program or
    /// link of it anywhere in the kernel, and host, client and containers as they were.
    ///
    /// # Panics
    /// When something is left, saying what, or when it was not [`Self::watched`].
    #[track_caller]
    pub fn take_down(&self) {
        let objects = self.objects();
        self.portfwd(&["down"]).expect_ok();
        self.assert_nothing_left(&objects);
    }

    /// Asserts that none of `objects` lives and that everything is as it was before.
    ///
    /// # Panics
    /// When something is left, saying what, or when it was not [`Self::watched`].
    #[track_caller]
    pub fn assert_nothing_left(&self, objects: &BTreeSet<Object>) {
        let pins = kernel::pins(self.bpffs());
        assert!(pins.is_empty(), "pins are left: {pins:?}");
        let parent = self.bpffs().join("portfwd");
        let left: Vec<PathBuf> = fs::read_dir(&parent)
            .into_iter()
            .flatten()
            .map(|entry| entry.expect("read a directory").path())
            .collect();
        assert!(left.is_empty(), "directories are left: {left:?}");
        // The kernel frees objects a grace period after their last user.
        until(
            "the kernel to free the instance's objects",
            PATIENCE,
            || objects.iter().all(|object| !object.lives()).then_some(()),
        );
        let before = self.before.as_ref().expect("a watched topology");
        let mut report = String::new();
        for (before, after) in before.iter().zip(self.snapshots()) {
            let _ = write!(report, "{}", before.difference(&after));
        }
        assert!(report.is_empty(), "something has changed:\n{report}");
    }

    fn namespaces(&self) -> [&Namespace; 5] {
        let [first, second] = &self.containers;
        [
            &self.host,
            &self.client,
            &self.foreign,
            &first.namespace,
            &second.namespace,
        ]
    }

    fn snapshots(&self) -> Vec<Snapshot> {
        self.namespaces().map(Snapshot::of).into()
    }

    fn configure(&self, shape: Shape) {
        let forwarding = if shape.forwarding { "1" } else { "0" };
        self.host.set_sysctl("ipv4/ip_forward", forwarding);
        self.host.set_sysctl("ipv6/conf/all/forwarding", forwarding);
        if shape.offloads {
            return;
        }
        for namespace in self.namespaces() {
            let links = namespace.output("ip", &["-o", "link", "show", "type", "veth"]);
            for link in links.lines() {
                let name = link.split([':', '@']).nth(1).expect("ip names the device");
                let off = "-K DEV rx off tx off tso off gso off gro off";
                let arguments: Vec<&str> = off
                    .split(' ')
                    .map(|word| if word == "DEV" { name.trim() } else { word })
                    .collect();
                namespace.output("ethtool", &arguments);
            }
        }
    }

    /// A closed port answers at once where the way is open; a frame that a device does not carry
    /// yet is lost. Afterwards everybody forgets the neighbours again: portfwd must find them.
    fn wait_for_neighbours(&self) {
        let mut ways: Vec<(&Namespace, IpAddr)> = vec![
            (&self.client, HOST),
            (&self.client, HOST6),
            (&self.foreign, Ipv4Addr::new(203, 0, 113, 1).into()),
            (
                &self.foreign,
                Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 1).into(),
            ),
        ];
        for container in &self.containers {
            ways.push((&container.namespace, GATEWAY));
            ways.push((&container.namespace, GATEWAY6));
        }
        for (namespace, address) in ways {
            namespace.run(|| {
                until_ok("a neighbour to answer", PATIENCE, || {
                    let to = SocketAddr::new(address, 9);
                    match TcpStream::connect_timeout(&to, Duration::from_millis(50)) {
                        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
                        other => Err((namespace.name().to_owned(), to, other)),
                    }
                });
            });
        }
        for namespace in self.namespaces() {
            namespace.ip("neigh flush all\n");
        }
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        if self.pins().exists() {
            let outcome = self.portfwd(&["down"]);
            if outcome.code != 0 {
                eprintln!("down: {}", outcome.stderr);
            }
        }
    }
}

/// One element of `list --json` on a line.
fn forward_line(forward: &Value) -> String {
    let text = |key: &str| forward[key].as_str().unwrap_or("?").to_owned();
    let end = |address: String, port: &Value| {
        let brackets = address.contains(':');
        let address = if brackets {
            format!("[{address}]")
        } else {
            address
        };
        format!("{address}:{port}")
    };
    let host = end(text("hostIp"), &forward["hostPort"]);
    let container = end(text("containerIp"), &forward["containerPort"]);
    let mut line = format!(
        "{} {} {host} -> {container}",
        text("container"),
        text("protocol")
    );
    if forward["count"] != 1 {
        let _ = write!(line, " x{}", forward["count"]);
    }
    line
}
