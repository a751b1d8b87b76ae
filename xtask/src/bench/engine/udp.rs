//! UDP traffic.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::sys::socket::{setsockopt, sockopt};

use super::{
    Count, Meter, SILENCE, Window,
    batch::{Batch, DATAGRAM},
};

/// How long a request waits for its answer before it counts as lost.
const PATIENCE: Duration = Duration::from_millis(200);

/// The sink's receive buffer in bytes. The default holds about 270 small datagrams, fewer than the
/// sender makes in one slice of a core that the two share; what overflows would measure the
/// scheduler.
const RECEIVE_BUFFER: usize = 64 << 20;

/// How long the sink sleeps when it has nothing left to read. It is not woken by datagrams: waking a
/// reader costs the sender more than the way does, and how often it happens is the scheduler's mood.
const NAP: Duration = Duration::from_micros(200);

/// Sends every datagram back.
pub(super) fn echo(
    address: SocketAddr,
    ready: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Count> {
    let socket = bind(address)?;
    ready()?;
    let mut datagram = [0; DATAGRAM];
    loop {
        let (length, peer) = socket
            .recv_from(&mut datagram)
            .context("receive a datagram")?;
        socket
            .send_to(&datagram[..length], peer)
            .context("send a datagram back")?;
    }
}

/// Counts round trips of one small datagram. It carries a number, so that an answer that comes after
/// its request was given up is not taken for the next one.
pub(super) fn ping(target: SocketAddr, window: Window) -> anyhow::Result<Count> {
    let socket = connect(target)?;
    socket
        .set_read_timeout(Some(PATIENCE))
        .context("set the receive timeout")?;
    let mut meter = Meter::start(window);
    let mut last_answer = Instant::now();
    let mut number: u32 = 0;
    loop {
        number = number.wrapping_add(1);
        let answered = exchange(&socket, number)?;
        if answered {
            last_answer = Instant::now();
        } else if last_answer.elapsed() > SILENCE {
            bail!("no answer from {target} for {SILENCE:?}");
        }
        if let Some(count) = meter.add(u64::from(answered), u64::from(!answered)) {
            return Ok(count);
        }
    }
}

/// One request; says whether its answer came.
fn exchange(socket: &UdpSocket, number: u32) -> anyhow::Result<bool> {
    match socket.send(&number.to_le_bytes()) {
        Ok(_) => {}
        // The ICMP error of an earlier request: a proxy may still be starting.
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Ok(false),
        Err(error) => return Err(error).context("send a datagram"),
    }
    let mut answer = [0; 4];
    loop {
        match socket.recv(&mut answer) {
            Ok(4) if u32::from_le_bytes(answer) == number => return Ok(true),
            Ok(_) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::ConnectionRefused
                ) =>
            {
                return Ok(false);
            }
            Err(error) => return Err(error).context("receive an answer"),
        }
    }
}

/// Counts the datagrams of a one-way stream that arrive, and the gaps in their numbers.
pub(super) fn drain(
    address: SocketAddr,
    window: Window,
    ready: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Count> {
    let socket = bind(address)?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).context("set SO_RCVBUFFORCE")?;
    socket.set_nonblocking(true).context("set O_NONBLOCK")?;
    ready()?;
    let mut batch = Batch::new();
    // The meter starts with the stream.
    let mut next = receive(&socket, &mut batch)?.end;
    let mut meter = Meter::start(window);
    loop {
        let numbers = receive(&socket, &mut batch)?;
        // What is missing between batches, and within this one; reordering does not happen here.
        let lost = numbers
            .end
            .saturating_sub(next)
            .saturating_sub(numbers.count);
        next = numbers.end;
        if let Some(count) = meter.add(numbers.count, lost) {
            return Ok(count);
        }
    }
}

/// Numbers of some datagrams of the stream.
struct Numbers {
    count: u64,
    /// One more than the last.
    end: u64,
}

/// What has come since the last time, once something has.
fn receive(socket: &UdpSocket, batch: &mut Batch) -> anyhow::Result<Numbers> {
    let deadline = Instant::now() + SILENCE;
    loop {
        match batch.receive(socket) {
            Ok([]) => {}
            Ok(datagrams @ [.., last]) => {
                let number = last.first_chunk().context("a datagram without a number")?;
                return Ok(Numbers {
                    count: datagrams.len() as u64,
                    end: u64::from_le_bytes(*number) + 1,
                });
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                thread::sleep(NAP);
            }
            Err(error) => return Err(error).context("wait for a datagram"),
        }
    }
}

/// Sends datagrams, numbered in their first eight bytes, little endian, until its process is ended.
pub(super) fn flood(target: SocketAddr) -> anyhow::Result<Option<Count>> {
    let socket = connect(target)?;
    let mut batch = Batch::new();
    let mut number: u64 = 0;
    loop {
        for (datagram, number) in batch.all().iter_mut().zip(number..) {
            if let Some(place) = datagram.first_chunk_mut() {
                *place = number.to_le_bytes();
            }
        }
        match batch.send(&socket) {
            Ok(sent) => number += sent as u64,
            // The ICMP error of an earlier datagram: a proxy may still be starting.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error).context("send datagrams"),
        }
    }
}

fn bind(address: SocketAddr) -> anyhow::Result<UdpSocket> {
    UdpSocket::bind(address).with_context(|| format!("bind {address}"))
}

fn connect(target: SocketAddr) -> anyhow::Result<UdpSocket> {
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = bind(SocketAddr::new(any, 0))?;
    socket
        .connect(target)
        .with_context(|| format!("connect to {target}"))?;
    Ok(socket)
}
