//! Sockets of the host's namespace, through the kernel's socket diagnosis (sock_diag(7)): who listens on
//! a port, and the ending of sockets that lead to a container that is no longer published.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, InetResponseHeader, SocketId, StateFlags,
};
use netlink_packet_sock_diag::{AF_INET, AF_INET6, SockDiagDestroy, SockDiagMessage};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as NetlinkAddress};
use nix::errno::Errno;
use portfwd_common::net::Protocol;

use super::netns::{Netns, NetnsError};
use super::processes::Process;
use crate::collision;

/// TCP_BOUND_INACTIVE of `include/net/tcp_states.h`: bound, and neither listening nor connected, as the sockets
/// are that podman holds ports with. Kernels before 6.8 do not know it, and show none.
const BOUND_INACTIVE: StateFlags = StateFlags::from_bits_retain(1 << 13);

/// Why sockets cannot be read or ended.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The kernel refused, or the connection to it failed.
    #[error("cannot {request}: {source}")]
    Failed {
        /// What was asked for, as words that follow "cannot".
        request: String,
        /// The reason.
        source: io::Error,
    },
    /// The kernel was built without CONFIG_INET_DIAG_DESTROY.
    #[error("CONFIG_INET_DIAG_DESTROY, by which the socket {local} -> {peer} would be ended")]
    DestroyUnsupported {
        /// The host's side.
        local: SocketAddr,
        /// The container's side.
        peer: SocketAddr,
    },
}

/// A socket of the host that has a port to itself: a TCP or SCTP listener or what may become one, or an
/// unconnected UDP socket. (A connected UDP socket receives from its one peer only, and the datapath leaves it its
/// packets.)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Its protocol.
    pub protocol: Protocol,
    /// The address it is bound to, which may be the unspecified one. An IPv4-mapped address is given as
    /// IPv4.
    pub address: SocketAddr,
    /// Bound to `::` without IPV6_V6ONLY, so that it receives IPv4 as well.
    pub dual_stack: bool,
    /// The device it is bound to (SO_BINDTODEVICE); None for any.
    pub ifindex: Option<u32>,
    /// Inode of the socket's file, by which [`super::processes`] finds its owner.
    pub inode: u32,
    /// Owner's user ID.
    pub uid: u32,
    /// Socket cookie, as `bpf_get_socket_cookie` gives it.
    pub cookie: u64,
}

impl Listener {
    /// As a rival for a port, named by the process that holds it.
    pub fn named(&self, owner: Option<&Process>) -> collision::Listener {
        collision::Listener {
            process: owner.map(|process| process.name.clone()),
            pid: owner.map(|process| process.pid),
            protocol: self.protocol,
            address: self.address.ip(),
            port: self.address.port(),
            dual_stack: self.dual_stack,
        }
    }
}

/// The container's side of sockets to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Their protocol.
    pub protocol: Protocol,
    /// The container's address and port.
    pub address: SocketAddr,
}

/// How closely sockets are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// At those that are served.
    AtServed,
    /// At those that only hold a port as well. For these the kernel goes through all of its tables of ports and of
    /// connections (`tcp_diag_dump`), which takes longer than everything else that an attach does.
    AtHeld,
}

/// Every socket of the namespace that has a port to itself, of the given protocols. A protocol that the kernel
/// cannot diagnose (SCTP without its module) has none.
pub fn listeners(
    host: &Netns,
    protocols: &[Protocol],
    look: Look,
) -> Result<Vec<Listener>, SocketError> {
    host.run_in(|| listeners_here(protocols, look))?
}

/// As [`listeners`], of the calling thread's namespace.
pub fn listeners_here(protocols: &[Protocol], look: Look) -> Result<Vec<Listener>, SocketError> {
    let diagnosis = Diagnosis::open()?;
    let mut found = Vec::new();
    for protocol in protocols {
        let states = match protocol {
            // A UDP socket is "closed" while it is not connected.
            Protocol::Udp => StateFlags::CLOSE,
            Protocol::Tcp if look == Look::AtHeld => StateFlags::LISTEN | BOUND_INACTIVE,
            Protocol::Tcp | Protocol::Sctp => StateFlags::LISTEN,
        };
        for family in [AF_INET, AF_INET6] {
            let sockets = diagnosis.dump(*protocol, family, &states, 0)?;
            let bound = sockets
                .iter()
                .filter(|socket| socket.header.socket_id.source_port != 0);
            found.extend(bound.map(|socket| listener(*protocol, socket)));
        }
    }
    Ok(found)
}

/// A UDP socket that is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connected {
    /// Where it sends to.
    pub peer: SocketAddr,
    /// Inode of its file.
    pub inode: u32,
}

