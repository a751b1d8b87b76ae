//! Clients inside namespaces, over TCP and UDP.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};
use sha2::{Digest, Sha256};

use crate::deadline::{PATIENCE, SILENCE, patient};
use crate::namespace::Namespace;
use crate::servers::hexadecimal;

/// What a [`Server`](crate::servers::Server) told about itself and its client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The server's label.
    pub label: String,
    /// The client as the server saw it.
    pub seen: SocketAddr,
    /// The client's own address and port.
    pub own: SocketAddr,
}

/// The two protocols that the tests speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP, on a connected socket.
    Udp,
}

/// Connects from the namespace.
///
/// # Errors
/// Those of the connection; it is given ten seconds.
pub fn connect(namespace: &Namespace, to: SocketAddr) -> io::Result<TcpStream> {
    let stream = namespace.run(|| TcpStream::connect_timeout(&to, patient(PATIENCE)))?;
    stream.set_read_timeout(Some(patient(PATIENCE)))?;
    stream.set_write_timeout(Some(patient(PATIENCE)))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Connects from a port of choice, zero for any.
///
/// # Errors
/// Those of the connection.
pub fn connect_from(
    namespace: &Namespace,
    from: SocketAddr,
    to: SocketAddr,
) -> io::Result<TcpStream> {
    let family = if from.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let stream = namespace.run(|| -> io::Result<TcpStream> {
        let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(from))?;
        let stream = TcpStream::from(socket);
        // Bounds the connection too (socket(7), SO_SNDTIMEO).
        stream.set_write_timeout(Some(patient(PATIENCE)))?;
        nix::sys::socket::connect(stream.as_raw_fd(), &SockaddrStorage::from(to))?;
        Ok(stream)
    })?;
    stream.set_read_timeout(Some(patient(PATIENCE)))?;
    Ok(stream)
}

/// Asks the server behind `to` who it is, and makes sure that data goes both ways.
///
/// # Errors
/// Those of the connection, or that the echo is not what was sent.
pub fn ask(namespace: &Namespace, protocol: Protocol, to: SocketAddr) -> io::Result<Answer> {
    match protocol {
        Protocol::Tcp => ask_stream(&connect(namespace, to)?),
        Protocol::Udp => ask_datagram(&datagram_socket(namespace, to)?),
    }
}

/// Asks over an open connection, once.
///
/// # Errors
/// Those of the connection, or that the echo is not what was sent.
pub fn ask_stream(stream: &TcpStream) -> io::Result<Answer> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let answer = answer(&line, stream.local_addr()?)?;
    echo(stream, b"across and back")?;
    Ok(answer)
}

/// Sends `data` over an open connection and expects the same back.
///
/// # Errors
/// Those of the connection, or that something else came back.
pub fn echo(mut stream: &TcpStream, data: &[u8]) -> io::Result<()> {
    stream.write_all(data)?;
    let mut back = vec![0; data.len()];
    stream.read_exact(&mut back)?;
    if back != data {
        return Err(io::Error::other("the echo is not what was sent"));
    }
    Ok(())
}

/// A UDP socket bound to an address, with a time limit.
///
/// # Errors
/// Those of the socket.
pub fn bound_socket(namespace: &Namespace, own: SocketAddr) -> io::Result<UdpSocket> {
    let socket = namespace.run(|| UdpSocket::bind(own))?;
    socket.set_read_timeout(Some(patient(PATIENCE)))?;
    Ok(socket)
}

/// A connected UDP socket with a time limit.
///
/// # Errors
/// Those of the socket.
pub fn datagram_socket(namespace: &Namespace, to: SocketAddr) -> io::Result<UdpSocket> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = bound_socket(namespace, any.parse().expect("an address"))?;
    socket.connect(to)?;
    Ok(socket)
}

