use std::os::unix::ffi::OsStringExt;

use super::*;
use crate::spec::HostPorts;
use crate::target::Addresses;

fn parse_with(environment: &Environment, arguments: &[&str]) -> Result<Parsed, Error> {
    let arguments = ["portfwd"].iter().chain(arguments);
    parse(arguments.map(OsString::from), environment)
}

fn cli(arguments: &[&str]) -> Cli {
    match parse_with(&Environment::default(), arguments) {
        Ok(Parsed::Run(cli)) => *cli,
        other => panic!("{arguments:?}: {other:?}"),
    }
}

fn refused(arguments: &[&str]) -> String {
    let error = parse_with(&Environment::default(), arguments).unwrap_err();
    assert_eq!(error.exit_code(), 2, "{error}");
    error.report()
}

#[test]
fn clap_finds_no_fault_with_the_definition() {
    args::Args::command().debug_assert();
}

#[test]
fn attach_takes_specs_and_a_target() {
    let attach = |arguments: &[&str]| match cli(arguments).command {
        Command::Attach(attach) => attach,
        other => panic!("{other:?}"),
    };
    let web = attach(&[
        "attach",
        "web",
        "--netns",
        "/run/netns/web",
        "-p",
        "8080:80",
        "-p",
        "53/udp",
    ]);
    assert_eq!(web.container.as_str(), "web");
    assert_eq!(web.target, Some(Target::Netns("/run/netns/web".into())));
    assert_eq!(
        web.specs,
        ["8080:80".parse().unwrap(), "53/udp".parse().unwrap()]
    );
    assert!(!web.dry_run);
    let web = attach(&[
        "attach",
        "--publish=[::1]:8080:80",
        "--pid",
        "4711",
        "--dry-run",
        "web",
    ]);
    assert_eq!(web.target, Some(Target::Pid(4711)));
    assert!(web.dry_run);
    let web = attach(&["attach", "web", "-p8080:80", "--ip", "10.88.0.2,fd00::2"]);
    let addresses = Addresses {
        v4: Some("10.88.0.2".parse().unwrap()),
        v6: Some("fd00::2".parse().unwrap()),
    };
    assert_eq!(web.target, Some(Target::Addresses(addresses)));
    assert_eq!(attach(&["attach", "web", "-p", "80"]).target, None);
}

#[test]
fn the_other_commands_are_what_they_say() {
    let label = |name: &str| -> Label { name.parse().unwrap() };
    for (arguments, want) in [
        (&["list"][..], Command::List(None)),
        (&["list", "web"], Command::List(Some(label("web")))),
        (&["port", "web"], Command::Port(label("web"), None)),
        (
            &["port", "web", "53/udp"],
            Command::Port(label("web"), Some("53/udp".parse().unwrap())),
        ),
        (&["flows"], Command::Flows(Flows::default())),
        (
            &[
                "flows",
                "web",
                "--watch",
                "--protocol",
                "udp",
                "--client",
                "192.0.2.0/24",
                "--port",
                "53",
                "--state",
                "assured",
            ],
            Command::Flows(Flows {
                filter: FlowFilter {
                    container: Some(label("web")),
                    protocol: Some(Protocol::Udp),
                    client: Some("192.0.2.0/24".parse().unwrap()),
                    port: Some(53),
                    state: Some("assured".to_owned()),
                },
                watch: true,
            }),
        ),
        (&["flows", "purge"], Command::FlowsPurge),
        (&["status"], Command::Status),
        (&["down"], Command::Down),
        (&["log"], Command::Log),
        (&["doctor"], Command::Doctor),
        (&["completions", "bash"], Command::Completions(Shell::Bash)),
        (&["man"], Command::Man(Vec::new())),
        (
            &["up"],
            Command::Up(Up {
                lifetimes: Vec::new(),
                flow_bytes: None,
                devices: vec![],
                xdp: None,
                log_level: None,
            }),
        ),
        (
            &[
                "up",
                "--device",
                "eth0",
                "--device",
                "br0",
                "--xdp",
                "auto",
                "--log-level=trace",
                "--lifetime",
                "transitory=60",
                "--flow-bytes",
                "on",
            ],
            Command::Up(Up {
                lifetimes: vec![Lifetime {
                    place: 1,
                    seconds: 60,
                }],
                flow_bytes: Some(Switch::On),
                devices: vec!["eth0".to_owned(), "br0".to_owned()],
                xdp: Some(XdpMode::Auto),
                log_level: Some(LogLevel::Trace),
            }),
        ),
        (
            &["detach", "web"],
            Command::Detach(Detach {
                container: label("web"),
                specs: vec![],
                ignore_missing: false,
            }),
        ),
        (
            &["detach", "web", "--ignore-missing", "-p", "8080:80"],
            Command::Detach(Detach {
                container: label("web"),
                specs: vec!["8080:80".parse().unwrap()],
                ignore_missing: true,
            }),
        ),
    ] {
        assert_eq!(cli(arguments).command, want, "{arguments:?}");
    }
}

