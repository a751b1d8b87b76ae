//! Headers: from bytes to a [`Packet`].

use portfwd_common::{
    flow::TcpFlags,
    net::{NetPort, Protocol},
};

use crate::{
    family::Family,
    packet::{ETHERNET, Hook},
};

/// The network header of a packet of family `A`.
#[derive(Clone, Copy)]
pub struct Network<A> {
    pub source: A,
    pub destination: A,
    /// Protocol number of what follows.
    pub protocol: u8,
    /// Time to live, or hop limit.
    pub hops: u8,
    /// Where the transport header begins: at most 74. Used through [`Network::transport_at`].
    pub transport: usize,
    /// Where the packet ends, by its own header.
    pub end: u64,
    /// Whether the packet is a fragment, and whether it is the first.
    pub fragment: Fragment,
}

/// Place of a packet in a datagram.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fragment {
    Whole,
    First,
    Later,
}

impl<A> Network<A> {
    /// Offset of the byte at `offset` of the transport header. LLVM knows its bound and drops every check
    /// of it, but the verifier forgets the bound of a spilled register: so it is stated here once more.
    #[inline(always)]
    pub fn transport_at(&self, offset: usize) -> usize {
        let mut start = self.transport;
        // SAFETY: changes nothing, as the start is below 128.
        unsafe { core::arch::asm!("{0} &= 0x7f", inout(reg) start, options(pure, nomem, nostack)) };
        start + offset
    }
}

/// A TCP or UDP packet.
#[derive(Clone, Copy)]
pub struct Packet<A> {
    pub network: Network<A>,
    pub protocol: Protocol,
    pub source_port: NetPort,
    pub destination_port: NetPort,
    /// Bytes from the IP header on.
    pub length: u64,
    /// Of TCP; 0 for UDP.
    pub flags: TcpFlags,
    /// Of TCP, in host order.
    pub sequence: u32,
    /// Of TCP, in host order.
    pub acknowledgment: u32,
    /// Length of the TCP header as the packet says, in bytes; 8 for UDP.
    pub header: u32,
}

/// Why a packet has no [`Packet`].
pub enum Unparsed {
    /// Another protocol: not ours.
    Other,
    /// Truncated, or its headers contradict each other.
    Malformed,
}

impl<A: Family> Packet<A> {
    /// Offset of the transport checksum.
    #[inline(always)]
    pub fn checksum_at(&self) -> usize {
        let field = if self.protocol == Protocol::Tcp {
            16
        } else {
            6
        };
        self.network.transport_at(field)
    }
}

/// What TCP and UDP headers begin with.
#[derive(Clone, Copy)]
pub struct Ports {
    pub protocol: Protocol,
    pub source: NetPort,
    pub destination: NetPort,
}

/// The ports behind `network`: enough to know what is not ours.
#[inline(always)]
pub fn ports<H: Hook, A: Family>(hook: &H, network: &Network<A>) -> Result<Ports, Unparsed> {
    if network.fragment == Fragment::Later {
        return Err(Unparsed::Other);
    }
    let protocol = match network.protocol {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        _ => return Err(Unparsed::Other),
    };
    let ports: [u16; 2] = hook.load(network.transport).ok_or(Unparsed::Malformed)?;
    Ok(Ports {
        protocol,
        source: NetPort::from_wire(ports[0]),
        destination: NetPort::from_wire(ports[1]),
    })
}

/// The transport header behind `network`, which begins with `ports`.
#[inline(always)]
pub fn transport<H: Hook, A: Family>(
    hook: &H,
    network: Network<A>,
    ports: Ports,
) -> Result<Packet<A>, Unparsed> {
    let at = network.transport;
    let available = network.end.wrapping_sub(at as u64);
    let mut packet = Packet {
        network,
        protocol: ports.protocol,
        source_port: ports.source,
        destination_port: ports.destination,
        length: hook.len() - ETHERNET as u64,
        flags: TcpFlags(0),
        sequence: 0,
        acknowledgment: 0,
        header: 8,
    };
    if packet.protocol == Protocol::Tcp {
        // Sequence and acknowledgment number, offset and flags, window, checksum, urgent pointer.
        let rest: [u32; 4] = hook.load(at + 4).ok_or(Unparsed::Malformed)?;
        packet.sequence = u32::from_be(rest[0]);
        packet.acknowledgment = u32::from_be(rest[1]);
        let word = u32::from_be(rest[2]);
        packet.flags = TcpFlags((word >> 16) as u8);
        packet.header = word >> 28 << 2;
        if packet.header < 20 || packet.header as u64 > available {
            return Err(Unparsed::Malformed);
        }
    } else {
        let words: [u16; 4] = hook.load(at).ok_or(Unparsed::Malformed)?;
        let length = u16::from_be(words[2]) as u64;
        let whole = packet.network.fragment == Fragment::Whole;
        if length < 8 || (whole && length > available) {
            return Err(Unparsed::Malformed);
        }
    }
    Ok(packet)
}
