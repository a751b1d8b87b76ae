//! What the programs tell. At the default level the verifier removes all of it.

/// The number that a log record carries for its line: always 0. A real one would be code, and a comment
/// above a message would change the object.
macro_rules! line {
    () => {
        0_u32
    };
}

use core::ffi::c_void;

use aya_ebpf::EbpfContext;
use aya_log_ebpf::{debug, info};

use crate::{family::Family, packet::Hook, parse::Packet};

/// The context of any hook, as the log macros want it.
struct Context(*mut c_void);

impl EbpfContext for Context {
    fn as_ptr(&self) -> *mut c_void {
        self.0
    }
}

/// A flow was opened through the forward with that index, to that port of its container. (The verifier
/// grants 512 bytes of stack: no other address would fit.)
#[inline(always)]
pub fn opened<H: Hook, A: Family>(hook: &H, packet: &Packet<A>, forward: u32, port: u16) {
    let context = Context(hook.context());
    info!(
        &context,
        "open protocol={} client={:i}:{} host-port={} forward={} port={}",
        packet.network.protocol,
        packet.network.source.ip().octets(),
        packet.source_port.get(),
        packet.destination_port.get(),
        forward,
        port
    );
}

/// A packet was dropped for the reason of that number.
#[inline(always)]
pub fn dropped<H: Hook>(hook: &H, reason: u32) {
    let context = Context(hook.context());
    debug!(&context, "drop reason={} device={}", reason, hook.device());
}
