//! The arguments as they are typed. Values that have a grammar of their own stay text here, so that
//! their errors are in our words.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use serde::Serialize;

use crate::flow_filter;

const SPEC_HELP: &str = "\
SPEC is [HOSTIP:][HOSTPORT[-END]]:CONTAINERPORT[-END][/tcp|udp|sctp]:
  8080:80                 port 8080 of every host address to the container's port 80
  127.0.0.1:8080:80       for processes of the host alone
  [2001:db8::1]:8080:80   of one IPv6 address
  53:53/udp               UDP
  8000-8099:9000-9099     as many ports on both sides
  8000-8099:80            the first free one of these
  80 or 127.0.0.1::80     a free port is chosen";

const ATTACH_EXAMPLES: &str = "\
Examples:
  portfwd attach web --netns /run/netns/web -p 8080:80 -p 8443:443
  portfwd attach dns --pid 4711 -p 127.0.0.1:53:53/udp
  portfwd attach db --pid 4712 --loopback -p 6379:6379
  portfwd attach web --pid 4713 --connect 10.99.0.1/24,10.99.0.2/24 -p 8080:80
  portfwd attach db --pid 4714 -p 5432:5432 --allow 10.0.0.0/8,127.0.0.1 --deny 10.9.0.0/16";

const REPOINT_EXAMPLES: &str = "\
The ports are TARGET's from then on, with the container ports that they had. Connections that are open stay where \
they are until they end.

Examples:
  portfwd repoint blue green                           both are attached
  portfwd repoint blue green --netns /run/netns/green  green is attached by this
  portfwd repoint blue green --drain 10m               what is open then ends";

const DECLARATION_HELP: &str = "\
FILE is TOML, a table for each container with what attach would be told:
  [[container]]
  name = \"web\"
  netns = \"/run/netns/web\"    # or pid, or ip; none for a container that is attached
  publish = [\"8080:80\", \"127.0.0.1:9000:90\"]
  # allow, deny, connect: lists; deny-silently, loopback, masquerade: true

A container that FILE names publishes what it says and nothing else; others stay as they are. An empty FILE names \
none: with --prune everything goes.";

const SUBNET_HELP: &str = "\
What comes from the subnet and leaves the host by a device on which it has an address gets that address, \
unless it goes to a masqueraded subnet or an attached container: TCP, UDP and pings. Forwarding has to be on.";

/// Publishes container ports on this host with eBPF.
#[derive(Parser, Debug)]
#[command(
    name = "portfwd",
    version,
    propagate_version = false,
    subcommand_required = true,
    arg_required_else_help = false
)]
pub(super) struct Args {
    /// Instance to work on [env: PORTFWD_INSTANCE] [default: default]
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        help_heading = "Global options"
    )]
    pub(super) instance: Option<String>,

    /// The bpffs that holds its state [env: PORTFWD_BPFFS] [default: /sys/fs/bpf]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        help_heading = "Global options"
    )]
    pub(super) bpffs: Option<PathBuf>,

    /// Network namespace that plays the host [default: the caller's]
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        help_heading = "Global options"
    )]
    pub(super) host_netns: Option<PathBuf>,

    /// Print one JSON document
    #[arg(long, global = true, help_heading = "Global options")]
    pub(super) json: bool,

    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Publish ports of a container
    #[command(after_help = format!("{SPEC_HELP}\n\n{ATTACH_EXAMPLES}"))]
    Attach(Attach),
    /// Withdraw a container's ports, all or some
    #[command(
        after_help = "A SPEC is written as for attach; without a host port it withdraws every \
        forward to that container port."
    )]
    Detach(Detach),
    /// Send new connections to a container's ports to another container
    #[command(after_help = REPOINT_EXAMPLES)]
    Repoint(Repoint),
    /// Publish what a file declares, and withdraw what it does not, at one instant
    #[command(after_help = DECLARATION_HELP)]
    Apply(Apply),
    /// Show every forward with its counters
    List {
        /// Only this container's
        container: Option<String>,
    },
    /// Show where a container's ports are published
    #[command(
        after_help = "Examples:\n  portfwd port web          80/tcp -> 0.0.0.0:8080\n  \
        portfwd port web 53/udp   0.0.0.0:53"
    )]
    Port {
        /// The container
        container: String,
        /// Only this port of the container; TCP unless it says /udp
        #[arg(value_name = "PORT[/PROTO]", allow_hyphen_values = true)]
        port: Option<String>,
    },
    /// Say what would become of a packet that opens a connection, and why
    #[command(
        after_help = "Without --from the packet is one of a client behind the device that has the address.\n\n\
        Examples:\n  portfwd explain 192.0.2.1:8080\n  portfwd explain 192.0.2.1:53/udp --from 198.51.100.7\n  \
        portfwd explain 127.0.0.1:8080 --from 127.0.0.1"
    )]
    Explain {
        /// Where it is sent to; TCP unless it says /udp or /sctp
        #[arg(value_name = "ADDR:PORT[/PROTO]")]
        to: String,
        /// Who sends it: a client, a container, or with an address of the host one of its processes
        #[arg(long, value_name = "ADDR")]
        from: Option<String>,
    },
    /// Show translated connections
    Flows(Flows),
    /// Let what subnets send through the host leave under the host's address
    #[command(
        subcommand,
        disable_help_subcommand = true,
        arg_required_else_help = false
    )]
    Masquerade(Masquerade),
    /// Show the state of the instance
    Status,
    /// Bring the datapath up; the first attach does so too
    Up(Up),
    /// Withdraw everything and remove the instance
    Down,
    /// Print what the programs log, as it comes (see up --log-level)
    Log,
    /// Remove what belongs to containers that are gone
    #[command(
        after_help = "A container is gone when its link is, as happens with its network namespace. One that was \
        attached by an address without a link stays until it is detached."
    )]
    Gc,
    /// Check what portfwd needs, one line each
    #[command(
        after_help = "A line is ok, unseen (for want of a privilege), warn or fail. The exit code is 5 if a line is fail."
    )]
    Doctor,
    /// Print a completion script
    Completions {
        /// The shell that is to read it
        shell: Shell,
    },
    /// Print a page of the manual
    #[command(
        after_help = "Examples:\n  portfwd man > portfwd.1\n  portfwd man masquerade add | man -l -"
    )]
    Man {
        /// The command that it is about [default: all of it]
        command: Vec<String>,
    },
}

