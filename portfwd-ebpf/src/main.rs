//! The hooks. Each reads as the packet's way: parse, flow, else forward, translate, deliver.
#![no_std]
#![feature(asm_experimental_arch, core_intrinsics, adt_const_params)]
#![allow(
    internal_features,
    reason = "the target has no other atomic operations"
)]
#![no_main]
#![allow(
    missing_docs,
    unreachable_pub,
    reason = "nothing here is an interface: programs are found by their section"
)]
#![allow(
    clippy::needless_borrows_for_generic_args,
    reason = "map keys stay where they were built: passing them by value may copy them"
)]

mod bind;
mod clock;
mod deliver;
mod drain;
mod error;
mod family;
mod fib;
mod first;
mod flow;
mod forward;
mod fragment;
mod log;
mod loopback;
mod maps;
mod masquerade;
mod owner;
mod packet;
mod pair;
mod parse;
mod policy;
mod shift;
mod socket;
mod too_big;
mod translate;
mod verdict;
mod way;

use aya_ebpf::{
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use packet::{Tc, Xdp};

/// Ingress of a device on which the host owns an address.
#[classifier]
pub fn tc_device(context: TcContext) -> i32 {
    let hook = Tc::new(&context);
    way::by_family(&hook, way::Device).tc(&hook)
}

/// Ingress of an attached container's host-side link.
#[classifier]
pub fn tc_link(context: TcContext) -> i32 {
    let hook = Tc::new(&context);
    way::of_container(&hook).tc(&hook)
}

/// Egress of a device, for flows that go through the stack.
#[classifier]
pub fn tc_egress(context: TcContext) -> i32 {
    let hook = Tc::new(&context);
    masquerade::leaving(&hook, way::by_family(&hook, way::Egress)).tc(&hook)
}

/// Ingress of a container's own device, in its namespace.
#[classifier]
pub fn tc_loopback(context: TcContext) -> i32 {
    let hook = Tc::new(&context);
    way::by_family(&hook, loopback::Inside).tc(&hook)
}

/// [`portfwd_common::Stage::DeviceFirst`].
#[classifier]
pub fn tc_device_first(context: TcContext) -> i32 {
    let hook = Tc::new(&context);
    masquerade::coming_back(&hook, way::by_family(&hook, first::Device)).tc(&hook)
}

/// [`portfwd_common::Stage::DeviceFragment`].
#[classifier]
pub fn tc_device_fragment(context: TcContext) -> i32 {
    let hook = Tc::new(&context);
    masquerade::coming_back(&hook, way::by_family(&hook, first::DeviceFragment)).tc(&hook)
}

/// [`portfwd_common::Stage::LinkFirst`].
#[classifier]
pub fn tc_link_first(context: TcContext) -> i32 {
    let hook = Tc::new(&context);
    way::by_family(&hook, first::Link).tc(&hook)
}

/// [`portfwd_common::Stage::LinkRequest`].
#[classifier]
pub fn tc_link_request(context: TcContext) -> i32 {
    let hook = Tc::new(&context);
    way::by_family(&hook, first::LinkRequest).tc(&hook)
}

/// [`portfwd_common::Stage::EgressFirst`].
#[classifier]
pub fn tc_egress_first(context: TcContext) -> i32 {
    let hook = Tc::new(&context);
    masquerade::leaving(&hook, way::by_family(&hook, first::Egress)).tc(&hook)
}

/// [`portfwd_common::Stage::DeviceError`].
#[classifier]
pub fn tc_device_error(context: TcContext) -> i32 {
    let hook = Tc::new(&context);
    masquerade::coming_back_error(&hook, way::by_family(&hook, error::Device)).tc(&hook)
}

/// [`portfwd_common::Stage::LinkError`].
#[classifier]
pub fn tc_link_error(context: TcContext) -> i32 {
    let hook = Tc::new(&context);
    way::by_family(&hook, error::Link).tc(&hook)
}

/// [`portfwd_common::Stage::EgressError`].
#[classifier]
pub fn tc_egress_error(context: TcContext) -> i32 {
    let hook = Tc::new(&context);
    masquerade::leaving_error(way::by_family(&hook, error::Egress)).tc(&hook)
}

/// [`portfwd_common::Stage::LinkTooBig`].
#[classifier]
pub fn tc_link_too_big(context: TcContext) -> i32 {
    let hook = Tc::new(&context);
    way::by_family(&hook, too_big::Link).tc(&hook)
}

/// [`portfwd_common::Stage::Drain`].
#[classifier]
pub fn tc_drain(context: TcContext) -> i32 {
    drain::search().tc(&Tc::new(&context))
}

/// [`portfwd_common::Stage::MasqueradeOut`].
#[classifier]
pub fn tc_masquerade_out(context: TcContext) -> i32 {
    let hook = Tc::new(&context);
    masquerade::out(&hook).tc(&hook)
}

/// [`portfwd_common::Stage::MasqueradeIn`].
#[classifier]
pub fn tc_masquerade_in(context: TcContext) -> i32 {
    let hook = Tc::new(&context);
    masquerade::back(&hook).tc(&hook)
}

/// [`portfwd_common::Stage::MasqueradeOutError`].
#[classifier]
pub fn tc_masquerade_out_error(context: TcContext) -> i32 {
    let hook = Tc::new(&context);
    way::by_family(&hook, masquerade::error::Out).tc(&hook)
}

/// [`portfwd_common::Stage::MasqueradeInError`].
#[classifier]
pub fn tc_masquerade_in_error(context: TcContext) -> i32 {
    let hook = Tc::new(&context);
    way::by_family(&hook, masquerade::error::Back).tc(&hook)
}

/// The same at devices that carry IP packets without an Ethernet header.
mod l3 {
    use super::*;

    macro_rules! program {
        ($name:ident, |$hook:ident| $verdict:expr) => {
            #[classifier]
            pub fn $name(context: TcContext) -> i32 {
                let $hook = Tc::without_frame(&context);
                $verdict.tc(&$hook)
            }
        };
    }

    program!(tc_device_l3, |hook| way::by_family(&hook, way::Device));
    program!(tc_egress_l3, |hook| masquerade::leaving(
        &hook,
        way::by_family(&hook, way::Egress)
    ));
    program!(tc_loopback_l3, |hook| way::by_family(
        &hook,
        loopback::Inside
    ));
    program!(tc_device_first_l3, |hook| masquerade::coming_back(
        &hook,
        way::by_family(&hook, first::Device)
    ));
    program!(tc_device_fragment_l3, |hook| masquerade::coming_back(
        &hook,
        way::by_family(&hook, first::DeviceFragment)
    ));
    program!(tc_egress_first_l3, |hook| masquerade::leaving(
        &hook,
        way::by_family(&hook, first::Egress)
    ));
    program!(tc_device_error_l3, |hook| masquerade::coming_back_error(
        &hook,
        way::by_family(&hook, error::Device)
    ));
    program!(tc_egress_error_l3, |hook| masquerade::leaving_error(
        way::by_family(&hook, error::Egress)
    ));
    program!(tc_drain_l3, |hook| drain::search());
    program!(tc_masquerade_out_l3, |hook| masquerade::out(&hook));
    program!(tc_masquerade_in_l3, |hook| masquerade::back(&hook));
    program!(tc_masquerade_out_error_l3, |hook| way::by_family(
        &hook,
        masquerade::error::Out
    ));
    program!(tc_masquerade_in_error_l3, |hook| way::by_family(
        &hook,
        masquerade::error::Back
    ));
}

/// A device on which the host owns an address, before there is an skb.
#[xdp]
pub fn xdp_device(context: XdpContext) -> u32 {
    let hook = Xdp::new(&context);
    way::by_family(&hook, way::EarlyDevice).xdp(&hook)
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // The linker removes this: no program can panic (`cargo xtask ebpf` checks it).
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
