//! Handing a translated packet on.

use aya_ebpf::{
    bindings::bpf_redir_neigh,
    helpers::{bpf_redirect_neigh, bpf_redirect_peer},
};
use portfwd_common::flow::{Flow, FlowKey, Route};

use crate::{
    family::Family,
    fib::{self, Ends},
    flow::{self, Live},
    packet::{Hook, Tc},
    parse::Packet,
    verdict::Verdict,
};

/// `struct bpf_redir_neigh` (linux/bpf.h) without its union.
#[repr(C)]
struct Neighbour {
    family: u32,
    next_hop: [u32; 4],
}

const _: () = assert!(size_of::<Neighbour>() == size_of::<bpf_redir_neigh>());

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

/// Asks for the way out of replies of a flow, at most once a second. `device_of` gives the device that
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
        let route = fib::route(hook, device, &ends(key, flow), flow.ingress, live.now);
        live.lead(key, route);
    }
}

/// The ends of a flow's replies once they are translated.
#[inline(always)]
pub fn ends<A: Family>(key: &FlowKey<A>, flow: &Flow<A>) -> Ends<A> {
    Ends {
        source: flow.host,
        source_port: flow.host_port,
        destination: key.client,
        destination_port: flow.client_port,
        protocol: key.protocol as u8,
    }
}

/// Whether the device of `route` takes the packet, or each of the packets that it is cut into.
#[inline(always)]
pub fn fits<A: Family>(hook: &Tc, packet: &Packet<A>, route: &Route<A>) -> bool {
    if packet.length <= route.mtu as u64 {
        return true;
    }
    let segment = hook.segment();
    let headers = (packet.network.transport - hook.network()) as u32 + packet.header;
    segment != 0 && segment + headers <= route.mtu
}

/// Out by `route`, past the stack of the host.
#[inline(always)]
pub fn to_client<A: Family>(route: &Route<A>) -> Verdict {
    // SAFETY: the helper copies the neighbour, of the size that is passed.
    let action = unsafe {
        if route.has_next_hop != 0 {
            let [high, low] = route.next_hop.halves();
            let next_hop = [
                high as u32,
                (high >> 32) as u32,
                low as u32,
                (low >> 32) as u32,
            ];
            let mut neighbour = Neighbour {
                family: A::AF as u32,
                next_hop,
            };
            let size = size_of::<Neighbour>() as i32;
            bpf_redirect_neigh(route.device, (&raw mut neighbour).cast(), size, 0)
        } else {
            bpf_redirect_neigh(route.device, core::ptr::null_mut(), 0, 0)
        }
    };
    Verdict::redirected(action)
}
