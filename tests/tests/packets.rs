//! Packet tables: what is translated, through TC and through XDP.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use portfwd_common::maps;
use portfwd_tests::datapath::{Datapath, Program, Row, Verdict};
use portfwd_tests::deadline::{PATIENCE, until};
use portfwd_tests::kernel;
use portfwd_tests::packet::{Frame, Transport, flag};
use portfwd_tests::portfwd;
use portfwd_tests::table::{
    Ends, at, families, hopped, inbound, opening_frames, play, published, topology,
};
use portfwd_tests::topology::{CLIENT, GATEWAY_MAC, HOST, Shape, Topology};

// Fails if the transport header is looked for behind a header of 20 bytes, or if no hop is counted
// (`header` in family.rs, `rewrite` in translate.rs).
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

// Fails if the helper is not told that a checksum of 0 is none (`BPF_F_MARK_MANGLED_0` in packet.rs).
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
            let zero = zero(client, host, web);
            let output = hopped(&zero, client, web);
            let name = "a datagram whose checksum comes to zero";
            let input = zero.to_bytes();
            rows.push(Row::translated(name, program, "eth0", input, output));
        }
    }
    play(&datapath, &rows);
}

// XDP translates settled flows alone. Fails if an absent checksum is taken for one, or if a computed zero
// is not sent as ones (`update_checksum` of `Xdp` in packet.rs).
#[test]
fn a_stream_behind_xdp_keeps_its_absent_checksums_and_computed_zeros() {
    let topology = topology();
    let datapath = Datapath::open(&topology);
    for ends in families() {
        let client = at(ends.client, 35_100);
        let (host, web) = (at(ends.host, 8080), at(ends.web, 80));
        let early = |frame: &Frame| {
            let (verdict, bytes) = datapath.run(Program::EarlyDevice, "eth0", &frame.to_bytes());
            assert_eq!(verdict, Verdict::Next);
            bytes
        };
        let question = inbound(Frame::udp(client, host, b"question"));
        let reply = Frame::udp(web, client, b"answer").on_link([2, 0, 0, 88, 0, 2], GATEWAY_MAC);
        until("the stream to be settled", PATIENCE, || {
            for (program, device, frame) in [
                (Program::Device, "eth0", &question),
                (Program::Link, "veth1", &reply),
            ] {
                let (verdict, _) = datapath.run(program, device, &frame.to_bytes());
                assert_eq!(verdict, Verdict::Redirect);
            }
            (early(&question) != question.to_bytes()).then_some(())
        });
        let mut frames = vec![question.clone()];
        if ends.client.is_ipv4() {
            let mut bare = question;
            bare.transport = Transport::UdpWithoutChecksum;
            frames.push(bare);
        }
        frames.push(zero(client, host, web));
        for frame in &frames {
            assert_eq!(early(frame), hopped(frame, client, web));
        }
    }
}

/// A datagram of the client whose checksum comes to zero on its way to `web`.
fn zero(client: SocketAddr, host: SocketAddr, web: SocketAddr) -> Frame {
    (0..=u16::MAX)
        .map(|word| Frame::udp(client, host, &word.to_be_bytes()))
        .map(inbound)
        .find(|frame| udp_checksum(&hopped(frame, client, web)) == 0xffff)
        .expect("one of all words makes the sum")
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

// Fails if a transaction that withdraws a forward does not count (`visible` in forward.rs).
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

/// The flows that are still opening, each with its table and its key there.
fn opening_flows(topology: &Topology) -> Vec<(OwnedFd, Vec<u8>, Vec<u8>)> {
    let pins = kernel::pins(&topology.pins());
    let mut flows = Vec::new();
    for name in [maps::YOUNG_V4, maps::YOUNG_V6] {
        let path = pins.iter().find(|path| path.ends_with(name));
        let table = kernel::open_pin(path.expect("a pin")).expect("the table");
        for key in kernel::keys(&table, kernel::key_size(&table)).expect("keys") {
            let mut flow = vec![0; kernel::value_size(&table)];
            assert!(kernel::map_value(&table, &key, &mut flow).expect("a look"));
            flows.push((table.try_clone().expect("a descriptor"), key, flow));
        }
    }
    flows
}

// A program that was under way while `detach` removed the flows may write one afterwards. Fails if that counts
// for the forward that has the record by then (`visible` in forward.rs looks at its generation).
#[test]
fn a_flow_that_outlives_its_forward_is_none_of_its_successors() {
    let topology = Topology::new(Shape::default());
    topology.attach("web", 0, &["8080:80"]);
    let datapath = Datapath::open(&topology);
    let client = |ends: &Ends| at(ends.client, 42_000);
    let syn = |ends: &Ends, port| inbound(Frame::tcp(client(ends), at(ends.host, port), flag::SYN));
    for ends in families() {
        let (verdict, _) = datapath.run(Program::Device, "eth0", &syn(&ends, 8080).to_bytes());
        assert_eq!(verdict, Verdict::Redirect);
    }
    let flows = opening_flows(&topology);
    assert_eq!(flows.len(), 2);
    topology.portfwd(&["detach", "web"]).expect_ok();
    assert!(opening_flows(&topology).is_empty());
    topology.attach("web", 0, &["9090:80"]);
    for (table, key, flow) in &flows {
        kernel::put_map_value(table, key, flow).expect("an entry");
    }
    let mut rows = Vec::new();
    for ends in families() {
        let web = at(ends.web, 80);
        let answer = Frame::tcp(web, client(&ends), flag::SYN | flag::ACK)
            .on_link([2, 0, 0, 88, 0, 2], GATEWAY_MAC)
            .to_bytes();
        rows.push(Row::untouched(
            "a late answer",
            Program::Link,
            "veth1",
            answer,
        ));
        let input = syn(&ends, 9090);
        let output = hopped(&input, client(&ends), web);
        let (input, device) = (input.to_bytes(), Program::Device);
        rows.push(Row::translated("a new SYN", device, "eth0", input, output));
    }
    play(&datapath, &rows);
}

/// A frame whose IP header does not tell its length.
fn without_length(mut frame: Vec<u8>) -> Vec<u8> {
    if frame[12] == 8 {
        frame[16..18].fill(0);
        frame[24..26].fill(0);
        let words = frame[14..34].chunks(2);
        let sum: u32 = words
            .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
            .sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).expect("folded");
        frame[24..26].copy_from_slice(&(!sum).to_be_bytes());
    } else {
        frame[18..20].fill(0);
    }
    frame
}

