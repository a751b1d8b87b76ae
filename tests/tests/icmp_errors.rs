//! Packet tables: ICMP errors about translated packets, in both directions. What is expected is built
//! anew, so every checksum is compared with a full computation.

use std::net::{IpAddr, SocketAddr};

use portfwd_tests::datapath::{Datapath, Program, Row, Verdict};
use portfwd_tests::layers::{checksum_faults, repaired};
use portfwd_tests::packet::{Frame, Transport, flag};
use portfwd_tests::quote::{Flow, Kind, quote};
use portfwd_tests::table::{Ends, at, families, play};
use portfwd_tests::topology::{CLIENT_MAC, GATEWAY_MAC, HOST_MAC, Shape, Topology};

const KINDS: [Kind; 4] = [Kind::Tcp, Kind::Udp, Kind::BareUdp, Kind::Sctp];
/// Bytes of the transport header that are quoted: the ports alone, the 8 of RFC 792, up to, into and past
/// each checksum, everything.
const CUTS: [usize; 11] = [4, 6, 7, 8, 9, 12, 16, 17, 18, 20, usize::MAX];
const ON_LINK: [([u8; 6], &str); 2] = [
    ([2, 0, 0, 88, 0, 2], "veth1"),
    ([2, 0, 0, 88, 0, 3], "veth2"),
];

/// The types that are errors, and some that are none.
fn types(address: IpAddr) -> ([u8; 4], [u8; 5]) {
    if address.is_ipv4() {
        ([3, 11, 12, 3], [0, 4, 5, 8, 13])
    } else {
        ([1, 2, 3, 4], [0, 5, 100, 128, 137])
    }
}

fn published() -> Topology {
    let topology = Topology::new(Shape::default());
    topology.attach("web", 0, &["8080:80", "8080:80/udp", "9000:9000/sctp"]);
    topology.attach("db", 1, &["8090:80", "8090:80/udp", "9010:9010/sctp"]);
    topology
}

/// The host's port and the container's: of SCTP they are the same.
fn ports(kind: Kind, published: u16) -> (u16, u16) {
    match kind {
        Kind::Sctp => (published + 920, published + 920),
        _ => (published, 80),
    }
}

/// A flow of the client to `web`.
fn of_client(ends: &Ends, kind: Kind, port: u16) -> Flow {
    let (published, own) = ports(kind, 8080);
    Flow::new(
        at(ends.client, port),
        at(ends.host, published),
        at(ends.web, own),
    )
}

