//! Errors by subject: the command line, things that are missing, what the system lacks, the instance,
//! the container.

use std::net::IpAddr;
use std::path::PathBuf;

use super::{shown, shown_path};
use crate::label::{InstanceName, Label};
use crate::spec::{PortQuery, Spec};
use crate::subnet::Subnet;

/// Arguments that make no command (exit code 2).
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Usage {
    /// What is wrong, naming the argument.
    pub message: String,
    /// What to type instead.
    pub hint: Option<String>,
}

/// Something that was named and is not there (exit code 4).
#[derive(Debug, thiserror::Error)]
pub enum Missing {
    /// A container that nobody knows, and of which it was not said where it is.
    #[error("no such container: {0}")]
    Target(Label),
    /// A container with no forward in this instance.
    #[error("no such container: {0}")]
    Container(Label),
    /// A forward of a known container.
    #[error("container \"{container}\" has no forward {spec}")]
    Forward {
        /// Whose it would be.
        container: Label,
        /// The SPEC that names it.
        spec: String,
    },
    /// A container port that is not published.
    #[error("no public port {query} published for container \"{container}\"")]
    Port {
        /// The container.
        container: Label,
        /// What was asked for.
        query: PortQuery,
    },
    /// A route to an address.
    #[error("the host has no route to {0}")]
    Route(IpAddr),
    /// An address that a client could have.
    #[error("nobody is known that could send to {0}")]
    Client(IpAddr),
    /// A subnet that is not masqueraded.
    #[error("subnet {0} is not masqueraded")]
    Subnet(Subnet),
    /// A subnet that is masqueraded on behalf of a container alone.
    #[error("{subnet} is masqueraded as an address of container \"{container}\", and as no subnet")]
    SubnetOf {
        /// The container's address.
        subnet: Subnet,
        /// Whose it is.
        container: Label,
    },
    /// The path of a network namespace.
    #[error("no such network namespace: {}", shown_path(.0))]
    Namespace(PathBuf),
    /// A path that leads to something else.
    #[error("{} is not a network namespace", shown_path(.0))]
    NotNamespace(PathBuf),
    /// A process.
    #[error("no such process: {0}")]
    Process(u32),
    /// A network device of the host.
    #[error("no such device: {}", shown(.0))]
    Device(String),
    /// An address on a network device of the host.
    #[error("device {} has no address that others can reach", shown(.0))]
    DeviceAddress(String),
}

impl Missing {
    pub(super) fn hint(&self) -> Option<String> {
        match self {
            Self::Target(_) => Some("give --netns PATH, --pid PID or --ip ADDR".to_owned()),
            Self::Container(_) => Some("portfwd list shows every container".to_owned()),
            Self::Forward { container, .. } | Self::Port { container, .. } => {
                Some(format!("portfwd port {container} shows what it publishes"))
            }
            Self::Subnet(_) => Some("portfwd masquerade list shows everything that is".to_owned()),
            Self::SubnetOf { container, .. } => Some(format!("portfwd detach {container} ends it")),
            Self::Namespace(_) | Self::NotNamespace(_) => {
                Some("give a file such as /run/netns/NAME or /proc/PID/ns/net".to_owned())
            }
            Self::Process(_) => {
                Some("give the PID of a running process in the container".to_owned())
            }
            Self::Device(_) => Some("ip link shows every device".to_owned()),
            Self::Route(_) => Some("ip route shows every route".to_owned()),
            Self::Client(_) => Some("say who sends it, with --from ADDR".to_owned()),
            Self::DeviceAddress(_) => {
                Some("name the device that bears the address, such as the bridge".to_owned())
            }
        }
    }
}

/// What the process or the kernel cannot do (exit code 5).
#[derive(Debug, thiserror::Error)]
pub enum Lacking {
    /// Capabilities, by their names.
    #[error("missing privilege to {action}: {}", capabilities.join(", "))]
    Capability {
        /// What needs them.
        action: String,
        /// Such as `CAP_BPF`.
        capabilities: Vec<&'static str>,
    },
    /// What the doctor found to be missing, by the names of its checks.
    #[error("something necessary is missing: {}", .0.join(", "))]
    Checks(Vec<&'static str>),
    /// Something that the kernel does not have.
    #[error("missing kernel feature: {feature}")]
    KernelFeature {
        /// Its name, and what needs it.
        feature: String,
        /// What to do about it.
        hint: Option<String>,
    },
}

impl Lacking {
    pub(super) fn hint(&self) -> Option<String> {
        match self {
            Self::Capability { capabilities, .. } => Some(format!(
                "run it as root, or with {}",
                capabilities.join(" and ")
            )),
            Self::Checks(_) => None,
            Self::KernelFeature { hint, .. } => hint.clone(),
        }
    }
}

/// The instance cannot be used (exit code 1).
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// A file where a directory has to be.
    #[error("{} is in the way: it is not a directory of portfwd", shown_path(.0))]
    InTheWay(PathBuf),
    /// State of another portfwd.
    #[error(
        "instance \"{instance}\" has layout {}, this portfwd has layout {own}",
        found.map_or_else(|| "of no known version".to_owned(), |found| found.to_string())
    )]
    OtherLayout {
        /// The instance.
        instance: InstanceName,
        /// Its version; `None` if it names none.
        found: Option<u32>,
        /// The version of this program.
        own: u32,
    },
    /// Someone else could change what is in it.
    #[error("{} is not safe: it is {why}", shown_path(path))]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// Such as `writable by others` or `owned by user 1000`.
        why: String,
    },
    /// One namespace, one instance.
    #[error("the network namespace {namespace} already has an instance: \"{first}\"")]
    Second {
        /// The namespace, as `net:[INODE]`.
        namespace: String,
        /// The instance that it has.
        first: InstanceName,
    },
    /// The same, by an instance that is not in this bpffs.
    #[error(
        "the network namespace {namespace} already has an instance in another bpffs: map {map}"
    )]
    SecondElsewhere {
        /// The namespace, as `net:[INODE]`.
        namespace: String,
        /// ID of its journal.
        map: u32,
    },
    /// The instance was brought up in another namespace.
    #[error("instance \"{instance}\" belongs to network namespace {theirs}, not to {ours}")]
    OtherNamespace {
        /// The instance.
        instance: InstanceName,
        /// Its namespace, as `net:[INODE]`.
        theirs: String,
        /// Where the command was to work.
        ours: String,
    },
    /// The instance was brought up in a namespace that is no more.
    #[error("instance \"{0}\" belongs to a network namespace that is gone")]
    NamespaceGone(InstanceName),
    /// Nothing is loaded.
    #[error("instance \"{0}\" is not up")]
    Down(InstanceName),
    /// The programs were loaded without their log.
    #[error("instance \"{0}\" logs nothing")]
    Silent(InstanceName),
    /// The directory for pins is no bpffs and cannot become one.
    #[error("{} is not a bpffs", shown_path(.0))]
    NotBpffs(PathBuf),
}

