//! What a host with portfwd must do to each packet, in plain Rust.
//!
//! The model is written from the documents (DESIGN.md, EDGE_CASES.md, the RFCs), not from the datapath,
//! and shares no code with it: a mistake would have to be made twice to stay unseen. `tests/tests/
//! differential.rs` gives both the same packets. It has no clock, so all lifetimes are endless, and no
//! table of limited size.
//!
//! The rules, in the order of docs/nat-behaviour.md. "Goes on" means as it came, to the next program and the
//! stack; a name in parentheses is the reason that is counted.
//!
//! # Which packets are translated
//!
//! 1. A frame that came in by a device but was not addressed to it goes on, uncounted.
//! 2. What is neither IPv4 nor IPv6 goes on; a VLAN tag makes a frame such. By a container's link a tagged
//!    frame is dropped ([`Reason::ForeignSource`]), as nobody looks behind the tag.
//! 3. A packet whose headers are cut or contradict each other goes on ([`Reason::Malformed`]): the IP header
//!    is shorter than 20 bytes or longer than the packet, its version is not the EtherType's, the packet is
//!    longer than the frame, or says no length although it is not going to be cut into several; the TCP
//!    header is shorter than 20 bytes or longer than the packet; a datagram is shorter than its header or
//!    longer than the packet; an SCTP packet has no chunk. The frame may be longer than the packet.
//! 4. IPv6 hop-by-hop options, destination options, routing and fragment headers are walked past, up to six
//!    of them and 440 bytes. With segments left in a routing header the destination is not the last one:
//!    the packet goes on, and so does one with more headers, or others.
//! 5. By a device, packets to a port that nobody publishes, and that no container listens on behind a
//!    published one, go on uncounted; whatever else is wrong with them, unless they are fragments or have
//!    extension headers. Ports are read where they would be.
//! 6. By a container's link, only packets from the container's own addresses go on or are translated,
//!    from link-local and unspecified ones too; others are dropped ([`Reason::ForeignSource`]), whatever
//!    follows the IP header. Replies of a flow need no look at the source: it is the flow's.
//! 7. Unspecified, loopback, link-local, multicast and broadcast destinations are never translated
//!    ([`Reason::NotForHost`]). A packet addressed to the container itself goes on.
//! 8. What would expire on the way goes on ([`Reason::Expired`]), for the stack to answer.
//!
//! # Flows
//!
//! 9. A flow is known by protocol, client and container, addresses and ports, as the container sees
//!    them. A request belongs to it if client and host address and ports are the ones that it was opened
//!    with, and if both came from the container itself or neither did.
//! 10. A flow is opened only to one of the host's addresses ([`Reason::NotForHost`]), and only by a SYN without
//!     ACK, RST and FIN, an INIT of SCTP, or a datagram; other segments go on ([`Reason::NoFlow`]).
//! 11. A flow is opened only from a source that can exist, does not have to stay on its link, and is not the
//!     host's ([`Reason::ImpossibleSource`]), and if no socket of the host has the connection
//!     ([`Reason::HostSocket`]). The host's `rp_filter` is off.
//! 12. A request that would open a flow in place of another gets another client's port toward the
//!     container, of 1024 and above and free; replies go to the client's own. Which one, the datapath may
//!     choose ([`Input::port`]). SCTP cannot, and drops it ([`Reason::TupleTaken`]). A SYN opens a new
//!     connection in place of its own one that was closed from both ends or reset.
//! 13. A TCP connection is established when the client acknowledges the container's SYN by number, or the
//!     container sends data or FIN behind its SYN. It is over when both have sent FIN, or one RST; when the
//!     one that sent the RST goes on, so does the connection. Established ones that are not over are
//!     settled, and UDP flows that go on after an answer, which takes time ([`Outcome::optional`]).
//!
//! # Translation
//!
//! 14. A request gets the container's address and port as destination, a reply the host's as source. The
//!     client's are kept, but where a container calls itself: then the host address that it called stands
//!     for the client's.
//! 15. Everything that is redirected loses one hop; what goes through the stack does not.
//! 16. A checksum is right afterwards if it was before, and else wrong by as much as before. An absent
//!     UDP checksum stays absent, a computed 0 is sent as ones; that of SCTP covers nothing that changes.
//! 17. A reply larger than the way out takes goes on ([`Reason::TooBig`]), unless it is going to be cut into
//!     packets that are not. One that routers may cut is dropped.
//!
//! # ICMP errors
//!
//! 18. A destination unreachable, packet too big, time exceeded or parameter problem that is no fragment,
//!     quotes both ports and goes to the source of what it quotes is translated with the quote. From a
//!     device, if it quotes a reply of a flow: on to the container; of no flow: it goes on
//!     ([`Reason::NoFlow`]). From a container's link, or leaving, if it quotes a request: back to the client.
//! 19. Its source becomes the host's where it is the container's; a router behind the host keeps its own.
//!     The quote's hops stay; every checksum that the quote reaches is corrected, as in 16.
//! 20. It changes no flow.
//!
//! # Fragments
//!
//! 21. What became of the first fragment becomes of the others of its datagram: they go on, are dropped
//!     ([`Reason::FragmentOfDropped`]), or are translated and go where it went. In IPv4 the protocol tells datagrams
//!     apart beside addresses and identification, in IPv6 it does not.
//! 22. From a device, up to 64 fragments to one of the host's addresses that come before their first, of
//!     up to 2,044 bytes each, wait for it, and come in again behind it. Others go on
//!     ([`Reason::Fragment`]).
//!
//! # Hooks
//!
//! 23. A device's TC hook redirects requests into the container's link, a link's hook replies out by the
//!     route, or back if the container called itself. Without a link, requests go on translated, and
//!     replies are translated at a device's egress.
//! 24. XDP translates whole packets without extension headers that belong to settled flows and are no SYN,
//!     FIN or RST, and lets everything go on; the TC hook behind it delivers unchanged what has the ends
//!     of a settled flow as the container sees it.

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
pub use world::{Device, Forward, Link, Protocol, World};
