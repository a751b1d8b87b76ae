//! Commands that change what is published, killed at any of their system calls: what was there stays, or what is
//! new has come, and open connections go on where they are to.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};

use portfwd_tests::clients::{self, Closed, Protocol};
use portfwd_tests::kills::{calls, kill, kills};
use portfwd_tests::servers::Server;
use portfwd_tests::topology::{HOST, HOST6, Shape, Topology};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// What the first container publishes.
const SPECS: [&str; 3] = ["9090:80", "9091:80", "9090:80/udp"];

/// Two containers that serve as `web` and `db`; the second one's port has to stay.
struct Stand {
    topology: Topology,
    _servers: [Server; 2],
}

impl Stand {
    fn new() -> Self {
        let topology = Topology::watched(Shape::default());
        let servers = topology.serve();
        topology.attach("stays", 1, &["8070:80"]);
        Self {
            topology,
            _servers: servers,
        }
    }

    /// Who answers at port `port` of every address, and on behalf of the host: one label for all of them, None for
    /// nobody.
    ///
    /// # Panics
    /// When they do not agree.
    fn who(&self, protocol: Protocol, port: u16, at: u32) -> Option<String> {
        let Topology { client, host, .. } = &self.topology;
        let from = [(client, HOST), (client, HOST6), (host, LOOPBACK)];
        let labels = from.map(|(from, address)| {
            let answer = clients::ask(from, protocol, SocketAddr::new(address, port));
            answer.ok().map(|answer| answer.label)
        });
        let [first, ..] = &labels;
        assert!(
            labels.iter().all(|label| label == first),
            "killed at {at}: {labels:?}"
        );
        first.clone()
    }

    fn connect(&self) -> TcpStream {
        let to = SocketAddr::new(HOST, 9090);
        let stream = clients::connect(&self.topology.client, to).expect("connect");
        clients::ask_stream(&stream).expect("an answer");
        stream
    }

    /// The forwards of a container.
    fn listed(&self, label: &str) -> usize {
        let begins = format!("{label} ");
        let lines = self.topology.published();
        lines
            .iter()
            .filter(|line| line.starts_with(&begins))
            .count()
    }

    fn detach(&self, label: &str) {
        let detach = ["detach", label, "--ignore-missing"];
        self.topology.portfwd(&detach).expect_ok();
    }
}

/// Fails if one port goes over before another one, or an old connection does not stay: if `published` in
/// ebpf/forward.rs does not know the forward that one of an open transaction follows.
#[test]
fn a_repoint_killed_anywhere_has_handed_over_everything_or_nothing() {
    let stand = Stand::new();
    let repoint = ["repoint", "web", "stays"];
    let attach = || {
        stand.topology.attach("web", 0, &SPECS);
        stand.topology.attach("stays", 1, &["8070:80"]);
    };
    attach();
    let calls = calls(&stand.topology, &repoint);
    let mut handed_over_from = None;
    for at in kills(calls) {
        stand.detach("web");
        stand.detach("stays");
        attach();
        let open = stand.connect();
        kill(&stand.topology, &repoint, at);
        let owner = stand.who(Protocol::Tcp, 9090, at);
        let owner = owner.as_deref().expect("an answer");
        assert_eq!(
            stand.who(Protocol::Tcp, 9091, at).as_deref(),
            Some(owner),
            "killed at {at}"
        );
        assert_eq!(
            stand.who(Protocol::Udp, 9090, at).as_deref(),
            Some(owner),
            "killed at {at}"
        );
        assert_eq!(
            stand.who(Protocol::Tcp, 8070, at).as_deref(),
            Some("db"),
            "killed at {at}"
        );
        clients::echo(&open, b"still there?").expect("an answer");
        let is_done = owner == "db";
        let listed = (stand.listed("web"), stand.listed("stays"));
        assert_eq!(
            listed,
            if is_done { (0, 8) } else { (6, 2) },
            "killed at {at}"
        );
        if is_done {
            handed_over_from.get_or_insert(at);
        } else {
            stand.topology.portfwd(&repoint).expect_ok();
            assert_eq!(stand.who(Protocol::Tcp, 9091, at).as_deref(), Some("db"));
        }
        // The next command repairs what is left, and the connection is still where it was.
        stand.topology.portfwd(&["gc"]).expect_ok();
        clients::echo(&open, b"still there?").expect("an answer");
    }
    let from = handed_over_from.expect("a kill after the commit");
    assert!(from > 1, "handed over before it began");
    println!("{calls} system calls, handed over from {from} on");
    stand.topology.take_down();
}