/// Asks over a connected UDP socket.
///
/// # Errors
/// Those of the socket, or that the echo is not what was sent.
pub fn ask_datagram(socket: &UdpSocket) -> io::Result<Answer> {
    socket.send(b"across and back")?;
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer)?;
    datagram_answer(&buffer[..length], socket.local_addr()?)
}

/// Asks over a UDP socket that is not connected, and expects the answer from `to` itself.
///
/// # Errors
/// Those of the socket, or that the answer comes from elsewhere.
pub fn ask_unconnected(namespace: &Namespace, to: SocketAddr) -> io::Result<Answer> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    ask_from(&namespace.run(|| UdpSocket::bind(any))?, to)
}

/// The same over a socket that is there.
///
/// # Errors
/// Those of the socket, or that the answer comes from elsewhere.
pub fn ask_from(socket: &UdpSocket, to: SocketAddr) -> io::Result<Answer> {
    socket.set_read_timeout(Some(patient(PATIENCE)))?;
    socket.send_to(b"across and back", to)?;
    let mut buffer = [0; 2048];
    let (length, from) = socket.recv_from(&mut buffer)?;
    if from != to {
        return Err(io::Error::other(format!("asked {to}, answered by {from}")));
    }
    datagram_answer(&buffer[..length], socket.local_addr()?)
}

/// Makes a connected UDP socket one that is not.
///
/// # Errors
/// Those of the call.
pub fn disconnect(socket: &UdpSocket) -> io::Result<()> {
    let nobody = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as libc::sa_family_t,
        sa_data: [0; 14],
    };
    let length = size_of_val(&nobody) as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes of `nobody`.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const nobody, length) };
    Errno::result(result)?;
    Ok(())
}

fn datagram_answer(datagram: &[u8], own: SocketAddr) -> io::Result<Answer> {
    let text = String::from_utf8_lossy(datagram);
    let (line, echo) = text
        .split_once('\n')
        .ok_or_else(|| io::Error::other(format!("no line in {text:?}")))?;
    if echo != "across and back" {
        return Err(io::Error::other("the echo is not what was sent"));
    }
    answer(line, own)
}

fn answer(line: &str, own: SocketAddr) -> io::Result<Answer> {
    let parsed = line.trim_end().split_once(' ').and_then(|(label, seen)| {
        Some(Answer {
            label: label.to_owned(),
            seen: seen.parse().ok()?,
            own,
        })
    });
    parsed.ok_or_else(|| io::Error::new(ErrorKind::InvalidData, format!("answer {line:?}")))
}

/// How a port that serves nothing answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// A RST, or an ICMP error for UDP.
    Refused,
    /// Nothing at all.
    Silent,
}

/// What becomes of a request that must not be served.
///
/// # Panics
/// When something answers it after all, or the request fails in any other way.
#[track_caller]
#[must_use]
pub fn closed(namespace: &Namespace, protocol: Protocol, to: SocketAddr) -> Closed {
    let result = match protocol {
        Protocol::Tcp => namespace
            .run(|| TcpStream::connect_timeout(&to, patient(SILENCE)))
            .map(|_| ()),
        Protocol::Udp => datagram_socket(namespace, to).and_then(|socket| {
            socket.set_read_timeout(Some(patient(SILENCE)))?;
            ask_datagram(&socket).map(|_| ())
        }),
    };
    match result {
        Ok(()) => panic!("{protocol:?} {to} answers {}", namespace.name()),
        Err(error) => match error.kind() {
            ErrorKind::ConnectionRefused => Closed::Refused,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Closed::Silent,
            _ => panic!("{protocol:?} {to} from {}: {error}", namespace.name()),
        },
    }
}

/// Whether a published port serves: it answers, or it is refused at once.
///
/// # Panics
/// When neither happens.
#[track_caller]
#[must_use]
pub fn serves(namespace: &Namespace, protocol: Protocol, to: SocketAddr) -> bool {
    match ask(namespace, protocol, to) {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => false,
        Err(error) => panic!("{protocol:?} {to} from {}: {error}", namespace.name()),
    }
}

