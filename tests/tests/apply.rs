//! A declared set that becomes what is published.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use nix::libc;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use portfwd_tests::clients::{self, Closed, Protocol};
use portfwd_tests::needs::{Need, need};
use portfwd_tests::portfwd::{self, Outcome, expect_error};
use portfwd_tests::ptrace;
use portfwd_tests::servers::Server;
use portfwd_tests::topology::{HOST, HOST6, Shape, Topology};

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

struct Stand {
    topology: Topology,
    _servers: [Server; 2],
    /// The file's directory goes with it.
    _directory: tempfile::TempDir,
    file: PathBuf,
}

impl Stand {
    fn new() -> Self {
        let topology = Topology::new(Shape::default());
        let servers = topology.serve();
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("host.toml");
        Self {
            topology,
            _servers: servers,
            _directory: directory,
            file,
        }
    }

    /// Applies a text, in which `{0}` and `{1}` are the namespaces of the containers.
    fn apply(&self, text: &str, options: &[&str]) -> Outcome {
        let [web, db] = &self.topology.containers;
        let text = text
            .replace("{0}", &web.netns())
            .replace("{1}", &db.netns());
        fs::write(&self.file, text).expect("write the file");
        let file = self.file.display().to_string();
        let arguments = [&["apply", "-f", &file], options].concat();
        self.topology.portfwd(&arguments)
    }

    fn label(&self, port: u16) -> Option<String> {
        let labels = [HOST, HOST6].map(|address| {
            let to = SocketAddr::new(address, port);
            let answer = clients::ask(&self.topology.client, Protocol::Tcp, to);
            answer.ok().map(|answer| answer.label)
        });
        let [v4, v6] = labels;
        assert_eq!(v4, v6);
        v4
    }
}

const TWO: &str = r#"
[[container]]
name = "web"
netns = "{0}"
publish = ["8080:80", "8081:80"]

[[container]]
name = "db"
netns = "{1}"
publish = ["9090:80", "80"]
deny = ["203.0.113.0/24"]
"#;

#[test]
fn a_set_is_published_and_the_same_again_changes_nothing() {
    let stand = Stand::new();
    let tried = stand.apply(TWO, &["--dry-run"]).expect_ok();
    assert_eq!(stand.label(8080), None);
    let outcome = stand.apply(TWO, &[]).expect_ok();
    assert_eq!(outcome.stdout, tried.stdout);
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!(lines.len(), 8, "{lines:?}");
    assert!(
        lines.contains(&"+ web: 80/tcp -> 0.0.0.0:8080"),
        "{lines:?}"
    );
    assert_eq!(stand.label(8080).as_deref(), Some("web"));
    assert_eq!(stand.label(9090).as_deref(), Some("db"));
    let before = stand.topology.list();
    let open = clients::connect(&stand.topology.client, SocketAddr::new(HOST, 8080));
    let open = open.expect("connect");
    clients::ask_stream(&open).expect("an answer");
    assert_eq!(stand.apply(TWO, &[]).expect_ok().stdout, "");
    clients::echo(&open, b"still there?").expect("an answer");
    let mut after = stand.topology.list();
    for (before, after) in before.iter().zip(&mut after) {
        for counter in [
            "connections",
            "rxPackets",
            "rxBytes",
            "txPackets",
            "txBytes",
        ] {
            after[counter] = before[counter].clone();
        }
    }
    assert_eq!(after, before);
}

#[test]
fn a_set_that_changes_moves_ports_and_withdraws_what_it_does_not_name() {
    let stand = Stand::new();
    stand.topology.attach("other", 1, &["7070:80"]);
    stand.apply(TWO, &[]).expect_ok();
    // 8080 goes from the one to the other, in one step, and 8081 is not there any more.
    let changed = r#"
        [[container]]
        name = "web"
        publish = ["8082:80"]
        [[container]]
        name = "db"
        publish = ["9090:80", "8080:80", "80"]
        deny = ["203.0.113.0/24"]
    "#;
    let outcome = stand.apply(changed, &[]).expect_ok();
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    let expected = [
        "- web: 80/tcp -> 0.0.0.0:8080",
        "- web: 80/tcp -> [::]:8080",
        "- web: 80/tcp -> 0.0.0.0:8081",
        "- web: 80/tcp -> [::]:8081",
        "+ db: 80/tcp -> 0.0.0.0:8080",
        "+ db: 80/tcp -> [::]:8080",
        "+ web: 80/tcp -> 0.0.0.0:8082",
        "+ web: 80/tcp -> [::]:8082",
    ];
    assert_eq!(lines, expected);
    assert_eq!(stand.label(8080).as_deref(), Some("db"));
    assert_eq!(stand.label(8082).as_deref(), Some("web"));
    assert_eq!(stand.label(8081), None);
    assert_eq!(stand.label(7070).as_deref(), Some("db"));
    // Without the others.
    let outcome = stand.apply(changed, &["--prune"]).expect_ok();
    assert_eq!(
        outcome.stdout,
        "- other: 80/tcp -> 0.0.0.0:7070\n- other: 80/tcp -> [::]:7070\n"
    );
    assert_eq!(stand.label(7070), None);
    stand.apply("", &["--prune"]).expect_ok();
    assert!(stand.topology.list().is_empty());
}