#[derive(clap::Args, Debug)]
pub(super) struct Attach {
    /// A name for the container: up to 127 of A-Z a-z 0-9 _ . -
    pub(super) container: String,

    /// What to publish, as Docker writes it; repeat it for more [env: PORTFWD_HOST_IP, the default HOSTIP]
    #[arg(
        short,
        long,
        value_name = "SPEC",
        required = true,
        allow_hyphen_values = true
    )]
    pub(super) publish: Vec<String>,

    #[command(flatten)]
    pub(super) target: Target,

    /// Make the container's link too: a veth pair with these addresses, and its default route; once for IPv4,
    /// once for IPv6
    #[arg(
        long,
        value_name = "HOSTADDR/LEN,CTRADDR/LEN",
        allow_hyphen_values = true
    )]
    pub(super) connect: Vec<String>,

    /// Reach a service that listens on the container's 127.0.0.1 or ::1 as well (TCP)
    #[arg(long)]
    pub(super) loopback: bool,

    /// Let only these clients open connections; with host processes as 127.0.0.1 and ::1
    #[arg(
        long,
        value_name = "CIDR",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    pub(super) allow: Vec<String>,

    /// Let these clients open none; of ranges that overlap the smaller one counts
    #[arg(
        long,
        value_name = "CIDR",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    pub(super) deny: Vec<String>,

    /// Give those who may not no answer, rather than that of a closed port
    #[arg(long)]
    pub(super) deny_silently: bool,

    /// Let what the container sends from its own addresses leave under the host's
    #[arg(long)]
    pub(super) masquerade: bool,

    /// Publish given ports although a process of the host, or a rule of another tool, has them
    #[arg(long)]
    pub(super) force: bool,

    /// Let what the name has published until now go, as this is published: it may be another container's
    #[arg(long)]
    pub(super) replace: bool,

    /// Show what would be published, and change nothing
    #[arg(long)]
    pub(super) dry_run: bool,
}

#[derive(clap::Args, Debug)]
pub(super) struct Apply {
    /// The file; - for standard input
    #[arg(short, long, value_name = "FILE", required = true)]
    pub(super) file: PathBuf,

    /// Withdraw containers that the file does not name
    #[arg(long)]
    pub(super) prune: bool,

    /// Publish given ports although a process of the host, or a rule of another tool, has them
    #[arg(long)]
    pub(super) force: bool,

    /// Show what would change, and change nothing
    #[arg(long)]
    pub(super) dry_run: bool,
}

#[derive(clap::Args, Debug)]
pub(super) struct Repoint {
    /// The container that has the ports
    pub(super) container: String,

    /// The container that gets them; it is attached, or said where it is
    #[arg(value_name = "TARGET")]
    pub(super) to: String,

    #[command(flatten)]
    pub(super) target: Target,

    /// How long connections that are open may go on, such as 90s or 10m: to the next full second of the clock
    /// [default: as long as they do]
    #[arg(
        long,
        value_name = "TIME",
        allow_hyphen_values = true,
        conflicts_with = "cut"
    )]
    pub(super) drain: Option<String>,

    /// End connections that are open
    #[arg(long)]
    pub(super) cut: bool,

    /// Show what would be published, and change nothing
    #[arg(long)]
    pub(super) dry_run: bool,
}

