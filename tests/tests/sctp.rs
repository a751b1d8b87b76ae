//! SCTP: published with equal ports, by addresses alone, because its checksum covers the ports.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect,
    listen, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use portfwd_tests::datapath::{Datapath, Program, Row};
use portfwd_tests::deadline::{PATIENCE, patient};
use portfwd_tests::namespace::Namespace;
use portfwd_tests::needs::{Need, need};
use portfwd_tests::packet::Frame;
use portfwd_tests::table::{at, families, hopped, inbound, play};
use portfwd_tests::topology::{CLIENT, CLIENT6, GATEWAY_MAC, HOST, HOST6, Shape, Topology};

const PORT: u16 = 3868;

/// A socket of one association, which is read and written like a TCP stream.
fn association(namespace: &Namespace, family: IpAddr) -> OwnedFd {
    let family = match family {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    let (kind, flags) = (SockType::Stream, SockFlag::SOCK_CLOEXEC);
    namespace
        .run(|| socket(family, kind, flags, SockProtocol::Sctp))
        .expect("an SCTP socket")
}

/// Answers associations one after the other: whom it sees, and what it was sent.
fn serve(namespace: &Namespace, address: IpAddr) {
    let socket = association(namespace, address);
    bind(
        socket.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(address, PORT)),
    )
    .expect("bind the server");
    listen(&socket, Backlog::new(16).expect("a backlog")).expect("listen");
    let listener = TcpListener::from(socket);
    // Not joined: it ends with the process.
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                let peer = stream.peer_addr().expect("a peer");
                let answer = [format!("{peer} ").as_bytes(), &buffer[..length]].concat();
                if stream.write_all(&answer).is_err() {
                    break;
                }
            }
        }
    });
}

/// Opens an association and asks over it three times.
fn ask(client: &Namespace, own: IpAddr, to: SocketAddr) -> io::Result<()> {
    let socket = association(client, own);
    let limit = TimeVal::seconds(patient(PATIENCE).as_secs().try_into().expect("short"));
    setsockopt(&socket, sockopt::ReceiveTimeout, &limit)?;
    setsockopt(&socket, sockopt::SendTimeout, &limit)?;
    bind(
        socket.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(own, 0)),
    )?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
    let mut stream = TcpStream::from(socket);
    let seen = stream.local_addr()?;
    for number in 0..3 {
        let question = format!("question {number}");
        stream.write_all(question.as_bytes())?;
        let mut buffer = [0; 4096];
        let length = stream.read(&mut buffer)?;
        let expected = format!("{seen} {question}");
        if buffer[..length] != *expected.as_bytes() {
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            return Err(io::Error::other(format!(
                "{text:?} instead of {expected:?}"
            )));
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs SCTP: cargo xtask test --kernels"]
fn sctp_is_served_under_the_same_port_and_keeps_the_clients_address() {
    need(Need::Sctp);
    for shape in [Shape::default(), Shape::routed()] {
        let topology = Topology::new(shape);
        let container = &topology.containers[0];
        for address in container.addresses() {
            serve(&container.namespace, address);
        }
        topology.attach("web", 0, &["3868:3868/sctp"]);
        for (own, host) in [(CLIENT, HOST), (CLIENT6, HOST6)] {
            let to = SocketAddr::new(host, PORT);
            for _ in 0..2 {
                ask(&topology.client, own, to)
                    .unwrap_or_else(|error| panic!("{shape:?} {to}: {error}"));
            }
        }
        topology.portfwd(&["detach", "web"]).expect_ok();
        for (own, host) in [(CLIENT, HOST), (CLIENT6, HOST6)] {
            let to = SocketAddr::new(host, PORT);
            assert!(
                ask(&topology.client, own, to).is_err(),
                "{to} still answers"
            );
        }
    }
}

// Chunk types of RFC 9260, section 3.2.
const DATA: u8 = 0;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;
const SHUTDOWN_COMPLETE: u8 = 14;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;
/// What opens nothing.
const NO_INIT: [u8; 7] = [
    DATA,
    INIT_ACK,
    SHUTDOWN,
    SHUTDOWN_ACK,
    SHUTDOWN_COMPLETE,
    COOKIE_ECHO,
    COOKIE_ACK,
];

// Fails if the checksum is touched (`rewrite` in translate.rs), if anything but INIT opens a flow
// (`of_chunk` in flow/state.rs), or if the client's port is changed (`open` in shift.rs).
#[test]
fn sctp_packets_get_other_addresses_and_nothing_else() {
    let topology = Topology::new(Shape::default());
    topology.attach("web", 0, &["3868:3868/sctp"]);
    let datapath = Datapath::open(&topology);
    let mut rows = Vec::new();
    for ends in families() {
        let (client, web) = (at(ends.client, 40_000), at(ends.web, PORT));
        let to = |host| at(host, PORT);
        let request = |chunk: u8, host| inbound(Frame::sctp(client, to(host), chunk));
        let asked = |chunk: u8| {
            let frame = request(chunk, ends.host);
            let output = hopped(&frame, client, web);
            let name = format!("chunk {chunk} of the client");
            Row::translated(&name, Program::Device, "eth0", frame.to_bytes(), output)
        };
        let answered = |chunk: u8| {
            let frame = Frame::sctp(web, client, chunk).on_link([2, 0, 0, 88, 0, 2], GATEWAY_MAC);
            let output = hopped(&frame, to(ends.host), client);
            let name = format!("chunk {chunk} of the container");
            Row::translated(&name, Program::Link, "veth1", frame.to_bytes(), output)
        };
        for chunk in NO_INIT {
            let (name, stray) = (format!("stray chunk {chunk}"), request(chunk, ends.host));
            let stray = stray.to_bytes();
            rows.push(Row::untouched(&name, Program::Device, "eth0", stray));
        }
        rows.push(asked(INIT));
        rows.push(answered(INIT_ACK));
        rows.push(asked(COOKIE_ECHO));
        rows.push(answered(COOKIE_ACK));
        rows.push(asked(DATA));
        rows.push(answered(DATA));
        let other = request(INIT, ends.host_second).to_bytes();
        let name = "the same port by another address";
        rows.push(Row::dropped(name, Program::Device, "eth0", other));
        rows.push(asked(SHUTDOWN));
        rows.push(answered(SHUTDOWN_ACK));
        rows.push(asked(SHUTDOWN_COMPLETE));
        rows.push(asked(INIT));
    }
    play(&datapath, &rows);
}
