//! Pings with an identifier of choice, over raw sockets.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, setsockopt, socket,
    sockopt,
};

use crate::deadline::{PATIENCE, SILENCE, patient};
use crate::namespace::Namespace;

/// Sends an echo request of `size` bytes of data and waits for its reply with the same.
///
/// # Errors
/// Those of the socket, or that no reply comes.
pub fn ping(namespace: &Namespace, identifier: u16, to: IpAddr, size: usize) -> io::Result<()> {
    let socket = raw(namespace, to)?;
    let request = request(identifier, to, size);
    (&socket).write_all(&request)?;
    let end = Instant::now() + patient(PATIENCE);
    let mut buffer = vec![0; 1 << 16];
    while Instant::now() < end {
        let length = match (&socket).read(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        // A raw IPv4 socket gets the IP header too.
        let header = match to {
            IpAddr::V4(_) => usize::from(buffer[0] & 0xf) * 4,
            IpAddr::V6(_) => 0,
        };
        let message = &buffer[header..length];
        let reply = if to.is_ipv4() { 0 } else { 129 };
        if message.len() < 8 || message[0] != reply || message[4..8] != request[4..8] {
            continue;
        }
        if message[8..] != request[8..] {
            return Err(io::Error::other(
                "the reply has other data than the request",
            ));
        }
        return Ok(());
    }
    Err(ErrorKind::TimedOut.into())
}

/// Sends an echo request with so many hops to live, and gives who says that it expired there, quoting it.
///
/// # Errors
/// Those of the socket, or that nobody says so.
pub fn expiring(
    namespace: &Namespace,
    identifier: u16,
    to: IpAddr,
    hops: u8,
) -> io::Result<IpAddr> {
    let socket = raw(namespace, to)?;
    let listener = unconnected(namespace, to)?;
    let hops = i32::from(hops);
    match to {
        IpAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4Ttl, &hops)?,
        IpAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6Ttl, &hops)?,
    }
    let request = request(identifier, to, 56);
    (&socket).write_all(&request)?;
    let end = Instant::now() + patient(PATIENCE);
    let mut buffer = vec![0; 1 << 16];
    while Instant::now() < end {
        let (length, from) = match listener.recv_from(&mut buffer) {
            Ok(received) => received,
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        // Behind both IP headers, of which a raw IPv6 socket does not get the first, and the error's own.
        let quoted = 48;
        let expired = if to.is_ipv4() {
            buffer[20] == 11
        } else {
            buffer[0] == 3
        };
        if expired && length >= quoted + 8 && buffer[quoted + 4..quoted + 8] == request[4..8] {
            return Ok(from.ip());
        }
    }
    Err(ErrorKind::TimedOut.into())
}

/// Gets what anybody sends. The socket is no UDP one; the type only receives.
fn unconnected(namespace: &Namespace, to: IpAddr) -> io::Result<UdpSocket> {
    let (family, protocol) = kind(to);
    let socket =
        namespace.run(|| socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol))?;
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(SILENCE))?;
    Ok(socket)
}

fn kind(to: IpAddr) -> (AddressFamily, SockProtocol) {
    match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    }
}

/// The socket is no TCP one; the type only reads and writes.
fn raw(namespace: &Namespace, to: IpAddr) -> io::Result<TcpStream> {
    let (family, protocol) = kind(to);
    let socket = namespace.run(|| -> io::Result<OwnedFd> {
        let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        connect(
            socket.as_raw_fd(),
            &SockaddrStorage::from(SocketAddr::new(to, 0)),
        )?;
        Ok(socket)
    })?;
    let socket = TcpStream::from(socket);
    socket.set_read_timeout(Some(SILENCE))?;
    Ok(socket)
}

fn request(identifier: u16, to: IpAddr, size: usize) -> Vec<u8> {
    let kind = if to.is_ipv4() { 8 } else { 128 };
    let mut message = vec![kind, 0, 0, 0];
    message.extend_from_slice(&identifier.to_be_bytes());
    message.extend_from_slice(&[0, 1]);
    message.extend((0..=250).cycle().take(size));
    if to.is_ipv4() {
        // That of ICMPv6 is the kernel's to make (RFC 3542, section 3.1).
        let sum = crate::layers::sum(&message);
        let checksum = !crate::layers::fold(sum);
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
    }
    message
}
