//! The command line: first what was typed ([`args`], by clap), then what it means ([`Cli`]). Nothing
//! here does I/O, and the environment is an argument.

mod args;
mod declared;
#[cfg(test)]
mod tests;
mod usage;

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{CommandFactory, Parser};
pub use clap_complete::Shell;
use ipnet::IpNet;

pub use args::{LogLevel, Switch, XdpMode};
pub use declared::{Declared, declared};

use portfwd_common::{flow::Lifetimes, net::Protocol};

use crate::connection::Connection;
use crate::error::{Error, Usage, shown};
use crate::flow_filter::FlowFilter;
use crate::label::{InstanceName, Label};
use crate::policy::Policy;
use crate::spec::{HostPorts, PortQuery, Spec, SpecError, check_list, host_address};
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
    /// They may go on for so many seconds.
    For(u32),
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
    /// What the programs log.
    pub log_level: LogLevel,
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
        Ok(args) => typed(args, environment).map(|cli| Parsed::Run(Box::new(cli))),
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

fn typed(args: args::Args, environment: &Environment) -> Result<Cli, Error> {
    let instance = args
        .instance
        .or_else(|| environment.instance.as_deref().map(lossy))
        .unwrap_or_else(|| DEFAULT_INSTANCE.to_owned());
    let bpffs = args
        .bpffs
        .or_else(|| environment.bpffs.clone().map(PathBuf::from))
        .unwrap_or_else(|| PathBuf::from(DEFAULT_BPFFS));
    Ok(Cli {
        instance: instance.parse()?,
        bpffs: not_empty("--bpffs", bpffs)?,
        host_netns: args
            .host_netns
            .map(|path| not_empty("--host-netns", path))
            .transpose()?,
        json: args.json,
        command: command(args.command, environment)?,
    })
}

fn command(command: args::Command, environment: &Environment) -> Result<Command, Error> {
    let label = |container: Option<String>| container.map(|name| name.parse()).transpose();
    Ok(match command {
        args::Command::Attach(attach) => {
            Command::Attach(typed_attach(attach, default_host(environment)?)?)
        }
        args::Command::Detach(detach) => Command::Detach(Detach {
            container: detach.container.parse()?,
            specs: specs(&detach.publish, default_host(environment)?)?,
            ignore_missing: detach.ignore_missing,
        }),
        args::Command::Apply(apply) => Command::Apply(Apply {
            file: not_empty("--file", apply.file)?,
            host: default_host(environment)?,
            prune: apply.prune,
            force: apply.force,
            dry_run: apply.dry_run,
        }),
        args::Command::Repoint(repoint) => Command::Repoint(typed_repoint(repoint)?),
        args::Command::List { container } => Command::List(label(container)?),
        args::Command::Port { container, port } => Command::Port(
            container.parse()?,
            port.map(|port| port.parse()).transpose()?,
        ),
        args::Command::Explain { to, from } => Command::Explain(typed_explain(&to, from)?),
        args::Command::Flows(flows) => match flows.command {
            Some(args::FlowsCommand::Purge) => Command::FlowsPurge,
            None => Command::Flows(typed_flows(flows)?),
        },
        args::Command::Masquerade(masquerade) => Command::Masquerade(match masquerade {
            args::Masquerade::Add { subnet } => Masquerade::Add(subnet.parse()?),
            args::Masquerade::Remove { subnet } => Masquerade::Remove(subnet.parse()?),
            args::Masquerade::List { subnet } => {
                Masquerade::List(subnet.map(|subnet| subnet.parse()).transpose()?)
            }
        }),
        args::Command::Status => Command::Status,
        args::Command::Up(up) => {
            for device in &up.device {
                check_device(device)?;
            }
            Command::Up(Up {
                devices: up.device,
                xdp: up.xdp,
                log_level: up.log_level,
                flow_bytes: up.flow_bytes,
                lifetimes: up
                    .lifetime
                    .iter()
                    .map(|text| lifetime(text))
                    .collect::<Result<_, _>>()?,
            })
        }
        args::Command::Down => Command::Down,
        args::Command::Log => Command::Log,
        args::Command::Gc => Command::Gc,
        args::Command::Doctor => Command::Doctor,
        args::Command::Completions { shell } => Command::Completions(shell),
    })
}

fn typed_flows(flows: args::Flows) -> Result<Flows, Error> {
    let protocol = |transport| match transport {
        args::Transport::Tcp => Protocol::Tcp,
        args::Transport::Udp => Protocol::Udp,
        args::Transport::Sctp => Protocol::Sctp,
    };
    Ok(Flows {
        filter: FlowFilter {
            container: flows.container.map(|name| name.parse()).transpose()?,
            protocol: flows.protocol.map(protocol),
            client: flows
                .client
                .map(|text| network("--client", &text))
                .transpose()?,
            port: flows.port,
            state: flows.state,
        },
        watch: flows.watch,
    })
}