impl InstanceError {
    pub(super) fn hint(&self) -> Option<String> {
        match self {
            Self::InTheWay(_) => {
                Some("move it away, or choose another --instance or --bpffs".to_owned())
            }
            Self::OtherLayout { .. } => Some(
                "use the portfwd that made it, or its `down` and then this one, or another --instance"
                    .to_owned(),
            ),
            Self::Unsafe { .. } => {
                Some("it has to be owned by root and writable by root alone".to_owned())
            }
            Self::Second { first, .. } => Some(format!("use --instance {first}")),
            Self::OtherNamespace { .. } => Some(
                "choose another --instance, or give that namespace with --host-netns".to_owned(),
            ),
            Self::SecondElsewhere { .. } => Some(
                "use its --bpffs and --instance; `bpftool map show` lists the pins".to_owned(),
            ),
            Self::NamespaceGone(_) => Some("portfwd down removes it".to_owned()),
            Self::Down(_) => Some("portfwd up, or the first attach, brings it up".to_owned()),
            Self::Silent(_) => Some("portfwd up --log-level info".to_owned()),
            Self::NotBpffs(_) => Some("mount -t bpf bpf DIR, or choose another --bpffs".to_owned()),
        }
    }
}

/// The container cannot be attached (exit code 1).
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// The name is taken by another container, or the container has moved.
    #[error("container \"{label}\" is known with {known}, not with {asked}")]
    KnownElsewhere {
        /// The name.
        label: Label,
        /// Where it is: `address 10.88.0.2 by link 7 in network namespace 4123` (interface index and
        /// cookie).
        known: String,
        /// Where it was now said to be, in the same form.
        asked: String,
    },
    /// The link that it was attached with is no more.
    #[error("the link of container \"{0}\" is gone")]
    LinkGone(Label),
    /// The SPEC's host address is of a family that the container does not have.
    #[error("container \"{label}\" has no {} address for host address {host}", family(*host))]
    NoFamily {
        /// The container.
        label: Label,
        /// The host address asked for.
        host: IpAddr,
    },
    /// The forward exists, but other clients may use it.
    #[error("container \"{label}\" has forward {spec} already, with other --allow or --deny")]
    OtherPolicy {
        /// The container.
        label: Label,
        /// The SPEC that asks for it.
        spec: Spec,
    },
    /// Its forwards may lead to a loopback address, for which a program has to be inside the target's namespace.
    #[error("container \"{from}\" serves ports with --loopback, and \"{to}\" was not attached so")]
    NotInside {
        /// The container that has the ports.
        from: Label,
        /// The one that was to get them.
        to: Label,
    },
    /// It opens no connections to any port.
    #[error("container \"{0}\" has no port to hand over: what it had, it has handed over already")]
    Drains(Label),
    /// The forward exists, but for the other kind of listener.
    #[error(
        "container \"{label}\" has forward {spec} already, {} --loopback",
        if *loopback { "without" } else { "with" }
    )]
    OtherListener {
        /// The container.
        label: Label,
        /// The SPEC that asks for it.
        spec: Spec,
        /// Whether it was asked for with `--loopback`.
        loopback: bool,
    },
}

impl ContainerError {
    pub(super) fn hint(&self) -> Option<String> {
        match self {
            Self::KnownElsewhere { .. } => Some(
                "attach --replace puts this one in its place; or choose another name".to_owned(),
            ),
            Self::LinkGone(label) => Some(format!(
                "portfwd detach {label}, then attach it with --netns, --pid or --ip"
            )),
            Self::NoFamily { .. } | Self::Drains(_) => None,
            Self::NotInside { to, .. } => {
                Some(format!("say where {to} is, with --netns PATH or --pid PID"))
            }
            Self::OtherPolicy { .. } => {
                Some("attach --replace changes who may use what is published".to_owned())
            }
            Self::OtherListener { label, spec, .. } => {
                Some(format!("portfwd detach {label} -p {spec} first"))
            }
        }
    }
}

const fn family(address: IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    }
}
