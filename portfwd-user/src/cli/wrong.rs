//! What is wrong with an attach, and where it stands.

use crate::error::Error;

/// The arguments of an attach of which there may be several.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum List {
    Publish,
    Connect,
    Allow,
    Deny,
}

/// An error, with the one of several arguments that it is about.
pub(super) struct Wrong {
    /// The list, and the position in it.
    pub(super) entry: Option<(List, usize)>,
    pub(super) cause: Box<Error>,
}

impl Wrong {
    pub(super) fn at(list: List, position: usize, cause: impl Into<Error>) -> Self {
        Self {
            entry: Some((list, position)),
            cause: Box::new(cause.into()),
        }
    }
}

impl<E> From<E> for Wrong
where
    Error: From<E>,
{
    fn from(cause: E) -> Self {
        Self {
            entry: None,
            cause: Box::new(cause.into()),
        }
    }
}
