//! From a destination to the forward that publishes it, and what must hold before it opens a flow.

use aya_ebpf::{
    bindings::{BPF_F_CURRENT_NETNS, bpf_sock_tuple},
    helpers::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
};
use portfwd_common::{
    forward::{AddressPort, Counters, Forward, PortSlot, is_visible, port_index},
    host::{Device, HOST_DATAGRAM_LIFETIME, HostDatagram},
    masquerade::Key,
    net::{Address, Ip, NetPort, Protocol, V4, V6},
    verdict::Reason,
};

use crate::{
    clock,
    family::Family,
    fib,
    maps::{
        ADDRESS_PORTS, COUNTERS, DEVICES, FORWARDS, HOST_ADDRESSES, HOST_DATAGRAMS, JOURNAL, PORTS,
    },
    packet::{Hook, Tc},
    parse::Packet,
};

/// TCP states of a socket that does not own the connection (net/tcp_states.h).
const TCP_TIME_WAIT: u32 = 6;
pub const TCP_LISTEN: u32 = 10;

/// A forward that packets see.
#[derive(Clone, Copy)]
pub struct Published {
    pub index: u32,
    pub generation: u32,
    pub record: &'static Forward,
}

impl Published {
    /// Whether the record is still the one that was found: asked after its other fields have been read,
    /// because the loader changes the generation before it fills the record anew.
    #[inline(always)]
    pub fn is_unchanged(&self) -> bool {
        // SAFETY: an aligned word of a map.
        unsafe { core::ptr::read_volatile(&raw const self.record.generation) == self.generation }
    }
}

/// What the port table says of a port of family `A`.
#[inline(always)]
pub fn slot<A: Address>(protocol: Protocol, port: NetPort) -> PortSlot {
    match PORTS.get_ptr(port_index(A::FAMILY, protocol, port)) {
        // SAFETY: the loader stores the eight bytes at once.
        Some(bits) => PortSlot::from_bits(unsafe { core::ptr::read_volatile(bits) }),
        None => PortSlot::from_bits(0),
    }
}

/// The forward that publishes `address` and `port`, given the port's slot.
#[inline(always)]
pub fn published<A: Address>(
    slot: PortSlot,
    protocol: Protocol,
    address: A,
    port: NetPort,
) -> Option<Published> {
    // Read once: with a commit in between neither of two that take turns would be seen.
    let committed = committed()?;
    if slot.index() != 0
        && let Some(wildcard) = of_slot(committed, slot, port)
    {
        return Some(wildcard);
    }
    let key = AddressPort::new(address.ip(), port, protocol);
    if slot.has(PortSlot::BY_ADDRESS)
        && let Some(bound) = bound(committed, &key, port)
    {
        return Some(bound);
    }
    if !slot.has(PortSlot::BY_BLOCK) {
        return None;
    }
    bound(committed, &key.block(), port)
}

/// The forward that the element of `key` leads to.
#[inline(always)]
fn bound(committed: u64, key: &AddressPort, port: NetPort) -> Option<Published> {
    // SAFETY: the loader replaces elements whole.
    let slot = unsafe { ADDRESS_PORTS.get(key) }?;
    of_slot(committed, *slot, port)
}

/// The forward that the slot of `port` leads to as of transaction `committed`: its own, or until that is seen, the one
/// which it follows, if that has the port.
#[inline(always)]
pub fn of_slot(committed: u64, slot: PortSlot, port: NetPort) -> Option<Published> {
    if let Some(own) = seen_by(committed, slot.index(), slot.generation) {
        return Some(own);
    }
    let former = former(slot.index(), slot.generation)?;
    let former = seen_by(committed, former.index(), former.generation)?;
    (former.record.has(port) && former.is_unchanged()).then_some(former)
}

/// The forward that the one at `index` follows at its ports, if that is the one of `generation`.
#[inline(always)]
pub fn former(index: u32, generation: u32) -> Option<PortSlot> {
    let record = FORWARDS.get(index)?;
    // SAFETY: aligned words of a map. The generation comes last: see `is_unchanged`.
    let (former, seen) = unsafe {
        (
            core::ptr::read_volatile((&raw const record.former).cast()),
            core::ptr::read_volatile(&raw const record.generation),
        )
    };
    let former = PortSlot::from_bits(former);
    (seen == generation && former.index() != 0).then_some(former)
}

/// The last transaction.
#[inline(always)]
pub fn committed() -> Option<u64> {
    // SAFETY: an aligned word of a map that lives as long as the program; volatile, because the loader writes it
    // at any time.
    JOURNAL
        .get_ptr(0)
        .map(|journal| unsafe { core::ptr::read_volatile(&raw const (*journal).committed) })
}

