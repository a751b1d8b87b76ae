//! Chains, of which the hooked ones matter: where packets enter a table.

use super::super::region::Families;
use super::super::sought::{Hook, Root, Sought};
use super::super::wire::{Malformed, name};
use super::attribute::{attributes, number, pick};
use super::verdict::denies;
use crate::collision::Place;

/// NFPROTO_INET, NFPROTO_IPV4, NFPROTO_NETDEV and NFPROTO_IPV6 of `include/uapi/linux/netfilter.h`.
const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_NETDEV: u8 = 5;
const NFPROTO_IPV6: u8 = 10;

/// `enum nft_chain_attributes`.
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
/// `enum nft_hook_attributes`. There is one device, or a list of NFTA_DEVICE_NAMEs.
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_DEV: u16 = 3;
const NFTA_HOOK_DEVS: u16 = 4;
/// NF_NETDEV_INGRESS of `include/uapi/linux/netfilter.h`.
const NF_NETDEV_INGRESS: u32 = 0;

/// A table with chains in which packets may meet what is looked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Table {
    /// NFPROTO number.
    pub(super) family: u8,
    pub(super) name: String,
    /// Those chains.
    pub(super) roots: Vec<Root>,
}

impl Table {
    /// Whether both are the same one.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.family == other.family && self.name == other.name
    }

    /// The packets that go through it.
    pub(super) fn families(&self) -> Families {
        match self.family {
            NFPROTO_IPV4 => Families::V4,
            NFPROTO_IPV6 => Families::V6,
            _ => Families::BOTH,
        }
    }

    /// A chain of it.
    pub(super) fn place(&self, chain: String) -> Place {
        Place::Nftables {
            family: self.family_name(),
            table: self.name.clone(),
            chain,
        }
    }

    /// As `nft` writes the family.
    pub(super) fn family_name(&self) -> &'static str {
        match self.family {
            NFPROTO_IPV4 => "ip",
            NFPROTO_IPV6 => "ip6",
            NFPROTO_NETDEV => "netdev",
            _ => "inet",
        }
    }
}

/// The chain that NFT_MSG_NEWCHAIN tells of and its table, which has no roots yet; None if what is sought is not met
/// there.
pub(super) fn base_chain(
    sought: Sought,
    family: u8,
    attributes: &[u8],
) -> Result<Option<(Table, Root)>, Malformed> {
    let [table, chain, hook, policy, kind] = pick(
        attributes,
        [
            NFTA_CHAIN_TABLE,
            NFTA_CHAIN_NAME,
            NFTA_CHAIN_HOOK,
            NFTA_CHAIN_POLICY,
            NFTA_CHAIN_TYPE,
        ],
    )?;
    let (Some(hook), Some(kind)) = (hook, kind) else {
        return Ok(None);
    };
    let [number_of_hook, device, devices] =
        pick(hook, [NFTA_HOOK_HOOKNUM, NFTA_HOOK_DEV, NFTA_HOOK_DEVS])?;
    let hook = number(number_of_hook)?.and_then(|number| hook_of(family, number));
    let Some(hook) = hook.filter(|hook| sought.is_met_at(*hook)) else {
        return Ok(None);
    };
    if sought == Sought::Destinations && name(kind) != "nat" {
        return Ok(None);
    }
    let table = Table {
        family,
        name: name(table.ok_or(Malformed::Short("a chain"))?).into_owned(),
        roots: Vec::new(),
    };
    let root = Root {
        chain: name(chain.ok_or(Malformed::Short("a chain"))?).into_owned(),
        hook,
        drops: number(policy)?.is_some_and(|policy| denies(policy.cast_signed())),
        devices: match device {
            Some(device) => vec![name(device).into_owned()],
            None => names(devices.unwrap_or_default())?,
        },
    };
    Ok(Some((table, root)))
}

