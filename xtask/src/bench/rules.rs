//! The rules that CNI's portmap plugin makes: by the plugin itself where it is installed, else by hand.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use serde_json::json;

use super::{
    CONTAINER_PORT, Family, HOST_PORT,
    topology::{self, Place, Topology},
};

/// The plugin's two ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    Nftables,
    Iptables,
}

impl Backend {
    fn name(self) -> &'static str {
        match self {
            Backend::Nftables => "nftables",
            Backend::Iptables => "iptables",
        }
    }
}

/// Publishes the ports by rules. Says how the rules were made.
pub(crate) fn publish(
    backend: Backend,
    plugin: Option<&Path>,
    topology: &Topology,
    family: Family,
) -> anyhow::Result<String> {
    if let Some(plugin) = plugin
        && offers(plugin, backend)?
    {
        add_by_plugin(plugin, backend, topology, family)?;
        if !are_there(backend, topology, family)? {
            bail!("{} made no {} rules", plugin.display(), backend.name());
        }
        return Ok(format!("rules made by {}", plugin.display()));
    }
    match backend {
        Backend::Nftables => add_nftables(topology, family)?,
        Backend::Iptables => add_iptables(topology, family)?,
    }
    Ok("CNI portmap's rules, made by hand".to_owned())
}

/// Whether the plugin knows the backend. Older ones take the setting and make iptables rules anyhow;
/// nftables came with the specification's version 1.1 (plugins 1.6).
fn offers(plugin: &Path, backend: Backend) -> anyhow::Result<bool> {
    if backend == Backend::Iptables {
        return Ok(true);
    }
    let request = json!({ "cniVersion": "1.0.0" });
    let mut command = Command::new(plugin);
    command.env("CNI_COMMAND", "VERSION");
    let answer = feed(&mut command, &request.to_string())?;
    let answer: serde_json::Value =
        serde_json::from_str(&answer).context("the plugin's versions")?;
    let versions = answer["supportedVersions"].as_array();
    Ok(versions.is_some_and(|versions| versions.iter().any(|version| version == "1.1.0")))
}

fn add_by_plugin(
    plugin: &Path,
    backend: Backend,
    topology: &Topology,
    family: Family,
) -> anyhow::Result<()> {
    let container = topology::container_address(family);
    let prefix = if container.is_ipv4() { 24 } else { 64 };
    let mapping = |protocol: &str| json!({ "hostPort": HOST_PORT, "containerPort": CONTAINER_PORT, "protocol": protocol });
    let request = json!({
        "cniVersion": "1.0.0",
        "name": "bench",
        "type": "portmap",
        "backend": backend.name(),
        "snat": true,
        "capabilities": { "portMappings": true },
        "runtimeConfig": { "portMappings": [mapping("tcp"), mapping("udp")] },
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [
                { "name": "veth0" },
                { "name": "eth0", "sandbox": topology.path(Place::Container) },
            ],
            "ips": [{ "address": format!("{container}/{prefix}"), "interface": 1 }],
        },
    });
    let mut command = topology.command(Place::Host, plugin);
    command
        .env("CNI_COMMAND", "ADD")
        .env("CNI_CONTAINERID", "bench")
        .env("CNI_NETNS", topology.path(Place::Container))
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", plugin.parent().unwrap_or(Path::new("/")));
    feed(&mut command, &request.to_string())?;
    Ok(())
}

fn are_there(backend: Backend, topology: &Topology, family: Family) -> anyhow::Result<bool> {
    let mut command = match backend {
        Backend::Nftables => topology.command(Place::Host, "nft"),
        Backend::Iptables => topology.command(Place::Host, format!("{}-save", iptables(family))),
    };
    if backend == Backend::Nftables {
        command.args(["list", "ruleset"]);
    }
    let rules = crate::process::output(&mut command)?;
    Ok(match backend {
        Backend::Nftables => {
            rules.contains("table ip cni_hostport") || rules.contains("table ip6 cni_hostport")
        }
        Backend::Iptables => rules.contains("CNI-HOSTPORT-DNAT"),
    })
}

