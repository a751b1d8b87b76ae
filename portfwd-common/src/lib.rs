//! What portfwd's eBPF programs and its loader share: the types that lie in maps, and every rule that
//! can be stated without a map, a packet buffer or a clock.
//!
//! Byte order is in the type ([`net::NetPort`] and the [`net::Address`] types hold network order);
//! plain integers are in host order. No type here has hidden padding: each is [`bytemuck::Pod`] and
//! asserts its size.
#![cfg_attr(not(test), no_std)]

pub mod checksum;
pub mod flow;
pub mod forward;
pub mod fragment;
pub mod host;
pub mod masquerade;
pub mod net;
pub mod policy;
pub mod verdict;

/// Version of everything that is pinned: names, types and meaning of maps. A loader refuses an instance
/// with another number.
pub const LAYOUT: u32 = 9;

/// Names of the maps, which are also the names of their pins.
pub mod maps {
    /// Array of [`crate::forward::PortSlot`], [`crate::forward::PORT_SLOTS`] long, mmapped.
    pub const PORTS: &str = "ports";
    /// Hash [`crate::forward::AddressPort`] to [`crate::forward::PortSlot`]: forwards of one host address.
    pub const ADDRESS_PORTS: &str = "address_ports";
    /// Array of [`crate::forward::Forward`], [`crate::forward::MAX_FORWARDS`] long, mmapped.
    pub const FORWARDS: &str = "forwards";
    /// Array of one [`crate::forward::Journal`], mmapped: holds the commit point.
    pub const JOURNAL: &str = "journal";
    /// Hash [`crate::host::Attachment::id`] to [`crate::host::Attachment`].
    pub const ATTACHMENTS: &str = "attachments";
    /// Hash of the interface index (u32) of an attached container's host-side link to [`crate::host::Link`].
    pub const LINKS: &str = "links";
    /// Hash [`crate::host::LinkSource`] to attachment ID (u32): addresses that a container may send from.
    pub const LINK_SOURCES: &str = "link_sources";
    /// Hash of interface index (u32) to [`crate::host::Device`].
    pub const DEVICES: &str = "devices";
    /// Hash [`crate::net::Ip`] to u32 (1): the host's own addresses.
    pub const HOST_ADDRESSES: &str = "host_addresses";
    /// LRU hash [`crate::flow::FlowKey`] to [`crate::flow::Flow`]: settled connections of IPv4.
    pub const FLOWS_V4: &str = "flows_v4";
    /// LRU hash [`crate::flow::FlowKey`] to [`crate::flow::Flow`]: settled connections of IPv6.
    pub const FLOWS_V6: &str = "flows_v6";
    /// LRU hash [`crate::flow::FlowKey`] to [`crate::flow::Flow`]: UDP streams of IPv4.
    pub const STREAMS_V4: &str = "streams_v4";
    /// LRU hash [`crate::flow::FlowKey`] to [`crate::flow::Flow`]: UDP streams of IPv6.
    pub const STREAMS_V6: &str = "streams_v6";
    /// LRU hash [`crate::flow::FlowKey`] to [`crate::flow::Flow`]: young flows of IPv4.
    pub const YOUNG_V4: &str = "young_v4";
    /// LRU hash [`crate::flow::FlowKey`] to [`crate::flow::Flow`]: young flows of IPv6.
    pub const YOUNG_V6: &str = "young_v6";
    /// LRU hash [`crate::flow::Shift`] to u32: the port that a client's port became.
    pub const SHIFTS: &str = "shifts";
    /// LRU hash [`crate::fragment::DatagramKey`] to [`crate::fragment::Datagram`].
    pub const DATAGRAMS: &str = "datagrams";
    /// LRU hash [`crate::fragment::HeldKey`] to [`crate::fragment::Held`]: fragments that came before
    /// the first.
    pub const HELD: &str = "held";
    /// Programs by [`crate::Stage`].
    pub const STAGES: &str = "stages";
    /// Per-CPU array of [`crate::forward::Counters`], by index of the forward.
    pub const COUNTERS: &str = "counters";
    /// Per-CPU array of u64, by number of the reason ([`crate::verdict`]).
    pub const REASONS: &str = "reasons";
    /// LRU hash [`crate::host::SocketKey`] to [`crate::host::SocketOrigin`]: connected sockets of the
    /// host, until they are closed.
    pub const HOST_SOCKETS: &str = "host_sockets";
    /// The same of UDP sockets that are not connected.
    pub const HOST_PEERS: &str = "host_peers";
    /// LRU hash [`crate::host::HostDatagram`] to u32 (seconds): remote addresses that unconnected UDP
    /// sockets of the host talk to from a published port number.
    pub const HOST_DATAGRAMS: &str = "host_datagrams";
    /// Hash of an owner's ID (u32) to [`crate::masquerade::Owner`]: attached containers by
    /// [`crate::host::Attachment::id`], and subnets.
    pub const OWNERS: &str = "owners";
    /// Hash [`crate::net::Ip`] to the ID of its owner (u32): addresses of attached containers.
    pub const CONTAINER_IPS: &str = "container_ips";
    /// Trie of prefixes of [`crate::net::Ip`] to the ID of an owner (u32): subnets that are masqueraded.
    pub const SUBNETS: &str = "subnets";
    /// Trie of prefixes of clients, as [`crate::policy`] describes them, to [`crate::policy::Rule`].
    pub const POLICIES: &str = "policies";
    /// Array of one [`crate::masquerade::Settings`], mmapped.
    pub const MASQUERADE: &str = "masquerade";
    /// Array of 65,536 [`crate::masquerade::PortElement`], mmapped.
    pub const OUTBOUND_PORTS: &str = "outbound_ports";
    /// Hash [`crate::masquerade::DeviceFamily`] to [`crate::net::Ip`]: addresses of served devices.
    pub const DEVICE_IPS: &str = "device_ips";
    /// LRU hash [`crate::masquerade::Key`] to [`crate::masquerade::Half`]: established flows.
    pub const MASQUERADED: &str = "masqueraded";
    /// The same, of flows that open, close, or were never answered, and ports that are held.
    pub const MASQUERADED_YOUNG: &str = "masqueraded_new";
    /// Array by port of a byte for each [`crate::masquerade::plane`]: not 0 if a flow ever had the port.
    pub const MASQUERADE_MARKS: &str = "masquerade_mark";
}

