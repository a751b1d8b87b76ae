//! What was typed, or declared, in terms of what it means; or what is wrong with it.

use std::{
    ffi::OsStr,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net};
use portfwd_common::{flow::Lifetimes, net::Protocol};

use super::{
    Apply, Attach, Cli, Command, DEFAULT_BPFFS, DEFAULT_INSTANCE, Detach, Drain, Environment,
    Explain, Flows, Lifetime, Masquerade, Repoint, Up, args,
    wrong::{List, Wrong},
};
use crate::{
    connection::Connection,
    error::{Error, Usage, shown},
    flow_filter::FlowFilter,
    label::Label,
    policy::Policy,
    spec::{HostPorts, Spec, SpecError, check_list, host_address},
    target::Target,
};

pub(super) fn of(args: args::Args, environment: &Environment) -> Result<Cli, Error> {
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
            let host = default_host(environment)?;
            Command::Attach(typed_attach(attach, host).map_err(|wrong| *wrong.cause)?)
        }
        args::Command::Detach(detach) => Command::Detach(Detach {
            container: detach.container.parse()?,
            specs: specs(&detach.publish, default_host(environment)?)
                .map_err(|(_, error)| error)?,
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
        args::Command::Man { command } => Command::Man(command),
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
                .map(|text| network("--client", &text).map(of_packets))
                .transpose()?,
            port: flows.port,
            state: flows.state,
        },
        watch: flows.watch,
    })
}

pub(super) fn typed_attach(attach: args::Attach, host: Option<IpAddr>) -> Result<Attach, Wrong> {
    let target = typed_target(attach.target)?;
    let specs = specs(&attach.publish, host)
        .map_err(|(position, error)| Wrong::at(List::Publish, position, error))?;
    check_sctp(&specs)?;
    if attach.loopback {
        check_loopback(&specs)?;
        check_namespace("--loopback", target.as_ref())?;
    }
    let policy = typed_policy(&attach.allow, &attach.deny, attach.deny_silently)?;
    let connection = Connection::of(&attach.connect)
        .map_err(|(position, error)| Wrong::at(List::Connect, position, error))?;
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

fn typed_policy(allow: &[String], deny: &[String], silently: bool) -> Result<Policy, Wrong> {
    let clients = |list: List, option: &'static str, texts: &[String]| {
        let clients = texts.iter().enumerate().map(|(position, text)| {
            clients(option, text).map_err(|error| Wrong::at(list, position, error))
        });
        clients.collect::<Result<Vec<IpNet>, Wrong>>()
    };
    let allow = clients(List::Allow, "--allow", allow)?;
    let deny = clients(List::Deny, "--deny", deny)?;
    if let Some(position) = deny.iter().position(|net| allow.contains(net)) {
        let both = Usage {
            message: format!("{} stands with --allow and with --deny", deny[position]),
            hint: None,
        };
        return Err(Wrong::at(List::Deny, position, both));
    }
    let policy = Policy {
        allow: allow.into_iter().collect(),
        deny: deny.into_iter().collect(),
        silently,
    };
    if silently && policy.is_open() {
        return Err(Usage {
            message: "--deny-silently denies nobody".to_owned(),
            hint: Some("say whom with --allow or --deny".to_owned()),
        }
        .into());
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

/// Packets bear IPv4 addresses in no other form, whatever sockets call them.
fn of_packets(net: IpNet) -> IpNet {
    let IpNet::V6(v6) = net else {
        return net;
    };
    let mapped = v6.addr().to_ipv4_mapped();
    let length = v6.prefix_len().checked_sub(96);
    let v4 = mapped
        .zip(length)
        .map(|(v4, length)| Ipv4Net::new(v4, length));
    v4.and_then(Result::ok).map_or(net, IpNet::V4)
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
    if to.port() == 0 {
        return Err(bad("nothing is sent to port 0"));
    }
    let to = SocketAddr::new(to.ip().to_canonical(), to.port());
    let from = from.map(|text| {
        let address = text.parse().map(|address: IpAddr| address.to_canonical());
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

/// What open connections are given, at most as long as a flow lives without a packet.
fn drain_time(text: &str) -> Result<Duration, Usage> {
    let bad = |what: String| Usage {
        message: format!("--drain {}: {what}", shown(text)),
        hint: Some("give a time such as 90s, 10m or 1h".to_owned()),
    };
    let time = humantime::parse_duration(text).map_err(|error| bad(error.to_string()))?;
    if time < Duration::from_secs(1) {
        return Err(bad("less than a second is --cut".to_owned()));
    }
    if time > Duration::from_secs(LONGEST_LIFETIME.into()) {
        return Err(bad(format!("more than {} days", LONGEST_LIFETIME / 86_400)));
    }
    Ok(time)
}

/// The checksum of SCTP covers its ports (RFC 9260, section 6.8), and whoever changes one has to compute it
/// over the whole packet: so they stay.
fn check_sctp(specs: &[Spec]) -> Result<(), Wrong> {
    let changes = |spec: &Spec| {
        spec.protocol == Protocol::Sctp && spec.ports != HostPorts::Fixed(spec.container)
    };
    let refused = |spec: &Spec| Usage {
        message: format!("SPEC {spec} would change the port, which SCTP does not allow"),
        hint: Some(format!("publish {0}:{0}/sctp", spec.container)),
    };
    none_of(specs, changes, refused)
}

/// A listener on a loopback address can be given the connections of TCP.
fn check_loopback(specs: &[Spec]) -> Result<(), Wrong> {
    let refused = |spec: &Spec| Usage {
        message: format!(
            "SPEC {spec} cannot have --loopback: what a {} service on a loopback address sends has \
             that address as its source, and cannot leave the container",
            spec.protocol.name()
        ),
        hint: Some("publish it by another attach, without --loopback".to_owned()),
    };
    none_of(specs, |spec| spec.protocol != Protocol::Tcp, refused)
}

fn none_of(
    specs: &[Spec],
    is_wrong: impl Fn(&Spec) -> bool,
    refused: impl Fn(&Spec) -> Usage,
) -> Result<(), Wrong> {
    match specs.iter().position(is_wrong) {
        None => Ok(()),
        Some(position) => Err(Wrong::at(
            List::Publish,
            position,
            refused(&specs[position]),
        )),
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

/// An error comes after the position of what it is about.
fn specs(texts: &[String], host: Option<IpAddr>) -> Result<Vec<Spec>, (usize, SpecError)> {
    let specs = texts
        .iter()
        .enumerate()
        .map(|(position, text)| match text.parse::<Spec>() {
            Ok(spec) => Ok(spec.or_host(host)),
            Err(error) => Err((position, error)),
        })
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
