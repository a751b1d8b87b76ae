//! Where a rule stands, in the words that the tools which list it want.

use std::fmt;

/// The chain that a rule is in.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Place {
    /// In nf_tables: of `nft`, or of `iptables` where that is `iptables-nft`.
    Nftables {
        /// Family of the table: `ip`, `ip6`, `inet` or `netdev`.
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
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write("rule", f)
    }
}

/// The chain itself, rather than a rule in it.
#[derive(Clone, Copy, Debug)]
pub struct WholeChain<'a>(pub &'a Place);

impl fmt::Display for WholeChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.write("chain", f)
    }
}

impl Place {
    /// The kernel takes any bytes for a name; those that could be misread are escaped.
    fn write(&self, what: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nftables {
                family,
                table,
                chain,
            } => {
                let (table, chain) = (table.escape_debug(), chain.escape_debug());
                write!(f, "nftables {what}: table {family} {table}, chain {chain}")
            }
            Self::Legacy {
                program,
                table,
                chain,
            } => {
                let chain = chain.escape_debug();
                write!(f, "{program} {what}: table {table}, chain {chain} (legacy)")
            }
        }
    }
}
