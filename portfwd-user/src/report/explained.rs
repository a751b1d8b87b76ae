//! What becomes of a packet.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use portfwd_common::{net::Protocol, verdict::Reason};
use serde::{Serialize, Serializer};

use super::flows::seconds;
use super::forwards::{Published, clients, networks, port_line, protocol_name};
use super::table::duration;

/// A packet, and what becomes of it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The packet.
    pub packet: PacketRow,
    /// The forward that has its port.
    pub forward: Option<Published>,
    /// Clients that may use it; none given: all.
    #[serde(serialize_with = "networks")]
    pub allow: Vec<IpNet>,
    /// Clients that may not.
    #[serde(serialize_with = "networks")]
    pub deny: Vec<IpNet>,
    /// What becomes of the packet.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Connections and UDP flows that the forward has had.
    pub connections: u64,
    /// Packets that were dropped on its account.
    pub drops: u64,
    /// The last of them.
    pub last_drop: Option<LastDrop>,
    /// What is to be known besides.
    pub notes: Vec<String>,
}

/// A packet that was dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LastDrop {
    /// Why.
    #[serde(serialize_with = "reason_name")]
    pub reason: Reason,
    /// Time since then, whole seconds in the document.
    #[serde(serialize_with = "seconds")]
    pub age: Duration,
}

fn reason_name<R: Copy + Into<Option<Reason>>, S: Serializer>(
    reason: &R,
    to: S,
) -> Result<S::Ok, S::Error> {
    let reason: Option<Reason> = (*reason).into();
    reason.map(Reason::name).serialize(to)
}

/// A packet that opens a connection.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PacketRow {
    /// Its protocol.
    #[serde(serialize_with = "protocol_name")]
    pub protocol: Protocol,
    /// Who sends it.
    pub from: SocketAddr,
    /// To whom.
    pub to: SocketAddr,
    /// The device that it comes in by; None of a process of the host.
    pub device: Option<String>,
}

/// What becomes of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "verdict", rename_all = "lowercase")]
pub enum Outcome {
    /// Into the container, past the host's stack.
    Redirected {
        /// The container's address and port.
        target: SocketAddr,
    },
    /// To the container through the host's stack.
    Translated {
        /// The container's address and port.
        target: SocketAddr,
    },
    /// The process is connected to the container itself.
    Direct {
        /// The container's address and port.
        target: SocketAddr,
    },
    /// It goes on as it came.
    Passed {
        /// Why, if it was portfwd's to decide.
        #[serde(serialize_with = "reason_name")]
        reason: Option<Reason>,
    },
    /// It ends.
    Dropped {
        /// Why.
        #[serde(serialize_with = "reason_name")]
        reason: Option<Reason>,
    },
}

impl Outcome {
    fn text(&self) -> String {
        let because = |reason: &Option<Reason>| {
            reason.map_or_else(String::new, |reason| format!(": {}", reason.name()))
        };
        match self {
            Self::Redirected { target } => format!("redirected into the container: {target}"),
            Self::Translated { target } => {
                format!("translated, and left to the host's stack: {target}")
            }
            Self::Direct { target } => format!("connected to the container: {target}"),
            Self::Passed { reason } => format!("left to the host as it is{}", because(reason)),
            Self::Dropped { reason } => format!("dropped{}", because(reason)),
        }
    }
}

impl Explanation {
    /// A line for each thing, its name first.
    ///
    /// # Errors
    /// As the writer.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let PacketRow {
            protocol, from, to, ..
        } = &self.packet;
        let by = match &self.packet.device {
            Some(device) => format!("in by {device}"),
            None => "of a process of the host".to_owned(),
        };
        writeln!(out, "packet   {} {from} to {to}, {by}", protocol.name())?;
        match &self.forward {
            Some(forward) => {
                writeln!(
                    out,
                    "forward  {}: {}",
                    forward.container,
                    port_line(forward)
                )?;
                writeln!(out, "clients  {}", clients(&self.allow, &self.deny))?;
                let (connections, drops) = (self.connections, self.drops);
                let last = self.last_drop.map_or_else(String::new, |last| {
                    let age = duration(last.age);
                    format!(", the last one {age} ago: {}", last.reason.name())
                });
                writeln!(
                    out,
                    "so far   {connections} connections, {drops} drops{last}"
                )?;
            }
            None => writeln!(out, "forward  none")?,
        }
        writeln!(out, "verdict  {}", self.outcome.text())?;
        for note in &self.notes {
            writeln!(out, "note     {note}")?;
        }
        Ok(())
    }
}