/// Every UDP socket of the namespace that is connected.
///
/// # Errors
/// When the namespace cannot be entered, or the kernel does not answer.
pub fn connected_datagrams(host: &Netns) -> Result<Vec<Connected>, SocketError> {
    host.run_in(|| {
        let diagnosis = Diagnosis::open()?;
        let mut found = Vec::new();
        for family in [AF_INET, AF_INET6] {
            let sockets = diagnosis.dump(Protocol::Udp, family, &StateFlags::ESTABLISHED, 0)?;
            found.extend(sockets.iter().map(|socket| {
                let id = &socket.header.socket_id;
                let address = id.destination_address.to_canonical();
                Connected {
                    peer: SocketAddr::new(address, id.destination_port),
                    inode: socket.header.inode,
                }
            }));
        }
        Ok(found)
    })?
}

/// What the kernel says of a socket.
#[must_use]
pub fn listener(protocol: Protocol, socket: &InetResponse) -> Listener {
    let id = &socket.header.socket_id;
    let address = SocketAddr::new(id.source_address.to_canonical(), id.source_port);
    let v6_only = socket.nlas.contains(&Nla::SkV6Only(true));
    Listener {
        protocol,
        address,
        dual_stack: address.is_ipv6() && address.ip().is_unspecified() && !v6_only,
        ifindex: (id.interface_id != 0).then_some(id.interface_id),
        inode: socket.header.inode,
        uid: socket.header.uid,
        cookie: cookie_of(id),
    }
}

/// The two halves of the cookie are 32-bit words in host order, the low one first (`sock_diag_save_cookie`).
fn cookie_of(id: &SocketId) -> u64 {
    let [a, b, c, d, e, f, g, h] = id.cookie;
    let low = u32::from_ne_bytes([a, b, c, d]);
    let high = u32::from_ne_bytes([e, f, g, h]);
    u64::from(high) << 32 | u64::from(low)
}

/// Ends the sockets of the namespace whose peer is one of `peers` and whose cookie is one of `cookies`:
/// their owners see ECONNABORTED. Returns how many ended. A socket that is gone by then is no error.
///
/// # Errors
/// The first failure, after every socket has been tried.
pub fn destroy(
    host: &Netns,
    peers: &HashSet<Peer>,
    cookies: &HashSet<u64>,
) -> Result<usize, SocketError> {
    if peers.is_empty() || cookies.is_empty() {
        return Ok(0);
    }
    host.run_in(|| destroy_here(peers, cookies))?
}

/// As [`destroy`], in the calling thread's namespace.
pub fn destroy_here(peers: &HashSet<Peer>, cookies: &HashSet<u64>) -> Result<usize, SocketError> {
    let diagnosis = Diagnosis::open()?;
    let mut ended = 0;
    let mut first_failure = None;
    for (protocol, family) in tables(peers) {
        for socket in diagnosis.dump(protocol, family, &connected_states(), port_filter(peers))? {
            let id = &socket.header.socket_id;
            let address =
                SocketAddr::new(id.destination_address.to_canonical(), id.destination_port);
            let ours =
                peers.contains(&Peer { protocol, address }) && cookies.contains(&cookie_of(id));
            if !ours {
                continue;
            }
            match diagnosis.destroy(protocol, &socket.header) {
                Ok(gone) => ended += usize::from(gone),
                Err(error) => first_failure = first_failure.or(Some(error)),
            }
        }
    }
    first_failure.map_or(Ok(ended), Err)
}

/// The kernel's socket tables in which such peers can be. An IPv4 peer's socket may be an IPv6 one.
fn tables(peers: &HashSet<Peer>) -> Vec<(Protocol, u8)> {
    let mut tables = Vec::new();
    for peer in peers {
        for family in [AF_INET, AF_INET6] {
            let possible = family == AF_INET6 || peer.address.is_ipv4();
            if possible && !tables.contains(&(peer.protocol, family)) {
                tables.push((peer.protocol, family));
            }
        }
    }
    tables
}

/// The one port that all peers have, for the kernel to filter by; 0 when they differ.
fn port_filter(peers: &HashSet<Peer>) -> u16 {
    let mut ports = peers.iter().map(|peer| peer.address.port());
    let first = ports.next().unwrap_or(0);
    if ports.all(|port| port == first) {
        first
    } else {
        0
    }
}

/// Every state of a socket with a peer that can still pass data to its owner.
fn connected_states() -> StateFlags {
    StateFlags::all() - StateFlags::LISTEN - StateFlags::CLOSE - StateFlags::TIME_WAIT
}

/// A connection to the kernel's socket diagnosis of one namespace.
struct Diagnosis {
    socket: Socket,
}

