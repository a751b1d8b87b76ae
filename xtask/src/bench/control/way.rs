//! The ways to publish that are compared, what each is made to do, and what is left out.

use serde::Serialize;

use super::ports::Ports;
use crate::bench::peer::Peer;

/// One way to publish ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Way {
    /// This project, all ports as one range: what the others are compared with
    PortfwdRange,
    /// This project, ports of which no two are adjacent
    PortfwdSeparate,
    /// CNI's portmap plugin, nftables
    Nftables,
    /// CNI's portmap plugin, iptables
    Iptables,
}

impl Way {
    /// All of them, in the order of the report.
    pub(super) const ALL: [Way; 4] = [
        Way::PortfwdRange,
        Way::PortfwdSeparate,
        Way::Nftables,
        Way::Iptables,
    ];

    /// Its name, as in the report.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Way::PortfwdRange => "portfwd, in a row",
            Way::PortfwdSeparate => "portfwd, separate",
            Way::Nftables => "portmap, nftables",
            Way::Iptables => "portmap, iptables",
        }
    }

    /// Its topology and instance.
    pub(super) const fn place(self) -> &'static str {
        match self {
            Way::PortfwdRange => "range",
            Way::PortfwdSeparate => "separate",
            Way::Nftables => "nftables",
            Way::Iptables => "iptables",
        }
    }

    /// The program that it is about.
    pub(super) const fn peer(self) -> Peer {
        match self {
            Way::PortfwdRange | Way::PortfwdSeparate => Peer::Portfwd,
            Way::Nftables => Peer::Nftables,
            Way::Iptables => Peer::Iptables,
        }
    }

    /// The ports that it publishes.
    pub(super) const fn ports(self, count: u16) -> Ports {
        match self {
            Way::PortfwdSeparate => Ports::apart(count),
            _ => Ports::in_a_row(count),
        }
    }
}

/// What a way is made to do with its ports, one process each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Step {
    /// Publish them, of a container that is not known yet
    Publish,
    /// Publish a further port of the same container
    Extend,
    /// Ask for one of them
    LookUp,
    /// Withdraw them all
    Withdraw,
}

impl Step {
    /// What is done with that many ports, in order.
    pub(super) const fn of(ports: u16) -> &'static [Step] {
        match ports {
            1 => &[Step::Publish, Step::Extend, Step::LookUp, Step::Withdraw],
            _ => &[Step::Publish, Step::LookUp, Step::Withdraw],
        }
    }

    /// The title of its part of the report.
    pub(super) const fn title(self) -> &'static str {
        match self {
            Step::Publish => "publish",
            Step::Extend => "publish a further one",
            Step::LookUp => "look one up",
            Step::Withdraw => "withdraw",
        }
    }

    /// The most milliseconds that portfwd is to take.
    pub(super) const fn goal(self, ports: u16) -> Option<f64> {
        match (self, ports) {
            (Step::Publish | Step::Extend, 1) => Some(12.0),
            (Step::Publish, 1_000) => Some(15.0),
            (Step::Publish, 10_000) => Some(25.0),
            (Step::Publish, 60_000) => Some(60.0),
            _ => None,
        }
    }

    /// The most megabytes that portfwd is to have resident.
    pub(super) const fn resident_goal(self, ports: u16) -> Option<f64> {
        match (self, ports) {
            (Step::Publish | Step::Extend, 1) => Some(12.0),
            _ => None,
        }
    }
}

/// How much time a run may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effort {
    Quick,
    Usual,
    Full,
}

impl Effort {
    /// Why `way` is not measured with that many ports, if so.
    pub(super) const fn omits(self, way: Way, ports: u16) -> Option<&'static str> {
        match (way, ports, self) {
            (Way::PortfwdSeparate, 1, _) => Some("the same as in a row"),
            (Way::PortfwdSeparate, 32_769.., _) => {
                Some("there are no more than 32,768 ports of which no two are adjacent")
            }
            (Way::Nftables | Way::Iptables, 1_001.., Effort::Quick) => Some("--quick"),
            (Way::Nftables, 10_001.., Effort::Usual) => Some("takes minutes a round: --full"),
            (Way::Iptables, 10_001.., _) => Some(
                "would take days: it runs iptables for every rule, and each reads all that there are",
            ),
            (Way::Iptables, 1_001.., Effort::Usual) => Some("takes hours: --full"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portfwd_in_a_row_is_never_left_out() {
        for effort in [Effort::Quick, Effort::Usual, Effort::Full] {
            for ports in [1, 1_000, 10_000, 60_000] {
                assert_eq!(effort.omits(Way::PortfwdRange, ports), None);
            }
        }
    }

    #[test]
    fn what_takes_long_is_left_to_full() {
        for (effort, way, most) in [
            (Effort::Quick, Way::Nftables, 1_000),
            (Effort::Usual, Way::Nftables, 10_000),
            (Effort::Full, Way::Nftables, 60_000),
            (Effort::Usual, Way::Iptables, 1_000),
            (Effort::Full, Way::Iptables, 10_000),
            (Effort::Full, Way::PortfwdSeparate, 10_000),
        ] {
            let run = [1_000, 10_000, 60_000]
                .into_iter()
                .rfind(|&ports| effort.omits(way, ports).is_none());
            assert_eq!(run, Some(most), "{effort:?} {way:?}");
        }
    }
}
