//! What `--connect` asks for: the addresses of the two ends of a link, at most once for each family.

pub mod fit;

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use crate::error::shown;
use crate::subnet;

/// The addresses of a link in one family. Both are of one subnet, of which neither is a special address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ends {
    /// That of the host, by which the container reaches everybody else.
    pub host: IpNet,
    /// That of the container.
    pub container: IpNet,
}

/// The addresses of a link: one of each family at most, IPv4 first, and one at least.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Connection(Vec<Ends>);

/// A malformed value of `--connect`.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("connection {}: {kind}", shown(text))]
pub struct ConnectionError {
    text: String,
    kind: ConnectionErrorKind,
}

/// What is wrong with it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConnectionErrorKind {
    /// One, or more than two.
    #[error("not two addresses with a comma between them")]
    NotTwo,
    /// No address, no length, or one that is too large.
    #[error("{} is not an IP address with the length of its prefix", shown(.0))]
    NotAnAddress(String),
    /// One of each family.
    #[error("{0} and {1} are of different families")]
    Families(IpNet, IpNet),
    /// Then it would be nobody's.
    #[error("{0} would be the address of both ends")]
    Same(IpAddr),
    /// Neither would find the other.
    #[error("{0} and {1} are not of one subnet")]
    DifferentSubnets(IpNet, IpNet),
    /// A prefix without a bit.
    #[error("every address is in the subnet of {0}")]
    Everything(IpNet),
    /// Where no container can be.
    #[error("subnet {0} holds {1} addresses, where no container is reached")]
    Unfit(IpNet, &'static str),
    /// An address that stands for a subnet, or for all that are in it.
    #[error("{0} is the {1} address of its subnet")]
    Special(IpNet, &'static str),
    /// More than one of a family.
    #[error("there is one of that family already")]
    TwoOfAFamily,
}

impl ConnectionError {
    /// What to type instead.
    #[must_use]
    pub fn hint(&self) -> String {
        "HOSTADDR/LEN,CTRADDR/LEN, once for each family, as in --connect 10.99.0.1/24,10.99.0.2/24 \
         or --connect fd99::1/64,fd99::2/64"
            .to_owned()
    }
}

impl Connection {
    /// From every value of the option; None if there is none.
    ///
    /// # Errors
    /// When one is malformed, or two are of one family; after the position of that one.
    pub fn of(texts: &[String]) -> Result<Option<Self>, (usize, ConnectionError)> {
        let mut connection = Self(Vec::new());
        for (position, text) in texts.iter().enumerate() {
            let add = |ends| connection.add(ends);
            let wrong = |kind| {
                let text = text.clone();
                (position, ConnectionError { text, kind })
            };
            parse(text).and_then(add).map_err(wrong)?;
        }
        Ok((!texts.is_empty()).then_some(connection))
    }

    fn add(&mut self, ends: Ends) -> Result<(), ConnectionErrorKind> {
        if self.0.iter().any(|other| other.is_v4() == ends.is_v4()) {
            return Err(ConnectionErrorKind::TwoOfAFamily);
        }
        self.0.push(ends);
        self.0.sort_by_key(|ends| !ends.is_v4());
        Ok(())
    }

    /// The addresses in each of its families.
    pub fn ends(&self) -> impl Iterator<Item = &Ends> {
        self.0.iter()
    }
    /// Whether a subnet of the one holds addresses of the other's.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let shares = |one: &Ends, other: &Ends| {
            let (one, other) = (one.host.trunc(), other.host.trunc());
            one.contains(&other) || other.contains(&one)
        };
        self.ends()
            .any(|one| other.ends().any(|other| shares(one, other)))
    }
    /// The container's IPv4 address.
    #[must_use]
    pub fn v4(&self) -> Option<IpAddr> {
        let mut containers = self.ends().map(|ends| ends.container.addr());
        containers.find(IpAddr::is_ipv4)
    }
    /// The container's IPv6 address.
    #[must_use]
    pub fn v6(&self) -> Option<IpAddr> {
        let mut containers = self.ends().map(|ends| ends.container.addr());
        containers.find(IpAddr::is_ipv6)
    }
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.ends().map(Ends::to_string).collect();
        f.write_str(&all.join(" and "))
    }
}

