//! What a rule does, from its expressions: each loads something into a register, asks something of one, or
//! decides (`include/uapi/linux/netfilter/nf_tables.h`, and the `dump` functions of `net/netfilter/nft_*.c`).

use std::collections::HashMap;
use std::ops::ControlFlow;

use super::super::intervals::Intervals;
use super::super::region::{Condition, Families, Field, Region};
use super::super::sought::Sought;
use super::super::walk::{Action, Step};
use super::super::wire::{Malformed, name};
use super::super::xtables;
use super::attribute::{needed, number, pick};
use super::register::{Content, Part, Registers};
use super::rule::expressions;
use super::set::Element;
use super::verdict::Verdict;

/// NFT_REG_VERDICT of `enum nft_registers`.
pub(super) const NFT_REG_VERDICT: u32 = 0;
/// `enum nft_meta_keys`.
const NFT_META_PROTOCOL: u32 = 1;
const NFT_META_NFPROTO: u32 = 15;
const NFT_META_L4PROTO: u32 = 16;
/// `enum nft_payload_bases`.
const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = 2;
/// NFT_FIB_RESULT_ADDRTYPE and NFTA_FIB_F_DADDR.
const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
const NFTA_FIB_F_DADDR: u32 = 1 << 1;
/// `enum nft_bitwise_ops`.
const NFT_BITWISE_MASK_XOR: u32 = 0;
/// `enum nft_nat_types`.
const NFT_NAT_DNAT: u32 = 1;
/// `enum nft_data_attributes`.
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;

/// Fields of the headers, with their offsets: RFC 9293, section 3.1 (UDP and SCTP have the port in the same
/// place); RFC 791, section 3.1; RFC 8200, section 3.
const TRANSPORT: [(Field, usize); 1] = [(Field::Port, 2)];
const NETWORK_V4: [(Field, usize); 2] = [(Field::Protocol, 9), (Field::AddressV4, 16)];
const NETWORK_V6: [(Field, usize); 2] = [(Field::Protocol, 6), (Field::AddressV6, 24)];

/// Why a rule could not be read to its end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Stop {
    /// The elements of this set have to be known first.
    Needs(String),
    /// It makes no sense.
    Malformed(Malformed),
}

impl From<Malformed> for Stop {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

/// What a rule with these expressions does to packets of `families`, as far as it is `sought`.
pub(super) fn steps(
    sought: Sought,
    list: &[u8],
    families: Families,
    sets: &HashMap<String, Vec<Element>>,
) -> Result<Vec<Step>, Stop> {
    let mut rule = Evaluation {
        registers: Registers::default(),
        regions: vec![Region::all(families)],
        sought,
        sets,
    };
    for expression in expressions(list) {
        let (kind, data) = expression?;
        if let ControlFlow::Break(steps) = rule.expression(&kind, data)? {
            return Ok(steps);
        }
    }
    Ok(Vec::new())
}

/// Goes on, or says what the rule does.
pub(super) type Outcome = Result<ControlFlow<Vec<Step>>, Stop>;

/// A rule on the way through its expressions.
pub(super) struct Evaluation<'a> {
    pub(super) registers: Registers,
    /// The packets that meet its conditions so far.
    pub(super) regions: Vec<Region>,
    pub(super) sought: Sought,
    pub(super) sets: &'a HashMap<String, Vec<Element>>,
}

