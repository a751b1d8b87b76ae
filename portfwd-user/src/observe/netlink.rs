//! One rtnetlink conversation inside one namespace.

use std::io;

use futures_util::StreamExt;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;

use super::netns::{Netns, NetnsError};

/// How often a dump starts again when links or addresses changed while it ran.
const DUMP_ATTEMPTS: usize = 8;

/// Why the kernel could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket, or no runtime to drive it.
    #[error("cannot open a netlink socket: {0}")]
    Open(#[from] io::Error),
    /// The kernel refused the request.
    #[error("cannot {request}: {source}")]
    Refused {
        /// What was asked for, as words that follow "cannot".
        request: String,
        /// The reason the kernel gives.
        source: io::Error,
    },
    /// The answer makes no sense, or there is none.
    #[error("cannot {request}: {detail}")]
    Answer {
        /// What was asked for, as words that follow "cannot".
        request: String,
        /// What came instead.
        detail: String,
    },
}

impl NetlinkError {
    /// The kernel's reason, where it refused.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { source, .. } | Self::Open(source) => {
                source.raw_os_error().map(Errno::from_raw)
            }
            Self::Answer { .. } => None,
        }
    }
}

/// An open connection to the kernel's routing tables. The kernel checks requests strictly
/// (NETLINK_GET_STRICT_CHK), which also makes it filter dumps by the fields of the request.
#[derive(Debug)]
pub struct Session {
    handle: rtnetlink::Handle,
}

impl Session {
    /// All answers to a dump request, from one consistent pass.
    ///
    /// # Errors
    /// When the kernel refuses; or when the tables keep changing under every pass.
    pub async fn dump(
        &mut self,
        request: &str,
        message: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(found) = self.dump_once(request, message.clone()).await? {
                return Ok(found);
            }
        }
        Err(NetlinkError::Answer {
            request: request.to_owned(),
            detail: format!("it changed during each of {DUMP_ATTEMPTS} readings"),
        })
    }

    /// None when a change interrupted the pass (NLM_F_DUMP_INTR).
    async fn dump_once(
        &mut self,
        request: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Option<Vec<RouteNetlinkMessage>>, NetlinkError> {
        let mut answers = self.send(request, message, NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut found = Vec::new();
        let (mut interrupted, mut ended) = (false, false);
        // The stream is read to its end in any case: a second dump may only start after this one.
        while let Some(answer) = answers.next().await {
            interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
            ended |= matches!(answer.payload, NetlinkPayload::Done(_));
            found.extend(inner(request, answer)?);
        }
        // A request that could not be sent has a stream of answers as well, and it is empty.
        match ended {
            true => Ok((!interrupted).then_some(found)),
            false => Err(no_answer(request)),
        }
    }

    /// The answer to a request for one object.
    ///
    /// # Errors
    /// When the kernel refuses, which for most objects includes that there is none of that name.
    pub async fn get(
        &mut self,
        request: &str,
        message: RouteNetlinkMessage,
    ) -> Result<RouteNetlinkMessage, NetlinkError> {
        let mut answers = self.send(request, message, NLM_F_REQUEST)?;
        while let Some(answer) = answers.next().await {
            if let Some(found) = inner(request, answer)? {
                return Ok(found);
            }
        }
        Err(no_answer(request))
    }

    /// Has the kernel do what is acknowledged and answered with nothing else: adding and removing.
    /// `flags` are those that say how (`NLM_F_CREATE` and the like).
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn order(
        &mut self,
        request: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), NetlinkError> {
        let mut answers = self.send(request, message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        let mut acknowledged = false;
        while let Some(answer) = answers.next().await {
            acknowledged |= matches!(answer.payload, NetlinkPayload::Error(_));
            inner(request, answer)?;
        }
        match acknowledged {
            true => Ok(()),
            false => Err(no_answer(request)),
        }
    }

    fn send(
        &mut self,
        request: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<
        impl futures_util::Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + use<>,
        NetlinkError,
    > {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = flags;
        self.handle
            .request(message)
            .map_err(|error| NetlinkError::Answer {
                request: request.to_owned(),
                detail: error.to_string(),
            })
    }
}

fn no_answer(request: &str) -> NetlinkError {
    NetlinkError::Answer {
        request: request.to_owned(),
        detail: "no answer".to_owned(),
    }
}

/// What an answer carries; None for the acknowledgement at the end.
fn inner(
    request: &str,
    answer: NetlinkMessage<RouteNetlinkMessage>,
) -> Result<Option<RouteNetlinkMessage>, NetlinkError> {
    match answer.payload {
        NetlinkPayload::InnerMessage(message) => Ok(Some(message)),
        NetlinkPayload::Error(error) => match error.code {
            None => Ok(None),
            Some(code) => Err(NetlinkError::Refused {
                request: request.to_owned(),
                source: io::Error::from_raw_os_error(-code.get()),
            }),
        },
        // A dump that fails says so in its last message.
        NetlinkPayload::Done(done) if done.code < 0 => Err(NetlinkError::Refused {
            request: request.to_owned(),
            source: io::Error::from_raw_os_error(-done.code),
        }),
        NetlinkPayload::Done(_) | NetlinkPayload::Noop => Ok(None),
        other => Err(NetlinkError::Answer {
            request: request.to_owned(),
            detail: format!("unexpected {other:?}"),
        }),
    }
}

/// Runs `talk` with a session in the namespace, in a thread of its own.
///
/// # Errors
/// Those of [`Netns::run_in`], of opening the socket, and those of `talk`.
pub fn converse<T, E>(
    netns: &Netns,
    talk: impl AsyncFnOnce(&mut Session) -> Result<T, E> + Send,
) -> Result<T, E>
where
    T: Send,
    E: Send + From<NetnsError> + From<NetlinkError>,
{
    netns.run_in(|| converse_here(talk))?
}

/// As [`converse`], in the calling thread's namespace: for code that runs inside [`Netns::run_in`]
/// already. Must not be called from an asynchronous task.
pub fn converse_here<T, E>(talk: impl AsyncFnOnce(&mut Session) -> Result<T, E>) -> Result<T, E>
where
    E: From<NetlinkError>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(NetlinkError::Open)?;
    runtime.block_on(async {
        let (mut connection, handle, _notifications) =
            rtnetlink::new_connection_with_strict_check().map_err(NetlinkError::Open)?;
        connection.set_forward_done(true);
        connection.set_forward_ack(true);
        // Ends by itself when the last handle is gone.
        tokio::spawn(connection);
        talk(&mut Session { handle }).await
    })
}
