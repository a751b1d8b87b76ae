//! A packet sent through the datapath's programs, without anything that comes of it.

use std::net::{IpAddr, SocketAddr};

use aya::{
    Ebpf,
    maps::{MapError, PerCpuArray},
    programs::SchedClassifier,
};
use etherparse::{IpNumber, PacketBuilder};
use portfwd_common::{maps, net::Protocol, programs, verdict::Reason};

use crate::{
    error::{Doing, Error},
    instance::Layout,
    object,
    observe::{kernel, links::Carries, netns::Netns},
    tables::TableError,
};

/// A packet that opens a connection.
#[derive(Clone, Copy, Debug)]
pub struct Opening {
    /// Its protocol.
    pub protocol: Protocol,
    /// Who sends it.
    pub from: SocketAddr,
    /// To whom.
    pub to: SocketAddr,
}

/// Where it comes in.
#[derive(Clone, Debug)]
pub struct Entrance {
    /// Interface index of the device.
    pub device: u32,
    /// Its address, of a device that carries frames.
    pub mac: Option<[u8; 6]>,
    /// Whether it is the host-side link of a container.
    pub is_link: bool,
}

/// What becomes of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Redirected into the container, past the host's stack.
    Redirected(SocketAddr),
    /// Translated, and on its way through the host's stack.
    Translated(SocketAddr),
    /// It goes on as it came, for that reason if there is one to count.
    Passed(Option<Reason>),
    /// It ends.
    Dropped(Option<Reason>),
}

/// What TC programs return (linux/pkt_cls.h).
const SHOT: i32 = 2;
const REDIRECT: i32 = 7;

/// Runs the programs of an instance over a packet.
///
/// # Errors
/// When they cannot be loaded once more, or run.
pub fn of(
    layout: &Layout,
    host: &Netns,
    packet: &Opening,
    entrance: &Entrance,
) -> Result<Fate, Error> {
    let options = object::Options {
        host_netns: host.cookie()?,
        log_level: 0,
    };
    let l3 = entrance.mac.is_none();
    let mut ebpf = object::rehearse(options, &layout.maps(), l3)
        .doing(|| "load the eBPF programs once more".to_owned())?;
    let name = match (entrance.is_link, l3) {
        (true, _) => programs::TC_LINK,
        (false, true) => programs::TC_DEVICE_L3,
        (false, false) => programs::TC_DEVICE,
    };
    let frame = frame(packet, entrance.mac);
    let doing = || format!("run program {name} over a packet");
    let program: &mut SchedClassifier = ebpf
        .program_mut(name)
        .ok_or_else(|| std::io::Error::other("there is no such program"))
        .doing(doing)?
        .try_into()
        .doing(doing)?;
    let fd = program.fd().doing(doing)?;
    let run = || kernel::test_run(std::os::fd::AsFd::as_fd(fd), &frame, entrance.device);
    let (verdict, after) = host.run_in(run)?.doing(doing)?;
    let target = destination(&after, entrance.mac.is_some());
    let reason = reason(&ebpf).doing(|| "read why".to_owned())?;
    Ok(match (verdict, target) {
        (REDIRECT, Some(target)) => Fate::Redirected(target),
        (SHOT, _) => Fate::Dropped(reason),
        (_, Some(target)) if target != packet.to => Fate::Translated(target),
        _ => Fate::Passed(reason),
    })
}

/// The reason that the programs have counted.
fn reason(ebpf: &Ebpf) -> Result<Option<Reason>, TableError> {
    let failed = |source| TableError::Map {
        name: maps::REASONS,
        source: Box::new(source),
    };
    let missing = || MapError::InvalidName {
        name: maps::REASONS.to_owned(),
    };
    let map = ebpf.map(maps::REASONS).ok_or_else(|| failed(missing()))?;
    let counts: PerCpuArray<_, u64> = PerCpuArray::try_from(map).map_err(failed)?;
    for reason in Reason::ALL {
        let counts = counts.get(&(reason as u32), 0).map_err(failed)?;
        if counts.iter().any(|count| *count > 0) {
            return Ok(Some(reason));
        }
    }
    Ok(None)
}

/// The packet, behind an Ethernet header to `mac` if there is to be one.
fn frame(packet: &Opening, mac: Option<[u8; 6]>) -> Vec<u8> {
    /// Any station's that is not the host.
    const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 1];
    /// Hops that are left: more than any way takes.
    const HOPS: u8 = 64;
    let frame = match mac {
        Some(mac) => {
            let ethernet = PacketBuilder::ethernet2(SENDER, mac);
            match (packet.from.ip(), packet.to.ip()) {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    ethernet.ipv4(from.octets(), to.octets(), HOPS)
                }
                (from, to) => ethernet.ipv6(octets(from), octets(to), HOPS),
            }
        }
        None => match (packet.from.ip(), packet.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                PacketBuilder::ipv4(from.octets(), to.octets(), HOPS)
            }
            (from, to) => PacketBuilder::ipv6(octets(from), octets(to), HOPS),
        },
    };
    let (from, to) = (packet.from.port(), packet.to.port());
    let mut bytes = Vec::new();
    // A vector takes everything.
    let written = match packet.protocol {
        Protocol::Tcp => frame.tcp(from, to, 1, 64_240).syn().write(&mut bytes, &[]),
        Protocol::Udp => frame.udp(from, to).write(&mut bytes, b"?"),
        Protocol::Sctp => frame.write(&mut bytes, IpNumber::SCTP, &init(from, to)),
    };
    written.unwrap_or_else(|error| unreachable!("{error}"));
    bytes
}

/// An SCTP packet with an INIT chunk (RFC 9260, section 3.3.2). Nobody checks its sum.
fn init(from: u16, to: u16) -> Vec<u8> {
    const CHUNK: u16 = 20;
    let mut bytes = Vec::new();
    bytes.extend(from.to_be_bytes());
    bytes.extend(to.to_be_bytes());
    bytes.extend([0; 8]);
    bytes.extend([1, 0]);
    bytes.extend(CHUNK.to_be_bytes());
    bytes.extend([0; CHUNK as usize - 4]);
    bytes
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// Where a packet goes by its headers.
fn destination(bytes: &[u8], has_frame: bool) -> Option<SocketAddr> {
    use etherparse::{NetSlice, SlicedPacket};
    let sliced = match has_frame {
        true => SlicedPacket::from_ethernet(bytes),
        false => SlicedPacket::from_ip(bytes),
    };
    let net = sliced.ok()?.net?;
    let (address, rest): (IpAddr, &[u8]) = match &net {
        NetSlice::Ipv4(v4) => (v4.header().destination_addr().into(), v4.payload().payload),
        NetSlice::Ipv6(v6) => (v6.header().destination_addr().into(), v6.payload().payload),
        NetSlice::Arp(_) => return None,
    };
    // Ports lie at the same place in all three protocols.
    let port = rest.get(2..4)?;
    Some(SocketAddr::new(
        address,
        u16::from_be_bytes([port[0], port[1]]),
    ))
}

impl Entrance {
    /// By a device of the host, or with `is_link` by the link of a container.
    #[must_use]
    pub fn by(device: &crate::observe::links::Link, is_link: bool) -> Self {
        let mac = match device.carries {
            Carries::Frames => Some(device.mac.unwrap_or_default()),
            _ => None,
        };
        Self {
            device: device.index,
            mac,
            is_link,
        }
    }
}