fn typed_attach(attach: args::Attach, host: Option<IpAddr>) -> Result<Attach, Error> {
    let target = typed_target(attach.target)?;
    let specs = specs(&attach.publish, host)?;
    check_sctp(&specs)?;
    if attach.loopback {
        check_loopback(&specs)?;
        check_namespace("--loopback", target.as_ref())?;
    }
    let policy = typed_policy(&attach.allow, &attach.deny, attach.deny_silently)?;
    let connection = Connection::of(&attach.connect)?;
    if connection.is_some() {
        check_namespace("--connect", target.as_ref())?;
    }
    Ok(Attach {
        container: attach.container.parse()?,
        target,
        specs,
        connection,
        loopback: attach.loopback,
        policy,
        masquerade: attach.masquerade,
        force: attach.force,
        replace: attach.replace,
        dry_run: attach.dry_run,
    })
}

fn typed_policy(allow: &[String], deny: &[String], silently: bool) -> Result<Policy, Usage> {
    let clients = |option: &'static str, texts: &[String]| {
        let clients = texts.iter().map(|text| clients(option, text));
        clients.collect::<Result<BTreeSet<IpNet>, Usage>>()
    };
    let policy = Policy {
        allow: clients("--allow", allow)?,
        deny: clients("--deny", deny)?,
        silently,
    };
    if let Some(both) = policy.allow.intersection(&policy.deny).next() {
        return Err(Usage {
            message: format!("{both} stands with --allow and with --deny"),
            hint: None,
        });
    }
    if silently && policy.is_open() {
        return Err(Usage {
            message: "--deny-silently denies nobody".to_owned(),
            hint: Some("say whom with --allow or --deny".to_owned()),
        });
    }
    Ok(policy)
}

/// Clients, by the prefix of their addresses.
fn clients(option: &str, text: &str) -> Result<IpNet, Usage> {
    let net = network(option, text)?;
    let refused = |what: &str, hint: String| Usage {
        message: format!("{option} {}: {what}", shown(text)),
        hint: Some(hint),
    };
    if net.addr() != net.network() {
        let hint = format!("give {}", net.trunc());
        return Err(refused("bits are set behind the prefix", hint));
    }
    match net {
        IpNet::V6(v6) if v6.addr().to_ipv4_mapped().is_some() => Err(refused(
            "packets never bear an IPv4 address in this form",
            "give it as IPv4".to_owned(),
        )),
        net => Ok(net),
    }
}

/// An address, or a range of them.
fn network(option: &str, text: &str) -> Result<IpNet, Usage> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    address.or_else(|_| text.parse()).map_err(|_| Usage {
        message: format!(
            "{option} {}: neither an address nor one with the length of its prefix",
            shown(text)
        ),
        hint: Some("such as 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32".to_owned()),
    })
}

fn typed_target(target: args::Target) -> Result<Option<Target>, Error> {
    Ok(match (target.netns, target.pid, target.ip) {
        (Some(path), _, _) => Some(Target::Netns(not_empty("--netns", path)?)),
        (_, Some(pid), _) => Some(Target::Pid(pid)),
        (_, _, Some(addresses)) => Some(Target::Addresses(addresses.parse()?)),
        (None, None, None) => None,
    })
}

fn typed_explain(to: &str, from: Option<String>) -> Result<Explain, Usage> {
    let bad = |what: &str| Usage {
        message: format!("{}: {what}", shown(to)),
        hint: Some("such as 192.0.2.1:8080, [2001:db8::1]:443 or 192.0.2.1:53/udp".to_owned()),
    };
    let (address, protocol) = to.split_once('/').unwrap_or((to, "tcp"));
    let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .find(|known| known.name() == protocol)
        .ok_or_else(|| bad("the protocol is none of tcp, udp, sctp"))?;
    let to: SocketAddr = address.parse().map_err(|_| bad("no address with a port"))?;
    let from = from.map(|text| {
        let address: Result<IpAddr, _> = text.parse();
        let refused = |what: &str| Usage {
            message: format!("--from {}: {what}", shown(&text)),
            hint: None,
        };
        match address {
            Err(_) => Err(refused("not an address")),
            Ok(from) if from.is_ipv4() != to.is_ipv4() => Err(refused(
                "of another family than where the packet is sent to",
            )),
            Ok(from) => Ok(from),
        }
    });
    Ok(Explain {
        to,
        protocol,
        from: from.transpose()?,
    })
}

fn typed_repoint(repoint: args::Repoint) -> Result<Repoint, Error> {
    let (container, to): (Label, Label) = (repoint.container.parse()?, repoint.to.parse()?);
    if container == to {
        return Err(Usage {
            message: format!("container \"{container}\" cannot hand its ports over to itself"),
            hint: Some(
                "portfwd attach --replace puts another container behind the same name".to_owned(),
            ),
        }
        .into());
    }
    let drain = match (repoint.drain, repoint.cut) {
        (Some(text), _) => Drain::For(drain_time(&text)?),
        (None, true) => Drain::Cut,
        (None, false) => Drain::Unlimited,
    };
    Ok(Repoint {
        container,
        to,
        target: typed_target(repoint.target)?,
        drain,
        dry_run: repoint.dry_run,
    })
}

