//! The command line as a process: standard output, standard error, exit code.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::Stdio;

use nix::mount::{MntFlags, umount2};
use portfwd_tests::clients::{self, Protocol};
use portfwd_tests::deadline::{PATIENCE, until};
use portfwd_tests::kernel;
use portfwd_tests::portfwd::{self, expect_error};
use portfwd_tests::topology::{CLIENT, HOST, Shape, Topology};

#[test]
fn what_is_published_is_printed_one_line_a_family() {
    let topology = Topology::new(Shape::default());
    let outcome = topology.attach("web", 0, &["8080:80", "53:53/udp", "127.0.0.1:9000:90"]);
    assert_eq!(
        outcome.stdout,
        "53/udp -> 0.0.0.0:53\n53/udp -> [::]:53\n80/tcp -> 0.0.0.0:8080\n80/tcp -> [::]:8080\n\
         90/tcp -> 127.0.0.1:9000\n"
    );
    assert_eq!(outcome.stderr, "");
    let outcome = topology.portfwd(&["detach", "web"]).expect_ok();
    assert_eq!(outcome.stderr, "");
}

#[test]
fn a_watch_of_the_flows_ends_with_its_instance() {
    let topology = Topology::new(Shape::default());
    topology.portfwd(&["up"]).expect_ok();
    let mut watch = topology.command(&["flows", "--watch"]);
    watch.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut watch = watch.spawn().expect("start portfwd");
    let mut lines = BufReader::new(watch.stdout.take().expect("a pipe")).lines();
    lines.next().expect("a heading").expect("a line");
    topology.portfwd(&["down"]).expect_ok();
    until("the watch to end", PATIENCE, || {
        watch.try_wait().expect("wait")
    });
    let output = watch.wait_with_output().expect("what it said");
    let ended = portfwd::outcome("portfwd flows --watch".to_owned(), &output).expect_ok();
    assert_eq!(ended.stderr, "the instance is down\n");
}

// Fails if a filter admits what it should not (`FlowFilter::admits`), or if `flows --watch` goes on when nobody
// reads it any more (`to_reader` in report.rs).
#[test]
fn flows_are_filtered_and_watched() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    topology.attach("web", 0, &["8080:80", "5353:80/udp"]);
    for (protocol, port) in [(Protocol::Tcp, 8080), (Protocol::Udp, 5353)] {
        let to = SocketAddr::new(HOST, port);
        clients::ask(&topology.client, protocol, to).expect("an answer");
    }
    let client = CLIENT.to_string();
    for (filter, shown) in [
        (&[][..], 2),
        (&["--protocol", "udp"], 1),
        (&["--port", "8080"], 1),
        (&["--port", "80"], 0),
        (&["--client", &client], 2),
        (&["--client", &format!("::ffff:{client}")], 2),
        (&["--client", "192.0.2.200", "web"], 0),
        (&["--protocol", "udp", "--port", "8080"], 0),
        (&["--state", "answered", "--protocol", "udp"], 1),
        (&["--state", "opening"], 0),
    ] {
        let arguments = [&["--json", "flows"], filter].concat();
        let flows = topology.portfwd(&arguments).expect_ok().json();
        assert_eq!(
            flows.as_array().map(Vec::len),
            Some(shown),
            "{filter:?}: {flows}"
        );
    }
    for (filter, named) in [
        (["--protocol", "icmp"], "icmp"),
        (["--port", "0"], "0"),
        (["--client", "web"], "\"web\""),
        (["--state", "dead"], "dead"),
    ] {
        let outcome = topology.portfwd(&[&["flows"][..], &filter].concat());
        expect_error(outcome, 2, named);
    }

    let mut watch = topology.command(&["flows", "--watch", "--port", "8080"]);
    let mut watch = watch.stdout(Stdio::piped()).spawn().expect("start portfwd");
    let lines = BufReader::new(watch.stdout.take().expect("a pipe")).lines();
    let heading = |line: &String| line.starts_with("CONTAINER");
    let headings = lines.map(|line| line.expect("a line")).filter(heading);
    assert_eq!(headings.take(2).count(), 2);
    let ended = until("the watch to end without a reader", PATIENCE, || {
        watch.try_wait().expect("wait")
    });
    assert!(ended.success(), "{ended}");
}

