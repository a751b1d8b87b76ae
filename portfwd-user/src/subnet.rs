//! Subnets as `masquerade` takes them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use aya::maps::lpm_trie::Key;
use ipnet::IpNet;
use portfwd_common::net::Ip;
use serde::{Serialize, Serializer};

use crate::error::shown;

/// A subnet of addresses that containers can have: `10.88.0.0/16`, or a single address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Subnet(IpNet);

/// A malformed subnet.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("subnet {}: {kind}", shown(text))]
pub struct SubnetError {
    text: String,
    kind: SubnetErrorKind,
}

/// What is wrong with it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SubnetErrorKind {
    /// Neither an address nor an address with a length.
    #[error("not an address, nor one with the length of its prefix")]
    NotASubnet,
    /// Bits are set behind the prefix.
    #[error("the subnet of that address is {0}")]
    HostBits(Subnet),
    /// Packets within it stay as they are, so nothing would be masqueraded.
    #[error("every address is in it, so nobody is left to send to")]
    Everything,
    /// Where no container can be.
    #[error("it holds {0} addresses, which no packet is masqueraded from")]
    Unfit(&'static str),
}

impl SubnetError {
    /// What to type instead.
    #[must_use]
    pub fn hint(&self) -> String {
        match self.kind {
            SubnetErrorKind::HostBits(subnet) => format!("give {subnet}"),
            _ => "such as 10.88.0.0/16, fd00:88::/64 or 10.88.0.2".to_owned(),
        }
    }
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        parse(text).map_err(|kind| SubnetError {
            text: text.to_owned(),
            kind,
        })
    }
}

fn parse(text: &str) -> Result<Subnet, SubnetErrorKind> {
    let net: IpNet = match text.parse::<IpAddr>() {
        Ok(address) => address.into(),
        Err(_) => text.parse().map_err(|_| SubnetErrorKind::NotASubnet)?,
    };
    if net.addr() != net.network() {
        return Err(SubnetErrorKind::HostBits(Subnet(net.trunc())));
    }
    if net.prefix_len() == 0 {
        return Err(SubnetErrorKind::Everything);
    }
    match unfit_part(net) {
        None => Ok(Subnet(net)),
        Some(what) => Err(SubnetErrorKind::Unfit(what)),
    }
}

/// What addresses a subnet holds that no container can have; None if it holds none.
pub(crate) fn unfit_part(net: IpNet) -> Option<&'static str> {
    let touches = |range: &str| {
        let range = range.parse::<IpNet>();
        range.is_ok_and(|range| range.contains(&net) || net.contains(&range))
    };
    let part = UNFIT.iter().find(|(range, _)| touches(range));
    part.map(|(_, what)| *what)
}

/// Ranges that no subnet may touch.
const UNFIT: [(&str, &str); 10] = [
    ("0.0.0.0/8", "reserved"),
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved"),
    ("::/128", "reserved"),
    ("::1/128", "loopback"),
    ("::ffff:0:0/96", "IPv4-mapped"),
    ("fe80::/10", "link-local"),
    ("ff00::/8", "multicast"),
];

impl Subnet {
    /// One address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        Self(address.into())
    }
    /// Whether of IPv6.
    #[must_use]
    pub fn is_v6(self) -> bool {
        self.0.addr().is_ipv6()
    }

    /// Key of the trie, in which IPv4 stands mapped into IPv6.
    #[must_use]
    pub fn key(self) -> Key<[u8; 16]> {
        let length = u32::from(self.0.prefix_len());
        let mapped = if self.0.addr().is_ipv4() { 96 } else { 0 };
        Key::new(length + mapped, Ip::from(self.0.addr()).octets())
    }
    /// The other way; None for a key that no subnet has.
    #[must_use]
    pub fn from_key(key: &Key<[u8; 16]>) -> Option<Self> {
        let (length, octets) = (key.prefix_len(), key.data());
        let address = IpAddr::from(Ip::from_octets(octets));
        let length = match address {
            IpAddr::V4(_) => length.checked_sub(96)?,
            IpAddr::V6(_) => length,
        };
        let net = IpNet::new(address, u8::try_from(length).ok()?).ok()?;
        Some(Self(net))
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Subnet {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_is_an_address_with_a_length_or_a_single_address() {
        for (text, shown, length) in [
            ("10.88.0.0/16", "10.88.0.0/16", 112),
            ("10.88.0.2", "10.88.0.2/32", 128),
            ("10.88.0.2/32", "10.88.0.2/32", 128),
            ("fd88::/64", "fd88::/64", 64),
            ("fd88::2", "fd88::2/128", 128),
        ] {
            let subnet: Subnet = text.parse().unwrap();
            assert_eq!(subnet.to_string(), shown);
            assert_eq!(subnet.key().prefix_len(), length);
            assert_eq!(Subnet::from_key(&subnet.key()), Some(subnet));
        }
    }

    #[test]
    fn other_texts_are_refused_with_a_hint() {
        for (text, says, hint) in [
            ("", "not an address", "such as"),
            ("web", "not an address", "such as"),
            ("10.88.0.0/33", "not an address", "such as"),
            ("10.88.0.0/-1", "not an address", "such as"),
            ("10.88.0/16", "not an address", "such as"),
            (
                "10.88.0.5/16",
                "the subnet of that address is 10.88.0.0/16",
                "give 10.88.0.0/16",
            ),
            (
                "fd88::1/64",
                "the subnet of that address is fd88::/64",
                "give fd88::/64",
            ),
            ("0.0.0.0/0", "every address is in it", "such as"),
            ("::/0", "every address is in it", "such as"),
            ("127.0.0.0/8", "loopback", "such as"),
            ("127.0.0.1", "loopback", "such as"),
            ("128.0.0.0/1", "link-local", "such as"),
            ("224.0.0.1", "multicast", "such as"),
            ("fe80::/64", "link-local", "such as"),
            ("::1", "loopback", "such as"),
            ("::ffff:10.88.0.0/112", "IPv4-mapped", "such as"),
        ] {
            let error = text.parse::<Subnet>().unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
            assert!(error.to_string().starts_with("subnet \""), "{error}");
            assert!(error.hint().contains(hint), "{text}: {}", error.hint());
        }
    }
}
