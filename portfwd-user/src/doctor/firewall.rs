//! The host's firewall, which does not see what is published past the stack.

use super::{Check, Facts, PastStack, State, Unseen, some};
use crate::observe::foreign::firewall::FirewallChain;

pub(super) fn examine(facts: &Facts) -> Check {
    const NAME: &str = "firewall";
    let published = match &facts.instance {
        Err(why) => return Check::unseen(NAME, why),
        Ok(State::Up(instance)) => instance.past_stack.as_slice(),
        Ok(State::Unusable { why, .. }) => return Check::unseen(NAME, &Unseen(why.clone())),
        Ok(State::Down) => &[],
    };
    if published.is_empty() {
        return Check::ok(NAME, "no port is published past it");
    }
    let chains = match facts.host.as_ref().map(|host| host.firewall.as_ref()) {
        Ok(Ok(chains)) => chains,
        Ok(Err(why)) | Err(why) => return Check::unseen(NAME, why),
    };
    let passes = |port: &PastStack, chain: &FirewallChain| chain.is_for(port.is_v4, None);
    let passed = chains
        .iter()
        .filter(|chain| published.iter().any(|port| passes(port, chain)));
    let passed: Vec<String> = passed.map(ToString::to_string).collect();
    if passed.is_empty() {
        return Check::ok(NAME, "it denies nothing that published ports let in");
    }
    let seen = format!("published ports pass by {}", some(&passed));
    let is_exposed =
        |port: &&PastStack| port.is_open && chains.iter().any(|chain| passes(port, chain));
    let mut open: Vec<String> = published
        .iter()
        .filter(is_exposed)
        .map(|port| port.port.clone())
        .collect();
    open.sort();
    open.dedup();
    if open.is_empty() {
        return Check::ok(NAME, format!("{seen}; all that do have --allow or --deny"));
    }
    Check::warn(
        NAME,
        seen,
        format!("whom these keep out gets in here: {}", some(&open)),
    )
    .remedy("publish with attach --allow, or on 127.0.0.1")
}