/// Where the container is.
#[derive(clap::Args, Debug)]
#[group(multiple = false)]
pub(super) struct Target {
    /// Its network namespace, such as /run/netns/web
    #[arg(long, value_name = "PATH")]
    pub(super) netns: Option<PathBuf>,

    /// A process inside
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..=i64::from(i32::MAX)),
        allow_negative_numbers = true)]
    pub(super) pid: Option<u32>,

    /// Its address, or one of each family
    #[arg(long, value_name = "ADDR[,ADDR6]", allow_hyphen_values = true)]
    pub(super) ip: Option<String>,
}

#[derive(clap::Args, Debug)]
pub(super) struct Detach {
    /// The container
    pub(super) container: String,

    /// Withdraw only this; repeat it for more
    #[arg(short, long, value_name = "SPEC", allow_hyphen_values = true)]
    pub(super) publish: Vec<String>,

    /// Succeed if the container is not known
    #[arg(long)]
    pub(super) ignore_missing: bool,
}

#[derive(clap::Args, Debug)]
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
pub(super) struct Flows {
    /// Only this container's
    pub(super) container: Option<String>,

    /// Only those of this protocol
    #[arg(long, value_name = "PROTOCOL")]
    pub(super) protocol: Option<Transport>,

    /// Only those of clients with this address, or in this range
    #[arg(long, value_name = "ADDR[/LEN]", allow_hyphen_values = true)]
    pub(super) client: Option<String>,

    /// Only those to this port of the host
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) port: Option<u16>,

    /// Only those in this state
    #[arg(long, value_parser = flow_filter::states())]
    pub(super) state: Option<String>,

    /// Show them again every second, until interrupted
    #[arg(long)]
    pub(super) watch: bool,

    #[command(subcommand)]
    pub(super) command: Option<FlowsCommand>,
}

/// A protocol that can be published.
#[derive(ValueEnum, Clone, Copy, Debug)]
pub(super) enum Transport {
    Tcp,
    Udp,
    Sctp,
}

#[derive(Subcommand, Debug)]
pub(super) enum FlowsCommand {
    /// Forget every translated connection
    Purge,
}

#[derive(Subcommand, Debug)]
pub(super) enum Masquerade {
    /// Masquerade a subnet
    #[command(after_help = SUBNET_HELP)]
    Add {
        /// Such as 10.88.0.0/16, fd00:88::/64 or 10.88.0.2
        #[arg(allow_hyphen_values = true)]
        subnet: String,
    },
    /// Masquerade a subnet no longer
    Remove {
        /// As it was added
        #[arg(allow_hyphen_values = true)]
        subnet: String,
    },
    /// Show what is masqueraded, the addresses of containers included
    List {
        /// Only this
        #[arg(allow_hyphen_values = true)]
        subnet: Option<String>,
    },
}

#[derive(clap::Args, Debug)]
pub(super) struct Up {
    /// Serve this device; repeat it for more [default: each on which the host has an address]
    #[arg(long, value_name = "NAME")]
    pub(super) device: Vec<String>,

    /// Run the XDP program too [default: off, or as it is]
    #[arg(long, value_enum, value_name = "MODE")]
    pub(super) xdp: Option<XdpMode>,

    /// What the programs log, which costs time on every packet [default: off, or as it is]
    #[arg(long, value_enum, value_name = "LEVEL")]
    pub(super) log_level: Option<LogLevel>,

    /// How long flows without a packet live: established or transitory (TCP), answered or unanswered
    /// (UDP); repeat it for more [default: 7440, 240, 300, 120, or as it is]
    #[arg(long, value_name = "STATE=SECONDS")]
    pub(super) lifetime: Vec<String>,

    /// Count the bytes of each flow, as flows shows them: all CPUs that have packets of a flow then write to one
    /// cache line [default: off, or as it is]
    #[arg(long, value_enum, value_name = "MODE")]
    pub(super) flow_bytes: Option<Switch>,
}

/// Whether something is done.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Switch {
    /// It is.
    On,
    /// It is not.
    Off,
}

/// Whether and how the XDP program runs on a device.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum XdpMode {
    /// In the driver where that works, else not at all.
    Auto,
    /// In the driver, or fail.
    Native,
    /// In the kernel's generic hook.
    Generic,
    /// Not at all.
    Off,
}

/// What the programs log.
#[derive(ValueEnum, Serialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Nothing: the code is left out.
    Off,
    /// Errors.
    Error,
    /// And what is suspicious.
    Warn,
    /// And what happens to flows.
    Info,
    /// And why packets are left alone.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// As it is typed.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}
