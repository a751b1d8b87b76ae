//! What portfwd is told at each step.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};
use serde::Deserialize;

use super::{
    ports::Ports,
    publisher::Publisher,
    way::{Step, Way},
};
use crate::{
    bench::{
        timed::Request,
        topology::{self, Place, Topology},
    },
    process,
};

/// This project, datapath up.
pub(super) struct Portfwd {
    program: PathBuf,
    instance: &'static str,
    topology: Topology,
}

/// The container's name.
const CONTAINER: &str = "bench";

/// What `portfwd list --json` says of a forward in one family.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    host_ip: String,
    count: usize,
}

impl Portfwd {
    /// Brings it up in the host of `topology`.
    pub(super) fn up(way: Way, program: &Path, topology: Topology) -> anyhow::Result<Portfwd> {
        let portfwd = Portfwd {
            program: program.to_owned(),
            instance: way.place(),
            topology,
        };
        process::output(portfwd.command().arg("up"))?;
        Ok(portfwd)
    }

    fn instance(&self) -> [&str; 4] {
        ["--bpffs", topology::BPFFS, "--instance", self.instance]
    }

    fn command(&self) -> Command {
        let mut command = self.topology.command(Place::Host, &self.program);
        command.args(self.instance());
        command
    }

    fn attach(&self, ports: Ports) -> Vec<OsString> {
        let mut arguments = ["attach", CONTAINER, "--netns"]
            .map(OsString::from)
            .to_vec();
        arguments.push(self.topology.path(Place::Container).into());
        for spec in ports.specs() {
            arguments.extend(["-p".into(), spec.into()]);
        }
        arguments
    }
}

impl Publisher for Portfwd {
    fn how(&self) -> anyhow::Result<String> {
        let version = process::output(self.command().arg("--version"))?;
        Ok(version.lines().next().unwrap_or("portfwd").to_owned())
    }

    fn request(&self, step: Step, ports: Ports) -> Option<Request> {
        let plain = |words: &[&str]| words.iter().map(OsString::from).collect();
        let step = match step {
            Step::Publish => self.attach(ports),
            Step::Extend => self.attach(ports.further()),
            Step::LookUp => plain(&["port", CONTAINER, &ports.middle().to_string()]),
            Step::Withdraw => plain(&["detach", CONTAINER]),
        };
        let mut arguments: Vec<OsString> = plain(&self.instance());
        arguments.extend(step);
        Some(Request {
            program: self.program.clone(),
            arguments,
            ..Request::default()
        })
    }

    fn answer(&self, ports: Ports) -> String {
        format!("0.0.0.0:{}\n", ports.middle())
    }

    fn published(&self) -> anyhow::Result<usize> {
        let list = process::output(self.command().args(["--json", "list"]))?;
        let list: Vec<Listed> = serde_json::from_str(&list).context("portfwd list --json")?;
        let of = |address: &str| -> usize {
            let own = list.iter().filter(|listed| listed.host_ip == address);
            own.map(|listed| listed.count).sum()
        };
        let (v4, v6) = (of("0.0.0.0"), of("::"));
        ensure!(v4 == v6, "{v4} ports are published in IPv4, {v6} in IPv6");
        Ok(v4)
    }

    fn pins(&self) -> Option<PathBuf> {
        Some(
            Path::new(topology::BPFFS)
                .join("portfwd")
                .join(self.instance),
        )
    }

    fn topology(&self) -> &Topology {
        &self.topology
    }
}

impl Drop for Portfwd {
    fn drop(&mut self) {
        if let Err(error) = process::output(self.command().arg("down")) {
            eprintln!("warning: {error:#}");
        }
    }
}
