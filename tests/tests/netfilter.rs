//! What portfwd makes of packets, beside what netfilter makes of the same ones: two hosts with the same
//! port, one published by portfwd, one by an nftables rule, and real packets through both.

use portfwd_tests::capture::{Capture, inject};
use portfwd_tests::layers::{Layers, difference, repaired};
use portfwd_tests::packet::{Frame, Transport, flag};
use portfwd_tests::table::{Ends, at, families};
use portfwd_tests::topology::{CLIENT_MAC, GATEWAY_MAC, HOST_MAC, Shape, Topology};

/// Destination NAT of port 8080 to port 80 of the first container, and silence of the ends' own stacks.
const TRANSLATE: &str = "
    table ip nat {
        chain prerouting {
            type nat hook prerouting priority dstnat
            ip daddr 192.0.2.1 meta l4proto { tcp, udp } th dport 8080 dnat to 10.88.0.2:80
        }
    }
    table ip6 nat {
        chain prerouting {
            type nat hook prerouting priority dstnat
            ip6 daddr 2001:db8:1::1 meta l4proto { tcp, udp } th dport 8080 dnat to [fd88::2]:80
        }
    }
";
const SILENCE: &str = "
    table inet silence {
        chain output {
            type filter hook output priority 0; policy drop
            icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
        }
    }
";

/// A host of either kind, and captures on both of its sides.
struct Side {
    topology: Topology,
    client: Capture,
    container: Capture,
}

impl Side {
    fn new(prepare: impl FnOnce(&Topology)) -> Self {
        let topology = Topology::new(Shape {
            forwarding: true,
            offloads: false,
            ..Shape::default()
        });
        let container = &topology.containers[0].namespace;
        for end in [&topology.client, container] {
            end.feed("nft", &["-f", "-"], SILENCE);
        }
        prepare(&topology);
        Self {
            client: Capture::start(&topology.client, "eth0"),
            container: Capture::start(container, "eth0"),
            topology,
        }
    }

    /// The IP packet that arrives at the other end after `frame` was sent at one end. Its payload is one
    /// that no other packet has.
    fn after(&self, from_client: bool, frame: &[u8], mark: &[u8]) -> Vec<u8> {
        let container = &self.topology.containers[0].namespace;
        let (from, to) = if from_client {
            (&self.topology.client, &self.container)
        } else {
            (container, &self.client)
        };
        inject(from, "eth0", frame);
        to.wait_for("a packet", |frames| {
            let frame = frames.iter().find(|frame| {
                let ends_with = |layers: Layers<'_>| layers.segment.ends_with(mark);
                !frame.outgoing && frame.layers().is_some_and(ends_with)
            })?;
            Some(frame.bytes[14..].to_vec())
        })
    }
}

/// A packet, sent by the client or the container.
struct Sent {
    name: &'static str,
    from_client: bool,
    frame: Vec<u8>,
    mark: Vec<u8>,
}

