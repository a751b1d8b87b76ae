//! The devices, addresses and routes of a topology.
//!
//! Devices have explicit indexes, different on the two ends of a veth: only then does the kernel tell
//! at once that it has a carrier (`linkwatch_urgent_event`), else after up to a second.

use crate::namespace::Namespace;
use crate::topology::{CLIENT_MAC, Container, GATEWAY_MAC, HOST_MAC, Wiring};

pub(crate) fn wire_outside(host: &Namespace, client: &Namespace, foreign: &Namespace) {
    host.ip(&format!(
        "link add eth0 index 11 address {host_mac} type veth peer name eth0 index 21 address {client_mac} netns {client}
         link add eth1 index 12 type veth peer name eth0 index 22 netns {foreign}
         addr add 192.0.2.1/24 dev eth0
         addr add 192.0.2.10/24 dev eth0
         addr add 2001:db8:1::1/64 dev eth0 nodad
         addr add 2001:db8:1::10/64 dev eth0 nodad
         addr add 203.0.113.1/24 dev eth1
         addr add 2001:db8:3::1/64 dev eth1 nodad
         addr add fe80::1/64 dev eth0 nodad
         addr add fe80::1/64 dev eth1 nodad
         link set eth0 up
         link set eth1 up\n",
        host_mac = mac_text(HOST_MAC),
        client_mac = mac_text(CLIENT_MAC),
        client = client.name(),
        foreign = foreign.name(),
    ));
    for (namespace, network, number) in [(client, "192.0.2", 2), (foreign, "203.0.113", 9)] {
        let network6 = if number == 2 {
            "2001:db8:1"
        } else {
            "2001:db8:3"
        };
        namespace.ip(&format!(
            "addr add {network}.{number}/24 dev eth0
             addr add {network6}::{number}/64 dev eth0 nodad
             addr add fe80::{number}/64 dev eth0 nodad
             link set eth0 up
             route add default via {network}.1
             route add default via {network6}::1\n"
        ));
    }
}

pub(crate) fn wire_bridge(host: &Namespace) {
    host.ip(&format!(
        "link add br0 address {} type bridge forward_delay 0
         addr add 10.88.0.1/24 dev br0
         addr add fd88::1/64 dev br0 nodad
         addr add fe80::1/64 dev br0 nodad
         link set br0 up\n",
        mac_text(GATEWAY_MAC)
    ));
}

pub(crate) fn wire_container(host: &Namespace, container: &Container, wiring: Wiring) {
    let (link, v4, v6) = (&container.host_link, container.v4, container.v6);
    let number = container.mac[5];
    let host_mac = match wiring {
        Wiring::Routed => mac_text(GATEWAY_MAC),
        Wiring::Bridged => mac_text([2, 0, 0, 89, 0, number]),
    };
    host.ip(&format!(
        "link add {link} index 4{number} address {host_mac} type veth peer name eth0 index 3{number} address {mac} netns {name}
         link set {link} up\n",
        mac = mac_text(container.mac),
        name = container.namespace.name(),
    ));
    match wiring {
        Wiring::Bridged => {
            host.ip(&format!("link set {link} master br0\n"));
            container.namespace.ip(&format!(
                "addr add {v4}/24 dev eth0
                 addr add {v6}/64 dev eth0 nodad
                 addr add fe80::{number}/64 dev eth0 nodad
                 link set eth0 up\n"
            ));
        }
        Wiring::Routed => {
            host.ip(&format!(
                "addr add 10.88.0.1/32 dev {link}
                 addr add fd88::1/128 dev {link} nodad
                 addr add fe80::1/64 dev {link} nodad
                 route add {v4}/32 dev {link}
                 route add {v6}/128 dev {link}\n"
            ));
            container.namespace.ip(&format!(
                "addr add {v4}/32 dev eth0
                 addr add {v6}/128 dev eth0 nodad
                 addr add fe80::{number}/64 dev eth0 nodad
                 link set eth0 up
                 route add 10.88.0.1/32 dev eth0 scope link
                 route add fd88::1/128 dev eth0\n"
            ));
        }
    }
    container
        .namespace
        .ip("route add default via 10.88.0.1\nroute add default via fd88::1\n");
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
