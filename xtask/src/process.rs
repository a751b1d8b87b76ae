//! Running other programs.

use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

/// Runs `command` with our own standard streams, after showing it; fails unless it exits with 0.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    eprintln!("+ {}", shown(command));
    let status = command
        .status()
        .with_context(|| format!("start {}", program(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", shown(command));
    }
    Ok(())
}

/// Runs `command` quietly and gives its standard output; its standard error is part of the error.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {}", program(command)))?;
    if !output.status.success() {
        bail!(
            "{} ended with {}: {}",
            shown(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("output of {} is not UTF-8", program(command)))
}

/// `command` as one would type it, without its environment.
pub(crate) fn shown(command: &Command) -> String {
    let mut line = program(command);
    for argument in command.get_args() {
        let argument = argument.to_string_lossy();
        if argument.is_empty() || argument.contains(char::is_whitespace) {
            line.push_str(&format!(" {argument:?}"));
        } else {
            line.push_str(&format!(" {argument}"));
        }
    }
    line
}

fn program(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}
