//! What `apply` changes.

use std::io::{self, Write};

use serde::Serialize;

use super::forwards::{Published, port_line, sort};
use crate::label::Label;

/// What comes, and what goes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Changes {
    /// Those that are published.
    published: Vec<Published>,
    /// Those that are withdrawn.
    withdrawn: Vec<Published>,
    /// Containers that are masqueraded from now on.
    pub masqueraded: Vec<Label>,
    /// Those that are no longer.
    pub unmasqueraded: Vec<Label>,
}

impl Changes {
    /// In the order in which they are shown.
    #[must_use]
    pub fn new(mut published: Vec<Published>, mut withdrawn: Vec<Published>) -> Self {
        sort(&mut published);
        sort(&mut withdrawn);
        Self {
            published,
            withdrawn,
            masqueraded: Vec::new(),
            unmasqueraded: Vec::new(),
        }
    }

    /// One line a forward or masquerade: `- web: 80/tcp -> 0.0.0.0:8080`, then `+ web: 80/tcp -> 0.0.0.0:8081` and
    /// `+ web: masquerade`.
    ///
    /// # Errors
    /// As the writer.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        for (sign, rows, labels) in [
            ('-', &self.withdrawn, &self.unmasqueraded),
            ('+', &self.published, &self.masqueraded),
        ] {
            for row in rows {
                writeln!(out, "{sign} {}: {}", row.container, port_line(row))?;
            }
            for label in labels {
                writeln!(out, "{sign} {label}: masquerade")?;
            }
        }
        Ok(())
    }
}
