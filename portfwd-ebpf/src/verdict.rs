//! What becomes of a packet: counted, logged and turned into a return code here and nowhere else.

use aya_ebpf::bindings::{TC_ACT_SHOT, tcx_action_base::TCX_NEXT, xdp_action};
use portfwd_common::verdict::Reason;

use crate::{
    forward, log,
    maps::REASONS,
    packet::{Tc, Xdp},
};

/// What becomes of a packet.
#[must_use]
pub enum Verdict {
    /// It goes on to the next program and the stack.
    Next,
    /// The same, although its port is published.
    NextFor(Reason),
    /// It ends here, on account of the forward with this index (0: of none).
    Drop(Reason, u32),
    /// A helper has taken it; its return code.
    Redirected(i32),
}

impl Verdict {
    /// The return code of a TC program. `TC_ACT_OK` would end the chain and keep the packet from other
    /// programs on the hook.
    #[inline(always)]
    pub fn tc(self, hook: &Tc) -> i32 {
        match self {
            Self::Next => TCX_NEXT,
            Self::NextFor(reason) => {
                count(reason);
                TCX_NEXT
            }
            Self::Drop(reason, index) => {
                drop(hook, reason, index);
                TC_ACT_SHOT
            }
            Self::Redirected(action) => action,
        }
    }
    /// The return code of an XDP program.
    #[inline(always)]
    pub fn xdp(self, hook: &Xdp) -> u32 {
        match self {
            Self::Next => xdp_action::XDP_PASS,
            Self::NextFor(reason) => {
                count(reason);
                xdp_action::XDP_PASS
            }
            Self::Drop(reason, index) => {
                drop(hook, reason, index);
                xdp_action::XDP_DROP
            }
            Self::Redirected(action) => action as u32,
        }
    }
}

#[inline(always)]
fn drop<H: crate::packet::Hook>(hook: &H, reason: Reason, index: u32) {
    count(reason);
    if index != 0 {
        forward::count_drop(index);
    }
    log::dropped(hook, reason);
}

#[inline(always)]
fn count(reason: Reason) {
    if let Some(counter) = REASONS.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's own element.
        unsafe { *counter += 1 };
    }
}
