//! The two names that people give: of a container, and of an instance.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::error::shown;

/// Longest label of a container, in bytes.
pub const MAX_LABEL: usize = 127;
/// Longest name of an instance, in bytes.
pub const MAX_INSTANCE: usize = 64;

/// What a container is called: 1 to 127 of `[A-Za-z0-9_.-]`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(transparent)]
pub struct Label(String);

/// What an instance is called: 1 to 64 of `[A-Za-z0-9_-]`.
///
/// It is the name of a directory in a bpffs, and a bpffs takes no name with a dot in it
/// (`bpf_lookup` in the kernel's `kernel/bpf/inode.c` answers EPERM).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(transparent)]
pub struct InstanceName(String);

impl Label {
    /// As the maps hold it.
    #[must_use]
    pub fn key(&self) -> portfwd_common::host::Label {
        // The checks of the name are stricter than those of the key.
        portfwd_common::host::Label::new(&self.0).unwrap_or_else(|| unreachable!("{}", self.0))
    }
}

/// Why a name was refused. Every message holds the name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NameError {
    /// No character at all.
    #[error("the name of the {0} is empty")]
    Empty(Kind),
    /// More bytes than fit.
    #[error(
        "the name of the {kind} {} is {length} bytes long, the limit is {limit}",
        shown(name)
    )]
    TooLong {
        /// What was to be named.
        kind: Kind,
        /// The name.
        name: String,
        /// Its length in bytes.
        length: usize,
        /// The most that is taken.
        limit: usize,
    },
    /// A character outside of the set.
    #[error("the name of the {kind} {} holds {character:?}", shown(name))]
    Character {
        /// What was to be named.
        kind: Kind,
        /// The name.
        name: String,
        /// The first character that is not allowed.
        character: char,
    },
}

impl NameError {
    /// What is allowed instead.
    #[must_use]
    pub fn hint(&self) -> String {
        let (kind, limit, set) = match self {
            Self::Empty(kind) | Self::TooLong { kind, .. } | Self::Character { kind, .. } => {
                (kind, kind.limit(), kind.characters())
            }
        };
        format!("the name of {} is 1 to {limit} of {set}", kind.article())
    }
}

/// What a name was meant for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A container.
    Container,
    /// An instance.
    Instance,
}

impl Kind {
    const fn limit(self) -> usize {
        match self {
            Self::Container => MAX_LABEL,
            Self::Instance => MAX_INSTANCE,
        }
    }
    const fn characters(self) -> &'static str {
        match self {
            Self::Container => "A-Z a-z 0-9 _ . -",
            Self::Instance => "A-Z a-z 0-9 _ - (a bpffs takes no dots)",
        }
    }
    const fn article(self) -> &'static str {
        match self {
            Self::Container => "a container",
            Self::Instance => "an instance",
        }
    }
    fn allows(self, character: char) -> bool {
        character.is_ascii_alphanumeric()
            || matches!(character, '_' | '-')
            || (character == '.' && self == Self::Container)
    }
    fn check(self, name: &str) -> Result<String, NameError> {
        if name.is_empty() {
            return Err(NameError::Empty(self));
        }
        if let Some(character) = name.chars().find(|c| !self.allows(*c)) {
            return Err(NameError::Character {
                kind: self,
                name: name.to_owned(),
                character,
            });
        }
        if name.len() > self.limit() {
            return Err(NameError::TooLong {
                kind: self,
                name: name.to_owned(),
                length: name.len(),
                limit: self.limit(),
            });
        }
        Ok(name.to_owned())
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Container => "container",
            Self::Instance => "instance",
        })
    }
}

/// Gives a checked name its conversions from and to text.
macro_rules! checked_name {
    ($name:ident, $kind:expr) => {
        impl $name {
            /// The name as it was given.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(name: &str) -> Result<Self, NameError> {
                $kind.check(name).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

checked_name!(Label, Kind::Container);
checked_name!(InstanceName, Kind::Instance);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_takes_the_whole_set_up_to_127_bytes() {
        let longest = "a".repeat(127);
        for name in ["web", "A", "0", "_", "-", ".", "..", "a.b_c-D9", &longest] {
            let label: Label = name.parse().unwrap();
            assert_eq!(label.as_str(), name);
            assert_eq!(label.to_string(), name);
        }
    }

    #[test]
    fn other_labels_are_refused_by_name() {
        let long = "x".repeat(128);
        for (name, says) in [
            ("", "is empty"),
            ("a b", "\"a b\" holds ' '"),
            ("web\n", "\"web\\n\" holds '\\n'"),
            ("a/b", "\"a/b\" holds '/'"),
            ("bücher", "\"bücher\" holds 'ü'"),
            ("a\0", "holds '\\0'"),
            (&long, "is 128 bytes long, the limit is 127"),
        ] {
            let error = name.parse::<Label>().unwrap_err();
            let text = error.to_string();
            assert!(text.contains(says), "{text}");
            assert!(!text.contains('\n') && !error.hint().contains('\n'));
        }
    }

    #[test]
    fn an_instance_name_can_be_a_directory_of_a_bpffs() {
        for name in ["default", "a-b_C", &"i".repeat(64)] {
            assert_eq!(name.parse::<InstanceName>().unwrap().as_str(), name);
        }
        for name in ["", ".", "..", "a.b", "a/b", "../x", &"i".repeat(65)] {
            assert!(name.parse::<InstanceName>().is_err(), "{name}");
        }
        let error = "a.b".parse::<InstanceName>().unwrap_err();
        assert!(error.hint().contains("no dots"), "{}", error.hint());
    }
}
