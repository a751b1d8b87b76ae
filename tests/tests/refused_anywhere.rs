//! Commands of which any one system call fails: each says in one line what it could not do, and has done all of its
//! work or nothing.
//!
//! Some dozens of calls spread over the whole run fail; with `PORTFWD_FULL=1`, every one.

use std::collections::BTreeSet;

use nix::errno::Errno;
use nix::libc;
use portfwd_tests::kills::kills;
use portfwd_tests::namespace::Namespace;
use portfwd_tests::portfwd::Outcome;
use portfwd_tests::ptrace::{self, Call};
use portfwd_tests::topology::{Shape, Topology};

/// Calls that do not fail, or after which a program ends that they fail in: without a pair of sockets for signals tokio
/// panics.
const NEVER: [i64; 25] = [
    libc::SYS_socketpair,
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_close,
    libc::SYS_getrandom,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_prctl,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_sched_getaffinity,
    libc::SYS_clock_nanosleep,
    libc::SYS_epoll_pwait,
    libc::SYS_restart_syscall,
    libc::SYS_lseek,
];

/// What only old programs of one architecture call otherwise.
#[cfg(target_arch = "x86_64")]
const ALIASES: [i64; 1] = [libc::SYS_epoll_wait];
#[cfg(not(target_arch = "x86_64"))]
const ALIASES: [i64; 0] = [];

/// Finds the calls of a run that may fail, by their number: from the first on that portfwd makes for itself.
#[derive(Default)]
struct Counted {
    begun: bool,
    calls: u32,
}

impl Counted {
    fn is(&mut self, call: &Call, at: u32) -> bool {
        self.begun |= call.number == libc::SYS_openat
            && call.text(call.arguments[1]) == "/proc/thread-self/status";
        let is_memory = call.number == libc::SYS_mmap && call.arguments[4] as i32 == -1;
        if !self.begun
            || is_memory
            || NEVER.contains(&call.number)
            || ALIASES.contains(&call.number)
        {
            return false;
        }
        self.calls += 1;
        self.calls == at
    }
}

/// Runs a command of which call `at` fails.
fn run(topology: &Topology, line: &str, at: u32, errno: Errno) -> (Outcome, u32) {
    let arguments: Vec<&str> = line.split_whitespace().collect();
    let mut counted = Counted::default();
    let outcome = ptrace::refuse(topology.command(&arguments), |call| {
        counted.is(call, at).then_some(errno)
    });
    (outcome, counted.calls)
}

/// Whether it ended well, or with one line that says why not and what goes with it.
#[track_caller]
fn assert_told(outcome: &Outcome, at: u32) {
    let starts = [
        "error: ",
        "warning: ",
        "held by: ",
        "left behind: ",
        "hint: ",
    ];
    let known = |line: &str| starts.iter().any(|start| line.starts_with(start));
    let told = outcome
        .stderr
        .lines()
        .any(|line| line.starts_with("error: "));
    let in_form = match outcome.code {
        0 => !told,
        1 | 5 => told && outcome.stderr.lines().all(known),
        _ => false,
    };
    assert!(in_form, "call {at} of {}: {outcome:?}", outcome.command);
}

/// Lets calls of `line` fail, one a run, each time after `before`; `after` takes back what it does.
fn sweep(topology: &Topology, before: &[&str], line: &str, after: &[&str]) {
    let all = |lines: &[&str]| {
        for line in lines {
            topology
                .portfwd(&line.split_whitespace().collect::<Vec<_>>())
                .expect_ok();
        }
    };
    all(before);
    let unchanged = topology.published();
    let (outcome, calls) = run(topology, line, 0, Errno::ENOMEM);
    outcome.expect_ok();
    let done = topology.published();
    all(after);
    assert!(calls > 10, "{line} makes {calls} calls");
    let mut said = BTreeSet::new();
    for at in kills(calls) {
        all(before);
        let (outcome, _) = run(topology, line, at, Errno::ENOMEM);
        assert_told(&outcome, at);
        let published = topology.published();
        let known = [&unchanged, &done].contains(&&published);
        assert!(known, "call {at} of {line}: {published:?}\n{outcome:?}");
        assert!(
            outcome.code != 0 || published == done,
            "call {at} of {line}: {outcome:?}"
        );
        said.extend(outcome.stderr.lines().next().map(str::to_owned));
        all(after);
    }
    for line in said {
        println!("{line}");
    }
}

struct Stand {
    topology: Topology,
    bare: Namespace,
}

impl Stand {
    fn new() -> Self {
        Self {
            topology: Topology::new(Shape::default()),
            bare: Namespace::new("bare"),
        }
    }

    /// The options of `attach` that say where a container is.
    fn web(&self) -> String {
        format!("--netns {}", self.topology.containers[0].netns())
    }
    fn db(&self) -> String {
        format!("--netns {}", self.topology.containers[1].netns())
    }
    fn bare(&self) -> String {
        format!("--netns {}", self.bare.path().display())
    }
}

const DETACH: &str = "detach web --ignore-missing";

#[test]
fn attach_that_brings_the_datapath_up() {
    let stand = Stand::new();
    let attach = format!("attach web {} -p 8080:80", stand.web());
    sweep(&stand.topology, &[], &attach, &["down"]);
}

#[test]
fn attach_with_all_that_it_can() {
    let stand = Stand::new();
    stand.topology.portfwd(&["up"]).expect_ok();
    let attach = format!(
        "attach web {} -p 8080:80 -p 90/tcp -p 127.0.0.1:8081:81 --masquerade --loopback --deny 192.0.2.9",
        stand.web()
    );
    sweep(&stand.topology, &[], &attach, &[DETACH]);
}

#[test]
fn attach_that_makes_the_link() {
    let stand = Stand::new();
    stand.topology.portfwd(&["up"]).expect_ok();
    let attach = format!(
        "attach web {} -p 8080:80 --connect 10.99.0.1/24,10.99.0.2/24 --connect fd99::1/64,fd99::2/64",
        stand.bare()
    );
    sweep(&stand.topology, &[], &attach, &[DETACH]);
}

#[test]
fn detach_and_repoint() {
    let stand = Stand::new();
    let attach = format!("attach web {} -p 8080:80 --masquerade", stand.web());
    sweep(&stand.topology, &[&attach], DETACH, &[DETACH]);
    let attach = format!("attach web {} -p 8080:80 --replace", stand.web());
    let repoint = format!("repoint web db {}", stand.db());
    let after = ["detach db --ignore-missing", DETACH];
    sweep(&stand.topology, &[&attach], &repoint, &after);
}

#[test]
fn commands_about_the_instance() {
    let stand = Stand::new();
    let attach = format!("attach web {} -p 8080:80", stand.web());
    stand
        .topology
        .portfwd(&attach.split(' ').collect::<Vec<_>>())
        .expect_ok();
    for line in [
        "list",
        "port web",
        "flows",
        "flows purge",
        "status",
        "gc",
        "explain 192.0.2.1:8080",
        "masquerade list",
        "up",
    ] {
        sweep(&stand.topology, &[], line, &[]);
    }
    let remove = "masquerade remove 10.88.0.0/24";
    let add = "masquerade add 10.88.0.0/24";
    sweep(&stand.topology, &[add], remove, &[add]);
    sweep(&stand.topology, &[], "masquerade add fd88::/64", &[]);
    sweep(&stand.topology, &[&attach], "down", &["down"]);
}
