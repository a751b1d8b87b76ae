//! Sockets of a namespace, found and ended, against real ones.

use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};

use crate::support::{Namespaces, ip};
use nix::libc;
use portfwd_common::net::Protocol;
use portfwd_user::observe::netns::Netns;
use portfwd_user::observe::processes;
use portfwd_user::observe::sockets::{self, Look, Peer};

fn cookie(descriptor: RawFd) -> u64 {
    /// `SO_COOKIE` of `include/uapi/asm-generic/socket.h`.
    const SO_COOKIE: libc::c_int = 57;
    let mut cookie = 0u64;
    let mut length = 8;
    // SAFETY: the kernel writes at most 8 bytes to a u64.
    let result = unsafe {
        libc::getsockopt(
            descriptor,
            libc::SOL_SOCKET,
            SO_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    assert_eq!(result, 0);
    cookie
}

#[test]
fn listeners_are_found_with_the_process_that_holds_them() {
    let mut all = Namespaces::new();
    let host = all.add();
    ip(&format!("-n {host} link set lo up"));
    let netns = all.open(&host);
    let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    assert_eq!(
        sockets::listeners(&netns, &protocols, Look::AtHeld).unwrap(),
        []
    );
    let (_open, cookies) = netns
        .run_in(|| {
            let tcp = TcpListener::bind("127.0.0.1:8080").unwrap();
            let both = TcpListener::bind("[::]:8081").unwrap();
            let udp = UdpSocket::bind("0.0.0.0:53").unwrap();
            let connected = UdpSocket::bind("127.0.0.1:54").unwrap();
            connected.connect("127.0.0.1:53").unwrap();
            let v6 = UdpSocket::bind("[::1]:55").unwrap();
            let cookies = [tcp.as_raw_fd(), both.as_raw_fd(), udp.as_raw_fd()].map(cookie);
            ((tcp, both, udp, connected, v6), cookies)
        })
        .unwrap();
    let mut found = sockets::listeners(&netns, &protocols, Look::AtHeld).unwrap();
    found.sort_by_key(|listener| listener.address.port());
    let seen: Vec<String> = found
        .iter()
        .map(|one| format!("{} {} {}", one.protocol.name(), one.address, one.dual_stack))
        .collect();
    assert_eq!(
        seen,
        [
            "udp 0.0.0.0:53 false",
            "udp [::1]:55 false",
            "tcp 127.0.0.1:8080 false",
            "tcp [::]:8081 true"
        ]
    );
    assert_eq!([found[2].cookie, found[3].cookie, found[0].cookie], cookies);
    let owners = processes::owners(&[found[2].inode]).unwrap();
    let named = found[2].named(owners.get(&found[2].inode));
    assert_eq!(named.pid, Some(std::process::id()));
    assert!(named.process.is_some() && named.port == 8080);
}

/// A server and two clients of it over loopback, by the address that the clients use.
fn clients(netns: &Netns, server: &str, address: &str) -> (TcpListener, TcpStream, TcpStream) {
    netns
        .run_in(|| {
            let listener = TcpListener::bind(server).unwrap();
            let connect = || {
                let client = TcpStream::connect(address).unwrap();
                let (accepted, _) = listener.accept().unwrap();
                std::thread::spawn(move || {
                    let mut accepted = accepted;
                    // Ends when the client does.
                    let _ = std::io::copy(&mut accepted.try_clone().unwrap(), &mut accepted);
                });
                client
            };
            let (first, second) = (connect(), connect());
            (listener, first, second)
        })
        .unwrap()
}

#[test]
fn only_the_connections_with_a_given_cookie_and_peer_are_ended() {
    let mut all = Namespaces::new();
    let host = all.add();
    ip(&format!("-n {host} link set lo up"));
    let netns = all.open(&host);
    for (server, address, peer) in [
        ("127.0.0.1:80", "127.0.0.1:80", "127.0.0.1:80"),
        ("[::1]:81", "[::1]:81", "[::1]:81"),
        // An IPv6 socket that talks IPv4.
        ("127.0.0.1:82", "[::ffff:127.0.0.1]:82", "127.0.0.1:82"),
    ] {
        let (_listener, mut ended, mut kept) = clients(&netns, server, address);
        let peer = Peer {
            protocol: Protocol::Tcp,
            address: peer.parse().unwrap(),
        };
        let cookies = HashSet::from([cookie(ended.as_raw_fd())]);
        let elsewhere: SocketAddr = "127.0.0.1:9".parse().unwrap();
        let other = Peer {
            protocol: Protocol::Tcp,
            address: elsewhere,
        };
        assert_eq!(
            sockets::destroy(&netns, &HashSet::from([other]), &cookies).unwrap(),
            0
        );
        assert_eq!(
            sockets::destroy(&netns, &HashSet::from([peer]), &HashSet::from([1])).unwrap(),
            0
        );
        assert_eq!(
            sockets::destroy(&netns, &HashSet::from([peer, other]), &cookies).unwrap(),
            1
        );
        let error = ended.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted, "{address}");
        kept.write_all(b"x").unwrap();
        assert_eq!(kept.read(&mut [0; 1]).unwrap(), 1);
        assert_eq!(
            sockets::destroy(&netns, &HashSet::from([peer]), &cookies).unwrap(),
            0
        );
    }
}

#[test]
fn connected_udp_sockets_are_ended_as_well() {
    let mut all = Namespaces::new();
    let host = all.add();
    ip(&format!("-n {host} link set lo up"));
    let netns = all.open(&host);
    for (own, address, peer) in [
        ("127.0.0.1:0", "127.0.0.1:53", "127.0.0.1:53"),
        ("[::1]:0", "[::1]:53", "[::1]:53"),
        ("[::]:0", "[::ffff:127.0.0.1]:53", "127.0.0.1:53"),
    ] {
        let (socket, _server) = netns
            .run_in(|| {
                let server = UdpSocket::bind(peer).unwrap();
                let socket = UdpSocket::bind(own).unwrap();
                socket.connect(address).unwrap();
                (socket, server)
            })
            .unwrap();
        let peers = HashSet::from([Peer {
            protocol: Protocol::Udp,
            address: peer.parse().unwrap(),
        }]);
        let cookies = HashSet::from([cookie(socket.as_raw_fd())]);
        assert_eq!(
            sockets::destroy(&netns, &peers, &cookies).unwrap(),
            1,
            "{address}"
        );
        let error = socket.recv(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted, "{address}");
    }
}
