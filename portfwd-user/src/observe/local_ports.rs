//! Which ports the kernel gives sockets that name none, and which ones it is told not to.

use std::fs::File;
use std::io::{self, Read as _};

use super::netns::Netns;
use crate::collision::PortSet;
use crate::error::{Doing, Error, shown};
use crate::spec::PortRange;

const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// Longer than any of the settings: every second port is 192 KiB.
const LONGEST: usize = 256 << 10;
/// Bytes that the kernel takes of one write: less than a page (`proc_do_large_bitmap`), with the end of the line.
const WRITTEN: usize = 4094;

/// The ports of a network namespace that the kernel chooses from, for both families.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalPorts {
    /// `ip_local_port_range`.
    pub range: PortRange,
    /// `ip_local_reserved_ports`: never chosen.
    pub reserved: PortSet,
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
        })
    }

    /// Those of the calling thread's namespace.
    ///
    /// # Errors
    /// When the settings cannot be read.
    pub fn here() -> Result<Self, Error> {
        let read = |path| read_at_once(path).doing(|| format!("read {path}"));
        Self::from_kernel(&read(RANGE)?, &read(RESERVED)?)
    }

    /// Those of a host.
    ///
    /// # Errors
    /// When the settings cannot be read.
    pub fn of(netns: &Netns) -> Result<Self, Error> {
        netns.run_in(Self::here)?
    }

    /// Those of `ports` that the kernel may choose.
    #[must_use]
    pub fn shared_with(&self, ports: &PortSet) -> PortSet {
        let mut shared = PortSet::new();
        let is_shared = |port: &u16| ports.contains(*port) && !self.reserved.contains(*port);
        for port in self.range.ports().filter(is_shared) {
            shared.insert(port);
        }
        shared
    }

    /// The command that keeps the kernel from choosing `ports` and what it is kept from already: each write to the
    /// setting is the whole of it. What is longer than [`WRITTEN`] has to be written on, which `sysctl` does not do.
    #[must_use]
    pub fn reserve_command(&self, ports: &PortSet) -> String {
        let mut reserved = self.reserved.clone();
        reserved.extend(ports);
        let reserved = reserved.to_string();
        match reserved.len() <= WRITTEN {
            true => format!("sysctl -w net.ipv4.ip_local_reserved_ports={reserved}"),
            false => format!("printf %s {reserved} | dd bs=1M iflag=fullblock of={RESERVED}"),
        }
    }
}

/// A second read finds nothing more (`proc_do_large_bitmap`), and those of the standard library begin with a few bytes.
fn read_at_once(path: &str) -> io::Result<String> {
    let mut text = vec![0; LONGEST];
    let length = File::open(path)?.read(&mut text)?;
    text.truncate(length);
    String::from_utf8(text).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(list: &str) -> PortSet {
        PortSet::from_kernel_list(list).expect("a list")
    }

    #[test]
    fn a_published_port_is_shared_unless_it_is_reserved() {
        let ports = LocalPorts::from_kernel("32768\t60999\n", "40000,40010-40019\n").unwrap();
        for (published, shared) in [
            ("", ""),
            ("8080", ""),
            ("40000", ""),
            ("40010-40019", ""),
            ("40009-40020", "40009,40020"),
            ("32767-32768,60000-62000", "32768,60000-60999"),
        ] {
            assert_eq!(ports.shared_with(&set(published)).to_string(), shared);
        }
    }

    #[test]
    fn the_command_keeps_what_is_reserved_already() {
        let command = |reserved| {
            let ports = LocalPorts::from_kernel("32768 60999", reserved).unwrap();
            ports.reserve_command(&set("50000-50009,50011"))
        };
        for (reserved, all) in [
            ("\n", "50000-50009,50011"),
            ("40000\n", "40000,50000-50009,50011"),
            ("50005-50010,65535\n", "50000-50011,65535"),
        ] {
            let expected = format!("sysctl -w net.ipv4.ip_local_reserved_ports={all}");
            assert_eq!(command(reserved), expected);
        }
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
