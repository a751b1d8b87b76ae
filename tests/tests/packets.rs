//! Packet tables: what is translated, through TC and through XDP.

use portfwd_tests::datapath::{Datapath, Program, Row, Verdict};
use portfwd_tests::packet::{Frame, Transport, flag};
use portfwd_tests::table::{at, families, hopped, inbound, opening_frames, play, topology};
use portfwd_tests::topology::{CLIENT, GATEWAY_MAC, HOST};

#[test]
fn openings_are_translated_to_the_container() {
    let topology = topology();
    let datapath = Datapath::open(&topology);
    let mut rows = Vec::new();
    let mut port = 20_000;
    for ends in families() {
        for program in [Program::Device, Program::EarlyDevice] {
            for (host_port, container) in [(8080, ends.web), (8090, ends.db)] {
                for host in [ends.host, ends.host_second, ends.gateway] {
                    port += 1;
                    let source = at(ends.client, port);
                    for (name, frame) in opening_frames(source, at(host, host_port)) {
                        // Every frame opens a flow of its own.
                        port += 1;
                        let destination = frame.destination;
                        let frame = inbound(frame.between(at(ends.client, port), destination));
                        let output = hopped(&frame, frame.source, at(container, 80));
                        let name = format!("{name} to {destination}");
                        let input = frame.to_bytes();
                        let row = Row::translated(&name, program, "eth0", input, output);
                        rows.push(row);
                    }
                }
            }
        }
    }
    play(&datapath, &rows);
}

#[test]
fn a_connection_is_translated_both_ways_from_open_to_close() {
    let topology = topology();
    let datapath = Datapath::open(&topology);
    for (number, ends) in families().into_iter().enumerate() {
        let port = 33_000 + u16::try_from(number).expect("a small number");
        let client = at(ends.client, port);
        let (host, web) = (at(ends.host, 8080), at(ends.web, 80));
        let request = |flags: u8, payload: &[u8]| {
            let frame = inbound(Frame::tcp(client, host, flags).carrying(payload));
            let output = hopped(&frame, client, web);
            Row::translated(
                "a request",
                Program::Device,
                "eth0",
                frame.to_bytes(),
                output,
            )
        };
        let reply = |flags: u8, payload: &[u8]| {
            let frame = Frame::tcp(web, client, flags)
                .carrying(payload)
                .on_link([2, 0, 0, 88, 0, 2], GATEWAY_MAC);
            let output = hopped(&frame, host, client);
            Row::translated("a reply", Program::Link, "veth1", frame.to_bytes(), output)
        };
        let rows = [
            request(flag::SYN, b""),
            reply(flag::SYN | flag::ACK, b""),
            request(flag::ACK, b""),
            request(flag::ACK, b"GET / HTTP/1.1"),
            reply(flag::ACK, b"HTTP/1.1 200 OK"),
            request(flag::FIN | flag::ACK, b""),
            reply(flag::FIN | flag::ACK, b""),
            request(flag::ACK, b""),
            // A new connection of the same port, at once.
            request(flag::SYN, b""),
            reply(flag::SYN | flag::ACK, b""),
            request(flag::RST, b""),
        ];
        play(&datapath, &rows);
    }
}

#[test]
fn datagrams_are_translated_both_ways() {
    let topology = topology();
    let datapath = Datapath::open(&topology);
    let mut rows = Vec::new();
    for ends in families() {
        let client = at(ends.client, 34_000);
        let (host, web) = (at(ends.host, 8080), at(ends.web, 80));
        let request = inbound(Frame::udp(client, host, b"question"));
        let output = hopped(&request, client, web);
        let name = "a question";
        let input = request.to_bytes();
        rows.push(Row::translated(
            name,
            Program::Device,
            "eth0",
            input,
            output,
        ));
        let reply = Frame::udp(web, client, b"answer").on_link([2, 0, 0, 88, 0, 2], GATEWAY_MAC);
        let output = hopped(&reply, host, client);
        let name = "an answer";
        let input = reply.to_bytes();
        rows.push(Row::translated(name, Program::Link, "veth1", input, output));
    }
    play(&datapath, &rows);
}

#[test]
fn an_absent_udp_checksum_stays_absent_and_a_computed_zero_is_sent_as_ones() {
    let topology = topology();
    let datapath = Datapath::open(&topology);
    let mut rows = Vec::new();
    for (number, program) in [(0, Program::Device), (1, Program::EarlyDevice)] {
        for ends in families() {
            let client = at(ends.client, 35_000 + number);
            let (host, web) = (at(ends.host, 8080), at(ends.web, 80));
            if ends.client.is_ipv4() {
                let mut bare = inbound(Frame::udp(client, host, b"bare"));
                bare.transport = Transport::UdpWithoutChecksum;
                let output = hopped(&bare, client, web);
                let name = "a datagram without a checksum";
                let input = bare.to_bytes();
                rows.push(Row::translated(name, program, "eth0", input, output));
            }
            let zero = (0..=u16::MAX)
                .map(|word| Frame::udp(client, host, &word.to_be_bytes()))
                .map(inbound)
                .find(|frame| udp_checksum(&hopped(frame, client, web)) == 0xffff)
                .expect("one of all words makes the sum");
            let output = hopped(&zero, client, web);
            let name = "a datagram whose checksum comes to zero";
            let input = zero.to_bytes();
            rows.push(Row::translated(name, program, "eth0", input, output));
        }
    }
    play(&datapath, &rows);
}

