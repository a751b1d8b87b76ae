//! Packet tables: a packet in, a verdict and a packet out, through TC and through XDP.

use std::net::{IpAddr, SocketAddr};

use portfwd_tests::datapath::{Datapath, Program, Row, Verdict};
use portfwd_tests::packet::{Frame, Transport, flag};
use portfwd_tests::topology::{
    CLIENT, CLIENT_MAC, CLIENT6, FOREIGN, FOREIGN6, GATEWAY, GATEWAY_MAC, GATEWAY6, HOST, HOST_MAC,
    HOST_SECOND, HOST6, HOST6_SECOND, Shape, Topology,
};

/// TCP options of a real SYN: largest segment, window scale, SACK, timestamps.
const SYN_OPTIONS: [u8; 20] = [
    2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7,
];

/// The addresses of one family.
#[derive(Clone, Copy)]
struct Ends {
    client: IpAddr,
    host: IpAddr,
    host_second: IpAddr,
    gateway: IpAddr,
    web: IpAddr,
    db: IpAddr,
    foreign: IpAddr,
    /// Never translated, whatever the port.
    never: [&'static str; 5],
}

fn families() -> [Ends; 2] {
    let address = |text: &str| text.parse().expect("an address");
    [
        Ends {
            client: CLIENT,
            host: HOST,
            host_second: HOST_SECOND,
            gateway: GATEWAY,
            web: address("10.88.0.2"),
            db: address("10.88.0.3"),
            foreign: FOREIGN,
            never: [
                "127.0.0.1",
                "255.255.255.255",
                "192.0.2.255",
                "224.0.0.251",
                "0.0.0.0",
            ],
        },
        Ends {
            client: CLIENT6,
            host: HOST6,
            host_second: HOST6_SECOND,
            gateway: GATEWAY6,
            web: address("fd88::2"),
            db: address("fd88::3"),
            foreign: FOREIGN6,
            never: ["::1", "ff02::1", "ff05::2", "fe80::1", "::"],
        },
    ]
}

/// Two containers that publish their port 80 over both protocols: `web` at 8080, `db` at 8090.
fn topology() -> Topology {
    let topology = Topology::new(Shape::default());
    topology.attach("web", 0, &["8080:80", "8080:80/udp"]);
    topology.attach("db", 1, &["8090:80", "8090:80/udp"]);
    topology
}

#[track_caller]
fn play(datapath: &Datapath, rows: &[Row]) {
    let faults: Vec<String> = rows.iter().filter_map(|row| datapath.fault(row)).collect();
    assert!(
        faults.is_empty(),
        "{} of {} rows fail:\n{}",
        faults.len(),
        rows.len(),
        faults.join("\n")
    );
}

fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

/// A frame of the client to the host.
fn inbound(frame: Frame) -> Frame {
    frame.on_link(CLIENT_MAC, HOST_MAC)
}

/// What a redirected frame looks like: other ends, one hop less.
fn hopped(frame: &Frame, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut frame = frame.clone().between(source, destination);
    frame.hops -= 1;
    frame.to_bytes()
}

/// A SYN and a datagram, plain and with everything that a header can carry.
fn opening_frames(source: SocketAddr, destination: SocketAddr) -> Vec<(&'static str, Frame)> {
    let syn = Frame::tcp(source, destination, flag::SYN);
    let mut full_syn = syn.clone().carrying(b"data with the SYN");
    full_syn.transport = Transport::Tcp {
        flags: flag::SYN | 0xc0, // with the two bits of ECN
        sequence: u32::MAX,
        acknowledgment: 0,
        options: SYN_OPTIONS.to_vec(),
    };
    let datagram = Frame::udp(source, destination, b"odd");
    let empty = Frame::udp(source, destination, b"");
    let mut options = syn.clone();
    options.ipv4_options = vec![148, 4, 0, 0]; // router alert (RFC 2113)
    options.ipv6_extensions = vec![(60, vec![0, 0, 1, 4, 0, 0, 0, 0])];
    let mut many_options = datagram.clone();
    many_options.ipv4_options = vec![1; 40];
    many_options.ipv6_extensions = vec![
        (0, vec![0, 0, 1, 4, 0, 0, 0, 0]),
        (60, vec![0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ];
    vec![
        ("a SYN", syn),
        ("a SYN with options and data", full_syn),
        ("a datagram of odd length", datagram),
        ("an empty datagram", empty),
        ("a SYN behind an option", options),
        ("a datagram behind many options", many_options),
    ]
}

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
                        rows.push(if is_extended(&frame) {
                            row.or_untouched()
                        } else {
                            row
                        });
                    }
                }
            }
        }
    }
    play(&datapath, &rows);
}

/// Whether a frame has IPv6 extension headers: a program need not look behind them, but must not get
/// them wrong either.
fn is_extended(frame: &Frame) -> bool {
    frame.source.is_ipv6() && !frame.ipv6_extensions.is_empty()
}

