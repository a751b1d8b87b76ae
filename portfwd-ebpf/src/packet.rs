//! Access to packets, the same for every hook: the only file that loads from and stores to them.

use aya_ebpf::{
    EbpfContext,
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, xdp_md},
    cty::c_void,
    helpers::{
        bpf_csum_update, bpf_l4_csum_replace, bpf_skb_change_head, bpf_skb_change_type,
        bpf_skb_pull_data, bpf_skb_store_bytes,
    },
    programs::{TcContext, XdpContext},
};
use portfwd_common::{
    checksum,
    net::{Protocol, V4, V6},
    verdict::Reason,
};

use crate::{family::Family, maps::DEVICES};

/// Length of an Ethernet header.
const ETHERNET: usize = 14;
/// More than this is not read of a plain packet: Ethernet, an IPv4 header with all options, a TCP header
/// without.
const MAX_HEADERS: u64 = 14 + 60 + 20;
/// More than this is never read: extension headers, or an ICMP error and the headers that it quotes.
pub const MAX_EXTENDED_HEADERS: u64 = 512;
/// Bits of a tag that number the VLAN (IEEE 802.1Q, 9.6).
const VLAN_ID: u32 = 0xfff;
/// `PACKET_HOST` of linux/if_packet.h: the frame was addressed to the device it came in by.
const PACKET_HOST: u32 = 0;

/// A packet at a hook.
pub trait Hook {
    /// The program's context, as helpers take it.
    fn context(&self) -> *mut c_void;
    /// Address of the first byte.
    fn data(&self) -> usize;
    /// Address behind the last byte that can be read directly.
    fn data_end(&self) -> usize;
    /// Offset of the IP header: the length of the Ethernet header in front of it, or 0 where the device
    /// carries none. Each program knows it when it is compiled.
    fn network(&self) -> usize;
    /// EtherType of the packet, in network order.
    fn ether_type(&self) -> Option<u16>;
    /// Length of the whole packet in bytes, with the Ethernet header.
    /// Wide, because LLVM would compute a narrow one of XDP from halves of pointers.
    fn len(&self) -> u64;
    /// Moves the headers of a plain packet to where they can be read directly. Ends every pointer into
    /// the packet.
    fn pull_headers(&self);
    /// Interface index of the device that it came in by.
    fn device(&self) -> u32;
    /// Whether the frame carries a VLAN tag beside its bytes: then it belongs to another device. That of
    /// VLAN 0 only gives a priority.
    fn is_tagged(&self) -> bool;
    /// Whether the frame was addressed to this host's device.
    fn is_for_host(&self) -> bool;
    /// Bytes of payload of each packet that this one is going to be cut into; 0 if it stays whole.
    fn segment(&self) -> u32;
    /// Updates the checksum of the transport header for changed addresses, which its pseudo-header
    /// covers, and changed ports. Ends every pointer into the packet.
    fn update_checksum(
        &self,
        field: usize,
        protocol: Protocol,
        change: Change,
    ) -> Result<(), Reason>;
    /// Accounts for changes of bytes that no checksum within the packet covers, where the device has
    /// summed up the whole packet (`CHECKSUM_COMPLETE`).
    fn uncovered_change(&self, difference: u32);

    /// A typed pointer to the bytes at `offset`, if they can be read directly. Void after anything that
    /// moves the packet.
    #[inline(always)]
    fn at<T>(&self, offset: usize) -> Option<*mut T> {
        let start = self.data() + offset;
        if start + size_of::<T>() > self.data_end() {
            return None;
        }
        Some(start as *mut T)
    }
    /// The bytes at `offset`. Packets are not aligned to anything; eBPF programs do not mind.
    #[inline(always)]
    fn load<T: Copy>(&self, offset: usize) -> Option<T> {
        // SAFETY: in bounds by `at`, which the verifier proves again.
        self.at::<T>(offset).map(|bytes| unsafe { *bytes })
    }
}

/// What a translation changes, as one's complement differences ([`checksum::difference`]).
#[derive(Clone, Copy)]
pub struct Change {
    /// Of the addresses.
    pub addresses: u32,
    /// Of the ports.
    pub ports: u32,
}

/// Reads a field of the context once, in place: LLVM otherwise hoists it and the verifier loses track
/// of packet pointers.
macro_rules! field {
    ($context:expr, $name:ident) => {
        // SAFETY: the context outlives the program.
        unsafe { core::ptr::read_volatile(&raw const (*$context).$name) }
    };
}

/// A packet at a TC hook.
pub struct Tc {
    context: *mut __sk_buff,
    network: usize,
}

