//! The command line: first what was typed ([`args`], by clap), then what it means ([`Cli`]). Nothing
//! here does I/O, and the environment is an argument.

mod args;
mod declared;
mod manual;
mod meaning;
#[cfg(test)]
mod tests;
mod usage;
mod wrong;

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{CommandFactory, Parser};
pub use clap_complete::Shell;

pub use args::{LogLevel, Switch, XdpMode};
pub use declared::{Declared, declared};
pub use manual::manual;

use portfwd_common::net::Protocol;

use crate::connection::Connection;
use crate::error::Error;
use crate::flow_filter::FlowFilter;
use crate::label::{InstanceName, Label};
use crate::policy::Policy;
use crate::spec::{PortQuery, Spec};
use crate::subnet::Subnet;
use crate::target::Target;

/// Where pins are kept unless something else is said.
pub const DEFAULT_BPFFS: &str = "/sys/fs/bpf";
/// The instance unless something else is said.
pub const DEFAULT_INSTANCE: &str = "default";

/// The variables of the environment that stand in for arguments. An empty one counts as not set.
#[derive(Clone, Default, Debug)]
pub struct Environment {
    /// `PORTFWD_INSTANCE`: see [`Cli::instance`].
    pub instance: Option<OsString>,
    /// `PORTFWD_BPFFS`: see [`Cli::bpffs`].
    pub bpffs: Option<OsString>,
    /// `PORTFWD_HOST_IP`: the host address of every SPEC that gives none.
    pub host_ip: Option<OsString>,
}

impl Environment {
    /// That of this process.
    #[must_use]
    pub fn of_process() -> Self {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        Self {
            instance: variable("PORTFWD_INSTANCE"),
            bpffs: variable("PORTFWD_BPFFS"),
            host_ip: variable("PORTFWD_HOST_IP"),
        }
    }
}

/// What the arguments come to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Parsed {
    /// A command to run.
    Run(Box<Cli>),
    /// A text to print: help that was asked for.
    Help(String),
    /// The version was asked for.
    Version,
}

/// A command with the options that all commands have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cli {
    /// Whose state it is about.
    pub instance: InstanceName,
    /// The bpffs under which that state lies.
    pub bpffs: PathBuf,
    /// The network namespace that plays the host; `None` for the caller's.
    pub host_netns: Option<PathBuf>,
    /// Whether to print one JSON document instead of text.
    pub json: bool,
    /// What to do.
    pub command: Command,
}

/// What to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Publish ports.
    Attach(Attach),
    /// Withdraw ports.
    Detach(Detach),
    /// Hand ports over.
    Repoint(Repoint),
    /// Publish what a file declares.
    Apply(Apply),
    /// Show every forward, or those of one container.
    List(Option<Label>),
    /// Show where one container's ports are published.
    Port(Label, Option<PortQuery>),
    /// Say what becomes of a packet.
    Explain(Explain),
    /// Show translated connections.
    Flows(Flows),
    /// Forget translated connections.
    FlowsPurge,
    /// Masquerade subnets.
    Masquerade(Masquerade),
    /// Show the state of the instance.
    Status,
    /// Bring the datapath up.
    Up(Up),
    /// Take everything down.
    Down,
    /// Print what the programs log, as it comes.
    Log,
    /// Remove what belongs to containers that are gone.
    Gc,
    /// Check what there is to work with.
    Doctor,
    /// Print a completion script.
    Completions(Shell),
    /// Print the page of the manual about a command, or about all.
    Man(Vec<String>),
}

/// `portfwd attach`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attach {
    /// The container.
    pub container: Label,
    /// Where it is, if that was said.
    pub target: Option<Target>,
    /// What to publish: at least one SPEC, no two at odds, the default host address put in.
    pub specs: Vec<Spec>,
    /// The addresses of the link to make, if one is to be made. Then the target is a namespace.
    pub connection: Option<Connection>,
    /// Whether the service may listen on the container's loopback address alone. Then all SPECs are of
    /// TCP, and the target is a namespace.
    pub loopback: bool,
    /// Who may open connections.
    pub policy: Policy,
    /// Whether what the container sends leaves under the host's address.
    pub masquerade: bool,
    /// Whether given ports are taken from processes of the host and from other tools' rules.
    pub force: bool,
    /// Whether what the name has published until now goes.
    pub replace: bool,
    /// Whether only to show what would be done.
    pub dry_run: bool,
}

