//! Headers: from bytes to a [`Packet`].

use portfwd_common::{
    flow::TcpFlags,
    net::{NetPort, Protocol},
};

use crate::{
    family::Family,
    maps::SCRATCH,
    packet::{Hook, Tc},
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
    /// Where the transport header begins: less than 512. Used through [`Network::transport_at`].
    pub transport: usize,
    /// Where the packet ends, by its own header.
    pub end: u64,
    /// Whether the packet is a fragment, and whether it is the first.
    pub fragment: Fragment,
    /// What its fragments have in common, in network order; 0 for a whole packet.
    pub identification: u32,
}

/// Place of a packet in a datagram.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fragment {
    Whole = 0,
    First = 1,
    Later = 2,
}

impl<A> Network<A> {
    /// The same header, as if nothing were known of it (see [`forget`]).
    #[inline(always)]
    pub fn by_any_way(mut self) -> Option<Self> {
        let [transport, identification] = forget([self.transport as u32, self.identification])?;
        let [fragment, protocol] = forget([self.fragment as u8, self.protocol])?;
        self.transport = transport as usize & 0x1ff;
        self.identification = identification;
        self.protocol = protocol;
        // SAFETY: a number that was a `Fragment`.
        self.fragment = unsafe { core::mem::transmute::<u8, Fragment>(fragment) };
        Some(self)
    }
    /// Bytes from the IP header on.
    #[inline(always)]
    pub fn length(&self, hook: &Tc) -> u64 {
        hook.len() - hook.network() as u64
    }
    /// Offset of the byte at `offset` of the transport header. LLVM knows its bound and drops every check
    /// of it, but the verifier forgets the bound of a spilled register: so it is stated here once more.
    #[inline(always)]
    pub fn transport_at(&self, offset: usize) -> usize {
        let mut start = self.transport;
        // SAFETY: changes nothing, as the start is below 512.
        unsafe {
            core::arch::asm!("{0} &= 0x1ff", inout(reg) start, options(pure, nomem, nostack));
        };
        start + offset
    }
}

/// A TCP, UDP or SCTP packet.
#[derive(Clone, Copy)]
pub struct Packet<A> {
    pub network: Network<A>,
    pub protocol: Protocol,
    pub source_port: NetPort,
    pub destination_port: NetPort,
    /// Bytes from the IP header on.
    pub length: u64,
    /// Of TCP, or what stands for them in SCTP; 0 for UDP.
    pub flags: TcpFlags,
    /// Of TCP, in host order.
    pub sequence: u32,
    /// Of TCP, in host order.
    pub acknowledgment: u32,
    /// Length of the TCP header as the packet says, in bytes; 8 for UDP, 12 for SCTP.
    pub header: u32,
}

/// Why a packet has no [`Packet`].
pub enum Unparsed {
    /// Another protocol: not ours.
    Other,
    /// Truncated, or its headers contradict each other.
    Malformed,
    /// An ICMP error.
    Error,
    /// A fragment, or behind extension headers.
    Extended,
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

impl<A: Family> Packet<A> {
    /// Whether it acknowledges `number`, which only one that has seen the container's SYN can know. In SCTP
    /// the container checks its cookie, and what it sends then is the proof.
    #[inline(always)]
    pub fn proves(&self, number: u32) -> bool {
        self.protocol == Protocol::Tcp
            && self.flags.has(TcpFlags::ACK)
            && self.acknowledgment == number
    }
    /// Whether it carries data, which a container sends only to a client that it has accepted.
    #[inline(always)]
    pub fn has_data(&self) -> bool {
        let headers = self.network.transport as u64 + self.header as u64;
        self.network.end > headers
    }
}

impl<A> Packet<A> {
    /// The same packet, as if nothing were known of it (see [`forget`]).
    #[inline(always)]
    pub fn by_any_way(mut self) -> Option<Self> {
        let [protocol, flags] = forget([self.protocol as u8, self.flags.0])?;
        let [sequence, acknowledgment, header] =
            forget([self.sequence, self.acknowledgment, self.header])?;
        // SAFETY: a number that was a `Protocol`.
        self.protocol = unsafe { core::mem::transmute::<u8, Protocol>(protocol) };
        self.flags = TcpFlags(flags);
        self.sequence = sequence;
        self.acknowledgment = acknowledgment;
        self.header = header;
        Some(self)
    }
}

/// The same numbers, by way of a map. The verifier goes on separately from each way that a packet may
/// have come, as long as it knows more of its numbers on the one than on the other; of what comes out
/// of a map it knows nothing.
#[inline(always)]
pub fn forget<T: Copy>(numbers: T) -> Option<T> {
    const { assert!(size_of::<T>() <= 16) };
    let scratch = SCRATCH.get_ptr_mut(0)?.cast::<T>();
    // SAFETY: this CPU's own element, which has room for them.
    unsafe {
        core::ptr::write_volatile(scratch, numbers);
        Some(core::ptr::read_volatile(scratch))
    }
}

/// The packet of any kind behind `network`.
#[inline(always)]
pub fn packet<A: Family>(hook: &Tc, network: Network<A>) -> Result<Packet<A>, Unparsed> {
    let ports = ports(hook, &network)?;
    let packet = transport(hook, network, ports)?;
    packet.by_any_way().ok_or(Unparsed::Other)
}

/// What the headers of every transport protocol begin with.
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
        132 => Protocol::Sctp,
        number if number == A::ICMP => return Err(of_icmp(hook, network)),
        _ => return Err(Unparsed::Other),
    };
    let ports: [u16; 2] = hook
        .load(network.transport_at(0))
        .ok_or(Unparsed::Malformed)?;
    Ok(Ports {
        protocol,
        source: NetPort::from_wire(ports[0]),
        destination: NetPort::from_wire(ports[1]),
    })
}