impl Tc {
    /// At a device that carries Ethernet frames.
    #[inline(always)]
    pub fn new(context: &TcContext) -> Self {
        Self {
            context: context.skb.skb,
            network: ETHERNET,
        }
    }
    /// At a device that carries IP packets without anything in front (`dev_is_mac_header_xmit`): tun,
    /// WireGuard, PPP, IP tunnels.
    #[inline(always)]
    pub fn without_frame(context: &TcContext) -> Self {
        Self {
            context: context.skb.skb,
            network: 0,
        }
    }
    /// Whether the packet is a frame.
    #[inline(always)]
    pub fn has_frame(&self) -> bool {
        self.network != 0
    }
    /// Makes a frame of a packet that is none, as devices with Ethernet addresses take it. The addresses
    /// stay 0. Ends every pointer into the packet; nothing can be read of it afterwards.
    #[inline(always)]
    pub fn make_frame(&self) -> Result<(), Reason> {
        let Some(ether_type) = self.ether_type() else {
            return Err(Reason::RewriteFailed);
        };
        let length = size_of::<u16>() as u32;
        let at = (ETHERNET - size_of::<u16>()) as u32;
        // SAFETY: a live context; the second helper reads `length` bytes of a live variable.
        let failed = unsafe {
            bpf_skb_change_head(self.context, ETHERNET as u32, 0) != 0
                || bpf_skb_store_bytes(
                    self.context.cast(),
                    at,
                    (&raw const ether_type).cast(),
                    length,
                    0,
                ) != 0
        };
        if failed {
            Err(Reason::RewriteFailed)
        } else {
            Ok(())
        }
    }
    /// Makes the stack take the packet for its own, although the frame's destination was another
    /// device's (that of the bridge).
    #[inline(always)]
    pub fn address_to_host(&self) {
        if !self.is_for_host() {
            // SAFETY: a live context; the helper cannot fail for this type.
            unsafe { bpf_skb_change_type(self.context, PACKET_HOST) };
        }
    }
}

impl EbpfContext for Tc {
    fn as_ptr(&self) -> *mut c_void {
        self.context.cast()
    }
}

impl Tc {
    /// The context, to be passed where only numbers can be.
    #[inline(always)]
    pub fn raw(&self) -> *mut __sk_buff {
        self.context
    }
    /// The other way, for helpers that want a context; nothing can be read of such a packet.
    #[inline(always)]
    pub fn from_raw(context: *mut __sk_buff) -> Self {
        Self {
            context,
            network: ETHERNET,
        }
    }
    /// Interface index of the device by which it came into the host; 0 of what the host itself sends.
    #[inline(always)]
    pub fn came_in_by(&self) -> u32 {
        field!(self.context, ingress_ifindex)
    }
    /// Moves all headers that there may be to where they can be read directly. Ends every pointer into
    /// the packet.
    #[inline(always)]
    pub fn pull_extended_headers(&self) {
        let linear = (self.data_end() - self.data()) as u64;
        let wanted = if self.len() < MAX_EXTENDED_HEADERS {
            self.len()
        } else {
            MAX_EXTENDED_HEADERS
        };
        if linear < wanted {
            // SAFETY: a live context. On failure the headers stay out of reach and the packet passes.
            unsafe { bpf_skb_pull_data(self.context, wanted as u32) };
        }
    }
    /// What is read of a TCP packet with an IP header as long as this one's says, Ethernet included.
    #[inline(always)]
    fn told_headers(&self) -> Option<u64> {
        let ether_type = self.ether_type()?;
        // Two bytes, because the verifier learns nothing from a check of the very first one alone.
        let first = u16::from_be(self.load(self.network)?) >> 8;
        let network = self.network as u64;
        Some(match ether_type {
            V4::ETHERTYPE => network + (first as u64 & 0xf) * 4 + 20,
            V6::ETHERTYPE => network + 40 + 20,
            _ => 0,
        })
    }
}

