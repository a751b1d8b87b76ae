//! The machines of the demo, as network namespaces: client - host - bridge - containers.

use std::{fs, os::unix::fs::symlink};

use anyhow::Context as _;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use portfwd_tests::namespace::Namespace;

/// Where `ip netns` keeps namespaces.
const NETNS: &str = "/run/netns";
/// Where portfwd keeps its instances by default.
pub(super) const BPFFS: &str = "/sys/fs/bpf";

pub(super) const PICTURE: &str = "
  client ------------ host ------------ bridge ------------ containers
  192.0.2.2           192.0.2.1         10.88.0.1           web    10.88.0.2, fd88::2
  2001:db8:1::2       2001:db8:1::1     fd88::1             other  10.88.0.3, fd88::3

Each is a network namespace of the demo's own. `host# command` below is `command`, typed in a shell
that `nsenter --net=/run/netns/host` started, and so for the others.";

/// Gives this process, and those it starts, a mount namespace with its own `/run/netns` and bpffs: the
/// names in it are nobody else's, and whatever becomes of us, none of them outlives us.
pub(super) fn isolate() -> anyhow::Result<()> {
    fs::create_dir_all(NETNS).with_context(|| format!("create {NETNS}"))?;
    unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .context("make the mounts private")?;
    for (kind, place) in [("tmpfs", NETNS), ("bpf", BPFFS)] {
        let options = Some("mode=0755");
        mount(Some(kind), place, Some(kind), MsFlags::empty(), options)
            .with_context(|| format!("mount {kind} on {place}"))?;
    }
    Ok(())
}

/// Where a command is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Client,
    Host,
    Web,
}

impl Place {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Host => "host",
            Self::Web => "web",
        }
    }
}

/// The namespaces; dropping them removes them.
pub(super) struct Machines {
    client: Namespace,
    host: Namespace,
    web: Namespace,
    other: Namespace,
}

impl Machines {
    /// Makes and wires them.
    ///
    /// # Panics
    /// When a step fails.
    pub(super) fn new() -> Self {
        let named = |name: &str| {
            let namespace = Namespace::new(name);
            symlink(namespace.name(), format!("{NETNS}/{name}"))
                .unwrap_or_else(|error| panic!("name namespace {name}: {error}"));
            namespace
        };
        let machines = Self {
            client: named("client"),
            host: named("host"),
            web: named("web"),
            other: named("other"),
        };
        machines.wire_client();
        machines.wire_container(&machines.web, 2);
        machines.wire_container(&machines.other, 3);
        machines
    }

    pub(super) fn at(&self, place: Place) -> &Namespace {
        match place {
            Place::Client => &self.client,
            Place::Host => &self.host,
            Place::Web => &self.web,
        }
    }

    pub(super) fn all(&self) -> [(&'static str, &Namespace); 4] {
        [
            ("client", &self.client),
            ("host", &self.host),
            ("web", &self.web),
            ("other", &self.other),
        ]
    }

    // The two ends of a veth have different explicit indexes: only then does the kernel tell at once
    // that they have a carrier (`linkwatch_urgent_event`), else after up to a second.

    fn wire_client(&self) {
        self.host.ip(&format!(
            "link add eth0 index 11 type veth peer name eth0 index 21 netns {}
             link add br0 type bridge forward_delay 0
             addr add 192.0.2.1/24 dev eth0
             addr add 2001:db8:1::1/64 dev eth0 nodad
             addr add 10.88.0.1/24 dev br0
             addr add fd88::1/64 dev br0 nodad
             link set eth0 up
             link set br0 up\n",
            self.client.name()
        ));
        self.client.ip("addr add 192.0.2.2/24 dev eth0
             addr add 2001:db8:1::2/64 dev eth0 nodad
             link set eth0 up\n");
    }

    /// `number` is the last one of its addresses.
    fn wire_container(&self, container: &Namespace, number: u8) {
        self.host.ip(&format!(
            "link add veth{number} index 3{number} type veth peer name eth0 index 4{number} netns {}
             link set veth{number} master br0
             link set veth{number} up\n",
            container.name()
        ));
        container.ip(&format!(
            "addr add 10.88.0.{number}/24 dev eth0
             addr add fd88::{number}/64 dev eth0 nodad
             link set eth0 up
             route add default via 10.88.0.1
             route add default via fd88::1\n"
        ));
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for (name, _) in self.all() {
            // The directory is the demo's own and goes with it; only a name would be left.
            if let Err(error) = fs::remove_file(format!("{NETNS}/{name}")) {
                eprintln!("remove {NETNS}/{name}: {error}");
            }
        }
    }
}
