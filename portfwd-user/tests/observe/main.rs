//! What the loader reads from the system, against real namespaces, links and sockets. Needs root.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail as the tests themselves do"
)]

mod links;
mod sockets;
mod support;
