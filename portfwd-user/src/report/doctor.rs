//! What the doctor says.

use std::io::{self, Write};

use crate::doctor::Check;

/// One line a check: finding, name, then what was found, what it costs, and what to do.
///
/// # Errors
/// As the writer.
pub fn write_checks(out: &mut impl Write, checks: &[Check]) -> io::Result<()> {
    let width = checks.iter().map(|check| check.name.len()).max();
    for check in checks {
        let (finding, width) = (check.finding.name(), width.unwrap_or(0));
        write!(out, "{finding:<6}  {:<width$}  {}", check.name, check.seen)?;
        for more in [&check.cost, &check.remedy].into_iter().flatten() {
            write!(out, "; {more}")?;
        }
        writeln!(out)?;
    }
    Ok(())
}
