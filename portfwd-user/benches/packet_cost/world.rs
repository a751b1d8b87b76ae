//! The loaded object, with forwards and flows for the frames.

use std::{error::Error, net::IpAddr};

use aya::{Ebpf, Pod, programs::Program as Loaded};
use nix::time::{ClockId, clock_gettime};
use portfwd_common::{
    flow::{Flow, FlowKey, Lifetimes, Reply, State},
    forward::{Delivery, Forward, Journal, PortSlot, port_index},
    host::Device,
    net::{Address, NetPort, Protocol, V4, V6},
};
use portfwd_user::{
    object::{self, Options},
    tables::{Flows, Tables},
};

use super::{
    bpf::{Hook, Program},
    frame::{CLIENT_PORT, Family, PORTS, Transport},
};

/// The loopback device, by which the kernel runs tests: device and link at once.
const DEVICE: u32 = 1;

/// The transaction that published everything.
const TRANSACTION: u64 = 1;

const GENERATION: u32 = 1;

/// The object, ready to run.
pub(crate) struct World {
    ebpf: Ebpf,
}

impl World {
    /// Loads the object and publishes the two ports, each as the way to the other.
    pub(crate) fn build() -> Result<World, Box<dyn Error>> {
        let ebpf = object::load(Options {
            host_netns: 0,
            log_level: 0,
        })?;
        let mut tables = Tables::of(&ebpf)?;
        // The frames are addressed to it.
        tables
            .devices
            .insert(DEVICE, Device::with_address([0; 6]), 0)?;
        let mut index = 1;
        for transport in [Transport::Tcp, Transport::Udp] {
            for end in 0..PORTS.len() {
                for family in [Family::V4, Family::V6] {
                    let way = Way {
                        family,
                        transport,
                        end,
                        index,
                    };
                    way.publish(&mut tables);
                    match family {
                        Family::V4 => way.open(&mut tables.flows_v4)?,
                        Family::V6 => way.open(&mut tables.flows_v6)?,
                    }
                    index += 1;
                }
            }
        }
        let journal = Journal {
            committed: TRANSACTION,
            lifetimes: Lifetimes::DEFAULT,
            ..tables.journal.get(0)
        };
        tables.journal.set(0, journal);
        Ok(World { ebpf })
    }

    /// One of its programs.
    pub(crate) fn program(&self, name: &str) -> Result<Program, Box<dyn Error>> {
        let loaded = self
            .ebpf
            .program(name)
            .ok_or_else(|| format!("no program {name}"))?;
        match loaded {
            Loaded::SchedClassifier(program) => Ok(Program::of(program.fd()?, Hook::Tc)?),
            Loaded::Xdp(program) => Ok(Program::of(program.fd()?, Hook::Xdp)?),
            _ => Err(format!("{name} is of another type").into()),
        }
    }
}

/// The forward of one end, which leads to the other end, and the client's flow through it.
struct Way {
    family: Family,
    transport: Transport,
    end: usize,
    /// Of the forward.
    index: u32,
}

impl Way {
    fn publish(&self, tables: &mut Tables) {
        let (port, target_port) = (PORTS[self.end], PORTS[1 - self.end]);
        let mut forward = Forward::FREE;
        forward.since = TRANSACTION;
        forward.until = Forward::FOREVER;
        forward.ended = Forward::FOREVER;
        forward.target = self.family.end(1 - self.end).into();
        forward.generation = GENERATION;
        forward.link = DEVICE;
        forward.host_port = NetPort::new(port);
        forward.target_port = NetPort::new(target_port);
        forward.count = 1;
        forward.delivery = Delivery::Redirect as u8;
        forward.protocol = self.transport.number();
        tables.forwards.set(self.index, forward);
        // Each port is also the container port of the other end's forward.
        let slot = PortSlot::new(self.index, GENERATION, PortSlot::CONTAINER_SIDE);
        let (family, protocol) = match (self.family, self.transport) {
            (Family::V4, Transport::Tcp) => (V4::FAMILY, Protocol::Tcp),
            (Family::V4, Transport::Udp) => (V4::FAMILY, Protocol::Udp),
            (Family::V6, Transport::Tcp) => (V6::FAMILY, Protocol::Tcp),
            (Family::V6, Transport::Udp) => (V6::FAMILY, Protocol::Udp),
        };
        let place = port_index(family, protocol, NetPort::new(port));
        tables.ports.set(place, slot.to_bits());
    }

    fn open<A: Address>(&self, flows: &mut Flows<A>) -> Result<(), Box<dyn Error>>
    where
        FlowKey<A>: Pod,
        Flow<A>: Pod,
    {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?.tv_sec() as u32;
        let address = |address: IpAddr| A::from_ip(address.into());
        let key = FlowKey::new(
            address(self.family.client()),
            NetPort::new(CLIENT_PORT),
            address(self.family.end(1 - self.end)),
            NetPort::new(PORTS[1 - self.end]),
            self.transport.number(),
        );
        let (state, (_, table)) = match self.transport {
            Transport::Tcp => (State::Established, &mut flows.settled),
            Transport::Udp => (State::UdpAssured, &mut flows.streams),
        };
        let flow = Flow {
            reply: Reply {
                host_port: NetPort::new(PORTS[self.end]),
                client_port: NetPort::new(CLIENT_PORT),
                device: DEVICE,
                mtu: 0,
                has_next_hop: 0,
                next_hop: address(self.family.client()),
                host: address(self.family.end(self.end)),
            },
            seal: 0,
            transaction: 0,
            // Out of date: the first reply of each second asks the FIB.
            refreshed: 0,
            state: state as u32,
            delivery: Delivery::Redirect as u32,
            link: DEVICE,
            forward: self.index,
            generation: GENERATION,
            last_seen: now,
            created: now,
            client_ack: 0,
            ingress: DEVICE,
            rx_bytes: 0,
            tx_bytes: 0,
        };
        table.insert(key, flow, 0)?;
        Ok(())
    }
}
