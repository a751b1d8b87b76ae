//! Rules of nf_tables, whoever made them: `nft`, `iptables-nft`, or a program by itself.
//!
//! Packets meet destination NAT in base chains of the type `nat` at prerouting and output, and what denies them in
//! those of any type on their way in. Only tables with such a chain are read, and of their sets those that a rule on
//! the way asks for.

mod attribute;
mod chain;
mod conversation;
mod expression;
mod lookup;
mod register;
mod rule;
mod set;
mod verdict;

#[cfg(test)]
mod properties;

use std::collections::HashMap;

use super::firewall::FirewallChain;
use super::sought::Sought;
use super::walk::{Step, taken};
use super::{ForeignError, rules_of, unchanged};
use crate::collision::Rule;
use chain::{Table, base_chain};
use conversation::{Conversation, Unread};
use expression::{Stop, steps};
use set::{Element, Kind};

/// What is read, for messages.
const WHAT: &str = "the rules of nf_tables";

/// Messages of `include/uapi/linux/netfilter/nf_tables.h`.
const NFT_MSG_GETCHAIN: u8 = 4;
const NFT_MSG_GETRULE: u8 = 7;
const NFT_MSG_GETSET: u8 = 10;
const NFT_MSG_GETSETELEM: u8 = 13;

/// NFTA_RULE_TABLE, NFTA_SET_TABLE and NFTA_SET_ELEM_LIST_TABLE; NFTA_SET_ELEM_LIST_SET.
const TABLE: u16 = 1;
const SET: u16 = 2;

/// The rules of the calling thread's namespace. Asking has the kernel load the module nf_tables where it has
/// it and nobody asked before (`nfnetlink_rcv_msg`), as `nft list` does.
pub(super) fn rules_here() -> Result<Vec<Rule>, ForeignError> {
    here(Sought::Destinations, |reading| reading.rules())
}

/// The chains that may deny packets in the calling thread's namespace; asking has the same consequence.
pub(super) fn firewall_here() -> Result<Vec<FirewallChain>, ForeignError> {
    here(Sought::Denials, |reading| reading.firewall())
}

/// What is found in a table.
type InTable<T> = fn(Reading) -> Result<Vec<T>, Unread>;

fn here<T>(sought: Sought, in_table: InTable<T>) -> Result<Vec<T>, ForeignError> {
    unchanged(WHAT, || match read(sought, in_table) {
        Ok(found) => Ok(Some(found)),
        Err(Unread::Changed) => Ok(None),
        Err(Unread::Failed(error)) => Err(error),
    })
}

fn read<T>(sought: Sought, in_table: InTable<T>) -> Result<Vec<T>, Unread> {
    let Some(mut conversation) = Conversation::open()? else {
        return Ok(Vec::new());
    };
    let mut tables: Vec<Table> = Vec::new();
    let is_there = conversation.dump_if_there(NFT_MSG_GETCHAIN, |family, attributes| {
        if let Some((table, root)) = base_chain(sought, family, attributes)? {
            match tables.iter_mut().find(|known| known.is(&table)) {
                Some(known) => known.roots.push(root),
                None => tables.push(Table {
                    roots: vec![root],
                    ..table
                }),
            }
        }
        Ok(())
    })?;
    let mut all = Vec::new();
    for table in tables.iter().filter(|_| is_there) {
        all.extend(in_table(Reading::of(sought, table, &mut conversation)?)?);
        conversation.confirm()?;
    }
    Ok(all)
}

/// A table being read.
struct Reading<'a> {
    sought: Sought,
    table: &'a Table,
    conversation: &'a mut Conversation,
    /// The expressions of each chain's rules.
    chains: HashMap<String, Vec<Vec<u8>>>,
    /// The sets that there are; read once one is asked for.
    kinds: Option<HashMap<String, Kind>>,
    /// The sets that have been asked for.
    sets: HashMap<String, Vec<Element>>,
}

impl<'a> Reading<'a> {
    fn of(
        sought: Sought,
        table: &'a Table,
        conversation: &'a mut Conversation,
    ) -> Result<Self, Unread> {
        let mut chains: HashMap<String, Vec<Vec<u8>>> = HashMap::new();
        let limits = [(TABLE, table.name.as_str())];
        conversation.dump(NFT_MSG_GETRULE, table.family, &limits, |_, attributes| {
            let (chain, expressions) = rule::parse(attributes)?;
            match chains.get_mut(chain.as_ref()) {
                Some(rules) => rules.push(expressions.to_vec()),
                None => drop(chains.insert(chain.into_owned(), vec![expressions.to_vec()])),
            }
            Ok(())
        })?;
        Ok(Self {
            sought,
            table,
            conversation,
            chains,
            kinds: None,
            sets: HashMap::new(),
        })
    }

    fn rules(mut self) -> Result<Vec<Rule>, Unread> {
        let table = self.table;
        let roots = table.roots.iter().map(|root| root.chain.as_str());
        let taken = taken(roots, |chain| self.steps(chain))?;
        let rules = taken.into_iter().flat_map(|taken| {
            let place = table.place(taken.chain);
            let regions = taken.regions.into_iter();
            regions.flat_map(move |region| rules_of(&region, &place))
        });
        Ok(rules.collect())
    }

    fn firewall(mut self) -> Result<Vec<FirewallChain>, Unread> {
        let table = self.table;
        let mut all = Vec::new();
        for root in &table.roots {
            let taken = taken([root.chain.as_str()], |chain| self.steps(chain))?;
            let place = table.place(root.chain.clone());
            all.extend(FirewallChain::of(root, place, table.families(), &taken));
        }
        Ok(all)
    }

    fn steps(&mut self, chain: &str) -> Result<Vec<Step>, Unread> {
        let mut all = Vec::new();
        let rules = self.chains.remove(chain).unwrap_or_default();
        for expressions in &rules {
            loop {
                match steps(self.sought, expressions, self.table.families(), &self.sets) {
                    Ok(steps) => break all.extend(steps),
                    Err(Stop::Needs(set)) => self.fetch(set)?,
                    Err(Stop::Malformed(malformed)) => {
                        let Table { name, .. } = self.table;
                        let family = self.table.family_name();
                        let what = format!("a rule in table {family} {name}, chain {chain}");
                        return Err(malformed.of(what).into());
                    }
                }
            }
        }
        self.chains.insert(chain.to_owned(), rules);
        Ok(all)
    }

    fn fetch(&mut self, set: String) -> Result<(), Unread> {
        let kind = self.kinds()?.get(&set).copied().ok_or(Unread::Changed)?;
        let mut elements = Vec::new();
        let limits = [(TABLE, self.table.name.as_str()), (SET, set.as_str())];
        let family = self.table.family;
        self.conversation
            .dump(NFT_MSG_GETSETELEM, family, &limits, |_, attributes| {
                set::parse(attributes, &mut elements)
            })?;
        self.sets.insert(set, set::resolved(kind, elements));
        Ok(())
    }

    fn kinds(&mut self) -> Result<&HashMap<String, Kind>, Unread> {
        if self.kinds.is_none() {
            let mut kinds = HashMap::new();
            let limits = [(TABLE, self.table.name.as_str())];
            let family = self.table.family;
            self.conversation
                .dump(NFT_MSG_GETSET, family, &limits, |_, attributes| {
                    kinds.extend(set::kind(attributes)?);
                    Ok(())
                })?;
            self.kinds = Some(kinds);
        }
        Ok(self.kinds.get_or_insert_default())
    }
}
