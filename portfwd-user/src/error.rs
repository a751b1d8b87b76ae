//! Everything that ends a command early: what it says, who holds what was wanted, what to do, and with
//! which code the process exits.
//!
//! On standard error an [`Error`] is one line `error: ...`, then a line for each of its
//! [`Error::details`] and one for its [`Error::hint`]. Text from outside (arguments, file names,
//! messages of libraries) is escaped and cut, so that no value can add a line.

mod foreign;
mod subjects;
#[cfg(test)]
mod tests;
mod text;

use std::error::Error as StdError;
use std::io;

pub use subjects::{ContainerError, InstanceError, Lacking, Missing, Usage};
pub(crate) use text::escape;
pub use text::{one_line, shown, shown_path};

use crate::collision::CollisionError;
use crate::connection::{ConnectionError, fit::ConnectError};
use crate::declaration::DeclarationError;
use crate::label::NameError;
use crate::lock::LockError;
use crate::object::LoadError;
use crate::observe;
use crate::spec::SpecError;
use crate::subnet::SubnetError;
use crate::tables::TableError;
use crate::target::AddressError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Malformed arguments.
    #[error(transparent)]
    Usage(#[from] Usage),
    /// A malformed SPEC, or SPECs that contradict each other.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A malformed name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A malformed container address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// A malformed subnet.
    #[error(transparent)]
    Subnet(#[from] SubnetError),
    /// A malformed connection.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// Addresses that a new link cannot have.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A port that somebody else has.
    #[error(transparent)]
    Collision(#[from] CollisionError),
    /// Something that was named and is not there.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// A privilege or a kernel feature that is needed.
    #[error(transparent)]
    Lacking(#[from] Lacking),
    /// The state of the instance forbids it.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// The state of the container forbids it.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// A step that the system refused: input and output, netlink, bpf.
    #[error("cannot {action}: {}", one_line(source.as_ref()))]
    Failed {
        /// What was to be done, on what: `open /sys/fs/bpf/portfwd/default/ports`.
        action: String,
        /// What the system said.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The container's link cannot be used.
    #[error(transparent)]
    Link(Box<observe::container::ContainerError>),
    /// A failure that another module has put into words.
    #[error("{}", one_line(.0.as_ref()))]
    System(Box<dyn StdError + Send + Sync>),
    /// A command failed, and what it had done could not be taken back entirely.
    #[error("{cause}")]
    Undo {
        /// Why the command failed.
        cause: Box<Error>,
        /// What could not be taken back.
        failures: Vec<Error>,
    },
    /// A command has changed what packets see, as it was to, and a step that follows failed.
    #[error("what was asked for is done, but not all that goes with it: {cause}")]
    Committed {
        /// Why that step failed.
        cause: Box<Error>,
    },
    /// Something that a file declares is wrong, or cannot be.
    #[error("{file}, line {line}: {cause}")]
    Declared {
        /// The file, as it was given.
        file: String,
        /// The line.
        line: usize,
        /// What is wrong.
        cause: Box<Error>,
    },
    /// Not everything could be removed.
    #[error("{} could not be removed", things(failures.len()))]
    Teardown {
        /// What could not.
        failures: Vec<Error>,
    },
}

fn things(count: usize) -> String {
    match count {
        1 => "one thing".to_owned(),
        _ => format!("{count} things"),
    }
}

impl Error {
    /// The same, of a step that follows the commit.
    #[must_use]
    pub fn after_commit(self) -> Self {
        Self::Committed {
            cause: Box::new(self),
        }
    }

    /// The exit code of the contract: 1 failed, 2 malformed, 3 in use, 4 not there, 5 not able.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_)
            | Self::Spec(_)
            | Self::Name(_)
            | Self::Address(_)
            | Self::Subnet(_)
            | Self::Connection(_) => 2,
            Self::Collision(_) => 3,
            Self::Missing(_) => 4,
            Self::Lacking(_) => 5,
            Self::Failed { source, .. } | Self::System(source)
                if is_permission_denied(source.as_ref()) || is_refused(source.as_ref()) =>
            {
                5
            }
            Self::Undo { cause, .. } | Self::Declared { cause, .. } | Self::Committed { cause } => {
                cause.exit_code()
            }
            Self::Instance(_)
            | Self::Connect(_)
            | Self::Container(_)
            | Self::Link(_)
            | Self::Failed { .. }
            | Self::System(_)
            | Self::Teardown { .. } => 1,
        }
    }

    /// Further lines, each a name and a value: `held by` and `container "web" (tcp)`.
    #[must_use]
    pub fn details(&self) -> Vec<(&'static str, String)> {
        let left_behind = |failures: &[Self]| -> Vec<(&'static str, String)> {
            let lines = failures.iter().flat_map(|failure| match failure {
                // It would only say how many.
                Self::Teardown { failures } => failures.iter().map(Self::to_string).collect(),
                failure => vec![failure.to_string()],
            });
            lines.map(|line| ("left behind", line)).collect()
        };
        match self {
            Self::Collision(collision) => collision.details(),
            Self::Connect(error) => error.details(),
            Self::Undo { cause, failures } => {
                let mut details = cause.details();
                details.extend(left_behind(failures));
                details
            }
            Self::Declared { cause, .. } | Self::Committed { cause } => cause.details(),
            Self::Teardown { failures } => left_behind(failures),
            _ => Vec::new(),
        }
    }

    /// The next step, if there is one to tell.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Usage(usage) => usage.hint.clone(),
            Self::Spec(error) => Some(error.hint()),
            Self::Name(error) => Some(error.hint()),
            Self::Address(error) => Some(error.hint()),
            Self::Subnet(error) => Some(error.hint()),
            Self::Connection(error) => Some(error.hint()),
            Self::Connect(error) => Some(error.hint().to_owned()),
            Self::Collision(collision) => Some(collision.hint().to_owned()),
            Self::Missing(missing) => missing.hint(),
            Self::Lacking(lacking) => lacking.hint(),
            Self::Instance(error) => error.hint(),
            Self::Container(error) => error.hint(),
            Self::Link(error) => error.hint(),
            Self::Failed { source, .. } | Self::System(source)
                if is_permission_denied(source.as_ref()) =>
            {
                Some(
                    "run it as root, or with CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and CAP_SYS_ADMIN"
                        .to_owned(),
                )
            }
            Self::Failed { source, .. } | Self::System(source) if is_refused(source.as_ref()) => {
                Some("use Linux 6.1 or later, and report it if it is".to_owned())
            }
            Self::Failed { source, .. } | Self::System(source) => own_hint(source.as_ref()),
            Self::Committed { .. } => Some(
                "portfwd list shows what is published; portfwd up does the rest, as every command that changes something"
                    .to_owned(),
            ),
            // Keys of the file, not options.
            Self::Declared { cause, .. }
                if matches!(cause.as_ref(), Self::Missing(Missing::Target(_))) =>
            {
                Some("say where it is: netns = \"PATH\", pid = PID or ip = \"ADDR\"".to_owned())
            }
            Self::Undo { cause, .. } | Self::Declared { cause, .. } => cause.hint(),
            Self::Teardown { .. } => None,
        }
    }

    /// Everything for standard error, each line with its end.
    #[must_use]
    pub fn report(&self) -> String {
        let mut report = format!("error: {}\n", text::escape(&self.to_string()));
        for (name, value) in self.details() {
            report.push_str(&format!("{name}: {}\n", text::escape(&value)));
        }
        if let Some(hint) = self.hint() {
            report.push_str(&format!("hint: {}\n", text::escape(&hint)));
        }
        report
    }
}

