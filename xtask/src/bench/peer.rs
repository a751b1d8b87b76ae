//! The ways to publish a port that are compared.

use std::{
    env,
    net::SocketAddr,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use nix::{
    errno::Errno,
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde::Serialize;

use super::{
    CONTAINER_PORT, Family, HOST_PORT,
    portmap::Backend,
    rules,
    topology::{self, Place, Topology},
    worker,
};
use crate::{process, toolchain};

/// One way to reach the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Peer {
    /// The container's own address by plain routing: what the others are compared with
    Direct,
    /// A server in the host's own namespace: the limit
    HostNetwork,
    /// The rules of CNI's portmap plugin, nftables
    Nftables,
    /// The rules of CNI's portmap plugin, iptables
    Iptables,
    /// Docker's userland proxy
    DockerProxy,
    /// socat, a process per connection
    Socat,
    /// This project
    Portfwd,
}

impl Peer {
    /// All of them, in the order of the report.
    pub(crate) const ALL: [Peer; 7] = [
        Peer::Direct,
        Peer::HostNetwork,
        Peer::Nftables,
        Peer::Iptables,
        Peer::DockerProxy,
        Peer::Socat,
        Peer::Portfwd,
    ];

    /// Its name, as in the report and on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Peer::Direct => "direct",
            Peer::HostNetwork => "host-network",
            Peer::Nftables => "nftables",
            Peer::Iptables => "iptables",
            Peer::DockerProxy => "docker-proxy",
            Peer::Socat => "socat",
            Peer::Portfwd => "portfwd",
        }
    }

    /// Where the server runs, and on which port.
    pub(crate) fn server(self) -> (Place, u16) {
        match self {
            Peer::HostNetwork => (Place::Host, HOST_PORT),
            _ => (Place::Container, CONTAINER_PORT),
        }
    }

    /// Where the client connects to.
    pub(crate) fn target(self, family: Family) -> SocketAddr {
        match self {
            Peer::Direct => SocketAddr::new(topology::container_address(family), CONTAINER_PORT),
            _ => SocketAddr::new(topology::host_address(family), HOST_PORT),
        }
    }
}

/// The programs of the peers.
pub(crate) struct Tools {
    /// The binary of `portfwd`; `None` if that peer is not measured.
    pub(crate) portfwd: Option<PathBuf>,
    /// The binary that runs [`worker`].
    pub(crate) worker: PathBuf,
    /// The CNI plugin.
    pub(crate) portmap: Option<PathBuf>,
    docker_proxy: Option<PathBuf>,
}

impl Tools {
    /// Looks for the peers' programs: first for installed ones, then for those that setup unpacked.
    pub(crate) fn find(worker: PathBuf, portfwd: Option<PathBuf>) -> Tools {
        let is_file = |path: &PathBuf| path.is_file();
        let unpacked = toolchain::peers();
        let portmap = ["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"]
            .map(PathBuf::from)
            .into_iter()
            .chain([unpacked.clone()])
            .map(|directory| directory.join("portmap"))
            .find(is_file);
        let docker_proxy = on_path("docker-proxy").or_else(|| {
            [PathBuf::from("/usr/libexec/docker"), unpacked]
                .map(|directory| directory.join("docker-proxy"))
                .into_iter()
                .find(is_file)
        });
        Tools {
            portfwd,
            worker,
            docker_proxy,
            portmap,
        }
    }

    /// Why `peer` cannot be measured here, if so.
    pub(crate) fn lacks(&self, peer: Peer) -> Option<String> {
        let missing = |program: &str| {
            on_path(program)
                .is_none()
                .then(|| format!("{program} is not installed"))
        };
        match peer {
            Peer::Direct | Peer::HostNetwork | Peer::Portfwd => None,
            Peer::Nftables => missing("nft"),
            Peer::Iptables => missing("iptables"),
            Peer::DockerProxy => match self.docker_proxy {
                Some(_) => None,
                None => Some("docker-proxy is not installed: cargo xtask setup".to_owned()),
            },
            Peer::Socat => missing("socat"),
        }
    }
}

/// A published service: ends when dropped.
pub(crate) struct Publication {
    /// How it was made, for the report.
    pub(crate) how: String,
    proxies: Vec<Proxy>,
    withdraw: Option<Command>,
}

impl Publication {
    /// Publishes the service of `topology` in `peer`'s way, TCP and UDP.
    pub(crate) fn make(
        peer: Peer,
        tools: &Tools,
        topology: &Topology,
        family: Family,
    ) -> anyhow::Result<Publication> {
        let nothing = |how: &str| Publication {
            how: how.to_owned(),
            proxies: Vec::new(),
            withdraw: None,
        };
        let by_rules = |backend| -> anyhow::Result<Publication> {
            let how = rules::publish(backend, tools.portmap.as_deref(), topology, family)?;
            Ok(nothing(&how))
        };
        match peer {
            Peer::Direct => Ok(nothing("plain routing, no translation")),
            Peer::HostNetwork => Ok(nothing("server in the host's namespace")),
            Peer::Nftables => by_rules(Backend::Nftables),
            Peer::Iptables => by_rules(Backend::Iptables),
            Peer::DockerProxy => docker_proxy(tools, topology, family),
            Peer::Socat => socat(tools, topology, family),
            Peer::Portfwd => portfwd(tools, topology),
        }
    }

