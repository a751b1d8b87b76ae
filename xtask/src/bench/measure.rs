//! One measurement: a server and a client in their namespaces, on one core.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    net::SocketAddr,
    process::{Child, ChildStderr, ChildStdout, Stdio},
};

use anyhow::{Context as _, bail};

use super::{
    Family,
    engine::{Count, Window},
    peer::{Peer, Publication, Tools},
    topology::{self, Place, Topology},
    worker,
    workload::Workload,
};

/// One published service, to be measured again and again.
pub(crate) struct Subject {
    pub(crate) peer: Peer,
    // Before the topology, so that it is withdrawn while its namespaces still have their names.
    pub(crate) publication: Publication,
    topology: Topology,
    family: Family,
}

impl Subject {
    /// Builds the topology of `peer` and publishes the service in it.
    pub(crate) fn set_up(peer: Peer, tools: &Tools, family: Family) -> anyhow::Result<Subject> {
        let topology = Topology::build(peer.name())?;
        let publication = Publication::make(peer, tools, &topology, family)
            .with_context(|| format!("publish by {}", peer.name()))?;
        Ok(Subject {
            peer,
            publication,
            topology,
            family,
        })
    }

    /// Measures `workload` once, with everything on `core`.
    pub(crate) fn measure(
        &mut self,
        tools: &Tools,
        workload: Workload,
        window: Window,
        core: usize,
    ) -> anyhow::Result<Count> {
        self.publication.pin(core)?;
        let (place, port) = self.peer.server();
        let listen = SocketAddr::new(topology::any_address(self.family), port);
        let target = self.peer.target(self.family);
        let start = |role, place, address| {
            Worker::start(
                tools,
                &self.topology.path(place),
                role,
                workload,
                window,
                core,
                address,
            )
        };
        let mut server = start("serve", place, listen)?;
        server.wait_until_ready().context("server")?;
        let mut client = start("drive", Place::Client, target)?;
        if workload.server_counts() {
            let count = server.count();
            // A client that failed knows why nothing came.
            count.map_err(|error| match client.failure() {
                Some(reason) => anyhow::anyhow!("client: {reason}; server: {error:#}"),
                None => error.context("server"),
            })
        } else {
            client.count().context("client")
        }
    }
}

/// A process that serves or drives a workload. It ends when dropped.
struct Worker {
    child: Child,
    out: BufReader<ChildStdout>,
    err: ChildStderr,
}

impl Worker {
    fn start(
        tools: &Tools,
        netns: &std::path::Path,
        role: &str,
        workload: Workload,
        window: Window,
        core: usize,
        address: SocketAddr,
    ) -> anyhow::Result<Worker> {
        let workload =
            clap::ValueEnum::to_possible_value(&workload).context("a workload's name")?;
        let mut child = worker::command(&tools.worker, netns, core)
            .args([role, workload.get_name(), &address.to_string()])
            .args(["--warmup-ms", &window.warmup.as_millis().to_string()])
            .args(["--length-ms", &window.length.as_millis().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", tools.worker.display()))?;
        let out = child.stdout.take().context("a worker's standard output")?;
        let err = child.stderr.take().context("a worker's standard error")?;
        Ok(Worker {
            child,
            out: BufReader::new(out),
            err,
        })
    }

    fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        match self.line()?.as_str() {
            worker::READY => Ok(()),
            other => bail!("{other:?} instead of {:?}", worker::READY),
        }
    }

    fn count(&mut self) -> anyhow::Result<Count> {
        let line = self.line()?;
        serde_json::from_str(&line).with_context(|| format!("a result of {line:?}"))
    }

    /// The next line. Waiting has an end: a worker that hears nothing ends itself.
    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.out
            .read_line(&mut line)
            .context("read from a worker")?;
        if line.is_empty() {
            bail!("{}", self.complaint());
        }
        Ok(line.trim_end().to_owned())
    }

    /// What the worker said before it ended, if it has failed.
    fn failure(&mut self) -> Option<String> {
        match self.child.try_wait() {
            Ok(Some(status)) if !status.success() => Some(self.complaint()),
            _ => None,
        }
    }

    fn complaint(&mut self) -> String {
        let mut text = String::new();
        match self.err.read_to_string(&mut text) {
            Ok(_) if text.trim().is_empty() => "ended without a word".to_owned(),
            Ok(_) => text.trim().trim_start_matches("error: ").to_owned(),
            Err(error) => format!("its standard error cannot be read: {error}"),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("warning: end a worker: {error}");
        }
    }
}
