//! Packet tables: what is masqueraded, to the byte. Answers come in by `eth0`, whose hardware address the
//! frames bear: which way they come does not matter.

use std::net::{IpAddr, SocketAddr};

use portfwd_tests::datapath::{Datapath, Program, Row, Verdict};
use portfwd_tests::packet::{Frame, Transport, flag};
use portfwd_tests::table::{Ends, at, families, inbound, is_extended, opening_frames, play};
use portfwd_tests::topology::{GATEWAY, GATEWAY6, Shape, Topology};

/// A host that forwards and masquerades both containers.
fn topology() -> Topology {
    let topology = Topology::new(Shape::forwarding());
    topology.masquerade_containers();
    topology
}

/// The host's address toward the foreign server.
fn leaving(ends: &Ends) -> IpAddr {
    let text = if ends.foreign.is_ipv4() {
        "203.0.113.1"
    } else {
        "2001:db8:3::1"
    };
    text.parse().expect("an address")
}

/// A frame that is translated and goes on.
fn changed(
    name: &str,
    program: Program,
    device: &'static str,
    frame: &Frame,
    output: Frame,
) -> Row {
    let input = frame.to_bytes();
    let row = Row::untouched(name, program, device, input);
    Row {
        output: output.to_bytes(),
        ..row
    }
}

fn stays(name: &str, program: Program, device: &'static str, frame: &Frame) -> Row {
    Row::untouched(name, program, device, frame.to_bytes())
}

#[test]
fn openings_leave_under_the_hosts_address_and_answers_come_back() {
    let topology = topology();
    let datapath = Datapath::open(&topology);
    let mut rows = Vec::new();
    let mut port = 5_000;
    for ends in families() {
        for container in [ends.web, ends.db] {
            for (name, frame) in opening_frames(at(container, 1), at(ends.foreign, 443)) {
                port += 1;
                let (inside, far) = (at(container, port), at(ends.foreign, 443));
                let outside = at(leaving(&ends), port);
                let frame = frame.between(inside, far);
                let output = frame.clone().between(outside, far);
                rows.push(changed(name, Program::Egress, "eth1", &frame, output));
                if is_extended(&frame) {
                    continue;
                }
                let answer = match &frame.transport {
                    Transport::Tcp { .. } => Frame::tcp(far, outside, flag::SYN | flag::ACK),
                    _ => Frame::udp(far, outside, b"answer"),
                };
                let answer = inbound(answer);
                let output = answer.clone().between(far, inside);
                let name = format!("the answer to {name}");
                rows.push(changed(&name, Program::Device, "eth0", &answer, output));
            }
        }
    }
    play(&datapath, &rows);
}

#[test]
fn a_connection_is_translated_from_open_to_close_and_its_port_serves_the_next_one() {
    let topology = topology();
    let datapath = Datapath::open(&topology);
    for ends in families() {
        let (inside, far) = (at(ends.web, 5_100), at(ends.foreign, 80));
        let outside = at(leaving(&ends), 5_100);
        let out = |flags, payload: &[u8]| {
            let frame = Frame::tcp(inside, far, flags).carrying(payload);
            let output = frame.clone().between(outside, far);
            changed("out", Program::Egress, "eth1", &frame, output)
        };
        let back = |flags, payload: &[u8]| {
            let frame = inbound(Frame::tcp(far, outside, flags).carrying(payload));
            let output = frame.clone().between(far, inside);
            changed("back", Program::Device, "eth0", &frame, output)
        };
        let rows = [
            out(flag::SYN, b""),
            out(flag::SYN, b""),
            back(flag::SYN | flag::ACK, b""),
            out(flag::ACK, b""),
            out(flag::ACK, b"GET / HTTP/1.1"),
            back(flag::ACK, b"HTTP/1.1 200 OK"),
            back(flag::FIN | flag::ACK, b""),
            out(flag::FIN | flag::ACK, b""),
            back(flag::ACK, b""),
            out(flag::SYN, b""),
            back(flag::SYN | flag::ACK, b""),
            out(flag::RST, b""),
            back(flag::ACK, b"still on the way"),
        ];
        play(&datapath, &rows);
    }
}

// Fails if a SYN is no answer (`back` in masquerade.rs).
#[test]
fn both_ends_may_open_a_connection_at_once() {
    let topology = topology();
    let datapath = Datapath::open(&topology);
    for ends in families() {
        let (inside, far) = (at(ends.web, 5_150), at(ends.foreign, 5_150));
        let outside = at(leaving(&ends), 5_150);
        let out = |flags| {
            let frame = Frame::tcp(inside, far, flags);
            let output = frame.clone().between(outside, far);
            changed("out", Program::Egress, "eth1", &frame, output)
        };
        let back = |flags| {
            let frame = inbound(Frame::tcp(far, outside, flags));
            let output = frame.clone().between(far, inside);
            changed("back", Program::Device, "eth0", &frame, output)
        };
        let both = flag::SYN | flag::ACK;
        let rows = [
            out(flag::SYN),
            back(flag::SYN),
            out(both),
            back(both),
            out(flag::ACK),
            back(flag::ACK),
        ];
        play(&datapath, &rows);
    }
}