/// A connection with everything that headers may carry, then ICMP errors about it.
fn packets(ends: &Ends) -> Vec<Sent> {
    let (client, host, web) = (
        at(ends.client, 40_000),
        at(ends.host, 8080),
        at(ends.web, 80),
    );
    let mut sent = Vec::new();
    let mut add = |name, from_client, frame: Frame| {
        let mark = format!("packet {}", sent.len()).into_bytes();
        let frame = if from_client {
            frame.on_link(CLIENT_MAC, HOST_MAC)
        } else {
            frame.on_link([2, 0, 0, 88, 0, 2], GATEWAY_MAC)
        };
        let frame = frame.carrying(&mark).to_bytes();
        sent.push(Sent {
            name,
            from_client,
            frame,
            mark,
        });
    };
    let numbered = |mut frame: Frame, own: u32, other: u32, more: Vec<u8>| {
        if let Transport::Tcp {
            sequence,
            acknowledgment,
            options,
            ..
        } = &mut frame.transport
        {
            (*sequence, *acknowledgment, *options) = (own, other, more);
        }
        frame
    };
    let request = |flags| Frame::tcp(client, host, flags);
    let reply = |flags| Frame::tcp(web, client, flags);
    let options = vec![2, 4, 5, 0xb4, 4, 2, 1, 1];
    add(
        "a SYN with options",
        true,
        numbered(request(flag::SYN), 100, 0, options.clone()),
    );
    let answer = flag::SYN | flag::ACK;
    add(
        "its answer",
        false,
        numbered(reply(answer), 900, 109, options),
    );
    let ack = |frame, own, other| numbered(frame, own, other, Vec::new());
    add("a segment", true, ack(request(flag::ACK), 109, 909));
    add("a segment back", false, ack(reply(flag::ACK), 909, 117));
    add("a datagram", true, Frame::udp(client, host, b""));
    add("a datagram back", false, Frame::udp(web, client, b""));
    if ends.client.is_ipv4() {
        let mut bare = Frame::udp(client, host, b"");
        bare.transport = Transport::UdpWithoutChecksum;
        add("a datagram without a checksum", true, bare);
        let mut options = Frame::udp(client, host, b"");
        options.ipv4_options = vec![1; 8];
        add("a datagram behind options", true, options);
    }
    sent
}

/// ICMP errors of both ends about the datagrams above.
fn errors(ends: &Ends) -> Vec<Sent> {
    let (client, host, web) = (
        at(ends.client, 40_000),
        at(ends.host, 8080),
        at(ends.web, 80),
    );
    let about_reply = Frame::udp(host, client, b"quoted").on_link(CLIENT_MAC, HOST_MAC);
    let about_request =
        Frame::udp(client, web, b"quoted").on_link([2, 0, 0, 88, 0, 2], GATEWAY_MAC);
    [
        (true, about_reply, "the client"),
        (false, about_request, "the container"),
    ]
    .into_iter()
    .map(|(from_client, about, name)| {
        let quoted = about.to_bytes()[14..].to_vec();
        let mut around = about
            .clone()
            .between(about.destination, about.source)
            .to_bytes();
        let header = around.len() - 8 - b"quoted".len();
        around.truncate(header);
        let mark = format!("an error of {name}, padded").into_bytes();
        let v4 = ends.client.is_ipv4();
        around.extend(if v4 { [3, 3] } else { [1, 4] });
        around.extend([0; 6]);
        around.extend(quoted);
        around.extend(&mark);
        let length = u16::try_from(around.len() - if v4 { 14 } else { 54 }).expect("short");
        let at = if v4 { 16 } else { 18 };
        around[at..at + 2].copy_from_slice(&length.to_be_bytes());
        around[if v4 { 23 } else { 20 }] = if v4 { 1 } else { 58 };
        repaired(&mut around);
        Sent {
            name,
            from_client,
            frame: around,
            mark,
        }
    })
    .collect()
}

#[test]
fn packets_come_out_as_netfilter_makes_them() {
    let ours = Side::new(|topology| {
        topology.attach("web", 0, &["8080:80", "8080:80/udp"]);
    });
    let theirs = Side::new(|topology| topology.host.feed("nft", &["-f", "-"], TRANSLATE));
    let mut faults = String::new();
    for ends in families() {
        for sent in packets(&ends).into_iter().chain(errors(&ends)) {
            let [ours, theirs] =
                [&ours, &theirs].map(|side| side.after(sent.from_client, &sent.frame, &sent.mark));
            if ours != theirs {
                let name = sent.name;
                let difference = difference(
                    &[&sent.frame[..14], &theirs].concat(),
                    &[&sent.frame[..14], &ours].concat(),
                );
                faults.push_str(&format!("{name} of {}:\n{difference}", ends.client));
            }
        }
    }
    assert!(
        faults.is_empty(),
        "portfwd differs from netfilter:\n{faults}"
    );
}