impl Ends {
    /// Whether of IPv4.
    #[must_use]
    pub fn is_v4(&self) -> bool {
        self.host.addr().is_ipv4()
    }
    /// The subnet of both.
    #[must_use]
    pub fn subnet(&self) -> IpNet {
        self.host.trunc()
    }
}

impl fmt::Display for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.host, self.container)
    }
}

fn parse(text: &str) -> Result<Ends, ConnectionErrorKind> {
    let (host, container) = text.split_once(',').ok_or(ConnectionErrorKind::NotTwo)?;
    if container.contains(',') {
        return Err(ConnectionErrorKind::NotTwo);
    }
    let [host, container] = [address(host)?, address(container)?];
    if host.addr().is_ipv4() != container.addr().is_ipv4() {
        return Err(ConnectionErrorKind::Families(host, container));
    }
    for end in [host, container] {
        check_subnet(end)?;
    }
    if host.addr() == container.addr() {
        return Err(ConnectionErrorKind::Same(host.addr()));
    }
    if host.trunc() != container.trunc() {
        return Err(ConnectionErrorKind::DifferentSubnets(host, container));
    }
    for end in [host, container] {
        check_not_special(end)?;
    }
    Ok(Ends { host, container })
}

fn address(text: &str) -> Result<IpNet, ConnectionErrorKind> {
    IpNet::from_str(text).map_err(|_| ConnectionErrorKind::NotAnAddress(text.to_owned()))
}

fn check_subnet(end: IpNet) -> Result<(), ConnectionErrorKind> {
    if end.prefix_len() == 0 {
        return Err(ConnectionErrorKind::Everything(end));
    }
    match subnet::unfit_part(end.trunc()) {
        None => Ok(()),
        Some(what) => Err(ConnectionErrorKind::Unfit(end.trunc(), what)),
    }
}

