//! Docker itself: its daemon publishes ports of real containers on the host of a topology.
//!
//! All that it makes ends with the one process that it is started by, which has a control group and mounts of its own,
//! and is the first of its PID namespace. The programs are those that `cargo xtask setup` has taken out of Debian's
//! packages; the image is made of one of them.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tempfile::tempdir;

use crate::daemons::Daemon;
use crate::deadline::{PATIENCE, patient, until};
use crate::kernel::cgroup_root;
use crate::namespace::{Namespace, check, unique};

const SCRIPT: &str = include_str!("docker.sh");
/// The group of all processes that are not in a container.
const DAEMON: &str = "daemon";
const SOCKET: &str = "docker.sock";
/// Longer than any of its commands takes that works.
const LIMIT: &str = "60";
const IMAGE: &str = "image";
/// What containers say on port 80 before they echo, as a [`crate::servers::Server`] does. Whom they see they do not know.
const SAYS: &str = "echo docker 0.0.0.0:0; exec /busybox cat";

/// Who takes connections to a published port that no rule translates: those of the host to its 127.0.0.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Userland {
    /// A `docker-proxy` for each port, as Docker does unless told otherwise.
    Proxies,
    /// Nobody: a rule translates them too. The daemon still listens on the port.
    Nothing,
}

impl Userland {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Proxies, Self::Nothing];

    /// The program that listens on published ports.
    #[must_use]
    pub fn listener(self) -> &'static str {
        match self {
            Self::Proxies => "docker-proxy",
            Self::Nothing => "dockerd",
        }
    }
}

/// A running one.
#[derive(Debug)]
pub struct Docker {
    // Dropped in this order: processes first, then their group.
    daemon: Daemon,
    group: Group,
    programs: PathBuf,
}

