//! The rules that CNI's portmap plugin makes: by the plugin itself where it is installed, else by hand.

use std::path::Path;

use anyhow::bail;

use super::{
    CONTAINER_PORT, Family, HOST_PORT,
    portmap::{Backend, Mapping, Plugin, Verb, feed},
    topology::{self, Place, Topology},
};
use crate::process;

/// What is published: the service, TCP and UDP.
const MAPPINGS: [Mapping; 2] = [mapping("tcp"), mapping("udp")];

const fn mapping(protocol: &'static str) -> Mapping {
    Mapping {
        host_port: HOST_PORT,
        container_port: CONTAINER_PORT,
        protocol,
    }
}

/// Publishes the ports by rules. Says how the rules were made.
pub(crate) fn publish(
    backend: Backend,
    plugin: Option<&Path>,
    topology: &Topology,
    family: Family,
) -> anyhow::Result<String> {
    let plugin = plugin
        .map(|program| Plugin::new(program, backend))
        .transpose()?;
    if let Some(plugin) = plugin.flatten() {
        plugin.run(Verb::Add, topology, family, &MAPPINGS)?;
        let program = plugin.program().display();
        if translations(backend, topology, family)? == 0 {
            bail!("{program} made no {} rules", backend.name());
        }
        return Ok(format!("rules made by {program}"));
    }
    match backend {
        Backend::Nftables => add_nftables(topology, family)?,
        Backend::Iptables => add_iptables(topology, family)?,
    }
    Ok("CNI portmap's rules, made by hand".to_owned())
}

/// How many rules of the host lead to a container.
pub(crate) fn translations(
    backend: Backend,
    topology: &Topology,
    family: Family,
) -> anyhow::Result<usize> {
    let (mut command, target) = match backend {
        Backend::Nftables => (topology.command(Place::Host, "nft"), " dnat to "),
        Backend::Iptables => (
            topology.command(Place::Host, format!("{}-save", iptables(family))),
            " -j DNAT ",
        ),
    };
    if backend == Backend::Nftables {
        command.args(["list", "ruleset"]);
    }
    let rules = process::output(&mut command)?;
    Ok(rules.lines().filter(|rule| rule.contains(target)).count())
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
