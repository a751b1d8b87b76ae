//! What becomes of a packet.

use crate::packet::Network;

/// A hook, and the interface index of the device that the packet came in or goes out by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// TC ingress of a device of the host.
    Device(u32),
    /// The same before there is a socket buffer.
    EarlyDevice(u32),
    /// TC ingress of a container's host-side link.
    Link(u32),
    /// TC egress of a device of the host.
    Egress(u32),
}

/// A frame at a hook.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// Where.
    pub hook: Hook,
    /// From the Ethernet header on.
    pub frame: &'a [u8],
    /// Payload of each packet that this one is going to be cut into; 0 if it stays whole.
    pub segment: u32,
    /// The port that the datapath gave the client toward the container, if it is free to give one.
    pub port: Option<u16>,
}

/// Where a redirected packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// Into the container behind this link.
    Container(u32),
    /// Out by the route to its destination.
    Client,
}

/// What is decided about a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// On to the next program and the stack.
    Next,
    /// Redirected.
    Redirect(To),
    /// Dropped.
    Drop,
    /// Kept: it waits for the first fragment, or comes in again with those that waited for it.
    Kept,
}

/// Why a packet was dropped, or left alone although its port is published, with the number by which
/// the table of docs/packet-way.md knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "docs/packet-way.md has a line for each")]
pub enum Reason {
    ForeignSource = 1,
    TupleTaken = 2,
    FragmentOfDropped = 5,
    Fragment = 32,
    Malformed = 33,
    NotForHost = 34,
    HostSocket = 35,
    NoFlow = 36,
    Expired = 37,
    TooBig = 38,
    ImpossibleSource = 39,
}

/// What must become of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The decision.
    pub verdict: Verdict,
    /// The frame afterwards, if it is not the one that came.
    pub frame: Option<Vec<u8>>,
    /// What is counted.
    pub reasons: Vec<Reason>,
    /// Whether the packet may also go on as it came: what settles a UDP flow is time.
    pub optional: bool,
}

impl Outcome {
    /// On as it came; nothing of ours.
    pub const PASSED: Self = Self {
        verdict: Verdict::Next,
        frame: None,
        reasons: Vec::new(),
        optional: false,
    };

    pub(crate) fn passed_for(reason: Reason) -> Self {
        Self {
            reasons: vec![reason],
            ..Self::PASSED
        }
    }

    pub(crate) fn dropped(reason: Reason) -> Self {
        Self {
            verdict: Verdict::Drop,
            ..Self::passed_for(reason)
        }
    }

    /// Of a reply larger than the way out takes.
    pub(crate) fn too_big(network: &Network) -> Self {
        match network.may_be_cut {
            true => Self::dropped(Reason::TooBig),
            false => Self::passed_for(Reason::TooBig),
        }
    }

    pub(crate) fn kept(reasons: Vec<Reason>) -> Self {
        Self {
            verdict: Verdict::Kept,
            reasons,
            ..Self::PASSED
        }
    }

    pub(crate) fn rewritten(verdict: Verdict, frame: Vec<u8>) -> Self {
        Self {
            verdict,
            frame: Some(frame),
            ..Self::PASSED
        }
    }

    /// Whether the packet goes on as it came.
    pub(crate) fn is_untouched(&self) -> bool {
        self.verdict == Verdict::Next && self.frame.is_none()
    }
}
