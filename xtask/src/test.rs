//! `cargo xtask test`: all tests, on an eBPF object that was just built from source.

use std::{
    ffi::OsString,
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail, ensure};

use crate::{ebpf, messages, mutants, process, setup, toolchain, workspace};

/// Runs `cargo test` with `options`, on the whole workspace unless they choose packages; `inner` goes to
/// the tests themselves.
pub(crate) fn run(options: &[OsString], inner: &[OsString]) -> anyhow::Result<()> {
    setup::ensure(setup::Extras::default())?;
    let object = ebpf::build()?;
    mutants::build()?;
    // The command line's tests run the binary, which `cargo test` builds for its own package only.
    process::run(cargo("build", &object).args(["--package", "portfwd-user"]))?;

    let mut command = cargo("test", &object);
    // One failure must not hide the others.
    command.arg("--no-fail-fast");
    if !choose_packages(options) {
        command.args(["--workspace", "--exclude", ebpf::PACKAGE]);
    }
    command
        .args(options)
        .arg("--")
        .args(inner)
        .env("PORTFWD_BIN", workspace::target().join("debug/portfwd"))
        .env("PORTFWD_PORTMAP", toolchain::peers().join("portmap"))
        .env("PORTFWD_DOCKER", toolchain::peers())
        .stdout(Stdio::piped());
    let is_whole = options.is_empty() && inner.is_empty();
    let said = is_whole.then(messages::fresh_directory).transpose()?;
    if let Some(directory) = &said {
        command.env(messages::VARIABLE, directory);
    }
    eprintln!("+ {}", process::shown(&command));
    let mut child = command.spawn().context("start cargo")?;
    let mut tally = Tally::default();
    if let Some(output) = child.stdout.take() {
        show(BufReader::new(output), &mut tally)?;
    }
    let status = child.wait().context("wait for cargo")?;
    println!("\n{}", tally.summary());
    ensure!(status.success(), "cargo test ended with {status}");
    ensure!(tally.failed == 0, "{} tests failed", tally.failed);
    if tally.passed == 0 {
        bail!("no test has run");
    }
    said.map_or(Ok(()), |directory| messages::check(&directory))
}

/// The cargo that runs us, for the loader that embeds `object`.
pub(crate) fn cargo(task: &str, object: &std::path::Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .arg(task)
        .current_dir(workspace::root())
        .env("PORTFWD_EBPF_OBJECT", object);
    command
}

/// Whether options of `cargo test` name packages.
fn choose_packages(options: &[OsString]) -> bool {
    options
        .iter()
        .filter_map(|option| option.to_str())
        .any(|option| {
            option.starts_with("-p")
                || option.starts_with("--package")
                || option == "--workspace"
                || option == "--all"
        })
}

/// Passes lines on as they come, and counts.
fn show(output: impl std::io::Read, tally: &mut Tally) -> anyhow::Result<()> {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    while output
        .read_until(b'\n', &mut line)
        .context("read cargo's output")?
        > 0
    {
        std::io::stdout()
            .write_all(&line)
            .context("write to standard output")?;
        tally.count(&String::from_utf8_lossy(&line));
        line.clear();
    }
    Ok(())
}

/// What the closing lines of all test binaries say together.
#[derive(Default)]
struct Tally {
    binaries: u32,
    passed: u32,
    failed: u32,
    ignored: u32,
    /// The tests that did not run although nothing was wrong: nobody should take them for passed.
    skipped: Vec<String>,
}

impl Tally {
    fn count(&mut self, line: &str) {
        let line = line.trim_end();
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.binaries += 1;
            for part in counts.split(['.', ';']) {
                let Some((number, what)) = part.trim().split_once(' ') else {
                    continue;
                };
                let Ok(number) = number.parse::<u32>() else {
                    continue;
                };
                match what {
                    "passed" => self.passed += number,
                    "failed" => self.failed += number,
                    "ignored" => self.ignored += number,
                    _ => {}
                }
            }
        } else if let Some((test, reason)) = line.split_once(" ... ignored") {
            self.skipped
                .push(format!("{}{reason}", test.trim_start_matches("test ")));
        }
    }

    fn summary(&self) -> String {
        let Self {
            binaries,
            passed,
            failed,
            ignored,
            ..
        } = self;
        let mut text = String::new();
        for test in &self.skipped {
            text.push_str(&format!("not run: {test}\n"));
        }
        text.push_str(&format!(
            "all tests: {passed} passed; {failed} failed; {ignored} not run; {binaries} test binaries"
        ));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_add_up_and_ignored_tests_are_named() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests\n",
            "test a_port_is_published ... ok\n",
            "test ten_gigabytes_arrive ... ignored, takes ten minutes\n",
            "test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.10s\n",
            "test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1.20s\n",
        ] {
            tally.count(line);
        }
        assert_eq!(
            tally.summary(),
            "not run: ten_gigabytes_arrive, takes ten minutes\n\
             all tests: 6 passed; 2 failed; 1 not run; 2 test binaries"
        );
    }

    #[test]
    fn packages_are_chosen_by_option_only() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert!(choose_packages(&words("-p portfwd-common checksum")));
        assert!(choose_packages(&words("--package=portfwd-common")));
        assert!(!choose_packages(&words("--test cli port")));
    }
}
