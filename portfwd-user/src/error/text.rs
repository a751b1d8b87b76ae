//! Foreign text, made fit for one line of an error.

use std::error::Error as StdError;
use std::path::Path;

/// Longest value that is shown in full, in characters.
const LONGEST_VALUE: usize = 80;
/// Longest message of a library that is shown in full, in characters.
const LONGEST_MESSAGE: usize = 240;

/// A value in quotation marks: escaped, and cut if it is long.
#[must_use]
pub fn shown(value: &str) -> String {
    format!(
        "\"{}\"",
        cut(&value.escape_debug().to_string(), LONGEST_VALUE)
    )
}

/// A path: bare if nothing in it could be misread, else in quotation marks.
#[must_use]
pub fn shown_path(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\'' | '\\');
    if !text.is_empty() && text.chars().all(plain) {
        text.into_owned()
    } else {
        format!("\"{}\"", text.escape_debug())
    }
}

/// An error and its sources in one line: of each the first line, and only what the one before it does
/// not say already. A verifier's log therefore shrinks to its first line.
#[must_use]
pub fn one_line(error: &(dyn StdError + 'static)) -> String {
    let mut line = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let message = error.to_string();
        let first = message.lines().next().unwrap_or_default().trim();
        if !first.is_empty() && !line.contains(first) {
            if !line.is_empty() {
                line.push_str(": ");
            }
            line.push_str(first);
        }
        next = error.source();
    }
    cut(&line, LONGEST_MESSAGE)
}

/// The same text with control characters escaped: a line feed as `\n`.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if is_unprintable(character) {
            escaped.extend(character.escape_default());
        } else {
            escaped.push(character);
        }
    }
    escaped
}

/// Control characters, and those that break a line or turn its direction without being one.
fn is_unprintable(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}')
        || matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn cut(text: &str, longest: usize) -> String {
    match text.char_indices().nth(longest) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