/// The checksum field of a frame that ends with a UDP header and two bytes.
fn udp_checksum(frame: &[u8]) -> u16 {
    let at = frame.len() - 4;
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

#[test]
fn a_container_link_lets_its_own_packets_go_on_and_drops_those_of_others() {
    let topology = topology();
    let datapath = Datapath::open(&topology);
    let mut rows = Vec::new();
    let on_link = |frame: Frame| frame.on_link([2, 0, 0, 88, 0, 2], GATEWAY_MAC).to_bytes();
    for ends in families() {
        let elsewhere = at(ends.foreign, 443);
        for (name, frame) in opening_frames(at(ends.web, 40_000), elsewhere) {
            let name = format!("{name} of the container");
            rows.push(Row::untouched(
                &name,
                Program::Link,
                "veth1",
                on_link(frame),
            ));
        }
        // From the published port itself, to somebody who has not asked.
        for (name, frame) in opening_frames(at(ends.web, 80), elsewhere) {
            let name = format!("{name} from the published port");
            rows.push(Row::untouched(
                &name,
                Program::Link,
                "veth1",
                on_link(frame),
            ));
        }
        for foreign in [ends.db, ends.host, ends.gateway, ends.client, ends.foreign] {
            for to in [at(ends.client, 443), at(ends.host, 8090)] {
                for (name, frame) in opening_frames(at(foreign, 80), to) {
                    let name = format!("{name} from {foreign} to {to}");
                    rows.push(Row::dropped(&name, Program::Link, "veth1", on_link(frame)));
                }
            }
        }
    }
    let mut arp = on_link(Frame::udp(at(CLIENT, 1), at(HOST, 2), b""));
    (arp[12], arp[13]) = (8, 6);
    rows.push(Row::untouched("ARP", Program::Link, "veth1", arp));
    play(&datapath, &rows);
}

#[test]
fn a_container_reaches_what_another_one_publishes() {
    let topology = topology();
    let datapath = Datapath::open(&topology);
    let mut rows = Vec::new();
    let mut port = 41_000;
    for ends in families() {
        for host in [ends.gateway, ends.host] {
            for (name, frame) in opening_frames(at(ends.web, 1), at(host, 8090)) {
                port += 1;
                let frame = frame
                    .between(at(ends.web, port), at(host, 8090))
                    .on_link([2, 0, 0, 88, 0, 2], GATEWAY_MAC);
                let output = hopped(&frame, frame.source, at(ends.db, 80));
                let name = format!("{name} to {host}");
                let input = frame.to_bytes();
                let row = Row::translated(&name, Program::Link, "veth1", input, output);
                rows.push(row);
            }
        }
    }
    play(&datapath, &rows);
}

#[test]
fn flows_of_a_withdrawn_forward_do_not_exist() {
    let topology = topology();
    let datapath = Datapath::open(&topology);
    let [ends, _] = families();
    let client = at(ends.client, 42_000);
    let frame = |flags| inbound(Frame::tcp(client, at(ends.host, 8080), flags)).to_bytes();
    let reply = Frame::tcp(at(ends.web, 80), client, flag::SYN | flag::ACK)
        .on_link([2, 0, 0, 88, 0, 2], GATEWAY_MAC)
        .to_bytes();
    assert_eq!(
        datapath.run(Program::Device, "eth0", &frame(flag::SYN)).0,
        Verdict::Redirect
    );
    assert_eq!(
        datapath.run(Program::Link, "veth1", &reply).0,
        Verdict::Redirect
    );
    topology.portfwd(&["detach", "web"]).expect_ok();
    for flags in [flag::SYN, flag::ACK, flag::RST] {
        let row = Row::untouched("after detach", Program::Device, "eth0", frame(flags));
        play(&datapath, &[row]);
    }
    topology.attach("db", 1, &["8080:80"]);
    let late = Row::untouched("a late packet", Program::Device, "eth0", frame(flag::ACK));
    play(&datapath, &[late]);
    let output = {
        let frame = inbound(Frame::tcp(client, at(ends.host, 8080), flag::SYN));
        hopped(&frame, client, at(ends.db, 80))
    };
    let new = Row::translated(
        "a new SYN",
        Program::Device,
        "eth0",
        frame(flag::SYN),
        output,
    );
    play(&datapath, &[new]);
}