#[test]
fn what_opens_no_flow_goes_on_untouched() {
    let topology = topology();
    let datapath = Datapath::open(&topology);
    let mut rows = Vec::new();
    for ends in families() {
        let source = at(ends.client, 30_000);
        for flags in [
            0,
            flag::ACK,
            flag::RST,
            flag::FIN,
            flag::FIN | flag::ACK,
            flag::SYN | flag::ACK,
            flag::SYN | flag::RST,
            flag::SYN | flag::FIN,
            0xff,
        ] {
            let frame = Frame::tcp(source, at(ends.host, 8080), flags);
            rows.push((format!("TCP flags {flags:#04x}"), inbound(frame)));
        }
        for (what, destination) in [
            ("an unpublished port", at(ends.host, 8081)),
            ("a foreign address", at(ends.foreign, 8080)),
            ("the container itself", at(ends.web, 8080)),
            (
                "another address of the network",
                at(neighbour(ends.host), 8080),
            ),
        ] {
            for (name, frame) in opening_frames(source, destination) {
                rows.push((format!("{name} to {what}"), inbound(frame)));
            }
        }
        for never in ends.never {
            let destination = at(never.parse().expect("an address"), 8080);
            for (name, frame) in opening_frames(source, destination) {
                rows.push((format!("{name} to {destination}"), inbound(frame)));
            }
        }
        for (name, frame) in opening_frames(source, at(ends.host, 8080)) {
            let mut last_hop = inbound(frame.clone());
            last_hop.hops = 1;
            rows.push((format!("{name} on its last hop"), last_hop));
            let mut tagged = inbound(frame.clone());
            tagged.vlan = Some(7);
            rows.push((format!("{name} behind a tag"), tagged));
        }
    }
    let rows: Vec<Row> = rows
        .into_iter()
        .flat_map(|(name, frame)| {
            let input = frame.to_bytes();
            [Program::Device, Program::EarlyDevice]
                .map(|program| Row::untouched(&name, program, "eth0", input.clone()))
        })
        .collect();
    play(&datapath, &rows);
}

/// The address above, which nobody has.
fn neighbour(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => (u32::from(v4) + 70).to_be_bytes().into(),
        IpAddr::V6(v6) => (u128::from(v6) + 0x70).to_be_bytes().into(),
    }
}

#[test]
fn frames_for_another_station_go_on_untouched() {
    // TC alone: XDP runs before the kernel compares hardware addresses, and must then leave it to TC.
    let topology = topology();
    let datapath = Datapath::open(&topology);
    let mut rows = Vec::new();
    for ends in families() {
        for (name, frame) in opening_frames(at(ends.client, 31_000), at(ends.host, 8080)) {
            for station in [[2, 9, 9, 9, 9, 9], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
                let input = frame.clone().on_link(CLIENT_MAC, station).to_bytes();
                for program in [Program::Device, Program::EarlyDevice] {
                    let name = format!("{name} for {station:02x?}");
                    rows.push(Row::untouched(&name, program, "eth0", input.clone()));
                }
            }
        }
    }
    play(&datapath, &rows);
}

