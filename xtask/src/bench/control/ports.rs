//! The ports that are published.

use crate::bench::portmap::Mapping;

/// TCP ports of one container, each published as the same port of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ports {
    first: u16,
    count: u16,
    step: u16,
}

impl Ports {
    /// `count` ports in a row, from 1000 on.
    pub(super) const fn in_a_row(count: u16) -> Ports {
        Ports {
            first: 1000,
            count,
            step: 1,
        }
    }

    /// `count` ports of which no two are adjacent, from 1000 on.
    pub(super) const fn apart(count: u16) -> Ports {
        Ports {
            first: 1000,
            count,
            step: 2,
        }
    }

    /// One more port, adjacent to none of these.
    pub(super) const fn further(self) -> Ports {
        Ports {
            first: self.last() + 2,
            count: 1,
            step: 1,
        }
    }

    /// How many they are.
    pub(super) fn count(self) -> usize {
        self.count.into()
    }

    /// The one in the middle.
    pub(super) const fn middle(self) -> u16 {
        self.first + self.count / 2 * self.step
    }

    const fn last(self) -> u16 {
        self.first + (self.count - 1) * self.step
    }

    fn each(self) -> impl Iterator<Item = u16> {
        (self.first..=self.last()).step_by(self.step.into())
    }

    /// As portfwd takes them: one range, or a port each.
    pub(super) fn specs(self) -> Vec<String> {
        match self.step {
            1 if self.count > 1 => {
                let range = format!("{}-{}", self.first, self.last());
                vec![format!("{range}:{range}")]
            }
            _ => self.each().map(|port| format!("{port}:{port}")).collect(),
        }
    }

    /// As portmap takes them.
    pub(super) fn mappings(self) -> Vec<Mapping> {
        let mapping = |port| Mapping {
            host_port: port,
            container_port: port,
            protocol: "tcp",
        };
        self.each().map(mapping).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_in_a_row_are_one_range() {
        let ports = Ports::in_a_row(60_000);
        assert_eq!(ports.specs(), ["1000-60999:1000-60999"]);
        assert_eq!(ports.middle(), 31_000);
        assert_eq!(ports.mappings().len(), ports.count());
    }

    #[test]
    fn one_port_is_no_range() {
        let ports = Ports::in_a_row(1);
        assert_eq!(ports.specs(), ["1000:1000"]);
        assert_eq!(ports.further().specs(), ["1002:1002"]);
        assert_eq!(ports.middle(), 1000);
    }

    #[test]
    fn separate_ports_are_adjacent_to_no_other_one() {
        let ports = Ports::apart(3);
        assert_eq!(ports.specs(), ["1000:1000", "1002:1002", "1004:1004"]);
        let of_the_host: Vec<u16> = ports
            .mappings()
            .iter()
            .map(|mapping| mapping.host_port)
            .collect();
        assert_eq!(of_the_host, [1000, 1002, 1004]);
        assert_eq!(ports.middle(), 1002);
    }

    #[test]
    fn the_most_separate_ports_still_have_numbers() {
        assert_eq!(Ports::apart(10_000).specs().len(), 10_000);
    }
}
