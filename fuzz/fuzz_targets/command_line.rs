//! Command lines: each makes a command, or an error with exit code 2 that can be shown.
#![no_main]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use libfuzzer_sys::fuzz_target;
use portfwd_user::cli::{Environment, parse};

fuzz_target!(|data: &[u8]| {
    let words = data
        .split(|byte| *byte == 0)
        .map(|word| OsString::from_vec(word.to_vec()));
    let arguments = std::iter::once(OsString::from("portfwd")).chain(words);
    if let Err(error) = parse(arguments, &Environment::default()) {
        assert_eq!(error.exit_code(), 2);
        assert!(!error.to_string().is_empty());
    }
});
