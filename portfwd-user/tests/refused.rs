//! A program that the kernel's verifier does not take. As root.

use portfwd_user::error::Doing;
use portfwd_user::object::{self, Options};

/// `r6 = r1`, with which programs keep their context, and the same of a register that holds nothing.
const KEEP: [u8; 8] = [0xbf, 0x16, 0, 0, 0, 0, 0, 0];
const KEEP_NOTHING: [u8; 8] = [0xbf, 0x96, 0, 0, 0, 0, 0, 0];

#[test]
fn a_refused_program_is_told_with_the_verifiers_reason_and_not_as_a_want_of_privileges() {
    let mut bytes = object::BYTES.to_vec();
    let (instructions, _) = bytes.as_chunks_mut::<8>();
    for instruction in instructions.iter_mut().filter(|bytes| **bytes == KEEP) {
        *instruction = KEEP_NOTHING;
    }
    let options = Options {
        host_netns: 0,
        log_level: 0,
    };
    let loaded = object::load_from(&bytes, options);
    let Err(error) = loaded.doing(|| "load the eBPF programs".to_owned()) else {
        panic!("the verifier takes anything");
    };
    let report = error.report();
    // Which program is refused first, and over which register, is chance.
    assert!(
        report.contains("the verifier refuses it: R") && report.contains("(Permission denied"),
        "{report}"
    );
    assert!(!report.contains("root"), "{report}");
    assert_eq!(report.lines().count(), 2, "{report}");
    assert_eq!(error.exit_code(), 5);
}
