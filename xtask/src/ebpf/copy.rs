//! A copy of the workspace elsewhere, whose sources are not quite the same.

use std::{fs, path::Path};

use anyhow::Context as _;

use crate::workspace;

/// What becomes of a source file, given its path within the workspace.
pub(super) type Edit<'a> = &'a dyn Fn(&Path, String) -> anyhow::Result<String>;

/// Copies what cargo needs of the workspace to `copy`, `edit` changing each source file on the way. What is
/// there already and the same keeps its time, so that cargo does not build it again.
pub(super) fn make(copy: &Path, edit: Edit<'_>) -> anyhow::Result<()> {
    let root = workspace::root();
    for file in ["Cargo.toml", "Cargo.lock"] {
        copy_file(&root, copy, Path::new(file), edit)?;
    }
    // All members, since cargo wants each of them to have its manifest and sources.
    for entry in entries(&root)? {
        if root.join(&entry).join("Cargo.toml").exists() {
            copy_tree(&root, copy, Path::new(&entry), edit)?;
        }
    }
    Ok(())
}

fn copy_tree(root: &Path, copy: &Path, path: &Path, edit: Edit<'_>) -> anyhow::Result<()> {
    if root.join(path).is_dir() {
        for entry in entries(&root.join(path))? {
            copy_tree(root, copy, &path.join(entry), edit)?;
        }
        return Ok(());
    }
    copy_file(root, copy, path, edit)
}

fn copy_file(root: &Path, copy: &Path, path: &Path, edit: Edit<'_>) -> anyhow::Result<()> {
    let (from, to) = (root.join(path), copy.join(path));
    let bytes = fs::read(&from).with_context(|| format!("read {}", from.display()))?;
    let is_source = path.extension().is_some_and(|extension| extension == "rs");
    let bytes = match is_source {
        true => {
            let text =
                String::from_utf8(bytes).with_context(|| format!("read {}", from.display()))?;
            edit(path, text)?.into_bytes()
        }
        false => bytes,
    };
    workspace::write_if_changed(&to, &bytes)?;
    Ok(())
}

fn entries(directory: &Path) -> anyhow::Result<Vec<std::ffi::OsString>> {
    fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect())
        .with_context(|| format!("list {}", directory.display()))
}
