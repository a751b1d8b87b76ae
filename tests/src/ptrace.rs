//! Killing a command at its n-th system call.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

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
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
    unsafe {
        command.pre_exec(|| ptrace::traceme().map_err(io::Error::from));
    }
    // The tracer is one thread and waits for its own children only (`__WNOTHREAD`), so that it
    // never takes away the children of tests on other threads.
    let tracer = thread::spawn(move || trace(command, at).expect("trace a command"));
    tracer.join().expect("the tracing thread")
}

#[expect(
    clippy::zombie_processes,
    reason = "the loop waits until no child is left"
)]
fn trace(mut command: Command, at: u32) -> Result<End, Errno> {
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
                if inside.toggle(thread) {
                    calls += 1;
                    if calls == at {
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
    match ptrace::syscall(thread, signal) {
        Err(Errno::ESRCH) => Ok(()),
        other => other,
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
