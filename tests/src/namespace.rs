//! Network namespaces under `/run/netns`, each with a name that no other test has.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::SystemTime;

use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns};

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// Of this process: IDs come again, and what a test that was killed has left keeps its name.
static STAMP: LazyLock<u32> = LazyLock::new(|| {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |now| now.subsec_nanos() >> 8)
});

/// A part of names that no other test's objects have.
#[must_use]
pub fn unique() -> String {
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{}-{:x}-{number}", std::process::id(), *STAMP)
}

/// A named network namespace; dropping it removes the name.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    handle: OwnedFd,
}

impl Namespace {
    /// Makes the namespace `pf-<unique>-<role>` with its loopback device up.
    ///
    /// # Panics
    /// When `ip` is missing or refuses.
    #[must_use]
    pub fn new(role: &str) -> Self {
        let name = format!("pf-{}-{role}", unique());
        check(
            Command::new("ip").args(["netns", "add", &name]),
            "make a network namespace",
        );
        let handle = File::open(Path::new("/run/netns").join(&name))
            .unwrap_or_else(|error| panic!("open namespace {name}: {error}"))
            .into();
        let namespace = Self { name, handle };
        // Addresses are usable at once, link-local ones are given and not made up late, and the
        // namespace starts from known values (it inherits some of the machine's).
        for (key, value) in [
            ("ipv6/conf/default/addr_gen_mode", "1"),
            // Every closed UDP port answers, not only the first few in a second.
            ("ipv4/icmp_ratelimit", "0"),
            ("ipv6/icmp/ratelimit", "0"),
            ("ipv6/conf/all/accept_dad", "0"),
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv6/conf/all/forwarding", "0"),
            ("ipv4/ip_forward", "0"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
        ] {
            namespace.set_sysctl(key, value);
        }
        namespace.ip("link set lo up\n");
        namespace
    }

    /// The name under `/run/netns`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for the namespace.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Runs `work` on a thread of its own inside the namespace. Sockets made there stay in the
    /// namespace wherever they are used afterwards.
    ///
    /// # Panics
    /// When the namespace cannot be entered, or `work` panics.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter();
                work()
            });
            match inside.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// What the kernel has counted here: `group` is that of a table of `/proc/net/netstat` or
    /// `/proc/net/snmp`, each two lines of names and of values.
    ///
    /// # Panics
    /// When there is no such counter.
    pub fn counter(&self, group: &str, name: &str) -> u64 {
        let tables = self.run(|| {
            ["netstat", "snmp"].map(|file| {
                fs::read_to_string(format!("/proc/thread-self/net/{file}")).expect("counters")
            })
        });
        let prefix = format!("{group}: ");
        let mut lines = tables
            .iter()
            .flat_map(|table| table.lines())
            .filter_map(|line| line.strip_prefix(&prefix));
        let (names, values) = (lines.next(), lines.next());
        let names = names.unwrap_or_default().split(' ');
        let mut columns = names.zip(values.unwrap_or_default().split(' '));
        let found = columns.find(|(column, _)| *column == name);
        let value = found.and_then(|(_, value)| value.parse().ok());
        value.unwrap_or_else(|| panic!("no counter {name} of {group}"))
    }

    /// Starts `work` on a thread of its own inside the namespace, without waiting for it.
    ///
    /// # Panics
    /// When the namespace's file descriptor cannot be doubled.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let handle = self.doubled();
        thread::spawn(move || {
            setns(handle, CloneFlags::CLONE_NEWNET).expect("enter a namespace");
            work()
        })
    }

    fn enter(&self) {
        setns(self.handle.as_fd(), CloneFlags::CLONE_NEWNET)
            .unwrap_or_else(|error| panic!("enter namespace {}: {error}", self.name));
    }

    fn doubled(&self) -> OwnedFd {
        let doubled = self.handle.try_clone();
        doubled.expect("double a namespace's file descriptor")
    }

    /// A command that will run inside the namespace, with the caller's mounts.
    ///
    /// # Panics
    /// When the namespace's file descriptor cannot be doubled.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let handle = self.doubled();
        let mut command = Command::new(program);
        // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
        unsafe {
            command.pre_exec(move || {
                setns(handle.as_fd(), CloneFlags::CLONE_NEWNET).map_err(Into::into)
            });
        }
        command
    }

    /// Runs lines of `ip` commands inside the namespace and stops at the first that fails.
    ///
    /// # Panics
    /// When one fails.
    pub fn ip(&self, lines: &str) {
        self.feed("ip", &["-batch", "-"], lines);
    }

    /// Runs `program` inside the namespace and gives back what it printed.
    ///
    /// # Panics
    /// When it does not exit with 0.
    pub fn output(&self, program: &str, arguments: &[&str]) -> String {
        let output = check(self.command(program).args(arguments), program);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs `program` inside the namespace with `input` on its standard input.
    ///
    /// # Panics
    /// When it does not exit with 0.
    pub fn feed(&self, program: &str, arguments: &[&str], input: &str) {
        let mut child = self
            .command(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("start {program}: {error}"));
        child
            .stdin
            .take()
            .expect("its input is a pipe")
            .write_all(input.as_bytes())
            .unwrap_or_else(|error| panic!("feed {program}: {error}"));
        let output = child
            .wait_with_output()
            .unwrap_or_else(|error| panic!("wait for {program}: {error}"));
        assert!(
            output.status.success(),
            "{program} in {}: {}\n{input}",
            self.name,
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Whether the namespace has the sysctl `net/<key>`: some come with a module.
    #[must_use]
    pub fn has_sysctl(&self, key: &str) -> bool {
        self.run(|| Path::new("/proc/sys/net").join(key).exists())
    }

    /// Writes the sysctl `net/<key>` of the namespace.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn set_sysctl(&self, key: &str, value: &str) {
        self.run(|| {
            fs::write(format!("/proc/sys/net/{key}"), value)
                .unwrap_or_else(|error| panic!("set net/{key} in {}: {error}", self.name));
        });
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let path = self.path();
        if let Err(error) = umount2(&path, MntFlags::MNT_DETACH) {
            eprintln!("unmount {}: {error}", path.display());
        }
        if let Err(error) = fs::remove_file(&path) {
            eprintln!("remove {}: {error}", path.display());
        }
    }
}

/// Runs a command to its end.
///
/// # Panics
/// When it cannot start or does not exit with 0, naming `purpose` and its standard error.
pub fn check(command: &mut Command, purpose: &str) -> Output {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{purpose}: {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{purpose}: {command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}