/// `portfwd apply`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Apply {
    /// The file, `-` for standard input.
    pub file: PathBuf,
    /// The host address of every SPEC that gives none, if that is not all of them.
    pub host: Option<IpAddr>,
    /// Whether what it does not name goes.
    pub prune: bool,
    /// As [`Attach::force`].
    pub force: bool,
    /// Whether only to show what would be done.
    pub dry_run: bool,
}

/// `portfwd repoint`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Repoint {
    /// The container that has the ports.
    pub container: Label,
    /// The container that gets them: another one.
    pub to: Label,
    /// Where that is, if it was said.
    pub target: Option<Target>,
    /// What becomes of connections that are open.
    pub drain: Drain,
    /// Whether only to show what would be done.
    pub dry_run: bool,
}

/// What becomes of connections that are open when their ports are handed over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Drain {
    /// They go on until they end.
    Unlimited,
    /// They may go on for so long.
    For(Duration),
    /// They end.
    Cut,
}

/// `portfwd explain`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Explain {
    /// Where the packet is sent to.
    pub to: SocketAddr,
    /// Its protocol.
    pub protocol: Protocol,
    /// Who sends it, of the same family; None for any client.
    pub from: Option<IpAddr>,
}

/// `portfwd flows`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Flows {
    /// Which.
    pub filter: FlowFilter,
    /// Whether to show them every second.
    pub watch: bool,
}

/// `portfwd masquerade`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Masquerade {
    /// Masquerade this.
    Add(Subnet),
    /// Masquerade it no longer.
    Remove(Subnet),
    /// Show everything, or this.
    List(Option<Subnet>),
}

/// `portfwd detach`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Detach {
    /// The container.
    pub container: Label,
    /// What to withdraw, the default host address put in; nothing for everything.
    pub specs: Vec<Spec>,
    /// Whether a container that is not known is no error.
    pub ignore_missing: bool,
}

/// `portfwd up`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Up {
    /// Names of the devices to serve; none for every device on which the host has an address.
    pub devices: Vec<String>,
    /// Whether and how the XDP program runs; None leaves it as it is.
    pub xdp: Option<XdpMode>,
    /// What the programs log; None leaves it as it is.
    pub log_level: Option<LogLevel>,
    /// How long flows live, where that was said.
    pub lifetimes: Vec<Lifetime>,
    /// Whether flows count their bytes; None leaves it as it is.
    pub flow_bytes: Option<Switch>,
}

/// How long flows of a kind live.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lifetime {
    /// Place of the kind in [`Lifetimes::NAMES`].
    pub place: usize,
    /// Seconds without a packet.
    pub seconds: u32,
}

/// Reads the arguments, the first of which is the name of the program.
///
/// # Errors
/// When they make no command (exit code 2).
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    environment: &Environment,
) -> Result<Parsed, Error> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    match args::Args::try_parse_from(&arguments) {
        Ok(args) => meaning::of(args, environment).map(|cli| Parsed::Run(Box::new(cli))),
        Err(error) => match error.kind() {
            clap::error::ErrorKind::DisplayHelp => Ok(Parsed::Help(error.to_string())),
            clap::error::ErrorKind::DisplayVersion => Ok(Parsed::Version),
            _ => Err(usage::from_clap(&error, &arguments).into()),
        },
    }
}

/// What `--version` prints: the version, and the SHA-256 of the embedded eBPF object.
#[must_use]
pub fn version_text(object_sha256: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!("portfwd {version}\nebpf object sha256 {object_sha256}\n")
}

/// The completion script for `shell`.
#[must_use]
pub fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut args::Args::command(), "portfwd", &mut script);
    script
}