impl Docker {
    /// Starts it in the host's namespace, with an image.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start(host: &Namespace, userland: Userland) -> Self {
        let programs =
            env::var_os("PORTFWD_DOCKER").expect("cargo xtask test says where docker is");
        let programs = PathBuf::from(programs);
        let directory = tempdir().expect("make a directory");
        let socket = directory.path().join(SOCKET);
        let settings = json!({
            "hosts": [format!("unix://{}", socket.display())],
            "data-root": "/run/data",
            "exec-root": "/run/exec",
            "pidfile": "/run/pid",
            "deprecated-key-path": "/run/key",
            "bip": "172.17.0.1/16",
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
            "live-restore": true,
            "userland-proxy": userland == Userland::Proxies,
        });
        for (name, text) in [("daemon.json", &*settings.to_string()), ("start", SCRIPT)] {
            fs::write(directory.path().join(name), text)
                .unwrap_or_else(|error| panic!("write {name}: {error}"));
        }
        let group = Group::new();
        let line = format!(
            "sh -ec 'echo 0 >{}/cgroup.procs; exec unshare --cgroup --mount --pid --fork --kill-child --mount-proc \
             sh -e start \"$0\"' {}",
            group.0.display(),
            programs.display()
        );
        let daemon = Daemon::start_until(host, directory, &line, || {
            UnixStream::connect(&socket).is_ok()
        });
        let docker = Self {
            daemon,
            group,
            programs,
        };
        docker.make_image();
        docker
    }

    /// An image that has one file, `/busybox`.
    fn make_image(&self) {
        let mut tar = Command::new("tar")
            .args(["--create", "busybox"])
            .current_dir(&self.programs)
            .stdout(Stdio::piped())
            .spawn()
            .expect("start tar");
        let archive = tar.stdout.take().expect("its output is a pipe");
        let mut import = self.command(&["import", "-", IMAGE]);
        check(import.stdin(archive), "import an image");
        assert!(tar.wait().expect("wait for tar").success(), "tar");
    }

    /// Its command line.
    fn command(&self, arguments: &[&str]) -> Command {
        let directory = self.daemon.directory();
        let mut command = Command::new("timeout");
        command
            .arg(LIMIT)
            .arg(self.programs.join("docker"))
            .arg("--host")
            .arg(format!("unix://{}", directory.join(SOCKET).display()))
            .args(arguments)
            .env_clear()
            .env("HOME", directory);
        command
    }

    /// Runs a container that serves port 80, with `ports` published, and gives the numbers that they have got.
    ///
    /// # Panics
    /// When Docker refuses.
    #[track_caller]
    pub fn run(&self, name: &str, ports: &[&str]) -> BTreeSet<u16> {
        let refused = |why| panic!("docker run {name} {ports:?}: {why}\n{}", self.daemon.log());
        self.try_run(name, ports).unwrap_or_else(refused)
    }

    /// The same, or what Docker says to it: then there is no such container.
    ///
    /// # Errors
    /// When it refuses.
    pub fn try_run(&self, name: &str, ports: &[&str]) -> Result<BTreeSet<u16>, String> {
        let mut arguments = vec!["run", "--detach", "--name", name];
        for port in ports {
            arguments.extend(["--publish", port]);
        }
        arguments.extend([IMAGE, "/busybox", "nc", "-ll", "-p", "80"]);
        arguments.extend(["-e", "/busybox", "sh", "-c", SAYS]);
        let output = self.command(&arguments).output().expect("start docker");
        if !output.status.success() {
            // It is made before its ports are published.
            self.remove(name);
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let output = check(&mut self.command(&["port", name]), "ask for ports");
        let lines = String::from_utf8_lossy(&output.stdout);
        let port = |line: &str| line.rsplit(':').next()?.parse().ok();
        Ok(lines.lines().filter_map(port).collect())
    }

    /// `docker rm --force`.
    ///
    /// # Panics
    /// When there is no such container.
    #[track_caller]
    pub fn remove(&self, name: &str) {
        let mut command = self.command(&["rm", "--force", name]);
        check(&mut command, "remove a container");
    }

    /// The first process of a container.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn process_of(&self, name: &str) -> u32 {
        let mut inspect = self.command(&["inspect", "--format", "{{.Id}}", name]);
        let output = check(&mut inspect, "look a container up");
        let id = String::from_utf8_lossy(&output.stdout);
        let processes = self.group.processes(&format!("docker/{}", id.trim()));
        processes.into_iter().min().expect("a process")
    }

    /// Whether this process is the daemon or was started by it, containers apart.
    #[must_use]
    pub fn has_process(&self, pid: u32) -> bool {
        self.group.processes(DAEMON).contains(&pid)
    }

    /// Tells the daemon to end, as when it is about to be replaced by a newer one: containers stay.
    ///
    /// # Panics
    /// When it does not.
    pub fn end_daemon(&self) {
        let name = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let processes = self.group.processes(DAEMON);
        let daemon = processes.into_iter().find(|pid| name(*pid) == "dockerd\n");
        let pid = i32::try_from(daemon.expect("a daemon")).expect("a process");
        kill(Pid::from_raw(pid), Signal::SIGTERM).expect("tell the daemon to end");
        until("the daemon to end", PATIENCE, || {
            let is_over = !self.has_process(pid.unsigned_abs());
            is_over.then_some(())
        });
    }

    /// The directory of its control group.
    #[must_use]
    pub fn group(&self) -> PathBuf {
        self.group.0.clone()
    }
}

/// A control group below the root, which the programs at the root see as all others.
#[derive(Debug)]
struct Group(PathBuf);

impl Group {
    fn new() -> Self {
        let path = cgroup_root().join(format!("pf-{}", unique()));
        fs::create_dir(&path).unwrap_or_else(|error| panic!("make {}: {error}", path.display()));
        Self(path)
    }

    /// The processes of a group in it.
    fn processes(&self, group: &str) -> BTreeSet<u32> {
        let path = self.0.join(group).join("cgroup.procs");
        let list = fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
        list.lines().filter_map(|line| line.parse().ok()).collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The processes were killed with the first of them, and are gone a moment later.
        let end = Instant::now() + patient(PATIENCE);
        while let Err(error) = remove(&self.0) {
            if Instant::now() > end {
                eprintln!("remove {}: {error}", self.0.display());
                return;
            }
            thread::yield_now();
        }
    }
}

/// Removes a control group with those in it.
fn remove(group: &Path) -> io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}
