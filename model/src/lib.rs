//! What a host with portfwd must do to each packet, in plain Rust.
//!
//! The model is written from the documents (DESIGN.md, EDGE_CASES.md, the RFCs), not from the datapath,
//! and shares no code with it: a mistake would have to be made twice to stay unseen. `tests/tests/
//! differential.rs` gives both the same packets. It has no clock, so all lifetimes are endless, and no
//! table of limited size.
//!
//! The rules, in the order of docs/nat-behaviour.md; [`Rules`] names those that the datapath does not
//! meet yet.
//!
//! # Which packets are translated
//!
//! 1. A frame that came in by a device but was not addressed to it goes on, uncounted.
//! 2. What is neither IPv4 nor IPv6 goes on; a VLAN tag makes a frame such. By a container's link a tagged
//!    frame is dropped ([`Reason::ForeignSource`]), as nobody looks behind the tag.
//! 3. A packet whose headers are cut or contradict each other goes on ([`Reason::Malformed`]): the IP header
//!    is shorter than 20 bytes or longer than the packet, its version is not the EtherType's, the packet is
//!    longer than the frame; the TCP header is shorter than 20 bytes or longer than the packet; a datagram
//!    is shorter than its header or longer than the packet. The frame may be longer than the packet.
//! 4. Other protocols than TCP and UDP go on, and so do later fragments.
//! 5. By a device, packets to a port that nobody publishes, and that no container listens on behind a
//!    published one, go on uncounted, whatever else is wrong with them. Ports are read where they would be.
//! 6. By a container's link, only packets from the container's own addresses go on or are translated,
//!    from link-local and unspecified ones too; others are dropped ([`Reason::ForeignSource`]). Replies of
//!    a flow need no look at the source: it is the flow's.
//! 7. A first fragment to a published port goes on ([`Reason::Fragment`]).
//! 8. Unspecified, loopback, link-local, multicast and broadcast destinations are never translated
//!    ([`Reason::NotForHost`]). A packet addressed to the container itself goes on.
//! 9. What would expire on the way goes on ([`Reason::Expired`]), for the stack to answer.
//!
//! # Flows
//!
//! 10. A flow is known by protocol, client and container, addresses and ports, as the container sees
//!     them. A request belongs to it if it came to the same host address and port.
//! 11. Only a SYN without ACK, RST and FIN, or a datagram, opens a flow; other segments go on
//!     ([`Reason::NoFlow`]).
//! 12. A flow is opened only to one of the host's addresses ([`Reason::NotForHost`]), from a source that can
//!     exist and is not the host's ([`Reason::ImpossibleSource`]), and if no socket of the host has the
//!     connection ([`Reason::HostSocket`]).
//! 13. A request that would open a flow in place of another is dropped ([`Reason::TupleTaken`]), but a SYN
//!     takes over a flow that was reset or closed from both ends.
//!
//! # Translation
//!
//! 14. A request gets the container's address and port as destination, a reply the host's as source. The
//!     client's are kept, but where a container calls itself: then the host address that it called stands
//!     for the client's.
//! 15. Everything that is redirected loses one hop; what goes through the stack does not.
//! 16. A checksum is right afterwards if it was before, and else wrong by as much as before. An absent
//!     UDP checksum stays absent, a computed 0 is sent as ones.
//! 17. A reply larger than the way out takes goes on ([`Reason::TooBig`]), unless it is going to be cut into
//!     packets that are not.
//!
//! # Hooks
//!
//! 18. A device's TC hook redirects requests into the container's link, a link's hook replies out by the
//!     route, or back if the container called itself. Without a link, requests go on translated, and
//!     replies are translated at a device's egress.
//! 19. XDP translates as TC does, and lets the packet go on; the TC hook behind it delivers unchanged what
//!     has the ends of a flow as the container sees it.

mod checksum;
mod error;
mod flow;
mod follow;
mod fragment;
mod model;
mod outcome;
mod packet;
mod reply;
mod request;
mod translate;
mod world;

pub use flow::{Connection, Flow, Key, Progress, Request, Settled, Side};
pub use model::Model;
pub use outcome::{Hook, Input, Outcome, Reason, To, Verdict};
pub use world::{Device, Forward, Link, Protocol, Rules, World};