/// Programs that a hook's program hands a packet on to, with a stack of their own: what is not the
/// business of every packet of an established flow.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// From a device: opens flows, and knows extension headers.
    DeviceFirst = 0,
    /// From a container's link: replies, and what else it sends.
    LinkFirst = 1,
    /// The same for what leaves by a device.
    EgressFirst = 2,
    /// From a device: ICMP errors.
    DeviceError = 3,
    /// The same from a container's link.
    LinkError = 4,
    /// The same for what leaves by a device.
    EgressError = 5,
    /// For what leaves by a device: from a container, under an address of the host.
    MasqueradeOut = 6,
    /// From a device: answers to that.
    MasqueradeIn = 7,
    /// For what leaves by a device: ICMP errors about what was let in under an address of the host.
    MasqueradeOutError = 8,
    /// From a device: ICMP errors about what left under an address of the host.
    MasqueradeInError = 9,
    /// From a container's link: to a published port.
    LinkRequest = 10,
    /// From a device: fragments, and extension headers. What is not to wait goes on to the first stage.
    DeviceFragment = 11,
    /// From a container's link: replies that the way out has no room for.
    LinkTooBig = 12,
    /// Looks for a connection through a forward that drains, and hands the packet back to the stage that asks.
    Drain = 13,
}

impl Stage {
    /// Every stage.
    pub const ALL: [Self; 14] = [
        Self::DeviceFirst,
        Self::LinkFirst,
        Self::EgressFirst,
        Self::DeviceError,
        Self::LinkError,
        Self::EgressError,
        Self::MasqueradeOut,
        Self::MasqueradeIn,
        Self::MasqueradeOutError,
        Self::MasqueradeInError,
        Self::LinkRequest,
        Self::DeviceFragment,
        Self::LinkTooBig,
        Self::Drain,
    ];
    /// Name of the program, which is also that of its pin.
    pub const fn program(self) -> &'static str {
        match self {
            Self::DeviceFirst => "tc_device_first",
            Self::LinkFirst => "tc_link_first",
            Self::EgressFirst => "tc_egress_first",
            Self::DeviceError => "tc_device_error",
            Self::LinkError => "tc_link_error",
            Self::EgressError => "tc_egress_error",
            Self::MasqueradeOut => "tc_masquerade_out",
            Self::MasqueradeIn => "tc_masquerade_in",
            Self::MasqueradeOutError => "tc_masquerade_out_error",
            Self::MasqueradeInError => "tc_masquerade_in_error",
            Self::LinkRequest => "tc_link_request",
            Self::DeviceFragment => "tc_device_fragment",
            Self::LinkTooBig => "tc_link_too_big",
            Self::Drain => "tc_drain",
        }
    }
    /// The same where packets have no Ethernet header; none for containers' links, which have frames.
    pub const fn program_l3(self) -> Option<&'static str> {
        match self {
            Self::DeviceFirst => Some("tc_device_first_l3"),
            Self::DeviceFragment => Some("tc_device_fragment_l3"),
            Self::EgressFirst => Some("tc_egress_first_l3"),
            Self::DeviceError => Some("tc_device_error_l3"),
            Self::EgressError => Some("tc_egress_error_l3"),
            Self::MasqueradeOut => Some("tc_masquerade_out_l3"),
            Self::MasqueradeIn => Some("tc_masquerade_in_l3"),
            Self::MasqueradeOutError => Some("tc_masquerade_out_error_l3"),
            Self::MasqueradeInError => Some("tc_masquerade_in_error_l3"),
            Self::Drain => Some("tc_drain_l3"),
            Self::LinkFirst | Self::LinkRequest | Self::LinkError | Self::LinkTooBig => None,
        }
    }
    /// The place of [`Self::program`], or with `l3` of [`Self::program_l3`].
    pub const fn place(self, l3: bool) -> u32 {
        let first = if l3 { MAX_STAGES / 2 } else { 0 };
        first + self as u32
    }
}

