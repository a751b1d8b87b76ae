//! Packet tables: IPv6 extension headers.

use std::net::SocketAddr;

use portfwd_tests::datapath::{Datapath, Program, Row};
use portfwd_tests::packet::{Frame, flag};
use portfwd_tests::table::{Ends, at, families, hopped, inbound, play, topology};
use portfwd_tests::topology::GATEWAY_MAC;

type Headers = Vec<(u8, Vec<u8>)>;

const WEB_MAC: [u8; 6] = [2, 0, 0, 88, 0, 2];

/// Hop-by-hop (0) or destination options (60) of 8 and so many more bytes: padding (RFC 8200, section 4.2).
fn options(number: u8, more: u8) -> (u8, Vec<u8>) {
    let mut body = vec![0; 8 + usize::from(more) * 8];
    body[1] = more;
    body[2] = 1;
    body[3] = more.wrapping_mul(8).wrapping_add(4);
    (number, body)
}

/// A routing header of one address with so many segments left.
fn routing(left: u8) -> (u8, Vec<u8>) {
    let mut body = vec![0; 24];
    body[1] = 2;
    body[2] = 4;
    body[3] = left;
    (43, body)
}

/// A fragment header of a packet that is whole (RFC 6946).
fn atomic() -> (u8, Vec<u8>) {
    (44, vec![0, 0, 0, 0, 1, 2, 3, 4])
}

/// What is walked past.
fn walked() -> Vec<(&'static str, Headers)> {
    vec![
        ("hop-by-hop options", vec![options(0, 0)]),
        ("long hop-by-hop options", vec![options(0, 15)]),
        ("destination options", vec![options(60, 3)]),
        ("a routing header at its end", vec![routing(0)]),
        ("an atomic fragment", vec![atomic()]),
        (
            "all of them",
            vec![
                options(0, 1),
                options(60, 0),
                routing(0),
                atomic(),
                options(60, 1),
            ],
        ),
    ]
}

/// What nobody may, or need, look behind.
fn not_walked() -> Vec<(&'static str, Headers)> {
    let authentication = (
        51,
        vec![
            0, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9,
        ],
    );
    vec![
        ("an authentication header", vec![authentication.clone()]),
        (
            "an authentication header behind options",
            vec![options(0, 0), authentication],
        ),
        ("a routing header with a segment left", vec![routing(1)]),
        ("the same behind options", vec![options(60, 0), routing(1)]),
        ("seven headers", vec![options(60, 0); 7]),
        (
            "headers of 500 bytes",
            vec![options(0, 30), options(60, 30)],
        ),
    ]
}

fn ends() -> Ends {
    let [_, v6] = families();
    v6
}

fn frames(source: SocketAddr, destination: SocketAddr, flags: u8) -> [Frame; 2] {
    [
        Frame::tcp(source, destination, flags).carrying(b"odd"),
        Frame::udp(source, destination, b"even"),
    ]
}

// Fails if a header is not walked past, or by a wrong length (`walk` in family.rs), on the way in or back.
#[test]
fn packets_behind_extension_headers_are_translated_both_ways() {
    let topology = topology();
    let datapath = Datapath::open(&topology);
    let ends = ends();
    let (host, web) = (at(ends.host, 8080), at(ends.web, 80));
    let mut rows = Vec::new();
    for (port, (name, headers)) in (31_000..).zip(walked()) {
        let client = at(ends.client, port);
        for mut request in frames(client, host, flag::SYN) {
            request.ipv6_extensions.clone_from(&headers);
            let request = inbound(request);
            let output = hopped(&request, client, web);
            let input = request.to_bytes();
            rows.push(Row::translated(
                name,
                Program::Device,
                "eth0",
                input,
                output,
            ));
        }
        for mut reply in frames(web, client, flag::SYN | flag::ACK) {
            reply.ipv6_extensions.clone_from(&headers);
            let reply = reply.on_link(WEB_MAC, GATEWAY_MAC);
            let output = hopped(&reply, host, client);
            let input = reply.to_bytes();
            rows.push(Row::translated(name, Program::Link, "veth1", input, output));
        }
    }
    play(&datapath, &rows);
}

// Fails if one of these is taken for something to walk past: the receiver would find its authentication
// broken, or a packet whose way is not at its end is taken from it.
#[test]
fn packets_behind_other_headers_are_left_alone_both_ways() {
    let topology = topology();
    let datapath = Datapath::open(&topology);
    let ends = ends();
    let (host, web) = (at(ends.host, 8080), at(ends.web, 80));
    let mut rows = Vec::new();
    for (port, (name, headers)) in (32_000..).zip(not_walked()) {
        let client = at(ends.client, port);
        for (plain, mut request) in
            frames(client, host, flag::SYN)
                .into_iter()
                .zip(frames(client, host, flag::SYN))
        {
            request.ipv6_extensions.clone_from(&headers);
            let request = inbound(request).to_bytes();
            rows.push(Row::untouched(name, Program::Device, "eth0", request));
            // Opens the flow that the replies below would belong to.
            let plain = inbound(plain);
            let output = hopped(&plain, client, web);
            let plain = plain.to_bytes();
            rows.push(Row::translated(
                "plain",
                Program::Device,
                "eth0",
                plain,
                output,
            ));
        }
        for mut reply in frames(web, client, flag::SYN | flag::ACK) {
            reply.ipv6_extensions.clone_from(&headers);
            let reply = reply.on_link(WEB_MAC, GATEWAY_MAC).to_bytes();
            rows.push(Row::untouched(name, Program::Link, "veth1", reply));
        }
    }
    play(&datapath, &rows);
}

// Fails if the source of a container's packet is asked for only when its headers can be walked past.
#[test]
fn no_header_hides_a_foreign_source() {
    let topology = topology();
    let datapath = Datapath::open(&topology);
    let ends = ends();
    let mut rows = Vec::new();
    for (name, headers) in walked().into_iter().chain(not_walked()) {
        for source in [ends.db, ends.host, ends.client] {
            for mut frame in frames(at(source, 80), at(ends.foreign, 443), flag::SYN) {
                frame.ipv6_extensions.clone_from(&headers);
                let frame = frame.on_link(WEB_MAC, GATEWAY_MAC).to_bytes();
                rows.push(Row::dropped(name, Program::Link, "veth1", frame));
            }
        }
    }
    for source in [ends.db, ends.host, ends.client] {
        let frame = Frame::udp(at(source, 80), at(ends.foreign, 443), b"");
        let mut frame = frame.on_link(WEB_MAC, GATEWAY_MAC).to_bytes();
        frame.truncate(54);
        // A length of 0 is that of a packet without payload, and not only of one too long to tell (`network` of
        // IPv6 in family.rs).
        frame[18..21].copy_from_slice(&[0, 0, 59]);
        rows.push(Row::dropped("no payload", Program::Link, "veth1", frame));
    }
    play(&datapath, &rows);
}
