//! Handing a translated packet on.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::bpf_redir_neigh,
    helpers::{bpf_redirect_neigh, bpf_redirect_peer},
};
use portfwd_common::flow::{Flow, FlowKey, Reply};

use crate::{
    family::Family,
    fib::{self, Ends},
    flow::{self, Live},
    forward,
    packet::{Hook, Tc},
    parse::Packet,
    verdict::Verdict,
};

/// `struct bpf_redir_neigh` (linux/bpf.h), which begins at `family`: so the address is stored in whole words.
#[repr(C)]
struct Neighbour {
    padding: u32,
    family: u32,
    next_hop: [u64; 2],
}

const _: () =
    assert!(size_of::<Neighbour>() - offset_of!(Neighbour, family) == size_of::<bpf_redir_neigh>());

/// Into the container, past the stack of the host.
#[inline(always)]
pub fn to_container(hook: &Tc, link: u32) -> Verdict {
    hook.address_to_host();
    // What the container's device gives to programs and captures in the container begins with a frame.
    if !hook.has_frame()
        && let Err(reason) = hook.make_frame()
    {
        return Verdict::drop(reason, 0);
    }
    // SAFETY: the helper only notes the index.
    Verdict::redirected(unsafe { bpf_redirect_peer(link, 0) })
}

/// Asks for the way out of replies of a flow, once a second and after a transaction. `device_of` gives the device that
/// routes for the container's link.
#[inline(always)]
pub fn refresh_route<A: Family>(
    hook: &Tc,
    key: &FlowKey<A>,
    live: &Live<A>,
    device_of: impl FnOnce(u32) -> u32,
) {
    let flow = live.flow();
    if !flow::is_led(flow, key, live.now) {
        let device = device_of(flow.link);
        let route = fib::route(hook, device, &ends(key, flow), flow.ingress);
        // Asked before it is asked whether the forward serves it: that may end meanwhile.
        if let Some(transaction) = forward::committed()
            && live.is_served()
        {
            live.lead(key, route, transaction);
        }
    }
}

/// The ends of a flow's replies once they are translated.
#[inline(always)]
pub fn ends<A: Family>(key: &FlowKey<A>, flow: &Flow<A>) -> Ends<A> {
    Ends {
        source: flow.reply.host,
        source_port: flow.reply.host_port,
        destination: key.client,
        destination_port: flow.reply.client_port,
        protocol: key.protocol as u8,
    }
}

/// Whether a device that takes `mtu` bytes takes the packet, or each of the packets that it is cut into.
#[inline(always)]
pub fn fits<A: Family>(hook: &Tc, packet: &Packet<A>, mtu: u32) -> bool {
    if packet.length <= mtu as u64 {
        return true;
    }
    let segment = hook.segment();
    let headers = (packet.network.transport - hook.network()) as u32 + packet.header;
    segment != 0 && segment + headers <= mtu
}

/// A reply's way out, past the stack of the host.
#[inline(always)]
pub fn to_client<A: Family>(reply: &Reply<A>) -> Verdict {
    // SAFETY: the helper copies the neighbour, of the size that is passed.
    let action = unsafe {
        if reply.has_next_hop != 0 {
            let mut neighbour = Neighbour {
                padding: 0,
                family: A::AF as u32,
                next_hop: reply.next_hop.halves(),
            };
            let begin = (&raw mut neighbour.family).cast();
            let size = size_of::<bpf_redir_neigh>() as i32;
            bpf_redirect_neigh(reply.device, begin, size, 0)
        } else {
            bpf_redirect_neigh(reply.device, core::ptr::null_mut(), 0, 0)
        }
    };
    Verdict::redirected(action)
}
