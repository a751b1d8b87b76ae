//! A table of ip_tables or ip6_tables, as IPT_SO_GET_ENTRIES gives it: entries one after the other, each an
//! IP header to compare with, matches and a target (`include/uapi/linux/netfilter_ipv4/ip_tables.h`,
//! `netfilter_ipv6/ip6_tables.h`, `netfilter/x_tables.h`).

use std::borrow::Cow;
use std::collections::HashMap;

use super::super::intervals::Intervals;
use super::super::region::{Condition, Families, Field, Region};
use super::super::sought::{Hook, Root, Sought};
use super::super::walk::{Action, Step};
use super::super::wire::{Malformed, array, big_endian, bytes, host_u16, host_u32, name};
use super::super::xtables;

/// XT_TABLE_MAXNAMELEN.
pub(super) const NAME_LENGTH: usize = 32;
/// `struct ipt_getinfo`: name, valid_hooks, five hook_entry, five underflow, num_entries, size.
pub(super) const INFO_LENGTH: usize = 84;
/// Where the entries begin in `struct ipt_get_entries`, aligned as their counters are.
pub(super) const ENTRIES_HEADER: usize = 40;

/// Names of the chains at the hooks of `enum nf_inet_hooks` of `include/uapi/linux/netfilter.h`.
const HOOKS: [&str; ALL_HOOKS] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
/// NF_INET_NUMHOOKS.
const ALL_HOOKS: usize = 5;
/// NF_DROP and NF_QUEUE as a standard target has them: `-verdict - 1` (`ipt_do_table`).
const DENIALS: [i32; 2] = [-1, -4];
/// Name of the target with which a chain begins (XT_ERROR_TARGET): the chain's name follows.
const CHAIN_HEAD: &str = "ERROR";
/// `struct xt_entry_match` and `xt_entry_target` before their data: size, name of 29 bytes, revision.
const EXTENSION_HEADER: usize = 32;
/// IPT_INV_DSTIP and XT_INV_PROTO of `invflags`.
const INVERTED_ADDRESS: u8 = 0x10;
const INVERTED_PROTOCOL: u8 = 0x40;

/// Where things are in an entry.
struct Layout {
    address_field: Field,
    address_length: usize,
    /// The destination address and its mask.
    destination: usize,
    mask: usize,
    protocol: usize,
    invflags: usize,
    /// `target_offset`, with `next_offset` after it.
    offsets: usize,
    /// Length of the entry before its matches.
    header: usize,
}

/// `struct ipt_entry`, with `struct ipt_ip` in front.
const V4: Layout = Layout {
    address_field: Field::AddressV4,
    address_length: 4,
    destination: 4,
    mask: 12,
    protocol: 80,
    invflags: 83,
    offsets: 88,
    header: 112,
};

/// `struct ip6t_entry`, with `struct ip6t_ip6` in front.
const V6: Layout = Layout {
    address_field: Field::AddressV6,
    address_length: 16,
    destination: 16,
    mask: 48,
    protocol: 128,
    invflags: 132,
    offsets: 140,
    header: 168,
};

/// What the kernel says of a table before it gives the entries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Info {
    /// Offsets of the built-in chains that packets enter by, and of their policies, which are their last rules.
    entries: Vec<BuiltIn>,
    /// Every offset at which a built-in chain begins.
    heads: Vec<u32>,
    /// Length of the entries.
    pub(super) size: u32,
}

/// A built-in chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct BuiltIn {
    name: &'static str,
    hook: Hook,
    first: u32,
    policy: u32,
}

impl Info {
    /// From `struct ipt_getinfo`.
    pub(super) fn parse(sought: Sought, info: &[u8]) -> Result<Self, Malformed> {
        let word = |place: usize| host_u32(info, NAME_LENGTH + 4 * place, "ipt_getinfo");
        let valid = word(0)?;
        let size = word(2 * ALL_HOOKS + 2)?;
        let mut entries = Vec::new();
        let mut heads = Vec::new();
        for (number, name) in HOOKS.into_iter().enumerate() {
            if valid & (1 << number) == 0 {
                continue;
            }
            let first = word(1 + number)?;
            let policy = word(1 + ALL_HOOKS + number)?;
            heads.push(first);
            let hook = Hook::of_inet(number as u32).filter(|hook| sought.is_met_at(*hook));
            entries.extend(hook.map(|hook| BuiltIn {
                name,
                hook,
                first,
                policy,
            }));
        }
        Ok(Self {
            entries,
            heads,
            size,
        })
    }
}

/// A table's chains by name.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) chains: HashMap<String, Vec<Step>>,
    /// The chains that packets enter by.
    pub(super) roots: Vec<Root>,
}

