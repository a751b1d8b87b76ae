//! What a flow goes through, as `flows --json` shows it.

use std::mem;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use bytemuck::Pod;
use portfwd_common::flow::{Flow, FlowKey};
use portfwd_common::maps;
use portfwd_common::net::{Address, NetPort, V4, V6};
use portfwd_tests::datapath::{Datapath, Program, Verdict};
use portfwd_tests::kernel;
use portfwd_tests::packet::{Frame, Transport, flag};
use portfwd_tests::race::{TURNS, race};
use portfwd_tests::table::{Ends, at, families, hopped, inbound, topology};
use portfwd_tests::taken::{comes_out_as, only_entry, second};
use portfwd_tests::topology::{GATEWAY_MAC, Topology};

const SYN: u8 = flag::SYN;
const ACK: u8 = flag::ACK;
const FIN: u8 = flag::FIN | flag::ACK;
const RST: u8 = flag::RST;
const SYN_ACK: u8 = flag::SYN | flag::ACK;

/// First sequence number of the container.
const NUMBER: u32 = 0x8000_0000;

/// Who sends a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Container,
}
use Side::{Client, Container};

/// The two ends of a connection to the port that `web` publishes.
struct Connection<'a> {
    topology: &'a Topology,
    datapath: &'a Datapath<'a>,
    client: SocketAddr,
    host: SocketAddr,
    web: SocketAddr,
}

/// Which program sees a packet of that side first, on which device.
fn arriving(side: Side, frame: Frame) -> (Program, &'static str, Frame) {
    match side {
        Client => (Program::Device, "eth0", inbound(frame)),
        Container => {
            let frame = frame.on_link([2, 0, 0, 88, 0, 2], GATEWAY_MAC);
            (Program::Link, "veth1", frame)
        }
    }
}

impl Connection<'_> {
    /// Sends a segment; the client's acknowledges the container's SYN if `knows`.
    fn segment(&self, side: Side, flags: u8, data: &[u8], knows: bool) -> Verdict {
        self.send(side, self.tcp(side, flags, data, knows))
    }
    fn tcp(&self, side: Side, flags: u8, data: &[u8], knows: bool) -> Frame {
        let (source, destination) = self.ends(side);
        let mut frame = Frame::tcp(source, destination, flags).carrying(data);
        frame.transport = Transport::Tcp {
            flags,
            sequence: if side == Client { 7 } else { NUMBER },
            acknowledgment: if knows { NUMBER + 1 } else { NUMBER },
            options: Vec::new(),
        };
        frame
    }
    fn datagram(&self, side: Side) -> Verdict {
        let (source, destination) = self.ends(side);
        self.send(side, Frame::udp(source, destination, b"data"))
    }
    fn ends(&self, side: Side) -> (SocketAddr, SocketAddr) {
        match side {
            Client => (self.client, self.host),
            Container => (self.web, self.client),
        }
    }
    fn send(&self, side: Side, frame: Frame) -> Verdict {
        let (program, device, frame) = arriving(side, frame);
        self.datapath.run(program, device, &frame.to_bytes()).0
    }
    /// What becomes of a packet that is sent again and again, while the flow's entries change.
    fn send_beside(
        &self,
        side: Side,
        frame: Frame,
        change: impl FnMut() + Send,
    ) -> Vec<(Verdict, Vec<u8>)> {
        let (program, device, frame) = arriving(side, frame);
        let frame = frame.to_bytes();
        let once = || self.datapath.run_inside(program, device, 0, &frame);
        self.topology.host.run(|| race(once, change))
    }
    /// The tables of young and of settled connections.
    fn tables(&self) -> [OwnedFd; 2] {
        let names = match self.client.is_ipv4() {
            true => [maps::YOUNG_V4, maps::FLOWS_V4],
            false => [maps::YOUNG_V6, maps::FLOWS_V6],
        };
        names.map(|name| self.topology.pinned(name))
    }
    /// The state of the flow; `None` if there is none.
    fn state(&self) -> Option<String> {
        let flows = self
            .topology
            .portfwd(&["--json", "flows"])
            .expect_ok()
            .json();
        let flows = flows.as_array().expect("an array");
        let client = self.client.to_string();
        let mut own = flows
            .iter()
            .filter(|flow| flow["client"] == client.as_str());
        let state = own
            .next()
            .map(|flow| flow["state"].as_str().expect("a state").to_owned());
        assert!(own.next().is_none(), "one flow, not two");
        state
    }
    /// Each segment is translated, and leaves the flow in the state beside it.
    #[track_caller]
    fn goes(&self, steps: &[(Side, u8, &str)]) {
        for (place, (side, flags, expected)) in steps.iter().enumerate() {
            let verdict = self.segment(*side, *flags, b"", true);
            let step = format!("step {place}, {side:?} {flags:#04x}, {}", self.client);
            assert_eq!(verdict, Verdict::Redirect, "{step}");
            assert_eq!(self.state().as_deref(), Some(*expected), "{step}");
        }
    }
}