/// Fails if what drains goes on after its end (`serving` in ebpf/forward.rs).
#[test]
fn a_detach_of_what_drains_ends_it_at_one_instant() {
    let stand = Stand::new();
    let topology = &stand.topology;
    let hand_over = || {
        stand.detach("web");
        stand.detach("stays");
        topology.attach("web", 0, &SPECS);
        topology.attach("stays", 1, &["8070:80"]);
        let open = stand.connect();
        topology.portfwd(&["repoint", "web", "stays"]).expect_ok();
        open
    };
    let detach = ["detach", "web"];
    hand_over();
    let calls = calls(topology, &detach);
    let ends = |at: u32| {
        let open = hand_over();
        kill(topology, &detach, at);
        let is_known = topology.portfwd(&["list", "web"]).code == 0;
        let goes_on = clients::echo(&open, b"still there?").is_ok();
        assert_eq!(goes_on, is_known, "killed at {at}");
        let owner = stand.who(Protocol::Tcp, 9091, at);
        assert_eq!(owner.as_deref(), Some("db"), "killed at {at}");
        stand.detach("web");
        assert!(
            clients::echo(&open, b"still there?").is_err(),
            "after {at} and again"
        );
        !goes_on
    };
    let from = kills(calls).find(|at| ends(*at));
    let from = from.expect("a kill after the commit");
    // Between the commit and the end of the sweep there are but a few calls.
    for at in from.saturating_sub(12).max(1)..from {
        ends(at);
    }
    assert!(from > 1, "ended before it began");
    stand.topology.take_down();
}

/// Fails if the old container's forwards go before the new one's come, or if its name is lost.
#[test]
fn a_replacing_attach_killed_anywhere_has_replaced_everything_or_nothing() {
    let stand = Stand::new();
    let netns = stand.topology.containers[1].netns();
    let replace = [
        "attach",
        "web",
        "--netns",
        &netns,
        "--replace",
        "-p",
        "9090:80",
        "-p",
        "9092:80",
        "-p",
        "9090:80/udp",
    ];
    stand.topology.attach("web", 0, &SPECS);
    let calls = calls(&stand.topology, &replace);
    let mut replaced_from = None;
    for at in kills(calls) {
        stand.detach("web");
        stand.topology.attach("web", 0, &SPECS);
        kill(&stand.topology, &replace, at);
        let owner = stand.who(Protocol::Tcp, 9090, at);
        let is_done = owner.as_deref() == Some("db");
        let old = (!is_done).then(|| "web".to_owned());
        let new = is_done.then(|| "db".to_owned());
        assert_eq!(stand.who(Protocol::Udp, 9090, at), owner, "killed at {at}");
        assert_eq!(stand.who(Protocol::Tcp, 9091, at), old, "killed at {at}");
        assert_eq!(stand.who(Protocol::Tcp, 9092, at), new, "killed at {at}");
        assert_eq!(
            stand.who(Protocol::Tcp, 8070, at).as_deref(),
            Some("db"),
            "killed at {at}"
        );
        assert_eq!(stand.listed("web"), 6, "killed at {at}");
        if is_done {
            replaced_from.get_or_insert(at);
        }
        stand.topology.portfwd(&replace).expect_ok();
        assert_eq!(
            stand.who(Protocol::Tcp, 9092, at).as_deref(),
            Some("db"),
            "after {at} and again"
        );
        let closed = clients::closed(
            &stand.topology.client,
            Protocol::Tcp,
            SocketAddr::new(HOST, 9091),
        );
        assert_eq!(closed, Closed::Refused, "after {at} and again");
    }
    let from = replaced_from.expect("a kill after the commit");
    assert!(from > 1, "replaced before it began");
    println!("{calls} system calls, replaced from {from} on");
    stand.topology.take_down();
}

