//! Which chains of the host's firewall a packet meets that comes to a published port, and which not.

use std::net::SocketAddr;

use portfwd_common::net::Protocol;

use crate::{
    error::one_line,
    observe::{
        foreign::{
            Hook,
            firewall::{self, FirewallChain},
        },
        netns::Netns,
    },
};

/// Where a packet comes to, and goes to.
pub(super) struct Way<'a> {
    pub(super) protocol: Protocol,
    pub(super) to: SocketAddr,
    /// The container's address and port.
    pub(super) target: SocketAddr,
    pub(super) device: Option<&'a str>,
}

/// What a packet that is redirected passes by.
pub(super) fn passed_by(host: &Netns, way: &Way<'_>) -> String {
    const BY: &str = "it passes the host's stack by";
    // What forwards it would do so after somebody else's DNAT.
    let destination = |hook| match hook {
        Hook::Forward => way.target,
        _ => way.to,
    };
    match chains(host, way, destination) {
        Err(why) => {
            format!("{BY}; whether rules of a firewall deny it there cannot be seen: {why}")
        }
        Ok(chains) if chains.is_empty() => format!(
            "{BY}, where no rule denies such packets at ingress, prerouting, input or forward"
        ),
        Ok(chains) => format!("{BY}; these do not see it: {}", shown(&chains)),
    }
}

/// What one meets that goes on with the container's address, and what it does not, as it is not for the host any more.
pub(super) fn met(host: &Netns, way: &Way<'_>) -> Vec<String> {
    const THROUGH: &str = "it goes on through the host's stack, with the container's address";
    let destination = |hook| match hook {
        Hook::Input => way.to,
        _ => way.target,
    };
    let chains = match chains(host, way, destination) {
        Ok(chains) => chains,
        Err(why) => {
            return vec![format!(
                "{THROUGH}; whether rules of a firewall deny it there cannot be seen: {why}"
            )];
        }
    };
    let (unmet, met): (Vec<_>, Vec<_>) = chains
        .into_iter()
        .partition(|chain| chain.hook == Hook::Input);
    let mut notes = vec![match met.is_empty() {
        true => {
            format!("{THROUGH}; no rule denies such packets at ingress, prerouting or forward")
        }
        false => format!("{THROUGH}; these see it: {}", shown(&met)),
    }];
    if !unmet.is_empty() {
        notes.push(format!("these do not see it: {}", shown(&unmet)));
    }
    notes
}

/// The chains that may deny the packet with the destination that it has, or would have, at their hook.
fn chains(
    host: &Netns,
    way: &Way<'_>,
    destination: impl Fn(Hook) -> SocketAddr,
) -> Result<Vec<FirewallChain>, String> {
    let mut chains = firewall::firewall(host).map_err(|error| one_line(&error))?;
    chains.retain(|chain| {
        chain.is_for(way.to.is_ipv4(), way.device)
            && chain.may_deny(way.protocol, destination(chain.hook))
    });
    Ok(chains)
}

fn shown(chains: &[FirewallChain]) -> String {
    let names: Vec<String> = chains.iter().map(ToString::to_string).collect();
    names.join("; ")
}