const OPEN: [(Side, u8, &str); 3] = [
    (Client, SYN, "opening"),
    (Container, SYN_ACK, "answered"),
    (Client, ACK, "established"),
];

/// Plays with a connection of its own in each family.
fn each(mut play: impl FnMut(&Connection)) {
    let topology = topology();
    let datapath = Datapath::open(&topology);
    for ends in families() {
        let Ends {
            client, host, web, ..
        } = ends;
        play(&Connection {
            topology: &topology,
            datapath: &datapath,
            client: at(client, 30_000),
            host: at(host, 8080),
            web: at(web, 80),
        });
    }
}

// Fails if one of the transitions is taken out (`State::after`), or if a flow is lost on its way from one
// table to the other (`advance` in flow.rs).
#[test]
fn a_connection_is_opened_established_closed_and_opened_again() {
    each(|connection| {
        connection.goes(&OPEN);
        connection.goes(&[
            (Container, ACK, "established"),
            (Client, FIN, "client-closed"),
            (Container, ACK, "client-closed"),
            (Container, FIN, "closed"),
            (Client, ACK, "closed"),
        ]);
        // What a client does that takes the port again while the container is in TIME_WAIT.
        connection.goes(&OPEN);
        connection.goes(&[
            (Container, FIN, "container-closed"),
            (Client, ACK, "container-closed"),
            (Client, FIN, "closed"),
        ]);
        connection.goes(&OPEN);
    });
}

// Fails if a client is believed that cannot have seen the container's SYN (`proves` in parse.rs): a table
// of settled flows would fill with what spoofers send.
#[test]
fn an_acknowledgment_of_a_number_that_was_never_sent_proves_nothing() {
    each(|connection| {
        connection.goes(&OPEN[..1]);
        for data in [&b""[..], b"data"] {
            connection.segment(Client, ACK, data, false);
            assert_eq!(connection.state().as_deref(), Some("opening"));
        }
        connection.goes(&OPEN[1..2]);
        for flags in [ACK, FIN] {
            connection.segment(Client, flags, b"data", false);
            assert_eq!(
                connection.state().as_deref(),
                Some("answered"),
                "{flags:#x}"
            );
        }
        // The container answers that with a bare segment, or resets.
        connection.goes(&[(Container, ACK, "answered")]);
        connection.goes(&OPEN[2..]);
    });
}

// Fails if what a container sends to a client that it has accepted does not count (`has_data` in parse.rs):
// the client's own acknowledgment may have been lost.
#[test]
fn a_container_that_sends_data_proves_its_client() {
    each(|connection| {
        connection.goes(&OPEN[..2]);
        connection.segment(Container, ACK, b"220 hello", true);
        assert_eq!(connection.state().as_deref(), Some("established"));
    });
}

