//! clap's errors in our form: one line that names the argument, and one hint.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::error::{Usage, shown};
use crate::spec::Spec;

/// The same error without clap's usage text.
pub(super) fn from_clap(error: &clap::Error, arguments: &[OsString]) -> Usage {
    let text = printable(&error.to_string(), arguments);
    let mut paragraphs = text.split("\n\n");
    let mut message = paragraphs
        .next()
        .map(|first| join_lines(first.strip_prefix("error: ").unwrap_or(first)))
        .unwrap_or_default();
    if error.kind() == ErrorKind::InvalidUtf8
        && let Some(argument) = arguments
            .iter()
            .find(|argument| argument.to_str().is_none())
    {
        message = format!(
            "the argument {} is not UTF-8",
            shown(&argument.to_string_lossy())
        );
    }
    if error.kind() == ErrorKind::MissingSubcommand {
        "no command was given".clone_into(&mut message);
    }
    let usage = text.lines().find_map(|line| line.strip_prefix("Usage: "));
    Usage {
        message,
        hint: spec_hint(error)
            .or_else(|| tip(&text))
            .or_else(|| usage.map(help_hint)),
    }
}

/// `text` with the control characters of the arguments that it quotes escaped, so that none of them
/// looks like an end of a line of clap's own.
fn printable(text: &str, arguments: &[OsString]) -> String {
    let mut printable = text.to_owned();
    for argument in arguments.iter().filter_map(|argument| argument.to_str()) {
        let value = argument.split_once('=').map(|(_, value)| value);
        for quoted in [Some(argument), value].into_iter().flatten() {
            if quoted.contains(char::is_control) {
                printable = printable.replace(quoted, &quoted.escape_debug().to_string());
            }
        }
    }
    printable
}

/// clap lists missing arguments and possible values on lines of their own.
fn join_lines(paragraph: &str) -> String {
    let mut lines = paragraph.lines().map(str::trim);
    let first = lines.next().unwrap_or_default().to_owned();
    let rest: Vec<&str> = lines.collect();
    match (rest.is_empty(), first.ends_with(':')) {
        (true, _) => first,
        (false, true) => format!("{first} {}", rest.join(", ")),
        (false, false) => format!("{first} {}", rest.join(" ")),
    }
}

/// clap's first advice.
fn tip(text: &str) -> Option<String> {
    let mut tips = text
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("tip: "))
        // "to pass '--x' as a value, use '-- --x'": no value of ours looks like an option.
        .filter(|tip| !tip.starts_with("to pass "));
    tips.next().map(str::to_owned)
}

/// A SPEC behind another SPEC, or behind the container, lacks its option.
fn spec_hint(error: &clap::Error) -> Option<String> {
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(argument)) if argument.parse::<Spec>().is_ok() => {
            Some(format!("give each SPEC with its own -p: -p {argument}"))
        }
        _ => None,
    }
}

/// From `portfwd attach [OPTIONS] ...`: which help to read.
fn help_hint(usage: &str) -> String {
    let command: Vec<&str> = usage
        .split_whitespace()
        .take_while(|word| word.starts_with(|c: char| c.is_ascii_lowercase()))
        .collect();
    format!("{} --help shows what is possible", command.join(" "))
}
