//! The servers inside the container.

use std::{
    fs,
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use super::{
    machines::Place,
    step::{Stage, Step},
};

const NGINX_CONF: &str = include_str!("nginx.conf");

/// nginx reads its configuration; socat answers each datagram with what it was told and by whom.
const COMMANDS: [&str; 3] = [
    "nginx -p \"$PWD\" -c nginx.conf -e error.log",
    "socat UDP4-RECVFROM:53,fork SYSTEM:'read line; echo $line from $SOCAT_PEERADDR'",
    "socat UDP6-RECVFROM:53,ipv6only,fork SYSTEM:'read line; echo $line from $SOCAT_PEERADDR'",
];

/// How long a server may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// The running servers; dropping them ends them.
pub(super) struct Services {
    children: Vec<Child>,
    /// Inode of the container's network namespace.
    netns: u64,
}

impl Services {
    pub(super) fn start(stage: &Stage) -> anyhow::Result<Self> {
        fs::write(stage.directory().join("nginx.conf"), NGINX_CONF)
            .context("write the configuration of nginx")?;
        let container = stage.machines.at(Place::Web);
        let mut services = Self {
            children: Vec::new(),
            netns: fs::metadata(container.path())
                .context("look at the container's namespace")?
                .ino(),
        };
        for line in COMMANDS {
            println!("web# {line} &");
            // Without `exec` the shell would stay between us and the server. A process group of its own
            // lets nginx end with its workers, and keeps ctrl-C from it.
            let child = stage
                .shell(Place::Web, &format!("exec {line}"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .process_group(0)
                .spawn()
                .with_context(|| format!("start {line}"))?;
            services.children.push(child);
        }
        services.wait_until_ready(stage)?;
        stage.play(&[Step::new(Place::Web, "ss -Hlntu").prints(&[
            "0.0.0.0:80",
            "[::]:80",
            "0.0.0.0:53",
        ])])?;
        Ok(services)
    }

    fn wait_until_ready(&mut self, stage: &Stage) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            stage.check_interrupts()?;
            for (child, line) in self.children.iter_mut().zip(COMMANDS) {
                if let Some(status) = child.try_wait().context("look at a server")? {
                    bail!("`{line}` ended with {status}");
                }
            }
            let listening = stage.machines.at(Place::Web).output("ss", &["-Hlntu"]);
            if listening.lines().count() >= 4 {
                return Ok(());
            }
            ensure!(Instant::now() < end, "the servers do not listen");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends them, and makes sure that no process is left in the container.
    pub(super) fn stop(mut self) -> anyhow::Result<()> {
        self.end();
        let end = Instant::now() + PATIENCE;
        while let Some(pid) = self.process_inside() {
            ensure!(
                Instant::now() < end,
                "process {pid} is left in the container"
            );
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn end(&mut self) {
        for mut child in self.children.drain(..) {
            let group = i32::try_from(child.id()).map(Pid::from_raw);
            // SIGKILL, as socat inherits the other signals held back and would never see them.
            let killed = group.map(|group| killpg(group, Signal::SIGKILL));
            if let Ok(Err(error)) = killed {
                eprintln!("end process group {}: {error}", child.id());
            }
            if let Err(error) = child.wait() {
                eprintln!("wait for process {}: {error}", child.id());
            }
        }
    }

    fn process_inside(&self) -> Option<String> {
        let processes = fs::read_dir("/proc").ok()?;
        processes.flatten().find_map(|process| {
            // Those that end meanwhile are not inside any more.
            let netns = fs::metadata(process.path().join("ns/net")).ok()?;
            (netns.ino() == self.netns).then(|| process.file_name().to_string_lossy().into_owned())
        })
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        self.end();
    }
}
