//! What can be wrong with a SPEC, each kind with its own words.

use std::fmt;
use std::net::IpAddr;

use crate::error::shown;

/// A malformed SPEC, host address or port query.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SpecError {
    /// What `text` was meant to be.
    meant: Meant,
    /// The text as it was typed.
    text: String,
    kind: SpecErrorKind,
}

/// What a text was meant to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Meant {
    /// A SPEC.
    Spec,
    /// The port that `portfwd port` is asked about.
    Query,
    /// The host address in the environment.
    HostIp,
}

impl Meant {
    /// As the help calls it.
    const fn name(self) -> &'static str {
        match self {
            Self::Spec => "SPEC",
            Self::Query => "PORT",
            Self::HostIp => "PORTFWD_HOST_IP",
        }
    }

    const fn form(self) -> &'static str {
        match self {
            Self::Spec => {
                "a SPEC is [HOSTIP:][HOSTPORT[-END]]:CONTAINERPORT[-END][/tcp|udp|sctp], as in 8080:80"
            }
            Self::Query => "a PORT is one of the container's, as in 80 or 53/udp",
            Self::HostIp => "it is one of the host's addresses, as in 127.0.0.1 or ::1",
        }
    }
}

/// Which of the ports of a SPEC is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Port {
    /// Before the colon.
    Host,
    /// After the colon.
    Container,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host port",
            Self::Container => "container port",
        })
    }
}

/// What is wrong with it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SpecErrorKind {
    /// No text at all.
    #[error("is empty")]
    Empty,
    /// Longer than any SPEC can be.
    #[error("is {0} bytes long, which nothing valid is")]
    TooLong(usize),
    /// A space, a control character or one outside of ASCII.
    #[error("holds the character {0:?}")]
    Character(char),
    /// Nothing after the slash.
    #[error("names no protocol after the slash")]
    ProtocolMissing,
    /// Something else than tcp, udp or sctp.
    #[error("unknown protocol {}", shown(.0))]
    ProtocolUnknown(String),
    /// More than one slash.
    #[error("names more than one protocol")]
    ProtocolTwice,
    /// More colons than a SPEC has.
    #[error("has {0} parts, at most 3 are separated by colons")]
    TooManyParts(usize),
    /// Nothing where a port belongs.
    #[error("the {0} is missing")]
    PortMissing(Port),
    /// A port before the address's colon, none after it: `127.0.0.1:80`.
    #[error("{} is an address where the host port belongs", shown(.0))]
    AddressForPort(String),
    /// Something other than digits.
    #[error("{0} {text} is not a number", text = shown(.1))]
    PortNotNumber(Port, String),
    /// A number with a minus sign.
    #[error("{0} {text} is negative", text = shown(.1))]
    PortNegative(Port, String),
    /// A number with a plus sign.
    #[error("{0} {text} has a sign", text = shown(.1))]
    PortSigned(Port, String),
    /// A number that some programs read as octal.
    #[error("{0} {text} starts with a zero", text = shown(.1))]
    PortLeadingZero(Port, String),
    /// Port 0.
    #[error("{0} 0 cannot be published")]
    PortZero(Port),
    /// More than 65535.
    #[error("{0} {text} is above 65535", text = shown(.1))]
    PortTooLarge(Port, String),
    /// `80-`.
    #[error("the range {text} of the {0} has no end", text = shown(.1))]
    RangeOpen(Port, String),
    /// `80-90-100`.
    #[error("the range {text} of the {0} has more than two ends", text = shown(.1))]
    RangeEnds(Port, String),
    /// `90-80`.
    #[error("the range {1}-{2} of the {0} runs backwards")]
    RangeReversed(Port, u16, u16),
    /// As many host ports as container ports, or a pool for one.
    #[error("{0} host ports cannot lead to {1} container ports")]
    RangesUnequal(u16, u16),
    /// A colon with nothing before it, where an address belongs.
    #[error("the host address is missing")]
    HostMissing,
    /// `[::1:80:80`.
    #[error("the bracket of the host address is not closed")]
    BracketOpen,
    /// `[::1]80`.
    #[error("the bracket of the host address is followed by {}, not by a colon", shown(.0))]
    BracketNoColon(String),
    /// `[10.0.0.1]:80:80`.
    #[error("brackets are for IPv6, {} is not an IPv6 address", shown(.0))]
    BracketNotV6(String),
    /// `2001:db8::1:80:80`.
    #[error("an IPv6 host address belongs into brackets")]
    BracketMissing,
    /// `[fe80::1%eth0]:80:80`.
    #[error("the host address {} has a scope, which a published port cannot have", shown(.0))]
    HostScope(String),
    /// `10.0.0.256`.
    #[error("the host address {} is not an IPv4 address", shown(.0))]
    HostNotV4(String),
    /// `localhost`.
    #[error("the host address {} is not an IP address, and names are not looked up", shown(.0))]
    HostName(String),
    /// Multicast, broadcast, link-local or reserved.
    #[error("the host address {0} is {1}, where no port is published")]
    HostUnfit(IpAddr, &'static str),
    /// The same SPEC a second time.
    #[error("is given twice")]
    Twice,
    /// A host port that an earlier SPEC of the same command has.
    #[error("shares host port {port} with SPEC {}", shown(first))]
    Overlap {
        /// The earlier SPEC.
        first: String,
        /// The first port that both hold.
        port: u16,
    },
}

