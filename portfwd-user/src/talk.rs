//! What goes to standard error beside errors: one line each, into which no value can put another one. Where standard
//! error cannot be written to there is nobody to tell, and what was to be done is done all the same.

use std::io::{self, Write as _};

use crate::error::escape;

/// A line for people, with no consequence.
pub fn say(line: &str) {
    let line = format!("{}\n", escape(line));
    let _untold = io::stderr().write_all(line.as_bytes());
}

/// What was done has a drawback that can be mended.
pub fn warn(line: &str) {
    say(&format!("warning: {line}"));
}
