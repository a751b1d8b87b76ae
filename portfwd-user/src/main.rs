//! The command line of portfwd.
fn main() {}
