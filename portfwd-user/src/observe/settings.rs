//! Settings of a namespace below `/proc/sys/net` (sysctl(8)).

use std::fs;
use std::io;

use super::netns::{Netns, NetnsError};

/// How the kernel checks the source of IPv4 packets that come in by `device` of the calling thread's
/// namespace: 0 not, 1 strictly (RFC 3704, section 2.2), 2 loosely (section 2.4). The higher of two
/// settings counts (`IN_DEV_RPFILTER`). 0 for a device that is gone.
pub fn rp_filter_here(device: &str) -> u8 {
    let of = |device| number(&format!("ipv4/conf/{device}/rp_filter"));
    let higher = of("all").max(of(device)).unwrap_or(0);
    u8::try_from(higher).unwrap_or(0)
}

/// Whether IPv4 packets that come in by `device` of the calling thread's namespace are forwarded.
pub fn forwards_v4_here(device: &str) -> bool {
    number(&format!("ipv4/conf/{device}/forwarding")) == Some(1)
}

/// What a namespace does with IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V6 {
    /// Whether it is switched off.
    pub disabled: bool,
    /// Whether it forwards.
    pub forwards: bool,
}

/// What the namespace does with IPv6; None where the kernel has none.
///
/// # Errors
/// When the namespace cannot be entered.
pub fn v6(netns: &Netns) -> Result<Option<V6>, NetnsError> {
    netns.run_in(|| {
        let forwarding = number("ipv6/conf/all/forwarding")?;
        Some(V6 {
            disabled: number("ipv6/conf/all/disable_ipv6") == Some(1),
            forwards: forwarding != 0,
        })
    })
}

/// Whether a new device of the calling thread's namespace can have IPv6 addresses: it starts with the
/// defaults (`ipv6_add_dev`).
pub fn new_devices_take_v6_here() -> bool {
    number("ipv6/conf/default/disable_ipv6") == Some(0)
}

/// Whether `device` of the calling thread's namespace takes routers and prefixes that others on its link
/// announce (RFC 4861, section 6.3.4), as `ipv6_accept_ra` has it.
pub fn heeds_routers_here(device: &str) -> bool {
    let of = |key: &str| number(&format!("ipv6/conf/{device}/{key}"));
    match of("accept_ra") {
        Some(1) => of("forwarding") == Some(0) && of("disable_ipv6") == Some(0),
        Some(2) => of("disable_ipv6") == Some(0),
        _ => false,
    }
}

/// The number that a setting of the calling thread's namespace has; None where there is no such setting.
fn number(key: &str) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/sys/net/{key}"));
    text.and_then(|text| text.trim().parse().map_err(io::Error::other))
        .ok()
}
