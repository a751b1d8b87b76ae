//! Every message in the source that standard error can get is provoked by a test.
//!
//! The tests' harness records what the command says, one file a process, in the directory that
//! `PORTFWD_MESSAGES` names. A message of the source counts as provoked if its text, with anything in its
//! holes, stands in a recorded line, and no other message's text accounts for more of the same words there:
//! `cannot lock /x: ...` does not provoke `cannot {request}: {source}`.

mod pattern;
mod source;

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};

use crate::workspace;
use pattern::Pattern;
use source::Message;

/// The variable that names the directory.
pub(crate) const VARIABLE: &str = "PORTFWD_MESSAGES";

/// The roots of the crates whose messages reach a user.
const CRATES: [&str; 3] = [
    "portfwd-common/src/lib.rs",
    "portfwd-user/src/lib.rs",
    "portfwd-user/src/main.rs",
];

/// Texts without a word of their own, and why no run can show that they were said.
const WRAPPERS: [(&str, &str); 5] = [
    ("{message}", "wrong arguments, each in its own words"),
    ("{}: {what}", "the same with the argument"),
    ("{option} {}: {what}", "the same with the option"),
    (
        "{}",
        "an error of a library or of another module, in its own words",
    ),
    ("{cause}", "the same error, with what was left behind"),
];

/// The directory of a whole run, empty.
pub(crate) fn fresh_directory() -> anyhow::Result<PathBuf> {
    let path = workspace::target().join("messages");
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", path.display()));
        }
        _ => {}
    }
    fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
    Ok(path)
}

/// Fails if a message was provoked by nothing that is recorded in the directory, after listing all of those.
pub(crate) fn check(directory: &Path) -> anyhow::Result<()> {
    let said = recorded(directory)?;
    let root = workspace::root();
    let mut messages = Vec::new();
    for file in CRATES {
        messages.extend(source::of_crate(&root, Path::new(file))?);
    }
    messages.retain(|message| !is_wrapper(&message.format));
    let silent = unprovoked(&messages, &said);
    for Message { file, line, format } in &silent {
        println!("not provoked: {}:{line}: {format}", file.display());
    }
    let all = messages.len();
    ensure!(
        silent.is_empty(),
        "{} of {all} messages are provoked by no test",
        silent.len()
    );
    println!("all {all} messages were provoked");
    Ok(())
}

fn is_wrapper(format: &str) -> bool {
    !Pattern::of(format).has_words() && WRAPPERS.iter().any(|(known, _)| *known == format)
}

/// Every line that was recorded, once.
fn recorded(directory: &Path) -> anyhow::Result<BTreeSet<String>> {
    let mut said = BTreeSet::new();
    let entries =
        fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))?;
    for entry in entries {
        let path = entry
            .with_context(|| format!("read {}", directory.display()))?
            .path();
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        said.extend(text.lines().map(str::to_owned));
    }
    Ok(said)
}

/// The messages that account for nothing of what was said.
fn unprovoked<'a>(messages: &'a [Message], said: &BTreeSet<String>) -> Vec<&'a Message> {
    let patterns: Vec<Pattern> = messages
        .iter()
        .map(|message| Pattern::of(&message.format))
        .collect();
    let mut provoked = vec![false; messages.len()];
    for text in said {
        let found: Vec<(usize, Vec<bool>)> = patterns
            .iter()
            .enumerate()
            .filter_map(|(number, pattern)| Some((number, pattern.find(text)?)))
            .collect();
        for (number, fixed) in &found {
            let is_most = found.iter().all(|(_, other)| !is_less(fixed, other));
            provoked[*number] |= is_most;
        }
    }
    let silent = messages
        .iter()
        .zip(provoked)
        .filter(|(_, provoked)| !provoked);
    silent.map(|(message, _)| message).collect()
}

/// Whether all fixed bytes of `one` are some of the `other`'s, which has more.
fn is_less(one: &[bool], other: &[bool]) -> bool {
    let mut pairs = one.iter().zip(other);
    one != other && pairs.all(|(one, other)| *other || !*one)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silent(formats: &[&str], said: &[&str]) -> Vec<String> {
        let message = |format: &&str| Message {
            file: "x.rs".into(),
            line: 1,
            format: (*format).to_owned(),
        };
        let messages: Vec<Message> = formats.iter().map(message).collect();
        let said = said.iter().map(|text| (*text).to_owned()).collect();
        let silent = unprovoked(&messages, &said);
        silent
            .iter()
            .map(|message| message.format.clone())
            .collect()
    }

    #[test]
    fn a_message_that_nothing_provoked_is_found_and_one_that_something_did_is_not() {
        let formats = ["no such device: {}", "no such process: {0}"];
        assert_eq!(
            silent(&formats, &["error: no such process: 7"]),
            ["no such device: {}"]
        );
        assert_eq!(silent(&formats, &[]), formats);
    }

    #[test]
    fn a_message_in_a_message_counts_and_one_that_says_more_counts_alone() {
        let formats = [
            "cannot {request}: {source}",
            "cannot lock {}: {source}",
            "is empty",
            "the name is empty",
        ];
        let said = ["error: cannot lock /x: the name is empty"];
        assert_eq!(
            silent(&formats, &said),
            ["cannot {request}: {source}", "is empty"]
        );
        let said = ["error: cannot open /x: SPEC \"\" is empty"];
        assert_eq!(
            silent(&formats, &said),
            ["cannot lock {}: {source}", "the name is empty"]
        );
    }

    #[test]
    fn what_says_nothing_of_its_own_is_a_wrapper_with_a_reason() {
        let root = workspace::root();
        let of_crate = |file: &&str| source::of_crate(&root, Path::new(file)).expect("messages");
        let messages: Vec<Message> = CRATES.iter().flat_map(of_crate).collect();
        assert!(messages.len() > 100, "{}", messages.len());
        let mut wordless: Vec<&str> = messages
            .iter()
            .map(|message| message.format.as_str())
            .collect();
        wordless.retain(|format| !Pattern::of(format).has_words());
        wordless.sort_unstable();
        wordless.dedup();
        let mut wrappers = WRAPPERS.map(|(format, _)| format);
        wrappers.sort_unstable();
        assert_eq!(wordless, wrappers);
    }
}