#[test]
fn impossible_sources_open_nothing() {
    let topology = topology();
    let datapath = Datapath::open(&topology);
    let mut rows = Vec::new();
    for ends in families() {
        let strange = ends
            .never
            .into_iter()
            // A link-local IPv6 client on the same wire is a real one, and 192.0.2.255 only looks odd.
            .filter(|source| !["fe80::1", "192.0.2.255"].contains(source))
            .map(|source| source.parse().expect("an address"));
        // The host's own address does not come in from a wire (the kernel: "martian source").
        for address in strange.chain([ends.host, ends.gateway]) {
            let source = at(address, 32_000);
            for (name, frame) in opening_frames(source, at(ends.host, 8080)) {
                let input = inbound(frame).to_bytes();
                for program in [Program::Device, Program::EarlyDevice] {
                    let name = format!("{name} from {source}");
                    rows.push(Row::untouched(&name, program, "eth0", input.clone()));
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
fn fragments_go_on_untouched() {
    let topology = topology();
    let datapath = Datapath::open(&topology);
    let mut rows = Vec::new();
    for ends in families() {
        for (name, frame) in opening_frames(at(ends.client, 36_000), at(ends.host, 8080)) {
            for (offset, more) in [(0, true), (1, true), (185, false)] {
                let mut frame = inbound(frame.clone());
                frame.fragment = (offset, more);
                let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
                frame
                    .ipv6_extensions
                    .push((44, vec![0, 0, high, low, 0, 0, 0, 9]));
                let input = frame.to_bytes();
                for program in [Program::Device, Program::EarlyDevice] {
                    let name = format!("{name}, fragment {offset} {more}");
                    rows.push(Row::untouched(&name, program, "eth0", input.clone()));
                }
            }
        }
    }
    play(&datapath, &rows);
}

#[test]
fn a_frame_cut_anywhere_in_its_headers_goes_on_untouched() {
    let topology = topology();
    let datapath = Datapath::open(&topology);
    let mut rows = Vec::new();
    for ends in families() {
        for (name, frame) in opening_frames(at(ends.client, 37_000), at(ends.host, 8080)) {
            let bytes = inbound(frame.clone().carrying(b"")).to_bytes();
            for length in 14..bytes.len() {
                let cut = bytes[..length].to_vec();
                // The kernel itself fills the frame of a test run up to the network header's size.
                if length < 14 + if ends.client.is_ipv4() { 20 } else { 40 } {
                    continue;
                }
                // TCP options are not read: without them, there is still a header.
                if matches!(&frame.transport, Transport::Tcp { options, .. } if !options.is_empty())
                {
                    continue;
                }
                for program in [Program::Device, Program::EarlyDevice] {
                    let name = format!("{name} cut to {length} of {} bytes", bytes.len());
                    rows.push(Row::untouched(&name, program, "eth0", cut.clone()));
                }
            }
        }
    }
    play(&datapath, &rows);
}

#[test]
fn headers_that_contradict_each_other_go_on_untouched() {
    let topology = topology();
    let datapath = Datapath::open(&topology);
    let mut rows = Vec::new();
    let mut add = |name: &str, frame: &Frame, changes: &[(usize, u8)]| {
        let mut input = inbound(frame.clone()).to_bytes();
        for (offset, value) in changes {
            input[*offset] = *value;
        }
        for program in [Program::Device, Program::EarlyDevice] {
            rows.push(Row::untouched(name, program, "eth0", input.clone()));
        }
    };
    let [four, six] = families();
    let syn = Frame::tcp(at(four.client, 38_000), at(four.host, 8080), flag::SYN);
    let syn6 = Frame::tcp(at(six.client, 38_000), at(six.host, 8080), flag::SYN);
    let datagram = Frame::udp(at(four.client, 38_000), at(four.host, 8080), b"x");
    add("IPv4 with version 6", &syn, &[(14, 0x65)]);
    add("IPv4 with version 0", &syn, &[(14, 0x05)]);
    add("IPv4 with a header of 16 bytes", &syn, &[(14, 0x44)]);
    add("IPv4 with a header of 0 bytes", &syn, &[(14, 0x40)]);
    add(
        "IPv4 with a header beyond the frame",
        &datagram,
        &[(14, 0x4f)],
    );
    add("IPv4 shorter than its headers", &syn, &[(16, 0), (17, 30)]);
    add("IPv4 longer than the frame", &syn, &[(16, 9), (17, 0)]);
    add("TCP with a header of 16 bytes", &syn, &[(46, 0x40)]);
    add("TCP with a header beyond the packet", &syn, &[(46, 0xf0)]);
    add("UDP with a length of 7", &datagram, &[(38, 0), (39, 7)]);
    add("UDP longer than its packet", &datagram, &[(38, 9), (39, 0)]);
    add("IPv6 with version 4", &syn6, &[(14, 0x40)]);
    add("IPv6 shorter than its headers", &syn6, &[(18, 0), (19, 10)]);
    add("IPv6 longer than the frame", &syn6, &[(18, 9), (19, 0)]);
    add("TCP over IPv6 with a header of 0 bytes", &syn6, &[(66, 0)]);
    let mut chain = syn6.clone();
    chain.ipv6_extensions = vec![(60, vec![0, 0, 1, 4, 0, 0, 0, 0]); 40];
    add("IPv6 with forty extension headers", &chain, &[]);
    let mut routed = syn6.clone();
    routed.ipv6_extensions = vec![(
        43,
        vec![
            0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ],
    )];
    add("IPv6 with a source route", &routed, &[]);
    let mut long = syn6;
    long.ipv6_extensions = vec![(60, vec![0, 200, 1, 4, 0, 0, 0, 0])];
    add("IPv6 with an extension beyond the frame", &long, &[]);
    play(&datapath, &rows);
}

#[test]
fn other_protocols_go_on_untouched() {
    let topology = topology();
    let datapath = Datapath::open(&topology);
    let mut rows = Vec::new();
    for ends in families() {
        let frame = inbound(Frame::tcp(
            at(ends.client, 39_000),
            at(ends.host, 8080),
            flag::SYN,
        ));
        let offset = if ends.client.is_ipv4() { 23 } else { 20 };
        for protocol in [0_u8, 1, 2, 4, 41, 47, 50, 51, 58, 59, 89, 132, 136, 255] {
            let mut input = frame.to_bytes();
            input[offset] = protocol;
            for program in [Program::Device, Program::EarlyDevice] {
                let name = format!("protocol {protocol}");
                rows.push(Row::untouched(&name, program, "eth0", input.clone()));
            }
        }
        for (high, low) in [
            (0x08, 0x06),
            (0x88, 0x63),
            (0x88, 0xa8),
            (0, 46),
            (0xff, 0xff),
        ] {
            let mut input = frame.to_bytes();
            (input[12], input[13]) = (high, low);
            for program in [Program::Device, Program::EarlyDevice] {
                let name = format!("frame type {high:02x}{low:02x}");
                rows.push(Row::untouched(&name, program, "eth0", input.clone()));
            }
        }
    }
    play(&datapath, &rows);
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
                rows.push(if is_extended(&frame) {
                    row.or_untouched()
                } else {
                    row
                });
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
