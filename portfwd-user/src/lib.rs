//! The loader of portfwd.
pub mod cli;
pub mod collision;
pub mod error;
pub mod label;
pub mod spec;
pub mod target;
pub mod object;
pub mod tables;
pub mod report;
pub mod coverage;
pub mod transaction;
pub mod bpffs;
pub mod instance;
pub mod lock;
pub mod observe;
