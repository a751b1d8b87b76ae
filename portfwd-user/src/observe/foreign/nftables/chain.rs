//! Chains, of which the hooked ones matter: where packets enter a table.

use super::super::region::Families;
use super::super::wire::{Malformed, name};
use super::attribute::{number, pick};

/// NFPROTO_INET, NFPROTO_IPV4 and NFPROTO_IPV6 of `include/uapi/linux/netfilter.h`.
const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

/// `enum nft_chain_attributes`.
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_TYPE: u16 = 7;
/// Of `enum nft_hook_attributes`.
const NFTA_HOOK_HOOKNUM: u16 = 1;
/// NF_INET_PRE_ROUTING and NF_INET_LOCAL_OUT of `include/uapi/linux/netfilter.h`.
const HOOKS: [u32; 2] = [0, 3];

/// A table with chains in which packets meet destination NAT.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Table {
    /// NFPROTO number.
    pub(super) family: u8,
    pub(super) name: String,
    /// Those chains.
    pub(super) roots: Vec<String>,
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

    /// As `nft` writes the family.
    pub(super) fn family_name(&self) -> &'static str {
        match self.family {
            NFPROTO_IPV4 => "ip",
            NFPROTO_IPV6 => "ip6",
            _ => "inet",
        }
    }
}

/// The chain that NFT_MSG_NEWCHAIN tells of and its table, which has no roots yet; None if it is another
/// kind of chain.
pub(super) fn base_chain(
    family: u8,
    attributes: &[u8],
) -> Result<Option<(Table, String)>, Malformed> {
    let [table, chain, hook, kind] = pick(
        attributes,
        [
            NFTA_CHAIN_TABLE,
            NFTA_CHAIN_NAME,
            NFTA_CHAIN_HOOK,
            NFTA_CHAIN_TYPE,
        ],
    )?;
    let (Some(hook), Some(kind)) = (hook, kind) else {
        return Ok(None);
    };
    let [hook] = pick(hook, [NFTA_HOOK_HOOKNUM])?;
    let hooked = number(hook)?.is_some_and(|hook| HOOKS.contains(&hook));
    let inet = [NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6].contains(&family);
    if !hooked || !inet || name(kind) != "nat" {
        return Ok(None);
    }
    let table = Table {
        family,
        name: name(table.ok_or(Malformed::Short("a chain"))?).into_owned(),
        roots: Vec::new(),
    };
    Ok(Some((
        table,
        name(chain.ok_or(Malformed::Short("a chain"))?).into_owned(),
    )))
}
