//! TCP traffic.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use super::{Count, Meter, SILENCE, Window};

/// Bytes of a request, and of its answer: about what a small HTTP exchange carries in one segment.
const EXCHANGE: usize = 128;

/// Bytes of one read or write of the bulk transfer: large enough that system calls do not count,
/// small enough to stay in a core's second-level cache.
const CHUNK: usize = 128 * 1024;

/// Sends every byte of one connection after the other back.
pub(super) fn echo(
    address: SocketAddr,
    ready: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Count> {
    let listener = listen(address)?;
    ready()?;
    loop {
        let mut stream = accept(&listener)?;
        let mut byte = [0];
        while stream.read(&mut byte).context("read a byte")? == 1 {
            stream.write_all(&byte).context("send a byte back")?;
        }
    }
}

/// Counts round trips of one byte on one connection.
pub(super) fn ping(target: SocketAddr, window: Window) -> anyhow::Result<Count> {
    let mut stream = connect(target)?;
    let mut byte = [0];
    let mut meter = Meter::start(window);
    loop {
        stream.write_all(&byte).context("send a byte")?;
        stream.read_exact(&mut byte).context("wait for the byte")?;
        if let Some(count) = meter.add(1, 0) {
            return Ok(count);
        }
    }
}

/// Reads one request of each connection, answers it and closes, as HTTP/1.0 does.
///
/// The server closes first, so that TIME_WAIT is its burden: on the client's side it would use up
/// the ephemeral ports in seconds.
pub(super) fn answer(
    address: SocketAddr,
    ready: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Count> {
    let listener = listen(address)?;
    ready()?;
    let mut request = [0; EXCHANGE];
    loop {
        let mut stream = accept(&listener)?;
        stream.read_exact(&mut request).context("read a request")?;
        stream.write_all(&request).context("answer a request")?;
    }
}

/// Counts connections that were opened, answered and closed.
pub(super) fn request(target: SocketAddr, window: Window) -> anyhow::Result<Count> {
    drop_first(target)?;
    let mut meter = Meter::start(window);
    let request = [0; EXCHANGE];
    let mut answer = [0; EXCHANGE + 1];
    loop {
        let mut stream = TcpStream::connect(target).context("connect")?;
        stream.write_all(&request).context("send a request")?;
        let mut length = 0;
        loop {
            match stream
                .read(&mut answer[length..])
                .context("read an answer")?
            {
                0 => break,
                more => length += more,
            }
        }
        if length != EXCHANGE {
            bail!("an answer of {length} bytes instead of {EXCHANGE}");
        }
        drop(stream);
        if let Some(count) = meter.add(1, 0) {
            return Ok(count);
        }
    }
}

/// Waits until the service answers, with one exchange that does not count.
fn drop_first(target: SocketAddr) -> anyhow::Result<()> {
    let mut stream = connect(target)?;
    stream
        .write_all(&[0; EXCHANGE])
        .context("send the first request")?;
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .context("read the first answer")?;
    Ok(())
}

/// Counts the bytes that arrive on one connection.
pub(super) fn drain(
    address: SocketAddr,
    window: Window,
    ready: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Count> {
    let listener = listen(address)?;
    ready()?;
    let mut stream = accept(&listener)?;
    let mut chunk = vec![0; CHUNK];
    let mut meter = Meter::start(window);
    loop {
        let length = stream.read(&mut chunk).context("read the bulk transfer")?;
        if length == 0 {
            bail!("the client closed the bulk transfer early");
        }
        if let Some(count) = meter.add(length as u64, 0) {
            return Ok(count);
        }
    }
}

/// Sends until the other side has had enough.
pub(super) fn flood(target: SocketAddr) -> anyhow::Result<()> {
    let mut stream = connect(target)?;
    let chunk = vec![0; CHUNK];
    loop {
        match stream.write_all(&chunk) {
            Ok(()) => {}
            Err(error) if is_close(&error) => return Ok(()),
            Err(error) => return Err(error).context("send the bulk transfer"),
        }
    }
}

fn is_close(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
    )
}

fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).with_context(|| format!("listen on {address}"))
}

fn accept(listener: &TcpListener) -> anyhow::Result<TcpStream> {
    let (stream, _) = listener.accept().context("accept a connection")?;
    stream.set_nodelay(true).context("set TCP_NODELAY")?;
    Ok(stream)
}

/// Connects, and tries again while nothing listens yet: a proxy may still be starting.
fn connect(target: SocketAddr) -> anyhow::Result<TcpStream> {
    let deadline = Instant::now() + SILENCE;
    loop {
        match TcpStream::connect_timeout(&target, SILENCE) {
            Ok(stream) => {
                stream.set_nodelay(true).context("set TCP_NODELAY")?;
                return Ok(stream);
            }
            Err(error)
                if error.kind() == ErrorKind::ConnectionRefused && Instant::now() < deadline =>
            {
                thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(error).with_context(|| format!("connect to {target}")),
        }
    }
}
