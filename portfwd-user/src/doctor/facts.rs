//! What the checks go by.

use std::net::SocketAddr;

use crate::masquerade::Room;
use crate::observe::cgroup::Cgroup;
use crate::observe::foreign::firewall::FirewallChain;

/// Why something could not be looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unseen(pub String);

/// Something that was looked at, if it could be.
pub type Seen<T> = Result<T, Unseen>;

/// Everything that is looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    /// Capabilities that portfwd may need and that the process does not have.
    pub missing: Vec<&'static str>,
    /// The kernel.
    pub kernel: Kernel,
    /// The mount of the cgroup2 hierarchy.
    pub cgroup: Seen<Option<Cgroup>>,
    /// The namespace that plays the host.
    pub host: Seen<Host>,
    /// The instance.
    pub instance: Seen<State>,
}

/// What the kernel takes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kernel {
    /// What became of a program that does nothing.
    pub program: Seen<Program>,
    /// What became of the datapath's own programs, if they were tried.
    pub datapath: Seen<Result<(), String>>,
    /// Whether it describes its types (`/sys/kernel/btf/vmlinux`).
    pub btf: bool,
    /// How programs are attached to TC.
    pub tc: Seen<Tc>,
    /// Whether programs can ask the routing table for a source address.
    pub route_source: Seen<bool>,
}

/// What becomes of a program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Program {
    /// It is translated into machine code.
    Compiled,
    /// It is interpreted.
    Interpreted,
    /// It is refused, for this reason.
    Refused(String),
}

/// How programs are attached to TC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tc {
    /// By links: TCX.
    Links,
    /// As filters of a `clsact` qdisc.
    Filters,
    /// Not at all.
    None,
}

/// The namespace that plays the host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Host {
    /// The devices on which it has an address that others can reach.
    pub devices: Vec<Device>,
    /// IPv6.
    pub v6: V6,
    /// What its settings leave to masqueraded flows.
    pub room: Seen<Room>,
    /// Chains that may deny packets; nobody asks while nothing is published past them.
    pub firewall: Seen<Vec<FirewallChain>>,
}

/// A device of the host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Whether IPv4 packets that come in by it are forwarded.
    pub forwards_v4: bool,
    /// How sources of IPv4 packets are checked: 0 not, 1 strictly, 2 loosely.
    pub rp_filter: u8,
    /// Whether a default route leaves by it.
    pub is_uplink: bool,
}

/// What the host does with IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum V6 {
    /// The kernel has none.
    Absent,
    /// It is switched off (`disable_ipv6`).
    Disabled,
    /// It is on.
    On {
        /// Whether it forwards.
        forwards: bool,
    },
}

/// What is at the place of the instance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum State {
    /// Nothing.
    Down,
    /// The instance.
    Up(Instance),
    /// Something that cannot be used.
    Unusable {
        /// Why.
        why: String,
        /// What to do about it.
        hint: Option<String>,
    },
}

/// An instance that is up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Instance {
    /// Its name.
    pub name: String,
    /// Whether its programs are those of this build.
    pub is_own_build: bool,
    /// Devices that it serves.
    pub served: Vec<String>,
    /// Devices that it ought to serve and does not yet.
    pub unserved: Vec<String>,
    /// Where its socket programs are.
    pub sockets: SocketHooks,
    /// Whether a port is published in IPv6.
    pub publishes_v6: bool,
    /// Whether anything is published through the stack, IPv4 and IPv6.
    pub stack: [bool; 2],
    /// What is published past the stack to others than the host.
    pub past_stack: Vec<PastStack>,
    /// Whether anything is masqueraded, IPv4 and IPv6.
    pub masquerades: [bool; 2],
    /// Published SCTP ports.
    pub sctp: Vec<String>,
    /// Sockets of the host that were set up before.
    pub strays: Seen<Vec<Stray>>,
}

/// A port, or a range of them, whose packets pass the host's stack by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PastStack {
    /// It and its container, in words.
    pub port: String,
    /// Whether it is published in IPv4, rather than in IPv6.
    pub is_v4: bool,
    /// Whether everybody may open connections.
    pub is_open: bool,
}

/// Where the socket programs of an instance are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SocketHooks {
    /// On the root of the hierarchy.
    Root,
    /// On a part of it.
    Part,
    /// Nowhere.
    None,
}

/// A UDP socket of the host that was connected to a published port when it was not published.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stray {
    /// The host's address and port that it sends to.
    pub peer: SocketAddr,
    /// Whose it is, if that could be told: `process NAME (pid NUMBER)`.
    pub owner: Option<String>,
}
