//! Rules of nf_tables, whoever made them: `nft`, `iptables-nft`, or a program by itself.
//!
//! Packets meet destination NAT in base chains of the type `nat` at prerouting and output
//! (`nf_nat_l3proto_ipv4` and the like register no other hooks for it). Only tables with such a chain are read,
//! and of their sets those that a rule on the way asks for.

mod attribute;
mod chain;
mod conversation;
mod expression;
mod lookup;
mod register;
mod rule;
mod set;

#[cfg(test)]
mod properties;

use std::collections::HashMap;

use super::walk::{Step, taken};
use super::{ForeignError, rules_of, unchanged};
use crate::collision::{Place, Rule};
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
    unchanged(WHAT, || match read() {
        Ok(rules) => Ok(Some(rules)),
        Err(Unread::Changed) => Ok(None),
        Err(Unread::Failed(error)) => Err(error),
    })
}

fn read() -> Result<Vec<Rule>, Unread> {
    let Some(mut conversation) = Conversation::open()? else {
        return Ok(Vec::new());
    };
    let mut tables: Vec<Table> = Vec::new();
    let is_there = conversation.dump_if_there(NFT_MSG_GETCHAIN, |family, attributes| {
        if let Some((table, chain)) = base_chain(family, attributes)? {
            match tables.iter_mut().find(|known| known.is(&table)) {
                Some(known) => known.roots.push(chain),
                None => tables.push(Table {
                    roots: vec![chain],
                    ..table
                }),
            }
        }
        Ok(())
    })?;
    let mut all = Vec::new();
    for table in tables.iter().filter(|_| is_there) {
        all.extend(Reading::of(table, &mut conversation)?.rules()?);
        conversation.confirm()?;
    }
    Ok(all)
}

/// A table being read.
struct Reading<'a> {
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
    fn of(table: &'a Table, conversation: &'a mut Conversation) -> Result<Self, Unread> {
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
            table,
            conversation,
            chains,
            kinds: None,
            sets: HashMap::new(),
        })
    }

    fn rules(mut self) -> Result<Vec<Rule>, Unread> {
        let table = self.table;
        let taken = taken(&table.roots, |chain| self.steps(chain))?;
        let rules = taken.into_iter().flat_map(|taken| {
            let place = Place::Nftables {
                family: table.family_name(),
                table: table.name.clone(),
                chain: taken.chain,
            };
            let regions = taken.regions.into_iter();
            regions.flat_map(move |region| rules_of(&region, &place))
        });
        Ok(rules.collect())
    }

    fn steps(&mut self, chain: &str) -> Result<Vec<Step>, Unread> {
        let mut all = Vec::new();
        for expressions in self.chains.remove(chain).unwrap_or_default() {
            loop {
                match steps(&expressions, self.table.families(), &self.sets) {
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