fn hook_of(family: u8, number: u32) -> Option<Hook> {
    match family {
        NFPROTO_INET | NFPROTO_IPV4 | NFPROTO_IPV6 => Hook::of_inet(number),
        NFPROTO_NETDEV => (number == NF_NETDEV_INGRESS).then_some(Hook::Ingress),
        _ => None,
    }
}

fn names(list: &[u8]) -> Result<Vec<String>, Malformed> {
    let names = attributes(list).map(|one| Ok(name(one?.1).into_owned()));
    names.collect()
}

#[cfg(test)]
mod tests {
    use super::super::properties::attribute;
    use super::*;

    /// What the kernel tells of a chain at a hook.
    fn chain(hook: u32, more_of_hook: &[u8], policy: Option<u32>, kind: &str) -> Vec<u8> {
        let hook = [attribute(1, &hook.to_be_bytes()), more_of_hook.to_vec()].concat();
        let policy = policy.map(|policy| attribute(5, &policy.to_be_bytes()));
        [
            attribute(1, b"fw\0"),
            attribute(3, b"in\0"),
            attribute(4, &hook),
            policy.unwrap_or_default(),
            attribute(7, format!("{kind}\0").as_bytes()),
        ]
        .concat()
    }

    fn root(sought: Sought, family: u8, chain: &[u8]) -> Option<Root> {
        let found = base_chain(sought, family, chain).expect("a chain");
        found.map(|(_, root)| root)
    }

    #[test]
    fn what_is_looked_for_says_at_which_hooks_and_in_which_families() {
        for (family, number, hook) in [
            (NFPROTO_IPV4, 0, Some(Hook::Prerouting)),
            (NFPROTO_IPV6, 1, Some(Hook::Input)),
            (NFPROTO_INET, 2, Some(Hook::Forward)),
            (NFPROTO_INET, 3, None),
            (NFPROTO_INET, 4, None),
            (NFPROTO_INET, 5, Some(Hook::Ingress)),
            (NFPROTO_NETDEV, 0, Some(Hook::Ingress)),
            (NFPROTO_NETDEV, 1, None),
            // NFPROTO_BRIDGE and NFPROTO_ARP.
            (7, 1, None),
            (3, 1, None),
        ] {
            let found = root(Sought::Denials, family, &chain(number, &[], None, "filter"));
            assert_eq!(found.map(|root| root.hook), hook, "{family} {number}");
        }
        let nat = |number, kind| {
            let chain = chain(number, &[], None, kind);
            root(Sought::Destinations, NFPROTO_IPV4, &chain).is_some()
        };
        assert!(nat(0, "nat") && nat(3, "nat"));
        assert!(!nat(0, "filter") && !nat(1, "nat"));
    }

    #[test]
    fn a_policy_and_devices_are_told_with_the_chain() {
        let of = |more: &[u8], policy| {
            let chain = chain(0, more, policy, "filter");
            root(Sought::Denials, NFPROTO_NETDEV, &chain).expect("a root")
        };
        assert!(of(&[], Some(0)).drops);
        assert!(!of(&[], Some(1)).drops && !of(&[], None).drops);
        assert_eq!(of(&attribute(3, b"eth0\0"), None).devices, ["eth0"]);
        let list = [attribute(1, b"eth0\0"), attribute(1, b"eth1\0")].concat();
        assert_eq!(of(&attribute(4, &list), None).devices, ["eth0", "eth1"]);
    }

    #[test]
    fn a_chain_that_is_cut_short_is_refused() {
        let whole = chain(1, &[], Some(0), "filter");
        let hook = attribute(4, &attribute(1, &1u32.to_be_bytes()));
        let kind = attribute(7, b"filter\0");
        for bytes in [
            &whole[..whole.len() - 9],
            &[hook.clone(), kind.clone()].concat(),
            &[attribute(1, b"fw\0"), hook, kind.clone()].concat(),
            &[attribute(4, &attribute(1, &[0, 1])), kind].concat(),
        ] {
            let read = base_chain(Sought::Denials, NFPROTO_INET, bytes);
            assert!(matches!(read, Err(Malformed::Short(_))), "{read:?}");
        }
    }
}
