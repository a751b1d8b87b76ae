//! The harness of the integration tests: namespaces wired to a client, a host and two containers,
//! the `portfwd` binary run against them, real sockets, captures, packet tables, and a way to kill
//! a command at any of its system calls.
//!
//! It needs root, `ip`, `tc`, `ethtool`, `nft` and `iptables`, and for [`beside`], [`daemons`], [`docker`] and
//! [`portmap`] the programs that they run. Every kernel object has a name of its own (process ID and a counter), so that
//! test runs may stand beside each other. A failed step of the harness panics and says what it was doing;
//! there is nobody to hand an error to.

pub mod beside;
mod bpffs;
pub mod capture;
pub mod chosen;
pub mod clients;
pub mod daemons;
pub mod datapath;
pub mod deadline;
pub mod differential;
pub mod docker;
pub mod kernel;
pub mod kills;
pub mod layers;
pub mod namespace;
pub mod needs;
pub mod packet;
pub mod ping;
pub mod portfwd;
pub mod portmap;
pub mod ptrace;
pub mod quote;
pub mod race;
pub mod refusing;
pub mod servers;
pub mod snapshot;
pub mod table;
pub mod taken;
pub mod topology;
pub mod tunnel;
mod wiring;
