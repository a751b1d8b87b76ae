//! The host that both sides know: a topology with published ports, and the same for the model.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use portfwd_common::{maps, programs};
use portfwd_model::{Device, Forward, Hook, Link, Protocol, World};

use super::step::{At, Step};
use crate::kernel::{self, Runner, array_values, clear_map, index_of, key_size};
use crate::topology::{GATEWAY_MAC, HOST_MAC, Shape, Topology};

/// Devices of the host at whose hooks packets are looked at.
pub const DEVICES: [&str; 4] = ["eth0", "br0", "veth1", "veth2"];
/// `struct __sk_buff` and `struct xdp_md` as 32-bit words.
const SKB_WORDS: usize = 48;
const XDP_WORDS: usize = 6;
/// Tables whose elements come from packets. An instance may have fewer.
const TABLES: [&str; 9] = [
    maps::FLOWS_V4,
    maps::FLOWS_V6,
    maps::STREAMS_V4,
    maps::STREAMS_V6,
    maps::YOUNG_V4,
    maps::YOUNG_V6,
    maps::SHIFTS,
    maps::DATAGRAMS,
    maps::HELD,
];
/// Length of the table of reasons.
const REASONS: usize = portfwd_common::verdict::MAX_REASONS as usize;

/// What is published: container, SPECs. Several host ports lead to one container port, so that tuples
/// collide; a container's port is a host port as well; a port is published on one address only.
const PUBLISHED: [(&str, &[&str]); 3] = [
    (
        "web",
        &[
            "8080:80",
            "8081:80",
            "8080:80/udp",
            "8081:80/udp",
            "9000:9000/sctp",
            "192.0.2.10:8443:443",
            "[2001:db8:1::10]:8443:443",
        ],
    ),
    ("db", &["8090:80", "8090:80/udp", "80:8080", "5000:80/udp"]),
    ("far", &["8100:80", "8100:80/udp"]),
];

/// The addresses of a target that no link leads to.
const FAR: [&str; 2] = ["198.51.100.9", "2001:db8:9::9"];

/// The instance's programs and tables, entered into the host's namespace by whoever uses them.
#[derive(Debug)]
pub struct Subject {
    programs: [OwnedFd; 4],
    indexes: BTreeMap<&'static str, u32>,
    tables: Vec<(OwnedFd, usize)>,
    reasons: OwnedFd,
    reason_values: Vec<u8>,
    runner: Runner,
}

/// What the datapath made of a packet: its verdict in the model's words, without where it redirects to,
/// which cannot be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Decision {
    /// On to the next program and the stack.
    Next,
    /// Redirected.
    Redirect,
    /// Dropped, or kept to come back later: then no reason is counted.
    Drop,
}

/// A topology for [`publish`].
#[must_use]
pub fn topology() -> Topology {
    Topology::new(Shape {
        forwarding: true,
        ..Shape::default()
    })
}