// Fails if a RST deletes the flow at once (RFC 7857, section 2.2), if the side that sent it cannot go on, or
// if the other one can.
#[test]
fn a_reset_connection_goes_on_with_the_next_segment_of_the_side_that_reset_it() {
    each(|connection| {
        connection.goes(&OPEN);
        connection.goes(&[
            (Client, RST, "client-reset"),
            (Container, ACK, "client-reset"),
            (Client, ACK, "established"),
            (Container, RST, "container-reset"),
            (Client, ACK, "container-reset"),
            (Container, ACK, "established"),
            (Client, RST, "client-reset"),
            (Container, RST, "reset"),
            (Client, ACK, "reset"),
            (Container, ACK, "reset"),
        ]);
        connection.goes(&OPEN);
        connection.goes(&[(Container, RST, "container-reset")]);
        connection.goes(&OPEN);
    });
}

// Fails if a SYN that comes in the middle of a connection, which its receiver challenges (RFC 9293, section
// 3.10.7.4), throws its state away.
#[test]
fn a_syn_within_a_connection_changes_nothing() {
    each(|connection| {
        connection.goes(&OPEN);
        connection.goes(&[
            (Client, SYN, "established"),
            (Container, ACK, "established"),
            (Client, FIN, "client-closed"),
            (Client, SYN, "client-closed"),
        ]);
    });
}

// Fails if a container that refuses leaves something that a retry cannot replace.
#[test]
fn a_refused_connection_may_be_tried_again() {
    each(|connection| {
        connection.goes(&[
            (Client, SYN, "opening"),
            (Container, RST | ACK, "reset"),
            (Client, SYN, "opening"),
            (Client, SYN, "opening"),
            (Container, SYN_ACK, "answered"),
            (Container, SYN_ACK, "answered"),
            (Client, ACK, "established"),
        ]);
    });
}

// Fails if a segment that opens nothing opens a flow (`admits` in forward.rs): the container would answer
// it with a reset, and the client's connection to whoever it has one with is gone.
#[test]
fn segments_of_no_flow_go_on_to_the_host_and_are_counted() {
    each(|connection| {
        for (number, flags) in (1..).zip([ACK, FIN, RST, SYN_ACK, RST | ACK, 0]) {
            let before = no_flow(connection.topology);
            assert_eq!(
                connection.segment(Client, flags, b"data", true),
                Verdict::Next
            );
            assert_eq!(connection.state(), None, "{number}: {flags:#x}");
            assert_eq!(no_flow(connection.topology), before + 1, "{flags:#x}");
        }
    });
}

/// Packets that were left alone because they have no flow.
fn no_flow(topology: &Topology) -> u64 {
    let status = topology.portfwd(&["--json", "status"]).expect_ok().json();
    let reasons = status["datapath"]["reasons"].as_array().expect("an array");
    let row = reasons.iter().find(|row| row["reason"] == "no-flow");
    row.map_or(0, |row| row["packets"].as_u64().expect("a number"))
}

// Fails if an answer alone makes a stream (`after_datagram`): servers answer spoofed sources too.
#[test]
fn datagrams_are_a_stream_when_the_client_goes_on_after_an_answer() {
    each(|connection| {
        let is = |state: &str| assert_eq!(connection.state().as_deref(), Some(state));
        assert_eq!(connection.datagram(Client), Verdict::Redirect);
        is("unanswered");
        assert_eq!(connection.datagram(Client), Verdict::Redirect);
        is("unanswered");
        assert_eq!(connection.datagram(Container), Verdict::Redirect);
        is("answered");
        assert_eq!(connection.datagram(Container), Verdict::Redirect);
        is("answered");
        portfwd_tests::deadline::until("a stream", portfwd_tests::deadline::PATIENCE, || {
            assert_eq!(connection.datagram(Client), Verdict::Redirect);
            let state = connection.state().expect("a flow");
            assert!(["answered", "assured"].contains(&state.as_str()), "{state}");
            (state == "assured").then_some(())
        });
    });
}

