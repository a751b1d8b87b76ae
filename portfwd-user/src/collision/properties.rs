//! What holds for any forwards, listeners and SPECs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portfwd_common::net::Protocol::{self, Tcp, Udp};
use proptest::prelude::*;

use super::tests::{address, held, label, listener, one};
use super::*;

fn any_address() -> impl Strategy<Value = IpAddr> {
    let v4 = prop::sample::select(vec![0, 0x7f00_0001, 0xc000_0201, 0xc000_0202]);
    let v6 = prop::sample::select(vec![0u128, 1, 0x2001_0db8 << 96]);
    prop_oneof![
        v4.prop_map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))),
        v6.prop_map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))),
    ]
}

prop_compose! {
    /// Forwards that crowd a few ports, below and among those that are chosen.
    fn any_held()(
        owner in "[a-c]",
        protocol in prop::sample::select(vec![Tcp, Udp]),
        host in any_address(),
        first in prop_oneof![80..100u16, 61_000..61_020u16],
        count in 1..5u16,
        container in 80..100u16,
    ) -> Held {
        held(&owner, protocol, &host.to_string(), PortRange::from_count(first, count).unwrap(), container)
    }
}

prop_compose! {
    fn any_listener()(
        protocol in prop::sample::select(vec![Tcp, Udp]),
        host in any_address(),
        port in 80..100u16,
        dual in any::<bool>(),
    ) -> Listener {
        let dual = dual && host == address("::");
        listener(protocol, &host.to_string(), port, dual)
    }
}

fn collides(with: &Held, asked: &Held) -> bool {
    let held = [with.clone()];
    let occupied = Occupied {
        held: &held,
        replaced: None,
        listeners: &[],
        rules: &[],
        reserved: &PortSet::new(),
    };
    occupied
        .collision(asked.protocol, asked.host, asked.ports)
        .is_some()
}

proptest! {
    #[test]
    fn a_set_of_ports_holds_what_was_put_in(ranges in prop::collection::vec((1..=u16::MAX, 1..500u16), 0..8)) {
        let ranges: Vec<PortRange> = ranges
            .into_iter()
            .filter_map(|(first, count)| PortRange::from_count(first, count))
            .collect();
        let mut set = PortSet::new();
        ranges.iter().for_each(|range| set.insert_range(*range));
        for port in 0..=u16::MAX {
            let want = ranges.iter().any(|range| range.contains(port));
            prop_assert_eq!(set.contains(port), want);
        }
        for range in ranges {
            let above = PortRange::from_count(range.last().saturating_add(1), 3);
            let free = |range: PortRange| !range.ports().any(|port| set.contains(port));
            prop_assert!(set.overlaps(range));
            prop_assert!(above.is_none_or(|above| set.overlaps(above) != free(above)));
        }
    }

    #[test]
    fn collisions_are_mutual(a in any_held(), b in any_held()) {
        prop_assert_eq!(collides(&a, &b), collides(&b, &a));
        prop_assert!(collides(&a, &a));
    }

    #[test]
    fn the_taken_ports_are_those_that_collide(
        held in prop::collection::vec(any_held(), 0..6),
        listeners in prop::collection::vec(any_listener(), 0..6),
        host in any_address(),
    ) {
        let occupied = Occupied { held: &held, replaced: None, listeners: &listeners, rules: &[], reserved: &PortSet::new() };
        let taken = occupied.taken(Tcp, host);
        for port in (75..110).chain(60_995..61_030) {
            let collision = occupied.collision(Tcp, host, one(port));
            prop_assert_eq!(taken.contains(port), collision.is_some());
        }
    }

    #[test]
    fn what_is_settled_is_free_and_no_port_is_given_twice(
        held in prop::collection::vec(any_held(), 0..8),
        listeners in prop::collection::vec(any_listener(), 0..8),
        wanted in prop::sample::subsequence(
            vec!["80", "81/udp", "90:80", "[::1]:95:80", "80-99:82", "80-99:83", "127.0.0.1::84", "85-86"],
            0..=8,
        ),
    ) {
        let specs: Vec<Spec> = wanted.iter().map(|spec| spec.parse().unwrap()).collect();
        prop_assume!(crate::spec::check_list(&specs).is_ok());
        let occupied = Occupied { held: &held, replaced: None, listeners: &listeners, rules: &[], reserved: &PortSet::new() };
        let Ok(settled) = occupied.resolve(&label("web"), &specs) else { return Ok(()) };
        prop_assert_eq!(settled.len(), specs.len());
        let mut given: Vec<(Protocol, IpAddr, PortRange)> = Vec::new();
        for resolved in &settled {
            prop_assert_eq!(resolved.ports.count(), resolved.spec.container.count());
            for host in &resolved.hosts {
                let collision = occupied.collision(resolved.spec.protocol, *host, resolved.ports);
                prop_assert_eq!(collision, None);
                for (protocol, other, ports) in &given {
                    let apart = *protocol != resolved.spec.protocol
                        || !hosts_overlap(Some(*other), Some(*host))
                        || ports.intersection(resolved.ports).is_none();
                    prop_assert!(apart, "{:?}", settled);
                }
            }
            let new = resolved.hosts.iter().map(|host| (resolved.spec.protocol, *host, resolved.ports));
            given.extend(new);
        }
    }

    #[test]
    fn a_port_is_refused_only_if_somebody_has_it(
        existing in prop::collection::vec(any_held(), 0..8),
        port in 75..105u16,
        host in any_address(),
    ) {
        let occupied = Occupied { held: &existing, replaced: None, listeners: &[], rules: &[], reserved: &PortSet::new() };
        let text = match host {
            IpAddr::V4(v4) => format!("{v4}:{port}:7777"),
            IpAddr::V6(v6) => format!("[{v6}]:{port}:7777"),
        };
        let settled = occupied.resolve(&label("web"), &[text.parse().unwrap()]);
        let asked = held("web", Tcp, &host.to_string(), one(port), 7777);
        prop_assert_eq!(settled.is_err(), existing.iter().any(|other| collides(other, &asked)));
    }
}
