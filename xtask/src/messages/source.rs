//! The messages that the source holds.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use syn::{
    Attribute, Item, LitStr, Meta,
    visit::{self, Visit},
};

/// A message: where it stands, and its format string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// File, from the root of the workspace.
    pub(crate) file: PathBuf,
    pub(crate) line: usize,
    pub(crate) format: String,
}

/// Every message of the crate with this root (`src/lib.rs`), in the order of its modules. What is compiled
/// for tests alone holds none.
pub(crate) fn of_crate(workspace: &Path, root: &Path) -> anyhow::Result<Vec<Message>> {
    let directory = root
        .parent()
        .context("a crate's root lies in a directory")?;
    let mut messages = Vec::new();
    of_module(workspace, root, directory, &mut messages)?;
    Ok(messages)
}

/// Adds those of a file, and of the modules that lie in files of their own below `directory`.
fn of_module(
    workspace: &Path,
    file: &Path,
    directory: &Path,
    messages: &mut Vec<Message>,
) -> anyhow::Result<()> {
    let path = workspace.join(file);
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let found = Found::in_text(&text).with_context(|| format!("parse {}", path.display()))?;
    messages.extend(found.messages.into_iter().map(|(line, format)| Message {
        file: file.to_owned(),
        line,
        format,
    }));
    for name in found.modules {
        let below = directory.join(&name);
        let [own, nested] = [below.with_extension("rs"), below.join("mod.rs")];
        let file = if workspace.join(&own).is_file() {
            own
        } else {
            nested
        };
        of_module(workspace, &file, &below, messages)?;
    }
    Ok(())
}

/// What one file holds.
#[derive(Default)]
struct Found {
    /// Lines and format strings.
    messages: Vec<(usize, String)>,
    /// Names of the modules in other files.
    modules: Vec<String>,
}

impl Found {
    fn in_text(text: &str) -> syn::Result<Self> {
        let mut found = Self::default();
        found.visit_file(&syn::parse_file(text)?);
        Ok(found)
    }
}

impl<'ast> Visit<'ast> for Found {
    fn visit_item(&mut self, item: &'ast Item) {
        if attributes(item).iter().any(is_for_tests) {
            return;
        }
        if let Item::Mod(module) = item
            && module.content.is_none()
        {
            self.modules.push(module.ident.to_string());
        }
        visit::visit_item(self, item);
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if let Some(format) = error_format(attribute) {
            let line = format.span().start().line;
            self.messages.push((line, format.value()));
        }
    }
}

/// The attributes of an item that may be for tests alone.
fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Mod(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        _ => &[],
    }
}

/// `#[cfg(test)]`.
fn is_for_tests(attribute: &Attribute) -> bool {
    attribute.path().is_ident("cfg")
        && attribute
            .parse_args::<syn::Path>()
            .is_ok_and(|condition| condition.is_ident("test"))
}

/// The string of `#[error("...", ...)]`; `None` for other attributes and `transparent`.
fn error_format(attribute: &Attribute) -> Option<LitStr> {
    let Meta::List(list) = &attribute.meta else {
        return None;
    };
    if !list.path.is_ident("error") {
        return None;
    }
    let first = list.tokens.clone().into_iter().next()?;
    syn::parse2(first.into()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
mod elsewhere;
#[cfg(test)]
mod tests_elsewhere;
mod here {
    #[derive(thiserror::Error)]
    enum Error {
        #[error("no {0}", shown(.0))]
        Missing(String),
        #[error(
            "a \"quoted\" \
             one"
        )]
        Quoted,
        #[error(transparent)]
        Other(#[from] io::Error),
    }
}
#[derive(thiserror::Error)]
#[error("alone")]
struct Alone;
#[cfg(test)]
mod tests {
    #[derive(thiserror::Error)]
    #[error("of a test")]
    struct OfATest;
}
"#;

    #[test]
    fn messages_and_modules_are_found_and_those_of_tests_are_not() {
        let found = Found::in_text(TEXT).expect("it parses");
        let expected = [(8, "no {0}"), (11, "a \"quoted\" one"), (20, "alone")];
        let expected = expected.map(|(line, format)| (line, format.to_owned()));
        assert_eq!(found.messages, expected);
        assert_eq!(found.modules, ["elsewhere"]);
    }
}