/// The forward at `index`, if it is the one of that generation and `committed`, the last transaction, shows it.
#[inline(always)]
fn seen_by(committed: u64, index: u32, generation: u32) -> Option<Published> {
    let record = FORWARDS.get(index)?;
    // SAFETY: aligned words of a map that lives as long as the program; volatile, because the loader
    // writes them at any time.
    let (seen, since, until) = unsafe {
        (
            core::ptr::read_volatile(&raw const record.generation),
            core::ptr::read_volatile(&raw const record.since),
            core::ptr::read_volatile(&raw const record.until),
        )
    };
    let is_visible = is_visible(since, until, committed);
    (seen == generation && is_visible).then_some(Published {
        index,
        generation,
        record,
    })
}

/// The forward at `index`, if it is the one of that generation and flows live that it has opened: it still does,
/// or it drains.
#[inline(always)]
pub fn serving(index: u32, generation: u32) -> Option<Published> {
    let committed = committed()?;
    if let Some(opens) = seen_by(committed, index, generation) {
        return Some(opens);
    }
    let record = FORWARDS.get(index)?;
    // SAFETY: as above.
    let (seen, since, ended, drained) = unsafe {
        (
            core::ptr::read_volatile(&raw const record.generation),
            core::ptr::read_volatile(&raw const record.since),
            core::ptr::read_volatile(&raw const record.ended),
            core::ptr::read_volatile(&raw const record.drained),
        )
    };
    let drains = is_visible(since, ended, committed) && (clock::now() as u64) < drained;
    (seen == generation && drains).then_some(Published {
        index,
        generation,
        record,
    })
}

/// Whether `packet`, addressed to the host, may open a flow through a forward.
#[inline(always)]
pub fn admits<H: Hook, A: Family>(hook: &H, packet: &Packet<A>) -> Result<(), Reason> {
    let destination = packet.network.destination;
    if !is_host_address(destination) {
        return Err(Reason::NotForHost);
    }
    if packet.protocol != Protocol::Udp && !packet.flags.opens() {
        return Err(Reason::NoFlow);
    }
    let source = packet.network.source;
    if source.is_impossible_source() || is_host_address(source) {
        return Err(Reason::ImpossibleSource);
    }
    // The table of host addresses is as old as the last command. If the FIB would send the packet on,
    // the address has moved away since.
    if fib::leads_elsewhere(hook, packet) {
        return Err(Reason::NotForHost);
    }
    if host_owns(hook, packet) {
        Err(Reason::HostSocket)
    } else {
        Ok(())
    }
}

/// Whether the host would take the packet's source for one behind the device that it came in by. The stack
/// checks so what is passed to it (`fib_validate_source`), IPv4 alone. A container's link has a stricter rule.
#[inline(always)]
pub fn fits_reverse_path<H: Hook, A: Family>(hook: &H, packet: &Packet<A>) -> bool {
    if A::FAMILY != V4::FAMILY {
        return true;
    }
    // SAFETY: the loader replaces elements whole.
    let Some(device) = (unsafe { DEVICES.get(&hook.device()) }) else {
        return true;
    };
    if device.source_check == 0 {
        return true;
    }
    match fib::way_back(hook, packet) {
        fib::NO_WAY => false,
        fib::UNTOLD => true,
        _ if device.source_check != Device::STRICTLY => true,
        out if out == hook.device() => true,
        // SAFETY: as above.
        out => unsafe { DEVICES.get(&out) }.is_some_and(|other| device.shares_routes_with(other)),
    }
}

/// Whether the address is one of the host's own, as of the last command.
#[inline(always)]
pub fn is_host_address<A: Address>(address: A) -> bool {
    is_host_ip(&address.ip())
}

/// The same of an address of either family.
#[inline(always)]
pub fn is_host_ip(ip: &Ip) -> bool {
    // SAFETY: only the presence counts.
    unsafe { HOST_ADDRESSES.get(ip) }.is_some()
}

/// Whether a socket of the host owns the connection that `packet` belongs to: then it keeps it, although
/// its port is published.
#[inline(always)]
pub fn host_owns<H: Hook, A: Family>(hook: &H, packet: &Packet<A>) -> bool {
    // The kernel has no lookup of SCTP sockets for programs.
    if packet.protocol == Protocol::Sctp {
        return false;
    }
    let mut tuple = socket_tuple(
        (packet.network.source, packet.source_port),
        (packet.network.destination, packet.destination_port),
    );
    let tuple: *mut bpf_sock_tuple = (&raw mut tuple).cast();
    let (context, netns) = (hook.context(), BPF_F_CURRENT_NETNS as u64);
    // SAFETY: context and tuple are live, and the size is the family's. The two helpers return different
    // types of pointers, so the verifier wants the branches apart; both are released.
    unsafe {
        if packet.protocol == Protocol::Tcp {
            let socket = bpf_skc_lookup_tcp(context, tuple, A::SOCKET_TUPLE, netns, 0);
            if socket.is_null() {
                return false;
            }
            let state = (*socket).state;
            bpf_sk_release(socket.cast());
            state != TCP_LISTEN && state != TCP_TIME_WAIT
        } else {
            let socket = bpf_sk_lookup_udp(context, tuple, A::SOCKET_TUPLE, netns, 0);
            if !socket.is_null() {
                // The lookup prefers a connected socket, and only one connected to this very client.
                let connected = (*socket).dst_port != 0;
                bpf_sk_release(socket.cast());
                if connected {
                    return true;
                }
            }
            asked_by_host(packet)
        }
    }
}

