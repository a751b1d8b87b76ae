//! The messages that the source holds.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use syn::{
    Attribute, Expr, ExprCall, ExprMethodCall, ExprStruct, Item, LitStr, Local, Macro, Member,
    Meta, Pat, Token,
    punctuated::Punctuated,
    visit::{self, Visit},
};

/// A message: where it stands, and its format string. It is an error's own text (`#[error("...")]`), what was to be done
/// when one came (`.doing(|| ...)`), what is wrong with arguments (`Usage`), or a line of `talk`.
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
            self.add(&format, "", "");
        }
    }

    /// `.doing(|| format!("..."))`, whose text comes after "cannot" and before the reason.
    fn visit_expr_method_call(&mut self, call: &'ast ExprMethodCall) {
        if call.method == "doing" {
            self.add_first(&call.args, "cannot ", ": {}");
        }
        visit::visit_expr_method_call(self, call);
    }

    /// `let doing = || format!("...")`, for several calls of the same.
    fn visit_local(&mut self, local: &'ast Local) {
        if let (Pat::Ident(name), Some(init)) = (&local.pat, &local.init)
            && name.ident == "doing"
            && let Some(format) = first_string(|strings| strings.visit_expr(&init.expr))
        {
            self.add(&format, "cannot ", ": {}");
        }
        visit::visit_local(self, local);
    }

    /// `talk::warn(...)` and `talk::say(...)`, and the closures that say what is wrong with an argument.
    fn visit_expr_call(&mut self, call: &'ast ExprCall) {
        if is_call_of(call, &["bad"]) || is_call_of(call, &["refused"]) {
            self.add_first(&call.args, "", "");
        }
        if is_call_of(call, &["talk", "warn"]) {
            self.add_first(&call.args, "warning: ", "");
        }
        if is_call_of(call, &["talk", "say"]) {
            self.add_first(&call.args, "", "");
        }
        visit::visit_expr_call(self, call);
    }

    /// `Usage { message: format!("..."), .. }`.
    fn visit_expr_struct(&mut self, value: &'ast ExprStruct) {
        if value.path.is_ident("Usage") {
            let mut fields = value.fields.iter();
            let message = fields
                .find(|field| matches!(&field.member, Member::Named(name) if name == "message"));
            if let Some(format) =
                message.and_then(|field| first_string(|strings| strings.visit_expr(&field.expr)))
            {
                self.add(&format, "", "");
            }
        }
        visit::visit_expr_struct(self, value);
    }
}

impl Found {
    fn add(&mut self, format: &LitStr, before: &str, after: &str) {
        let line = format.span().start().line;
        self.messages
            .push((line, format!("{before}{}{after}", format.value())));
    }

    /// The first string of the first argument that has one.
    fn add_first(&mut self, arguments: &Punctuated<Expr, Token![,]>, before: &str, after: &str) {
        let visit = |strings: &mut FirstString| {
            for argument in arguments {
                strings.visit_expr(argument);
            }
        };
        if let Some(format) = first_string(visit) {
            self.add(&format, before, after);
        }
    }
}

fn is_call_of(call: &ExprCall, path: &[&str]) -> bool {
    let Expr::Path(function) = &*call.func else {
        return false;
    };
    let segments = &function.path.segments;
    segments.len() == path.len()
        && segments
            .iter()
            .zip(path)
            .all(|(one, name)| one.ident == name)
}

/// Finds a string in an expression, or in what a macro in it is given.
#[derive(Default)]
struct FirstString(Option<LitStr>);

fn first_string(visit: impl FnOnce(&mut FirstString)) -> Option<LitStr> {
    let mut strings = FirstString::default();
    visit(&mut strings);
    strings.0
}

impl<'ast> Visit<'ast> for FirstString {
    fn visit_lit_str(&mut self, string: &'ast LitStr) {
        self.0.get_or_insert_with(|| string.clone());
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        let mut tokens = call.tokens.clone().into_iter();
        let string = tokens.find_map(|token| syn::parse2(token.into()).ok());
        self.0 = self.0.take().or(string);
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
fn work() -> Result<(), Error> {
    let doing = || format!("list {name}");
    open(path).doing(|| "open it".to_owned())?;
    list().doing(doing)?;
    talk::warn(&format!("{name} is old"));
    talk::say("done");
    Err(Usage {
        hint: Some("a hint".to_owned()),
        message: format!("{option} is wrong"),
    })
    .map_err(|_| bad("it is no number"))
}
"#;

    #[test]
    fn messages_and_modules_are_found_and_those_of_tests_are_not() {
        let found = Found::in_text(TEXT).expect("it parses");
        let expected = [
            (8, "no {0}"),
            (11, "a \"quoted\" one"),
            (20, "alone"),
            (29, "cannot list {name}: {}"),
            (30, "cannot open it: {}"),
            (32, "warning: {name} is old"),
            (33, "done"),
            (36, "{option} is wrong"),
            (38, "it is no number"),
        ];
        let expected = expected.map(|(line, format)| (line, format.to_owned()));
        assert_eq!(found.messages, expected);
        assert_eq!(found.modules, ["elsewhere"]);
    }
}
