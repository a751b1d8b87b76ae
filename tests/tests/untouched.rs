//! Packet tables: what has to go on as it is, through TC and through XDP.

use std::net::IpAddr;

use portfwd_tests::datapath::{Datapath, Program, Row};
use portfwd_tests::packet::{Frame, Transport, flag};
use portfwd_tests::table::{at, families, hopped, inbound, opening_frames, play, topology};
use portfwd_tests::topology::{CLIENT_MAC, HOST_MAC, Shape, Topology};

// Fails if a packet at the end of its hops is translated (`request` in first.rs).
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

// Fails if the type of the frame is not asked for (`Device` in way.rs).
#[test]
fn frames_for_another_station_go_on_untouched() {
    let topology = topology();
    let datapath = Datapath::open(&topology);
    let mut rows = Vec::new();
    for ends in families() {
        let (source, destination) = (at(ends.client, 31_000), at(ends.host, 8080));
        // Of a flow that is open, too.
        for flags in [flag::SYN, flag::ACK] {
            let frame = inbound(Frame::tcp(source, destination, flags));
            let output = hopped(&frame, source, at(ends.web, 80));
            let (name, input) = ("its own flow", frame.to_bytes());
            rows.push(Row::translated(
                name,
                Program::Device,
                "eth0",
                input,
                output,
            ));
        }
        let of_flow = (
            "a segment of a flow",
            Frame::tcp(source, destination, flag::ACK),
        );
        for (name, frame) in opening_frames(source, destination)
            .into_iter()
            .chain([of_flow])
        {
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

// Fails if the source is not looked at (`admits` in forward.rs).
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

/// The address above, which nobody has.
fn neighbour(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => (u32::from(v4) + 70).to_be_bytes().into(),
        IpAddr::V6(v6) => (u128::from(v6) + 0x70).to_be_bytes().into(),
    }
}

/// Fails if XDP looks at a frame before it looks whose it is.
#[test]
fn malformed_frames_are_counted_where_they_are_addressed_to_the_host() {
    let topology = topology();
    let datapath = Datapath::open(&topology);
    let mut counted = 0;
    for ends in families() {
        let frame = Frame::udp(at(ends.client, 31_500), at(ends.host, 8080), b"cut");
        for (station, mine) in [(HOST_MAC, 1), ([2, 9, 9, 9, 9, 9], 0), ([0xff; 6], 0)] {
            let mut input = frame.clone().on_link(CLIENT_MAC, station).to_bytes();
            input.truncate(input.len() - 1);
            for program in [Program::Device, Program::EarlyDevice] {
                let name = format!("a frame for {station:02x?}");
                let row = Row::untouched(&name, program, "eth0", input.clone());
                play(&datapath, &[row]);
                counted += mine;
                assert_eq!(topology.counted("malformed"), counted, "{program:?} {name}");
            }
        }
    }
}

/// Fails if `open` of first.rs does not ask `forward::fits_reverse_path`.
#[test]
fn sources_of_another_device_open_nothing_where_the_host_checks_them() {
    let topology = Topology::new(Shape::forwarding());
    topology.attach("web", 0, &["8080:80", "8080:80/udp"]);
    let datapath = Datapath::open(&topology);
    let [v4, v6] = families();
    let nowhere: IpAddr = "198.18.0.5".parse().expect("an address");
    let mut port = 36_000;
    for (mode, open) in [
        ("0", [true, true]),
        ("2", [true, false]),
        ("1", [false, false]),
    ] {
        topology.host.set_sysctl("ipv4/conf/eth0/rp_filter", mode);
        topology.portfwd(&["up"]).expect_ok();
        let mut rows = Vec::new();
        for (ends, source, opens) in [
            (v4, v4.client, true),
            (v4, v4.foreign, open[0]),
            (v4, v4.db, open[0]),
            (v4, nowhere, open[1]),
            (v6, v6.foreign, true),
        ] {
            for (name, frame) in opening_frames(at(source, 1), at(ends.host, 8080)) {
                port += 1;
                let frame = inbound(frame.between(at(source, port), at(ends.host, 8080)));
                let (name, input) = (format!("{name} from {source}, {mode}"), frame.to_bytes());
                let output = hopped(&frame, frame.source, at(ends.web, 80));
                rows.push(match opens {
                    true => Row::translated(&name, Program::Device, "eth0", input, output),
                    false => Row::untouched(&name, Program::Device, "eth0", input),
                });
            }
        }
        play(&datapath, &rows);
    }
}
