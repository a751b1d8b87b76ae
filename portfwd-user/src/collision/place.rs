//! Where a rule stands, in the words that the tools which list it want.

use std::fmt;

/// The chain that a rule is in.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Place {
    /// In nf_tables: of `nft`, or of `iptables` where that is `iptables-nft`.
    Nftables {
        /// Family of the table: `ip`, `ip6` or `inet`.
        family: &'static str,
        /// The table.
        table: String,
        /// The chain.
        chain: String,
    },
    /// In the tables of `iptables-legacy` or `ip6tables-legacy`.
    Legacy {
        /// `iptables` or `ip6tables`.
        program: &'static str,
        /// The table.
        table: &'static str,
        /// The chain.
        chain: String,
    },
}

impl fmt::Display for Place {
    /// The kernel takes any bytes for a name; those that could be misread are escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nftables {
                family,
                table,
                chain,
            } => {
                let (table, chain) = (table.escape_debug(), chain.escape_debug());
                write!(f, "nftables rule: table {family} {table}, chain {chain}")
            }
            Self::Legacy {
                program,
                table,
                chain,
            } => {
                let chain = chain.escape_debug();
                write!(f, "{program} rule: table {table}, chain {chain} (legacy)")
            }
        }
    }
}
