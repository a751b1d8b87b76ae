//! The programs with a mistake in them, for the tests that have to notice it.

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

use super::{compile, copy, object};
use crate::workspace;

/// A mistake: in one source file of the programs, something else in place of what is right.
pub(crate) struct Mutant {
    pub(crate) name: &'static str,
    /// The test that has to notice, as `file::function` of `tests/tests`.
    pub(crate) test: &'static str,
    /// As `ebpf/flow.rs`, which is `portfwd-ebpf/src/flow.rs`.
    pub(crate) file: &'static str,
    /// Stands in the file exactly once; how it is broken into lines does not matter.
    pub(crate) right: &'static str,
    pub(crate) wrong: &'static str,
}

/// Where [`build`] leaves the sources of the last mutant.
pub(crate) fn sources(directory: &Path) -> PathBuf {
    directory.join("workspace")
}

/// Builds the object with all these mistakes below `directory`, in a place of the first one's name, and gives
/// its path.
pub(super) fn build(mutants: &[&Mutant], directory: &Path) -> anyhow::Result<PathBuf> {
    let _lock = workspace::lock(&directory.join(".xtask-lock"))?;
    // The same place for all, so that what they share is compiled once.
    let source = sources(directory);
    copy::make(&source, &|path, text| {
        let mut mutants = mutants.iter();
        mutants.try_fold(text, |text, mutant| mutant.edited(path, text))
    })?;
    let linked = compile::link(&source, &directory.join("target"))?;
    let place = directory.join(mutants.first().map_or("none", |mutant| mutant.name));
    fs::create_dir_all(&place).with_context(|| format!("create {}", place.display()))?;
    let object = place.join("portfwd.o");
    workspace::write_if_changed(&object, &object::strip(&linked)?)?;
    Ok(object)
}

impl Mutant {
    /// The file that the mistake is in, within the workspace.
    pub(crate) fn path(&self) -> PathBuf {
        let (package, file) = self.file.split_once('/').unwrap_or(("", self.file));
        PathBuf::from(format!("portfwd-{package}/src/{file}"))
    }

    /// A source file as the mutant has it.
    pub(crate) fn edited(&self, path: &Path, mut text: String) -> anyhow::Result<String> {
        if path != self.path() {
            return Ok(text);
        }
        let mut places = places(&text, self.right);
        let (Some(place), None) = (places.next(), places.next()) else {
            bail!(
                "the mutant {} cannot be made: {} does not have {:?} exactly once",
                self.name,
                path.display(),
                self.right
            );
        };
        drop(places);
        text.replace_range(place, self.wrong);
        Ok(text)
    }
}

/// Where `wanted` stands in `text`, any space being like any other.
fn places(text: &str, wanted: &str) -> impl Iterator<Item = Range<usize>> {
    text.char_indices()
        .filter_map(move |(start, _)| Some(start..start + length(&text[start..], wanted)?))
}

/// The bytes that `wanted` takes at the beginning of `text`.
fn length(text: &str, wanted: &str) -> Option<usize> {
    let mut rest = text;
    for (number, word) in wanted.split_whitespace().enumerate() {
        if number > 0 {
            let trimmed = rest.trim_start();
            if trimmed.len() == rest.len() {
                return None;
            }
            rest = trimmed;
        }
        rest = rest.strip_prefix(word)?;
    }
    Some(text.len() - rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_right_is_found_however_it_is_broken_into_lines() {
        let text = "if a\n    && b\n{ a && b }";
        assert_eq!(places(text, "a && b").collect::<Vec<_>>(), [3..13, 16..22]);
        assert_eq!(places(text, "a &&b").count(), 0);
        assert_eq!(places(text, "b }").next(), Some(21..24));
    }
}