// Fails if a length of 0 is not that of a packet which is going to be cut (`length` in family.rs).
#[test]
fn packets_too_large_to_tell_their_length_are_translated_both_ways() {
    let topology = topology();
    let datapath = Datapath::open(&topology);
    for ends in families() {
        let client = at(ends.client, 36_000);
        let (host, web) = (at(ends.host, 8080), at(ends.web, 80));
        // The kernel may put a hop-by-hop header there for the time being, which tells the length.
        let jumbo = vec![(0, vec![0, 0, 0xc2, 4, 0, 0, 12, 0])];
        let mut rows = vec![];
        for (flags, payload) in [(flag::SYN, &b""[..]), (flag::ACK, &[7; 3_000])] {
            for extensions in [vec![], jumbo.clone()] {
                for segment in [1_400, 0] {
                    let mut asked = inbound(Frame::tcp(client, host, flags).carrying(payload));
                    asked.ipv6_extensions.clone_from(&extensions);
                    let mut answered = Frame::tcp(web, client, flags | flag::ACK)
                        .carrying(payload)
                        .on_link([2, 0, 0, 88, 0, 2], GATEWAY_MAC);
                    answered.ipv6_extensions.clone_from(&extensions);
                    for (program, device, frame, to) in [
                        (Program::Device, "eth0", asked, (client, web)),
                        (Program::Link, "veth1", answered, (host, client)),
                    ] {
                        let input = without_length(frame.to_bytes());
                        let output = without_length(hopped(&frame, to.0, to.1));
                        let row = match segment {
                            0 => Row::untouched("whole", program, device, input),
                            _ => Row::translated("to be cut", program, device, input, output),
                        };
                        rows.push(Row { segment, ..row });
                    }
                }
            }
        }
        play(&datapath, &rows);
    }
}

// The programs are the mutant `helper`, in which a helper of the kernel fails when the addresses are changed
// already. Fails if a packet goes on then (`request` and `reply` in first.rs).
#[test]
fn a_packet_that_can_be_translated_only_half_way_is_dropped() {
    let broken = Topology::new(Shape::default()).with_binary(portfwd::mutant("helper"));
    let topology = published(broken);
    let datapath = Datapath::open(&topology);
    let mut rows = Vec::new();
    for ends in families() {
        let client = at(ends.client, 37_000);
        for (name, frame) in opening_frames(client, at(ends.host, 8080)) {
            let input = inbound(frame).to_bytes();
            rows.push(Row::dropped(name, Program::Device, "eth0", input));
        }
        for (name, frame) in opening_frames(at(ends.web, 80), client) {
            let frame = frame.on_link([2, 0, 0, 88, 0, 2], GATEWAY_MAC);
            let name = format!("{name} back");
            rows.push(Row::dropped(
                &name,
                Program::Link,
                "veth1",
                frame.to_bytes(),
            ));
        }
    }
    play(&datapath, &rows);
    let status = topology.portfwd(&["--json", "status"]).expect_ok().json();
    let reasons = status["datapath"]["reasons"].as_array().expect("an array");
    let row = reasons.iter().find(|row| row["reason"] == "rewrite-failed");
    assert_eq!(row.expect("a reason")["packets"], rows.len());
}