#[test]
fn an_ipv4_address_may_be_written_as_an_ipv6_one_of_packets() {
    for (written, meant) in [
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::ffff:c000:207", "192.0.2.7"),
        ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("2001:db8::7", "2001:db8::7"),
    ] {
        let by = |client| cli(&["flows", "--client", client]).command;
        assert_eq!(by(written), by(meant), "{written}");
    }
    let meant = cli(&["explain", "192.0.2.1:80/udp", "--from", "192.0.2.7"]).command;
    for (to, from) in [
        ("[::ffff:192.0.2.1]:80/udp", "192.0.2.7"),
        ("192.0.2.1:80/udp", "::ffff:192.0.2.7"),
        ("[::ffff:192.0.2.1]:80/udp", "::ffff:192.0.2.7"),
    ] {
        assert_eq!(cli(&["explain", to, "--from", from]).command, meant, "{to}");
    }
    let report = refused(&["explain", "[::ffff:192.0.2.1]:80", "--from", "::1"]);
    assert!(report.contains("of another family"), "{report}");
}

#[test]
fn global_options_stand_before_or_after_the_command() {
    for arguments in [
        &[
            "--instance",
            "lab",
            "--bpffs",
            "/bpf",
            "--host-netns",
            "/run/netns/h",
            "--json",
            "list",
        ],
        &[
            "list",
            "--json",
            "--host-netns",
            "/run/netns/h",
            "--bpffs",
            "/bpf",
            "--instance",
            "lab",
        ],
    ] {
        let cli = cli(arguments);
        assert_eq!(cli.instance.as_str(), "lab");
        assert_eq!(cli.bpffs, PathBuf::from("/bpf"));
        assert_eq!(cli.host_netns, Some(PathBuf::from("/run/netns/h")));
        assert!(cli.json);
    }
    let cli = cli(&["list"]);
    assert_eq!(cli.instance.as_str(), "default");
    assert_eq!(cli.bpffs, PathBuf::from("/sys/fs/bpf"));
    assert_eq!((cli.host_netns, cli.json), (None, false));
}