impl Hook for Tc {
    #[inline(always)]
    fn context(&self) -> *mut c_void {
        self.context.cast()
    }
    #[inline(always)]
    fn data(&self) -> usize {
        field!(self.context, data) as usize
    }
    #[inline(always)]
    fn data_end(&self) -> usize {
        field!(self.context, data_end) as usize
    }
    #[inline(always)]
    fn network(&self) -> usize {
        self.network
    }
    #[inline(always)]
    fn ether_type(&self) -> Option<u16> {
        match self.network {
            0 => Some(field!(self.context, protocol) as u16),
            network => self.load(network - size_of::<u16>()),
        }
    }
    #[inline(always)]
    fn len(&self) -> u64 {
        field!(self.context, len) as u64
    }
    #[inline(always)]
    fn pull_headers(&self) {
        let linear = (self.data_end() - self.data()) as u64;
        if linear >= MAX_HEADERS || linear >= self.len() {
            return;
        }
        // Pulling copies, and so must not touch what TCP sends: headers here, and the data in pages.
        let headers = self.told_headers().unwrap_or(MAX_HEADERS);
        if linear < headers {
            let wanted = if self.len() < headers {
                self.len()
            } else {
                headers
            };
            // SAFETY: a live context. On failure the headers stay out of reach and the packet passes.
            unsafe { bpf_skb_pull_data(self.context, wanted as u32) };
        }
    }
    #[inline(always)]
    fn device(&self) -> u32 {
        field!(self.context, ifindex)
    }
    #[inline(always)]
    fn is_tagged(&self) -> bool {
        field!(self.context, vlan_present) != 0 && field!(self.context, vlan_tci) & VLAN_ID != 0
    }
    #[inline(always)]
    fn is_for_host(&self) -> bool {
        field!(self.context, pkt_type) == PACKET_HOST
    }
    #[inline(always)]
    fn segment(&self) -> u32 {
        field!(self.context, gso_size)
    }
    #[inline(always)]
    fn update_checksum(
        &self,
        field: usize,
        protocol: Protocol,
        change: Change,
    ) -> Result<(), Reason> {
        // A UDP checksum of 0 means none (RFC 768), so it stays, and none becomes 0.
        let none = if protocol == Protocol::Udp {
            BPF_F_MARK_MANGLED_0 as u64
        } else {
            0
        };
        // Two calls: of a packet whose sum the device still has to finish, the field holds the
        // pseudo-header's alone, which ports do not belong to.
        // SAFETY: a live context; the helper checks the offset.
        let addresses = unsafe {
            let flags = BPF_F_PSEUDO_HDR as u64 | none;
            bpf_l4_csum_replace(
                self.context,
                field as u32,
                0,
                change.addresses as u64,
                flags,
            )
        };
        let mut ports = 0;
        if change.ports != UNCHANGED {
            // SAFETY: as above.
            ports = unsafe {
                bpf_l4_csum_replace(self.context, field as u32, 0, change.ports as u64, none)
            };
        }
        if addresses != 0 || ports != 0 {
            Err(Reason::RewriteFailed)
        } else {
            Ok(())
        }
    }
    #[inline(always)]
    fn uncovered_change(&self, difference: u32) {
        // SAFETY: a live context. It fails if there is no such sum: nothing is to be done then.
        unsafe { bpf_csum_update(self.context, difference) };
    }
}

/// The difference of words that stay as they are: ~m + m.
pub const UNCHANGED: u32 = 0xffff;

/// A packet at an XDP hook.
pub struct Xdp(*mut xdp_md);

impl Xdp {
    #[inline(always)]
    pub fn new(context: &XdpContext) -> Self {
        Self(context.as_ptr().cast())
    }
}

impl Hook for Xdp {
    #[inline(always)]
    fn context(&self) -> *mut c_void {
        self.0.cast()
    }
    #[inline(always)]
    fn data(&self) -> usize {
        field!(self.0, data) as usize
    }
    #[inline(always)]
    fn data_end(&self) -> usize {
        field!(self.0, data_end) as usize
    }
    #[inline(always)]
    fn network(&self) -> usize {
        ETHERNET
    }
    #[inline(always)]
    fn ether_type(&self) -> Option<u16> {
        self.load(ETHERNET - size_of::<u16>())
    }
    #[inline(always)]
    fn len(&self) -> u64 {
        (self.data_end() - self.data()) as u64
    }
    #[inline(always)]
    fn pull_headers(&self) {}
    #[inline(always)]
    fn device(&self) -> u32 {
        field!(self.0, ingress_ifindex)
    }
    #[inline(always)]
    fn is_tagged(&self) -> bool {
        // A tag is still among the bytes, as an EtherType that is not IP's.
        false
    }
    #[inline(always)]
    fn is_for_host(&self) -> bool {
        let key = self.device();
        // SAFETY: the loader replaces elements whole.
        let Some(device) = (unsafe { DEVICES.get(&key) }) else {
            return false;
        };
        let (Some(high), Some(low)) = (self.load::<u32>(0), self.load::<u16>(4)) else {
            return false;
        };
        device.has_address(high, low)
    }
    #[inline(always)]
    fn segment(&self) -> u32 {
        0
    }
    #[inline(always)]
    fn update_checksum(
        &self,
        field: usize,
        protocol: Protocol,
        change: Change,
    ) -> Result<(), Reason> {
        let Some(sum) = self.at::<u16>(field) else {
            return Err(Reason::RewriteFailed);
        };
        // SAFETY: in bounds by `at`.
        unsafe {
            let old = *sum;
            if protocol == Protocol::Udp && old == 0 {
                return Ok(());
            }
            let new = checksum::update(old, change.addresses + change.ports);
            *sum = if protocol == Protocol::Udp && new == 0 {
                0xffff
            } else {
                new
            };
        }
        Ok(())
    }
    #[inline(always)]
    fn uncovered_change(&self, _difference: u32) {}
}
