//! What a machine said about its tests.

use std::fmt::Write as _;

/// The line that begins with this word ends a run that came to its end.
const END: &str = "tests: over";

/// The results of one machine, a line each on its console.
#[derive(Default)]
pub(super) struct Outcome {
    passed: usize,
    /// By name, with the reason.
    failed: Vec<String>,
    /// The tests that asked for something that the kernel has not: by name, with what it is.
    absent: Vec<String>,
    kernel: String,
    over: bool,
}

impl Outcome {
    /// Takes `RESULT NAME SECONDS [REASON]` from the console.
    pub(super) fn read(&mut self, line: &str) {
        if let Some(kernel) = line.strip_prefix("kernel: ") {
            self.kernel = kernel.to_owned();
        } else if line == END {
            self.over = true;
        } else if let Some(("passed", _)) = line.split_once(' ') {
            self.passed += 1;
        } else if let Some(("FAILED", rest)) = line.split_once(' ') {
            self.failed.push(rest.to_owned());
        } else if let Some(("absent", rest)) = line.split_once(' ') {
            self.absent.push(rest.to_owned());
        }
    }

    /// Whether every one of `expected` tests has a result, and none is bad.
    pub(super) fn is_good(&self, expected: usize) -> bool {
        let results = self.passed + self.absent.len();
        self.over && self.failed.is_empty() && self.passed > 0 && results == expected
    }

    /// A line each for what failed or could not run.
    pub(super) fn details(&self) -> String {
        let mut text = String::new();
        for test in &self.absent {
            let _ = writeln!(text, "not run: {test}");
        }
        for test in &self.failed {
            let _ = writeln!(text, "FAILED: {test}");
        }
        text
    }

    pub(super) fn summary(&self) -> String {
        let end = if self.over { "" } else { "; NOT TO ITS END" };
        format!(
            "{}: {} passed; {} failed; {} not run{end}",
            self.kernel,
            self.passed,
            self.failed.len(),
            self.absent.len(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(lines: &[&str]) -> Outcome {
        let mut outcome = Outcome::default();
        for line in lines {
            outcome.read(line);
        }
        outcome
    }

    #[test]
    fn a_run_is_good_when_every_test_has_a_result_and_none_is_bad() {
        let lines = [
            "kernel: 6.1.0-50",
            "running the tests",
            "passed publish::a_port_answers 3 s",
            "absent hooks::tcx 1 s: this kernel has no TCX",
            "tests: over",
        ];
        assert!(outcome(&lines).is_good(2));
        assert_eq!(
            outcome(&lines).summary(),
            "6.1.0-50: 1 passed; 0 failed; 1 not run"
        );
        assert!(!outcome(&lines).is_good(3), "one has no result");
        assert!(!outcome(&lines[..4]).is_good(2), "not to its end");
        assert!(!outcome(&lines[3..]).is_good(1), "nothing has passed");
        let mut bad = outcome(&lines);
        bad.read("FAILED mtu::narrow 9 s: exit code 101");
        assert!(!bad.is_good(3) && !bad.is_good(2));
        assert_eq!(
            bad.details(),
            "not run: hooks::tcx 1 s: this kernel has no TCX\nFAILED: mtu::narrow 9 s: exit code 101\n"
        );
    }
}
