//! Dumps of nf_tables objects through nfnetlink (`include/uapi/linux/netfilter/nfnetlink.h`).
//!
//! Each message carries the low half of the ruleset's generation (`nfnl_msg_put` with `nft_base_seq`), by which
//! several dumps are known to be of one state.

use std::io;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::libc;

use super::super::ForeignError;
use super::super::wire::{Malformed, array, bytes, host_u16, host_u32};

/// NFNL_SUBSYS_NFTABLES, in the high byte of a message's type.
const NFNL_SUBSYS_NFTABLES: u16 = 10;
/// NFT_MSG_GETGEN of `include/uapi/linux/netfilter/nf_tables.h`.
const NFT_MSG_GETGEN: u8 = 16;
/// NLMSG_ERROR and NLMSG_DONE of `include/uapi/linux/netlink.h`.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `struct nlmsghdr`: length, type, flags, sequence number, port.
const NETLINK_HEADER: usize = 16;
/// `struct nfgenmsg`: family, version, res_id.
const NFGENMSG: usize = 4;
/// Longer than any datagram of a dump: the kernel makes them of 32 KiB at most (`netlink_recvmsg`).
const BUFFER: usize = 1 << 16;

/// Why a ruleset was not read.
#[derive(Debug)]
pub(super) enum Unread {
    /// It changed meanwhile.
    Changed,
    /// For good.
    Failed(ForeignError),
}

impl From<ForeignError> for Unread {
    fn from(error: ForeignError) -> Self {
        Self::Failed(error)
    }
}

/// A connection to nf_tables of one namespace.
pub(super) struct Conversation {
    socket: Socket,
    buffer: Vec<u8>,
    generation: Option<u16>,
}

