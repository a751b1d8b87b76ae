//! The same arrangement twice, masqueraded by portfwd and by nftables, and what programs say in each.
//!
//! ```text
//!  containers 10.88.0.2, .3 --- 10.88.0.1 host 203.0.113.1 --- 203.0.113.9 router --- 198.51.100.7 server
//! ```
//! IPv6 beside it: fd88::/64, 2001:db8:3::/64 and 2001:db8:7::/64, with the same last numbers. The link to
//! the server takes 1,400 bytes, which only the router knows. The router has no route to the containers:
//! what comes with an address of theirs is not answered.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::capture::{Capture, Captured, faults};
use crate::namespace::Namespace;
use crate::topology::{Shape, Topology};

/// Longer than any program takes that works.
const LIMIT: &str = "60";

/// What masquerades.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// `portfwd masquerade add`.
    Portfwd,
    /// A rule of nftables.
    Nftables,
}

const RULES: &str = "
    table ip nat {
        chain postrouting {
            type nat hook postrouting priority srcnat
            ip saddr 10.88.0.0/24 oifname eth1 masquerade
        }
    }
    table ip6 nat {
        chain postrouting {
            type nat hook postrouting priority srcnat
            ip6 saddr fd88::/64 oifname eth1 masquerade
        }
    }
";

/// The families, by what lines are filled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The line with the family's addresses in the places of `{server}`, `{host}`, `{router}`, `{gateway}`
    /// and `{absent}` (who is nowhere: the router says so), with brackets in those of `{[server]}`, and its
    /// number in that of `{family}`.
    #[must_use]
    pub fn fill(self, line: &str) -> String {
        let (number, [server, host, router, gateway, absent]) = match self {
            Self::V4 => (
                "4",
                [
                    "198.51.100.7",
                    "203.0.113.1",
                    "203.0.113.9",
                    "10.88.0.1",
                    "198.51.100.99",
                ],
            ),
            Self::V6 => (
                "6",
                [
                    "2001:db8:7::7",
                    "2001:db8:3::1",
                    "2001:db8:3::9",
                    "fd88::1",
                    "2001:db8:7::99",
                ],
            ),
        };
        let brackets = match self {
            Self::V4 => server.to_owned(),
            Self::V6 => format!("[{server}]"),
        };
        [
            ("{server}", server),
            ("{[server]}", &brackets),
            ("{host}", host),
            ("{router}", router),
            ("{gateway}", gateway),
            ("{absent}", absent),
            ("{family}", number),
        ]
        .iter()
        .fold(line.to_owned(), |line, (place, text)| {
            line.replace(place, text)
        })
    }
}

/// How a program ended, and what it printed, without the times that it took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Its exit code.
    pub code: i32,
    /// Standard output and standard error.
    pub text: String,
}

/// One of the two arrangements.
#[derive(Debug)]
pub struct Side {
    /// Who masquerades here.
    pub by: By,
    /// The server.
    pub server: Namespace,
    at_server: Capture,
    topology: Topology,
}

impl Side {
    /// Both, the one of portfwd first.
    #[must_use]
    pub fn both() -> [Self; 2] {
        [By::Portfwd, By::Nftables].map(Self::new)
    }

    fn new(by: By) -> Self {
        let topology = Topology::new(Shape::forwarding());
        let server = server_beyond(&topology);
        match by {
            By::Portfwd => {
                topology.masquerade_containers();
            }
            By::Nftables => topology.host.feed("nft", &["-f", "-"], RULES),
        }
        Self {
            by,
            at_server: Capture::start(&server, "eth0"),
            server,
            topology,
        }
    }

    /// The namespace of container 0 or 1.
    #[must_use]
    pub fn container(&self, number: usize) -> &Namespace {
        &self.topology.containers[number].namespace
    }

    /// Runs a line of the shell in the first container.
    #[must_use]
    pub fn run(&self, line: &str) -> Said {
        self.run_in(0, line)
    }

    /// Runs it in container 0 or 1.
    ///
    /// # Panics
    /// When it does not end in time.
    #[must_use]
    pub fn run_in(&self, container: usize, line: &str) -> Said {
        let output = self
            .container(container)
            .command("timeout")
            .args([LIMIT, "sh", "-c", &format!("exec 2>&1; {line}")])
            .env("LC_ALL", "C")
            .output()
            .unwrap_or_else(|error| panic!("start {line}: {error}"));
        let code = output.status.code();
        let text = String::from_utf8_lossy(&output.stdout);
        assert_ne!(code, Some(124), "{:?}: {line} has no end: {text}", self.by);
        Said {
            code: code.unwrap_or_else(|| panic!("{line} ended with {}: {text}", output.status)),
            text: without_times(&text),
        }
    }

