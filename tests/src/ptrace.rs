//! Killing a command at its n-th system call, and letting system calls of it fail.

mod call;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::unix::process::{CommandExt, ExitStatusExt as _};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::thread;

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::portfwd::{self, Outcome};
pub use call::{Call, bpf};

/// What becomes of a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Made,
    /// It is not made, and all of the command dies.
    Killed,
    /// It is not made, and this is what comes of it.
    Faked(i64),
}

/// How a traced run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It ended by itself, with its exit code, after so many system calls.
    Exited {
        /// The exit code.
        code: i32,
        /// System calls of all its threads and children.
        calls: u32,
    },
    /// It was killed on entry to the system call that was asked for: that call did not happen.
    Killed,
}

/// Runs the command and kills all of it on entry to system call number `at` (the first is 1),
/// counted over all its threads and children; `at` 0 lets it run to its end. Its output is lost.
///
/// # Panics
/// When tracing fails.
#[must_use]
pub fn run(mut command: Command, at: u32) -> End {
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut calls = 0;
    start(command, move |_| {
        calls += 1;
        match calls == at {
            true => Fate::Killed,
            false => Fate::Made,
        }
    })
}

/// Runs the command and kills all of it on entry to the first system call that `is_last` is true of.
///
/// # Panics
/// When tracing fails.
#[must_use]
pub fn kill_at(mut command: Command, mut is_last: impl FnMut(&Call) -> bool + Send) -> End {
    command.stdout(Stdio::null()).stderr(Stdio::null());
    start(command, |call| match is_last(call) {
        true => Fate::Killed,
        false => Fate::Made,
    })
}

/// Runs the command, in which every system call fails for which `refused` has an error: the kernel does not
/// see it. As with [`portfwd::finish`], what the command says is recorded.
///
/// # Panics
/// When tracing fails.
#[must_use]
pub fn refuse(command: Command, mut refused: impl FnMut(&Call) -> Option<Errno> + Send) -> Outcome {
    fake(command, |call| {
        refused(call).map(|errno| -i64::from(errno as i32))
    })
}

/// The same with any result, which may say that something came of the call.
///
/// # Panics
/// When tracing fails.
#[must_use]
pub fn fake(mut command: Command, mut faked: impl FnMut(&Call) -> Option<i64> + Send) -> Outcome {
    let shown = format!("{command:?}");
    let mut said = [(); 2].map(|()| tempfile::tempfile().expect("a file"));
    let [stdout, stderr] = said
        .each_ref()
        .map(|file| file.try_clone().expect("a descriptor"));
    command.stdout(stdout).stderr(stderr);
    let end = start(command, |call| faked(call).map_or(Fate::Made, Fate::Faked));
    let End::Exited { code, .. } = end else {
        panic!("{shown} was killed");
    };
    let [stdout, stderr] = said.each_mut().map(contents);
    let output = Output {
        // As wait(2) has it.
        status: ExitStatus::from_raw(code << 8),
        stdout,
        stderr,
    };
    portfwd::outcome(shown, &output)
}

fn contents(file: &mut File) -> Vec<u8> {
    let mut bytes = Vec::new();
    let read = file.rewind().and_then(|()| file.read_to_end(&mut bytes));
    read.expect("read what was said");
    bytes
}

fn start(mut command: Command, fate: impl FnMut(&Call) -> Fate + Send) -> End {
    command.stdin(Stdio::null());
    // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
    unsafe {
        command.pre_exec(|| ptrace::traceme().map_err(io::Error::from));
    }
    // The tracer is one thread and waits for its own children only (`__WNOTHREAD`), so that it
    // never takes away the children of tests on other threads.
    thread::scope(|scope| {
        let tracer = scope.spawn(|| trace(command, fate).expect("trace a command"));
        tracer.join().expect("the tracing thread")
    })
}

