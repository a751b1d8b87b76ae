//! The manual: a page of roff for each command, from what `--help` says.

use clap::{Command, CommandFactory as _};
use clap_mangen::Man;

use super::args;
use crate::error::{Usage, shown};

/// The page about a command, given by its name and those of the commands that it is below; about all if there is none.
///
/// # Errors
/// When there is no such command.
pub fn manual(path: &[String]) -> Result<Man, Usage> {
    let mut all = args::Args::command().disable_help_subcommand(true);
    // The names of pages are made of those above, and options of all commands are put into each.
    all.build();
    let mut command = &all;
    for name in path {
        command = command
            .find_subcommand(name)
            .ok_or_else(|| unknown(command, name))?;
    }
    Ok(Man::new(command.clone()).source(concat!("portfwd ", env!("CARGO_PKG_VERSION"))))
}

fn unknown(above: &Command, name: &str) -> Usage {
    let names: Vec<&str> = above.get_subcommands().map(Command::get_name).collect();
    let hint = match names.as_slice() {
        [] => None,
        names => Some(format!("there are {}", names.join(", "))),
    };
    Usage {
        message: format!(
            "{} has no command {}",
            above.get_bin_name().unwrap_or(above.get_name()),
            shown(name)
        ),
        hint,
    }
}
