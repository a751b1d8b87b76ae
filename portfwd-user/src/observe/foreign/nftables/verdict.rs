//! What a rule, or an element of a verdict map, decides (`struct nft_verdict`).

use super::super::sought::Sought;
use super::super::walk::Action;
use super::super::wire::{Malformed, name};
use super::attribute::{needed, pick};

/// NF_DROP and NF_QUEUE of `include/uapi/linux/netfilter.h`; what is above NF_VERDICT_MASK belongs to them.
const NF_DROP: i32 = 0;
const NF_QUEUE: i32 = 3;
const NF_VERDICT_MASK: i32 = 0xff;
/// `enum nft_verdicts` of `include/uapi/linux/netfilter/nf_tables.h`.
const NFT_JUMP: i32 = -3;
const NFT_GOTO: i32 = -4;

/// A verdict that matters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Verdict {
    /// To go through a chain.
    Enter(String),
    /// To end there, or to be judged by a program.
    Deny,
}

impl Verdict {
    /// From NFTA_DATA_VERDICT.
    pub(super) fn parse(verdict: &[u8]) -> Result<Option<Self>, Malformed> {
        const NFTA_VERDICT_CODE: u16 = 1;
        const NFTA_VERDICT_CHAIN: u16 = 2;
        let [code, chain] = pick(verdict, [NFTA_VERDICT_CODE, NFTA_VERDICT_CHAIN])?;
        let code = needed(code, "a verdict")?.cast_signed();
        let enter = |chain| Self::Enter(name(chain).into_owned());
        Ok(match code {
            NFT_JUMP | NFT_GOTO => chain.map(enter),
            _ if denies(code) => Some(Self::Deny),
            _ => None,
        })
    }

    /// What that means for who looks for `sought`.
    pub(super) fn action(&self, sought: Sought) -> Option<Action> {
        match (self, sought) {
            (Self::Enter(chain), _) => Some(Action::Enter(chain.clone())),
            (Self::Deny, Sought::Denials) => Some(Action::Take),
            (Self::Deny, Sought::Destinations) => None,
        }
    }
}

/// Whether a verdict of netfilter, which a chain's policy is as well, denies.
pub(super) fn denies(code: i32) -> bool {
    code >= 0 && matches!(code & NF_VERDICT_MASK, NF_DROP | NF_QUEUE)
}

#[cfg(test)]
mod tests {
    use super::super::properties::attribute;
    use super::*;

    fn verdict(code: i32, chain: Option<&str>) -> Vec<u8> {
        let chain = chain.map(|chain| attribute(2, format!("{chain}\0").as_bytes()));
        [attribute(1, &code.to_be_bytes()), chain.unwrap_or_default()].concat()
    }

    #[test]
    fn drop_and_queue_deny_and_jumps_lead_on() {
        let parse = |code, chain| Verdict::parse(&verdict(code, chain));
        let enter = Ok(Some(Verdict::Enter("next".to_owned())));
        assert_eq!(parse(NFT_JUMP, Some("next")), enter);
        assert_eq!(parse(NFT_GOTO, Some("next")), enter);
        for (code, verdict) in [
            (0, Some(Verdict::Deny)),
            (3 | 7 << 16, Some(Verdict::Deny)),
            (1, None),
            // NFT_CONTINUE, NFT_BREAK, NFT_RETURN, and a jump to nowhere.
            (-1, None),
            (-2, None),
            (-5, None),
            (NFT_JUMP, None),
        ] {
            assert_eq!(parse(code, None), Ok(verdict), "{code}");
        }
        assert_eq!(
            Verdict::parse(&[]),
            Err(Malformed::Short("a verdict")),
            "no code"
        );
    }
}
