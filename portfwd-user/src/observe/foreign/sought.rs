//! What rules are looked for.

/// What the rules do that are looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sought {
    /// They give packets another destination.
    Destinations,
    /// They deny packets, before the host's sockets or the way through the host get them.
    Denials,
}

/// Where packets enter chains.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    /// Where a device hands them over, after the TC programs there (`__netif_receive_skb_core`: `sch_handle_ingress`,
    /// then `nf_ingress`).
    Ingress,
    /// Before it is known whether they are for the host.
    Prerouting,
    /// On the way to sockets of the host.
    Input,
    /// On the way through the host.
    Forward,
    /// Out of sockets of the host.
    Output,
}

/// A chain where packets enter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Root {
    pub(super) chain: String,
    pub(super) hook: Hook,
    /// Whether its policy is to drop what no rule decides on.
    pub(super) drops: bool,
    /// The devices that it is limited to; none: it is not.
    pub(super) devices: Vec<String>,
}

impl Hook {
    /// By its number in IPv4 and IPv6: `enum nf_inet_hooks` of `include/uapi/linux/netfilter.h`.
    pub(super) const fn of_inet(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Prerouting,
            1 => Self::Input,
            2 => Self::Forward,
            3 => Self::Output,
            5 => Self::Ingress,
            _ => return None,
        })
    }
}

impl Sought {
    /// Whether such rules are met there. Destination NAT has no other hooks (`nf_nat_l3proto_ipv4` and the like).
    pub(super) const fn is_met_at(self, hook: Hook) -> bool {
        match self {
            Self::Destinations => matches!(hook, Hook::Prerouting | Hook::Output),
            Self::Denials => !matches!(hook, Hook::Output),
        }
    }

    /// Whether a target of xtables does it that is an extension.
    pub(super) fn is_target(self, target: &str) -> bool {
        match self {
            Self::Destinations => matches!(target, "DNAT" | "REDIRECT" | "NETMAP"),
            // Whom a program in user space asks is not known.
            Self::Denials => matches!(target, "REJECT" | "NFQUEUE"),
        }
    }
}
