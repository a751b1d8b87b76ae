//! Rules of other tools that take packets to a port of the host.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use portfwd_common::net::Protocol;

use super::Place;
use crate::spec::PortRange;

/// The address families that a rule looks at.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// Both.
    Both,
}

/// The destination addresses that a rule looks at.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Addresses {
    /// Every one, or every one of the host.
    Any,
    /// Those of one family within these ranges, ascending.
    Within(Vec<RangeInclusive<IpAddr>>),
}

/// A rule of somebody else that takes packets to a port of the host. One that takes several protocols, or
/// addresses and ports in several combinations, is several of these.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Rule {
    /// The protocol; None for every one.
    pub protocol: Option<Protocol>,
    /// The address family.
    pub family: Family,
    /// The destination addresses.
    pub addresses: Addresses,
    /// The destination ports, ascending: all of them if the rule names none.
    pub ports: Vec<PortRange>,
    /// Where it is.
    pub place: Place,
}

impl Rule {
    /// The lowest of `ports` on `host`, which may be the unspecified address, whose packets it may take. None of a
    /// rule that looks at no port: it stands in everybody's way ([`Self::takes_every_port`]).
    #[must_use]
    pub fn takes(&self, protocol: Protocol, host: IpAddr, ports: PortRange) -> Option<u16> {
        if self.takes_every_port() || !self.looks_at(protocol, host) {
            return None;
        }
        let shared = |taken: &PortRange| Some(taken.intersection(ports)?.first());
        self.ports.iter().filter_map(shared).min()
    }

    /// Whether it takes what comes to the host for any port, such as that of a transparent proxy.
    #[must_use]
    pub fn takes_every_port(&self) -> bool {
        self.ports
            .iter()
            .any(|ports| (ports.first(), ports.last()) == (1, u16::MAX))
    }

    /// Whether it may take packets of that protocol to that address.
    #[must_use]
    pub fn looks_at(&self, protocol: Protocol, host: IpAddr) -> bool {
        let of_family = match self.family {
            Family::V4 => host.is_ipv4(),
            Family::V6 => host.is_ipv6(),
            Family::Both => true,
        };
        let within = match &self.addresses {
            Addresses::Any => true,
            Addresses::Within(ranges) => {
                host.is_unspecified() || ranges.iter().any(|range| range.contains(&host))
            }
        };
        of_family && within && self.protocol.is_none_or(|own| own == protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(addresses: Addresses, ports: &[(u16, u16)]) -> Rule {
        Rule {
            protocol: Some(Protocol::Tcp),
            family: Family::V4,
            addresses,
            ports: ports
                .iter()
                .filter_map(|(a, b)| PortRange::new(*a, *b))
                .collect(),
            place: Place::Nftables {
                family: "ip",
                table: "nat".to_owned(),
                chain: "DOCKER".to_owned(),
            },
        }
    }

    fn takes(rule: &Rule, host: &str, first: u16, last: u16) -> Option<u16> {
        let ports = PortRange::new(first, last).unwrap();
        rule.takes(Protocol::Tcp, host.parse().unwrap(), ports)
    }

    #[test]
    fn the_lowest_port_that_both_want_is_told() {
        let any = rule(Addresses::Any, &[(8_080, 8_080), (9_000, 9_009)]);
        assert_eq!(takes(&any, "0.0.0.0", 8_080, 8_080), Some(8_080));
        assert_eq!(takes(&any, "192.0.2.1", 8_081, 9_005), Some(9_000));
        assert_eq!(takes(&any, "192.0.2.1", 9_010, 9_010), None);
        assert_eq!(takes(&any, "::", 8_080, 8_080), None);
        let other = any.takes(
            Protocol::Udp,
            "0.0.0.0".parse().unwrap(),
            PortRange::single(8_080).unwrap(),
        );
        assert_eq!(other, None);
    }

    #[test]
    fn a_rule_of_one_address_leaves_the_others() {
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        let one = rule(Addresses::Within(vec![address..=address]), &[(80, 80)]);
        assert_eq!(takes(&one, "192.0.2.1", 80, 80), Some(80));
        assert_eq!(takes(&one, "0.0.0.0", 80, 80), Some(80));
        assert_eq!(takes(&one, "192.0.2.2", 80, 80), None);
    }

    #[test]
    fn a_rule_that_looks_at_no_port_is_in_nobodys_way() {
        let proxy = rule(Addresses::Any, &[(1, 65_535)]);
        assert!(proxy.takes_every_port());
        assert_eq!(takes(&proxy, "0.0.0.0", 80, 80), None);
    }
}
