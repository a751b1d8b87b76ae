//! Rewriting a packet's source or destination, checksums included.

use portfwd_common::{
    checksum,
    net::{NetPort, Protocol},
    verdict::Reason,
};

use crate::{
    family::{Family, HeaderChange},
    packet::{Change, Hook},
    parse::{Network, Packet},
};

/// Which end of a packet is rewritten.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    Source,
    Destination,
}

impl End {
    /// Offset of its address.
    #[inline(always)]
    pub fn address_at<A: Family>(self, hook: &impl Hook) -> usize {
        let source = hook.network() + A::SOURCE_AT;
        match self {
            Self::Source => source,
            Self::Destination => source + size_of::<A>(),
        }
    }
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
    let (old_address, old_port, port_at) = match end {
        End::Source => (packet.network.source, packet.source_port, 0),
        End::Destination => (packet.network.destination, packet.destination_port, 2),
    };
    let change = Change {
        addresses: checksum::difference(old_address.sum(), address.sum()),
        ports: checksum::word_difference(old_port.wire(), port.wire()),
    };
    // That of SCTP covers no addresses, and its ports never change (RFC 9260, section 6.8).
    if packet.protocol != Protocol::Sctp {
        hook.update_checksum(packet.checksum_at(), packet.protocol, change)?;
    }
    let place = hook
        .at::<A>(end.address_at::<A>(hook))
        .ok_or(Reason::RewriteFailed)?;
    // SAFETY: in bounds by `at`.
    unsafe { *place = address };
    let place = hook
        .at::<u16>(packet.network.transport_at(port_at))
        .ok_or(Reason::RewriteFailed)?;
    // SAFETY: in bounds by `at`.
    unsafe { *place = port.wire() };
    // The kernel's helper leaves the addresses of an IPv6 header uncovered: see there.
    let change = HeaderChange {
        addresses: change.addresses,
        uncovered: change.addresses,
    };
    A::finish_header(hook, &packet.network, change, hop)
}

/// Rewrites one address of a fragment that has no transport header.
#[inline(always)]
pub fn readdress<H: Hook, A: Family>(
    hook: &H,
    network: &Network<A>,
    end: End,
    address: A,
    hop: bool,
) -> Result<(), Reason> {
    let old = match end {
        End::Source => network.source,
        End::Destination => network.destination,
    };
    let addresses = checksum::difference(old.sum(), address.sum());
    let place = hook
        .at::<A>(end.address_at::<A>(hook))
        .ok_or(Reason::RewriteFailed)?;
    // SAFETY: in bounds by `at`.
    unsafe { *place = address };
    let change = HeaderChange {
        addresses,
        uncovered: addresses,
    };
    A::finish_header(hook, network, change, hop)
}
