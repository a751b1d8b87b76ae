//! Capturing on a device inside a namespace, knowing which checksums the kernel still owes.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use nix::libc;
use nix::net::if_::if_nametoindex;

use crate::deadline::{PATIENCE, until};
use crate::layers::{Layers, checksum_faults};
use crate::namespace::Namespace;

/// Larger than any frame, segmentation offload included.
const FRAME_LIMIT: usize = 70_000;
/// Room for what arrives while the capturing thread does not run.
const BUFFER: libc::c_int = 64 << 20;
/// How long the capturing thread waits before it looks whether to stop.
const TICK_MICROSECONDS: libc::suseconds_t = 50_000;

/// One captured frame.
#[derive(Debug, Clone)]
pub struct Captured {
    /// From the Ethernet header on.
    pub bytes: Vec<u8>,
    /// Whether the device was sending it.
    pub outgoing: bool,
    /// Whether the transport checksum is still to be completed by a device.
    pub partial: bool,
}

impl Captured {
    /// The IP layers, if the frame has some.
    #[must_use]
    pub fn layers(&self) -> Option<Layers<'_>> {
        Layers::of(&self.bytes)
    }
}

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    frames: Arc<Mutex<Vec<Captured>>>,
    worker: Option<JoinHandle<io::Result<()>>>,
}

impl Capture {
    /// Starts to capture every frame that passes `device` in either direction. Frames that are sent
    /// after this returns are in the capture.
    ///
    /// # Panics
    /// When the socket cannot be made.
    #[must_use]
    pub fn start(namespace: &Namespace, device: &str) -> Self {
        let socket = namespace
            .run(|| open(device))
            .unwrap_or_else(|error| panic!("capture on {device}: {error}"));
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let frames = Arc::default();
        let collected = Arc::clone(&frames);
        Self {
            stop,
            frames,
            worker: Some(thread::spawn(move || collect(&socket, &seen, &collected))),
        }
    }

    /// Waits until `found` gives something of what was captured so far.
    ///
    /// # Panics
    /// When that takes too long, naming `what`.
    pub fn wait_for<T>(&self, what: &str, found: impl Fn(&[Captured]) -> Option<T>) -> T {
        until(what, PATIENCE, || {
            found(&self.frames.lock().expect("no panic"))
        })
    }

    /// Ends the capture and gives what it saw.
    ///
    /// # Panics
    /// When the capture failed.
    #[must_use]
    pub fn finish(mut self) -> Vec<Captured> {
        self.stop.store(true, Ordering::Relaxed);
        let worker = self.worker.take().expect("a capture finishes once");
        worker
            .join()
            .expect("the capturing thread does not panic")
            .expect("capture");
        std::mem::take(&mut self.frames.lock().expect("no panic"))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Every fault in the checksums of the frames, one line each. With `complete`, a checksum that the
/// kernel still owes is a fault too (offloads are off, so nobody would complete it).
#[must_use]
pub fn faults(frames: &[Captured], complete: bool) -> Vec<String> {
    let mut faults = Vec::new();
    for frame in frames {
        let owed = frame.partial && !complete;
        faults.extend(checksum_faults(&frame.bytes, owed));
    }
    faults
}

/// Sends a frame out of `device` as it is.
///
/// # Panics
/// When the kernel refuses it.
pub fn inject(namespace: &Namespace, device: &str, frame: &[u8]) {
    let socket = namespace
        .run(|| open(device))
        .unwrap_or_else(|error| panic!("open {device}: {error}"));
    // SAFETY: the frame is readable for its length; the socket is bound to its device.
    let sent = unsafe { libc::send(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
    assert!(
        usize::try_from(sent) == Ok(frame.len()),
        "send a frame out of {device}: {}",
        io::Error::last_os_error()
    );
}

fn open(device: &str) -> io::Result<OwnedFd> {
    let index = if_nametoindex(device)?;
    let every_protocol = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: plain numbers in, a descriptor that nobody else owns out. Protocol 0 keeps the socket
    // silent until it is bound to its device.
    let socket = unsafe {
        let raw = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(raw)
    };
    let on: libc::c_int = 1;
    set(&socket, libc::SOL_PACKET, libc::PACKET_AUXDATA, &on)?;
    set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &BUFFER)?;
    let tick = libc::timeval {
        tv_sec: 0,
        tv_usec: TICK_MICROSECONDS,
    };
    set(&socket, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &tick)?;
    // SAFETY: all-zero bytes are a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = every_protocol;
    address.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
    // SAFETY: the address is a sockaddr_ll of the length that is named.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if bound < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

fn set<T>(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the value is readable for the length that is named.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn collect(socket: &OwnedFd, stop: &AtomicBool, frames: &Mutex<Vec<Captured>>) -> io::Result<()> {
    let mut buffer = vec![0_u8; FRAME_LIMIT];
    loop {
        match receive(socket.as_raw_fd(), &mut buffer) {
            Ok(frame) => frames.lock().expect("no panic").push(frame),
            // Silence: only then may the capture end, so that what was queued is not lost.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if stop.load(Ordering::Relaxed) {
                    return Ok(());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The device went away with its namespace.
            Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Room for one control message with `tpacket_auxdata`, aligned as the kernel wants it.
#[repr(align(8))]
struct Control([u8; 64]);

fn receive(socket: RawFd, buffer: &mut [u8]) -> io::Result<Captured> {
    let mut control = Control([0; 64]);
    // SAFETY: all-zero bytes are valid for both structures.
    let (mut message, mut address): (libc::msghdr, libc::sockaddr_ll) =
        unsafe { (zeroed(), zeroed()) };
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    message.msg_name = (&raw mut address).cast();
    message.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len();
    // SAFETY: every pointer in the message is to a live local with the length beside it.
    let length = unsafe { libc::recvmsg(socket, &raw mut message, 0) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    let mut status = 0;
    // SAFETY: the kernel filled the control buffer; the macros stay within msg_controllen, and the
    // payload of PACKET_AUXDATA is a tpacket_auxdata (packet(7)).
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_PACKET
                && (*header).cmsg_type == libc::PACKET_AUXDATA
            {
                let data = libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>();
                status = data.read_unaligned().tp_status;
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    Ok(Captured {
        bytes: buffer[..length].to_vec(),
        outgoing: address.sll_pkttype == libc::PACKET_OUTGOING,
        partial: status & libc::TP_STATUS_CSUMNOTREADY != 0,
    })
}