#[test]
fn the_environment_stands_in_for_options_that_are_not_given() {
    let environment = Environment {
        instance: Some("lab".into()),
        bpffs: Some("/bpf".into()),
        host_ip: Some("127.0.0.1".into()),
    };
    let run = |arguments: &[&str]| match parse_with(&environment, arguments) {
        Ok(Parsed::Run(cli)) => cli,
        other => panic!("{other:?}"),
    };
    let list = run(&["list"]);
    assert_eq!(
        (list.instance.as_str(), list.bpffs),
        ("lab", PathBuf::from("/bpf"))
    );
    assert_eq!(run(&["list", "--instance", "x"]).instance.as_str(), "x");
    for command in ["attach", "detach"] {
        let arguments = [command, "web", "-p", "80", "-p", "[::1]:80:80"];
        let (Command::Attach(Attach { specs, .. }) | Command::Detach(Detach { specs, .. })) =
            run(&arguments).command
        else {
            panic!("{command}");
        };
        assert_eq!(specs[0], "127.0.0.1::80".parse().unwrap());
        assert_eq!(specs[0].ports, HostPorts::Chosen);
        assert_eq!(specs[1], "[::1]:80:80".parse().unwrap());
    }
    for (instance, host_ip) in [(Some("a.b"), None), (None, Some("localhost"))] {
        let environment = Environment {
            instance: instance.map(OsString::from),
            host_ip: host_ip.map(OsString::from),
            bpffs: None,
        };
        let error = parse_with(&environment, &["attach", "web", "-p", "80"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
    }
}

#[test]
fn what_makes_no_command_is_one_line_and_a_hint() {
    for (arguments, report) in [
        (
            &[][..],
            "error: no command was given\nhint: portfwd --help shows what is possible\n",
        ),
        (
            &["atach", "web"],
            "error: unrecognized subcommand 'atach'\n\
             hint: some similar subcommands exist: 'detach', 'attach'\n",
        ),
        (
            &["attach", "web"],
            "error: the following required arguments were not provided: --publish <SPEC>\n\
             hint: portfwd attach --help shows what is possible\n",
        ),
        (
            &["attach", "web", "-p", "8080:80", "81:81"],
            "error: unexpected argument '81:81' found\n\
             hint: give each SPEC with its own -p: -p 81:81\n",
        ),
        (
            &["attach", "web", "-p", "80", "--netns", "/x", "--pid", "1"],
            "error: the argument '--netns <PATH>' cannot be used with '--pid <PID>'\n\
             hint: portfwd attach --help shows what is possible\n",
        ),
        (
            &["attach", "web", "-p", "80", "--swap"],
            "error: unexpected argument '--swap' found\n\
             hint: portfwd attach --help shows what is possible\n",
        ),
        (
            &["attach", "web", "-p", "80", "--pid", "-4"],
            "error: invalid value '-4' for '--pid <PID>': -4 is not in 1..=2147483647\n",
        ),
        (
            &["attach", "web", "-p", "80", "--allow", "10.0.0.1/8"],
            "error: --allow \"10.0.0.1/8\": bits are set behind the prefix\nhint: give 10.0.0.0/8\n",
        ),
        (
            &["attach", "web", "-p", "80", "--deny", "lan"],
            "error: --deny \"lan\": neither an address nor one with the length of its prefix\n\
             hint: such as 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32\n",
        ),
        (
            &["attach", "web", "-p", "80", "--deny", "::ffff:10.0.0.0/104"],
            "error: --deny \"::ffff:10.0.0.0/104\": packets never bear an IPv4 address in this form\n\
             hint: give it as IPv4\n",
        ),
        (
            &[
                "attach",
                "web",
                "-p",
                "80",
                "--deny",
                "10.0.0.0/8",
                "--allow",
                "::1,10.0.0.0/8",
            ],
            "error: 10.0.0.0/8 stands with --allow and with --deny\n",
        ),
        (
            &["attach", "web", "-p", "80", "--deny-silently"],
            "error: --deny-silently denies nobody\nhint: say whom with --allow or --deny\n",
        ),
        (
            &["repoint", "blue", "blue"],
            "error: container \"blue\" cannot hand its ports over to itself\n\
             hint: portfwd attach --replace puts another container behind the same name\n",
        ),
        (
            &["repoint", "blue", "green", "--drain", "soon"],
            "error: --drain \"soon\": expected number at 0\n\
             hint: give a time such as 90s, 10m or 1h\n",
        ),
        (
            &["repoint", "blue", "green", "--drain", "10ms"],
            "error: --drain \"10ms\": less than a second is --cut\n\
             hint: give a time such as 90s, 10m or 1h\n",
        ),
        (
            &["repoint", "blue", "green", "--drain", "31days"],
            "error: --drain \"31days\": more than 30 days\n\
             hint: give a time such as 90s, 10m or 1h\n",
        ),
        (
            &["repoint", "blue", "green", "--drain", "30days 1ms"],
            "error: --drain \"30days 1ms\": more than 30 days\n\
             hint: give a time such as 90s, 10m or 1h\n",
        ),
        (
            &["repoint", "blue", "green", "--drain", "1s", "--cut"],
            "error: the argument '--drain <TIME>' cannot be used with '--cut'\n\
             hint: portfwd repoint --help shows what is possible\n",
        ),
        (
            &["repoint", "blue"],
            "error: the following required arguments were not provided: <TARGET>\n\
             hint: portfwd repoint --help shows what is possible\n",
        ),
        (
            &["up", "--xdp", "fast"],
            "error: invalid value 'fast' for '--xdp <MODE>' [possible values: auto, native, generic, off]\n",
        ),
        (
            &["up", "--device", "a/b"],
            "error: \"a/b\" cannot be the name of a device\nhint: ip link shows every device\n",
        ),
        (
            &["up", "--lifetime", "tcp=5"],
            "error: --lifetime \"tcp=5\": unknown state \"tcp\"\n\
             hint: give STATE=SECONDS, STATE being established, transitory, answered, unanswered\n",
        ),
        (
            &["up", "--lifetime", "answered"],
            "error: --lifetime \"answered\": there is no =\n\
             hint: give STATE=SECONDS, STATE being established, transitory, answered, unanswered\n",
        ),
        (
            &["up", "--lifetime", "answered=0"],
            "error: --lifetime \"answered=0\": \"0\" is no number of seconds from 1 to 2592000\n\
             hint: give STATE=SECONDS, STATE being established, transitory, answered, unanswered\n",
        ),
        (
            &["attach", "web", "-p", "8080:80/sctp"],
            "error: SPEC 8080:80/sctp would change the port, which SCTP does not allow\n\
             hint: publish 80:80/sctp\n",
        ),
        (
            &["attach", "web", "-p", "80/sctp"],
            "error: SPEC 80/sctp would change the port, which SCTP does not allow\n\
             hint: publish 80:80/sctp\n",
        ),
        (
            &["a\nhint: b\n\nc"],
            "error: unrecognized subcommand 'a\\nhint: b\\n\\nc'\n\
             hint: portfwd --help shows what is possible\n",
        ),
    ] {
        assert_eq!(refused(arguments), report, "{arguments:?}");
    }
}

#[test]
fn hostile_values_get_as_far_as_our_own_errors() {
    for (arguments, says) in [
        (
            &["attach", "web", "-p", "-1:80"][..],
            "host port \"-1\" is negative",
        ),
        (&["attach", "web", "-p", ""], "SPEC \"\" is empty"),
        (
            &["attach", "web", "-p", "--json"],
            "SPEC \"--json\": container port \"--json\" is not",
        ),
        (
            &["detach", "web", "-p", "-1"],
            "container port \"-1\" is negative",
        ),
        (
            &["attach", "web", "-p", "80", "-p", "80/tcp"],
            "SPEC \"80/tcp\" is given twice",
        ),
        (
            &["attach", "web", "-p", "80:1", "-p", "80:2"],
            "shares host port 80",
        ),
        (
            &["attach", "a b", "-p", "80"],
            "container \"a b\" holds ' '",
        ),
        (
            &["attach", "", "-p", "80"],
            "the name of the container is empty",
        ),
        (
            &["attach", "web", "-p", "80", "--ip", "-1"],
            "container address \"-1\"",
        ),
        (&["attach", "web", "-p", "80", "--netns="], "--netns <PATH>"),
        (&["list", "--instance", "a/b"], "instance \"a/b\" holds '/'"),
        (&["port", "web", "-1"], "PORT \"-1\""),
        (&["list", "\u{202e}"], "\\u{202e}"),
    ] {
        let report = refused(arguments);
        assert!(report.contains(says), "{arguments:?}: {report}");
        assert!((1..=2).contains(&report.lines().count()), "{report}");
    }
}

#[test]
fn an_argument_that_is_not_utf8_is_named() {
    let arguments = [b"portfwd".to_vec(), b"list".to_vec(), b"we\xffb".to_vec()];
    let arguments = arguments.map(OsString::from_vec);
    let error = parse(arguments, &Environment::default()).unwrap_err();
    assert!(
        error.to_string().contains("\"we\u{fffd}b\" is not UTF-8"),
        "{error}"
    );
}

#[test]
fn help_and_version_are_no_errors() {
    for arguments in [
        &["--help"][..],
        &["-h"],
        &["help"],
        &["attach", "--help"],
        &["repoint", "--help"],
        &["apply", "--help"],
        &["explain", "--help"],
        &["flows", "-h"],
    ] {
        let parsed = parse_with(&Environment::default(), arguments).unwrap();
        let Parsed::Help(text) = parsed else {
            panic!("{arguments:?}: {parsed:?}");
        };
        assert!(text.contains("Usage: portfwd"), "{text}");
        assert!(text.lines().all(|line| line.len() <= 100), "{text}");
    }
    for flag in ["--version", "-V"] {
        assert_eq!(
            parse_with(&Environment::default(), &[flag]).unwrap(),
            Parsed::Version
        );
    }
    let version = version_text("c0ffee");
    assert!(version.starts_with(concat!("portfwd ", env!("CARGO_PKG_VERSION"), "\n")));
    assert!(version.ends_with("c0ffee\n"), "{version}");
}

#[test]
fn every_shell_gets_its_completions() {
    use clap::ValueEnum;
    for shell in Shell::value_variants() {
        let script = String::from_utf8(completions(*shell)).unwrap();
        assert!(script.contains("ignore-missing"), "{shell}");
    }
}

#[test]
fn masquerade_takes_a_subnet_and_attach_a_flag() {
    let subnet = |text: &str| text.parse().unwrap();
    for (arguments, expected) in [
        (
            &["masquerade", "add", "10.88.0.0/16"][..],
            Masquerade::Add(subnet("10.88.0.0/16")),
        ),
        (
            &["masquerade", "remove", "fd88::/64"],
            Masquerade::Remove(subnet("fd88::/64")),
        ),
        (&["masquerade", "list"], Masquerade::List(None)),
        (
            &["masquerade", "list", "10.88.0.2"],
            Masquerade::List(Some(subnet("10.88.0.2/32"))),
        ),
    ] {
        assert_eq!(cli(arguments).command, Command::Masquerade(expected));
    }
    for (arguments, named) in [
        (
            &["masquerade", "add", "10.88.0.0/40"][..],
            "\"10.88.0.0/40\"",
        ),
        (&["masquerade", "add", "-1"], "\"-1\""),
        (
            &["masquerade", "remove", "10.88.0.1/16"],
            "give 10.88.0.0/16",
        ),
        (&["masquerade", "list", "web"], "\"web\""),
        (&["masquerade", "add"], "SUBNET"),
        (&["masquerade"], "command"),
    ] {
        let report = refused(arguments);
        assert!(report.contains(named), "{arguments:?}: {report}");
    }
    let asks = |arguments: &[&str]| match cli(arguments).command {
        Command::Attach(attach) => attach.masquerade,
        other => panic!("{other:?}"),
    };
    assert!(asks(&[
        "attach",
        "web",
        "--pid",
        "1",
        "-p",
        "80",
        "--masquerade"
    ]));
    assert!(!asks(&["attach", "web", "--pid", "1", "-p", "80"]));
}

#[test]
fn explain_takes_a_destination_and_a_sender_of_its_family() {
    let explain = |arguments: &[&str]| match cli(arguments).command {
        Command::Explain(explain) => explain,
        other => panic!("{other:?}"),
    };
    let plain = explain(&["explain", "192.0.2.1:8080"]);
    let expected = Explain {
        to: "192.0.2.1:8080".parse().unwrap(),
        protocol: Protocol::Tcp,
        from: None,
    };
    assert_eq!(plain, expected);
    let other = explain(&["explain", "[2001:db8::1]:53/udp", "--from", "2001:db8::2"]);
    assert_eq!(other.to, "[2001:db8::1]:53".parse().unwrap());
    assert_eq!(other.protocol, Protocol::Udp);
    assert_eq!(other.from, Some("2001:db8::2".parse().unwrap()));
    for wrong in [
        "192.0.2.1",
        "192.0.2.1:80/icmp",
        "web:80",
        "2001:db8::1:80",
        ":80",
        "192.0.2.1:80/",
    ] {
        let error = parse_with(&Environment::default(), &["explain", wrong]).unwrap_err();
        assert!(
            error.to_string().starts_with(&format!("\"{wrong}\": ")),
            "{error}"
        );
    }
}

#[test]
fn apply_takes_a_file() {
    let environment = Environment {
        host_ip: Some("127.0.0.1".into()),
        ..Environment::default()
    };
    let parsed = parse_with(&environment, &["apply", "-f", "host.toml", "--prune"]).unwrap();
    let Parsed::Run(cli) = parsed else {
        panic!("{parsed:?}");
    };
    let expected = Apply {
        file: "host.toml".into(),
        host: Some("127.0.0.1".parse().unwrap()),
        prune: true,
        force: false,
        dry_run: false,
    };
    assert_eq!(cli.command, Command::Apply(expected));
}

#[test]
fn a_declared_container_is_an_attach_that_replaces() {
    let text = "[[container]]\nname = \"web\"\npid = 7\npublish = [\"8080:80\"]\ndeny-silently = true\n\
                deny = [\"10.0.0.0/8\"]\n\n[[container]]\npublish = [\"53:53/udp\"]\nname = \"dns\"\n";
    let host = Some("127.0.0.1".parse().unwrap());
    let declared = declared("host.toml", text, host, true).unwrap();
    assert_eq!(
        declared.iter().map(|one| one.line).collect::<Vec<_>>(),
        [2, 10]
    );
    let attach = |arguments: &[&str]| match cli(arguments).command {
        Command::Attach(attach) => attach,
        other => panic!("{other:?}"),
    };
    let web = attach(&[
        "attach",
        "web",
        "--pid",
        "7",
        "-p",
        "127.0.0.1:8080:80",
        "--deny-silently",
        "--deny",
        "10.0.0.0/8",
        "--force",
        "--replace",
    ]);
    assert_eq!(declared[0].attach, web);
    let dns = attach(&[
        "attach",
        "dns",
        "-p",
        "127.0.0.1:53:53/udp",
        "--force",
        "--replace",
    ]);
    assert_eq!(declared[1].attach, dns);
}

#[test]
fn what_is_wrong_with_an_entry_of_a_declared_list_is_told_at_its_line() {
    for (line, text, named) in [
        (
            5,
            "publish = [\n\"80\",\n\"8080:x\",\n\"81\"]",
            "container port \"x\"",
        ),
        (
            6,
            "publish = [\n\"8080:80\",\n\"81\",\n\"8080:82\"]",
            "shares host port 8080",
        ),
        (
            5,
            "publish = [\n\"80:80/sctp\",\n\"81:80/sctp\"]",
            "SPEC 81:80/sctp would",
        ),
        (
            4,
            "publish = [\n\"80/udp\"]\nloopback = true\npid = 7",
            "cannot have --loopback",
        ),
        (
            5,
            "publish = [\"80\"]\nallow = [\"10.0.0.0/8\",\n\"ten\"]",
            "--allow \"ten\"",
        ),
        (
            3,
            "deny = [\"10.0.0.1/8\"]\npublish = [\n\"80\"]",
            "give 10.0.0.0/8",
        ),
        (
            6,
            "publish = [\"80\"]\nallow = [\"10.0.0.0/8\"]\ndeny = [\n\"10.0.0.0/8\"]",
            "10.0.0.0/8 stands with",
        ),
        (
            6,
            "pid = 7\npublish = [\"80\"]\nconnect = [\n\"10.99.0.1/24\"]",
            "connection \"10.99.0.1/24\"",
        ),
        // About all of it.
        (
            2,
            "publish = [\n\"80\"]\nloopback = true",
            "--loopback needs",
        ),
    ] {
        let text = format!("[[container]]\nname = \"web\"\n{text}\n");
        let report = declared("host.toml", &text, None, false)
            .unwrap_err()
            .report();
        let start = format!("error: host.toml, line {line}: ");
        assert!(report.starts_with(&start), "{text}: {report}");
        assert!(report.contains(named), "{text}: {report}");
    }
}

#[test]
fn repoint_takes_two_containers_and_what_becomes_of_connections() {
    let repoint = |arguments: &[&str]| {
        let arguments = [&["repoint", "blue", "green"], arguments].concat();
        match cli(&arguments).command {
            Command::Repoint(repoint) => repoint,
            other => panic!("{other:?}"),
        }
    };
    let plain = repoint(&[]);
    assert_eq!(
        (plain.container.as_ref(), plain.to.as_ref()),
        ("blue", "green")
    );
    assert_eq!(
        (plain.target, plain.drain, plain.dry_run),
        (None, Drain::Unlimited, false)
    );
    let for_millis = |millis| Drain::For(Duration::from_millis(millis));
    for (arguments, drain) in [
        (&["--drain", "90s"][..], for_millis(90_000)),
        (&["--drain", "1500ms"], for_millis(1_500)),
        (&["--drain", "1h 30m"], for_millis(5_400_000)),
        (&["--drain", "30days"], for_millis(2_592_000_000)),
        (&["--cut"], Drain::Cut),
    ] {
        assert_eq!(repoint(arguments).drain, drain, "{arguments:?}");
    }
    let placed = repoint(&["--netns", "/run/netns/green"]);
    assert_eq!(
        placed.target,
        Some(Target::Netns("/run/netns/green".into()))
    );
}

#[test]
fn attach_takes_a_connection_of_each_family_and_a_namespace() {
    let connection = |arguments: &[&str]| {
        let attach = ["attach", "web", "-p", "80"];
        match cli(&[&attach[..], arguments].concat()).command {
            Command::Attach(attach) => attach.connection.map(|found| found.to_string()),
            other => panic!("{other:?}"),
        }
    };
    let (v4, v6) = ("10.99.0.1/24,10.99.0.2/24", "fd99::1/64,fd99::2/64");
    assert_eq!(connection(&["--pid", "7"]), None);
    assert_eq!(
        connection(&["--pid", "7", "--connect", v4]),
        Some(v4.to_owned())
    );
    assert_eq!(
        connection(&[
            "--netns",
            "/run/netns/web",
            "--connect",
            v6,
            "--connect",
            v4
        ]),
        Some(format!("{v4} and {v6}"))
    );
    for (arguments, named) in [
        (
            &["--pid", "7", "--connect", ""][..],
            "connection \"\": not two",
        ),
        (
            &["--pid", "7", "--connect", "-1"],
            "connection \"-1\": not two",
        ),
        (&["--pid", "7", "--connect"], "--connect"),
        (
            &["--pid", "7", "--connect", v4, "--connect", v4],
            "there is one of that family already\nhint: HOSTADDR/LEN,CTRADDR/LEN, once for each family",
        ),
        (
            &["--connect", v4],
            "--connect needs the container's network namespace\nhint: give --netns PATH or --pid PID",
        ),
        (
            &["--ip", "10.99.0.2", "--connect", v4],
            "--connect needs the container's network namespace",
        ),
    ] {
        let attach = ["attach", "web", "-p", "80"];
        let report = refused(&[&attach[..], arguments].concat());
        assert!(report.contains(named), "{arguments:?}: {report}");
    }
}