impl Evaluation<'_> {
    fn expression(&mut self, kind: &str, data: &[u8]) -> Outcome {
        match kind {
            "meta" => self.meta(data)?,
            "payload" => self.payload(data)?,
            "fib" => self.fib(data)?,
            "bitwise" => self.bitwise(data)?,
            "cmp" => self.cmp(data)?,
            "range" => self.range(data)?,
            "byteorder" => self.byteorder(data)?,
            "match" => self.xt_match(data)?,
            "lookup" => return self.lookup(data),
            "immediate" => return self.immediate(data),
            "nat" => return self.nat(data),
            "redir" => return Ok(self.decided(Sought::Destinations)),
            "reject" | "queue" => return Ok(self.decided(Sought::Denials)),
            "target" => return self.xt_target(data),
            other => self.other(other, data)?,
        }
        Ok(self.next())
    }

    /// Goes on, unless no packet is left.
    pub(super) fn next(&self) -> ControlFlow<Vec<Step>> {
        if self.regions.is_empty() {
            ControlFlow::Break(Vec::new())
        } else {
            ControlFlow::Continue(())
        }
    }

    fn done(&mut self, action: Action) -> ControlFlow<Vec<Step>> {
        let regions = std::mem::take(&mut self.regions);
        ControlFlow::Break(vec![Step { regions, action }])
    }

    /// Whatever else it could be, it does `that`.
    fn decided(&mut self, that: Sought) -> ControlFlow<Vec<Step>> {
        match self.sought == that {
            true => self.done(Action::Take),
            false => ControlFlow::Break(Vec::new()),
        }
    }

    pub(super) fn narrow(&mut self, condition: &Condition) {
        let regions = std::mem::take(&mut self.regions).into_iter();
        self.regions = regions
            .filter_map(|region| region.narrowed(condition))
            .collect();
    }

    /// The families that may still come here.
    fn families(&self) -> Families {
        let families = self.regions.iter().map(|region| region.families);
        families.reduce(Families::union).unwrap_or(Families::BOTH)
    }

    fn load(&mut self, register: u32, content: Option<Content>) {
        match content {
            Some(content) => self.registers.set(register, content),
            None => self.registers.forget(register),
        }
    }

    fn meta(&mut self, data: &[u8]) -> Result<(), Malformed> {
        const NFTA_META_DREG: u16 = 1;
        const NFTA_META_KEY: u16 = 2;
        let [register, key] = pick(data, [NFTA_META_DREG, NFTA_META_KEY])?;
        if let Some(register) = number(register)? {
            let field = match needed(key, "a meta expression")? {
                NFT_META_PROTOCOL => Some(Field::EtherType),
                NFT_META_NFPROTO => Some(Field::Family),
                NFT_META_L4PROTO => Some(Field::Protocol),
                _ => None,
            };
            self.load(register, field.map(Content::of));
        }
        Ok(())
    }

    fn payload(&mut self, data: &[u8]) -> Result<(), Malformed> {
        const NFTA_PAYLOAD_DREG: u16 = 1;
        const NFTA_PAYLOAD_BASE: u16 = 2;
        const NFTA_PAYLOAD_OFFSET: u16 = 3;
        const NFTA_PAYLOAD_LEN: u16 = 4;
        let kinds = [
            NFTA_PAYLOAD_DREG,
            NFTA_PAYLOAD_BASE,
            NFTA_PAYLOAD_OFFSET,
            NFTA_PAYLOAD_LEN,
        ];
        let [register, base, offset, length] = pick(data, kinds)?;
        let Some(register) = number(register)? else {
            return Ok(());
        };
        let base = needed(base, "a payload expression")?;
        let offset = needed(offset, "a payload expression")? as usize;
        let length = needed(length, "a payload expression")? as usize;
        let fields: &[(Field, usize)] = match (base, self.families()) {
            (NFT_PAYLOAD_TRANSPORT_HEADER, _) => &TRANSPORT,
            (NFT_PAYLOAD_NETWORK_HEADER, Families::V4) => &NETWORK_V4,
            (NFT_PAYLOAD_NETWORK_HEADER, Families::V6) => &NETWORK_V6,
            _ => &[],
        };
        let parts: Vec<Part> = fields
            .iter()
            .filter_map(|field| part(*field, offset, length))
            .collect();
        let content = Content {
            parts,
            length,
            mask: None,
        };
        self.load(register, Some(content));
        Ok(())
    }

    /// `fib daddr type`; of the source address or the interface is nothing to be known.
    fn fib(&mut self, data: &[u8]) -> Result<(), Malformed> {
        const NFTA_FIB_DREG: u16 = 1;
        const NFTA_FIB_RESULT: u16 = 2;
        const NFTA_FIB_FLAGS: u16 = 3;
        let [register, result, flags] =
            pick(data, [NFTA_FIB_DREG, NFTA_FIB_RESULT, NFTA_FIB_FLAGS])?;
        let is_type = number(result)? == Some(NFT_FIB_RESULT_ADDRTYPE);
        let of_destination = number(flags)?.is_some_and(|flags| flags & NFTA_FIB_F_DADDR != 0);
        let known = is_type && of_destination;
        self.load(
            needed(register, "a fib expression")?,
            known.then(|| Content::of(Field::DestinationType)),
        );
        Ok(())
    }

    fn bitwise(&mut self, data: &[u8]) -> Result<(), Malformed> {
        const NFTA_BITWISE_SREG: u16 = 1;
        const NFTA_BITWISE_DREG: u16 = 2;
        const NFTA_BITWISE_MASK: u16 = 4;
        const NFTA_BITWISE_XOR: u16 = 5;
        const NFTA_BITWISE_OP: u16 = 6;
        let kinds = [
            NFTA_BITWISE_SREG,
            NFTA_BITWISE_DREG,
            NFTA_BITWISE_MASK,
            NFTA_BITWISE_XOR,
            NFTA_BITWISE_OP,
        ];
        let [from, to, mask, xor, operator] = pick(data, kinds)?;
        let from = needed(from, "a bitwise expression")?;
        let content = self.registers.get(from).cloned();
        let plain = number(operator)?.unwrap_or_default() == NFT_BITWISE_MASK_XOR
            && value(xor)?.is_none_or(|xor| xor.iter().all(|byte| *byte == 0));
        let mask = value(mask)?.filter(|_| plain);
        let masked = content.zip(mask).and_then(|(content, mask)| {
            content.mask.is_none().then_some(Content {
                mask: Some(mask.to_vec()),
                ..content
            })
        });
        self.load(needed(to, "a bitwise expression")?, masked);
        Ok(())
    }

    fn cmp(&mut self, data: &[u8]) -> Result<(), Malformed> {
        const NFTA_CMP_SREG: u16 = 1;
        const NFTA_CMP_OP: u16 = 2;
        const NFTA_CMP_DATA: u16 = 3;
        let [register, operator, data] = pick(data, [NFTA_CMP_SREG, NFTA_CMP_OP, NFTA_CMP_DATA])?;
        let register = needed(register, "a cmp expression")?;
        let operator = needed(operator, "a cmp expression")?;
        let Some(content) = self.registers.get(register) else {
            return Ok(());
        };
        for condition in content.compared(operator, value(data)?.unwrap_or_default()) {
            self.narrow(&condition);
        }
        Ok(())
    }

    fn range(&mut self, data: &[u8]) -> Result<(), Malformed> {
        const NFTA_RANGE_SREG: u16 = 1;
        const NFTA_RANGE_OP: u16 = 2;
        const NFTA_RANGE_FROM_DATA: u16 = 3;
        const NFTA_RANGE_TO_DATA: u16 = 4;
        let kinds = [
            NFTA_RANGE_SREG,
            NFTA_RANGE_OP,
            NFTA_RANGE_FROM_DATA,
            NFTA_RANGE_TO_DATA,
        ];
        let [register, operator, first, last] = pick(data, kinds)?;
        let register = needed(register, "a range expression")?;
        let operator = needed(operator, "a range expression")?;
        let first = value(first)?.unwrap_or_default();
        let last = value(last)?.unwrap_or_default();
        let content = self.registers.get(register);
        if let Some(condition) = content.and_then(|found| found.ranged(operator, first, last)) {
            self.narrow(&condition);
        }
        Ok(())
    }

    fn xt_match(&mut self, data: &[u8]) -> Result<(), Malformed> {
        const NFTA_MATCH_NAME: u16 = 1;
        const NFTA_MATCH_REV: u16 = 2;
        const NFTA_MATCH_INFO: u16 = 3;
        let [kind, revision, info] =
            pick(data, [NFTA_MATCH_NAME, NFTA_MATCH_REV, NFTA_MATCH_INFO])?;
        let kind = name(kind.unwrap_or_default());
        let revision = number(revision)?.unwrap_or_default();
        if let Some(condition) = xtables::condition(&kind, revision, info.unwrap_or_default())? {
            self.narrow(&condition);
        }
        Ok(())
    }

    fn xt_target(&mut self, data: &[u8]) -> Outcome {
        const NFTA_TARGET_NAME: u16 = 1;
        let [kind] = pick(data, [NFTA_TARGET_NAME])?;
        Ok(if self.sought.is_target(&name(kind.unwrap_or_default())) {
            self.done(Action::Take)
        } else {
            ControlFlow::Continue(())
        })
    }

    /// In a table of both families `dnat ip to` is for packets of that one alone (`nft_nat_inet_eval`).
    fn nat(&mut self, data: &[u8]) -> Outcome {
        const NFTA_NAT_TYPE: u16 = 1;
        const NFTA_NAT_FAMILY: u16 = 2;
        /// NFPROTO_INET: whatever the packet has.
        const ANY: u32 = 1;
        let [kind, family] = pick(data, [NFTA_NAT_TYPE, NFTA_NAT_FAMILY])?;
        if needed(kind, "a nat expression")? != NFT_NAT_DNAT {
            return Ok(ControlFlow::Break(Vec::new()));
        }
        if let Some(family) = number(family)?.filter(|family| *family != ANY) {
            self.narrow(&(Field::Family, Intervals::single(family.into())));
        }
        Ok(self.decided(Sought::Destinations))
    }

    fn immediate(&mut self, data: &[u8]) -> Outcome {
        const NFTA_IMMEDIATE_DREG: u16 = 1;
        const NFTA_IMMEDIATE_DATA: u16 = 2;
        let [register, data] = pick(data, [NFTA_IMMEDIATE_DREG, NFTA_IMMEDIATE_DATA])?;
        let register = needed(register, "an immediate expression")?;
        if register != NFT_REG_VERDICT {
            self.registers.forget(register);
            return Ok(ControlFlow::Continue(()));
        }
        let [verdict] = pick(data.unwrap_or_default(), [NFTA_DATA_VERDICT])?;
        let verdict = verdict.ok_or(Malformed::Short("an immediate expression"))?;
        let action = Verdict::parse(verdict)?.and_then(|verdict| verdict.action(self.sought));
        Ok(match action {
            Some(action) => self.done(action),
            None => ControlFlow::Break(Vec::new()),
        })
    }

    /// Numbers that are turned are not understood. Less than one of them stays as it is (`nft_byteorder_eval`): for a
    /// set with ranges `nft` says so of the single byte of `meta l4proto`.
    fn byteorder(&mut self, data: &[u8]) -> Result<(), Malformed> {
        const NFTA_BYTEORDER_SREG: u16 = 1;
        const NFTA_BYTEORDER_DREG: u16 = 2;
        const NFTA_BYTEORDER_LEN: u16 = 4;
        const NFTA_BYTEORDER_SIZE: u16 = 5;
        let kinds = [
            NFTA_BYTEORDER_SREG,
            NFTA_BYTEORDER_DREG,
            NFTA_BYTEORDER_LEN,
            NFTA_BYTEORDER_SIZE,
        ];
        let [from, to, length, size] = pick(data, kinds)?;
        let is_short = number(length)?
            .zip(number(size)?)
            .is_some_and(|(length, size)| length < size);
        let is_idle = is_short && number(from)? == number(to)?;
        if let Some(to) = number(to)?.filter(|_| !is_idle) {
            self.registers.forget(to);
        }
        Ok(())
    }

    /// What is not understood asks nothing, but what it loads replaces what was there: in the attribute of
    /// this number is the register.
    fn other(&mut self, kind: &str, data: &[u8]) -> Result<(), Malformed> {
        let register = match kind {
            "ct" | "rt" | "exthdr" | "numgen" | "osf" | "xfrm" => 1,
            "hash" | "socket" | "tunnel" => 2,
            _ => return Ok(()),
        };
        let [register] = pick(data, [register])?;
        if let Some(register) = number(register)? {
            self.registers.forget(register);
        }
        Ok(())
    }
}

