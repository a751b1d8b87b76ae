//! Commands about masquerade that are killed at any of their system calls leave what was, or what is new.
//!
//! Each sweep kills at some calls spread over the whole run; with `PORTFWD_FULL=1`, at every one.

use std::env;

use portfwd_tests::datapath::{Datapath, Program, Verdict};
use portfwd_tests::packet::Frame;
use portfwd_tests::ptrace::{self, End};
use portfwd_tests::table::{at, families};
use portfwd_tests::topology::{Shape, Topology};

/// Kills in a sweep that is not full.
const KILLS: u32 = 40;

struct Stand {
    topology: Topology,
}

impl Stand {
    fn new() -> Self {
        let topology = Topology::watched(Shape::forwarding());
        topology.portfwd(&["up"]).expect_ok();
        Self { topology }
    }

    /// How many system calls a whole run takes.
    fn calls(&self, arguments: &[&str]) -> u32 {
        match ptrace::run(self.topology.command(arguments), 0) {
            End::Exited { code: 0, calls } => calls,
            other => panic!("{arguments:?}: {other:?}"),
        }
    }

    /// Runs a command and kills it at call `at`; of the last ones some may not be reached.
    fn kill(&self, arguments: &[&str], at: u32) {
        match ptrace::run(self.topology.command(arguments), at) {
            End::Killed | End::Exited { code: 0, .. } => {}
            other => panic!("{arguments:?} killed at {at}: {other:?}"),
        }
    }

    /// Whether datagrams of the first container leave under the host's address, of the families that
    /// `both` says: all, or IPv4 alone.
    ///
    /// # Panics
    /// When one does and the other does not.
    fn masquerades(&self, both: bool, killed: u32) -> bool {
        let datapath = Datapath::open(&self.topology);
        let families = families();
        let asked = if both { &families[..] } else { &families[..1] };
        let seen: Vec<bool> = asked
            .iter()
            .map(|ends| {
                let (from, to) = (at(ends.web, 40_000), at(ends.foreign, 53));
                let frame = Frame::udp(from, to, b"question").to_bytes();
                let (verdict, bytes) = datapath.run(Program::Egress, "eth1", &frame);
                assert_eq!(verdict, Verdict::Next, "killed at {killed}");
                bytes != frame
            })
            .collect();
        assert!(
            seen.iter().all(|one| *one == seen[0]),
            "killed at {killed}: {seen:?}"
        );
        seen[0]
    }

    fn listed(&self) -> usize {
        let listed = self
            .topology
            .portfwd(&["--json", "masquerade", "list"])
            .expect_ok()
            .json();
        listed.as_array().map_or(0, Vec::len)
    }

    /// On how many devices the egress program is.
    fn egress(&self) -> usize {
        let status = self
            .topology
            .portfwd(&["--json", "status"])
            .expect_ok()
            .json();
        let devices = status["datapath"]["devices"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let hooked = devices
            .iter()
            .filter(|device| device["hooks"].to_string().contains("egress"));
        hooked.count()
    }

    /// The tables agree with the packets, and the next command removes what is left over.
    fn assert_repaired(&self, masquerades: bool, rows: usize, killed: u32) {
        assert_eq!(
            self.listed(),
            if masquerades { rows } else { 0 },
            "killed at {killed}"
        );
        assert!(!masquerades || self.egress() == 3, "killed at {killed}");
        self.topology.portfwd(&["up"]).expect_ok();
        assert_eq!(
            self.egress(),
            if masquerades { 3 } else { 0 },
            "after {killed} and up"
        );
        assert_eq!(
            self.listed(),
            if masquerades { rows } else { 0 },
            "after {killed} and up"
        );
    }
}

/// The calls at which a command of so many is killed.
fn kills(calls: u32) -> impl Iterator<Item = u32> {
    let full = env::var_os("PORTFWD_FULL").is_some();
    let stride = if full { 1 } else { (calls / KILLS).max(1) };
    (1..=calls).step_by(stride as usize)
}

const ADD: [&str; 3] = ["masquerade", "add", "10.88.0.0/24"];
const REMOVE: [&str; 3] = ["masquerade", "remove", "10.88.0.0/24"];

#[test]
fn a_subnet_whose_addition_is_killed_is_masqueraded_or_not() {
    let stand = Stand::new();
    let calls = stand.calls(&ADD);
    stand.topology.portfwd(&REMOVE).expect_ok();
    let mut since = None;
    for killed in kills(calls) {
        stand.kill(&ADD, killed);
        let masquerades = stand.masquerades(false, killed);
        if masquerades {
            since.get_or_insert(killed);
        }
        stand.assert_repaired(masquerades, 1, killed);
        stand.topology.portfwd(&ADD).expect_ok();
        assert!(stand.masquerades(false, killed), "after {killed} and again");
        stand.topology.portfwd(&REMOVE).expect_ok();
        assert!(
            !stand.masquerades(false, killed),
            "after {killed} and removal"
        );
    }
    assert!(since.expect("a kill after the commit") > 1);
    stand.topology.take_down();
}

#[test]
fn a_subnet_whose_removal_is_killed_is_masqueraded_or_not() {
    let stand = Stand::new();
    stand.topology.portfwd(&ADD).expect_ok();
    let calls = stand.calls(&REMOVE);
    let mut since = None;
    for killed in kills(calls) {
        stand.topology.portfwd(&ADD).expect_ok();
        stand.kill(&REMOVE, killed);
        let masquerades = stand.masquerades(false, killed);
        if !masquerades {
            since.get_or_insert(killed);
        }
        stand.assert_repaired(masquerades, 1, killed);
    }
    assert!(since.expect("a kill after the commit") > 1);
    stand.topology.take_down();
}

#[test]
fn an_attach_with_masquerade_does_all_or_nothing_and_so_does_its_detach() {
    let stand = Stand::new();
    let netns = stand.topology.containers[0].netns();
    let attach = [
        "attach",
        "web",
        "--netns",
        &netns,
        "-p",
        "8080:80",
        "--masquerade",
    ];
    let detach = ["detach", "web"];
    let calls = [stand.calls(&attach), stand.calls(&detach)];
    for killed in kills(calls[0].max(calls[1])) {
        stand.kill(&attach, killed);
        let masquerades = stand.masquerades(true, killed);
        let published = !stand.topology.published().is_empty();
        assert_eq!(masquerades, published, "killed at {killed}");
        stand.assert_repaired(masquerades, 2, killed);
        stand.topology.portfwd(&attach).expect_ok();
        assert!(stand.masquerades(true, killed), "after {killed} and again");
        stand.kill(&detach, killed);
        let masquerades = stand.masquerades(true, killed);
        let published = !stand.topology.published().is_empty();
        assert_eq!(masquerades, published, "detach killed at {killed}");
        stand.assert_repaired(masquerades, 2, killed);
        stand
            .topology
            .portfwd(&["detach", "web", "--ignore-missing"])
            .expect_ok();
    }
    stand.topology.take_down();
}
