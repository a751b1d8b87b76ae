//! What holds for any SPEC, and for any text.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portfwd_common::net::Protocol::{Sctp, Tcp, Udp};
use proptest::prelude::*;

use super::tests::{address, ports};
use super::*;

fn any_range() -> impl Strategy<Value = PortRange> {
    (1..=u16::MAX, 1..=u16::MAX).prop_map(|(a, b)| ports(a.min(b), a.max(b)))
}

fn any_host() -> impl Strategy<Value = Option<IpAddr>> {
    let v4 = any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits)));
    let v6 = any::<u128>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits)));
    let special = prop::sample::select(vec!["0.0.0.0", "127.0.0.1", "::", "::1", "2001:db8::1"]);
    let address = prop_oneof![v4, v6, special.prop_map(address)];
    let fit = address.prop_filter("an address that can be published on", |address| {
        host_address(&address.to_string()) == Ok(*address)
    });
    prop::option::of(fit)
}

prop_compose! {
    fn any_spec()(
        host in any_host(),
        range in any_range(),
        first in 1..=u16::MAX,
        kind in 0..3,
        protocol in prop::sample::select(vec![Tcp, Udp, Sctp]),
    ) -> Spec {
        let single = ports(first, first);
        let shifted = PortRange::from_count(first, range.count());
        let (ports, container) = match (kind, shifted) {
            (0, _) => (HostPorts::Chosen, range),
            (1, Some(shifted)) => (HostPorts::Fixed(shifted), range),
            _ if range.count() > 1 => (HostPorts::Pool(range), single),
            _ => (HostPorts::Fixed(range), single),
        };
        Spec { host, ports, container, protocol }
    }
}

proptest! {
    #[test]
    fn a_spec_survives_being_printed_and_read_again(want in any_spec()) {
        prop_assert_eq!(want.to_string().parse::<Spec>(), Ok(want));
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in ".{0,120}") {
        if let Err(error) = text.parse::<Spec>() {
            prop_assert!(!error.to_string().contains(char::is_control));
        }
        let _query = text.parse::<PortQuery>();
        let _host = host_address(&text);
    }

    #[test]
    fn nor_does_a_text_that_is_nearly_a_spec(text in "[0-9a-f:./\\[\\]%tcpud+-]{0,24}") {
        if let Ok(spec) = text.parse::<Spec>() {
            prop_assert_eq!(spec.to_string().parse::<Spec>(), Ok(spec));
        }
        let _query = text.parse::<PortQuery>();
        let _host = host_address(&text);
    }

    #[test]
    fn overlap_of_host_addresses_is_mutual(a in any_host(), b in any_host()) {
        prop_assert_eq!(hosts_overlap(a, b), hosts_overlap(b, a));
        prop_assert!(hosts_overlap(a, a));
        prop_assert!(hosts_overlap(a, None));
    }

    #[test]
    fn a_list_is_refused_if_and_only_if_a_pair_of_it_is(
        picks in prop::collection::vec((0..4u16, 0..3usize, 1..4u16), 0..7),
    ) {
        let hosts = [None, Some(address("127.0.0.1")), Some(address("::"))];
        let specs: Vec<Spec> = picks
            .into_iter()
            .map(|(first, host, count)| {
                let container = ports(80, 79 + count);
                let host_ports = HostPorts::Fixed(ports(9000 + first, 8999 + first + count));
                Spec { host: hosts[host], ports: host_ports, container, protocol: Tcp }
            })
            .collect();
        let clash = |second: usize| (0..second).any(|first| shared_port(&specs[first], &specs[second]).is_some());
        prop_assert_eq!(check_list(&specs).is_err(), (0..specs.len()).any(clash));
    }

    #[test]
    fn what_is_checked_does_not_depend_on_the_order(a in any_spec(), b in any_spec()) {
        prop_assert_eq!(check_list(&[a, b]).is_ok(), check_list(&[b, a]).is_ok());
    }
}