/// Whether EPERM or EACCES is at the bottom of it.
pub fn is_permission_denied(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let io = error.downcast_ref::<io::Error>();
        if io.is_some_and(|io| io.kind() == io::ErrorKind::PermissionDenied) {
            return true;
        }
        next = error.source();
    }
    false
}

/// Whether the kernel's verifier refused a program: what it lacks then is a feature.
fn is_refused(error: &(dyn StdError + 'static)) -> bool {
    matches!(error.downcast_ref(), Some(LoadError::Refused { .. }))
}

/// Of the error, or of what is below it.
fn own_hint(error: &(dyn StdError + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        let lock = error.downcast_ref().and_then(LockError::hint);
        let table = error.downcast_ref().and_then(TableError::hint);
        let declaration = error.downcast_ref().map(DeclarationError::hint);
        if let Some(hint) = lock.or(table.or(declaration).map(str::to_owned)) {
            return Some(hint);
        }
        next = error.source();
    }
    None
}

/// Says what was being done when a step failed.
pub trait Doing<T> {
    /// The error as [`Error::Failed`], with `action` as in "cannot `action`: ...".
    ///
    /// # Errors
    /// When `self` is one.
    fn doing(self, action: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T, E: StdError + Send + Sync + 'static> Doing<T> for Result<T, E> {
    fn doing(self, action: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error::Failed {
            action: action(),
            source: Box::new(source),
        })
    }
}