impl Diagnosis {
    fn open() -> Result<Self, SocketError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
            socket.bind_auto()?;
            socket.connect(&NetlinkAddress::new(0, 0))?;
            Ok(Self { socket })
        };
        open().map_err(|source| failed("open a socket for socket diagnosis", source))
    }

    /// Sockets of one table, filtered by the kernel; `peer_port` 0 is any.
    fn dump(
        &self,
        protocol: Protocol,
        family: u8,
        states: &StateFlags,
        peer_port: u16,
    ) -> Result<Vec<InetResponse>, SocketError> {
        let request = format!("list {} sockets", protocol.name());
        let mut socket_id = if family == AF_INET {
            SocketId::new_v4()
        } else {
            SocketId::new_v6()
        };
        socket_id.destination_port = peer_port;
        let message = SockDiagMessage::InetRequest(InetRequest {
            family,
            protocol: protocol.number(),
            extensions: ExtensionFlags::empty(),
            states: states.clone(),
            socket_id,
        });
        self.send(&request, message, NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut found = Vec::new();
        loop {
            let answers = self.receive(&request)?;
            for payload in answers {
                match payload {
                    NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(socket)) => {
                        found.push(*socket);
                    }
                    other => match errno_of(&other) {
                        // No diagnosis of this protocol in this kernel.
                        Some(Errno::ENOENT | Errno::EPROTONOSUPPORT) => return Ok(found),
                        Some(errno) => return Err(failed(&request, errno.into())),
                        None if matches!(other, NetlinkPayload::Done(_)) => return Ok(found),
                        None => {}
                    },
                }
            }
        }
    }

    /// Ends one socket; false when it is gone already.
    fn destroy(
        &self,
        protocol: Protocol,
        socket: &InetResponseHeader,
    ) -> Result<bool, SocketError> {
        let id = &socket.socket_id;
        let local = SocketAddr::new(id.source_address, id.source_port);
        let peer = SocketAddr::new(id.destination_address, id.destination_port);
        let request = format!("end the socket {local} -> {peer}");
        let message = SockDiagDestroy::new(SockDiagMessage::InetRequest(InetRequest {
            family: socket.family,
            protocol: protocol.number(),
            extensions: ExtensionFlags::empty(),
            states: StateFlags::all(),
            socket_id: id.clone(),
        }));
        self.send(&request, message, NLM_F_REQUEST | NLM_F_ACK)?;
        match self.receive(&request)?.first().map(errno_of) {
            Some(None) => Ok(true),
            Some(Some(Errno::ENOENT)) => Ok(false),
            Some(Some(Errno::EOPNOTSUPP)) => Err(SocketError::DestroyUnsupported { local, peer }),
            Some(Some(errno)) => Err(failed(&request, errno.into())),
            None => Err(failed(&request, io::ErrorKind::UnexpectedEof.into())),
        }
    }

    fn send<M>(&self, request: &str, message: M, flags: u16) -> Result<(), SocketError>
    where
        M: NetlinkSerializable + Into<NetlinkPayload<M>>,
    {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = flags;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket
            .send(&bytes, 0)
            .map_err(|source| failed(request, source))?;
        Ok(())
    }

    /// The messages of one datagram from the kernel.
    fn receive(&self, request: &str) -> Result<Vec<NetlinkPayload<SockDiagMessage>>, SocketError> {
        let (bytes, _) = self
            .socket
            .recv_from_full()
            .map_err(|source| failed(request, source))?;
        let mut payloads = Vec::new();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)
                .map_err(|error| failed(request, io::Error::other(error.to_string())))?;
            // Messages in a datagram are aligned to four bytes; the last one need not be filled up.
            let length = (message.header.length as usize).next_multiple_of(4);
            payloads.push(message.payload);
            rest = rest.get(length..).unwrap_or_default();
        }
        Ok(payloads)
    }
}

/// The error that a message carries; None for an acknowledgement, or anything else.
fn errno_of<M>(payload: &NetlinkPayload<M>) -> Option<Errno> {
    match payload {
        NetlinkPayload::Error(error) => error.code.map(|code| Errno::from_raw(-code.get())),
        NetlinkPayload::Done(done) if done.code < 0 => Some(Errno::from_raw(-done.code)),
        _ => None,
    }
}

fn failed(request: &str, source: io::Error) -> SocketError {
    SocketError::Failed {
        request: request.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_filters_by_port_only_when_all_peers_have_the_same() {
        let peer = |text: &str| Peer {
            protocol: Protocol::Tcp,
            address: text.parse().unwrap(),
        };
        assert_eq!(
            port_filter(&HashSet::from([peer("10.0.0.2:80"), peer("[fd88::2]:80")])),
            80
        );
        assert_eq!(
            port_filter(&HashSet::from([peer("10.0.0.2:80"), peer("10.0.0.2:81")])),
            0
        );
    }

    #[test]
    fn a_v4_peer_is_looked_for_among_v6_sockets_as_well() {
        let peer = Peer {
            protocol: Protocol::Udp,
            address: "10.0.0.2:53".parse().unwrap(),
        };
        assert_eq!(
            tables(&HashSet::from([peer])),
            [(Protocol::Udp, AF_INET), (Protocol::Udp, AF_INET6)]
        );
        let peer = Peer {
            protocol: Protocol::Udp,
            address: "[fd88::2]:53".parse().unwrap(),
        };
        assert_eq!(tables(&HashSet::from([peer])), [(Protocol::Udp, AF_INET6)]);
    }
}