/// Length of the table of stages; some places are for later ones.
pub const MAX_STAGES: u32 = 32;

/// Names of the programs, which are also the names of their pins.
pub mod programs {
    /// TC ingress of a device on which the host owns an address.
    pub const TC_DEVICE: &str = "tc_device";
    /// The same where packets have no Ethernet header.
    pub const TC_DEVICE_L3: &str = "tc_device_l3";
    /// TC ingress of an attached container's host-side link.
    pub const TC_LINK: &str = "tc_link";
    /// TC egress of a device: replies of flows that go through the stack.
    pub const TC_EGRESS: &str = "tc_egress";
    /// The same where packets have no Ethernet header.
    pub const TC_EGRESS_L3: &str = "tc_egress_l3";
    /// TC ingress of a device inside a container, for services on its loopback address.
    pub const TC_LOOPBACK: &str = "tc_loopback";
    /// The same where packets have no Ethernet header.
    pub const TC_LOOPBACK_L3: &str = "tc_loopback_l3";
    /// XDP of a device.
    pub const XDP_DEVICE: &str = "xdp_device";
    /// The programs of the root cgroup for calls with an address.
    pub const SOCKET: [&str; 8] = [
        "connect4",
        "connect6",
        "sendmsg4",
        "sendmsg6",
        "recvmsg4",
        "recvmsg6",
        "getpeername4",
        "getpeername6",
    ];
    /// The programs of the root cgroup for sockets that are bound.
    pub const BIND: [&str; 2] = ["bind4", "bind6"];
    /// The program of the root cgroup for sockets that are closed.
    pub const SOCKET_RELEASE: &str = "sock_release";
}