    /// Ends it, and asserts that the server has seen packets of the host alone, of all `families`, and
    /// none with a wrong checksum.
    ///
    /// # Panics
    /// When that is not so.
    #[track_caller]
    pub fn assert_masqueraded(self, families: &[Family]) {
        let frames = self.at_server.finish();
        let hosts: BTreeSet<IpAddr> = families
            .iter()
            .map(|family| family.fill("{host}").parse().expect("an address"))
            .collect();
        assert_eq!(peers(&frames), hosts, "{:?}", self.by);
        assert_eq!(
            faults(&frames, false),
            Vec::<String>::new(),
            "{:?}",
            self.by
        );
    }
}

/// A server behind the topology's foreign one, which becomes a router.
fn server_beyond(topology: &Topology) -> Namespace {
    let server = Namespace::new("server");
    let router = &topology.foreign;
    for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        router.set_sysctl(key, "1");
    }
    // Every probe of a burst is answered, not as many as a kernel sends errors in a second.
    for namespace in [&topology.host, router, &server] {
        namespace.set_sysctl("ipv4/icmp_ratemask", "0");
        namespace.set_sysctl("ipv6/icmp/ratemask", "");
    }
    router.ip(&format!(
        "link add eth1 index 91 type veth peer name eth0 index 92 netns {}
         addr add 198.51.100.1/24 dev eth1
         addr add 2001:db8:7::1/64 dev eth1 nodad
         addr add fe80::1/64 dev eth1 nodad
         link set eth1 mtu 1400 up
         route del default via 203.0.113.1
         route del default via 2001:db8:3::1
         route add unreachable 198.51.100.99
         route add unreachable 2001:db8:7::99\n",
        server.name()
    ));
    // The server claims to take more than its link does, so that the router has to speak.
    server.ip("addr add 198.51.100.7/24 dev eth0
         addr add 2001:db8:7::7/64 dev eth0 nodad
         addr add fe80::7/64 dev eth0 nodad
         link set eth0 mtu 1400 up
         route add default via 198.51.100.1 advmss 1460
         route add default via 2001:db8:7::1 advmss 1440\n");
    topology.host.ip("route add 198.51.100.0/24 via 203.0.113.9
         route add 2001:db8:7::/64 via 2001:db8:3::9\n");
    server
}

/// Who has sent packets to the server, its neighbours apart.
fn peers(frames: &[Captured]) -> BTreeSet<IpAddr> {
    let arrived = frames.iter().filter(|frame| !frame.outgoing);
    let sources = arrived.filter_map(|frame| frame.layers().map(|layers| layers.source));
    let near = |address: &IpAddr| match address {
        IpAddr::V4(address) => address.octets().starts_with(&[198, 51, 100]),
        IpAddr::V6(address) => {
            address.is_unspecified()
                || address.is_unicast_link_local()
                || address.segments().starts_with(&[0x2001, 0xdb8, 7])
        }
    };
    sources.filter(|address| !near(address)).collect()
}

/// Takes out what is before `ms` in each line, be it a word of its own or not, up to an equals sign.
fn without_times(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let mut kept: Vec<String> = Vec::new();
        for word in line.split_whitespace() {
            let unit = word.trim_end_matches([',', ':']);
            if unit == "ms" {
                let time = kept.pop().unwrap_or_default();
                let name = time.split_once('=').map(|(name, _)| name.to_owned());
                kept.extend(name);
            } else if !unit
                .trim_end_matches("ms")
                .ends_with(|c: char| c.is_ascii_digit())
                || !unit.ends_with("ms")
            {
                kept.push(word.to_owned());
            }
        }
        kept.join(" ") + "\n"
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_taken_out_of_what_programs_print_and_nothing_else() {
        for (said, left) in [
            (
                "64 bytes from 10.0.0.1: icmp_seq=1 ttl=62 time=0.094 ms",
                "64 bytes from 10.0.0.1: icmp_seq=1 ttl=62 time\n",
            ),
            (
                "3 received, 0% packet loss, time 402ms",
                "3 received, 0% packet loss, time\n",
            ),
            ("rtt min/avg = 0.1/0.2 ms", "rtt min/avg =\n"),
            (
                " 2  10.0.0.9  0.035 ms  0.010 ms *\n 3 items",
                "2 10.0.0.9 *\n3 items\n",
            ),
        ] {
            assert_eq!(without_times(said), left);
        }
    }
}
