//! What the figures were measured on, and how quiet it was.

use std::{fs, thread};

use anyhow::Context as _;
use nix::sys::utsname::uname;
use serde::Serialize;

/// Facts that figures depend on.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Machine {
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    /// Runnable processes, averaged over the minute before the run.
    pub(crate) load: f64,
}

impl Machine {
    /// Reads them from the kernel.
    pub(crate) fn read() -> anyhow::Result<Machine> {
        let name = uname().context("read the kernel's name")?;
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo")?;
        let cpu = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name"))
            .map_or("unknown", |rest| rest.trim_start_matches([' ', '\t', ':']));
        let load = fs::read_to_string("/proc/loadavg").context("read /proc/loadavg")?;
        Ok(Machine {
            kernel: name.release().to_string_lossy().into_owned(),
            cpu: cpu.to_owned(),
            cores: thread::available_parallelism()
                .context("count the cores")?
                .get(),
            load: load
                .split(' ')
                .next()
                .and_then(|minute| minute.parse().ok())
                .context("the first word of /proc/loadavg is no number")?,
        })
    }
}

/// Processor time of the whole machine so far, in ticks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ticks {
    all: u64,
    stolen: u64,
}

impl Ticks {
    /// Reads the first line of `/proc/stat` (user, nice, system, idle, iowait, irq, softirq, steal).
    pub(crate) fn read() -> anyhow::Result<Ticks> {
        let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        let numbers: Vec<u64> = stat
            .lines()
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .skip(1)
            .take(8)
            .filter_map(|word| word.parse().ok())
            .collect();
        Ok(Ticks {
            all: numbers.iter().sum(),
            stolen: numbers.get(7).copied().unwrap_or(0),
        })
    }

    /// The share of time since `earlier` that the hypervisor gave to others.
    pub(crate) fn stolen_since(&self, earlier: Ticks) -> f64 {
        let all = self.all.saturating_sub(earlier.all).max(1);
        self.stolen.saturating_sub(earlier.stolen) as f64 / all as f64
    }
}
