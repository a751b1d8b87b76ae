//! What becomes of a packet: counted, logged and turned into a return code here and nowhere else.

use aya_ebpf::bindings::{TC_ACT_SHOT, tcx_action_base::TCX_NEXT, xdp_action};
use portfwd_common::{MAX_STAGES, Stage, verdict::Reason};

use crate::{
    forward, log,
    maps::{REASONS, STAGES},
    packet::{Hook, Tc, Xdp},
};

/// What becomes of a packet: one number, because the verifier does not follow an enum's payload through
/// registers that hold a pointer in another variant.
#[must_use]
#[derive(Clone, Copy)]
pub struct Verdict(u64);

const NEXT: u64 = 0;
const NEXT_FOR: u64 = 1;
const DROP: u64 = 2;
const REDIRECTED: u64 = 3;
const STAGE: u64 = 4;
const READ: u64 = 5;

impl Verdict {
    /// It goes on to the next program and the stack.
    pub const NEXT: Self = Self(NEXT);

    /// The same, although its port is published.
    #[inline(always)]
    pub fn next_for(reason: Reason) -> Self {
        Self(NEXT_FOR | (reason as u64) << 8)
    }
    /// It ends here, on account of the forward with this index (0: of none).
    #[inline(always)]
    pub fn drop(reason: Reason, index: u32) -> Self {
        Self(DROP | (reason as u64) << 8 | (index as u64) << 32)
    }
    /// A helper has taken it; its return code.
    #[inline(always)]
    pub fn redirected(action: i64) -> Self {
        Self(REDIRECTED | (action as u64) << 32)
    }
    /// It goes on to the next program and the stack, translated.
    pub const TRANSLATED: Self = Self(REDIRECTED | (TCX_NEXT as u32 as u64) << 32);
    /// It has been kept, and comes back later: of this one nothing is left. (`TC_ACT_STOLEN` is unknown to
    /// `tcx_action_code`, which would let it go on.)
    pub const KEPT: Self = Self(REDIRECTED | (TC_ACT_SHOT as u64) << 32);
    /// Another program goes on with it, from the beginning.
    pub const fn stage(stage: Stage) -> Self {
        Self(STAGE | (stage.place(false) as u64) << 8 | (stage.place(true) as u64) << 32)
    }
    /// The same by the stage of that number ([`Stage`]).
    #[inline(always)]
    pub fn stage_of(number: u32) -> Self {
        let place = (number & (MAX_STAGES / 2 - 1)) as u64;
        Self(STAGE | place << 8 | (place + MAX_STAGES as u64 / 2) << 32)
    }
    /// Of a stage: it has read the packet, and goes on with it itself.
    pub const READ: Self = Self(READ);
    /// Whether a packet was read.
    #[inline(always)]
    pub fn is_read(self) -> bool {
        self.0 == READ
    }
    /// The same by another program, if it goes on. The reason that it has so far is counted.
    #[inline(always)]
    pub fn unless_claimed(self, stage: Stage) -> Self {
        if !self.goes_on() {
            return self;
        }
        if self.0 != NEXT {
            count((self.0 >> 8) as u32 & 0xff);
        }
        Self::stage(stage)
    }
    /// Whether the packet was left as it came.
    #[inline(always)]
    pub fn goes_on(self) -> bool {
        self.0 & 0xff <= NEXT_FOR
    }
    /// The return code of a TC program. `TC_ACT_OK` would end the chain and keep the packet from other
    /// programs on the hook.
    #[inline(always)]
    pub fn tc(self, hook: &Tc) -> i32 {
        if self.0 & 0xff == STAGE {
            let place = (self.0 >> if hook.has_frame() { 8 } else { 32 }) as u32 & 0xff;
            // SAFETY: nothing is left to drop. It only returns if the stage is missing; then the packet
            // goes on as it came.
            unsafe { STAGES.tail_call(hook, place) };
            return TCX_NEXT;
        }
        self.finish(hook, TCX_NEXT, TC_ACT_SHOT)
    }
    /// The return code of an XDP program.
    #[inline(always)]
    pub fn xdp(self, hook: &Xdp) -> u32 {
        self.finish(
            hook,
            xdp_action::XDP_PASS as i32,
            xdp_action::XDP_DROP as i32,
        ) as u32
    }
    #[inline(always)]
    fn finish<H: Hook>(self, hook: &H, next: i32, dropped: i32) -> i32 {
        let (reason, rest) = ((self.0 >> 8) as u32 & 0xff, (self.0 >> 32) as u32);
        match self.0 & 0xff {
            NEXT => next,
            REDIRECTED => rest as i32,
            NEXT_FOR => {
                count(reason);
                next
            }
            _ => {
                count(reason);
                if rest != 0 {
                    forward::count_drop(rest, reason);
                }
                log::dropped(hook, reason);
                dropped
            }
        }
    }
}

#[inline(always)]
fn count(reason: u32) {
    if let Some(counter) = REASONS.get_ptr_mut(reason) {
        // SAFETY: this CPU's own element.
        unsafe { *counter += 1 };
    }
}