#[test]
fn a_dry_run_prints_the_same_and_changes_nothing() {
    let topology = Topology::watched(Shape::default());
    let netns = topology.containers[0].netns();
    let dry = [
        "attach",
        "web",
        "--netns",
        &netns,
        "-p",
        "8080:80",
        "--dry-run",
    ];
    let outcome = topology.portfwd(&dry).expect_ok();
    assert_eq!(
        outcome.stdout,
        "80/tcp -> 0.0.0.0:8080\n80/tcp -> [::]:8080\n"
    );
    topology.assert_nothing_left(&BTreeSet::new());
    topology.attach("web", 0, &["8080:80"]);
    let before = topology.state();
    topology.portfwd(&dry).expect_ok();
    let netns = topology.containers[1].netns();
    let dry = [
        "attach",
        "db",
        "--netns",
        &netns,
        "-p",
        "8080:80",
        "--dry-run",
    ];
    expect_error(topology.portfwd(&dry), 3, "0.0.0.0:8080");
    assert_eq!(topology.state(), before);
}

#[test]
fn list_prints_the_keys_of_the_contract() {
    let topology = Topology::new(Shape::default());
    assert_eq!(
        topology
            .portfwd(&["--json", "list"])
            .expect_ok()
            .json()
            .to_string(),
        "[]"
    );
    topology.attach("web", 0, &["8080-8089:80-89"]);
    let list = topology.list();
    assert_eq!(list.len(), 2);
    for forward in &list {
        let keys: BTreeSet<&str> = forward
            .as_object()
            .expect("an object")
            .keys()
            .map(String::as_str)
            .collect();
        let contract = "container protocol hostIp hostPort count containerIp containerPort allow \
            deny connections rxPackets rxBytes txPackets txBytes drops";
        assert_eq!(keys, contract.split_whitespace().collect());
        assert_eq!(forward["count"], 10);
        assert_eq!(forward["allow"].as_array().map(Vec::len), Some(0));
    }
    let text = topology.portfwd(&["list", "web"]).expect_ok().stdout;
    assert!(text.contains("web") && text.contains("8080-8089"), "{text}");
}

#[test]
fn the_environment_stands_in_for_options() {
    let topology = Topology::new(Shape::default());
    let netns = topology.containers[0].netns();
    let mut command = portfwd::command();
    command
        .env("PORTFWD_INSTANCE", topology.instance())
        .env("PORTFWD_BPFFS", topology.bpffs())
        .env("PORTFWD_HOST_IP", "192.0.2.10")
        .arg("--host-netns")
        .arg(topology.host.path())
        .args(["attach", "web", "--netns", &netns, "-p", "8080:80"]);
    let outcome = portfwd::finish(command).expect_ok();
    assert_eq!(outcome.stdout, "80/tcp -> 192.0.2.10:8080\n");
    assert_eq!(
        topology.published(),
        ["web tcp 192.0.2.10:8080 -> 10.88.0.2:80"]
    );
    let mut command = topology.command(&["list"]);
    command.env("PORTFWD_HOST_IP", "here");
    // Of no concern to a command that publishes nothing.
    portfwd::finish(command).expect_ok();
    let mut command = topology.command(&["attach", "web", "-p", "8081:81", "--netns", &netns]);
    command.env("PORTFWD_HOST_IP", "here");
    expect_error(portfwd::finish(command), 2, "here");
}

#[test]
fn a_bpf_file_system_is_mounted_where_there_is_none() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    let directory = tempfile::tempdir_in("/run").expect("a directory");
    let run = |arguments: &[&str]| {
        let mut command = portfwd::command();
        command
            .arg("--bpffs")
            .arg(directory.path())
            .arg("--host-netns")
            .arg(topology.host.path())
            .args(arguments);
        portfwd::finish(command)
    };
    let netns = topology.containers[0].netns();
    let attached = run(&["attach", "web", "--netns", &netns, "-p", "8080:80"]);
    let to = std::net::SocketAddr::new(HOST, 8080);
    let answer = clients::ask(&topology.client, Protocol::Tcp, to);
    let down = run(&["down"]);
    // What `down` is to undo, undone here whatever happened.
    let mounted = umount2(directory.path(), MntFlags::MNT_DETACH);
    attached.expect_ok();
    down.expect_ok();
    assert!(answer.is_ok(), "{answer:?}");
    assert!(mounted.is_err(), "down leaves the mount");
}

