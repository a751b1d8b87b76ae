//! What a file declares, as `attach` would be told it.

use std::collections::HashSet;
use std::net::IpAddr;
use std::ops::Range;
use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;

use super::wrong::List;
use super::{Attach, args, meaning};
use crate::error::{Error, Usage};

/// A container of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Declared {
    /// The line on which it begins.
    pub line: usize,
    /// What is to be published, in place of what is.
    pub attach: Attach,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    container: Vec<Container>,
}

/// The keys are attach's options.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Container {
    name: Spanned<String>,
    netns: Option<PathBuf>,
    pid: Option<u32>,
    ip: Option<String>,
    publish: Vec<Spanned<String>>,
    #[serde(default)]
    connect: Vec<Spanned<String>>,
    #[serde(default)]
    allow: Vec<Spanned<String>>,
    #[serde(default)]
    deny: Vec<Spanned<String>>,
    #[serde(default)]
    deny_silently: bool,
    #[serde(default)]
    loopback: bool,
    #[serde(default)]
    masquerade: bool,
}

/// Reads the text of `file`, in which SPECs without a host address have `host`.
///
/// # Errors
/// When it is no such file, or something in it is wrong: with the line.
pub fn declared(
    file: &str,
    text: &str,
    host: Option<IpAddr>,
    force: bool,
) -> Result<Vec<Declared>, Error> {
    let ends: Vec<usize> = text.match_indices('\n').map(|(end, _)| end).collect();
    let line_of = |at: usize| 1 + ends.partition_point(|end| *end < at);
    let on = |line: usize, cause: Error| Error::Declared {
        file: file.to_owned(),
        line,
        cause: Box::new(cause),
    };
    let parsed: File = toml::from_str(text).map_err(|error| {
        let line = line_of(error.span().map_or(0, |span| span.start));
        on(line, usage(error.message().to_owned()).into())
    })?;
    let mut names = HashSet::new();
    let mut all = Vec::new();
    for container in parsed.container {
        let line = line_of(container.name.span().start);
        if !names.insert(container.name.get_ref().clone()) {
            let twice = format!(
                "container \"{}\" stands there twice",
                container.name.get_ref()
            );
            return Err(on(line, usage(twice).into()));
        }
        let attach = typed(container, host, force).map_err(|(span, cause)| {
            let line = span.map_or(line, |span| line_of(span.start));
            on(line, *cause)
        })?;
        all.push(Declared { line, attach });
    }
    Ok(all)
}

/// An error comes after the place of the entry that it is about, if it is about one.
fn typed(
    container: Container,
    host: Option<IpAddr>,
    force: bool,
) -> Result<Attach, (Option<Range<usize>>, Box<Error>)> {
    let given = [
        container.netns.is_some(),
        container.pid.is_some(),
        container.ip.is_some(),
    ];
    let refused = |message: &str| Err((None, Box::new(usage(message.to_owned()).into())));
    if given.iter().filter(|given| **given).count() > 1 {
        return refused("netns, pid and ip exclude each other");
    }
    if container.publish.is_empty() {
        return refused("publish names no SPEC");
    }
    let (publish, publish_spans) = apart(container.publish);
    let (connect, connect_spans) = apart(container.connect);
    let (allow, allow_spans) = apart(container.allow);
    let (deny, deny_spans) = apart(container.deny);
    let attach = args::Attach {
        container: container.name.into_inner(),
        publish,
        target: args::Target {
            netns: container.netns,
            pid: container.pid,
            ip: container.ip,
        },
        connect,
        loopback: container.loopback,
        allow,
        deny,
        deny_silently: container.deny_silently,
        masquerade: container.masquerade,
        force,
        replace: true,
        dry_run: false,
    };
    meaning::typed_attach(attach, host).map_err(|wrong| {
        let span = wrong.entry.and_then(|(list, position)| {
            let spans = match list {
                List::Publish => &publish_spans,
                List::Connect => &connect_spans,
                List::Allow => &allow_spans,
                List::Deny => &deny_spans,
            };
            spans.get(position).cloned()
        });
        (span, wrong.cause)
    })
}

fn apart(entries: Vec<Spanned<String>>) -> (Vec<String>, Vec<Range<usize>>) {
    let entries = entries.into_iter();
    entries
        .map(|entry| {
            let span = entry.span();
            (entry.into_inner(), span)
        })
        .unzip()
}

fn usage(message: String) -> Usage {
    Usage {
        message,
        hint: None,
    }
}
