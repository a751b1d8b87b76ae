//! The same programs in another directory, with every line of theirs moved down by a comment.

use std::{fs, path::Path};

use anyhow::Context as _;

use super::{compile, object};
use crate::workspace;

/// Copies the workspace below `directory`, puts a comment on top of every source file of the copy,
/// builds the object there, and gives it.
pub(super) fn build(directory: &Path) -> anyhow::Result<Vec<u8>> {
    let _lock = workspace::lock(&directory.join(".xtask-lock"))?;
    let copy = directory.join("another workspace");
    if copy.exists() {
        fs::remove_dir_all(&copy).with_context(|| format!("remove {}", copy.display()))?;
    }
    let root = workspace::root();
    for file in ["Cargo.toml", "Cargo.lock"] {
        copy_file(&root.join(file), &copy.join(file))?;
    }
    // All members, since cargo wants each of them to have its manifest and sources.
    for entry in entries(&root)? {
        if root.join(&entry).join("Cargo.toml").exists() {
            copy_tree(&root.join(&entry), &copy.join(&entry))?;
        }
    }
    let linked = compile::link(&copy, &directory.join("target"))?;
    object::strip(&linked)
}

fn copy_tree(from: &Path, to: &Path) -> anyhow::Result<()> {
    if from.is_dir() {
        for entry in entries(from)? {
            copy_tree(&from.join(&entry), &to.join(&entry))?;
        }
        return Ok(());
    }
    copy_file(from, to)
}

fn copy_file(from: &Path, to: &Path) -> anyhow::Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    let mut contents = fs::read(from).with_context(|| format!("read {}", from.display()))?;
    if from.extension().is_some_and(|extension| extension == "rs") {
        contents.splice(0..0, *b"// A line that was not there.\n\n");
    }
    fs::write(to, contents).with_context(|| format!("write {}", to.display()))
}

fn entries(directory: &Path) -> anyhow::Result<Vec<std::ffi::OsString>> {
    fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect())
        .with_context(|| format!("list {}", directory.display()))
}
