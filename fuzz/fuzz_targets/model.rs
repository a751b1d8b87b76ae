//! The reference model: no sequence of frames makes it panic, and a translated frame is as long as before.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use portfwd_model::{Device, Forward, Hook, Input, Link, Model, Protocol, World};

const HOST: u32 = 1;
const LINK: u32 = 2;

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn world() -> World {
    let containers = [address("10.88.0.2"), address("fd88::2")];
    let forwards = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .flat_map(|protocol| {
            containers.into_iter().flat_map(move |container| {
                [(8080, Some(LINK)), (8081, Some(LINK)), (8100, None)].map(|(port, link)| Forward {
                    protocol,
                    host: None,
                    port,
                    target: (container, 80).into(),
                    link,
                })
            })
        });
    World {
        addresses: BTreeSet::from([address("192.0.2.1"), address("2001:db8:1::1")]),
        devices: BTreeMap::from([(
            HOST,
            Device {
                mac: [2, 0, 0, 1, 0, 1],
            },
        )]),
        links: BTreeMap::from([(
            LINK,
            Link {
                sources: containers.into(),
            },
        )]),
        forwards: forwards.collect(),
        mtu: 1500,
        ..World::default()
    }
}

fuzz_target!(|steps: Vec<(u8, u16, Vec<u8>)>| {
    let mut model = Model::new(world());
    for (hook, segment, frame) in &steps {
        let hook = match hook % 4 {
            0 => Hook::Device(HOST),
            1 => Hook::EarlyDevice(HOST),
            2 => Hook::Link(LINK),
            _ => Hook::Egress(HOST),
        };
        let outcome = model.step(&Input {
            hook,
            frame,
            segment: u32::from(*segment),
            port: None,
        });
        if let Some(after) = outcome.frame {
            assert_eq!(after.len(), frame.len());
        }
    }
});
