//! Which ports the kernel gives sockets that name none, and which ones it is told not to.

use std::fs;
use std::io;

use super::netns::Netns;
use crate::collision::PortSet;
use crate::error::{Doing, Error, shown};
use crate::spec::PortRange;

const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// The ports of a network namespace that the kernel chooses from, for both families.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalPorts {
    /// `ip_local_port_range`.
    pub range: PortRange,
    /// `ip_local_reserved_ports`: never chosen.
    pub reserved: PortSet,
    /// The same as the kernel writes it.
    reserved_text: String,
}

impl LocalPorts {
    /// From the texts of the two settings.
    ///
    /// # Errors
    /// When one of them is not as the kernel writes it.
    pub fn from_kernel(range: &str, reserved: &str) -> Result<Self, Error> {
        let ends = || {
            let mut ends = range.split_whitespace().map(str::parse::<u16>);
            let (first, last) = (ends.next()?.ok()?, ends.next()?.ok()?);
            PortRange::new(first.max(1), last)
        };
        let odd = || io::Error::other(format!("{} is no range", shown(range)));
        Ok(Self {
            range: ends().ok_or_else(odd).doing(|| format!("read {RANGE}"))?,
            reserved: PortSet::from_kernel_list(reserved).doing(|| format!("read {RESERVED}"))?,
            reserved_text: reserved.trim().to_owned(),
        })
    }

    /// Those of the calling thread's namespace.
    ///
    /// # Errors
    /// When the settings cannot be read.
    pub fn here() -> Result<Self, Error> {
        let read = |path| fs::read_to_string(path).doing(|| format!("read {path}"));
        Self::from_kernel(&read(RANGE)?, &read(RESERVED)?)
    }

    /// Those of a host.
    ///
    /// # Errors
    /// When the settings cannot be read.
    pub fn of(netns: &Netns) -> Result<Self, Error> {
        netns.run_in(Self::here)?
    }

    /// The part of `ports` within which the kernel may choose one.
    #[must_use]
    pub fn shared_with(&self, ports: PortRange) -> Option<PortRange> {
        let shared = ports.intersection(self.range)?;
        let is_chosen = |port: u16| !self.reserved.contains(port);
        (shared.first()..=shared.last())
            .any(is_chosen)
            .then_some(shared)
    }

    /// The command that keeps the kernel from choosing `ports`.
    #[must_use]
    pub fn reserve_command(&self, ports: PortRange) -> String {
        let separator = if self.reserved_text.is_empty() {
            ""
        } else {
            ","
        };
        format!(
            "sysctl -w net.ipv4.ip_local_reserved_ports={}{separator}{ports}",
            self.reserved_text
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u16, last: u16) -> PortRange {
        PortRange::new(first, last).expect("a range")
    }

    #[test]
    fn a_published_port_is_shared_unless_it_is_reserved() {
        let ports = LocalPorts::from_kernel("32768\t60999\n", "40000,40010-40019\n").unwrap();
        assert_eq!(ports.shared_with(range(8_080, 8_080)), None);
        assert_eq!(ports.shared_with(range(40_000, 40_000)), None);
        assert_eq!(ports.shared_with(range(40_010, 40_019)), None);
        let beyond = range(40_010, 40_020);
        assert_eq!(ports.shared_with(beyond), Some(beyond));
        let shared = ports.shared_with(range(60_000, 62_000));
        assert_eq!(shared, Some(range(60_000, 60_999)));
    }

    #[test]
    fn the_command_keeps_what_is_reserved_already() {
        let command = |reserved| {
            let ports = LocalPorts::from_kernel("32768 60999", reserved).unwrap();
            ports.reserve_command(range(50_000, 50_009))
        };
        let set = "sysctl -w net.ipv4.ip_local_reserved_ports=";
        assert_eq!(command("\n"), format!("{set}50000-50009"));
        assert_eq!(command("40000\n"), format!("{set}40000,50000-50009"));
    }

    #[test]
    fn a_range_that_makes_no_sense_is_refused() {
        for text in ["", "32768", "a b", "60999 32768", "1 70000"] {
            let refused = LocalPorts::from_kernel(text, "").unwrap_err();
            let refused = refused.to_string();
            assert!(refused.contains("ip_local_port_range"), "{refused}");
        }
    }
}
