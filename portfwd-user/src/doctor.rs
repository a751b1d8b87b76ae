//! What is there to work with, and what that costs: each check judges facts and looks at nothing itself.

mod facts;
mod firewall;
mod host;
mod instance;
mod kernel;
#[cfg(test)]
mod tests;

use serde::Serialize;

pub use facts::{
    Device, Facts, Host, Instance, Kernel, PastStack, Program, Seen, SocketHooks, State, Stray, Tc,
    Unseen, V6,
};

/// What a check comes to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Finding {
    /// As it should be.
    Ok,
    /// It could not be looked at.
    Unseen,
    /// Something does not work, or works less well.
    Warn,
    /// Something necessary is missing.
    Fail,
}

impl Finding {
    /// As it is printed.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unseen => "unseen",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One line of what the doctor says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Check {
    /// What was looked at: one word, the same from version to version.
    pub name: &'static str,
    /// What it comes to.
    pub finding: Finding,
    /// What was found.
    pub seen: String,
    /// What does not work for it.
    pub cost: Option<String>,
    /// What to do about it.
    pub remedy: Option<String>,
}

impl Check {
    fn ok(name: &'static str, seen: impl Into<String>) -> Self {
        Self {
            name,
            finding: Finding::Ok,
            seen: seen.into(),
            cost: None,
            remedy: None,
        }
    }

    fn warn(name: &'static str, seen: impl Into<String>, cost: impl Into<String>) -> Self {
        Self {
            finding: Finding::Warn,
            cost: Some(cost.into()),
            ..Self::ok(name, seen)
        }
    }

    fn fail(name: &'static str, seen: impl Into<String>, cost: impl Into<String>) -> Self {
        Self {
            finding: Finding::Fail,
            ..Self::warn(name, seen, cost)
        }
    }

    fn unseen(name: &'static str, why: &Unseen) -> Self {
        Self {
            finding: Finding::Unseen,
            ..Self::ok(name, format!("cannot be seen: {}", why.0))
        }
    }

    fn remedy(self, remedy: impl Into<String>) -> Self {
        Self {
            remedy: Some(remedy.into()),
            ..self
        }
    }
}

/// Every check, from the ground up.
#[must_use]
pub fn examine(facts: &Facts) -> Vec<Check> {
    let mut checks = kernel::examine(facts);
    checks.extend(host::examine(facts));
    checks.extend(instance::examine(facts));
    checks.push(firewall::examine(facts));
    checks
}

/// A few names, and how many there are beside them.
fn some(names: &[String]) -> String {
    const SHOWN: usize = 4;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
