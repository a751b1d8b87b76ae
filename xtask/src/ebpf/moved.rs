//! The same programs in another directory, with every line of theirs moved down by a comment.

use std::{fs, path::Path};

use anyhow::Context as _;

use super::{compile, copy, object};
use crate::workspace;

/// Copies the workspace below `directory`, of which nothing is left from before, puts a comment on top of every source file of the copy,
/// builds the object there, and gives it.
pub(super) fn build(directory: &Path) -> anyhow::Result<Vec<u8>> {
    let _lock = workspace::lock(&directory.join(".xtask-lock"))?;
    let elsewhere = directory.join("another workspace");
    if elsewhere.exists() {
        fs::remove_dir_all(&elsewhere)
            .with_context(|| format!("remove {}", elsewhere.display()))?;
    }
    copy::make(&elsewhere, &|_, text| {
        Ok(format!("// A line that was not there.\n\n{text}"))
    })?;
    let linked = compile::link(&elsewhere, &directory.join("target"))?;
    object::strip(&linked)
}
