//! Where a container is, as `--netns`, `--pid` or `--ip` say.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::shown;

/// How `attach` finds the container.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// By a file that stands for its network namespace.
    Netns(PathBuf),
    /// By a process inside.
    Pid(u32),
    /// By address alone.
    Addresses(Addresses),
}

/// The addresses of a container: one of each family at most, and one at least.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Addresses {
    /// Its IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub v6: Option<Ipv6Addr>,
}

/// A malformed value of `--ip`.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("container address {}: {kind}", shown(text))]
pub struct AddressError {
    text: String,
    kind: AddressErrorKind,
}

/// What is wrong with it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AddressErrorKind {
    /// Nothing, or nothing beside a comma.
    #[error("an address is missing")]
    Missing,
    /// No IP address.
    #[error("{} is not an IP address, and names are not looked up", shown(.0))]
    NotAnAddress(String),
    /// More than one of a family.
    #[error("two addresses of one family")]
    TwoOfAFamily,
    /// Where no container can be.
    #[error("{0} is {1}, where no container is reached")]
    Unfit(IpAddr, &'static str),
}

impl AddressError {
    /// What to type instead.
    #[must_use]
    pub fn hint(&self) -> String {
        "one address of a family, as in --ip 10.88.0.2 or --ip 10.88.0.2,fd00::2".to_owned()
    }
}

impl FromStr for Addresses {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let mut addresses = Self { v4: None, v6: None };
        for part in text.split(',') {
            addresses.add(part).map_err(|kind| AddressError {
                text: text.to_owned(),
                kind,
            })?;
        }
        Ok(addresses)
    }
}

impl Addresses {
    fn add(&mut self, text: &str) -> Result<(), AddressErrorKind> {
        if text.is_empty() {
            return Err(AddressErrorKind::Missing);
        }
        let address: IpAddr = text
            .parse()
            .map_err(|_| AddressErrorKind::NotAnAddress(text.to_owned()))?;
        let address = address.to_canonical();
        if let Some(what) = unfit(address) {
            return Err(AddressErrorKind::Unfit(address, what));
        }
        let taken = match address {
            IpAddr::V4(v4) => self.v4.replace(v4).is_some(),
            IpAddr::V6(v6) => self.v6.replace(v6).is_some(),
        };
        if taken {
            return Err(AddressErrorKind::TwoOfAFamily);
        }
        Ok(())
    }
}

/// The name of an address range in which no container's address can be.
fn unfit(address: IpAddr) -> Option<&'static str> {
    if address.is_unspecified() {
        return Some("the unspecified address");
    }
    if address.is_loopback() {
        return Some("a loopback address");
    }
    if address.is_multicast() {
        return Some("multicast");
    }
    match address {
        IpAddr::V4(v4) if v4.is_link_local() => Some("link-local"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("link-local"),
        IpAddr::V4(v4) if v4.octets()[0] == 0 || v4.octets()[0] >= 240 => Some("reserved"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_of_each_family_in_either_order() {
        let v4 = Some(Ipv4Addr::new(10, 88, 0, 2));
        let v6 = Some("fd00::2".parse().unwrap());
        for (text, want) in [
            ("10.88.0.2", Addresses { v4, v6: None }),
            ("fd00::2", Addresses { v4: None, v6 }),
            ("10.88.0.2,fd00::2", Addresses { v4, v6 }),
            ("fd00::2,10.88.0.2", Addresses { v4, v6 }),
            ("::ffff:10.88.0.2", Addresses { v4, v6: None }),
        ] {
            assert_eq!(text.parse::<Addresses>().unwrap(), want, "{text}");
        }
    }

    #[test]
    fn other_addresses_are_refused_by_name() {
        for (text, says) in [
            ("", "\"\": an address is missing"),
            ("10.88.0.2,", "an address is missing"),
            ("web", "\"web\" is not an IP address"),
            ("-1", "\"-1\" is not an IP address"),
            ("10.88.0.2/24", "\"10.88.0.2/24\" is not an IP address"),
            ("fe80::1%eth0", "\"fe80::1%eth0\" is not"),
            ("10.88.0.2,10.88.0.3", "two addresses of one family"),
            ("10.88.0.2,fd00::2,fd00::3", "two addresses of one family"),
            ("0.0.0.0", "is the unspecified address"),
            ("::", "is the unspecified address"),
            ("127.0.0.1", "is a loopback address"),
            ("::1", "is a loopback address"),
            ("224.0.0.1", "is multicast"),
            ("ff02::1", "is multicast"),
            ("255.255.255.255", "is reserved"),
            ("0.1.2.3", "is reserved"),
            ("169.254.1.1", "is link-local"),
            ("fe80::1", "is link-local"),
        ] {
            let error = text.parse::<Addresses>().unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
            assert!(error.starts_with("container address \""), "{error}");
        }
    }
}
