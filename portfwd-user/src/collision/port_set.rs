//! A set of port numbers: one bit each, 8 KiB.

use std::fmt;

use crate::error::shown;
use crate::spec::PortRange;

const WORDS: usize = 65_536 / 64;

/// Any of the 65,536 port numbers.
#[derive(Clone, PartialEq, Eq)]
pub struct PortSet(Box<[u64; WORDS]>);

/// Text that is no list of ports as the kernel writes it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{} is not a port or a range of ports", shown(.0))]
pub struct ReservedError(String);

impl Default for PortSet {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.ports()).finish()
    }
}

/// As [`PortSet::from_kernel_list`] reads it.
impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, range) in self.ranges().into_iter().enumerate() {
            let separator = if number == 0 { "" } else { "," };
            write!(f, "{separator}{range}")?;
        }
        Ok(())
    }
}

impl PortSet {
    /// No port.
    #[must_use]
    pub fn new() -> Self {
        Self(Box::new([0; WORDS]))
    }

    /// From the text of `/proc/sys/net/ipv4/ip_local_reserved_ports`: numbers and ranges separated by
    /// commas (`8080,9000-9010`), or nothing.
    ///
    /// # Errors
    /// Names the part that is neither.
    pub fn from_kernel_list(text: &str) -> Result<Self, ReservedError> {
        let mut set = Self::new();
        for part in text.trim().split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let bad = || ReservedError(part.to_owned());
            let first: u16 = first.parse().map_err(|_| bad())?;
            let last: u16 = last.parse().map_err(|_| bad())?;
            if first > last {
                return Err(bad());
            }
            // The kernel lets port 0 be reserved; nobody publishes it.
            if let Some(range) = PortRange::new(first.max(1), last) {
                set.insert_range(range);
            }
        }
        Ok(set)
    }

    /// Whether `port` is in it.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.0[usize::from(port) / 64] & (1 << (port % 64)) != 0
    }

    /// Adds `port`.
    pub fn insert(&mut self, port: u16) {
        self.0[usize::from(port) / 64] |= 1 << (port % 64);
    }

    /// Adds every port of `range`.
    pub fn insert_range(&mut self, range: PortRange) {
        for (word, mask) in masks(range) {
            self.0[word] |= mask;
        }
    }

    /// Adds what `other` has.
    pub fn extend(&mut self, other: &Self) {
        for (own, theirs) in self.0.iter_mut().zip(other.0.iter()) {
            *own |= theirs;
        }
    }

    /// Every port, ascending.
    pub fn ports(&self) -> impl Iterator<Item = u16> {
        (0..=u16::MAX).filter(|port| self.contains(*port))
    }

    /// Every port but 0, in as few ranges as can be, ascending.
    #[must_use]
    pub fn ranges(&self) -> Vec<PortRange> {
        let mut ranges: Vec<PortRange> = Vec::new();
        for port in self.ports() {
            let before = ranges.last().copied();
            let adjoins = before.filter(|range| range.last().checked_add(1) == Some(port));
            if adjoins.is_some() {
                ranges.pop();
            }
            ranges.extend(PortRange::new(adjoins.map_or(port, PortRange::first), port));
        }
        ranges
    }

    /// Whether any port of `range` is in it.
    #[must_use]
    pub fn overlaps(&self, range: PortRange) -> bool {
        masks(range).any(|(word, mask)| self.0[word] & mask != 0)
    }
}

/// The words that `range` touches, each with its bits of the range.
fn masks(range: PortRange) -> impl Iterator<Item = (usize, u64)> {
    let (first, last) = (usize::from(range.first()), usize::from(range.last()));
    (first / 64..=last / 64).map(move |word| {
        let from = first.saturating_sub(word * 64);
        let to = (last - word * 64).min(63);
        (word, (u64::MAX << from) & (u64::MAX >> (63 - to)))
    })
}
