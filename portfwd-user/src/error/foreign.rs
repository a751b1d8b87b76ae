//! The errors of the other modules as [`Error`]s: what has a place in the contract goes there, the rest
//! is told in its own words.

use super::{Error, Lacking};
use crate::lock::LockError;
use crate::object::LoadError;
use crate::observe::addresses::AddressError;
use crate::observe::container::ContainerError as LinkError;
use crate::observe::netlink::NetlinkError;
use crate::observe::netns::NetnsError;
use crate::observe::networks::NetworksError;
use crate::observe::routes::RoutesError;
use crate::observe::sockets::SocketError;
use crate::tables::TableError;

impl From<NetnsError> for Error {
    fn from(error: NetnsError) -> Self {
        match error {
            NetnsError::Missing(missing) => missing.into(),
            other => Self::System(Box::new(other)),
        }
    }
}

impl From<LinkError> for Error {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Netns(error) => error.into(),
            LinkError::Netlink(error) => error.into(),
            other => Self::Link(Box::new(other)),
        }
    }
}

impl From<NetworksError> for Error {
    fn from(error: NetworksError) -> Self {
        match error {
            NetworksError::Netns(error) => error.into(),
            NetworksError::Netlink(error) => error.into(),
        }
    }
}

impl From<AddressError> for Error {
    fn from(error: AddressError) -> Self {
        match error {
            AddressError::Netns(error) => error.into(),
            AddressError::Netlink(error) => error.into(),
        }
    }
}

impl From<RoutesError> for Error {
    fn from(error: RoutesError) -> Self {
        match error {
            RoutesError::Netns(error) => error.into(),
            RoutesError::Netlink(error) => error.into(),
        }
    }
}

impl From<SocketError> for Error {
    fn from(error: SocketError) -> Self {
        match error {
            SocketError::Netns(error) => error.into(),
            SocketError::DestroyUnsupported { .. } => Lacking::KernelFeature {
                feature: error.to_string(),
                hint: None,
            }
            .into(),
            other => Self::System(Box::new(other)),
        }
    }
}

/// Errors that say all there is to say.
macro_rules! told_in_their_own_words {
    ($($error:ty),+) => {$(
        impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Self::System(Box::new(error))
            }
        }
    )+};
}

told_in_their_own_words!(NetlinkError, LockError, LoadError, TableError);
