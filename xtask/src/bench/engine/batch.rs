//! Many datagrams by one system call.

use std::{io, net::UdpSocket, os::fd::AsRawFd as _, ptr};

use nix::libc;

/// Bytes of payload of a datagram.
pub(super) const DATAGRAM: usize = 64;

/// Datagrams of a batch.
const LENGTH: usize = 32;

/// Room for some datagrams, and the headers by which the kernel finds it.
pub(super) struct Batch {
    datagrams: Box<[[u8; DATAGRAM]; LENGTH]>,
    // Points into `datagrams`.
    _slices: Box<[libc::iovec; LENGTH]>,
    // Points into `_slices`.
    headers: Box<[libc::mmsghdr; LENGTH]>,
}

impl Batch {
    pub(super) fn new() -> Batch {
        let mut datagrams = Box::new([[0; DATAGRAM]; LENGTH]);
        let mut slices = Box::new(std::array::from_fn(|index| libc::iovec {
            iov_base: datagrams[index].as_mut_ptr().cast(),
            iov_len: DATAGRAM,
        }));
        let headers = Box::new(std::array::from_fn(|index| libc::mmsghdr {
            msg_hdr: libc::msghdr {
                msg_name: ptr::null_mut(),
                msg_namelen: 0,
                msg_iov: &raw mut slices[index],
                msg_iovlen: 1,
                msg_control: ptr::null_mut(),
                msg_controllen: 0,
                msg_flags: 0,
            },
            msg_len: 0,
        }));
        Batch {
            datagrams,
            _slices: slices,
            headers,
        }
    }

    /// All datagrams, to be filled before they are sent.
    pub(super) fn all(&mut self) -> &mut [[u8; DATAGRAM]] {
        &mut *self.datagrams
    }

    /// Sends all datagrams by a connected socket; gives how many went out.
    pub(super) fn send(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        // SAFETY: every header names one slice, and every slice one datagram of `self`.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                LENGTH as u32,
                0,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Receives as many as there are, but no more than fit; waits only if the socket does. Longer ones
    /// are cut. Gives them.
    pub(super) fn receive(&mut self, socket: &UdpSocket) -> io::Result<&[[u8; DATAGRAM]]> {
        // SAFETY: as in `send`.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                LENGTH as u32,
                libc::MSG_WAITFORONE,
                ptr::null_mut(),
            )
        };
        let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        Ok(&self.datagrams[..received])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_arrives_as_it_was_sent() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        let mut out = Batch::new();
        for (number, datagram) in out.all().iter_mut().enumerate() {
            datagram.fill(number as u8);
        }
        assert_eq!(out.send(&sender).unwrap(), LENGTH);
        let mut back = Batch::new();
        let received = back.receive(&receiver).unwrap();
        assert_eq!(received.len(), LENGTH);
        for (number, datagram) in received.iter().enumerate() {
            assert_eq!(*datagram, [number as u8; DATAGRAM]);
        }
        receiver.set_nonblocking(true).unwrap();
        let error = back.receive(&receiver).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
