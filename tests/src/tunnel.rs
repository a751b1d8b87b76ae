//! A wire between two namespaces that is no veth: a tun or tap device in each, and a thread for each
//! direction that carries packets from one to the other.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::namespace::Namespace;

/// Larger than any packet: these devices are not asked for segmentation offload.
const PACKET_LIMIT: usize = 70_000;
/// How often a thread looks whether to stop, in milliseconds.
const TICK: u8 = 50;

/// What the devices carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// IP packets, without an Ethernet header.
    Tun,
    /// Ethernet frames.
    Tap,
    /// The same, of which only the Ethernet header lies in one piece; the rest is in pages, as some network
    /// cards leave it.
    Scattered,
}

impl Kind {
    fn flags(self) -> libc::c_int {
        match self {
            Self::Tun => libc::IFF_TUN,
            Self::Tap => libc::IFF_TAP,
            Self::Scattered => libc::IFF_TAP | libc::IFF_NAPI | libc::IFF_NAPI_FRAGS,
        }
    }
}

/// Length of an Ethernet header.
const ETHERNET: usize = 14;

/// The wire; dropping it removes both devices.
#[derive(Debug)]
pub struct Tunnel {
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<()>>,
}

impl Tunnel {
    /// Makes a device in each of two namespaces, both still down, and connects them.
    ///
    /// # Panics
    /// When a device cannot be made.
    #[must_use]
    pub fn new(kind: Kind, one: (&Namespace, &str), other: (&Namespace, &str)) -> Self {
        let [near, far] = [one, other].map(|(namespace, name)| {
            let made = namespace.run(|| device(kind, name));
            made.unwrap_or_else(|error| panic!("{kind:?} {name} in {}: {error}", namespace.name()))
        });
        let stop = Arc::new(AtomicBool::new(false));
        let (near, far) = (Arc::new(near), Arc::new(far));
        let ways = [(Arc::clone(&near), Arc::clone(&far)), (far, near)];
        let workers = ways.map(|(from, to)| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || carry(kind, &from, &to, &stop))
        });
        Self {
            stop,
            workers: workers.into(),
        }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            if worker.join().is_err() {
                eprintln!("a tunnel's thread panicked");
            }
        }
    }
}

/// `struct ifreq` of linux/if.h, as `TUNSETIFF` reads it.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    padding: [u8; 22],
}

/// A device in the calling thread's namespace; it lives as long as the file is open.
fn device(kind: Kind, name: &str) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    let name = CString::new(name)?;
    let mut request = Request {
        name: [0; libc::IFNAMSIZ],
        flags: (libc::IFF_NO_PI | kind.flags()) as libc::c_short,
        padding: [0; 22],
    };
    let bytes = name.as_bytes_with_nul();
    request.name[..bytes.len()].copy_from_slice(bytes);
    // SAFETY: the kernel reads and writes a `struct ifreq`, which the request is as long as.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    Errno::result(result)?;
    Ok(file)
}

/// Carries packets until it is stopped. What a device that is down does not take is lost, as on a wire.
fn carry(kind: Kind, mut from: &File, mut to: &File, stop: &AtomicBool) {
    let mut packet = vec![0; PACKET_LIMIT];
    while !stop.load(Ordering::Relaxed) {
        let mut waiting = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        match poll(&mut waiting, PollTimeout::from(TICK)) {
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => {}
            Err(error) => panic!("wait for a packet: {error}"),
        }
        if let Ok(length) = from.read(&mut packet) {
            let (header, rest) = packet[..length].split_at(ETHERNET.min(length));
            let _ = match kind {
                Kind::Scattered => to.write_vectored(&[IoSlice::new(header), IoSlice::new(rest)]),
                Kind::Tun | Kind::Tap => to.write(&packet[..length]),
            };
        }
    }
}