#[test]
fn commands_about_an_instance_that_is_down_say_so_or_show_nothing() {
    let topology = Topology::new(Shape::default());
    for arguments in [&["list"][..], &["flows"], &["down"], &["status"]] {
        topology.portfwd(arguments).expect_ok();
    }
    expect_error(topology.portfwd(&["detach", "web"]), 4, "web");
    topology
        .portfwd(&["detach", "web", "--ignore-missing"])
        .expect_ok();
    assert!(kernel::pins(topology.bpffs()).is_empty());
}

#[test]
fn version_help_and_completions_go_to_standard_output() {
    let run = |arguments: &[&str]| {
        let mut command = portfwd::command();
        command.args(arguments);
        portfwd::finish(command).expect_ok()
    };
    let version = run(&["--version"]).stdout;
    let hash = version.split_whitespace().last().expect("a word");
    assert!(version.starts_with("portfwd "), "{version}");
    assert!(
        hash.len() == 64 && hash.chars().all(|c| c.is_ascii_hexdigit()),
        "{version}"
    );
    for command in [
        "attach", "detach", "list", "port", "flows", "status", "up", "down", "doctor",
    ] {
        assert!(run(&["--help"]).stdout.contains(command));
        assert!(run(&[command, "--help"]).stdout.contains("Usage: portfwd"));
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(run(&["completions", shell]).stdout.contains("portfwd"));
    }
}

#[test]
fn every_command_has_a_page_of_the_manual() {
    let man = |path: &[&str]| {
        let mut command = portfwd::command();
        command.arg("man").args(path);
        portfwd::finish(command)
    };
    let page = |path: &[&str]| man(path).expect_ok().stdout;
    let all = page(&[]);
    assert!(
        all.lines().any(|line| line.starts_with(".TH portfwd 1")),
        "{all}"
    );
    let help = portfwd::finish({
        let mut command = portfwd::command();
        command.arg("--help");
        command
    });
    let commands = help
        .stdout
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1);
    let commands = commands.map_while(|line| line.split_whitespace().next());
    let commands: Vec<&str> = commands.filter(|command| *command != "help").collect();
    assert!(commands.len() > 15, "{commands:?}");
    for command in commands {
        let name = format!("portfwd\\-{command}(1)");
        assert!(all.contains(&name), "{name}: {all}");
        let page = page(&[command]);
        let heading = format!(".TH portfwd-{command} 1");
        assert!(
            page.lines().any(|line| line.starts_with(&heading)),
            "{page}"
        );
    }
    let nested = page(&["masquerade", "add"]);
    assert!(nested.contains(".TH portfwd-masquerade-add 1"), "{nested}");
    let says = "portfwd has no command \"attack\"\nhint: there are attach, detach, ";
    expect_error(man(&["attack"]), 2, says);
    let says = "portfwd gc has no command \"x\"\n";
    expect_error(man(&["gc", "x"]), 2, says);
}

#[test]
fn a_full_disk_is_an_error_and_a_reader_that_went_away_is_none() {
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .expect("open /dev/full");
    let mut command = portfwd::command();
    let output = command
        .args(["completions", "bash"])
        .stdout(full)
        .stderr(Stdio::piped())
        .output()
        .expect("run portfwd");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("error: "));
    let mut child = portfwd::command()
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run portfwd");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("wait for portfwd");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}

// Fails if a line for people is written by `eprintln!`, which panics where it cannot (`say` in talk.rs).
#[test]
fn what_nobody_can_be_told_is_done_all_the_same() {
    let topology = Topology::new(Shape::default());
    let full = || fs::OpenOptions::new().write(true).open("/dev/full");
    for line in [
        &["up"][..],
        &["up"],
        &["flows", "purge"],
        &["gc"],
        &["down"],
        &["down"],
    ] {
        let mut command = topology.command(line);
        let ended = command.stderr(full().expect("open /dev/full")).status();
        assert_eq!(ended.expect("run portfwd").code(), Some(0), "{line:?}");
    }
}