/// Key and value of the one entry of a table.
fn entry(table: &OwnedFd) -> (Vec<u8>, Vec<u8>) {
    let mut keys = kernel::keys(table, kernel::key_size(table)).expect("keys");
    assert_eq!(keys.len(), 1);
    let key = keys.remove(0);
    let mut value = vec![0; kernel::value_size(table)];
    assert!(kernel::map_value(table, &key, &mut value).expect("a look"));
    (key, value)
}

// Fails if a flow that was in neither table is not looked for once more in the one where it may have gone
// meanwhile (`of_key` in flow.rs). A move takes longer than the looks at both, so that it passes with that mistake
// unless the program happens to be interrupted between them.
#[test]
fn a_flow_that_moves_is_found_in_every_moment() {
    each(|connection| {
        connection.goes(&OPEN);
        let [young, settled] = connection.tables();
        let (key, flow) = entry(&settled);
        let (mut from, mut to) = (&settled, &young);
        let segment = connection.tcp(Client, ACK, b"data", true);
        let outcomes = connection.send_beside(Client, segment, || {
            kernel::put_map_value(to, &key, &flow).expect("an entry");
            kernel::remove_map_value(from, &key).expect("no entry");
            mem::swap(&mut from, &mut to);
        });
        let missed = |(verdict, _): &&(Verdict, Vec<u8>)| *verdict != Verdict::Redirect;
        assert_eq!(outcomes.iter().filter(missed).count(), 0, "of {TURNS}");
    });
}

// An entry of an LRU table is used again at once, while a packet may still be looking at it. Fails if a reply is
// translated to what the entry says of another flow by then (`is_led` and `found` in flow.rs).
#[test]
fn no_reply_gets_the_ends_of_a_flow_that_has_taken_its_entry() {
    each(|connection| {
        connection.goes(&OPEN);
        match connection.client.is_ipv4() {
            true => no_reply_gets_the_ends_of_another::<V4>(connection),
            false => no_reply_gets_the_ends_of_another::<V6>(connection),
        }
    });
}

fn no_reply_gets_the_ends_of_another<A: Address + Send + Sync>(connection: &Connection)
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    let [young, settled] = connection.tables();
    let (key, flow): (FlowKey<A>, Flow<A>) = only_entry(&settled);
    // Other clients', from the same port, through another port of the host.
    let others = |number: u16| {
        let mut key = key;
        let [high, low] = key.client.halves();
        key.client = A::from_halves([high ^ 0x40 ^ u64::from(number) << 8, low]);
        key
    };
    // With a way out that is known in this second.
    let led = |key: FlowKey<A>, host_port: NetPort| {
        let mut flow = flow;
        flow.reply.host_port = host_port;
        flow.refreshed = second();
        flow.seal = flow.sealed(&key);
        flow
    };
    let values = || {
        [
            led(key, flow.reply.host_port),
            led(others(0), NetPort::new(9_999)),
        ]
    };
    let segment = connection.tcp(Container, ACK, b"data", true);
    let reply = arriving(Container, segment).2;
    let translated = hopped(&reply, connection.host, connection.client);
    let expected = [translated, reply.to_bytes()];
    kernel::clear_map(&settled, size_of::<FlowKey<A>>()).expect("an empty table");
    for table in [&settled, &young] {
        connection.topology.host.run(|| {
            let mut burst = connection.datapath.burst("eth0", "veth1");
            let send = || burst.send(Program::Link, &expected[1]).1.to_vec();
            comes_out_as(&expected, table, key, others, values, send);
        });
    }
}

// Fails if what a container sends does not count in a flow that a forged reset and SYN have made look new
// (`State::after`): it would stay among those that floods push out.
#[test]
fn a_forged_reset_and_syn_do_not_take_an_established_flow_down_for_good() {
    each(|connection| {
        connection.goes(&OPEN);
        connection.goes(&[(Client, RST, "client-reset"), (Client, SYN, "opening")]);
        connection.segment(Container, ACK, b"data", true);
        assert_eq!(connection.state().as_deref(), Some("established"));
    });
}
