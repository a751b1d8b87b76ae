//! One command of the demo: shown, run, checked.

use std::{
    env,
    ffi::OsString,
    fs,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail, ensure};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};
use portfwd_tests::portfwd::{self, Outcome};
use tempfile::TempDir;

use super::machines::{Machines, Place};
use crate::workspace;

/// What would end the demo half-way: held back, and asked for between two steps.
pub(super) struct Interrupts(SignalFd);

impl Interrupts {
    pub(super) fn hold_back() -> anyhow::Result<Self> {
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            signals.add(signal);
        }
        signals.thread_block().context("hold back signals")?;
        let descriptor = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC);
        descriptor.map(Self).context("ask for signals")
    }

    fn check(&self) -> anyhow::Result<()> {
        let mut wanted = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let arrived = poll(&mut wanted, PollTimeout::ZERO).context("ask for signals")?;
        ensure!(arrived == 0, "interrupted");
        Ok(())
    }
}

/// A command and what is expected of it.
pub(super) struct Step<'a> {
    place: Place,
    line: &'a str,
    code: i32,
    prints: &'a [&'a str],
    lacks: &'a [&'a str],
    prints_nothing: bool,
}

impl<'a> Step<'a> {
    /// `line` is for a shell; it is expected to end with 0.
    pub(super) fn new(place: Place, line: &'a str) -> Self {
        Self {
            place,
            line,
            code: 0,
            prints: &[],
            lacks: &[],
            prints_nothing: false,
        }
    }
    pub(super) fn exits_with(self, code: i32) -> Self {
        Self { code, ..self }
    }
    /// Each of `texts` is expected on standard output or error.
    pub(super) fn prints(self, texts: &'a [&'a str]) -> Self {
        Self {
            prints: texts,
            ..self
        }
    }
    pub(super) fn lacks(self, texts: &'a [&'a str]) -> Self {
        Self {
            lacks: texts,
            ..self
        }
    }
    pub(super) fn prints_nothing(self) -> Self {
        Self {
            prints_nothing: true,
            ..self
        }
    }

    fn check(&self, outcome: &Outcome) -> anyhow::Result<()> {
        let line = self.line;
        ensure!(
            outcome.code == self.code,
            "`{line}` ended with {} instead of {}",
            outcome.code,
            self.code
        );
        let text = format!("{}{}", outcome.stdout, outcome.stderr);
        for wanted in self.prints {
            ensure!(text.contains(wanted), "`{line}` did not print {wanted:?}");
        }
        for unwanted in self.lacks {
            ensure!(!text.contains(unwanted), "`{line}` printed {unwanted:?}");
        }
        ensure!(
            !self.prints_nothing || text.is_empty(),
            "`{line}` printed something"
        );
        Ok(())
    }
}

/// Where the demo plays: the machines, and a directory for the files of the servers.
pub(super) struct Stage {
    // Dropped before the directory.
    pub(super) machines: Machines,
    directory: TempDir,
    interrupts: Interrupts,
    path: OsString,
}

impl Stage {
    pub(super) fn new(machines: Machines, interrupts: Interrupts) -> anyhow::Result<Self> {
        let binaries = workspace::target().join("release");
        let mut path = vec![binaries];
        path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
        // A user's PATH lacks the directories of nft and nginx on Debian.
        path.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
        Ok(Self {
            machines,
            directory: tempfile::Builder::new()
                .prefix("portfwd-demo-")
                .tempdir()
                .context("make a directory for the servers")?,
            interrupts,
            path: env::join_paths(path).context("extend PATH")?,
        })
    }

    pub(super) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(super) fn title(&self, text: &str) {
        println!("\n=== {text}");
    }

    pub(super) fn note(&self, text: &str) {
        println!("{text}");
    }

    /// A shell on `line`, in the directory of the servers.
    pub(super) fn shell(&self, place: Place, line: &str) -> Command {
        let mut command = self.machines.at(place).command("sh");
        command
            .args(["-c", line])
            .current_dir(self.directory())
            .env("PATH", &self.path);
        for (name, _) in env::vars_os() {
            if name.to_string_lossy().starts_with("PORTFWD_") {
                command.env_remove(name);
            }
        }
        command
    }

    /// Shows, runs and checks each step, up to the first that is not as expected.
    pub(super) fn play(&self, steps: &[Step<'_>]) -> anyhow::Result<()> {
        for step in steps {
            self.check_interrupts()?;
            println!("{}# {}", step.place.name(), step.line);
            let outcome = portfwd::finish(self.shell(step.place, step.line));
            print!("{}{}", outcome.stdout, outcome.stderr);
            if outcome.code != 0 {
                println!("(exit code {})", outcome.code);
            }
            step.check(&outcome)?;
        }
        Ok(())
    }

    pub(super) fn check_interrupts(&self) -> anyhow::Result<()> {
        self.interrupts.check()
    }

    /// Removes everything, and makes sure that it is gone.
    pub(super) fn strike(self) -> anyhow::Result<()> {
        let Self {
            machines,
            directory,
            ..
        } = self;
        drop(machines);
        let names = fs::read_dir("/run/netns").context("read /run/netns")?;
        if let Some(name) = names.flatten().next() {
            bail!("{} is left", name.path().display());
        }
        let path = directory.path().to_owned();
        directory.close().context("remove the servers' files")?;
        println!(
            "gone: the demo's own namespaces, processes and {}",
            path.display()
        );
        Ok(())
    }
}
