//! What the loader reads from the system, BPF maps aside: namespaces, links, addresses, sockets,
//! processes, other tools' rules, privileges, the cgroup hierarchy. Nothing here decides; the one thing that acts is
//! [`sockets::destroy`].
//!
//! A namespace belongs to a thread, so each look into another one happens in a thread that lives for
//! that look only ([`netns::Netns::run_in`]); the rtnetlink conversations inside are asynchronous and
//! get a single-threaded runtime there ([`netlink::converse`]). A caller with several questions about one
//! namespace asks them in one conversation.

pub mod addresses;
pub mod cgroup;
pub mod container;
pub mod foreign;
pub mod kernel;
pub mod links;
pub mod local_ports;
pub mod netlink;
pub mod netns;
pub mod networks;
pub mod privilege;
pub mod processes;
pub mod routes;
pub mod settings;
pub mod sockets;