impl Table {
    /// From the entries.
    pub(super) fn parse(
        sought: Sought,
        families: Families,
        info: &Info,
        blob: &[u8],
    ) -> Result<Self, Malformed> {
        let layout = if families.v4 { &V4 } else { &V6 };
        let entries = entries(layout, blob)?;
        let names = names(info, &entries);
        let mut table = Self {
            chains: HashMap::new(),
            roots: Vec::new(),
        };
        for built_in in &info.entries {
            let policy = entries.iter().find(|entry| entry.offset == built_in.policy);
            table.roots.push(Root {
                chain: built_in.name.to_owned(),
                hook: built_in.hook,
                drops: policy.map_or(Ok(false), Entry::is_denial)?,
                devices: Vec::new(),
            });
        }
        let mut chain: Option<&String> = None;
        for entry in &entries {
            if entry.target == CHAIN_HEAD {
                // A user's chain goes by the offset of its first rule.
                chain = None;
                continue;
            }
            if info.heads.contains(&entry.offset) || names.contains_key(&entry.offset) {
                chain = names.get(&entry.offset);
            }
            if let Some(chain) = chain
                && let Some(step) = entry.step(sought, layout, families, &names)?
            {
                table.chains.entry(chain.clone()).or_default().push(step);
            }
        }
        Ok(table)
    }
}

/// Offsets of first rules, with the names of the chains.
fn names(info: &Info, entries: &[Entry<'_>]) -> HashMap<u32, String> {
    let built_in = info.entries.iter();
    let mut names: HashMap<u32, String> = built_in
        .map(|chain| (chain.first, chain.name.to_owned()))
        .collect();
    let users = entries.iter().filter(|entry| entry.target == CHAIN_HEAD);
    names.extend(users.map(|head| (head.next, name(head.target_data).into_owned())));
    names
}

/// One entry.
struct Entry<'a> {
    offset: u32,
    /// Offset of the one after it.
    next: u32,
    bytes: &'a [u8],
    /// Where its matches end.
    target_offset: usize,
    target: Cow<'a, str>,
    target_data: &'a [u8],
}

fn entries<'a>(layout: &Layout, blob: &'a [u8]) -> Result<Vec<Entry<'a>>, Malformed> {
    let mut found = Vec::new();
    let mut offset = 0;
    while offset < blob.len() {
        let entry = Entry::parse(layout, blob, offset)?;
        offset = entry.next as usize;
        found.push(entry);
    }
    Ok(found)
}

impl<'a> Entry<'a> {
    fn parse(layout: &Layout, blob: &'a [u8], offset: usize) -> Result<Self, Malformed> {
        let rest = blob.get(offset..).unwrap_or_default();
        let target_offset = host_u16(rest, layout.offsets, "an entry")?;
        let length = host_u16(rest, layout.offsets + 2, "an entry")?;
        let bytes = bytes(rest, 0..length.into(), "an entry")?;
        if usize::from(target_offset) < layout.header {
            return Err(Malformed::Number("target_offset", target_offset.into()));
        }
        let target = Extension::parse(bytes, target_offset.into())?;
        let place = |number: usize| {
            u32::try_from(number).map_err(|_| Malformed::Number("an offset", number as u64))
        };
        Ok(Self {
            offset: place(offset)?,
            next: place(offset + bytes.len())?,
            bytes,
            target_offset: target_offset.into(),
            target: target.name,
            target_data: target.data,
        })
    }

    /// None if it takes no packets and sends none into a chain.
    fn step(
        &self,
        sought: Sought,
        layout: &Layout,
        families: Families,
        names: &HashMap<u32, String>,
    ) -> Result<Option<Step>, Malformed> {
        let Some(action) = self.action(sought, names)? else {
            return Ok(None);
        };
        let mut region = Some(Region::all(families));
        for condition in self.conditions(layout)? {
            region = region.and_then(|region| region.narrowed(&condition));
        }
        Ok(region.map(|region| Step {
            regions: vec![region],
            action,
        }))
    }

    /// A standard target, which has no name, has a verdict: the offset of a chain's first rule, or something
    /// negative to accept, drop or return. The offset of the entry that follows means that there is no
    /// target.
    fn action(
        &self,
        sought: Sought,
        names: &HashMap<u32, String>,
    ) -> Result<Option<Action>, Malformed> {
        if !self.target.is_empty() {
            return Ok(sought.is_target(&self.target).then_some(Action::Take));
        }
        if self.is_denial()? {
            return Ok((sought == Sought::Denials).then_some(Action::Take));
        }
        let verdict = host_u32(self.target_data, 0, "a verdict")?;
        let chain = names.get(&verdict).filter(|_| verdict != self.next);
        Ok(chain.map(|chain| Action::Enter(chain.clone())))
    }