/// The table of the plugin's nftables backend: a chain of rules, one per port, after a jump for
/// mappings with a host address (there is none here).
fn add_nftables(topology: &Topology, family: Family) -> anyhow::Result<()> {
    let container = topology::container_address(family);
    let (ip, target, from_loopback) = match family {
        Family::V4 => (
            "ip",
            format!("{container}:{CONTAINER_PORT}"),
            format!("ip saddr 127.0.0.1 ip daddr {container} masquerade comment \"bench\""),
        ),
        Family::V6 => (
            "ip6",
            format!("[{container}]:{CONTAINER_PORT}"),
            String::new(),
        ),
    };
    let rules = format!(
        "table {ip} cni_hostport {{
            chain hostports {{
                tcp dport {HOST_PORT} dnat to {target} comment \"bench\"
                udp dport {HOST_PORT} dnat to {target} comment \"bench\"
            }}
            chain hostip_hostports {{ }}
            chain prerouting {{
                type nat hook prerouting priority -100; policy accept;
                jump hostip_hostports
                jump hostports
            }}
            chain output {{
                type nat hook output priority -100; policy accept;
                jump hostip_hostports
                fib daddr type local jump hostports
            }}
            chain masquerading {{
                type nat hook postrouting priority 100; policy accept;
                {ip} saddr {container} {ip} daddr {container} masquerade comment \"bench\"
                {from_loopback}
            }}
        }}\n"
    );
    feed(
        topology.command(Place::Host, "nft").args(["-f", "-"]),
        &rules,
    )?;
    Ok(())
}

/// The chains of the plugin's iptables backend, as `iptables-restore` reads them: a summary chain for
/// local destinations, one chain per container, and a mark for what must be masqueraded.
fn add_iptables(topology: &Topology, family: Family) -> anyhow::Result<()> {
    let container = topology::container_address(family);
    let (subnet, target) = match family {
        Family::V4 => (
            format!("{container}/24"),
            format!("{container}:{CONTAINER_PORT}"),
        ),
        Family::V6 => (
            format!("{container}/64"),
            format!("[{container}]:{CONTAINER_PORT}"),
        ),
    };
    let mut rules = String::from(
        "*nat
:CNI-HOSTPORT-DNAT - [0:0]
:CNI-HOSTPORT-SETMARK - [0:0]
:CNI-HOSTPORT-MASQ - [0:0]
:CNI-DN-bench - [0:0]
-A CNI-HOSTPORT-SETMARK -m comment --comment \"CNI portfwd masquerade mark\" -j MARK --set-xmark 0x2000/0x2000
-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
-A POSTROUTING -m comment --comment \"CNI portfwd requiring masquerade\" -j CNI-HOSTPORT-MASQ
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
",
    );
    for protocol in ["tcp", "udp"] {
        rules += &format!(
            "-A CNI-HOSTPORT-DNAT -p {protocol} -m comment --comment bench -m multiport --dports {HOST_PORT} -j CNI-DN-bench
-A CNI-DN-bench -p {protocol} -s {subnet} --dport {HOST_PORT} -j CNI-HOSTPORT-SETMARK
"
        );
        if family == Family::V4 {
            rules += &format!(
                "-A CNI-DN-bench -p {protocol} -s 127.0.0.1 --dport {HOST_PORT} -j CNI-HOSTPORT-SETMARK\n"
            );
        }
        rules += &format!(
            "-A CNI-DN-bench -p {protocol} --dport {HOST_PORT} -j DNAT --to-destination {target}\n"
        );
    }
    rules += "COMMIT\n";
    let restore = format!("{}-restore", iptables(family));
    feed(&mut topology.command(Place::Host, restore), &rules)?;
    Ok(())
}

fn iptables(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

/// Runs `command` with `input` on its standard input. Plugins report errors on standard output.
fn feed(command: &mut Command, input: &str) -> anyhow::Result<String> {
    let program = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {program}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(input.as_bytes())
            .with_context(|| format!("write to {program}"))?;
    }
    let output = child
        .wait_with_output()
        .with_context(|| format!("wait for {program}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{program} ended with {}: {} {}",
            output.status,
            stderr.trim(),
            stdout.trim()
        );
    }
    Ok(stdout)
}