/// Seconds that open connections are given, at most as many as a flow lives without a packet.
fn drain_time(text: &str) -> Result<u32, Usage> {
    let bad = |what: String| Usage {
        message: format!("--drain {}: {what}", shown(text)),
        hint: Some("give a time such as 90s, 10m or 1h".to_owned()),
    };
    let time = humantime::parse_duration(text).map_err(|error| bad(error.to_string()))?;
    match u32::try_from(time.as_secs()) {
        Ok(0) => Err(bad("less than a second is --cut".to_owned())),
        Ok(seconds) if seconds <= LONGEST_LIFETIME => Ok(seconds),
        _ => Err(bad(format!("more than {} days", LONGEST_LIFETIME / 86_400))),
    }
}

/// The checksum of SCTP covers its ports (RFC 9260, section 6.8), and whoever changes one has to compute it
/// over the whole packet: so they stay.
fn check_sctp(specs: &[Spec]) -> Result<(), Usage> {
    let changes = |spec: &&Spec| {
        spec.protocol == Protocol::Sctp && spec.ports != HostPorts::Fixed(spec.container)
    };
    match specs.iter().find(changes) {
        None => Ok(()),
        Some(spec) => Err(Usage {
            message: format!("SPEC {spec} would change the port, which SCTP does not allow"),
            hint: Some(format!("publish {0}:{0}/sctp", spec.container)),
        }),
    }
}

/// A listener on a loopback address can be given the connections of TCP.
fn check_loopback(specs: &[Spec]) -> Result<(), Usage> {
    match specs.iter().find(|spec| spec.protocol != Protocol::Tcp) {
        None => Ok(()),
        Some(spec) => Err(Usage {
            message: format!(
                "SPEC {spec} cannot have --loopback: what a {} service on a loopback address sends has \
                 that address as its source, and cannot leave the container",
                spec.protocol.name()
            ),
            hint: Some("publish it by another attach, without --loopback".to_owned()),
        }),
    }
}

/// What happens inside a container's namespace needs to know it.
fn check_namespace(option: &str, target: Option<&Target>) -> Result<(), Usage> {
    match target {
        Some(Target::Netns(_) | Target::Pid(_)) => Ok(()),
        Some(Target::Addresses(_)) | None => Err(Usage {
            message: format!("{option} needs the container's network namespace"),
            hint: Some("give --netns PATH or --pid PID".to_owned()),
        }),
    }
}

/// The host address of SPECs that give none.
fn default_host(environment: &Environment) -> Result<Option<IpAddr>, SpecError> {
    let host = environment.host_ip.as_deref();
    host.map(|address| host_address(&lossy(address)))
        .transpose()
}

fn specs(texts: &[String], host: Option<IpAddr>) -> Result<Vec<Spec>, SpecError> {
    let specs = texts
        .iter()
        .map(|text| text.parse().map(|spec: Spec| spec.or_host(host)))
        .collect::<Result<Vec<_>, _>>()?;
    check_list(&specs)?;
    Ok(specs)
}

/// Text that is no UTF-8 fails the check that follows, by the replacement characters in it.
fn lossy(text: &OsStr) -> String {
    text.to_string_lossy().into_owned()
}

fn not_empty(option: &str, path: PathBuf) -> Result<PathBuf, Usage> {
    if path.as_os_str().is_empty() {
        return Err(Usage {
            message: format!("the path given with {option} is empty"),
            hint: None,
        });
    }
    Ok(path)
}

/// Longest time that flows can be given: longer than any connection is idle, and far from what the clock
/// of 32 bits can tell apart.
const LONGEST_LIFETIME: u32 = 30 * 24 * 3_600;

fn lifetime(text: &str) -> Result<Lifetime, Usage> {
    let bad = |what: String| Usage {
        message: format!("--lifetime {}: {what}", shown(text)),
        hint: Some(format!(
            "give STATE=SECONDS, STATE being {}",
            Lifetimes::NAMES.join(", ")
        )),
    };
    let (name, seconds) = text
        .split_once('=')
        .ok_or_else(|| bad("there is no =".to_owned()))?;
    let place = Lifetimes::NAMES
        .iter()
        .position(|known| *known == name)
        .ok_or_else(|| bad(format!("unknown state {}", shown(name))))?;
    let digits = !seconds.is_empty() && seconds.bytes().all(|byte| byte.is_ascii_digit());
    let number = seconds.parse().ok().filter(|_| digits);
    match number {
        Some(seconds @ 1..=LONGEST_LIFETIME) => Ok(Lifetime { place, seconds }),
        _ => Err(bad(format!(
            "{} is no number of seconds from 1 to {LONGEST_LIFETIME}",
            shown(seconds)
        ))),
    }
}

/// As the kernel's `dev_valid_name` (net/core/dev.c) has it.
fn check_device(name: &str) -> Result<(), Usage> {
    let bad = |c: char| c == '/' || c == ':' || c.is_whitespace();
    if (1..=15).contains(&name.len()) && !matches!(name, "." | "..") && !name.contains(bad) {
        return Ok(());
    }
    Err(Usage {
        message: format!("{} cannot be the name of a device", shown(name)),
        hint: Some("ip link shows every device".to_owned()),
    })
}