impl Conversation {
    /// None if the kernel has no nfnetlink.
    pub(super) fn open() -> Result<Option<Self>, ForeignError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        match open() {
            Ok(socket) => Ok(Some(Self {
                socket,
                buffer: vec![0; BUFFER],
                generation: None,
            })),
            Err(error) if is(&error, &[Errno::EPROTONOSUPPORT]) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// As [`Self::dump`], of all families; false if the kernel has no nf_tables, for which nfnetlink says EINVAL.
    pub(super) fn dump_if_there(
        &mut self,
        message: u8,
        each: impl FnMut(u8, &[u8]) -> Result<(), Malformed>,
    ) -> Result<bool, Unread> {
        match self.dump(message, 0, &[], each) {
            Ok(()) => Ok(true),
            Err(Unread::Failed(ForeignError::Failed { source, .. }))
                if is(&source, &[Errno::EINVAL, Errno::EOPNOTSUPP]) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Calls `each` with the family and the attributes of every object that meets `limits`, which are
    /// attributes with names.
    pub(super) fn dump(
        &mut self,
        message: u8,
        family: u8,
        limits: &[(u16, &str)],
        mut each: impl FnMut(u8, &[u8]) -> Result<(), Malformed>,
    ) -> Result<(), Unread> {
        let request = request(message, NLM_F_DUMP, family, limits);
        self.socket.send(&request, 0).map_err(failed)?;
        loop {
            let length = self.receive().map_err(failed)?;
            for message in messages(&self.buffer[..length]) {
                let object = match answer(message)? {
                    Answer::Object(object) => object,
                    Answer::Done => return Ok(()),
                    Answer::Error(Errno::ENOENT) if !limits.is_empty() => {
                        return Err(Unread::Changed);
                    }
                    Answer::Error(errno) => return Err(failed(errno.into()).into()),
                };
                let known = *self.generation.get_or_insert(object.generation);
                if object.interrupted || known != object.generation {
                    return Err(Unread::Changed);
                }
                each(object.family, object.attributes)
                    .map_err(|malformed| malformed.of(super::WHAT))?;
            }
        }
    }

    /// Makes sure that the generation is still the one of the dumps so far: one that found nothing did not
    /// tell its own. While a table is replaced by one of its name, there is nothing in it to be found.
    pub(super) fn confirm(&mut self) -> Result<(), Unread> {
        let request = request(NFT_MSG_GETGEN, 0, 0, &[]);
        self.socket.send(&request, 0).map_err(failed)?;
        let length = self.receive().map_err(failed)?;
        let first = messages(&self.buffer[..length]).next();
        match first.map(answer).transpose()? {
            Some(Answer::Object(object)) if self.generation == Some(object.generation) => Ok(()),
            Some(Answer::Error(errno)) => Err(failed(errno.into()).into()),
            _ => Err(Unread::Changed),
        }
    }

    fn receive(&mut self) -> io::Result<usize> {
        let length = self
            .socket
            .recv(&mut self.buffer.as_mut_slice(), libc::MSG_TRUNC)?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if length > self.buffer.len() {
            return Err(io::Error::other(format!("an answer has {length} bytes")));
        }
        Ok(length)
    }
}

fn answer(message: Result<Message<'_>, Malformed>) -> Result<Answer<'_>, ForeignError> {
    message
        .and_then(|message| message.answer())
        .map_err(|malformed| malformed.of(super::WHAT))
}

fn is(error: &io::Error, errnos: &[Errno]) -> bool {
    let number = error.raw_os_error();
    errnos.iter().any(|errno| number == Some(*errno as i32))
}

fn failed(source: io::Error) -> ForeignError {
    ForeignError::Failed {
        request: format!("read {}", super::WHAT),
        source,
    }
}

/// A request.
fn request(message: u8, flags: u16, family: u8, limits: &[(u16, &str)]) -> Vec<u8> {
    let kind = NFNL_SUBSYS_NFTABLES << 8 | u16::from(message);
    let mut bytes = vec![0; 4];
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    bytes.resize(NETLINK_HEADER, 0);
    bytes.push(family);
    bytes.resize(NETLINK_HEADER + NFGENMSG, 0);
    for (kind, name) in limits {
        // Names have 255 bytes at most (NFT_NAME_MAXLEN), so the length fits.
        let length = (4 + name.len() + 1) as u16;
        bytes.extend(length.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(name.bytes());
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    let length = bytes.len() as u32;
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes
}

/// A message of a datagram.
struct Message<'a> {
    kind: u16,
    flags: u16,
    payload: &'a [u8],
}

/// What a message says.
enum Answer<'a> {
    Object(Object<'a>),
    Error(Errno),
    Done,
}

/// An object of a dump.
struct Object<'a> {
    family: u8,
    generation: u16,
    /// The ruleset changed during this dump.
    interrupted: bool,
    attributes: &'a [u8],
}

impl<'a> Message<'a> {
    fn answer(&self) -> Result<Answer<'a>, Malformed> {
        match self.kind {
            NLMSG_ERROR | NLMSG_DONE => {
                // A dump that fails says so in its last message; zero is success.
                let code: [u8; 4] = array(self.payload, 0, "an error")?;
                let code = i32::from_ne_bytes(code);
                Ok(if code < 0 {
                    Answer::Error(Errno::from_raw(code.saturating_neg()))
                } else {
                    Answer::Done
                })
            }
            _ => {
                let [family, _, high, low] = array(self.payload, 0, "nfgenmsg")?;
                Ok(Answer::Object(Object {
                    family,
                    generation: u16::from_be_bytes([high, low]),
                    interrupted: self.flags & NLM_F_DUMP_INTR != 0,
                    attributes: &self.payload[NFGENMSG..],
                }))
            }
        }
    }
}

/// The messages of a datagram, up to the first that is not right.
fn messages(datagram: &[u8]) -> impl Iterator<Item = Result<Message<'_>, Malformed>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let message = first_message(rest);
        rest = match &message {
            Ok(message) => {
                let length = NETLINK_HEADER + message.payload.len();
                rest.get(length.next_multiple_of(4)..).unwrap_or_default()
            }
            Err(_) => &[],
        };
        Some(message)
    })
}

fn first_message(datagram: &[u8]) -> Result<Message<'_>, Malformed> {
    const NAME: &str = "a netlink message";
    let length = host_u32(datagram, 0, NAME)? as usize;
    Ok(Message {
        kind: host_u16(datagram, 4, NAME)?,
        flags: host_u16(datagram, 6, NAME)?,
        payload: bytes(datagram, NETLINK_HEADER..length, NAME)?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_names_table_and_set_in_padded_attributes() {
        let bytes = request(13, NLM_F_DUMP, 2, &[(1, "nat"), (2, "__set0")]);
        assert_eq!(bytes.len(), 16 + 4 + 8 + 12);
        assert_eq!(bytes[..4], 40u32.to_ne_bytes());
        assert_eq!(bytes[4..6], 0x0a0du16.to_ne_bytes());
        assert_eq!(&bytes[24..28], b"nat\0");
        assert_eq!(bytes[28..30], 11u16.to_ne_bytes());
    }

    proptest! {
        #[test]
        fn random_datagrams_are_read_or_refused(bytes in prop::collection::vec(0..=u8::MAX, 0..200)) {
            for message in messages(&bytes).flatten() {
                let _ = message.answer();
            }
        }
    }
}
