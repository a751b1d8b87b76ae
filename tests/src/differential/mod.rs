//! The datapath compared with the reference model: random sequences of packets go through both, and a
//! sequence that they disagree about is made small and printed.
//!
//! The instance is a real one in a namespace ([`host`]); its pinned programs are run over single packets
//! (`BPF_PROG_TEST_RUN`). Packets are made up by [`generate`], damaged by [`mutate`], and given to both
//! sides by [`campaign`]; [`shrink`] makes a disagreement small. The same seed gives the same packets.

mod build;
pub mod campaign;
pub mod generate;
pub mod host;
mod mutate;
mod random;
mod shrink;
pub mod step;