// Fails if the helper is not told that a checksum of 0 is none (`BPF_F_MARK_MANGLED_0` in packet.rs).
#[test]
fn absent_and_zero_udp_checksums_stay_what_they_mean() {
    let topology = topology();
    let datapath = Datapath::open(&topology);
    let mut rows = Vec::new();
    for ends in families() {
        let (inside, far) = (at(ends.web, 5_200), at(ends.foreign, 53));
        let outside = at(leaving(&ends), 5_200);
        if ends.web.is_ipv4() {
            let mut bare = Frame::udp(inside, far, b"bare");
            bare.transport = Transport::UdpWithoutChecksum;
            let output = bare.clone().between(outside, far);
            rows.push(changed(
                "no checksum",
                Program::Egress,
                "eth1",
                &bare,
                output,
            ));
        }
        let sum = |frame: &Frame| {
            let bytes = frame.to_bytes();
            u16::from_be_bytes([bytes[bytes.len() - 4], bytes[bytes.len() - 3]])
        };
        let zero = (0..=u16::MAX)
            .map(|word| Frame::udp(inside, far, &word.to_be_bytes()))
            .find(|frame| sum(&frame.clone().between(outside, far)) == 0xffff)
            .expect("one of all words makes the sum");
        let output = zero.clone().between(outside, far);
        rows.push(changed(
            "a sum of zero",
            Program::Egress,
            "eth1",
            &zero,
            output,
        ));
    }
    play(&datapath, &rows);
}

// Fails without the look at the destination (`owner::is_inside`).
#[test]
fn what_is_not_to_be_masqueraded_goes_on_untouched() {
    let topology = topology();
    let datapath = Datapath::open(&topology);
    let mut rows = Vec::new();
    for ends in families() {
        let far = at(ends.foreign, 443);
        let inside = at(ends.web, 5_300);
        for (name, frame) in opening_frames(at(ends.client, 5_300), far) {
            let name = format!("{name} of somebody else");
            rows.push(stays(&name, Program::Egress, "eth1", &frame));
        }
        for (name, frame) in opening_frames(inside, at(ends.db, 443)) {
            let name = format!("{name} to a neighbour");
            rows.push(stays(&name, Program::Egress, "eth1", &frame));
        }
        for (name, frame) in opening_frames(inside, far) {
            let name = format!("{name} back by the bridge");
            rows.push(stays(&name, Program::Egress, "br0", &frame));
        }
        for to in ends.never.iter().filter(|to| **to != "192.0.2.255") {
            let to = at(to.parse().expect("an address"), 443);
            for (name, frame) in opening_frames(inside, to) {
                let name = format!("{name} to {to}");
                rows.push(stays(&name, Program::Egress, "eth1", &frame));
            }
        }
        for flags in [
            flag::ACK,
            flag::SYN | flag::ACK,
            flag::RST,
            flag::FIN | flag::ACK,
        ] {
            let frame = Frame::tcp(inside, far, flags);
            let name = format!("a segment {flags:#x} of no connection");
            rows.push(stays(&name, Program::Egress, "eth1", &frame));
            let frame = inbound(Frame::tcp(far, at(leaving(&ends), 5_300), flags));
            let name = format!("an answer {flags:#x} to nothing");
            rows.push(stays(&name, Program::Device, "eth0", &frame));
        }
    }
    play(&datapath, &rows);
}

// Fails if the far port is not in the key of what comes back (`Key::new` in masquerade.rs of
// portfwd-common).
#[test]
fn answers_of_others_than_the_one_that_was_asked_go_on_untouched() {
    let topology = topology();
    let datapath = Datapath::open(&topology);
    let mut rows = Vec::new();
    for ends in families() {
        let (inside, far) = (at(ends.web, 5_400), at(ends.foreign, 53));
        let outside = at(leaving(&ends), 5_400);
        let question = Frame::udp(inside, far, b"question");
        let output = question.clone().between(outside, far);
        rows.push(changed(
            "a question",
            Program::Egress,
            "eth1",
            &question,
            output,
        ));
        for (name, from, to) in [
            ("another port", at(ends.foreign, 54), outside),
            ("another host", at(ends.client, 53), outside),
            ("to another port", far, at(leaving(&ends), 5_401)),
            ("to another address", far, at(ends.host, 5_400)),
        ] {
            let frame = inbound(Frame::udp(from, to, b"answer"));
            rows.push(stays(name, Program::Device, "eth0", &frame));
        }
        let frame = inbound(Frame::udp(far, outside, b"answer"));
        let output = frame.clone().between(far, inside);
        rows.push(changed(
            "its answer",
            Program::Device,
            "eth0",
            &frame,
            output,
        ));
    }
    play(&datapath, &rows);
}