/// Whether a socket of the host has the end that packets of `key` go to, toward where they come from or
/// toward everybody.
#[inline(always)]
pub fn host_has(hook: &Tc, key: &Key) -> bool {
    let (far, own) = (
        (key.source, key.source_port),
        (key.destination, key.destination_port),
    );
    let v4 = |(ip, port): (Ip, NetPort)| (V4::from_ip(ip), port);
    let v6 = |(ip, port): (Ip, NetPort)| (V6::from_ip(ip), port);
    let (mut tuple, length) = match key.source.is_v4() {
        true => (socket_tuple(v4(far), v4(own)), V4::SOCKET_TUPLE),
        false => (socket_tuple(v6(far), v6(own)), V6::SOCKET_TUPLE),
    };
    let tuple: *mut bpf_sock_tuple = (&raw mut tuple).cast();
    let (context, netns) = (hook.context(), BPF_F_CURRENT_NETNS as u64);
    // SAFETY: as in `host_owns`.
    unsafe {
        if key.protocol() == Protocol::Tcp.number() {
            let socket = bpf_skc_lookup_tcp(context, tuple, length, netns, 0);
            if socket.is_null() {
                return false;
            }
            bpf_sk_release(socket.cast());
        } else {
            let socket = bpf_sk_lookup_udp(context, tuple, length, netns, 0);
            if socket.is_null() {
                return false;
            }
            bpf_sk_release(socket.cast());
        }
        true
    }
}

/// Sender and receiver as the lookups of sockets take them: `struct bpf_sock_tuple`, of which they read
/// [`Family::SOCKET_TUPLE`] bytes.
#[inline(always)]
pub fn socket_tuple<A: Family>(
    (source, source_port): (A, NetPort),
    (destination, destination_port): (A, NetPort),
) -> [u64; 5] {
    let ([a, b], [c, d]) = (source.halves(), destination.halves());
    let ports = source_port.wire() as u64 | (destination_port.wire() as u64) << 16;
    // See `fib::ask` for the zero.
    let zero = core::hint::black_box(0);
    if A::FAMILY == 0 {
        [a | c << 32, ports, zero, zero, zero]
    } else {
        [a, b, c, d, ports]
    }
}

/// Whether an unconnected UDP socket, bound to the packet's destination or to no address, has lately sent
/// to where the packet comes from.
#[inline(always)]
fn asked_by_host<A: Family>(packet: &Packet<A>) -> bool {
    let lately = |key: &HostDatagram| match HOST_DATAGRAMS.get_ptr(key) {
        // SAFETY: an aligned word of the element.
        Some(seen) => clock::now().wrapping_sub(unsafe { *seen }) < HOST_DATAGRAM_LIFETIME,
        None => false,
    };
    let mut key = HostDatagram::new(
        packet.network.destination.ip(),
        packet.destination_port,
        packet.network.source.ip(),
        packet.source_port,
    );
    if lately(&key) {
        return true;
    }
    // See `fib::ask` for the zero.
    let zero = core::hint::black_box(0);
    key.local = V6(zero, zero).ip();
    lately(&key)
}

/// Which way a packet goes through a forward.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    ToContainer,
    ToClient,
}

/// Counts a translated packet of `bytes`.
#[inline(always)]
pub fn count_packet(index: u32, way: Way, bytes: u64) {
    if let Some(counters) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: this CPU's own element.
        unsafe {
            if way == Way::ToContainer {
                (*counters).rx_packets += 1;
                (*counters).rx_bytes += bytes;
            } else {
                (*counters).tx_packets += 1;
                (*counters).tx_bytes += bytes;
            }
        }
    }
}

/// Counts an opened flow or a host socket's connection.
#[inline(always)]
pub fn count_connection(index: u32) {
    if let Some(counters) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: this CPU's own element.
        unsafe { (*counters).connections += 1 };
    }
}

/// Counts a packet dropped on the forward's account, for the reason of that number.
#[inline(always)]
pub fn count_drop(index: u32, reason: u32) {
    if let Some(counters) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: this CPU's own element.
        unsafe {
            (*counters).drops += 1;
            (*counters).last_drop = Counters::drop(clock::now(), reason);
        }
    }
}
