//! Chains of the host's firewall, as far as they may deny packets that come from outside or go through the host. What
//! portfwd redirects passes them by: its programs are met before them.
//!
//! A chain counts if its policy is to drop, or if it leads to a rule that drops, rejects or queues packets that can come
//! to a published port. Chains of the family bridge are left out.

use std::fmt;
use std::net::SocketAddr;

use portfwd_common::net::Protocol;

use super::region::Families;
use super::sought::{Hook, Root};
use super::walk::Taken;
use super::{ForeignError, family, legacy, nftables, rules_of};
use crate::collision::{Family, Place, Rule, WholeChain};
use crate::observe::netns::Netns;

/// A chain that packets enter by and that may deny them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FirewallChain {
    /// Where it is.
    pub place: Place,
    /// Where packets enter it.
    pub hook: Hook,
    /// The packets that it may deny.
    pub family: Family,
    /// Whether its policy is to drop, rather than that rules deny.
    pub drops: bool,
    /// The rules that deny, if the policy does not.
    pub rules: Vec<Rule>,
    /// The devices that it is limited to; none: it is not.
    pub devices: Vec<String>,
}

/// Every such chain of the namespace.
///
/// # Errors
/// As [`super::rules`].
pub fn firewall(host: &Netns) -> Result<Vec<FirewallChain>, ForeignError> {
    host.run_in(|| {
        let mut all = nftables::firewall_here()?;
        all.extend(legacy::firewall_here()?);
        Ok(all)
    })?
}

impl FirewallChain {
    /// None if the chain denies nothing: `taken` is what rules below it do, `families` all that comes to it.
    pub(super) fn of(
        root: &Root,
        place: Place,
        families: Families,
        taken: &[Taken],
    ) -> Option<Self> {
        let mut denied = root.drops.then_some(families);
        let mut rules = Vec::new();
        let regions = taken.iter().flat_map(|taken| &taken.regions);
        for region in regions.filter(|_| !root.drops) {
            let of_region = rules_of(region, &place);
            if !of_region.is_empty() {
                let others = denied.unwrap_or(region.families);
                denied = Some(others.union(region.families));
                rules.extend(of_region);
            }
        }
        Some(Self {
            place,
            hook: root.hook,
            family: family(denied?),
            drops: root.drops,
            rules,
            devices: root.devices.clone(),
        })
    }

    /// Whether it may deny packets of a family that come in by that device.
    #[must_use]
    pub fn is_for(&self, is_v4: bool, device: Option<&str>) -> bool {
        let of_family = match self.family {
            Family::V4 => is_v4,
            Family::V6 => !is_v4,
            Family::Both => true,
        };
        let by_device =
            |device| self.devices.is_empty() || self.devices.iter().any(|own| own == device);
        of_family && device.is_none_or(by_device)
    }

    /// Whether it may deny packets of its family to that address and port.
    #[must_use]
    pub fn may_deny(&self, protocol: Protocol, to: SocketAddr) -> bool {
        let by_rule = |rule: &Rule| {
            let mut ports = rule.ports.iter();
            rule.looks_at(protocol, to.ip()) && ports.any(|ports| ports.contains(to.port()))
        };
        self.drops || self.rules.iter().any(by_rule)
    }
}

impl fmt::Display for FirewallChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self.drops {
            true => "policy drop",
            false => "rules that deny",
        };
        write!(f, "{} ({why})", WholeChain(&self.place))
    }
}

#[cfg(test)]
mod tests {
    use super::super::intervals::Intervals;
    use super::super::region::{Field, Region};
    use super::*;

    fn chain(drops: bool, devices: &[&str], denied: &[Families]) -> Option<FirewallChain> {
        let regions = denied.iter().map(|families| Region::all(*families));
        chain_of(drops, devices, regions.collect())
    }

    fn chain_of(drops: bool, devices: &[&str], regions: Vec<Region>) -> Option<FirewallChain> {
        let root = Root {
            chain: "in".to_owned(),
            hook: Hook::Input,
            drops,
            devices: devices.iter().map(|name| (*name).to_owned()).collect(),
        };
        let place = Place::Nftables {
            family: "inet",
            table: "fw".to_owned(),
            chain: root.chain.clone(),
        };
        let taken = Taken {
            chain: "deeper".to_owned(),
            regions,
        };
        FirewallChain::of(&root, place, Families::BOTH, &[taken])
    }

    #[test]
    fn a_chain_that_denies_nothing_is_none() {
        assert_eq!(chain(false, &[], &[]), None);
        let by_policy = chain(true, &[], &[]).unwrap();
        assert_eq!(
            by_policy.to_string(),
            "nftables chain: table inet fw, chain in (policy drop)"
        );
        let by_rules = chain(false, &[], &[Families::V6]).unwrap();
        assert_eq!(
            by_rules.to_string(),
            "nftables chain: table inet fw, chain in (rules that deny)"
        );
    }

    #[test]
    fn a_chain_is_for_the_families_and_devices_that_it_denies() {
        let v6 = chain(false, &[], &[Families::V6]).unwrap();
        assert!(v6.is_for(false, None) && !v6.is_for(true, None));
        let two_rules = chain(false, &[], &[Families::V6, Families::V4]).unwrap();
        assert!(two_rules.is_for(false, Some("eth0")) && two_rules.is_for(true, Some("eth0")));
        let limited = chain(true, &["eth1"], &[Families::V6]).unwrap();
        assert!(limited.is_for(true, Some("eth1")) && limited.is_for(true, None));
        assert!(!limited.is_for(true, Some("eth0")));
    }

    #[test]
    fn what_rules_deny_is_looked_at_as_far_as_it_is_understood() {
        let region = |conditions: &[(Field, Intervals)]| {
            let mut region = Region::all(Families::V4);
            for condition in conditions {
                region = region.narrowed(condition).unwrap();
            }
            region
        };
        let tcp = (Field::Protocol, Intervals::single(6));
        let port = (Field::Port, Intervals::single(8080));
        let one = chain_of(false, &[], vec![region(&[tcp, port])]).unwrap();
        let to = |text: &str| text.parse().unwrap();
        assert!(one.may_deny(Protocol::Tcp, to("192.0.2.1:8080")));
        assert!(!one.may_deny(Protocol::Udp, to("192.0.2.1:8080")));
        assert!(!one.may_deny(Protocol::Tcp, to("192.0.2.1:8081")));
        let pings = (Field::Protocol, Intervals::single(1));
        assert_eq!(chain_of(false, &[], vec![region(&[pings])]), None);
        let policy = chain(true, &[], &[]).unwrap();
        assert!(policy.may_deny(Protocol::Udp, to("[2001:db8::1]:9")));
    }
}
