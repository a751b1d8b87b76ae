//! Namespaces and links of a test's own, gone when it ends.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use portfwd_user::observe::netns::Netns;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Runs `ip`, which must succeed.
pub(crate) fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// When a test gives up waiting.
pub(crate) fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// The namespaces of one test.
#[derive(Default)]
pub(crate) struct Namespaces {
    names: Vec<String>,
}

impl Namespaces {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A new, empty namespace, by its name under `/run/netns`.
    pub(crate) fn add(&mut self) -> String {
        let name = format!(
            "pfu-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        ip(&format!("netns add {name}"));
        self.names.push(name.clone());
        name
    }

    pub(crate) fn open(&self, name: &str) -> Netns {
        Netns::open(&PathBuf::from("/run/netns").join(name)).unwrap()
    }

    /// A bridge that is up.
    pub(crate) fn bridge(&self, netns: &str, name: &str, addresses: &[&str]) {
        ip(&format!("-n {netns} link add {name} type bridge"));
        self.set_up(netns, name, addresses);
    }

    /// A pair, both ends up; the second end has the addresses.
    pub(crate) fn veth(
        &self,
        netns: &str,
        name: &str,
        peer_netns: &str,
        peer: &str,
        addresses: &[&str],
    ) {
        ip(&format!(
            "-n {netns} link add {name} type veth peer name {peer} netns {peer_netns}"
        ));
        self.set_up(netns, name, &[]);
        self.set_up(peer_netns, peer, addresses);
    }

    fn set_up(&self, netns: &str, name: &str, addresses: &[&str]) {
        for address in addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            ip(&format!(
                "-n {netns} address add {address} dev {name} {nodad}"
            ));
        }
        ip(&format!("-n {netns} link set {name} up"));
    }

    /// Interface index.
    pub(crate) fn index(&self, netns: &str, name: &str) -> u32 {
        let output = Command::new("ip")
            .args(["-n", netns, "-o", "link", "show", name])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.split(':').next().unwrap().parse().unwrap()
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.names {
            ip(&format!("netns delete {name}"));
        }
    }
}
