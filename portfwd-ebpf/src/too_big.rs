//! Replies that the way out has no room for, of a host that forwards nothing: its stack drops them, and it is
//! the programs that tell the container.

use aya_ebpf::{
    bindings::{BPF_F_INVALIDATE_HASH, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC},
    helpers::{
        bpf_csum_diff, bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_pull_data,
        bpf_skb_store_bytes,
    },
};

use portfwd_common::verdict::Reason;

use crate::{
    deliver,
    family::Family,
    fib, flow,
    packet::{Hook, Tc},
    parse,
    verdict::Verdict,
    way::{self, PacketWay},
};

/// Length of the quote. More would be allowed (RFC 1812, section 4.3.2.3; RFC 4443, section 3.2), but this is
/// what `bpf_csum_diff` sums up at once.
const QUOTE: u32 = 512;

/// After [`crate::first::Link`], which has counted the packet as too big.
pub struct Link;

impl PacketWay<Tc> for Link {
    #[inline(always)]
    fn go<A: Family>(self, hook: &Tc) -> Verdict {
        let parsed = parse::extended::<A>(hook).and_then(|network| parse::packet(hook, network));
        let Ok(packet) = parsed else {
            return Verdict::NEXT;
        };
        let key = way::reply_key(&packet);
        let Some(live) = flow::of_reply(&key) else {
            return Verdict::NEXT;
        };
        let flow = live.flow();
        let (host, mtu) = (flow.reply.host, flow.reply.mtu);
        let ends = deliver::ends(&key, flow);
        // The stack of a host that forwards tells the container itself.
        let is_ours = fib::is_disabled(hook, way::routing_device(flow.link), &ends);
        if !is_ours || mtu == 0 || packet.length < QUOTE as u64 {
            return Verdict::NEXT;
        }
        match answer(hook, host, packet.network.source, mtu) {
            Some(verdict) => verdict,
            None => Verdict::drop(Reason::RewriteFailed, flow.forward),
        }
    }
}

/// Turns the packet into the message about itself, and sends it back by the container's link.
#[inline(always)]
fn answer<A: Family>(hook: &Tc, host: A, container: A, mtu: u32) -> Option<Verdict> {
    let skb = hook.raw();
    let frame = hook.network() as u32;
    let headers = size_of::<A::TooBig>() as u32;
    // Destination, source.
    let stations: [[u16; 3]; 2] = hook.load(0)?;
    // SAFETY: a live context, here and below. It ends every pointer into the packet.
    let is_cut = unsafe {
        bpf_skb_change_tail(skb, frame + QUOTE, 0) == 0
            && bpf_skb_pull_data(skb, frame + QUOTE) == 0
    };
    if !is_cut {
        return None;
    }
    let quote = hook.at::<[u8; QUOTE as usize]>(frame as usize)?;
    // SAFETY: in bounds by `at`.
    let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, quote.cast(), QUOTE, 0) };
    if sum < 0 {
        return None;
    }
    let message = A::too_big(host, container, mtu, QUOTE, sum as u32);
    let back = [stations[1], stations[0]];
    // SAFETY: as above; the helper reads what it is told of live variables.
    let is_made = unsafe {
        bpf_skb_adjust_room(skb, headers as i32, BPF_ADJ_ROOM_MAC, 0) == 0
            && bpf_skb_store_bytes(skb.cast(), 0, (&raw const back).cast(), 12, 0) == 0
            && bpf_skb_store_bytes(
                skb.cast(),
                frame,
                (&raw const message).cast(),
                headers,
                BPF_F_INVALIDATE_HASH as u64,
            ) == 0
    };
    // Not out by the link: a device without checksum offload would complete the quoted packet's checksum.
    is_made.then(|| deliver::to_container(hook, hook.device()))
}
