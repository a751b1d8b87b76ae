//! What a file declares, as `attach` would be told it.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;

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
    publish: Vec<String>,
    #[serde(default)]
    connect: Vec<String>,
    #[serde(default)]
    allow: Vec<String>,
    #[serde(default)]
    deny: Vec<String>,
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
        let attach = typed(container, host, force).map_err(|cause| on(line, cause))?;
        all.push(Declared { line, attach });
    }
    Ok(all)
}

fn typed(container: Container, host: Option<IpAddr>, force: bool) -> Result<Attach, Error> {
    let given = [
        container.netns.is_some(),
        container.pid.is_some(),
        container.ip.is_some(),
    ];
    if given.iter().filter(|given| **given).count() > 1 {
        return Err(usage("netns, pid and ip exclude each other".to_owned()).into());
    }
    if container.publish.is_empty() {
        return Err(usage("publish names no SPEC".to_owned()).into());
    }
    let attach = args::Attach {
        container: container.name.into_inner(),
        publish: container.publish,
        target: args::Target {
            netns: container.netns,
            pid: container.pid,
            ip: container.ip,
        },
        connect: container.connect,
        loopback: container.loopback,
        allow: container.allow,
        deny: container.deny,
        deny_silently: container.deny_silently,
        masquerade: container.masquerade,
        force,
        replace: true,
        dry_run: false,
    };
    meaning::typed_attach(attach, host)
}

fn usage(message: String) -> Usage {
    Usage {
        message,
        hint: None,
    }
}