/// How much a bulk transfer carries: `PORTFWD_BULK_MIB` mebibytes. Unless it is set: 512, and 64 where
/// the hash is not optimised and takes a tenth of its speed.
///
/// # Panics
/// When the variable is no number.
#[must_use]
pub fn bulk_length() -> u64 {
    let usual = if cfg!(debug_assertions) { 64 } else { 512 };
    let mebibytes = std::env::var("PORTFWD_BULK_MIB").map_or(usual, |text| {
        text.parse::<u64>()
            .unwrap_or_else(|error| panic!("PORTFWD_BULK_MIB={text}: {error}"))
    });
    mebibytes << 20
}

/// Sends `length` bytes to a hash server and gives its answer beside the hash of what was sent: they
/// must be the same. No two kibibytes of the data are the same.
///
/// # Errors
/// Those of the connection.
pub fn bulk(namespace: &Namespace, to: SocketAddr, length: u64) -> io::Result<(String, String)> {
    let mut stream = connect(namespace, to)?;
    let mut hash = Sha256::new();
    let mut block: Vec<u8> = (0..=250).cycle().take(256 << 10).collect();
    let mut sent: u64 = 0;
    while sent < length {
        for (number, kibibyte) in (sent >> 10..).zip(block.chunks_exact_mut(1 << 10)) {
            kibibyte[..8].copy_from_slice(&number.to_le_bytes());
        }
        let part = usize::try_from(length - sent).map_or(block.len(), |left| left.min(block.len()));
        stream.write_all(&block[..part])?;
        hash.update(&block[..part]);
        sent += part as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok((hexadecimal(&hash.finalize()), answer))
}

/// What a [`Churn`] did.
#[derive(Debug, Default)]
pub struct ChurnReport {
    /// Connections that were opened, served and closed.
    pub served: u64,
    /// Of each of them, when it was opened, and the label of the server.
    pub answers: Vec<(Instant, String)>,
    /// What went wrong.
    pub failures: Vec<String>,
    /// How long it ran.
    pub duration: Duration,
}

/// Short connections, so many a second, until it is stopped.
#[derive(Debug)]
pub struct Churn {
    stop: Arc<AtomicBool>,
    worker: JoinHandle<ChurnReport>,
}

impl Churn {
    /// Starts to connect from the namespace to a [`Server`](crate::servers::Server).
    #[must_use]
    pub fn start(namespace: &Namespace, to: SocketAddr, per_second: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let worker = namespace.spawn(move || churn(to, per_second, &seen));
        Self { stop, worker }
    }

    /// Ends it.
    ///
    /// # Panics
    /// When its thread panicked.
    #[must_use]
    pub fn finish(self) -> ChurnReport {
        self.stop.store(true, Ordering::Relaxed);
        self.worker.join().expect("the churning thread")
    }
}

fn churn(to: SocketAddr, per_second: u32, stop: &AtomicBool) -> ChurnReport {
    let start = Instant::now();
    let mut report = ChurnReport::default();
    let mut due = start;
    while !stop.load(Ordering::Relaxed) {
        let opened = Instant::now();
        match churn_once(to) {
            Ok(label) => {
                report.served += 1;
                report.answers.push((opened, label));
            }
            Err(error) => report.failures.push(error.to_string()),
        }
        due += Duration::from_secs(1) / per_second;
        if let Some(early) = due.checked_duration_since(Instant::now()) {
            thread::sleep(early);
        }
    }
    report.duration = start.elapsed();
    report
}

fn churn_once(to: SocketAddr) -> io::Result<String> {
    let stream = TcpStream::connect_timeout(&to, patient(PATIENCE))?;
    stream.set_read_timeout(Some(patient(PATIENCE)))?;
    ask_stream(&stream).map(|answer| answer.label)
}
