//! Servers that are programs: in the foreground, with their files in a directory of their own, killed
//! when they are dropped or their test's thread ends.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use tempfile::{TempDir, tempdir};

use crate::deadline::{PATIENCE, until};
use crate::namespace::{Namespace, check};

const LOG: &str = "log";

/// A running one.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    directory: TempDir,
}

impl Daemon {
    /// Runs a line of the shell in `directory`, whose process serves `port` itself or by what it executes,
    /// and waits until it does so.
    ///
    /// # Panics
    /// When it ends before, with what it said.
    #[must_use]
    pub fn start(namespace: &Namespace, directory: TempDir, line: &str, port: u16) -> Self {
        Self::start_until(namespace, directory, line, || {
            namespace.run(|| is_served(port))
        })
    }

    /// The same of one that serves when `is_ready` says so.
    pub(crate) fn start_until(
        namespace: &Namespace,
        directory: TempDir,
        line: &str,
        is_ready: impl Fn() -> bool,
    ) -> Self {
        let log = File::create(directory.path().join(LOG)).expect("make a log");
        let mut command = namespace.command("sh");
        command
            .args(["-c", &format!("exec {line}")])
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("double a log"))
            .stderr(log);
        // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
        unsafe {
            command.pre_exec(|| set_pdeathsig(Signal::SIGKILL).map_err(Into::into));
        }
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("start {line}: {error}"));
        let mut daemon = Self { child, directory };
        until(&format!("{line} to serve"), PATIENCE, || {
            let ended = daemon.child.try_wait().expect("ask for its end");
            assert_eq!(ended, None, "{line}: {}", daemon.log());
            is_ready().then_some(())
        });
        daemon
    }

    /// Where its files are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// What it has said so far.
    ///
    /// # Panics
    /// When its log cannot be read.
    #[must_use]
    pub fn log(&self) -> String {
        let log = fs::read(self.directory().join(LOG)).expect("read a log");
        String::from_utf8_lossy(&log).into_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("end a server: {error}");
        }
    }
}

const NGINX: &str = "
    daemon off;
    master_process off;
    pid nginx.pid;
    events {}
    http {
        log_format port $remote_port;
        access_log log port;
        client_max_body_size 0;
        client_body_temp_path .;
        proxy_temp_path .;
        fastcgi_temp_path .;
        uwsgi_temp_path .;
        scgi_temp_path .;
        server {
            listen 80;
            listen [::]:80;
            location / { root .; dav_methods PUT; }
            location /who { return 200 $remote_addr; }
            location /port { return 200 $remote_port; }
        }
    }
";

/// How many lines the file `numbers` of a server has, as `seq` prints them: 2.7 MB.
pub const LINES: u32 = 400_000;

fn with_numbers() -> TempDir {
    let numbers: String = (1..=LINES).map(|number| format!("{number}\n")).collect();
    with_file("numbers", &numbers)
}

fn with_file(name: &str, text: &str) -> TempDir {
    let directory = tempdir().expect("make a directory");
    fs::write(directory.path().join(name), text).unwrap_or_else(|error| panic!("{name}: {error}"));
    directory
}

/// HTTP: `numbers`, whatever is put there, `/who` and `/port` of the client. Its log has the ports.
///
/// # Panics
/// When it does not start, as all of these.
#[must_use]
pub fn nginx(namespace: &Namespace) -> Daemon {
    let directory = with_numbers();
    fs::write(directory.path().join("nginx.conf"), NGINX).expect("configure nginx");
    Daemon::start(
        namespace,
        directory,
        "nginx -p . -c nginx.conf -e stderr",
        80,
    )
}

/// DNS: texts `small.test`, and `large.test` of 3,000 bytes and more, which is more than fits most datagrams.
#[must_use]
pub fn dnsmasq(namespace: &Namespace) -> Daemon {
    let large = format!("txt-record=large.test,{}\n", "x".repeat(250)).repeat(12);
    let configuration = format!(
        "user=root\nno-resolv\nno-hosts\npid-file\nlog-facility=-\nedns-packet-max=4096\n\
         txt-record=small.test,hello\n{large}"
    );
    let line = "dnsmasq --keep-in-foreground --conf-file=\"$PWD/conf\"";
    Daemon::start(namespace, with_file("conf", &configuration), line, 53)
}

/// SSH: knows one user, root, whose files are in its directory, and one key, which is there as `key`.
///
/// # Panics
/// When the keys cannot be made.
#[must_use]
pub fn dropbear(namespace: &Namespace) -> Daemon {
    let directory = tempdir().expect("make a directory");
    let path = directory.path().display();
    let prepare = format!(
        "cd {path} && dropbearkey -t ed25519 -f host && ssh-keygen -q -t ed25519 -N '' -f key && \
         mkdir .ssh && cp key.pub .ssh/authorized_keys && echo root:x:0:0::{path}:/bin/sh >passwd"
    );
    check(Command::new("sh").args(["-c", &prepare]), "make keys");
    let line = "unshare --mount sh -c \
                'mount --bind passwd /etc/passwd && exec dropbear -F -E -s -r host -P pid'";
    Daemon::start(namespace, directory, line, 22)
}

/// FTP: `numbers`, and whatever is put there.
#[must_use]
pub fn pyftpdlib(namespace: &Namespace) -> Daemon {
    // Debian's interpreter, not one that is found before it.
    let line = "/usr/bin/python3 -m pyftpdlib -i :: -p 21 -w -d \"$PWD\"";
    Daemon::start(namespace, with_numbers(), line, 21)
}

/// The other end of iperf3.
#[must_use]
pub fn iperf3_server(namespace: &Namespace) -> Daemon {
    let directory = tempdir().expect("make a directory");
    Daemon::start(namespace, directory, "iperf3 -s", 5201)
}

/// Whatever `ends` of socat do, the first of which serves the port.
#[must_use]
pub fn socat(namespace: &Namespace, ends: &str, port: u16) -> Daemon {
    let directory = tempdir().expect("make a directory");
    Daemon::start(namespace, directory, &format!("socat {ends}"), port)
}

/// Whether a socket of the calling thread's namespace listens on the port, or takes datagrams there.
fn is_served(port: u16) -> bool {
    const LISTENS: &str = "0A";
    const UNCONNECTED: &str = "07";
    [
        ("tcp", LISTENS),
        ("tcp6", LISTENS),
        ("udp", UNCONNECTED),
        ("udp6", UNCONNECTED),
    ]
    .iter()
    .any(|(table, state)| {
        let path = format!("/proc/thread-self/net/{table}");
        let table = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let mut rows = table.lines().map(|row| row.split_whitespace());
        rows.any(|mut words| {
            let own = words.nth(1).unwrap_or_default();
            own.ends_with(&format!(":{port:04X}")) && words.nth(1) == Some(state)
        })
    })
}