/// Publishes everything.
#[must_use]
pub fn published(topology: Topology) -> Topology {
    for (name, specs) in PUBLISHED {
        if name == "far" {
            topology.host.ip("route add 198.51.100.0/24 via 203.0.113.9
                 route add 2001:db8:9::/64 via 2001:db8:3::9\n");
            let target = FAR.join(",");
            let mut arguments = vec!["attach", name, "--ip", &target];
            specs.iter().for_each(|spec| arguments.extend(["-p", spec]));
            topology.portfwd(&arguments).expect_ok();
        } else {
            topology.attach(name, usize::from(name == "db"), specs);
        }
    }
    // What a program sends on for real must not be answered.
    let [web, db] = &topology.containers;
    for silent in [
        &web.namespace,
        &db.namespace,
        &topology.client,
        &topology.foreign,
    ] {
        silent.ip("link set eth0 down\n");
    }
    topology
}

/// The same for the model.
///
/// # Panics
/// When a SPEC above is none.
#[must_use]
pub fn world(topology: &Topology) -> World {
    let addresses = [
        "192.0.2.1",
        "192.0.2.10",
        "203.0.113.1",
        "10.88.0.1",
        "2001:db8:1::1",
        "2001:db8:1::10",
        "2001:db8:3::1",
        "fd88::1",
    ];
    let [eth0, br0, veth1, veth2] = topology.host.run(|| DEVICES.map(index_of));
    let link = |container: usize| Link {
        sources: topology.containers[container].addresses().into(),
    };
    let target = |name: &str| -> ([IpAddr; 2], Option<u32>) {
        match name {
            "web" => (topology.containers[0].addresses(), Some(veth1)),
            "db" => (topology.containers[1].addresses(), Some(veth2)),
            _ => (FAR.map(|text| text.parse().expect("an address")), None),
        }
    };
    let forwards = PUBLISHED.iter().flat_map(|(name, specs)| {
        let (targets, link) = target(name);
        specs
            .iter()
            .flat_map(move |spec| forwards(spec, targets, link))
    });
    World {
        addresses: addresses
            .iter()
            .map(|text| text.parse().expect("an address"))
            .collect(),
        devices: BTreeMap::from([
            (eth0, Device { mac: HOST_MAC }),
            (br0, Device { mac: GATEWAY_MAC }),
        ]),
        links: BTreeMap::from([(veth1, link(0)), (veth2, link(1))]),
        forwards: forwards.collect(),
        sockets: BTreeSet::new(),
        mtu: 1500,
    }
}

/// The forwards of a SPEC of [`PUBLISHED`], one a family.
fn forwards(spec: &str, targets: [IpAddr; 2], link: Option<u32>) -> Vec<Forward> {
    let (ports, protocol) = match spec.split_once('/') {
        Some((ports, "udp")) => (ports, Protocol::Udp),
        Some((ports, "sctp")) => (ports, Protocol::Sctp),
        _ => (spec, Protocol::Tcp),
    };
    let (rest, container) = ports.rsplit_once(':').expect("a container port");
    let (host, port) = rest
        .rsplit_once(':')
        .map_or((None, rest), |(host, port)| (Some(host), port));
    let host: Option<IpAddr> =
        host.map(|host| host.trim_matches(['[', ']']).parse().expect("an address"));
    targets
        .into_iter()
        .filter(|target| host.is_none_or(|host| host.is_ipv4() == target.is_ipv4()))
        .map(|target| Forward {
            protocol,
            host,
            port: port.parse().expect("a port"),
            target: SocketAddr::new(target, container.parse().expect("a port")),
            link,
        })
        .collect()
}

impl Subject {
    /// Opens the pins of an instance that is up.
    ///
    /// # Panics
    /// When one is not there.
    #[must_use]
    pub fn open(topology: &Topology) -> Self {
        let pins = kernel::pins(&topology.pins());
        let is_there = |name: &&&str| pins.iter().any(|path| path.ends_with(name));
        let open = |name: &str| topology.pinned(name);
        let tables = TABLES.iter().filter(is_there);
        let processors = fs_possible_processors();
        Self {
            programs: [
                programs::TC_DEVICE,
                programs::XDP_DEVICE,
                programs::TC_LINK,
                programs::TC_EGRESS,
            ]
            .map(open),
            indexes: topology.host.run(|| {
                DEVICES
                    .into_iter()
                    .map(|name| (name, index_of(name)))
                    .collect()
            }),
            tables: tables
                .map(|name| open(name))
                .map(|table| {
                    let size = key_size(&table);
                    (table, size)
                })
                .collect(),
            reasons: open(maps::REASONS),
            reason_values: vec![0; 8 * processors * REASONS],
            runner: Runner::default(),
        }
    }

    /// The hook of a step for the model.
    #[must_use]
    pub fn hook(&self, step: &Step) -> Hook {
        let index = self.indexes[step.device];
        match step.at {
            At::Device => Hook::Device(index),
            At::EarlyDevice => Hook::EarlyDevice(index),
            At::Link => Hook::Link(index),
            At::Egress => Hook::Egress(index),
        }
    }

    /// Runs a step's program over its frame. Call it inside the host's namespace.
    ///
    /// # Panics
    /// When the kernel refuses to, or the program returns what it must not.
    pub fn run(&mut self, step: &Step) -> (Decision, &[u8]) {
        let index = self.indexes[step.device];
        let (program, context): (_, &[u32]) = match step.at {
            At::Device => (0, &skb_context(index, step.segment)),
            At::EarlyDevice => (1, &xdp_context(index, step.frame.len())),
            At::Link => (2, &skb_context(index, step.segment)),
            At::Egress => (3, &skb_context(index, step.segment)),
        };
        let (code, bytes) = self
            .runner
            .run(&self.programs[program], &step.frame, context)
            .unwrap_or_else(|error| panic!("{}: {error}", step.line()));
        (decision(step.at, code), bytes)
    }

    /// How often each reason has come up, by its number.
    ///
    /// # Panics
    /// When the table cannot be read.
    pub fn reasons(&mut self) -> [u64; REASONS] {
        let count = u32::try_from(REASONS).expect("a small number");
        array_values(&self.reasons, count, &mut self.reason_values).expect("read the reasons");
        let one = self.reason_values.len() / REASONS;
        std::array::from_fn(|number| {
            self.reason_values[number * one..][..one]
                .chunks_exact(8)
                .map(|value| u64::from_ne_bytes(value.try_into().expect("eight bytes")))
                .sum()
        })
    }

    /// Removes every flow.
    ///
    /// # Panics
    /// When a table refuses.
    pub fn forget(&self) {
        for (table, size) in &self.tables {
            clear_map(table, *size).expect("clear a table of flows");
        }
    }
}

/// How many elements a per-CPU map has under each key.
fn fs_possible_processors() -> usize {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")
        .expect("the kernel lists its processors");
    let last = text.trim().rsplit(['-', ',']).next().expect("a number");
    last.parse::<usize>().expect("a number") + 1
}

/// What a return code means (include/uapi/linux/bpf.h, pkt_cls.h).
fn decision(at: At, code: i32) -> Decision {
    match (at, code) {
        (At::EarlyDevice, 2) => Decision::Next,
        (At::EarlyDevice, 3 | 4) => Decision::Redirect,
        (At::EarlyDevice, 1) => Decision::Drop,
        (At::Device | At::Link | At::Egress, -1) => Decision::Next,
        (At::Device | At::Link | At::Egress, 7) => Decision::Redirect,
        (At::Device | At::Link | At::Egress, 2) => Decision::Drop,
        (at, code) => panic!("{at:?} must not return {code}"),
    }
}

fn skb_context(index: u32, segment: u32) -> [u32; SKB_WORDS] {
    const IFINDEX: usize = 10;
    const GSO_SIZE: usize = 44;
    let mut context = [0; SKB_WORDS];
    context[IFINDEX] = index;
    context[GSO_SIZE] = segment;
    context
}

fn xdp_context(index: u32, length: usize) -> [u32; XDP_WORDS] {
    [0, u32::try_from(length).unwrap_or(0), 0, index, 0, 0]
}
