//! Clients that go on while what is published changes.

use std::io::ErrorKind;

use portfwd_tests::clients::{ask_datagram, ask_stream, connect, datagram_socket, echo};
use portfwd_tests::deadline::{PATIENCE, until};
use portfwd_tests::table::at;
use portfwd_tests::topology::{HOST, HOST6, Shape, Topology};

// Two things see to it, and one of them is enough: that detach removes the flows, and that a flow counts
// only for the forward that opened it (`is_of` in flow.rs). Without the latter alone this still passes.
// Fails if a datagram opens no flow because others went before (`admits` in forward.rs).
#[test]
fn datagrams_of_an_old_sender_reach_who_publishes_the_port_now() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    let senders = [HOST, HOST6].map(|host| datagram_socket(&topology.client, at(host, 8080)));
    let senders = senders.map(|socket| socket.expect("a socket"));
    for sender in &senders {
        let error = ask_datagram(sender).expect_err("nobody publishes the port yet");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
    for (name, container) in [("web", 0), ("db", 1), ("web", 0)] {
        topology.attach(name, container, &["8080:80/udp"]);
        for sender in &senders {
            let answer = ask_datagram(sender).expect("an answer");
            assert_eq!(answer.label, name);
        }
        topology.portfwd(&["detach", name]).expect_ok();
    }
}

// What holds for segments without a flow (`segments_of_no_flow_go_on_to_the_host_and_are_counted` in
// state.rs) seen by a client: the host's stack resets the connection.
#[test]
fn connections_outlive_another_up_and_are_reset_after_a_down() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology.attach("web", 0, &["8080:80"]);
    let streams = [HOST, HOST6].map(|host| connect(&topology.client, at(host, 8080)));
    let streams = streams.map(|stream| stream.expect("connect"));
    for stream in &streams {
        ask_stream(stream).expect("an answer");
    }
    topology.portfwd(&["up"]).expect_ok();
    for stream in &streams {
        echo(stream, b"after another up").expect("the same back");
    }
    topology.portfwd(&["down"]).expect_ok();
    topology.attach("web", 0, &["8080:80"]);
    for stream in &streams {
        until("the connection to be reset", PATIENCE, || {
            let error = echo(stream, b"after down and up").err()?;
            (error.kind() == ErrorKind::ConnectionReset || error.kind() == ErrorKind::BrokenPipe)
                .then_some(())
        });
    }
}
