//! Clients' ports that had to be changed, because the container already talks with them.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use portfwd_common::{
    flow::{FlowKey, Shift},
    net::{Address as _, NetPort, Protocol, V6},
    verdict::Reason,
};

use crate::{
    family::Family,
    flow::{self, Found, Live, Place, Request, Target},
    forward::Published,
    maps::SHIFTS,
    parse::Packet,
};

/// Clients send from ports above these (RFC 6056, section 3.2).
const SYSTEM_PORTS: u32 = 1024;

/// The key of a connection as its client has it.
#[inline(always)]
pub fn key_of<A: Family>(request: &Request<A>, protocol: u8) -> Shift {
    FlowKey::new(
        V6::from_ip(request.client.ip()),
        request.client_port,
        V6::from_ip(request.host.ip()),
        request.host_port,
        protocol,
    )
}

/// What a request finds under `key`, or under the one with another client's port that it got; the key has
/// that port then.
#[inline(always)]
pub fn find<A: Family>(
    key: &mut FlowKey<A>,
    request: &Request<A>,
    published: &Published,
) -> Found<A> {
    let found = flow::of_request(key, request, published);
    if matches!(found, Found::Own(_)) {
        return found;
    }
    let port = key.client_port;
    if let Some(shifted) = of(request, key.protocol as u8) {
        key.client_port = shifted;
        let under_shifted = flow::of_request(key, request, published);
        if matches!(under_shifted, Found::Own(_)) {
            return under_shifted;
        }
        key.client_port = port;
    }
    found
}

/// The port that stands for the client's in this connection, if it was changed.
#[inline(always)]
fn of<A: Family>(request: &Request<A>, protocol: u8) -> Option<NetPort> {
    let port = SHIFTS.get_ptr(&key_of(request, protocol))?;
    // SAFETY: an aligned word of the element.
    Some(NetPort::from_wire(unsafe { *port } as u16))
}

/// Opens a flow whose client's port is taken, under another one, which `key` has afterwards. An SCTP port
/// cannot be changed: its checksum would have to be computed anew.
#[inline(always)]
pub fn open<A: Family>(
    key: &mut FlowKey<A>,
    packet: &Packet<A>,
    published: &Published,
    target: Target,
    ingress: u32,
) -> Result<Live<A>, Reason> {
    if packet.protocol == Protocol::Sctp {
        return Err(Reason::TupleTaken);
    }
    let shift = key_of(&Request::of(packet), packet.network.protocol);
    // Ports that are tried, at random, before a client's port counts as taken; one that another CPU takes
    // meanwhile is left to the client's next SYN. Written out, not a loop: Linux 6.1 refuses one whose end
    // lies right before its beginning, as LLVM would place it (`visit_insn`: only a jump may lead back).
    let mut attempt = || {
        // SAFETY: takes and touches nothing.
        let random = unsafe { bpf_get_prandom_u32() } & 0xffff;
        let port = NetPort::new((random | SYSTEM_PORTS) as u16);
        key.client_port = port;
        flow::is_free(key).then_some(port)
    };
    let free = attempt()
        .or_else(&mut attempt)
        .or_else(&mut attempt)
        .or_else(&mut attempt);
    let port = free.ok_or(Reason::TupleTaken)?;
    let live = flow::open(key, packet, published, target, ingress, Place::Free)?;
    let wire = port.wire() as u32;
    match SHIFTS.insert(&shift, &wire, 0) {
        Ok(()) => Ok(live),
        Err(_) => Err(Reason::FlowTableFull),
    }
}