    /// Whether its target is standard, and denies.
    fn is_denial(&self) -> Result<bool, Malformed> {
        if !self.target.is_empty() {
            return Ok(false);
        }
        let verdict = host_u32(self.target_data, 0, "a verdict")?;
        Ok(DENIALS.contains(&verdict.cast_signed()))
    }

    fn conditions(&self, layout: &Layout) -> Result<Vec<Condition>, Malformed> {
        let [inverted] = array(self.bytes, layout.invflags, "an entry")?;
        let protocol = host_u16(self.bytes, layout.protocol, "an entry")?;
        let mut conditions = Vec::new();
        if protocol != 0 {
            let values = Intervals::single(protocol.into());
            conditions.push(either(
                Field::Protocol,
                values,
                inverted & INVERTED_PROTOCOL != 0,
            ));
        }
        if let Some(addresses) = self.addresses(layout)? {
            let inverted = inverted & INVERTED_ADDRESS != 0;
            conditions.push(either(layout.address_field, addresses, inverted));
        }
        let mut at = layout.header;
        while at < self.target_offset {
            let one = Extension::parse(&self.bytes[..self.target_offset], at)?;
            conditions.extend(xtables::condition(&one.name, one.revision, one.data)?);
            at += one.length;
        }
        Ok(conditions)
    }

    /// None if its mask is no prefix.
    fn addresses(&self, layout: &Layout) -> Result<Option<Intervals>, Malformed> {
        let number = |at: usize| {
            let range = at..at + layout.address_length;
            Ok(big_endian(bytes(self.bytes, range, "an address")?).unwrap_or_default())
        };
        let (address, mask) = (number(layout.destination)?, number(layout.mask)?);
        Ok(Intervals::masked(
            address,
            mask,
            layout.address_field.bits(),
        ))
    }
}

fn either(field: Field, values: Intervals, inverted: bool) -> Condition {
    if inverted {
        (field, values.complement(field.max()))
    } else {
        (field, values)
    }
}

/// A match or a target.
struct Extension<'a> {
    length: usize,
    name: Cow<'a, str>,
    revision: u32,
    data: &'a [u8],
}

