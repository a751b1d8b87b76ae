//! Servers inside namespaces, over TCP and UDP.

use std::io::{BufReader, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::socket::{Backlog, Shutdown as SocketShutdown, listen, shutdown};
use sha2::{Digest, Sha256};

use crate::deadline::patient;
use crate::namespace::Namespace;

/// A connection on which nothing happens for so long is given up.
const IDLE: Duration = Duration::from_secs(30);
/// How often a server of datagrams looks whether to stop.
const TICK: Duration = Duration::from_millis(50);

/// What a server does with a connection.
type Serve = fn(&TcpStream, SocketAddr, &str) -> std::io::Result<()>;

/// A server that says who it is and whom it sees, over TCP and UDP.
///
/// TCP: a line `<label> <client address>:<port>`, then everything comes back as an echo.
/// UDP: every datagram is answered by the same line followed by the datagram.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    listeners: Vec<TcpListener>,
    workers: Vec<JoinHandle<()>>,
    accepted: Arc<AtomicU64>,
}

impl Server {
    /// Serves `port` on each of `addresses` inside the namespace, over TCP and UDP.
    ///
    /// # Panics
    /// When a port cannot be bound.
    #[must_use]
    pub fn start(namespace: &Namespace, addresses: &[IpAddr], port: u16, label: &str) -> Self {
        let mut server = Self::nothing();
        for address in addresses {
            let at = SocketAddr::new(*address, port);
            server.serve_tcp(namespace, at, label, tell_and_echo);
            server.serve_udp(namespace, at, label);
        }
        server
    }

    /// Reads every connection on TCP `port` to its end and answers with the SHA-256 of what came,
    /// in hexadecimal.
    ///
    /// # Panics
    /// When the port cannot be bound.
    #[must_use]
    pub fn hash(namespace: &Namespace, addresses: &[IpAddr], port: u16) -> Self {
        let mut server = Self::nothing();
        for address in addresses {
            server.serve_tcp(namespace, SocketAddr::new(*address, port), "", hash_all);
        }
        server
    }

    /// How many TCP connections it has accepted.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    fn nothing() -> Self {
        Self {
            stop: Arc::default(),
            listeners: Vec::new(),
            workers: Vec::new(),
            accepted: Arc::default(),
        }
    }

    fn serve_tcp(&mut self, namespace: &Namespace, at: SocketAddr, label: &str, serve: Serve) {
        let listener = namespace
            .run(|| TcpListener::bind(at))
            .unwrap_or_else(|error| panic!("listen on {at}: {error}"));
        // The standard library lets 128 wait. Of more the kernel makes SYN cookies, and resets those whose
        // first data arrives out of order.
        listen(&listener, Backlog::new(4096).expect("a length")).expect("listen to many");
        let doubled = listener.try_clone().expect("double a listener");
        let (stop, accepted) = (Arc::clone(&self.stop), Arc::clone(&self.accepted));
        let label = label.to_owned();
        self.workers.push(thread::spawn(move || {
            loop {
                let connection = doubled.accept();
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let (stream, peer) = connection.expect("accept a connection");
                accepted.fetch_add(1, Ordering::Relaxed);
                let label = label.clone();
                // Not joined: it ends with its client, or when that is silent for long. What goes
                // wrong on a connection is the client's to notice.
                thread::spawn(move || serve(&stream, peer, &label));
            }
        }));
        self.listeners.push(listener);
    }

    fn serve_udp(&mut self, namespace: &Namespace, at: SocketAddr, label: &str) {
        let socket = namespace
            .run(|| UdpSocket::bind(at))
            .unwrap_or_else(|error| panic!("bind {at}: {error}"));
        socket
            .set_read_timeout(Some(TICK))
            .expect("a time limit above zero");
        let stop = Arc::clone(&self.stop);
        let label = label.to_owned();
        self.workers.push(thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !stop.load(Ordering::Relaxed) {
                // Silence, or an ICMP error about an earlier answer.
                let Ok((length, peer)) = socket.recv_from(&mut buffer) else {
                    continue;
                };
                let mut answer = format!("{label} {peer}\n").into_bytes();
                answer.extend_from_slice(&buffer[..length]);
                // A lost answer is the client's to notice.
                let _ = socket.send_to(&answer, peer);
            }
        }));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for listener in &self.listeners {
            // Wakes `accept`, which then fails.
            if let Err(error) = shutdown(listener.as_fd().as_raw_fd(), SocketShutdown::Read) {
                eprintln!("stop a listener: {error}");
            }
        }
        for worker in self.workers.drain(..) {
            if worker.join().is_err() {
                eprintln!("a server's thread panicked");
            }
        }
    }
}

fn tell_and_echo(mut stream: &TcpStream, peer: SocketAddr, label: &str) -> std::io::Result<()> {
    stream.set_read_timeout(Some(patient(IDLE)))?;
    stream.set_nodelay(true)?;
    stream.write_all(format!("{label} {peer}\n").as_bytes())?;
    let mut buffer = [0; 16 << 10];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return stream.shutdown(Shutdown::Write);
        }
        stream.write_all(&buffer[..length])?;
    }
}

fn hash_all(mut stream: &TcpStream, _: SocketAddr, _: &str) -> std::io::Result<()> {
    stream.set_read_timeout(Some(patient(IDLE)))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    let mut reader = BufReader::with_capacity(0, stream);
    loop {
        let length = reader.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        hash.update(&buffer[..length]);
    }
    stream.write_all(hexadecimal(&hash.finalize()).as_bytes())
}

/// Bytes as lower-case hexadecimal digits.
#[must_use]
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
