//! What a process of the host binds: a published port is taken, although no socket holds it.
//!
//! Only a port that a process names is looked at: what the kernel chooses itself (port 0, `connect` without
//! `bind`) stays as it is.

use core::ffi::c_void;

use aya_ebpf::{
    helpers::{bpf_for_each_map_elem, bpf_set_retval},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use portfwd_common::{
    forward::{AddressPort, CLAIM_LIFETIME, PortSlot},
    net::{Address, Ip, NetPort, Protocol, V4, V6},
};

use crate::{
    clock, forward,
    maps::{ADDRESS_PORTS, FORWARDS, JOURNAL},
    socket::{ALLOW, Argument, Call},
};

const EADDRINUSE: i32 = 98;
/// The call fails.
const DENY: i32 = 0;

/// Lets a socket of family `A` have the port that it names, unless it is published.
#[inline(always)]
fn bind<A: Argument>(context: &SockAddrContext) -> i32 {
    let Some(call) = Call::of_host(context) else {
        return ALLOW;
    };
    let port = call.port();
    let Some(protocol) = call.protocol().filter(|_| port.wire() != 0) else {
        return ALLOW;
    };
    let address = A::read(&call).ip();
    let taken = if address == Ip::NONE {
        // Of IPv6, and of IPv4 as well: that the socket is limited to IPv6 no program is told.
        is_taken::<V6>(protocol, address, port) || is_taken::<V4>(protocol, address, port)
    } else if address.is_v4() {
        is_taken::<V4>(protocol, address, port)
    } else {
        is_taken::<V6>(protocol, address, port)
    };
    if !taken {
        return ALLOW;
    }
    // SAFETY: takes a number and touches nothing else.
    unsafe { bpf_set_retval(-EADDRINUSE) };
    DENY
}

/// Whether a forward of family `A` has the port on `address`, which may be the unspecified one.
#[inline(always)]
fn is_taken<A: Address>(protocol: Protocol, address: Ip, port: NetPort) -> bool {
    let slot = forward::slot::<A>(protocol, port);
    // Nothing is published for multicast, which any number of sockets may receive.
    if slot.is_empty() || A::from_ip(address).is_multicast() {
        return false;
    }
    if slot.index() != 0 && is_claimed(slot, port) {
        return true;
    }
    if !slot.has(PortSlot::BY_ADDRESS | PortSlot::BY_BLOCK) {
        return false;
    }
    if address.is_unspecified() {
        return is_bound_somewhere::<A>(protocol, port);
    }
    let key = AddressPort::new(address, port, protocol);
    is_bound(&key, port) || is_bound(&key.block(), port)
}

/// Whether the element of `key` leads to a forward that has `port`.
#[inline(always)]
fn is_bound(key: &AddressPort, port: NetPort) -> bool {
    // SAFETY: the loader replaces elements whole.
    unsafe { ADDRESS_PORTS.get(key) }.is_some_and(|bound| is_claimed(*bound, port))
}

/// Whether the slot of `port` leads to a forward, or will once the transaction that is just being written has taken place.
#[inline(always)]
fn is_claimed(slot: PortSlot, port: NetPort) -> bool {
    if forward::committed()
        .is_some_and(|committed| forward::of_slot(committed, slot, port).is_some())
    {
        return true;
    }
    let (Some(record), Some(journal)) = (FORWARDS.get(slot.index()), JOURNAL.get_ptr(0)) else {
        return false;
    };
    // SAFETY: as in `forward::seen_by`.
    let (generation, since, until, open, claimed) = unsafe {
        (
            core::ptr::read_volatile(&raw const record.generation),
            core::ptr::read_volatile(&raw const record.since),
            core::ptr::read_volatile(&raw const record.until),
            core::ptr::read_volatile(&raw const (*journal).open),
            core::ptr::read_volatile(&raw const (*journal).claimed),
        )
    };
    let is_of_open = since == open && until > open;
    let age = clock::now().wrapping_sub(claimed as u32);
    generation == slot.generation && is_of_open && claimed != 0 && age < CLAIM_LIFETIME
}

/// What is looked for among the forwards of single addresses.
#[repr(C)]
struct Sought {
    protocol: u32,
    port: u32,
    is_v4: u32,
    is_found: u32,
}

/// Whether some address of family `A` has the port. They are few that have ports of their own, and this is no
/// packet.
#[inline(always)]
fn is_bound_somewhere<A: Address>(protocol: Protocol, port: NetPort) -> bool {
    let mut sought = Sought {
        protocol: protocol.number() as u32,
        port: port.get() as u32,
        is_v4: (A::FAMILY == V4::FAMILY) as u32,
        is_found: 0,
    };
    // SAFETY: the callback has the signature that the kernel wants; what it gets is on this stack.
    unsafe {
        bpf_for_each_map_elem(
            (&raw const ADDRESS_PORTS).cast_mut().cast(),
            compare as *mut c_void,
            (&raw mut sought).cast(),
            0,
        );
        core::ptr::read_volatile(&raw const sought.is_found) != 0
    }
}

/// Compares one element with what is sought. 1 ends the search.
extern "C" fn compare(
    _map: *mut c_void,
    key: *const AddressPort,
    slot: *const PortSlot,
    sought: *mut Sought,
) -> i64 {
    // SAFETY: as `bpf_for_each_map_elem` passes them.
    unsafe {
        let (key, sought) = (&*key, &mut *sought);
        let port = NetPort::new(sought.port as u16);
        let is_same = key.protocol as u32 == sought.protocol
            && key.has(port)
            && key.address.is_v4() as u32 == sought.is_v4;
        if is_same && is_claimed(*slot, port) {
            sought.is_found = 1;
            return 1;
        }
    }
    0
}

#[cgroup_sock_addr(bind4)]
pub fn bind4(context: SockAddrContext) -> i32 {
    bind::<V4>(&context)
}
#[cgroup_sock_addr(bind6)]
pub fn bind6(context: SockAddrContext) -> i32 {
    bind::<V6>(&context)
}
