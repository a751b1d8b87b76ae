//! Inside a container: connections to a published port reach a service that listens on the container's
//! loopback address alone.
//!
//! Nothing is translated: a connection that has no socket yet is given the listener on 127.0.0.1 or ::1
//! (`bpf_sk_assign`), and from there on belongs to the socket that it becomes. What did not come through
//! a published port is left alone, so that a neighbour of the container reaches nothing more than before.

use aya_ebpf::{
    bindings::{BPF_F_CURRENT_NETNS, bpf_sock, bpf_sock_tuple},
    helpers::{bpf_get_socket_cookie, bpf_sk_assign, bpf_sk_release, bpf_skc_lookup_tcp},
};
use portfwd_common::{
    flow::FlowKey,
    forward::PortSlot,
    host::SocketKey,
    net::{NetPort, Protocol},
};

use crate::{
    family::Family,
    flow,
    forward::{self, TCP_LISTEN},
    maps::HOST_SOCKETS,
    packet::{Hook, Tc},
    parse::{self, Fragment, Network, Ports},
    socket,
    verdict::Verdict,
    way::PacketWay,
};

/// TC ingress of a container's own device.
pub struct Inside;

impl PacketWay<Tc> for Inside {
    #[inline(always)]
    fn go<A: Family>(self, hook: &Tc) -> Verdict {
        let Ok(network) = A::network(hook) else {
            return Verdict::NEXT;
        };
        let Ok(ports) = parse::ports::<Tc, A>(hook, &network) else {
            return Verdict::NEXT;
        };
        if ports.protocol == Protocol::Tcp
            && network.fragment == Fragment::Whole
            && forward::slot::<A>(Protocol::Tcp, ports.destination).has(PortSlot::CONTAINER_SIDE)
        {
            serve(hook, &network, ports);
        }
        Verdict::NEXT
    }
}

/// Gives the packet the listener on the loopback address, if nothing else of the container takes it: a
/// connection that is there, or a listener on the address that it is sent to. Not only SYNs come here:
/// with SYN cookies the listener has to see the ACK as well.
#[inline(always)]
fn serve<A: Family>(hook: &Tc, network: &Network<A>, ports: Ports) {
    let client = (network.source, ports.source);
    let taker = find(hook, client, (network.destination, ports.destination));
    if !taker.is_null() {
        // SAFETY: a reference that the lookup gave.
        unsafe { bpf_sk_release(taker.cast()) };
        return;
    }
    if !is_published(hook, network, ports) {
        return;
    }
    let listener = find(hook, client, (A::LOOPBACK, ports.destination));
    if listener.is_null() {
        return;
    }
    // SAFETY: a reference that the lookup gave, released once. If the kernel does not assign it, the
    // connection is refused.
    unsafe {
        if (*listener).state == TCP_LISTEN {
            bpf_sk_assign(hook.context(), listener.cast(), 0);
        }
        bpf_sk_release(listener.cast());
    }
}

/// The TCP socket of the container that takes packets from `source` to `destination`: a reference to
/// release, or null.
#[inline(always)]
fn find<A: Family>(hook: &Tc, source: (A, NetPort), destination: (A, NetPort)) -> *mut bpf_sock {
    let mut tuple = forward::socket_tuple(source, destination);
    let tuple: *mut bpf_sock_tuple = (&raw mut tuple).cast();
    let netns = BPF_F_CURRENT_NETNS as u64;
    // SAFETY: context and tuple are live, and the size is the family's.
    unsafe { bpf_skc_lookup_tcp(hook.context(), tuple, A::SOCKET_TUPLE, netns, 0) }
}

/// Whether the packet came through a published port whose service may listen on the loopback address.
#[inline(always)]
fn is_published<A: Family>(hook: &Tc, network: &Network<A>, ports: Ports) -> bool {
    let serves = |index: u32, generation: u32| {
        forward::serving(index, generation)
            .is_some_and(|published| published.record.serves_loopback())
    };
    let key = FlowKey::new(
        network.source,
        ports.source,
        network.destination,
        ports.destination,
        network.protocol,
    );
    if let Some(live) = flow::of_key(&key) {
        let flow = live.flow();
        if serves(flow.forward, flow.generation) {
            return true;
        }
    }
    // A host process was sent here by its call, and no flow knows of it. Its packets still belong to its
    // socket when they get here: the kernel lets go of it in the IP layer (`ip_rcv_core`).
    // SAFETY: a live context; 0 for a packet of no socket.
    let cookie = unsafe { bpf_get_socket_cookie(hook.context()) };
    let key = SocketKey::new(cookie, network.destination.ip(), ports.destination);
    socket::said(&HOST_SOCKETS, &key)
        .is_some_and(|origin| serves(origin.forward, origin.generation))
}
