//! Command lines of which a tracer refuses some system calls.

use std::process::Command;

use nix::errno::Errno;

use crate::portfwd::{self, Outcome};
use crate::ptrace::{self, Call};
use crate::topology::{Shape, Topology};

/// Calls to be refused, by what they look like.
pub type Refused<'a> = &'a (dyn Fn(&Call) -> bool + Sync);

/// A topology, and command lines for it in which `{0}` and `{1}` stand for the namespaces of the containers.
#[derive(Debug)]
pub struct Refusing {
    /// Where they run.
    pub topology: Topology,
}

impl Default for Refusing {
    fn default() -> Self {
        Self {
            topology: Topology::new(Shape::default()),
        }
    }
}

impl Refusing {
    /// The command of a line.
    #[must_use]
    pub fn command(&self, line: &str) -> Command {
        let [web, db] = &self.topology.containers;
        let line = line
            .replace("{0}", &web.netns())
            .replace("{1}", &db.netns());
        let arguments: Vec<&str> = line.split_whitespace().collect();
        self.topology.command(&arguments)
    }

    /// Runs a line without a tracer.
    #[must_use]
    pub fn run(&self, line: &str) -> Outcome {
        portfwd::finish(self.command(line))
    }

    /// Runs a line of which these calls fail.
    #[must_use]
    pub fn refuse(&self, line: &str, refused: Refused, errno: Errno) -> Outcome {
        ptrace::refuse(self.command(line), |call| refused(call).then_some(errno))
    }

    /// The same with any result.
    #[must_use]
    pub fn fake(&self, line: &str, faked: impl FnMut(&Call) -> Option<i64> + Send) -> Outcome {
        ptrace::fake(self.command(line), faked)
    }
}
