//! Rewriting a packet's source or destination, checksums included.

use portfwd_common::{checksum, net::NetPort, verdict::Reason};

use crate::{
    family::Family,
    packet::{Change, Hook},
    parse::Packet,
};

/// Which end of a packet is rewritten.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    Source,
    Destination,
}

/// Rewrites one end of `packet` to `address` and `port`, one hop less if `hop`. Ends every pointer into
/// the packet. After an error the packet is half translated and must be dropped.
#[inline(always)]
pub fn rewrite<H: Hook, A: Family>(
    hook: &H,
    packet: &Packet<A>,
    end: End,
    address: A,
    port: NetPort,
    hop: bool,
) -> Result<(), Reason> {
    let (old_address, old_port, address_at, port_at) = match end {
        End::Source => (packet.network.source, packet.source_port, A::SOURCE_AT, 0),
        End::Destination => (
            packet.network.destination,
            packet.destination_port,
            A::SOURCE_AT + size_of::<A>(),
            2,
        ),
    };
    let change = Change {
        addresses: checksum::difference(old_address.sum(), address.sum()),
        ports: checksum::difference(old_port.wire() as u64, port.wire() as u64),
    };
    hook.update_checksum(packet.checksum_at(), packet.protocol, change)?;
    let place = hook.at::<A>(address_at).ok_or(Reason::RewriteFailed)?;
    // SAFETY: in bounds by `at`.
    unsafe { *place = address };
    let place = hook
        .at::<u16>(packet.network.transport_at(port_at))
        .ok_or(Reason::RewriteFailed)?;
    // SAFETY: in bounds by `at`.
    unsafe { *place = port.wire() };
    A::finish_header(hook, &packet.network, change.addresses, hop)
}
