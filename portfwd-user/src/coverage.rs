//! Which flags of the port table are still needed, given the forwards that remain.

use portfwd_common::{
    forward::{Forward, PORT_SLOTS, PortSlot, port_index},
    net::{NetPort, Protocol},
};

use crate::transaction::family;

/// The flags that every slot has to carry.
pub struct Coverage {
    /// One byte a slot: the highest bits of what [`PortSlot::flags`] gives.
    flags: Vec<u8>,
}

/// Where the byte of a slot stands among the bits of [`PortSlot`].
const SHIFT: u32 = 24;

impl Coverage {
    /// What `forwards` need.
    pub fn of(forwards: impl Iterator<Item = Forward>) -> Self {
        let mut flags = vec![0; PORT_SLOTS as usize];
        for forward in forwards {
            let Some(protocol) = Protocol::from_number(forward.protocol) else {
                continue;
            };
            let mut mark = |first: NetPort, count: u32, flag: u32| {
                let start = port_index(family(forward.host), protocol, first) as usize;
                let plane_end = (start | 0xffff) + 1;
                let end = (start + count as usize).min(plane_end);
                for slot in &mut flags[start..end] {
                    *slot |= (flag >> SHIFT) as u8;
                }
            };
            if !forward.host.is_unspecified() {
                for key in forward.address_ports(protocol) {
                    mark(key.port, key.span, key.flag());
                }
            }
            if !forward.target.is_unspecified() {
                let count = u32::from(forward.count);
                mark(forward.target_port, count, PortSlot::CONTAINER_SIDE);
            }
        }
        Self { flags }
    }

    /// The flags of the slot at `index` of the port table, as [`PortSlot::flags`] gives them.
    pub fn flags(&self, index: u32) -> u32 {
        u32::from(self.flags[index as usize]) << SHIFT
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn a_slot_keeps_a_flag_as_long_as_one_forward_needs_it() {
        let forward = |host: &str, host_port, target_port, count| {
            let mut forward = Forward::FREE;
            forward.host = host.parse::<IpAddr>().unwrap().into();
            forward.target = "10.88.0.2".parse::<IpAddr>().unwrap().into();
            forward.host_port = NetPort::new(host_port);
            forward.target_port = NetPort::new(target_port);
            forward.count = count;
            forward.protocol = Protocol::Tcp.number();
            forward
        };
        let coverage = Coverage::of(
            [
                forward("0.0.0.0", 8080, 80, 1),
                forward("192.0.2.1", 9000, 70, 20),
            ]
            .into_iter(),
        );
        let flags = |port| coverage.flags(port_index(0, Protocol::Tcp, NetPort::new(port)));
        assert_eq!(flags(80), PortSlot::CONTAINER_SIDE);
        assert_eq!(flags(89), PortSlot::CONTAINER_SIDE);
        assert_eq!(flags(90), 0);
        assert_eq!(flags(8080), 0);
        assert_eq!(
            (flags(9000), flags(9019), flags(9020)),
            (PortSlot::BY_ADDRESS, PortSlot::BY_ADDRESS, 0)
        );
        let wide = Coverage::of([forward("192.0.2.1", 1000, 1000, 300)].into_iter());
        let flags = |port| {
            let flags = wide.flags(port_index(0, Protocol::Tcp, NetPort::new(port)));
            flags & !PortSlot::CONTAINER_SIDE
        };
        assert_eq!(
            [999, 1000, 1023, 1024, 1279, 1280, 1299, 1300].map(flags),
            [
                0,
                PortSlot::BY_ADDRESS,
                PortSlot::BY_ADDRESS,
                PortSlot::BY_BLOCK,
                PortSlot::BY_BLOCK,
                PortSlot::BY_ADDRESS,
                PortSlot::BY_ADDRESS,
                0,
            ]
        );
        assert_eq!(
            coverage.flags(port_index(1, Protocol::Tcp, NetPort::new(9000))),
            0
        );
    }
}
