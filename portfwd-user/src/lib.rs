//! The loader of portfwd: what the binary does, as a library.

// `eprintln!` panics where it cannot write: `talk` does not.
#![warn(clippy::print_stderr)]

pub mod apply;
mod bpf;
pub mod bpffs;
pub mod cli;
pub mod clock;
pub mod collision;
pub mod commands;
pub mod connection;
pub mod coverage;
pub mod datapath;
pub mod declaration;
pub mod doctor;
pub mod drain;
pub mod error;
pub mod flow_filter;
pub mod hooks;
pub mod instance;
pub mod label;
pub mod lock;
pub mod masquerade;
pub mod object;
pub mod observe;
pub mod pair;
pub mod plan;
pub mod policy;
pub mod rehearsal;
pub mod report;
pub mod spec;
pub mod state;
pub mod subnet;
pub mod sweep;
pub mod tables;
pub mod talk;
pub mod target;
pub mod transaction;