/// What an ICMP message is to be taken for.
#[inline(always)]
fn of_icmp<H: Hook, A: Family>(hook: &H, network: &Network<A>) -> Unparsed {
    match hook.load::<u8>(network.transport_at(0)) {
        Some(number) if A::is_error(number) => Unparsed::Error,
        _ => Unparsed::Other,
    }
}

/// The transport header behind `network`, which begins with `ports`.
#[inline(always)]
pub fn transport<H: Hook, A: Family>(
    hook: &H,
    network: Network<A>,
    ports: Ports,
) -> Result<Packet<A>, Unparsed> {
    let available = network.end.wrapping_sub(network.transport as u64);
    let mut packet = Packet {
        network,
        protocol: ports.protocol,
        source_port: ports.source,
        destination_port: ports.destination,
        length: hook.len() - hook.network() as u64,
        flags: TcpFlags(0),
        sequence: 0,
        acknowledgment: 0,
        header: 8,
    };
    match packet.protocol {
        Protocol::Tcp => packet.read_segment(hook, available),
        Protocol::Udp => packet.read_datagram(hook, available),
        Protocol::Sctp => packet.read_chunk(hook, available),
    }
    .ok_or(Unparsed::Malformed)?;
    Ok(packet)
}

impl<A: Family> Packet<A> {
    /// RFC 9293, section 3.1; `available` bytes are there, from the transport header on.
    #[inline(always)]
    fn read_segment<H: Hook>(&mut self, hook: &H, available: u64) -> Option<()> {
        // Sequence and acknowledgment number, offset and flags, window, checksum, urgent pointer.
        let rest: [u32; 4] = hook.load(self.network.transport_at(4))?;
        self.sequence = u32::from_be(rest[0]);
        self.acknowledgment = u32::from_be(rest[1]);
        let word = u32::from_be(rest[2]);
        self.flags = TcpFlags((word >> 16) as u8);
        self.header = word >> 28 << 2;
        (self.header >= 20 && self.header as u64 <= available).then_some(())
    }
    /// RFC 768; `available` as above. The first fragment has not all that the length tells.
    #[inline(always)]
    fn read_datagram<H: Hook>(&mut self, hook: &H, available: u64) -> Option<()> {
        let length: u16 = hook.load(self.network.transport_at(4))?;
        let _: u16 = hook.load(self.network.transport_at(6))?;
        let length = u16::from_be(length) as u64;
        let whole = self.network.fragment == Fragment::Whole;
        (length >= 8 && available >= 8 && (!whole || length <= available)).then_some(())
    }
    /// RFC 9260, section 3: verification tag and checksum, then the first chunk's type.
    #[inline(always)]
    fn read_chunk<H: Hook>(&mut self, hook: &H, available: u64) -> Option<()> {
        let chunk: u8 = hook.load(self.network.transport_at(12))?;
        self.flags = TcpFlags::of_chunk(chunk);
        self.header = 12;
        (available >= 16).then_some(())
    }
}

/// A packet whose headers may be extended or incomplete: its network header, with everything up to the
/// transport header walked past.
#[inline(always)]
pub fn extended<A: Family>(hook: &Tc) -> Result<Network<A>, Unparsed> {
    let network = match A::network(hook) {
        Err(Unparsed::Extended) => {
            hook.pull_extended_headers();
            A::extended(hook)
        }
        plain => plain,
    };
    network?.by_any_way().ok_or(Unparsed::Other)
}
