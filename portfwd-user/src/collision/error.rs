//! Who is in the way, in the words that users of Docker look for.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use portfwd_common::net::Protocol;

use super::{CHOSEN, Listener, Place};
use crate::label::Label;
use crate::spec::{PortRange, Spec};

/// At most so many further collisions, or holders of a pool, are spelled out.
const LISTED: usize = 8;

/// Who has a port.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Holder {
    /// A container, through portfwd.
    Container(Label),
    /// A container that is to get it by the same declared set.
    Declared {
        /// Its name.
        label: Label,
        /// Where it is declared.
        line: usize,
    },
    /// A process of the host, as far as it could be told.
    Process {
        /// Its name.
        name: Option<String>,
        /// Its PID.
        pid: Option<u32>,
    },
    /// A rule of another tool.
    Rule(Place),
}

impl Holder {
    pub(super) fn of(listener: &Listener) -> Self {
        Self::Process {
            name: listener.process.clone(),
            pid: listener.pid,
        }
    }

    /// Who it is, in words.
    #[must_use]
    pub fn describe(&self, protocol: Protocol) -> String {
        match self {
            Self::Container(label) => format!("container \"{label}\" ({})", protocol.name()),
            Self::Declared { label, line } => format!(
                "container \"{label}\" ({}), which is declared in line {line}",
                protocol.name()
            ),
            Self::Process { name, pid } => match (name, pid) {
                (Some(name), Some(pid)) => format!("process {name} (pid {pid})"),
                (Some(name), None) => format!("process {name}"),
                (None, Some(pid)) => format!("process with pid {pid}"),
                (None, None) => "a process of the host that cannot be named".to_owned(),
            },
            Self::Rule(place) => place.to_string(),
        }
    }

    const fn hint(&self) -> &'static str {
        match self {
            Self::Container(_) => "detach it, or publish another port",
            Self::Declared { .. } => "declare each host port for one container",
            Self::Process { .. } => "stop it, publish another port, or take this one with --force",
            Self::Rule(_) => {
                "remove it by the tool that made it, publish another port, or take this one with --force"
            }
        }
    }
}

/// A port that was asked for and is taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Collision {
    /// The host address that was asked for.
    pub host: IpAddr,
    /// The first port of those asked for that is taken.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// Who has it.
    pub holder: Holder,
}

impl Collision {
    fn socket(&self) -> SocketAddr {
        SocketAddr::new(self.host, self.port)
    }

    /// What publishing the port nevertheless does to who has it.
    #[must_use]
    pub fn shadowed(&self) -> String {
        let (protocol, holder) = (self.protocol, self.holder.describe(self.protocol));
        format!(
            "{} ({}) no longer reaches {holder}",
            self.socket(),
            protocol.name()
        )
    }
}

/// Ports cannot be had.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CollisionError {
    /// One or more given ports are taken.
    Taken {
        /// The one that the message names.
        first: Collision,
        /// One for each further SPEC.
        others: Vec<Collision>,
    },
    /// No port of a pool is free.
    PoolTaken {
        /// The SPEC that gave the pool.
        spec: Spec,
        /// The pool.
        pool: PortRange,
        /// Who has them, each once.
        holders: Vec<Holder>,
    },
    /// No port is left to choose from.
    NoneLeft {
        /// The SPEC that left the choice.
        spec: Spec,
    },
}

impl From<Collision> for CollisionError {
    fn from(first: Collision) -> Self {
        Self::Taken {
            first,
            others: Vec::new(),
        }
    }
}

impl CollisionError {
    /// From all that collide; `None` if nothing does.
    #[must_use]
    pub fn taken(collisions: Vec<Collision>) -> Option<Self> {
        let mut collisions = collisions.into_iter();
        let first = collisions.next()?;
        Some(Self::Taken {
            first,
            others: collisions.collect(),
        })
    }

    /// The same, where containers of which `line` knows one have what a declared set gives them.
    #[must_use]
    pub fn among_declared(mut self, line: impl Fn(&Label) -> Option<usize>) -> Self {
        let holders: Vec<&mut Holder> = match &mut self {
            Self::Taken { first, others } => {
                let all = std::iter::once(first).chain(others);
                all.map(|collision| &mut collision.holder).collect()
            }
            Self::PoolTaken { holders, .. } => holders.iter_mut().collect(),
            Self::NoneLeft { .. } => Vec::new(),
        };
        for holder in holders {
            if let Holder::Container(label) = holder
                && let Some(line) = line(label)
            {
                let label = label.clone();
                *holder = Holder::Declared { label, line };
            }
        }
        self
    }

    /// Lines for the error: who holds it, and what else is held.
    #[must_use]
    pub fn details(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Taken { first, others } => {
                let mut details = vec![("held by", first.holder.describe(first.protocol))];
                details.extend(listed("also taken", others.iter().map(also)));
                details
            }
            Self::PoolTaken { holders, spec, .. } => {
                let describe = |holder: &Holder| holder.describe(spec.protocol);
                listed("held by", holders.iter().map(describe))
            }
            Self::NoneLeft { .. } => Vec::new(),
        }
    }

    /// What to do about it.
    #[must_use]
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::Taken { first, .. } => first.holder.hint(),
            Self::PoolTaken { .. } => {
                "give a larger range of host ports, or detach what is not needed"
            }
            Self::NoneLeft { .. } => "give a host port, or detach what is not needed",
        }
    }
}

fn also(collision: &Collision) -> String {
    let holder = collision.holder.describe(collision.protocol);
    format!("{} by {holder}", collision.socket())
}

/// One detail for each line, but not more than fit on a screen.
fn listed(
    name: &'static str,
    lines: impl ExactSizeIterator<Item = String>,
) -> Vec<(&'static str, String)> {
    let more = lines.len().saturating_sub(LISTED);
    let mut details: Vec<_> = lines.take(LISTED).map(|line| (name, line)).collect();
    if more > 0 {
        details.push((name, format!("and {more} more")));
    }
    details
}

/// The host address of a SPEC as an error names it: the IPv4 wildcard if there is none.
fn host_of(spec: &Spec) -> IpAddr {
    spec.host.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}

impl fmt::Display for CollisionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Taken { first, .. } => write!(
                f,
                "bind for {} failed: port is already allocated",
                first.socket()
            ),
            Self::PoolTaken { spec, pool, .. } => {
                match host_of(spec) {
                    IpAddr::V4(v4) => write!(f, "bind for {v4}:{pool}")?,
                    IpAddr::V6(v6) => write!(f, "bind for [{v6}]:{pool}")?,
                }
                f.write_str(" failed: all ports are allocated")
            }
            Self::NoneLeft { spec } => {
                let [(first, last), (below_first, below_last)] = CHOSEN;
                let count = spec.container.count();
                let wanted = match count {
                    1 => "port".to_owned(),
                    _ => format!("{count} ports in a row"),
                };
                write!(
                    f,
                    "no free {wanted} in {first}-{last} and {below_first}-{below_last} for SPEC {spec}"
                )
            }
        }
    }
}

impl std::error::Error for CollisionError {}
