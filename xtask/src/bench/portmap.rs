//! The CNI plugin portmap: what it is asked, and in which way of its two it is to answer.

use std::{
    ffi::OsString,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::{
    Family,
    topology::{self, Place, Topology},
};

/// The plugin's two ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    Nftables,
    Iptables,
}

impl Backend {
    /// Its name, as in the plugin's configuration.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Backend::Nftables => "nftables",
            Backend::Iptables => "iptables",
        }
    }
}

/// What the plugin can be told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Publish what the request says.
    Add,
    /// Say whether that is published.
    Check,
    /// Withdraw it.
    Delete,
}

impl Verb {
    fn name(self) -> &'static str {
        match self {
            Verb::Add => "ADD",
            Verb::Check => "CHECK",
            Verb::Delete => "DEL",
        }
    }
}

/// One published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) host_port: u16,
    pub(crate) container_port: u16,
    pub(crate) protocol: &'static str,
}

/// The plugin, by one of its ways.
#[derive(Debug, Clone)]
pub(crate) struct Plugin {
    program: PathBuf,
    backend: Backend,
}

impl Plugin {
    /// The plugin at `program`; `None` if it does not know the backend. Older ones take the setting and
    /// make iptables rules anyhow; nftables came with the specification's version 1.1 (plugins 1.6).
    pub(crate) fn new(program: &Path, backend: Backend) -> anyhow::Result<Option<Plugin>> {
        let plugin = Plugin {
            program: program.to_owned(),
            backend,
        };
        if backend == Backend::Iptables {
            return Ok(Some(plugin));
        }
        let request = json!({ "cniVersion": "1.0.0" });
        let mut command = Command::new(program);
        command.env("CNI_COMMAND", "VERSION");
        let answer = feed(&mut command, &request.to_string())?;
        let answer: Value = serde_json::from_str(&answer).context("the plugin's versions")?;
        let versions = answer["supportedVersions"].as_array();
        let offers =
            versions.is_some_and(|versions| versions.iter().any(|version| version == "1.1.0"));
        Ok(offers.then_some(plugin))
    }

    /// Where it is.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// What it says of itself when nothing is asked of it: name and version.
    pub(crate) fn about(&self) -> anyhow::Result<String> {
        let output = Command::new(&self.program)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("start {}", self.program.display()))?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(said.lines().next().unwrap_or("portmap").to_owned())
    }

    /// Has it do `verb` with `mappings` for the container of `topology`.
    pub(crate) fn run(
        &self,
        verb: Verb,
        topology: &Topology,
        family: Family,
        mappings: &[Mapping],
    ) -> anyhow::Result<()> {
        let mut command = topology.command(Place::Host, &self.program);
        command.envs(self.environment(verb, topology));
        let request = self.request(topology, family, mappings);
        feed(&mut command, &request.to_string()).map(|_| ())
    }

    /// What it is told by its environment.
    pub(crate) fn environment(
        &self,
        verb: Verb,
        topology: &Topology,
    ) -> [(&'static str, OsString); 5] {
        let path = self.program.parent().unwrap_or(Path::new("/"));
        [
            ("CNI_COMMAND", verb.name().into()),
            ("CNI_CONTAINERID", "bench".into()),
            ("CNI_NETNS", topology.path(Place::Container).into()),
            ("CNI_IFNAME", "eth0".into()),
            ("CNI_PATH", path.into()),
        ]
    }

    /// What it is told on its standard input, with the result of the plugin that made the link.
    pub(crate) fn request(
        &self,
        topology: &Topology,
        family: Family,
        mappings: &[Mapping],
    ) -> Value {
        let container = topology::container_address(family);
        let prefix = if container.is_ipv4() { 24 } else { 64 };
        json!({
            "cniVersion": "1.0.0",
            "name": "bench",
            "type": "portmap",
            "backend": self.backend.name(),
            "snat": true,
            "capabilities": { "portMappings": true },
            "runtimeConfig": { "portMappings": port_mappings(mappings) },
            "prevResult": {
                "cniVersion": "1.0.0",
                "interfaces": [
                    { "name": "veth0" },
                    { "name": "eth0", "sandbox": topology.path(Place::Container) },
                ],
                "ips": [{ "address": format!("{container}/{prefix}"), "interface": 1 }],
            },
        })
    }
}

fn port_mappings(mappings: &[Mapping]) -> Value {
    let one = |mapping: &Mapping| {
        json!({
            "hostPort": mapping.host_port,
            "containerPort": mapping.container_port,
            "protocol": mapping.protocol,
        })
    };
    mappings.iter().map(one).collect()
}

/// Runs `command` with `input` on its standard input. Plugins report errors on standard output.
pub(crate) fn feed(command: &mut Command, input: &str) -> anyhow::Result<String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_written_as_cni_has_it() {
        let mapping = Mapping {
            host_port: 8080,
            container_port: 80,
            protocol: "udp",
        };
        let written = port_mappings(&[mapping]).to_string();
        assert_eq!(
            written,
            r#"[{"containerPort":80,"hostPort":8080,"protocol":"udp"}]"#
        );
    }
}
