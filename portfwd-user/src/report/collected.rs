//! What `gc` has removed.

use std::io::{self, Write};

use serde::Serialize;

use super::Published;
use super::forwards::port_line;
use crate::label::Label;

/// What was removed.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Collected {
    /// Containers that are gone, in the order of their names.
    pub containers: Vec<CollectedContainer>,
    /// Translated connections whose forward is gone.
    pub flows: usize,
    /// Sockets of the host that led to a container that is gone.
    pub host_sockets: usize,
}

/// A container that is gone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CollectedContainer {
    /// The container.
    pub container: Label,
    /// What it had published.
    pub forwards: Vec<Published>,
}

impl Collected {
    /// All of it in one line.
    #[must_use]
    pub fn summary(&self) -> String {
        let counted = [
            (self.containers.len(), "container"),
            (self.flows, "flow"),
            (self.host_sockets, "host socket"),
        ];
        let parts: Vec<String> = counted
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, noun)| format!("{count} {noun}{}", if *count == 1 { "" } else { "s" }))
            .collect();
        match parts.is_empty() {
            true => "nothing to remove".to_owned(),
            false => format!("removed: {}", parts.join(", ")),
        }
    }
}

/// One line a forward: the container, then as `port` prints it.
///
/// # Errors
/// As the writer.
pub fn write_collected(out: &mut impl Write, collected: &Collected) -> io::Result<()> {
    for container in &collected.containers {
        for forward in &container.forwards {
            writeln!(out, "{}  {}", container.container, port_line(forward))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_names_what_there_was() {
        let nothing = Collected::default();
        assert_eq!(nothing.summary(), "nothing to remove");
        let some = Collected {
            containers: vec![CollectedContainer {
                container: "web".parse().unwrap(),
                forwards: Vec::new(),
            }],
            flows: 2,
            host_sockets: 0,
        };
        assert_eq!(some.summary(), "removed: 1 container, 2 flows");
    }
}