#[test]
fn a_frame_cut_anywhere_in_its_headers_goes_on_untouched() {
    let topology = topology();
    let datapath = Datapath::open(&topology);
    for ends in families() {
        for (name, frame) in opening_frames(at(ends.web, 5_500), at(ends.foreign, 443)) {
            let bytes = frame.to_bytes();
            // Less than an IP header the kernel does not take here.
            let least = if ends.web.is_ipv4() { 34 } else { 54 };
            for length in least..bytes.len() - frame.payload.len() {
                let (verdict, after) = datapath.run(Program::Egress, "eth1", &bytes[..length]);
                assert_eq!(verdict, Verdict::Next, "{name} cut to {length}");
                assert_eq!(after, bytes[..length], "{name} cut to {length}");
            }
        }
    }
}

#[test]
fn a_port_that_is_changed_is_changed_back() {
    let topology = topology();
    let datapath = Datapath::open(&topology);
    for ends in families() {
        let (inside, far) = (at(ends.web, 40_000), at(ends.foreign, 53));
        let question = Frame::udp(inside, far, b"question");
        let (verdict, bytes) = datapath.run(Program::Egress, "eth1", &question.to_bytes());
        assert_eq!(verdict, Verdict::Next);
        let source = bytes.len() - b"question".len() - 8;
        let port = u16::from_be_bytes([bytes[source], bytes[source + 1]]);
        assert!(!(32_768..61_000).contains(&port), "{port}");
        let outside: SocketAddr = at(leaving(&ends), port);
        let output = question.clone().between(outside, far);
        let answer = inbound(Frame::udp(far, outside, b"answer"));
        let back = answer.clone().between(far, inside);
        let rows = [
            changed("again", Program::Egress, "eth1", &question, output),
            changed("the answer", Program::Device, "eth0", &answer, back),
        ];
        play(&datapath, &rows);
    }
}

#[test]
fn a_device_without_an_address_of_the_family_lets_nothing_of_it_out() {
    let topology = topology();
    topology.host.ip("addr del 2001:db8:3::1/64 dev eth1\n");
    // The loader notices with the next command.
    topology
        .portfwd(&["masquerade", "add", "10.99.0.0/16"])
        .expect_ok();
    let datapath = Datapath::open(&topology);
    let [v4, v6] = families();
    let frame = Frame::udp(at(v6.web, 5_600), at(v6.foreign, 53), b"question");
    let dropped = Row::dropped("of no address", Program::Egress, "eth1", frame.to_bytes());
    let (inside, far) = (at(v4.web, 5_600), at(v4.foreign, 53));
    let frame = Frame::udp(inside, far, b"question");
    let output = frame.clone().between(at(leaving(&v4), 5_600), far);
    let other = changed(
        "of the other family",
        Program::Egress,
        "eth1",
        &frame,
        output,
    );
    play(&datapath, &[dropped, other]);
}

// Fails if a datagram to a container is noted before the host has let it through (`expect_answer`).
#[test]
fn a_datagram_that_the_host_has_not_let_through_changes_no_source() {
    let topology = topology();
    let datapath = Datapath::open(&topology);
    let mut rows = Vec::new();
    for ends in families() {
        let (inside, far) = (at(ends.web, 5_200), at(ends.foreign, 53));
        let forged = inbound(Frame::udp(far, inside, b"forged"));
        rows.push(stays("forged", Program::Device, "eth0", &forged));
        let question = Frame::udp(inside, far, b"question");
        let output = question.clone().between(at(leaving(&ends), 5_200), far);
        rows.push(changed("asked", Program::Egress, "eth1", &question, output));
    }
    play(&datapath, &rows);
}

// Fails if what bears an address of the host is masqueraded because the address lies in the subnet (`open`):
// translated replies pass by there, and the packets of tunnels.
#[test]
fn the_hosts_own_address_within_the_subnet_is_not_masqueraded() {
    let topology = topology();
    let datapath = Datapath::open(&topology);
    let mut rows = Vec::new();
    for (gateway, ends) in [GATEWAY, GATEWAY6].into_iter().zip(families()) {
        for (name, frame) in opening_frames(at(gateway, 8080), at(ends.foreign, 4_000)) {
            rows.push(stays(name, Program::Egress, "eth1", &frame));
        }
    }
    play(&datapath, &rows);
}