/// The value in a nested NFTA_DATA_VALUE.
fn value(data: Option<&[u8]>) -> Result<Option<&[u8]>, Malformed> {
    match data {
        Some(data) => pick(data, [NFTA_DATA_VALUE]).map(|[value]| value),
        None => Ok(None),
    }
}

/// A field of a header in what was loaded from it. Of an address the first bytes are enough: `nft` loads no
/// more of a prefix than it has to compare.
fn part((field, start): (Field, usize), offset: usize, length: usize) -> Option<Part> {
    let at = start.checked_sub(offset)?;
    let full = (field.bits() / 8) as usize;
    let loaded = length.checked_sub(at).filter(|loaded| *loaded > 0)?;
    let is_address = matches!(field, Field::AddressV4 | Field::AddressV6);
    (is_address || loaded >= full).then_some(Part {
        field,
        at,
        length: loaded.min(full),
    })
}

#[cfg(test)]
mod tests {
    use super::super::properties::attribute;
    use super::*;

    /// What a rule of one expression does.
    fn done(sought: Sought, kind: &str, data: &[u8]) -> Vec<Action> {
        let expression = [attribute(1, kind.as_bytes()), attribute(2, data)].concat();
        let list = attribute(1, &expression);
        let steps = steps(sought, &list, Families::V4, &HashMap::new()).unwrap();
        steps.into_iter().map(|step| step.action).collect()
    }

    #[test]
    fn a_rule_does_what_is_sought_or_nothing() {
        let number = |kind, number: u32| attribute(kind, &number.to_be_bytes());
        let drop = attribute(2, &attribute(2, &number(1, 0)));
        let drop = [number(1, NFT_REG_VERDICT), drop].concat();
        for (kind, data, does) in [
            ("reject", Vec::new(), Sought::Denials),
            ("queue", Vec::new(), Sought::Denials),
            ("immediate", drop, Sought::Denials),
            ("target", attribute(1, b"REJECT\0"), Sought::Denials),
            ("target", attribute(1, b"DNAT\0"), Sought::Destinations),
            ("redir", Vec::new(), Sought::Destinations),
            ("nat", number(1, NFT_NAT_DNAT), Sought::Destinations),
        ] {
            for sought in [Sought::Denials, Sought::Destinations] {
                let takes = vec![Action::Take];
                let expected = if sought == does { takes } else { Vec::new() };
                assert_eq!(done(sought, kind, &data), expected, "{kind} {sought:?}");
            }
        }
    }
}
