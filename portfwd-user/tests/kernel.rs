//! What the kernel can do is found by trying, and nothing of the trial stays. Needs root.

use std::process::Command;

use portfwd_user::hooks;
use portfwd_user::observe::kernel;

fn qdiscs() -> String {
    let output = Command::new("tc").args(["qdisc", "show"]).output();
    String::from_utf8(output.expect("run tc").stdout).expect("text")
}

#[test]
fn a_clsact_qdisc_is_tried_where_nobody_sees_it() {
    let before = qdiscs();
    // The tests of the hooks need one, on whatever kernel.
    assert!(hooks::takes_clsact().expect("a trial"));
    assert_eq!(qdiscs(), before);
}

#[test]
fn programs_are_tried_and_gone() {
    let _compiled = kernel::compiles_programs().expect("a program that does nothing");
    // Sources came with Linux 6.7, a release after TCX: who knows them knows that too.
    let source = kernel::knows_route_source().expect("a lookup");
    assert!(kernel::has_tcx().expect("an answer") || !source);
    let open = std::fs::read_dir("/proc/self/fd").expect("descriptors");
    let links = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    let programs = links.filter(|link| link.to_string_lossy().contains("bpf-prog"));
    assert_eq!(programs.count(), 0);
}
