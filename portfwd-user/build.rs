//! Puts the eBPF object where `src/object.rs` embeds it from.
//!
//! That is the committed one, so that building the loader needs no eBPF toolchain. Tests name the one
//! they have just built from source in `PORTFWD_EBPF_OBJECT`.

use std::{env, error::Error, fs, path::PathBuf};

/// Names an object to embed in place of the committed one.
const OBJECT: &str = "PORTFWD_EBPF_OBJECT";

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let object = match env::var_os(OBJECT) {
        Some(path) if !path.is_empty() => root.join(path),
        _ => root.join("ebpf/portfwd.o"),
    };
    println!("cargo::rerun-if-env-changed={OBJECT}");
    println!("cargo::rerun-if-changed={}", object.display());
    let bytes = fs::read(&object)
        .map_err(|error| format!("the eBPF object {}: {error}", object.display()))?;
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("portfwd.o"), bytes)?;
    Ok(())
}