/// Fails if a declared set is published or withdrawn one container after the other.
#[test]
fn an_apply_killed_anywhere_has_published_the_whole_set_or_nothing_of_it() {
    let stand = Stand::new();
    let [web, db] = &stand.topology.containers;
    let directory = tempfile::tempdir().expect("a directory");
    let write = |name: &str, ports: [&str; 2]| {
        let containers = [("web", web, ports[0]), ("db", db, ports[1])];
        let text = containers.map(|(name, container, publish)| {
            let netns = container.netns();
            format!(
                "[[container]]\nname = \"{name}\"\nnetns = \"{netns}\"\npublish = [{publish}]\n"
            )
        });
        let path = directory.path().join(name);
        std::fs::write(&path, text.concat()).expect("write the file");
        path.display().to_string()
    };
    // Two ports change hands.
    let old = write("old.toml", ["\"9090:80\", \"9091:80\"", "\"9092:80\""]);
    let new = write("new.toml", ["\"9092:80\"", "\"9090:80\", \"9091:80\""]);
    let (before, after) = (["apply", "-f", &old], ["apply", "-f", &new]);
    stand.topology.portfwd(&before).expect_ok();
    let calls = calls(&stand.topology, &after);
    let mut changed_from = None;
    for at in kills(calls) {
        stand.topology.portfwd(&before).expect_ok();
        kill(&stand.topology, &after, at);
        let who = [9090, 9091, 9092].map(|port| {
            let owner = stand.who(Protocol::Tcp, port, at);
            owner.expect("an answer")
        });
        let is_done = who == ["db", "db", "web"];
        assert!(
            is_done || who == ["web", "web", "db"],
            "killed at {at}: {who:?}"
        );
        let listed = (stand.listed("web"), stand.listed("db"));
        assert_eq!(
            listed,
            if is_done { (2, 4) } else { (4, 2) },
            "killed at {at}"
        );
        if is_done {
            changed_from.get_or_insert(at);
        }
        stand.topology.portfwd(&after).expect_ok();
        assert_eq!(stand.who(Protocol::Tcp, 9092, at).as_deref(), Some("web"));
    }
    let from = changed_from.expect("a kill after the commit");
    assert!(from > 1, "changed before it began");
    println!("{calls} system calls, changed from {from} on");
    stand.topology.take_down();
}

/// Fails if `gc` forgets a container before its ports are withdrawn, or leaves some of them to nobody.
#[test]
fn a_gc_killed_anywhere_has_removed_everything_or_nothing() {
    let stand = Stand::new();
    let topology = &stand.topology;
    let lose = || {
        topology.attach("web", 0, &SPECS);
        topology.lose_link();
    };
    let gc = ["gc"];
    lose();
    let calls = calls(topology, &gc);
    let mut removed_from = None;
    for at in kills(calls) {
        topology.make_link_again("10.88.0.2");
        lose();
        kill(topology, &gc, at);
        let listed = stand.listed("web");
        assert!([0, 6].contains(&listed), "killed at {at}: {listed}");
        let is_free = topology.try_attach("other", 1, &["9091:80"]).code == 0;
        assert_eq!(is_free, listed == 0, "killed at {at}");
        if is_free {
            removed_from.get_or_insert(at);
            stand.detach("other");
        }
        assert_eq!(
            stand.who(Protocol::Tcp, 8070, at).as_deref(),
            Some("db"),
            "killed at {at}"
        );
        topology.portfwd(&gc).expect_ok();
        assert_eq!(stand.listed("web"), 0, "after {at} and again");
    }
    let from = removed_from.expect("a kill after the commit");
    assert!(from > 1, "removed before it began");
}
