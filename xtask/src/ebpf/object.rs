//! What becomes of the linked object, and what is asked of it.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, bail};

use super::read;
use crate::{btf, process, toolchain};

/// The linked object without DWARF and without line information.
pub(super) fn strip(linked: &Path) -> anyhow::Result<Vec<u8>> {
    let scratch = tempfile::tempdir().context("make a temporary directory")?;
    let path = |name: &str| scratch.path().join(name);
    let (types, ext, object) = (path("types"), path("ext"), path("object"));
    process::output(
        toolchain::llvm("llvm-objcopy")
            .arg(format!("--dump-section=.BTF={}", types.display()))
            .arg(format!("--dump-section=.BTF.ext={}", ext.display()))
            .arg(linked)
            .arg(path("unused")),
    )?;
    let (new_types, new_ext) = btf::without_lines(&read(&types)?, &read(&ext)?)
        .with_context(|| format!("type information of {}", linked.display()))?;
    write(&types, &new_types)?;
    write(&ext, &new_ext)?;
    process::output(
        toolchain::llvm("llvm-objcopy")
            .arg("--strip-debug")
            // Loaders do without these: the records hold the offsets of functions, and the symbol table
            // those of variables. The first would still have an entry for each line; the second would
            // point at nothing, since objcopy forgets what it belongs to when .BTF is replaced.
            .arg("--remove-section=.rel.BTF.ext")
            .arg("--remove-section=.rel.BTF")
            .arg(format!("--update-section=.BTF={}", types.display()))
            .arg(format!("--update-section=.BTF.ext={}", ext.display()))
            .arg(linked)
            .arg(&object),
    )?;
    read(&object)
}

/// Fails if a panic is left in the programs: the verifier would refuse them with a message that helps
/// nobody.
pub(super) fn refuse_panics(object: &Path) -> anyhow::Result<()> {
    let symbols = process::output(toolchain::llvm("llvm-nm").arg(object))?;
    let panics: Vec<&str> = symbols
        .lines()
        .filter(|line| line.contains("panic"))
        .collect();
    if !panics.is_empty() {
        bail!(
            "the programs can panic:\n{}\nhint: look for an index, a division or a slice range",
            panics.join("\n")
        );
    }
    Ok(())
}

/// Fails if the programs call the byte-wise memory routines: the verifier follows their loop turn by turn,
/// and one call may cost more than all the rest of its program.
pub(super) fn refuse_copies(object: &Path) -> anyhow::Result<()> {
    let listing = process::output(
        toolchain::llvm("llvm-objdump")
            .args(["--disassemble", "--reloc", "--no-show-raw-insn"])
            .arg(object),
    )?;
    let calls = copies(&listing);
    if calls.is_empty() {
        return Ok(());
    }
    let mut counts = BTreeMap::<_, u32>::new();
    for call in &calls {
        *counts.entry(call).or_default() += 1;
    }
    let counts: Vec<String> = counts
        .iter()
        .map(|((function, routine), count)| format!("{routine} in {function} ({count})"))
        .collect();
    bail!(
        "{} calls of byte-wise memory routines: {}\n\
         hint: LLVM does not know that two places do not overlap, or clears more than it writes out",
        calls.len(),
        counts.join(", ")
    );
}

/// The calls of memory routines in a listing: caller and routine.
fn copies(listing: &str) -> Vec<(&str, &str)> {
    let mut function = "";
    let mut calls = Vec::new();
    for line in listing.lines() {
        if let Some(name) = line
            .strip_suffix(">:")
            .and_then(|line| line.split_once('<'))
        {
            function = name.1;
        } else if line.contains("R_BPF_64_32") {
            let symbol = line.split_whitespace().last().unwrap_or_default();
            if ["memcpy", "memmove", "memset", "memcmp", "bcmp"].contains(&symbol) {
                calls.push((function, symbol));
            }
        }
    }
    calls
}

fn write(path: &Path, contents: &[u8]) -> anyhow::Result<()> {
    fs::write(path, contents).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_memory_routines_are_found_with_their_callers() {
        let listing = "\
0000000000000000 <tc_device>:
       1:\tcall -0x1
\t\t0000000000000008:  R_BPF_64_32\tmemset
       2:\tr1 = 0x0 ll
\t\t0000000000000010:  R_BPF_64_64\tmemset_table
0000000000000040 <tc_link>:
      12:\tcall -0x1
\t\t0000000000000060:  R_BPF_64_32\t.text
      13:\tcall -0x1
\t\t0000000000000068:  R_BPF_64_32\tmemcpy
";
        assert_eq!(
            copies(listing),
            [("tc_device", "memset"), ("tc_link", "memcpy")]
        );
    }
}
