//! A rule as NFT_MSG_NEWRULE tells it: the chain it is in, and its expressions, which are read when a packet
//! can come to the chain.

use std::borrow::Cow;

use super::super::wire::{Malformed, name};
use super::attribute::{attributes, pick};

/// `enum nft_rule_attributes`.
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
/// `enum nft_expr_attributes`.
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;

/// The chain and the expressions.
pub(super) fn parse(rule: &[u8]) -> Result<(Cow<'_, str>, &[u8]), Malformed> {
    let [chain, expressions] = pick(rule, [NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS])?;
    let chain = chain.ok_or(Malformed::Short("a rule"))?;
    Ok((name(chain), expressions.unwrap_or_default()))
}

/// The expressions of a rule, each by its name and its attributes.
pub(super) fn expressions(
    list: &[u8],
) -> impl Iterator<Item = Result<(Cow<'_, str>, &[u8]), Malformed>> {
    attributes(list).map(|element| {
        let (_, expression) = element?;
        let [kind, data] = pick(expression, [NFTA_EXPR_NAME, NFTA_EXPR_DATA])?;
        let kind = kind.ok_or(Malformed::Short("an expression"))?;
        Ok((name(kind), data.unwrap_or_default()))
    })
}