impl<'a> Extension<'a> {
    fn parse(entry: &'a [u8], at: usize) -> Result<Self, Malformed> {
        let length = host_u16(entry, at, "a match or target")?;
        if usize::from(length) < EXTENSION_HEADER {
            return Err(Malformed::Number(
                "length of a match or target",
                length.into(),
            ));
        }
        let all = bytes(entry, at..at + usize::from(length), "a match or target")?;
        Ok(Self {
            length: length.into(),
            name: name(&all[2..EXTENSION_HEADER - 1]),
            revision: all[EXTENSION_HEADER - 1].into(),
            data: &all[EXTENSION_HEADER..],
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An entry of ip_tables with a target, and matches before it.
    fn entry(target: &str, data: &[u8], matches: &[u8]) -> Vec<u8> {
        let target = extension(target, 0, data);
        let target_offset = V4.header + matches.len();
        let next = target_offset + target.len();
        let mut entry = vec![0; V4.header];
        entry[V4.offsets..V4.offsets + 2].copy_from_slice(&(target_offset as u16).to_ne_bytes());
        entry[V4.offsets + 2..V4.offsets + 4].copy_from_slice(&(next as u16).to_ne_bytes());
        entry.extend(matches);
        entry.extend(target);
        entry
    }

    fn extension(name: &str, revision: u8, data: &[u8]) -> Vec<u8> {
        let length = (EXTENSION_HEADER + data.len()) as u16;
        let mut all = length.to_ne_bytes().to_vec();
        all.extend(name.bytes());
        all.resize(EXTENSION_HEADER - 1, 0);
        all.push(revision);
        all.extend(data);
        all
    }

    /// PREROUTING with the entries up to `size`, and nothing else.
    fn info(size: usize) -> Info {
        info_with(size, 0)
    }

    /// The same with the policy at an offset.
    fn info_with(size: usize, policy: u32) -> Info {
        Info {
            entries: vec![BuiltIn {
                name: "PREROUTING",
                hook: Hook::Prerouting,
                first: 0,
                policy,
            }],
            heads: vec![0],
            size: size as u32,
        }
    }

    /// A jump from PREROUTING into `A`, which redirects tcp to two ports.
    fn blob() -> Vec<u8> {
        let verdict = |number: i32| number.to_ne_bytes();
        let length = |entries: &[&Vec<u8>]| entries.iter().map(|entry| entry.len()).sum::<usize>();
        let back = entry("", &verdict(-5), &[]);
        let mut head_name = b"A".to_vec();
        head_name.resize(32, 0);
        let head = entry(CHAIN_HEAD, &head_name, &[]);
        let start = length(&[&back, &back, &head]);
        let jump = entry("", &verdict(start as i32), &[]);
        let mut ports = [0; 12];
        ports[4..6].copy_from_slice(&80u16.to_ne_bytes());
        ports[6..8].copy_from_slice(&81u16.to_ne_bytes());
        let mut redirect = entry("REDIRECT", &[0; 16], &extension("tcp", 0, &ports));
        redirect[V4.protocol..V4.protocol + 2].copy_from_slice(&6u16.to_ne_bytes());
        [jump, back.clone(), head, redirect, back].concat()
    }

    #[test]
    fn a_jump_leads_to_the_chain_that_has_its_first_rule_there() {
        let blob = blob();
        let table =
            Table::parse(Sought::Destinations, Families::V4, &info(blob.len()), &blob).unwrap();
        assert_eq!(table.roots[0].chain, "PREROUTING");
        let [step] = table.chains["PREROUTING"].as_slice() else {
            panic!("{table:?}");
        };
        assert_eq!(step.action, Action::Enter("A".to_owned()));
        let [step] = table.chains["A"].as_slice() else {
            panic!("{table:?}");
        };
        assert_eq!(step.action, Action::Take);
        assert_eq!(step.regions[0].ports, Intervals::range(80, 81));
        assert_eq!(step.regions[0].protocols, Intervals::single(6));
    }

    #[test]
    fn what_denies_is_a_verdict_or_a_target_and_the_last_of_them_the_policy() {
        let standard = |verdict: i32| entry("", &verdict.to_ne_bytes(), &[]);
        let denials = |rule: Vec<u8>, policy: i32| {
            let at = rule.len() as u32;
            let blob = [rule, standard(policy)].concat();
            let info = info_with(blob.len(), at);
            let table = Table::parse(Sought::Denials, Families::V4, &info, &blob).unwrap();
            let steps = table.chains.get("PREROUTING").map_or(0, Vec::len);
            (steps, table.roots[0].drops)
        };
        // NF_ACCEPT, NF_DROP and NF_QUEUE are -2, -1 and -4; XT_RETURN is -5.
        assert_eq!(denials(standard(-2), -2), (0, false));
        assert_eq!(denials(standard(-5), -2), (0, false));
        assert_eq!(denials(entry("LOG", &[0; 32], &[]), -2), (0, false));
        assert_eq!(denials(standard(-2), -1), (1, true));
        assert_eq!(denials(standard(-1), -2), (1, false));
        assert_eq!(denials(standard(-4), -2), (1, false));
        assert_eq!(denials(entry("REJECT", &[0; 4], &[]), -2), (1, false));
    }

    #[test]
    fn a_table_that_is_cut_short_is_refused() {
        let blob = blob();
        for length in 1..blob.len() {
            let whole = entries(&V4, &blob).unwrap();
            let at_an_entry = whole.iter().any(|entry| entry.offset as usize == length);
            let parsed = Table::parse(
                Sought::Destinations,
                Families::V4,
                &info(length),
                &blob[..length],
            );
            assert_eq!(parsed.is_ok(), at_an_entry, "{length}");
        }
        assert!(Info::parse(Sought::Denials, &[0; INFO_LENGTH - 1]).is_err());
    }

    #[test]
    fn a_match_without_length_is_refused() {
        let odd = entry("", &[0; 4], &[0; EXTENSION_HEADER]);
        let jump = odd.len() as i32;
        let mut blob = odd;
        let verdict = blob.len() - 4;
        blob[verdict..].copy_from_slice(&0i32.to_ne_bytes());
        let parsed = Table::parse(
            Sought::Destinations,
            Families::V4,
            &info(jump as usize),
            &blob,
        );
        let length = Malformed::Number("length of a match or target", 0);
        assert_eq!(parsed.unwrap_err(), length);
    }

    proptest! {
        #[test]
        fn random_bytes_are_read_or_refused(bytes in prop::collection::vec(0..=u8::MAX, 0..400)) {
            for (sought, families) in [
                (Sought::Destinations, Families::V4),
                (Sought::Denials, Families::V6),
            ] {
                let _ = Info::parse(sought, &bytes);
                let _ = Table::parse(sought, families, &info(bytes.len()), &bytes);
            }
        }

        #[test]
        fn a_table_with_odd_bytes_is_read_or_refused(
            places in prop::collection::vec((0usize..900, 0..=u8::MAX), 1..6)
        ) {
            let mut blob = blob();
            for (place, byte) in places {
                let length = blob.len();
                blob[place % length] = byte;
            }
            for sought in [Sought::Destinations, Sought::Denials] {
                let _ = Table::parse(sought, Families::V4, &info(blob.len()), &blob);
            }
        }
    }
}
