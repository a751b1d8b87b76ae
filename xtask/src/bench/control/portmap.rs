//! What the CNI plugin portmap is told at each step.

use std::path::PathBuf;

use super::{ports::Ports, publisher::Publisher, way::Step};
use crate::bench::{
    Family,
    portmap::{Backend, Plugin, Verb},
    rules,
    timed::Request,
    topology::Topology,
};

/// The CNI plugin by one of its ways.
pub(super) struct Portmap {
    pub(super) plugin: Plugin,
    /// That of the plugin.
    pub(super) backend: Backend,
    /// Of the container's address that the plugin is told.
    pub(super) family: Family,
    pub(super) topology: Topology,
}

impl Publisher for Portmap {
    fn how(&self) -> anyhow::Result<String> {
        let about = self.plugin.about()?;
        Ok(format!("{about}, {}", self.plugin.program().display()))
    }

    fn request(&self, step: Step, ports: Ports) -> Option<Request> {
        let verb = match step {
            Step::Publish => Verb::Add,
            Step::Extend => return None,
            Step::LookUp => Verb::Check,
            Step::Withdraw => Verb::Delete,
        };
        let request = self
            .plugin
            .request(&self.topology, self.family, &ports.mappings());
        Some(Request {
            program: self.plugin.program().to_owned(),
            environment: self.plugin.environment(verb, &self.topology).to_vec(),
            input: request.to_string(),
            ..Request::default()
        })
    }

    /// CHECK says nothing if all is well.
    fn answer(&self, _: Ports) -> String {
        String::new()
    }

    fn published(&self) -> anyhow::Result<usize> {
        rules::translations(self.backend, &self.topology, self.family)
    }

    fn pins(&self) -> Option<PathBuf> {
        None
    }

    fn topology(&self) -> &Topology {
        &self.topology
    }
}
