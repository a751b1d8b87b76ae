//! Names, addresses and subnets.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portfwd_user::label::{InstanceName, Label};
use portfwd_user::subnet::Subnet;
use portfwd_user::target::Addresses;

fuzz_target!(|text: &str| {
    if let Ok(label) = text.parse::<Label>() {
        assert_eq!(label.as_str(), text);
    }
    if let Ok(name) = text.parse::<InstanceName>() {
        // It becomes a directory.
        assert!(!name.as_str().contains('/') && name.as_str() != "..");
    }
    if let Ok(subnet) = text.parse::<Subnet>() {
        assert_eq!(subnet.to_string().parse::<Subnet>().as_ref(), Ok(&subnet));
    }
    let _ = text.parse::<Addresses>();
});
