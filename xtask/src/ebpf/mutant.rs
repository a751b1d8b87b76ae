//! The programs with a mistake in them, for the tests that have to notice it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};

use super::{compile, copy, object};
use crate::workspace;

/// A mistake: in one source file, something else in place of what is right.
struct Mutant {
    name: &'static str,
    file: &'static str,
    right: &'static str,
    wrong: &'static str,
}

/// One for each thing that tests of packets have to notice whatever else they do.
const MUTANTS: [Mutant; 3] = [
    Mutant {
        name: "checksum",
        file: "portfwd-common/src/checksum.rs",
        right: "(!fold(old)) as u32 + fold(new) as u32",
        wrong: "(!fold(old)) as u32 + fold(new) as u32 + 1",
    },
    Mutant {
        name: "port",
        file: "portfwd-ebpf/src/translate.rs",
        right: "network.transport_at(port_at)",
        wrong: "network.transport_at(2 - port_at)",
    },
    Mutant {
        name: "reason",
        file: "portfwd-common/src/verdict.rs",
        right: "ForeignSource = 1,",
        wrong: "ForeignSource = 31,",
    },
];

/// Builds every mutant below `directory`, and gives their names and objects.
pub(super) fn build(directory: &Path) -> anyhow::Result<Vec<(&'static str, PathBuf)>> {
    let _lock = workspace::lock(&directory.join(".xtask-lock"))?;
    MUTANTS
        .iter()
        .map(|mutant| mutant.build(directory))
        .collect()
}

impl Mutant {
    fn build(&self, directory: &Path) -> anyhow::Result<(&'static str, PathBuf)> {
        // The same place for all, so that what they share is compiled once.
        let source = directory.join("workspace");
        copy::make(&source, &|path, text| self.edited(path, text))?;
        let linked = compile::link(&source, &directory.join("target"))?;
        let place = directory.join(self.name);
        fs::create_dir_all(&place).with_context(|| format!("create {}", place.display()))?;
        let object = place.join("portfwd.o");
        workspace::write_if_changed(&object, &object::strip(&linked)?)?;
        Ok((self.name, object))
    }

    fn edited(&self, path: &Path, text: String) -> anyhow::Result<String> {
        if path != Path::new(self.file) {
            return Ok(text);
        }
        ensure!(
            text.matches(self.right).count() == 1,
            "the mutant {} cannot be made: {} does not have {:?} exactly once",
            self.name,
            self.file,
            self.right
        );
        Ok(text.replace(self.right, self.wrong))
    }
}
