//! Who may open connections to what is published, by the client's address.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use aya::maps::{MapError, lpm_trie::Key};
use ipnet::IpNet;
use portfwd_common::{
    forward::Forward,
    maps,
    net::Ip,
    policy::{KEY_LENGTH, MAX_RULES, POLICY_BITS, Rule, number_of_family},
};

use crate::tables::{TableError, Tables};

/// What a client's address decides.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Policy {
    /// Who may: if nobody is named, everybody else may.
    pub allow: BTreeSet<IpNet>,
    /// Who may not. Of prefixes that hold one address the longest counts, whichever it allows or denies.
    pub deny: BTreeSet<IpNet>,
    /// Whether who may not gets no answer, rather than that of a closed port.
    pub silently: bool,
}

impl Policy {
    /// Whether everybody may.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }
    /// Whether a client may.
    #[must_use]
    pub fn admits(&self, client: IpAddr) -> bool {
        let longest = |nets: &BTreeSet<IpNet>| {
            let holding = nets.iter().filter(|net| net.contains(&client));
            holding.map(IpNet::prefix_len).max()
        };
        match (longest(&self.allow), longest(&self.deny)) {
            (None, None) => self.allow.is_empty(),
            (allowed, denied) => allowed > denied,
        }
    }
    /// The same as a forward with those [`Forward::flags`] has it.
    #[must_use]
    pub fn with_flags(&self, flags: u8) -> Self {
        let silently = flags & Forward::DENIES_SILENTLY != 0;
        Self {
            silently,
            ..self.clone()
        }
    }
    /// Its part of [`Forward::flags`].
    #[must_use]
    pub fn flags(&self) -> u8 {
        let mut flags = 0;
        if !self.allow.is_empty() {
            flags |= Forward::DENIES_OTHERS;
        }
        if self.silently {
            flags |= Forward::DENIES_SILENTLY;
        }
        flags
    }
}

/// Stores the rules of policy `number`, which no forward that packets see has yet.
///
/// # Errors
/// When the table is full, or cannot be written.
pub fn store(tables: &mut Tables, number: u32, policy: &Policy) -> Result<(), TableError> {
    let allowed = policy.allow.iter().map(|net| (net, Rule::Allow));
    let denied = policy.deny.iter().map(|net| (net, Rule::Deny));
    for (net, rule) in allowed.chain(denied) {
        let inserted = tables.policies.insert(&key(number, *net), rule as u32, 0);
        inserted.map_err(|source| match &source {
            // How a trie says that it is full (`trie_update_elem`).
            MapError::SyscallError(call)
                if call.io_error.raw_os_error() == Some(nix::libc::ENOSPC) =>
            {
                TableError::Full {
                    name: maps::POLICIES,
                    capacity: MAX_RULES,
                }
            }
            _ => failed(source),
        })?;
    }
    Ok(())
}

/// Every policy that has rules, by number; whether it denies silently is the forwards' to say.
///
/// # Errors
/// When the table cannot be read.
pub fn read(tables: &Tables) -> Result<HashMap<u32, Policy>, TableError> {
    let mut policies: HashMap<u32, Policy> = HashMap::new();
    for (number, net, rule) in rules(tables)? {
        let policy = policies.entry(number).or_default();
        match rule == Rule::Allow as u32 {
            true => policy.allow.insert(net),
            false => policy.deny.insert(net),
        };
    }
    Ok(policies)
}

/// Removes the rules of all policies but those in `used`.
///
/// # Errors
/// When the table cannot be read or written.
pub fn remove_but(tables: &mut Tables, used: &BTreeSet<u32>) -> Result<(), TableError> {
    let rules = rules(tables)?.into_iter();
    for (number, net, _) in rules.filter(|(number, ..)| !used.contains(number)) {
        tables.policies.remove(&key(number, net)).map_err(failed)?;
    }
    Ok(())
}

fn rules(tables: &Tables) -> Result<Vec<(u32, IpNet, u32)>, TableError> {
    let mut rules = Vec::new();
    for entry in tables.policies.iter() {
        let (key, rule) = entry.map_err(failed)?;
        rules.extend(of_key(&key).map(|(number, net)| (number, net, rule)));
    }
    Ok(rules)
}

fn key(number: u32, net: IpNet) -> Key<[u8; KEY_LENGTH]> {
    let is_v4 = net.addr().is_ipv4();
    let mapped = if is_v4 { 96 } else { 0 };
    let mut data = [0; KEY_LENGTH];
    let (policy, address) = data.split_at_mut(4);
    policy.copy_from_slice(&number_of_family(number, is_v4).to_ne_bytes());
    address.copy_from_slice(&Ip::from(net.addr()).octets());
    Key::new(POLICY_BITS + mapped + u32::from(net.prefix_len()), data)
}

/// The other way; None for a key that no rule has.
fn of_key(key: &Key<[u8; KEY_LENGTH]>) -> Option<(u32, IpNet)> {
    let data = key.data();
    let (number, address) = data.split_first_chunk::<4>()?;
    let number = u32::from_ne_bytes(*number);
    let address = IpAddr::from(Ip::from_octets(address.try_into().ok()?));
    let length = key.prefix_len().checked_sub(POLICY_BITS)?;
    let is_v4 = address.is_ipv4();
    let length = if is_v4 {
        length.checked_sub(96)?
    } else {
        length
    };
    let net = IpNet::new(address, u8::try_from(length).ok()?).ok()?;
    Some((number >> 1, net))
}

fn failed(source: MapError) -> TableError {
    TableError::Map {
        name: maps::POLICIES,
        source: Box::new(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_that_holds_a_client_counts() {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let policy = Policy {
            allow: nets(&["10.0.0.0/8", "10.9.9.9/32", "::1/128"]),
            deny: nets(&["10.9.0.0/16", "2001:db8::/32"]),
            silently: false,
        };
        let open = Policy {
            allow: BTreeSet::new(),
            ..policy.clone()
        };
        for (client, is_admitted, is_admitted_by_open) in [
            ("10.1.2.3", true, true),
            ("10.9.1.1", false, false),
            ("10.9.9.9", true, false),
            ("192.0.2.1", false, true),
            ("::1", true, true),
            ("2001:db8::7", false, false),
            ("2001:db9::7", false, true),
        ] {
            let client = client.parse().unwrap();
            assert_eq!(policy.admits(client), is_admitted, "{client}");
            assert_eq!(open.admits(client), is_admitted_by_open, "{client}");
        }
    }

    #[test]
    fn a_rule_survives_the_way_through_its_key() {
        for text in [
            "0.0.0.0/0",
            "10.9.0.0/16",
            "192.0.2.7/32",
            "::/0",
            "2001:db8::/32",
            "::1/128",
        ] {
            let net: IpNet = text.parse().unwrap();
            assert_eq!(of_key(&key(7, net)), Some((7, net)), "{text}");
        }
    }
}
