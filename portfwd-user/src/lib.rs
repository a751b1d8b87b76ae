//! The loader of portfwd: what the binary does, as a library.

pub mod apply;
pub mod bpffs;
pub mod cli;
pub mod clock;
pub mod collision;
pub mod commands;
pub mod coverage;
pub mod datapath;
pub mod doctor;
pub mod error;
pub mod hooks;
pub mod instance;
pub mod label;
pub mod lock;
pub mod masquerade;
pub mod object;
pub mod observe;
pub mod plan;
pub mod report;
pub mod spec;
pub mod state;
pub mod subnet;
pub mod sweep;
pub mod tables;
pub mod target;
pub mod transaction;
