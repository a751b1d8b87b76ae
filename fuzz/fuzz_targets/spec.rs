//! SPECs: whatever is typed gives a SPEC that reads back as itself, or an error that can be shown.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portfwd_user::spec::{PortQuery, Spec};

fuzz_target!(|text: &str| {
    match text.parse::<Spec>() {
        Ok(spec) => assert_eq!(spec.to_string().parse::<Spec>().as_ref(), Ok(&spec)),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Ok(query) = text.parse::<PortQuery>() {
        assert_eq!(query.to_string().parse::<PortQuery>().as_ref(), Ok(&query));
    }
});