    /// Keeps the peer's own processes on `core`.
    pub(crate) fn pin(&mut self, core: usize) -> anyhow::Result<()> {
        self.proxies
            .iter_mut()
            .try_for_each(|proxy| proxy.pin(core))
    }
}

impl Drop for Publication {
    fn drop(&mut self) {
        if let Some(command) = &mut self.withdraw
            && let Err(error) = process::output(command)
        {
            eprintln!("warning: {error:#}");
        }
    }
}

/// A userland forwarder, in a process group of its own.
struct Proxy(Child);

impl Proxy {
    fn start(tools: &Tools, topology: &Topology, command: &[String]) -> anyhow::Result<Proxy> {
        let child = worker::command(&tools.worker, &topology.path(Place::Host), 0)
            .arg("exec")
            .args(command)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // Proxies complain of every server that has gone, which here happens all the time.
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {}", tools.worker.display()))?;
        Ok(Proxy(child))
    }

    fn pid(&self) -> anyhow::Result<Pid> {
        Ok(Pid::from_raw(
            i32::try_from(self.0.id()).context("a process id")?,
        ))
    }

    /// Keeps its threads on `core`. Fails if it has ended.
    fn pin(&mut self, core: usize) -> anyhow::Result<()> {
        if let Some(status) = self.0.try_wait().context("look after a proxy")? {
            bail!("the proxy has ended with {status}");
        }
        worker::pin(self.pid()?, core)
    }

    /// Ends it and the processes it has forked.
    fn end(&mut self) -> anyhow::Result<()> {
        match killpg(self.pid()?, Signal::SIGKILL) {
            // Nobody is left of the group.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error).context("end a proxy"),
        }
        self.0.wait().context("wait for a proxy")?;
        Ok(())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("warning: {error:#}");
        }
    }
}

fn docker_proxy(tools: &Tools, topology: &Topology, family: Family) -> anyhow::Result<Publication> {
    let program = tools
        .docker_proxy
        .as_deref()
        .context("docker-proxy is not installed")?;
    let mut proxies = Vec::new();
    for protocol in ["tcp", "udp"] {
        // It reports to its parent on descriptor 3, and closes whatever it finds there.
        let line = format!(
            "exec {} -proto {protocol} -host-ip {} -host-port {HOST_PORT} \
             -container-ip {} -container-port {CONTAINER_PORT} 3>/dev/null",
            program.display(),
            topology::any_address(family),
            topology::container_address(family),
        );
        proxies.push(Proxy::start(
            tools,
            topology,
            &["sh".to_owned(), "-c".to_owned(), line],
        )?);
    }
    Ok(Publication {
        how: program.display().to_string(),
        proxies,
        withdraw: None,
    })
}

fn socat(tools: &Tools, topology: &Topology, family: Family) -> anyhow::Result<Publication> {
    let version = match family {
        Family::V4 => 4,
        Family::V6 => 6,
    };
    let target = SocketAddr::new(topology::container_address(family), CONTAINER_PORT);
    let mut proxies = Vec::new();
    for protocol in ["TCP", "UDP"] {
        // -T ends the process that serves a UDP client, which nothing else does.
        let command = [
            "socat".to_owned(),
            "-T2".to_owned(),
            format!("{protocol}{version}-LISTEN:{HOST_PORT},fork,reuseaddr"),
            format!("{protocol}{version}:{target}"),
        ];
        proxies.push(Proxy::start(tools, topology, &command)?);
    }
    Ok(Publication {
        how: "socat, fork".to_owned(),
        proxies,
        withdraw: None,
    })
}

fn portfwd(tools: &Tools, topology: &Topology) -> anyhow::Result<Publication> {
    let program = tools.portfwd.as_deref().context("portfwd was not built")?;
    let portfwd = || {
        let mut command = Command::new(program);
        command
            .args([
                "--bpffs",
                topology::BPFFS,
                "--instance",
                "bench",
                "--host-netns",
            ])
            .arg(topology.path(Place::Host));
        command
    };
    let mut withdraw = portfwd();
    withdraw.arg("down");
    // The instance goes even when the attach fails half way.
    let mut publication = Publication {
        how: process::output(portfwd().arg("--version"))?
            .lines()
            .next()
            .unwrap_or("portfwd")
            .to_owned(),
        proxies: Vec::new(),
        withdraw: None,
    };
    let mut attach = portfwd();
    attach
        .args(["attach", "bench", "--netns"])
        .arg(topology.path(Place::Container));
    for protocol in ["tcp", "udp"] {
        attach.args(["-p", &format!("{HOST_PORT}:{CONTAINER_PORT}/{protocol}")]);
    }
    publication.withdraw = Some(withdraw);
    process::output(&mut attach)?;
    Ok(publication)
}

/// The first executable of that name on PATH, or in the directories of system tools that root's PATH
/// may lack.
fn on_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate: &PathBuf| Path::is_file(candidate))
}
