//! A way to publish, seen from outside: what is run for each step, and what has come of it.

use std::path::PathBuf;

use anyhow::Context as _;

use super::{
    portfwd::Portfwd,
    portmap::Portmap,
    ports::Ports,
    way::{Step, Way},
};
use crate::bench::{
    Family,
    peer::Tools,
    portmap::{Backend, Plugin},
    timed::Request,
    topology::Topology,
};

/// A way to publish ports, with its topology.
pub(super) trait Publisher {
    /// What publishes, version included.
    fn how(&self) -> anyhow::Result<String>;

    /// What is run for `step`; `None` if there is nothing that does it.
    fn request(&self, step: Step, ports: Ports) -> Option<Request>;

    /// What the answer to [`Step::LookUp`] has to hold.
    fn answer(&self, ports: Ports) -> String;

    /// How many ports are published now.
    fn published(&self) -> anyhow::Result<usize>;

    /// The directory of its pinned maps, if it has any.
    fn pins(&self) -> Option<PathBuf>;

    /// Its namespaces.
    fn topology(&self) -> &Topology;
}

/// Makes the topology of `way`, and what has to be there before the first port.
pub(super) fn set_up(
    way: Way,
    tools: &Tools,
    family: Family,
) -> anyhow::Result<Box<dyn Publisher>> {
    let topology = Topology::build(way.place())?;
    let Some(backend) = backend(way) else {
        let program = tools.portfwd.as_deref().context("portfwd was not built")?;
        return Ok(Box::new(Portfwd::up(way, program, topology)?));
    };
    let plugin = plugin(tools, backend)?.map_err(anyhow::Error::msg)?;
    Ok(Box::new(Portmap {
        plugin,
        backend,
        family,
        topology,
    }))
}

/// Why `way` cannot be measured here, if so.
pub(super) fn lacks(way: Way, tools: &Tools) -> anyhow::Result<Option<String>> {
    if let Some(reason) = tools.lacks(way.peer()) {
        return Ok(Some(reason));
    }
    match backend(way) {
        Some(backend) => Ok(plugin(tools, backend)?.err()),
        None => Ok(None),
    }
}

fn backend(way: Way) -> Option<Backend> {
    match way {
        Way::PortfwdRange | Way::PortfwdSeparate => None,
        Way::Nftables => Some(Backend::Nftables),
        Way::Iptables => Some(Backend::Iptables),
    }
}

/// The plugin, or why it is of no use.
fn plugin(tools: &Tools, backend: Backend) -> anyhow::Result<Result<Plugin, String>> {
    let Some(program) = &tools.portmap else {
        let reason = "the CNI plugin portmap is not installed: cargo xtask setup";
        return Ok(Err(reason.to_owned()));
    };
    let plugin = Plugin::new(program, backend)?;
    Ok(plugin.ok_or_else(|| {
        let program = program.display();
        format!("{program} knows no nftables, which came with version 1.6")
    }))
}
