//! Packets by where they go to: the conditions of a rule that are understood, as a set of packets.

use super::intervals::{Intervals, ones};

/// RTN_LOCAL of `include/uapi/linux/rtnetlink.h`: the address is the host's own.
const RTN_LOCAL: u32 = 2;
/// NFPROTO_IPV4 and NFPROTO_IPV6 of `include/uapi/linux/netfilter.h`.
const NFPROTO: (u128, u128) = (2, 10);
/// ETH_P_IP and ETH_P_IPV6 of `include/uapi/linux/if_ether.h`.
const ETHERTYPE: (u128, u128) = (0x0800, 0x86dd);

/// What a condition asks of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Field {
    /// The address family, as an NFPROTO number.
    Family,
    /// The same, as an EtherType.
    EtherType,
    /// The transport protocol.
    Protocol,
    /// The destination address of IPv4.
    AddressV4,
    /// The destination address of IPv6.
    AddressV6,
    /// The destination port.
    Port,
    /// What the routing tables say of the destination address: an RTN number in host byte order, read as
    /// if it were in network byte order.
    DestinationType,
}

impl Field {
    /// Width in bits.
    pub(super) const fn bits(self) -> u32 {
        match self {
            Self::Family | Self::Protocol => 8,
            Self::EtherType | Self::Port => 16,
            Self::AddressV4 | Self::DestinationType => 32,
            Self::AddressV6 => 128,
        }
    }

    /// The highest value.
    pub(super) const fn max(self) -> u128 {
        ones(self.bits())
    }
}

/// That a field has one of these values.
pub(super) type Condition = (Field, Intervals);

/// Some of the two address families.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Families {
    pub(super) v4: bool,
    pub(super) v6: bool,
}

impl Families {
    pub(super) const V4: Self = Self {
        v4: true,
        v6: false,
    };
    pub(super) const V6: Self = Self {
        v4: false,
        v6: true,
    };
    pub(super) const BOTH: Self = Self { v4: true, v6: true };

    pub(super) const fn intersection(self, other: Self) -> Self {
        Self {
            v4: self.v4 && other.v4,
            v6: self.v6 && other.v6,
        }
    }

    pub(super) const fn union(self, other: Self) -> Self {
        Self {
            v4: self.v4 || other.v4,
            v6: self.v6 || other.v6,
        }
    }

    /// Those of which the number is among `values`.
    fn among(values: &Intervals, (v4, v6): (u128, u128)) -> Self {
        Self {
            v4: values.contains(v4),
            v6: values.contains(v6),
        }
    }
}

/// The packets of some families, protocols, destination addresses and ports, in every combination.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Region {
    pub(super) families: Families,
    pub(super) protocols: Intervals,
    /// Not limited while both families are in it.
    pub(super) addresses: Intervals,
    pub(super) ports: Intervals,
}

impl Region {
    /// Every packet of some families.
    pub(super) fn all(families: Families) -> Self {
        Self {
            families,
            protocols: Intervals::all(),
            addresses: Intervals::all(),
            ports: Intervals::all(),
        }
    }

    /// Those of its packets that meet a condition; None if none does.
    #[must_use]
    pub(super) fn narrowed(mut self, (field, values): &Condition) -> Option<Self> {
        match field {
            Field::Family => self.limit(Families::among(values, NFPROTO)),
            Field::EtherType => self.limit(Families::among(values, ETHERTYPE)),
            Field::Protocol => self.protocols = self.protocols.intersection(values),
            Field::Port => self.ports = self.ports.intersection(values),
            Field::AddressV4 | Field::AddressV6 => {
                self.limit(if *field == Field::AddressV4 {
                    Families::V4
                } else {
                    Families::V6
                });
                self.addresses = self.addresses.intersection(values);
            }
            Field::DestinationType => {
                let local = u32::from_be_bytes(RTN_LOCAL.to_ne_bytes());
                if !values.contains(local.into()) {
                    return None;
                }
            }
        }
        self.some()
    }

    fn limit(&mut self, families: Families) {
        self.families = self.families.intersection(families);
    }

    /// The packets of both.
    pub(super) fn intersection(&self, other: &Self) -> Option<Self> {
        let shared = Self {
            families: self.families.intersection(other.families),
            protocols: self.protocols.intersection(&other.protocols),
            addresses: self.addresses.intersection(&other.addresses),
            ports: self.ports.intersection(&other.ports),
        };
        shared.some()
    }

    /// The smallest region with the packets of both.
    pub(super) fn hull(&self, other: &Self) -> Self {
        let same_family = self.families == other.families;
        Self {
            families: self.families.union(other.families),
            protocols: self.protocols.union(&other.protocols),
            addresses: if same_family {
                self.addresses.union(&other.addresses)
            } else {
                Intervals::all()
            },
            ports: self.ports.union(&other.ports),
        }
    }

    /// Whether every packet of `other` is in it.
    pub(super) fn covers(&self, other: &Self) -> bool {
        self.families.intersection(other.families) == other.families
            && self.protocols.covers(&other.protocols)
            && self.addresses.covers(&other.addresses)
            && self.ports.covers(&other.ports)
    }

    fn some(self) -> Option<Self> {
        let has_family = self.families.v4 || self.families.v6;
        let parts = [&self.protocols, &self.addresses, &self.ports];
        (has_family && !parts.iter().any(|part| part.is_empty())).then_some(self)
    }
}