/// In subnets of two addresses none is special: RFC 3021 for IPv4, RFC 6164 for IPv6. In others of IPv6 the
/// first one is that of all its routers (RFC 4291, section 2.6.1).
fn check_not_special(end: IpNet) -> Result<(), ConnectionErrorKind> {
    if end.max_prefix_len() - end.prefix_len() < 2 {
        return Ok(());
    }
    let is_v4 = end.addr().is_ipv4();
    let first = if is_v4 {
        "network"
    } else {
        "subnet-router anycast"
    };
    if end.addr() == end.network() {
        return Err(ConnectionErrorKind::Special(end, first));
    }
    if is_v4 && end.addr() == end.broadcast() {
        return Err(ConnectionErrorKind::Special(end, "broadcast"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(texts: &[&str]) -> Result<Option<Connection>, ConnectionError> {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        Connection::of(&texts).map_err(|(_, error)| error)
    }

    #[test]
    fn one_connection_of_each_family_in_either_order() {
        let v4 = "10.99.0.1/24,10.99.0.2/24";
        let v6 = "fd99::1/64,fd99::2/64";
        assert_eq!(connection(&[]), Ok(None));
        for (texts, shown) in [
            (&[v4][..], v4.to_owned()),
            (&[v6], v6.to_owned()),
            (&[v4, v6], format!("{v4} and {v6}")),
            (&[v6, v4], format!("{v4} and {v6}")),
            // Of two addresses none is special.
            (
                &["10.99.0.0/31,10.99.0.1/31"],
                "10.99.0.0/31,10.99.0.1/31".to_owned(),
            ),
            (
                &["fd99::/127,fd99::1/127"],
                "fd99::/127,fd99::1/127".to_owned(),
            ),
            // IPv6 knows no broadcast.
            (
                &["fd99::ff/120,fd99::2/120"],
                "fd99::ff/120,fd99::2/120".to_owned(),
            ),
        ] {
            let found = connection(texts).unwrap().unwrap();
            assert_eq!(found.to_string(), shown);
        }
        let both = connection(&[v4, v6]).unwrap().unwrap();
        assert_eq!(both.v4(), Some("10.99.0.2".parse().unwrap()));
        assert_eq!(both.v6(), Some("fd99::2".parse().unwrap()));
    }

    #[test]
    fn other_texts_are_refused_with_the_value_at_fault() {
        for (text, says) in [
            ("", "not two addresses"),
            ("10.99.0.1/24", "not two addresses"),
            (
                "10.99.0.1/24,10.99.0.2/24,10.99.0.3/24",
                "not two addresses",
            ),
            (",10.99.0.2/24", "\"\" is not an IP address with"),
            (
                "10.99.0.1,10.99.0.2/24",
                "\"10.99.0.1\" is not an IP address with",
            ),
            ("10.99.0.1/24,web", "\"web\" is not an IP address with"),
            ("10.99.0.1/33,10.99.0.2/33", "\"10.99.0.1/33\" is not"),
            ("10.99.0.1/-1,10.99.0.2/24", "\"10.99.0.1/-1\" is not"),
            ("fd99::1/129,fd99::2/129", "\"fd99::1/129\" is not"),
            ("10.99.0.1/24, 10.99.0.2/24", "\" 10.99.0.2/24\" is not"),
            (
                "10.99.0.1/24,fd99::2/64",
                "10.99.0.1/24 and fd99::2/64 are of different families",
            ),
            (
                "10.99.0.1/24,10.99.0.1/24",
                "10.99.0.1 would be the address of both ends",
            ),
            (
                "10.99.0.1/24,10.99.1.2/24",
                "10.99.0.1/24 and 10.99.1.2/24 are not of one subnet",
            ),
            (
                "10.99.0.1/24,10.99.0.2/16",
                "10.99.0.1/24 and 10.99.0.2/16 are not of one subnet",
            ),
            (
                "10.99.0.1/32,10.99.0.2/32",
                "10.99.0.1/32 and 10.99.0.2/32 are not of one subnet",
            ),
            (
                "fd99::1/128,fd99::2/128",
                "fd99::1/128 and fd99::2/128 are not of one subnet",
            ),
            (
                "10.99.0.1/0,10.99.0.2/0",
                "every address is in the subnet of 10.99.0.1/0",
            ),
            (
                "fd99::1/0,fd99::2/0",
                "every address is in the subnet of fd99::1/0",
            ),
            (
                "10.99.0.0/24,10.99.0.2/24",
                "10.99.0.0/24 is the network address",
            ),
            (
                "10.99.0.1/24,10.99.0.255/24",
                "10.99.0.255/24 is the broadcast address",
            ),
            (
                "fd99::/64,fd99::2/64",
                "fd99::/64 is the subnet-router anycast address",
            ),
            (
                "224.0.0.1/24,224.0.0.2/24",
                "subnet 224.0.0.0/24 holds multicast addresses",
            ),
            (
                "ff02::1/64,ff02::2/64",
                "subnet ff02::/64 holds multicast addresses",
            ),
            (
                "127.0.0.1/8,127.0.0.2/8",
                "subnet 127.0.0.0/8 holds loopback addresses",
            ),
            ("::1/128,::2/128", "subnet ::1/128 holds loopback addresses"),
            (
                "169.254.1.1/16,169.254.1.2/16",
                "holds link-local addresses",
            ),
            ("fe80::1/64,fe80::2/64", "holds link-local addresses"),
            (
                "0.0.0.0/24,0.0.0.1/24",
                "subnet 0.0.0.0/24 holds reserved addresses",
            ),
            ("::/64,::5/64", "subnet ::/64 holds reserved addresses"),
            (
                "255.255.255.254/31,255.255.255.255/31",
                "holds reserved addresses",
            ),
            (
                "10.99.0.1/1,10.99.0.2/1",
                "subnet 0.0.0.0/1 holds reserved addresses",
            ),
            (
                "::ffff:10.99.0.1/120,::ffff:10.99.0.2/120",
                "holds IPv4-mapped addresses",
            ),
        ] {
            let error = connection(&[text]).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
            let begins = format!("connection \"{text}\": ");
            assert!(error.to_string().starts_with(&begins), "{error}");
            assert!(error.hint().contains("HOSTADDR/LEN,CTRADDR/LEN"));
        }
    }

    #[test]
    fn two_of_one_family_are_refused() {
        let error = connection(&["10.99.0.1/24,10.99.0.2/24", "10.98.0.1/24,10.98.0.2/24"]);
        assert_eq!(
            error.unwrap_err().to_string(),
            "connection \"10.98.0.1/24,10.98.0.2/24\": there is one of that family already"
        );
    }
}