/// Each port goes over from its own forward, so the range is made in pieces; nobody is to see that.
#[test]
fn a_range_in_place_of_several_is_one_range() {
    let stand = Stand::new();
    let of = |publish: &str| {
        format!("[[container]]\nname = \"web\"\nnetns = \"{{0}}\"\npublish = [{publish}]\n")
    };
    stand
        .apply(&of(r#""8080:80", "8085:85", "8087-8088:87-88""#), &[])
        .expect_ok();
    let range = of(r#""8078-8089:78-89""#);
    let changed = stand.apply(&range, &[]).expect_ok();
    let came = changed.stdout.lines().filter(|line| line.starts_with('+'));
    assert_eq!(
        came.collect::<Vec<_>>(),
        [
            "+ web: 78-89/tcp -> 0.0.0.0:8078-8089",
            "+ web: 78-89/tcp -> [::]:8078-8089"
        ]
    );
    let listed = stand.topology.published();
    assert_eq!(
        listed,
        [
            "web tcp 0.0.0.0:8078 -> 10.88.0.2:78 x12",
            "web tcp [::]:8078 -> [fd88::2]:78 x12",
        ]
    );
    assert_eq!(stand.label(8080).as_deref(), Some("web"));
    let connections = |row: &serde_json::Value| row["connections"].as_u64();
    assert_eq!(
        stand
            .topology
            .list()
            .iter()
            .map(connections)
            .collect::<Vec<_>>(),
        [Some(1); 2]
    );
    let open = clients::connect(&stand.topology.client, SocketAddr::new(HOST, 8080));
    let open = open.expect("connect");
    clients::ask_stream(&open).expect("an answer");
    assert_eq!(stand.apply(&range, &[]).expect_ok().stdout, "");
    clients::echo(&open, b"still there?").expect("an answer");
    stand.topology.attach("web", 0, &["8078-8089:78-89"]);
    let netns = stand.topology.containers[1].netns();
    let repoint = ["repoint", "web", "db", "--netns", &netns];
    stand.topology.portfwd(&repoint).expect_ok();
    assert_eq!(stand.label(8080).as_deref(), Some("db"));
    clients::echo(&open, b"still there?").expect("an answer");
    let flows = stand
        .topology
        .portfwd(&["--json", "flows", "web", "--state", "established"])
        .expect_ok()
        .json();
    assert_eq!(flows.as_array().map(Vec::len), Some(1), "{flows}");
    assert_eq!(stand.topology.published().len(), 2);
    let detach = ["detach", "db", "-p", "8078-8089:78-89"];
    stand.topology.portfwd(&detach).expect_ok();
    assert_eq!(stand.label(8080), None);
    assert_eq!(stand.topology.published(), [""; 0]);
}

#[test]
fn a_set_of_which_something_cannot_be_changes_nothing() {
    let stand = Stand::new();
    stand.topology.attach("other", 1, &["7070:80"]);
    stand.apply(TWO, &[]).expect_ok();
    let before = stand.topology.published();
    let add = |text: &str| format!("{TWO}\n{text}");
    for (text, code, says) in [
        (
            add("[[container]]\nname = \"new\"\nnetns = \"{0}\"\npublish = [\"7070:80\"]\n"),
            3,
            "line 14: bind for 0.0.0.0:7070 failed",
        ),
        (
            add("[[container]]\nname = \"new\"\nnetns = \"{0}\"\npublish = [\"9090:80\"]\n"),
            3,
            "line 14: bind for 0.0.0.0:9090 failed: port is already allocated\n\
             held by: container \"db\" (tcp), which is declared in line 8\n\
             hint: declare each host port for one container\n",
        ),
        (
            "[[container]]\nname = \"new\"\nnetns = \"{0}\"\npublish = [\"7400-7401:80\"]\n\
             [[container]]\nname = \"far\"\nnetns = \"{1}\"\npublish = [\"7400-7401:80-81\"]\n"
                .to_owned(),
            3,
            "line 2: bind for 0.0.0.0:7400-7401 failed: all ports are allocated\n\
             held by: container \"far\" (tcp), which is declared in line 6\n",
        ),
        (
            add("[[container]]\nname = \"new\"\nnetns = \"/none\"\npublish = [\"9091:80\"]\n"),
            4,
            "line 14: no such network namespace: /none",
        ),
        (
            add("[[container]]\nname = \"new\"\npublish = [\"9091:80\"]\n"),
            4,
            "line 14: no such container: new\n\
             hint: say where it is: netns = \"PATH\", pid = PID or ip = \"ADDR\"\n",
        ),
        (
            add("[[container]]\nname = \"web\"\npublish = [\"9091:80\"]\n"),
            2,
            "line 14: container \"web\" stands there twice",
        ),
        (
            add("[[container]]\nname = \"new\"\npublish = []\n"),
            2,
            "line 14: publish names no SPEC",
        ),
        (
            add("[[container]]\nname = \"new\"\npublish = [\"x\"]\n"),
            2,
            "line 15: SPEC \"x\"",
        ),
        (
            add("[[container]]\nname = \"new\"\npid = 1\nip = \"10.0.0.1\"\npublish = [\"80\"]\n"),
            2,
            "line 14: netns, pid and ip exclude each other",
        ),
        (
            add("[[container]]\nname = \"new\"\npublish = [\"80\"]\nports = 5\n"),
            2,
            "line 16: unknown field `ports`",
        ),
        (add("[[container]\n"), 2, "line 13: "),
        (
            add("[[container]]\nname = \"new\"\n"),
            2,
            "missing field `publish`",
        ),
        ("list = 5".to_owned(), 2, "line 1: unknown field `list`"),
    ] {
        expect_error(stand.apply(&text, &[]), code, says);
        assert_eq!(stand.topology.published(), before, "{says}");
    }
    let missing = stand.topology.portfwd(&["apply", "-f", "/none.toml"]);
    expect_error(missing, 1, "cannot read /none.toml");
}

/// As at boot: nothing is up, one container is to be connected, one serves on its loopback address.
#[test]
fn a_set_brings_the_datapath_up_and_containers_a_network() {
    // A service on the container's loopback address takes it.
    need(Need::Tcx);
    let stand = Stand::new();
    let bare = portfwd_tests::namespace::Namespace::new("bare");
    let _server = Server::start(&bare, &[Ipv4Addr::UNSPECIFIED.into()], 80, "bare");
    let text = format!(
        "[[container]]
        name = \"bare\"
        netns = \"{}\"
        connect = [\"10.99.0.1/24,10.99.0.2/24\"]
        publish = [\"8090:80\"]
        allow = [\"127.0.0.1\"]
        masquerade = true
        [[container]]
        name = \"web\"
        netns = \"{{0}}\"
        publish = [\"8080:80\"]
        loopback = true",
        bare.path().display()
    );
    stand.apply(&text, &[]).expect_ok();
    let local = clients::ask(
        &stand.topology.host,
        Protocol::Tcp,
        SocketAddr::new(LOCAL, 8090),
    );
    assert_eq!(local.expect("an answer").label, "bare");
    let to = SocketAddr::new(HOST, 8090);
    let closed = clients::closed(&stand.topology.client, Protocol::Tcp, to);
    assert_eq!(closed, Closed::Refused);
    assert_eq!(stand.label(8080).as_deref(), Some("web"));
    let again = stand.apply(&text, &[]).expect_ok();
    assert_eq!((again.stdout.as_str(), again.stderr.as_str()), ("", ""));
    stand.apply("", &["--prune"]).expect_ok();
    let links = stand.topology.host.output("ip", &["-o", "link", "show"]);
    assert!(!links.contains("portfwd: container"), "{links}");
}

/// Fails if the link of one container is taken for one that is left over while that of another one is made
/// (`clear_the_way` in apply.rs).
#[test]
fn several_containers_are_connected_at_once() {
    let stand = Stand::new();
    let bare = ["one", "two"].map(portfwd_tests::namespace::Namespace::new);
    let _servers = bare
        .each_ref()
        .map(|bare| Server::start(bare, &[Ipv4Addr::UNSPECIFIED.into()], 80, "bare"));
    let declare = |subnets: [u8; 2]| {
        let tables = bare.iter().zip(subnets).enumerate();
        let tables = tables.map(|(number, (bare, subnet))| {
            format!(
                "[[container]]\nname = \"bare{number}\"\nnetns = \"{}\"\npublish = [\"700{number}:80\"]\n\
                 connect = [\"10.99.{subnet}.1/24,10.99.{subnet}.2/24\"]\n",
                bare.path().display()
            )
        });
        tables.collect::<String>()
    };
    let refused = stand.apply(&declare([1, 1]), &[]);
    expect_error(
        refused,
        2,
        "line 7: connect has addresses of the subnet of container \"bare0\"",
    );
    stand.apply(&declare([1, 2]), &[]).expect_ok();
    for port in [7000, 7001] {
        let answer = clients::ask(
            &stand.topology.client,
            Protocol::Tcp,
            SocketAddr::new(HOST, port),
        );
        assert_eq!(answer.expect("an answer").label, "bare");
    }
    assert_eq!(stand.apply(&declare([1, 2]), &[]).expect_ok().stdout, "");
}

/// What was taken by force stays so, under other rules of who may use it.
#[test]
fn a_forward_over_a_listener_is_replaced_without_force() {
    let stand = Stand::new();
    let listener = stand
        .topology
        .host
        .run(|| TcpListener::bind(SocketAddr::new(LOCAL, 9999)));
    let _listener = listener.expect("listen");
    let declare = |more: &str| {
        format!("[[container]]\nname = \"web\"\nnetns = \"{{0}}\"\npublish = [\"9999:80\"]\n{more}")
    };
    let refused = stand.apply(&declare(""), &[]);
    expect_error(refused, 3, "line 2: bind for 0.0.0.0:9999 failed");
    stand.apply(&declare(""), &["--force"]).expect_ok();
    stand
        .apply(&declare("allow = [\"127.0.0.1\"]\n"), &[])
        .expect_ok();
    let to = SocketAddr::new(HOST, 9999);
    let closed = clients::closed(&stand.topology.client, Protocol::Tcp, to);
    assert_eq!(closed, Closed::Refused);
}

/// Fails if a set that is published already ends connections that a container keeps while it drains.
#[test]
fn a_set_lets_what_drains_go_on() {
    let stand = Stand::new();
    stand.topology.attach("web", 0, &["8080:80"]);
    let open = clients::connect(&stand.topology.client, SocketAddr::new(HOST, 8080));
    let open = open.expect("connect");
    clients::ask_stream(&open).expect("an answer");
    let netns = stand.topology.containers[1].netns();
    let repoint = ["repoint", "web", "db", "--netns", &netns];
    stand.topology.portfwd(&repoint).expect_ok();
    stand.topology.attach("web", 0, &["9090:80"]);
    let text = "[[container]]\nname = \"web\"\npublish = [\"9090:80\"]\n\
                [[container]]\nname = \"db\"\npublish = [\"8080:80\"]\n";
    assert_eq!(stand.apply(text, &["--prune"]).expect_ok().stdout, "");
    clients::echo(&open, b"still there?").expect("an answer");
    let text = "[[container]]\nname = \"db\"\npublish = [\"8080:80\"]\n";
    let withdrawn = "- web: 80/tcp -> 0.0.0.0:9090\n- web: 80/tcp -> [::]:9090\n";
    for stdout in [withdrawn, ""] {
        assert_eq!(stand.apply(text, &["--prune"]).expect_ok().stdout, stdout);
        clients::echo(&open, b"still there?").expect("an answer");
    }
    stand.topology.portfwd(&["detach", "web"]).expect_ok();
    assert!(clients::echo(&open, b"still there?").is_err());
}

/// What comes stands beside what goes until the change is done.
#[test]
fn a_change_of_more_single_ports_than_there_is_room_for_is_told_what_takes_less() {
    const PORTS: u32 = 16_500;
    let stand = Stand::new();
    let declare = |container: u32| {
        let specs = (0..PORTS).map(|number| format!("\"{}:{container}\"", 10_000 + 2 * number));
        format!(
            "[[container]]\nname = \"web\"\nnetns = \"{{0}}\"\npublish = [{}]\n",
            specs.collect::<Vec<_>>().join(",")
        )
    };
    stand.apply(&declare(80), &[]).expect_ok();
    let says = "table forwards is full: it holds 65535 entries\n\
                hint: a port that is published singly takes an entry for each address family";
    expect_error(stand.apply(&declare(81), &[]), 1, says);
    assert_eq!(stand.label(10_000).as_deref(), Some("web"));
    stand.topology.portfwd(&["detach", "web"]).expect_ok();
    stand.apply(&declare(81), &[]).expect_ok();
}

/// What is no file, or none of this kind, is told by its name, and takes neither long nor much memory.
#[test]
fn what_is_no_declaration_is_named_and_read_no_further_than_one_may_be_long() {
    let stand = Stand::new();
    let directory = stand.file.parent().expect("it lies in one");
    let apply = |file: &Path| {
        let file = file.display().to_string();
        let command = stand.topology.command(&["apply", "-f", &file]);
        let mut limited = Command::new("prlimit");
        limited
            .arg(format!("--as={}", 512 << 20))
            .arg(command.get_program())
            .args(command.get_args());
        portfwd::finish(limited)
    };
    let named = |file: &Path, code, says: &str| {
        let outcome = apply(file);
        expect_error(outcome.clone(), code, &file.display().to_string());
        expect_error(outcome, code, says);
    };
    named(directory, 1, "Is a directory");
    let huge = directory.join("huge.toml");
    let made = File::create(&huge).and_then(|file| file.set_len(1 << 30));
    made.expect("a file of nothing");
    let limit = "it is longer than 4 MiB\nhint: ";
    named(&huge, 1, limit);
    named(Path::new("/dev/zero"), 1, limit);
    named(Path::new("/dev/urandom"), 1, limit);
    fs::write(&stand.file, b"# fine\n# not \xff\n").expect("write the file");
    named(&stand.file, 2, ", line 2: it is not UTF-8");
    fs::write(&stand.file, b"#\0\n").expect("write the file");
    named(&stand.file, 2, ", line 1: ");

    let pipe = directory.join("pipe");
    mkfifo(&pipe, Mode::S_IRWXU).expect("a FIFO");
    named(&pipe, 1, "nobody writes to it");
    let text = format!(
        "[[container]]\nname = \"web\"\nnetns = \"{}\"\npublish = [\"8080:80\"]\n",
        stand.topology.containers[0].netns()
    );
    let written = thread::scope(|scope| {
        let writer = scope.spawn(|| fs::write(&pipe, &text));
        let outcome = apply(&pipe);
        writer.join().expect("no panic").expect("a reader");
        outcome
    });
    written.expect_ok();
    assert_eq!(stand.label(8080).as_deref(), Some("web"));

    // Somebody has it open, and takes longer than it is waited for anybody.
    let writer = File::options().read(true).write(true).open(&pipe);
    let mut writer = writer.expect("open the FIFO");
    let text = text.replace("8080", "9090");
    writer.write_all(text.as_bytes()).expect("room in it");
    let mut writer = Some(writer);
    let file = pipe.display().to_string();
    let command = stand.topology.command(&["apply", "-f", &file]);
    let outcome = ptrace::fake(command, |call| {
        if call.number == libc::SYS_fcntl && call.arguments[1] == libc::F_SETFL as u64 {
            writer = None;
        }
        (call.number == libc::SYS_ppoll).then_some(0)
    });
    outcome.expect_ok();
    assert!(writer.is_none());
    assert_eq!(stand.label(9090).as_deref(), Some("web"));
}

#[test]
fn an_empty_file_changes_nothing_and_that_is_said() {
    let stand = Stand::new();
    stand.topology.attach("web", 0, &["8080:80"]);
    let before = stand.topology.published();
    for text in ["", "\n", "# nothing\n", "container = []\n"] {
        let outcome = stand.apply(text, &[]).expect_ok();
        assert_eq!(outcome.stdout, "");
        let says = format!(
            "warning: {} declares no container: nothing is published, nor withdrawn without --prune\n",
            stand.file.display()
        );
        assert_eq!(outcome.stderr, says);
        assert_eq!(stand.topology.published(), before);
    }
    let outcome = stand.apply("", &["--prune"]).expect_ok();
    assert_eq!(outcome.stderr, "");
    assert_eq!(stand.topology.published(), [""; 0]);
}

#[test]
fn a_set_is_warned_of_ports_that_the_kernel_may_choose_once() {
    let stand = Stand::new();
    let range = "32768 60999";
    let host = &stand.topology.host;
    host.set_sysctl("ipv4/ip_local_port_range", range);
    host.set_sysctl("ipv4/ip_local_reserved_ports", "45000");
    let text = TWO.replace("8081", "40000").replace("9090", "40001");
    let outcome = stand.apply(&text, &[]).expect_ok();
    let says = "warning: the kernel may give ports 40000-40001 to connections of the host as well \
                (net.ipv4.ip_local_port_range): their peers cannot reach a container by them; \
                sysctl -w net.ipv4.ip_local_reserved_ports=40000-40001,45000\n";
    assert_eq!(outcome.stderr, says);
    assert_eq!(stand.apply(&text, &[]).expect_ok().stderr, "");
}
