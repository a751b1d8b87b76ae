//! The machines of a measurement, as network namespaces: client - host - bridge - container.

use std::{
    fs, io,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use super::Family;
use crate::process;

/// Where `ip netns` keeps namespaces.
const NETNS_DIRECTORY: &str = "/run/netns";

/// The bpffs of this run.
pub(crate) const BPFFS: &str = "/sys/fs/bpf";

/// The host's own address on the client's network.
const HOST: (Ipv4Addr, Ipv6Addr) = (
    Ipv4Addr::new(198, 18, 0, 1),
    Ipv6Addr::new(0xfd00, 0x198, 0x18, 0, 0, 0, 0, 1),
);

/// The container's address.
const CONTAINER: (Ipv4Addr, Ipv6Addr) = (
    Ipv4Addr::new(10, 88, 0, 2),
    Ipv6Addr::new(0xfd00, 0x10, 0x88, 0, 0, 0, 0, 2),
);

/// Gives this process, and those it starts, a mount namespace with its own `/run/netns` and bpffs.
///
/// Network namespaces, pinned programs and their links live as long as something refers to them.
/// Here that is only these mounts and our processes, so that nothing can be left behind, not even
/// after SIGKILL, and no name can collide with anybody's.
pub(crate) fn isolate() -> anyhow::Result<()> {
    fs::create_dir_all(NETNS_DIRECTORY).with_context(|| format!("create {NETNS_DIRECTORY}"))?;
    unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace (this needs root)")?;
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .context("make the mounts private")?;
    for (kind, place) in [("tmpfs", NETNS_DIRECTORY), ("bpf", BPFFS)] {
        mount(
            Some("none"),
            place,
            Some(kind),
            MsFlags::empty(),
            Some("mode=0755"),
        )
        .with_context(|| format!("mount {kind} on {place}"))?;
    }
    Ok(())
}

/// Which of the three machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Client,
    Host,
    Container,
}

impl Place {
    const ALL: [Place; 3] = [Place::Client, Place::Host, Place::Container];

    fn name(self) -> &'static str {
        match self {
            Place::Client => "client",
            Place::Host => "host",
            Place::Container => "container",
        }
    }
}

/// Three namespaces of their own, joined. All topologies are alike, offloads left at their defaults;
/// the host routes, and nothing filters or translates yet.
pub(crate) struct Topology {
    name: String,
}

impl Topology {
    /// Builds one. `name` is unique within the run.
    pub(crate) fn build(name: &str) -> anyhow::Result<Topology> {
        let topology = Topology {
            name: name.to_owned(),
        };
        for place in Place::ALL {
            let netns = topology.netns(place);
            process::output(Command::new("ip").args(["netns", "add", &netns]))?;
        }
        topology.link()?;
        for place in Place::ALL {
            topology.set_sysctls(place)?;
        }
        Ok(topology)
    }

    /// The namespace's name.
    pub(crate) fn netns(&self, place: Place) -> String {
        format!("{}-{}", self.name, place.name())
    }

    /// The namespace's path.
    pub(crate) fn path(&self, place: Place) -> PathBuf {
        PathBuf::from(NETNS_DIRECTORY).join(self.netns(place))
    }

