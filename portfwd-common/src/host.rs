//! What the loader knows of containers and of the host, and what the socket programs remember.

use bytemuck::{Pod, Zeroable};

use crate::net::{Ip, NetPort, Protocol};

/// Longest label of a container, in bytes.
pub const LABEL_MAX: usize = 127;
/// Length of the tables of addresses that containers send from: two for each container that there can be.
pub const MAX_SOURCES: u32 = 2 * crate::forward::MAX_FORWARDS;

/// A container's name or label.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Label([u8; LABEL_MAX + 1]);

impl Label {
    /// From text of at most [`LABEL_MAX`] bytes without a zero byte.
    pub fn new(text: &str) -> Option<Self> {
        let mut bytes = [0; LABEL_MAX + 1];
        if text.is_empty() || text.len() > LABEL_MAX || text.bytes().any(|b| b == 0) {
            return None;
        }
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Some(Self(bytes))
    }
    /// The text; empty if the bytes are no UTF-8, which the loader never writes.
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|b| *b == 0).unwrap_or(LABEL_MAX);
        core::str::from_utf8(&self.0[..end]).unwrap_or_default()
    }
}

impl core::fmt::Debug for Label {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A container with published ports. It makes nothing visible to packets: its forwards do.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Attachment {
    /// Never used twice within an instance.
    pub id: u32,
    /// Interface index of the host-side link, 0 if there is none.
    pub link: u32,
    /// IPv4 address, or [`Ip::NONE`].
    pub v4: Ip,
    /// IPv6 address, or [`Ip::NONE`].
    pub v6: Ip,
    /// Cookie of its network namespace, 0 when it was attached by address.
    pub netns: u64,
    /// Unix time of the first attach, in seconds.
    pub created: u64,
    /// Its name. Two have the same while one takes the other's place.
    pub label: Label,
}

/// An attached container's host-side link.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Link {
    /// [`Attachment::id`].
    pub attachment: u32,
    /// Interface index of the device that routes for it: its bridge, or the link itself.
    pub l3_device: u32,
}

/// An address that a container may send from through its link.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Pod, Zeroable)]
pub struct LinkSource {
    /// Source address.
    pub address: Ip,
    /// Interface index of the host-side link.
    pub link: u32,
    padding: u32,
}

impl LinkSource {
    /// The key.
    #[inline(always)]
    pub const fn new(link: u32, address: Ip) -> Self {
        Self {
            address,
            link,
            padding: 0,
        }
    }
}

/// A device on which the host owns an address.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Device {
    /// The first four bytes of its Ethernet address, as they lie in a frame.
    high: u32,
    /// The last two.
    low: u16,
    /// How sources of IPv4 packets that come in by it are checked: [`Self::STRICTLY`], [`Self::LOOSELY`], or
    /// not at all.
    pub source_check: u8,
    /// Devices with one number share a route with several next hops; 0 shares none.
    pub shared: u8,
}

impl Device {
    /// Of [`Self::source_check`]: the way back has to leave by this device (RFC 3704, section 2.2).
    pub const STRICTLY: u8 = 1;
    /// There has to be a way back (RFC 3704, section 2.4).
    pub const LOOSELY: u8 = 2;

    /// From its Ethernet address; zeros where it has none.
    pub const fn with_address([a, b, c, d, e, f]: [u8; 6]) -> Self {
        Self {
            high: u32::from_ne_bytes([a, b, c, d]),
            low: u16::from_ne_bytes([e, f]),
            source_check: 0,
            shared: 0,
        }
    }
    /// Whether that is its Ethernet address, of which `high` and `low` are the two parts as they lie in a
    /// frame.
    #[inline(always)]
    pub const fn has_address(&self, high: u32, low: u16) -> bool {
        self.high == high && self.low == low
    }
    /// Whether a source that is checked strictly may come in by this device, when the way back leaves by
    /// `other`.
    #[inline(always)]
    pub const fn shares_routes_with(&self, other: &Self) -> bool {
        self.shared != 0 && self.shared == other.shared
    }
}

/// A host socket and the container that it was sent to.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Pod, Zeroable)]
pub struct SocketKey {
    /// Socket cookie, never used twice (`sock_gen_cookie`).
    pub cookie: u64,
    /// Address of the container.
    pub peer: Ip,
    /// Port of the container.
    pub port: NetPort,
    padding: u16,
    padding2: u32,
}

impl SocketKey {
    /// The key.
    #[inline(always)]
    pub const fn new(cookie: u64, peer: Ip, port: NetPort) -> Self {
        Self {
            cookie,
            peer,
            port,
            padding: 0,
            padding2: 0,
        }
    }
}

/// What the process that owns a rewritten socket asked for.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct SocketOrigin {
    /// Host address; loopback if the process asked for the unspecified one, as Linux takes it.
    pub address: Ip,
    /// Host port.
    pub port: NetPort,
    /// IP protocol number.
    pub protocol: u8,
    padding: u8,
    /// Index of the forward.
    pub forward: u32,
    /// Its generation.
    pub generation: u32,
    padding2: u32,
}

impl SocketOrigin {
    /// The record.
    #[inline(always)]
    pub const fn new(
        address: Ip,
        port: NetPort,
        protocol: Protocol,
        forward: u32,
        generation: u32,
    ) -> Self {
        Self {
            address,
            port,
            protocol: protocol.number(),
            padding: 0,
            forward,
            generation,
            padding2: 0,
        }
    }
}

/// A remote address that an unconnected UDP socket of the host has sent to from a port number that is
/// published: what comes back is the socket's, not the container's.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Pod, Zeroable)]
pub struct HostDatagram {
    /// Address that the host's socket is bound to, [`Ip::NONE`] if to none.
    pub local: Ip,
    /// Remote address.
    pub remote: Ip,
    /// Remote port.
    pub remote_port: NetPort,
    /// Port of the host's socket.
    pub local_port: NetPort,
    padding: u32,
}

impl HostDatagram {
    /// The key.
    #[inline(always)]
    pub const fn new(local: Ip, local_port: NetPort, remote: Ip, remote_port: NetPort) -> Self {
        Self {
            local,
            remote,
            remote_port,
            local_port,
            padding: 0,
        }
    }
}

/// Seconds for which a [`HostDatagram`] keeps a remote address for the host's socket: the UDP lifetime
/// of RFC 4787, REQ-5.
pub const HOST_DATAGRAM_LIFETIME: u32 = 300;

const _: () = {
    assert!(size_of::<Label>() == 128);
    assert!(size_of::<Attachment>() == 184);
    assert!(size_of::<Link>() == 8);
    assert!(size_of::<LinkSource>() == 24);
    assert!(size_of::<Device>() == 8);
    assert!(size_of::<SocketKey>() == 32);
    assert!(size_of::<SocketOrigin>() == 32);
    assert!(size_of::<HostDatagram>() == 40);
};

#[cfg(feature = "user")]
mod user {
    // SAFETY: each is `bytemuck::Pod`: plain bytes without padding.
    unsafe impl aya::Pod for super::Attachment {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Link {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::LinkSource {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Device {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::SocketKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::SocketOrigin {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::HostDatagram {}
}