#[expect(
    clippy::zombie_processes,
    reason = "the loop waits until no child is left"
)]
fn trace(mut command: Command, mut fate: impl FnMut(&Call) -> Fate) -> Result<End, Errno> {
    let child = command.spawn().expect("start the traced command");
    let main = Pid::from_raw(i32::try_from(child.id()).expect("a process ID fits"));
    // The first stop is the one after exec.
    waitpid(main, Some(WaitPidFlag::__WALL))?;
    ptrace::setoptions(
        main,
        Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACEEXEC
            | Options::PTRACE_O_EXITKILL,
    )?;
    resume(main, None)?;
    let mut inside = Inside::default();
    let mut faked = HashMap::new();
    let mut end = None;
    let mut calls = 0;
    loop {
        let mine = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        let status = match waitpid(None, Some(mine)) {
            Ok(status) => status,
            Err(Errno::ECHILD) => return Ok(end.expect("the command has ended")),
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error),
        };
        match status {
            WaitStatus::PtraceSyscall(thread) => {
                if !inside.toggle(thread) {
                    if let Some(result) = faked.remove(&thread) {
                        unless_gone(call::answer(thread, result))?;
                    }
                    resume(thread, None)?;
                    continue;
                }
                calls += 1;
                let call = unless_gone(Call::of(thread))?;
                match call.map_or(Fate::Made, |call| fate(&call)) {
                    Fate::Made => {}
                    Fate::Faked(result) => {
                        unless_gone(call::skip(thread))?;
                        faked.insert(thread, result);
                    }
                    Fate::Killed => {
                        end = Some(End::Killed);
                        kill(main, Signal::SIGKILL)?;
                        inside.kill_others(main);
                        continue;
                    }
                }
                resume(thread, None)?;
            }
            // A new thread starts with SIGSTOP, which is the tracer's and not the program's.
            WaitStatus::Stopped(thread, Signal::SIGSTOP | Signal::SIGTRAP) => {
                resume(thread, None)?;
            }
            WaitStatus::Stopped(thread, signal) => resume(thread, signal)?,
            WaitStatus::PtraceEvent(thread, _, _) => resume(thread, None)?,
            WaitStatus::Exited(process, code) if process == main => {
                end.get_or_insert(End::Exited { code, calls });
            }
            WaitStatus::Signaled(process, signal, _) if process == main => {
                let code = 128 + signal as i32;
                end.get_or_insert(End::Exited { code, calls });
            }
            _ => {}
        }
    }
}

/// Lets a thread run to its next stop; one that has died meanwhile is waited for like the others.
fn resume(thread: Pid, signal: impl Into<Option<Signal>>) -> Result<(), Errno> {
    unless_gone(ptrace::syscall(thread, signal)).map(drop)
}

/// None of a thread that has died meanwhile.
fn unless_gone<T>(done: Result<T, Errno>) -> Result<Option<T>, Errno> {
    match done {
        Err(Errno::ESRCH) => Ok(None),
        done => done.map(Some),
    }
}

/// Which threads are inside a system call: a stop on one of them is its end.
#[derive(Default)]
struct Inside(Vec<(Pid, bool)>);

impl Inside {
    /// Notes a stop, and tells whether it is the entry to a system call.
    fn toggle(&mut self, thread: Pid) -> bool {
        if let Some((_, inside)) = self.0.iter_mut().find(|(known, _)| *known == thread) {
            *inside = !*inside;
            return *inside;
        }
        self.0.push((thread, true));
        true
    }

    /// Kills child processes too; for further threads of the main process that is the same again.
    fn kill_others(&self, main: Pid) {
        for (thread, _) in &self.0 {
            if *thread != main {
                // It may have ended already.
                let _ = kill(*thread, Signal::SIGKILL);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use nix::libc;

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_command_runs_to_its_end_and_its_calls_are_counted() {
        let End::Exited { code, calls } = run(shell("/bin/true; exit 3"), 0) else {
            panic!("killed by nobody");
        };
        assert_eq!(code, 3);
        assert!(calls > 20, "{calls} system calls");
    }

    #[test]
    fn a_call_that_is_refused_is_not_made_and_what_the_command_says_of_it_is_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("made").display().to_string();
        let mut command = Command::new("mkdir");
        command.arg(&path).env("LC_ALL", "C");
        let is_ours = |call: &Call| {
            call.arguments
                .iter()
                .any(|argument| call.text(*argument) == path)
                && call.number != libc::SYS_execve
        };
        let outcome = refuse(command, |call| is_ours(call).then_some(Errno::ENOSPC));
        assert_eq!(outcome.code, 1);
        assert!(
            outcome.stderr.contains("No space left on device"),
            "{}",
            outcome.stderr
        );
        assert!(!Path::new(&path).exists());
    }

    #[test]
    fn a_command_dies_at_the_call_that_was_named_and_not_later() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("made");
        let script = format!("echo x > {}; exit 0", file.display());
        let End::Exited { calls, .. } = run(shell(&script), 0) else {
            panic!("killed by nobody");
        };
        assert!(file.exists());
        std::fs::remove_file(&file).expect("remove the file");
        let mut made = Vec::new();
        for at in 1..=calls {
            assert_eq!(run(shell(&script), at), End::Killed);
            made.push(file.exists());
            let _ = std::fs::remove_file(&file);
        }
        assert!(made.is_sorted(), "{made:?}");
        assert!(!made[0] && made[made.len() - 1]);
    }
}
