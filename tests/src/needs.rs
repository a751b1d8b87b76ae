//! What tests need of the kernel that not every one has.
//!
//! A test asks for it in its first line and fails without it: nothing is skipped in silence. The runner
//! of several kernels (`cargo xtask test --kernels`) knows the words and lists such a test as not run.

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use crate::kernel;
use crate::namespace::Namespace;

/// A part of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// The hooks of TC that are no qdisc (Linux 6.6).
    Tcx,
    /// No other hooks of TC than those of a qdisc (before Linux 6.6).
    NoTcx,
    /// A kind of device, with what it asks for, as in `ip link add NAME type ...`.
    Device(&'static str),
    /// The same of a device that stands on another one.
    Child(&'static str),
    /// The queueing discipline netem.
    Netem,
    /// The transport protocol SCTP.
    Sctp,
    /// The address that the routing table gives for a source (`BPF_FIB_LOOKUP_SRC`, Linux 6.7).
    RouteSource,
    /// Socket diagnosis shows sockets that are bound and nothing else (`TCP_BOUND_INACTIVE`, Linux 6.8).
    BoundSockets,
}

/// Asks for what a test needs, by trying it.
///
/// # Panics
/// When the kernel does not have it.
#[track_caller]
pub fn need(need: Need) {
    let is_there = match need {
        Need::Tcx => kernel::has_tcx(),
        Need::NoTcx => !kernel::has_tcx(),
        Need::Device(kind) => makes("ip", &format!("link add tried type {kind}")),
        Need::Child(kind) => makes(
            "ip",
            &format!("link add link parent name tried type {kind}"),
        ),
        Need::Netem => makes("tc", "qdisc add dev parent root netem loss 1%"),
        Need::Sctp => has_sctp(),
        Need::RouteSource => kernel::release() >= (6, 7),
        Need::BoundSockets => kernel::release() >= (6, 8),
    };
    let name = match need {
        Need::Device(kind) | Need::Child(kind) => kind.split(' ').next().unwrap_or(kind),
        Need::Tcx => "TCX",
        Need::NoTcx => "lack of TCX",
        Need::Netem => "netem",
        Need::Sctp => "SCTP",
        Need::RouteSource => "sources of routes",
        Need::BoundSockets => "diagnosis of bound sockets",
    };
    assert!(is_there, "this kernel has no {name}");
}

/// Whether a command works in a namespace made for it, which has a device `parent`.
fn makes(program: &str, arguments: &str) -> bool {
    let namespace = Namespace::new("needs");
    namespace.ip("link add parent type veth peer name other\n");
    let output = namespace
        .command(program)
        .args(arguments.split(' '))
        .output()
        .unwrap_or_else(|error| panic!("start {program}: {error}"));
    output.status.success()
}

fn has_sctp() -> bool {
    let family = AddressFamily::Inet;
    socket(
        family,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::Sctp,
    )
    .is_ok()
}
