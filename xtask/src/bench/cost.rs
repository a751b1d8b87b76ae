//! What a packet costs in the programs: the loader's own benchmark, which knows their maps.

use std::process::Command;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::{process, workspace};

/// One figure, above an empty program at the same hook.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Cost {
    /// Hook, direction, protocol and family.
    pub(crate) what: String,
    /// Median of the samples.
    pub(crate) nanoseconds: f64,
    /// At most.
    pub(crate) goal: f64,
    /// Each over a million runs.
    pub(crate) samples: Vec<f64>,
}

/// Builds the benchmark and runs it.
pub(crate) fn measure() -> anyhow::Result<Vec<Cost>> {
    process::run(benchmark().arg("--no-run"))?;
    let mut command = Command::new("nice");
    let cargo = benchmark();
    command
        .args(["-n", "-20", "--"])
        .arg(cargo.get_program())
        .args(cargo.get_args())
        .args(["--", "--json"])
        .current_dir(workspace::root());
    let json = process::output(&mut command)?;
    serde_json::from_str(&json).context("figures of the packet cost")
}

fn benchmark() -> Command {
    let mut cargo = super::cargo();
    cargo.args([
        "bench",
        "--quiet",
        "--package",
        "portfwd-user",
        "--bench",
        "packet_cost",
    ]);
    cargo
}