impl SpecError {
    /// `kind` is what is wrong with `text`.
    #[must_use]
    pub fn new(meant: Meant, text: &str, kind: SpecErrorKind) -> Self {
        Self {
            meant,
            text: text.to_owned(),
            kind,
        }
    }

    /// What is wrong.
    #[must_use]
    pub fn kind(&self) -> &SpecErrorKind {
        &self.kind
    }

    /// What to type instead.
    #[must_use]
    pub fn hint(&self) -> String {
        use SpecErrorKind as Kind;
        match &self.kind {
            _ if self.meant == Meant::HostIp => self.meant.form().to_owned(),
            Kind::ProtocolMissing | Kind::ProtocolUnknown(_) | Kind::ProtocolTwice => {
                "the protocol is tcp, udp or sctp".to_owned()
            }
            Kind::AddressForPort(address) => {
                format!("{address}:8080:80 publishes on host port 8080, {address}::80 on a chosen one")
            }
            Kind::PortMissing(Port::Host) => {
                "an address is followed by :HOSTPORT:CONTAINERPORT, or by ::CONTAINERPORT".to_owned()
            }
            Kind::PortNegative(..)
            | Kind::PortSigned(..)
            | Kind::PortZero(_)
            | Kind::PortTooLarge(..) => "a port is 1 to 65535".to_owned(),
            Kind::RangesUnequal(..) => {
                "as many host ports as container ports, or a range of host ports for one container port"
                    .to_owned()
            }
            Kind::HostMissing | Kind::BracketMissing | Kind::BracketNoColon(_) | Kind::BracketOpen => {
                "[2001:db8::1]:8080:80, or 8080:80 for every host address".to_owned()
            }
            Kind::BracketNotV6(_) | Kind::HostNotV4(_) | Kind::HostName(_) => {
                "192.0.2.1:8080:80, [2001:db8::1]:8080:80, or 8080:80 for every host address".to_owned()
            }
            Kind::HostScope(_) | Kind::HostUnfit(..) => {
                "give one of the host's own unicast addresses".to_owned()
            }
            Kind::Twice | Kind::Overlap { .. } => "give each host port once".to_owned(),
            _ => self.meant.form().to_owned(),
        }
    }
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, text) = (self.meant.name(), shown(&self.text));
        match &self.kind {
            // These read on from the SPEC, the others stand for themselves.
            kind @ (SpecErrorKind::Empty
            | SpecErrorKind::TooLong(_)
            | SpecErrorKind::Character(_)
            | SpecErrorKind::ProtocolMissing
            | SpecErrorKind::ProtocolTwice
            | SpecErrorKind::TooManyParts(_)
            | SpecErrorKind::Twice
            | SpecErrorKind::Overlap { .. }) => write!(f, "{what} {text} {kind}"),
            kind => write!(f, "{what} {text}: {kind}"),
        }
    }
}

impl std::error::Error for SpecError {}
