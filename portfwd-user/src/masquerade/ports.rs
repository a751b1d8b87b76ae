//! The ports that masqueraded flows may have, and the addresses that devices give them.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{Ordering, fence};

use portfwd_common::forward::MAX_FORWARDS;
use portfwd_common::masquerade::{DeviceFamily, PortElement};
use portfwd_common::{maps, net::Ip};

use super::failed;
use crate::collision::PortSet;
use crate::error::{Doing, Error};
use crate::observe::{addresses::Host, links::Link, local_ports::LocalPorts, netns::Netns};
use crate::tables::{TableError, Tables};

/// First port that is given out of our own accord; below it a container keeps its own (RFC 4787, section
/// 4.2.2: those ports have meanings).
const FIRST_LISTED: u16 = 1_024;

/// With fewer ports to give out a busy host may run out of them.
const FEW: usize = 1_000;

/// How many ports masqueraded flows are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Ports that may be given out.
    pub ports: usize,
    /// Whether it is `ip_local_port_range` that takes the most.
    pub by_range: bool,
}

impl Room {
    /// That of the namespace's host.
    ///
    /// # Errors
    /// When the kernel's settings cannot be read.
    pub fn of(netns: &Netns) -> Result<Self, Error> {
        let usable = UsablePorts::of(netns)?;
        let ports = usable.listed().count();
        let by_range = usize::from(usable.ephemeral) > usize::from(u16::MAX) / 2;
        Ok(Self { ports, by_range })
    }
    /// Whether it is too little.
    #[must_use]
    pub const fn is_short(self) -> bool {
        self.ports < FEW
    }
    /// `976 ports`, or none.
    #[must_use]
    pub fn shown(self) -> String {
        match self.ports {
            0 => "no port".to_owned(),
            1 => "1 port".to_owned(),
            ports => format!("{ports} ports"),
        }
    }
    /// What it costs if it is too little.
    #[must_use]
    pub const fn cost(self) -> &'static str {
        match self.ports {
            0 => "what containers open is dropped, unless its own port is below 1024 and free",
            _ => "when all are in use toward a destination, what containers open to it is dropped",
        }
    }
    /// What to do then.
    #[must_use]
    pub const fn remedy(self) -> &'static str {
        match self.by_range {
            true => "sysctl -w net.ipv4.ip_local_port_range=\"32768 60999\", then portfwd up",
            false => "take ports out of net.ipv4.ip_local_reserved_ports, then portfwd up",
        }
    }
}

/// The ports of the host that nobody but masqueraded flows uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsablePorts {
    taken: PortSet,
    /// How many the host's sockets are given.
    ephemeral: u16,
}

impl UsablePorts {
    /// Those beside what the host's sockets are given and what is reserved.
    #[must_use]
    pub fn beside(local: &LocalPorts) -> Self {
        let mut taken = local.reserved.clone();
        taken.insert(0);
        taken.insert_range(local.range);
        Self {
            taken,
            ephemeral: local.range.count(),
        }
    }
    /// Those of the namespace's host.
    ///
    /// # Errors
    /// When the kernel's settings cannot be read.
    pub fn of(netns: &Netns) -> Result<Self, Error> {
        Ok(Self::beside(&LocalPorts::of(netns)?))
    }
    /// Whether a container may keep this one.
    #[must_use]
    pub fn is_free(&self, port: u16) -> bool {
        !self.taken.contains(port)
    }
    /// What is given out to those who cannot keep theirs.
    pub fn listed(&self) -> impl Iterator<Item = u16> + '_ {
        (FIRST_LISTED..=u16::MAX).filter(|port| self.is_free(*port))
    }
}

/// Brings ports and addresses in step with the host; `served` are the devices whose answers come back to
/// the programs.
///
/// # Errors
/// When the host cannot be observed, or a table not be written.
pub fn refresh(
    tables: &mut Tables,
    host: &Host,
    served: &[&Link],
    netns: &Netns,
) -> Result<(), Error> {
    let ports = UsablePorts::of(netns)?;
    write_ports(tables, &ports)
        .and_then(|()| write_addresses(tables, host, served))
        .doing(|| "refresh the ports and addresses of masqueraded flows".to_owned())
}

/// The list, then its length: a program may for an instant find a port twice or not at all, never one
/// that it may not use, as it asks for that again.
fn write_ports(tables: &mut Tables, ports: &UsablePorts) -> Result<(), TableError> {
    tables.outbound_ports.reach(0, 1 << 16)?;
    let mut listed = ports.listed().map(u32::from);
    let mut length = 0;
    for port in 0..=u16::MAX {
        let next = listed.next();
        length += u64::from(next.is_some());
        let element = PortElement {
            listed: next.unwrap_or_default(),
            free: u32::from(ports.is_free(port)),
        };
        tables.outbound_ports.set(u32::from(port), element);
    }
    fence(Ordering::Release);
    let mut settings = tables.masquerade.get(0);
    settings.ports = length;
    if settings.secret == 0 {
        settings.secret = RandomState::new().build_hasher().finish();
    }
    tables.masquerade.set(0, settings);
    Ok(())
}

fn write_addresses(tables: &mut Tables, host: &Host, served: &[&Link]) -> Result<(), TableError> {
    let mut wanted = Vec::new();
    for device in served {
        for family in [0, 1] {
            let is_own = |(index, ip): &&(u32, IpAddr)| {
                *index == device.index && u32::from(ip.is_ipv6()) == family
            };
            let address = host.sources.iter().find(is_own);
            let address = address.map_or(Ip::NONE, |(_, ip)| Ip::from(*ip));
            let device = device.index;
            wanted.push((DeviceFamily { device, family }, address));
        }
    }
    let known: Vec<DeviceFamily> = tables
        .device_ips
        .keys()
        .collect::<Result<_, _>>()
        .map_err(failed(maps::DEVICE_IPS))?;
    for key in known
        .iter()
        .filter(|key| wanted.iter().all(|(own, _)| own != *key))
    {
        tables
            .device_ips
            .remove(key)
            .map_err(failed(maps::DEVICE_IPS))?;
    }
    for (key, address) in wanted {
        tables
            .device_ips
            .insert(key, address, 0)
            .map_err(|source| TableError::full_or(maps::DEVICE_IPS, 2 * MAX_FORWARDS, source))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ephemeral_and_reserved_ports_are_neither_kept_nor_given_out() {
        let local = LocalPorts::from_kernel("32768\t60999\n", "2000,3000-3009").unwrap();
        let ports = UsablePorts::beside(&local);
        for taken in [0, 2_000, 3_000, 3_009, 32_768, 60_999] {
            assert!(!ports.is_free(taken), "{taken}");
        }
        for free in [
            1, 22, 1_023, 1_024, 1_999, 2_001, 3_010, 32_767, 61_000, 65_535,
        ] {
            assert!(ports.is_free(free), "{free}");
        }
        let listed: Vec<u16> = ports.listed().collect();
        assert_eq!(listed.len(), 65_536 - 1_024 - 11 - (60_999 - 32_768 + 1));
        assert_eq!((listed[0], listed.last()), (1_024, Some(&65_535)));
    }

    #[test]
    fn the_host_may_keep_all_ports_to_itself() {
        let local = LocalPorts::from_kernel("1 65535", "").unwrap();
        assert_eq!(UsablePorts::beside(&local).listed().count(), 0);
    }
}