/// A program, and a device that it sees.
type Hook = (Program, &'static str);
const OUTSIDE: Hook = (Program::Device, "eth0");
const WEB: Hook = (Program::Link, "veth1");

/// The hardware address of who sees what is sent there.
fn receiver(program: Program) -> [u8; 6] {
    match program {
        Program::Link => GATEWAY_MAC,
        _ => HOST_MAC,
    }
}

/// Opens a flow.
#[track_caller]
fn open(datapath: &Datapath, kind: Kind, flow: &Flow, (program, device): Hook) {
    let frame = kind
        .opening(flow.client, flow.host)
        .on_link(CLIENT_MAC, receiver(program));
    let (verdict, _) = datapath.run(program, device, &frame.to_bytes());
    assert_eq!(verdict, Verdict::Redirect, "{kind:?} {flow:?}");
}

/// How headers are extended, outside and inside.
#[derive(Debug, Clone, Copy)]
enum Extended {
    No,
    Outer,
    Inner,
    Both,
}

/// Options or extension headers as far as there is room, of odd and even numbers of words.
fn extend(frame: &mut Frame, much: bool) {
    frame.ipv4_options = if much {
        vec![1; 40]
    } else {
        vec![148, 4, 0, 0]
    };
    let option = |number: u8, length: u8| {
        let mut body = vec![0; 8 + usize::from(length) * 8];
        body[1] = length;
        body[2] = 1;
        body[3] = length * 8 + 4; // padding (RFC 8200, section 4.2)
        (number, body)
    };
    frame.ipv6_extensions = match much {
        true => vec![
            option(0, 0),
            option(60, 1),
            (
                43,
                vec![
                    0, 2, 3, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8,
                ],
            ),
            (44, vec![0, 0, 0, 0, 1, 2, 3, 4]),
        ],
        false => vec![option(60, 0)],
    };
}

/// An error of `source` about a packet between `ends`, and what has to become of it.
struct Error {
    kind: Kind,
    message: u8,
    cut: usize,
    extended: Extended,
}

impl Error {
    /// The frame of an error to `destination` about a packet between two ends.
    fn frame(&self, source: IpAddr, destination: IpAddr, quoted: &[u8]) -> Frame {
        let mut frame = Frame::icmp(source, destination, self.message, quoted);
        if matches!(self.extended, Extended::Outer | Extended::Both) {
            extend(&mut frame, matches!(self.extended, Extended::Both));
        }
        frame.transport = Transport::Icmp {
            kind: (self.message, 4),
            rest: 1_300,
        };
        frame
    }
    fn quoted(&self, (source, destination): (SocketAddr, SocketAddr)) -> Vec<u8> {
        let mut frame = self.kind.frame(source, destination);
        frame.hops = 61;
        if matches!(self.extended, Extended::Inner | Extended::Both) {
            extend(&mut frame, matches!(self.extended, Extended::Inner));
        }
        quote(&frame, self.cut)
    }
    /// A quote that was translated from `old`. Half a checksum stays what it was.
    fn requoted(&self, ends: (SocketAddr, SocketAddr), old: &[u8]) -> Vec<u8> {
        let mut quoted = self.quoted(ends);
        let field = if self.kind == Kind::Tcp { 16 } else { 6 };
        if self.cut == field + 1 {
            quoted[old.len() - 1] = old[old.len() - 1];
        }
        quoted
    }
    fn name(&self, what: &str) -> String {
        format!(
            "type {} about {what}, {:?}, {} bytes quoted, {:?} extended",
            self.message, self.kind, self.cut, self.extended
        )
    }
    /// About a request, by the container behind `device`.
    fn about_request(&self, flow: &Flow, device: usize) -> Row {
        let (mac, name) = ON_LINK[device];
        let quoted = self.quoted((flow.seen, flow.container));
        let requoted = self.requoted((flow.client, flow.host), &quoted);
        let input = self.frame(flow.container.ip(), flow.seen.ip(), &quoted);
        let input = input.on_link(mac, GATEWAY_MAC).to_bytes();
        let mut output = self.frame(flow.host.ip(), flow.client.ip(), &requoted);
        output.hops -= 1;
        Row::translated(
            &self.name("a request"),
            Program::Link,
            name,
            input,
            output.to_bytes(),
        )
    }
    /// About a reply, by `source`.
    fn about_reply(&self, flow: &Flow, source: IpAddr, (program, device): Hook) -> Row {
        let quoted = self.quoted((flow.host, flow.client));
        let requoted = self.requoted((flow.container, flow.seen), &quoted);
        let input = self.frame(source, flow.host.ip(), &quoted);
        let input = input.on_link(CLIENT_MAC, receiver(program)).to_bytes();
        let own = source == flow.client.ip();
        let source = if own { flow.seen.ip() } else { source };
        let mut output = self.frame(source, flow.container.ip(), &requoted);
        output.hops -= 1;
        Row::translated(
            &self.name("a reply"),
            program,
            device,
            input,
            output.to_bytes(),
        )
    }
}

/// Every error of each type, cut and extension about packets of one protocol.
fn errors(kind: Kind, address: IpAddr) -> Vec<Error> {
    let extended = [
        Extended::No,
        Extended::Outer,
        Extended::Inner,
        Extended::Both,
    ];
    let mut errors = Vec::new();
    for message in types(address).0 {
        for cut in CUTS {
            for extended in extended {
                errors.push(Error {
                    kind,
                    message,
                    cut,
                    extended,
                });
            }
        }
    }
    errors
}

fn kinds_of(address: IpAddr) -> impl Iterator<Item = Kind> {
    let v4 = address.is_ipv4();
    KINDS
        .into_iter()
        .filter(move |kind| v4 || *kind != Kind::BareUdp)
}

// Fails if a quoted address or port is not exchanged, if the transport checksum of the quote, its header's
// or that of the message is not corrected by just that (`translate` in error.rs), or corrected although the
// quote ends before it (`quoted_checksum`), or if headers of another length are not walked past.
#[test]
fn errors_about_requests_and_replies_are_translated_in_both_directions() {
    let topology = published();
    let datapath = Datapath::open(&topology);
    for ends in families() {
        for (number, kind) in (0..).zip(kinds_of(ends.client)) {
            let flow = of_client(&ends, kind, 21_000 + number);
            open(&datapath, kind, &flow, OUTSIDE);
            let mut rows = Vec::new();
            for error in errors(kind, ends.client) {
                rows.push(error.about_request(&flow, 0));
                // The client itself, and a router before it.
                for source in [ends.client, ends.foreign] {
                    rows.push(error.about_reply(&flow, source, OUTSIDE));
                }
            }
            for row in &rows {
                assert_eq!(checksum_faults(&row.output, false), Vec::<String>::new());
            }
            play(&datapath, &rows);
        }
    }
}

// Fails if the message's source is not the host towards a container that calls itself, or if a container's
// errors are not looked at from both sides (`Link` in error.rs).
#[test]
fn errors_follow_containers_that_are_clients_of_published_ports() {
    let topology = published();
    let datapath = Datapath::open(&topology);
    for ends in families() {
        for (number, kind) in (0..).zip(kinds_of(ends.client)) {
            let client = at(ends.web, 22_000 + number);
            let (published, target) = ports(kind, 8080);
            let own = Flow {
                seen: at(ends.host, 22_000 + number),
                ..Flow::new(client, at(ends.host, published), at(ends.web, target))
            };
            let (published, target) = ports(kind, 8090);
            let others = Flow::new(client, at(ends.gateway, published), at(ends.db, target));
            let mut rows = Vec::new();
            for (flow, server) in [(own, 0), (others, 1)] {
                open(&datapath, kind, &flow, WEB);
                for error in errors(kind, ends.client) {
                    rows.push(error.about_request(&flow, server));
                    rows.push(error.about_reply(&flow, ends.web, WEB));
                }
            }
            play(&datapath, &rows);
        }
    }
}

/// A flow of the client to `web`, opened, and an error of each direction about it: from the container, and
/// from the client.
fn opened(datapath: &Datapath, ends: &Ends, port: u16) -> (Flow, [(Hook, Frame); 2]) {
    let flow = of_client(ends, Kind::Udp, port);
    open(datapath, Kind::Udp, &flow, OUTSIDE);
    let message = types(ends.client).0[0];
    let quoted = |from, to| quote(&Kind::Udp.frame(from, to), usize::MAX);
    let about_request = quoted(flow.seen, flow.container);
    let about_request = Frame::icmp(ends.web, ends.client, message, &about_request)
        .on_link(ON_LINK[0].0, GATEWAY_MAC);
    let about_reply = quoted(flow.host, flow.client);
    let about_reply =
        Frame::icmp(ends.client, ends.host, message, &about_reply).on_link(CLIENT_MAC, HOST_MAC);
    (flow, [(WEB, about_request), (OUTSIDE, about_reply)])
}

// Fails if a message is translated that is no error (`is_error` in family.rs), that quotes what was sent
// to somebody else (`is_backscatter` in error.rs), or whose quote has no flow; or at the end of its hops.
#[test]
fn messages_that_are_no_errors_about_flows_are_left_alone() {
    let topology = published();
    let datapath = Datapath::open(&topology);
    let mut rows = Vec::new();
    for ends in families() {
        let (flow, errors) = opened(&datapath, &ends, 23_000);
        for ((program, device), error) in errors {
            let mut untouched = |name: &str, frame: &Frame| {
                rows.push(Row::untouched(name, program, device, frame.to_bytes()));
            };
            for message in types(ends.client).1 {
                let mut other = error.clone();
                let kind = (message, 0);
                other.transport = Transport::Icmp { kind, rest: 0 };
                untouched(&format!("a message of type {message}"), &other);
            }
            let mut last = error.clone();
            last.hops = 1;
            untouched("an error at the end of its hops", &last);
            let mut part = error.clone();
            part.fragment = (0, true);
            part.ipv6_extensions = vec![(44, vec![0, 0, 0, 1, 9, 9, 9, 9])];
            untouched("a fragment of an error", &part);
            let stranger = at(ends.foreign, 1);
            let (source, destination) = (error.source, stranger);
            let spoofed = error.clone().between(source, destination);
            untouched("an error to somebody else than the sender", &spoofed);
            for (name, from, to) in [
                ("of another client", stranger, flow.host),
                ("of another port", at(ends.client, 23_999), flow.host),
                (
                    "to a port that nobody publishes",
                    flow.client,
                    at(ends.host, 8999),
                ),
            ] {
                let (source, destination, quoted) = if program == Program::Link {
                    let to = if to == flow.host {
                        flow.container
                    } else {
                        at(ends.web, 81)
                    };
                    (ends.web, from.ip(), Kind::Udp.frame(from, to))
                } else {
                    (from.ip(), ends.host, Kind::Udp.frame(to, from))
                };
                let mut other = error.clone().carrying(&quote(&quoted, usize::MAX));
                other = other.between(at(source, 0), at(destination, 0));
                untouched(&format!("an error about a packet {name}"), &other);
            }
            let other = Frame::tcp(flow.host, flow.client, flag::ACK);
            let other = error.clone().carrying(&quote(&other, usize::MAX));
            untouched("an error about another protocol", &other);
        }
    }
    play(&datapath, &rows);
}

// Fails if a quote is read that is not there: up to the end of the frame instead of the packet's, or
// without a look at either (`read` in error.rs).
#[test]
fn errors_that_quote_too_little_are_left_alone_whatever_lies_behind_them() {
    let topology = published();
    let datapath = Datapath::open(&topology);
    let mut rows = Vec::new();
    for ends in families() {
        let (_, errors) = opened(&datapath, &ends, 24_000);
        for ((program, device), error) in errors {
            let header = if ends.client.is_ipv4() { 20 } else { 40 };
            for length in 0..header + 4 {
                let cut = error.clone().carrying(&error.payload[..length]).to_bytes();
                let name = format!("{length} bytes quoted");
                rows.push(Row::untouched(&name, program, device, cut.clone()));
                // The rest of the quote lies behind the end that the packet tells: a device's padding.
                let padded = [&cut, &error.payload[length..]].concat();
                let name = format!("{name}, and padding");
                rows.push(Row::untouched(&name, program, device, padded));
            }
        }
    }
    play(&datapath, &rows);
}

// Fails if what was quoted of a checksum is changed behind the packet's end.
#[test]
fn padding_behind_an_error_is_no_part_of_its_quote() {
    let topology = published();
    let datapath = Datapath::open(&topology);
    for ends in families() {
        let flow = of_client(&ends, Kind::Udp, 25_000);
        open(&datapath, Kind::Udp, &flow, OUTSIDE);
        for cut in [4, 6, 7, 8] {
            let error = Error {
                kind: Kind::Udp,
                message: types(ends.client).0[0],
                cut,
                extended: Extended::No,
            };
            let mut rows = [
                error.about_request(&flow, 0),
                error.about_reply(&flow, ends.client, OUTSIDE),
            ];
            for row in &mut rows {
                for frame in [&mut row.input, &mut row.output] {
                    frame.extend_from_slice(&[0xa5; 9]);
                }
            }
            play(&datapath, &rows);
        }
    }
}

// Fails if the length that a message tells of its quote is believed (RFC 4884, section 5.5; `read_any` in
// error.rs): not everybody who writes a number there means that.
#[test]
fn the_length_that_an_error_tells_of_its_quote_does_not_count() {
    let topology = published();
    let datapath = Datapath::open(&topology);
    let mut rows = Vec::new();
    for ends in families() {
        let flow = of_client(&ends, Kind::Udp, 25_500);
        open(&datapath, Kind::Udp, &flow, OUTSIDE);
        let error = Error {
            kind: Kind::Udp,
            message: types(ends.client).0[2],
            cut: usize::MAX,
            extended: Extended::No,
        };
        for told in [1, 6, 7, 32, 255] {
            // In 32-bit words from the sixth byte on in ICMP, in 64-bit words from the fifth in ICMPv6.
            let rest = told << if ends.client.is_ipv4() { 16 } else { 24 };
            let telling = |source, destination, quoted: &[u8]| {
                let mut frame = error.frame(source, destination, quoted);
                let kind = (error.message, 0);
                frame.transport = Transport::Icmp { kind, rest };
                frame
            };
            let quoted = error.quoted((flow.seen, flow.container));
            let input = telling(ends.web, ends.client, &quoted).on_link(ON_LINK[0].0, GATEWAY_MAC);
            let requoted = error.quoted((flow.client, flow.host));
            let mut output = telling(ends.host, ends.client, &requoted);
            output.hops -= 1;
            let (input, output) = (input.to_bytes(), output.to_bytes());
            let name = format!("{told} words, it says");
            rows.push(Row::translated(&name, WEB.0, WEB.1, input, output));
        }
    }
    play(&datapath, &rows);
}

// Fails if the header of a quote is not looked at: a fragment that is not the first has no ports, and
// what stands there are somebody's data.
#[test]
fn the_first_fragment_is_quoted_with_ports_and_later_ones_without() {
    let topology = published();
    let datapath = Datapath::open(&topology);
    let mut rows = Vec::new();
    for ends in families() {
        let (flow, errors) = opened(&datapath, &ends, 26_000);
        let fragment = |from, to, offset: u16, more: bool| {
            let mut frame = Kind::Udp.frame(from, to);
            frame.fragment = (offset, more);
            let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
            frame.ipv6_extensions = vec![(44, vec![0, 0, high, low, 1, 2, 3, 4])];
            quote(&frame, 8)
        };
        let [(_, about_request), (_, about_reply)] = errors.clone();
        for (offset, more) in [(1, true), (0x100, false)] {
            let request =
                about_request
                    .clone()
                    .carrying(&fragment(flow.seen, flow.container, offset, more));
            let reply =
                about_reply
                    .clone()
                    .carrying(&fragment(flow.host, flow.client, offset, more));
            for (hook, frame) in [(WEB, request), (OUTSIDE, reply)] {
                let name = format!("about the fragment at {offset}");
                rows.push(Row::untouched(&name, hook.0, hook.1, frame.to_bytes()));
            }
        }
        let first = about_request.carrying(&fragment(flow.seen, flow.container, 0, true));
        let mut output = first
            .clone()
            .carrying(&fragment(flow.client, flow.host, 0, true))
            .between(at(ends.host, 0), at(ends.client, 0));
        output.hops -= 1;
        let name = "about the first fragment";
        let (input, output) = (first.to_bytes(), output.to_bytes());
        rows.push(Row::translated(name, WEB.0, WEB.1, input, output));
    }
    play(&datapath, &rows);
}

// Were the message's checksum computed anew, a message that was damaged on its way would be believed. No such
// mistake is listed: the verifier took no program that adds up a whole message.
#[test]
fn an_error_with_a_wrong_checksum_stays_wrong() {
    let topology = published();
    let datapath = Datapath::open(&topology);
    for ends in families() {
        let (_, errors) = opened(&datapath, &ends, 27_000);
        for ((program, device), error) in errors {
            let mut frame = error.to_bytes();
            let last = frame.len() - 1;
            frame[last] ^= 1;
            let (verdict, translated) = datapath.run(program, device, &frame);
            assert_eq!(verdict, Verdict::Redirect);
            assert_eq!(checksum_faults(&translated, false).len(), 1);
        }
    }
}

// Fails if a container's errors are not asked for their source (`may_send` in error.rs).
#[test]
fn a_container_sends_no_errors_in_the_name_of_others() {
    let topology = published();
    let datapath = Datapath::open(&topology);
    let mut rows = Vec::new();
    for ends in families() {
        let (_, [((program, device), error), _]) = opened(&datapath, &ends, 28_000);
        for source in [ends.db, ends.host, ends.client, ends.foreign] {
            let to = error.destination;
            let input = error.clone().between(at(source, 0), to).to_bytes();
            rows.push(Row::dropped(
                &format!("from {source}"),
                program,
                device,
                input,
            ));
        }
    }
    play(&datapath, &rows);
}

/// Behind a router that the host knows, so that its flows go through the stack.
const FAR: [&str; 2] = ["198.51.100.9", "2001:db8:51::9"];

// Fails if errors about requests that go through the stack are not looked at where they leave (`Egress` in
// error.rs), if a router's address is replaced there, or if a hop is counted twice.
#[test]
fn errors_about_flows_through_the_stack_are_translated_on_their_way_through_it() {
    let topology = Topology::new(Shape::forwarding());
    topology.host.ip(&format!(
        "route add {} via 203.0.113.9\nroute add {} via 2001:db8:3::9\n",
        FAR[0], FAR[1]
    ));
    let far = FAR.join(",");
    let arguments = [
        "attach",
        "far",
        "--ip",
        &far,
        "-p",
        "8080:80",
        "-p",
        "8080:80/udp",
        "-p",
        "9000:9000/sctp",
    ];
    topology.portfwd(&arguments).expect_ok();
    let datapath = Datapath::open(&topology);
    let mut rows = Vec::new();
    for (ends, far) in families().into_iter().zip(FAR) {
        let far: IpAddr = far.parse().expect("an address");
        for (number, kind) in (0..).zip(kinds_of(far)) {
            let (published, target) = ports(kind, 8080);
            let flow = Flow::new(
                at(ends.client, 29_000 + number),
                at(ends.host, published),
                at(far, target),
            );
            let frame = kind.opening(flow.client, flow.host);
            let frame = frame.on_link(CLIENT_MAC, HOST_MAC).to_bytes();
            assert_eq!(datapath.run(OUTSIDE.0, OUTSIDE.1, &frame).0, Verdict::Next);
            for error in errors(kind, far) {
                for source in [far, ends.foreign, ends.host] {
                    rows.push(error.leaving(&flow, source));
                }
                let mut row = error.about_reply(&flow, ends.foreign, OUTSIDE);
                row.verdict = Verdict::Next;
                error.keep_hops(&mut row);
                rows.push(row);
            }
        }
    }
    play(&datapath, &rows);
}

impl Error {
    /// About a request, by `source`, as it leaves the host.
    fn leaving(&self, flow: &Flow, source: IpAddr) -> Row {
        let quoted = self.quoted((flow.seen, flow.container));
        let requoted = self.requoted((flow.client, flow.host), &quoted);
        let input = self.frame(source, flow.client.ip(), &quoted).to_bytes();
        let of_container = source == flow.container.ip();
        let told = if of_container { flow.host.ip() } else { source };
        let output = self.frame(told, flow.client.ip(), &requoted).to_bytes();
        let name = self.name(&format!("a request from {source}"));
        let mut row = Row::translated(&name, Program::Egress, "eth0", input, output);
        row.verdict = Verdict::Next;
        row
    }
    /// The stack counts the hop.
    fn keep_hops(&self, row: &mut Row) {
        let at = if row.output[12] == 8 { 22 } else { 21 };
        row.output[at] += 1;
        repaired(&mut row.output);
    }
}