    /// `program`, to be run inside one of the namespaces.
    pub(crate) fn command(&self, place: Place, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path(place).display()))
            .arg("--")
            .arg(program);
        command
    }

    fn link(&self) -> anyhow::Result<()> {
        let host = self.netns(Place::Host);
        let (host4, host6) = HOST;
        let (container4, container6) = CONTAINER;
        self.ip(
            Place::Client,
            &format!(
                "link set lo up
             link add eth0 type veth peer name eth0 netns {host}
             address add 198.18.0.2/24 dev eth0
             address add fd00:198:18::2/64 dev eth0 nodad
             link set eth0 up"
            ),
        )?;
        self.ip(
            Place::Container,
            &format!(
                "link set lo up
             link add eth0 type veth peer name veth0 netns {host}
             address add {container4}/24 dev eth0
             address add {container6}/64 dev eth0 nodad
             link set eth0 up"
            ),
        )?;
        self.ip(
            Place::Host,
            &format!(
                "link set lo up
             address add {host4}/24 dev eth0
             address add {host6}/64 dev eth0 nodad
             link set eth0 up
             link add br0 type bridge
             address add 10.88.0.1/24 dev br0
             address add fd00:10:88::1/64 dev br0 nodad
             link set br0 up
             link set veth0 master br0 up"
            ),
        )?;
        self.ip(
            Place::Client,
            &format!("route add default via {host4}\nroute add default via {host6}"),
        )?;
        self.ip(
            Place::Container,
            "route add default via 10.88.0.1\nroute add default via fd00:10:88::1",
        )
    }

    /// Runs a list of `ip` commands.
    fn ip(&self, place: Place, commands: &str) -> anyhow::Result<()> {
        let mut child = Command::new("ip")
            .args(["-netns", &self.netns(place), "-batch", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start ip")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin
                .write_all(commands.as_bytes())
                .context("write to ip")?;
        }
        let output = child.wait_with_output().context("wait for ip")?;
        if !output.status.success() {
            bail!(
                "set up {}: {}",
                self.netns(place),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }

    fn set_sysctls(&self, place: Place) -> anyhow::Result<()> {
        let mut settings = vec![
            // Connections come and go faster than the default range recovers from TIME_WAIT at a proxy.
            ("net/ipv4/ip_local_port_range", "10000 65000"),
            // BBR, where that is the machine's default, would send at the pace that it estimates rather
            // than as fast as the way goes. Without loss Reno and Cubic are alike, but only Reno may
            // be chosen in every namespace.
            ("net/ipv4/tcp_congestion_control", "reno"),
        ];
        if place == Place::Host {
            settings.extend([
                ("net/ipv4/ip_forward", "1"),
                ("net/ipv6/conf/all/forwarding", "1"),
                // Where the bridge hands its frames to iptables, rules run twice: it would slow the
                // rule-based peers alone.
                ("net/bridge/bridge-nf-call-iptables", "0"),
                ("net/bridge/bridge-nf-call-ip6tables", "0"),
            ]);
        }
        self.inside(place, move || {
            for (name, value) in settings {
                let path = PathBuf::from("/proc/sys").join(name);
                match fs::write(&path, value) {
                    Ok(()) => {}
                    Err(error)
                        if error.kind() == io::ErrorKind::NotFound
                            && name.starts_with("net/bridge/") => {}
                    Err(error) => {
                        return Err(error).with_context(|| format!("write {}", path.display()));
                    }
                }
            }
            Ok(())
        })
    }

    /// Runs `work` in a thread inside one of the namespaces.
    fn inside<T: Send>(
        &self,
        place: Place,
        work: impl FnOnce() -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        let path = self.path(place);
        let enter = move || {
            let file = fs::File::open(&path).with_context(|| format!("open {}", path.display()))?;
            nix::sched::setns(file, CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("enter {}", path.display()))
        };
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| enter().and_then(|()| work()));
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        for place in Place::ALL {
            let netns = self.netns(place);
            if let Err(error) =
                process::output(Command::new("ip").args(["netns", "delete", &netns]))
            {
                eprintln!("warning: {error:#}");
            }
        }
    }
}

/// The host's address that clients use.
pub(crate) fn host_address(family: Family) -> IpAddr {
    match family {
        Family::V4 => HOST.0.into(),
        Family::V6 => HOST.1.into(),
    }
}

/// The container's address.
pub(crate) fn container_address(family: Family) -> IpAddr {
    match family {
        Family::V4 => CONTAINER.0.into(),
        Family::V6 => CONTAINER.1.into(),
    }
}

/// The address that listens on all of a family.
pub(crate) fn any_address(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}
