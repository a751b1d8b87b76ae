//! What `apply` changes.

use std::io::{self, Write};

use serde::Serialize;

use super::forwards::{Published, port_line, sort};

/// Forwards that come, and forwards that go.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Changes {
    /// Those that are published.
    published: Vec<Published>,
    /// Those that are withdrawn.
    withdrawn: Vec<Published>,
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
        }
    }

    /// One line a forward: `- web: 80/tcp -> 0.0.0.0:8080`, then `+ web: 80/tcp -> 0.0.0.0:8081`.
    ///
    /// # Errors
    /// As the writer.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        for (sign, rows) in [('-', &self.withdrawn), ('+', &self.published)] {
            for row in rows {
                writeln!(out, "{sign} {}: {}", row.container, port_line(row))?;
            }
        }
        Ok(())
    }
}
