//! Wrong input: a one-line error that names it, the right exit code, and nothing changed.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use portfwd_tests::kernel::{self, Observer};
use portfwd_tests::portfwd::{self, expect_error};
use portfwd_tests::topology::{Shape, Topology};

#[test]
fn malformed_specs_are_named_and_change_nothing() {
    let topology = Topology::new(Shape::default());
    topology.attach("web", 0, &["8080:80"]);
    let before = topology.state();
    for spec in [
        "",
        ":",
        "::",
        "8081:",
        ":0",
        "0:80",
        "8081:0",
        "65536:80",
        "8081:65536",
        "99999999999999999999:80",
        "-1:80",
        "+8081:80",
        "08081:80",
        "0x50:80",
        "8081:http",
        "8081:80/",
        "8081:80/icmp",
        "8081:80/tcp/udp",
        "8081-8080:80-81",
        "8081-8090:80-88",
        "8081-:80",
        "8081-8082-8083:80",
        "8081:80-",
        "1:2:3:4",
        "10.0.0.256:8081:80",
        "10.0.0:8081:80",
        "localhost:8081:80",
        "127.0.0.1:80",
        "[::1:8081:80",
        "::1:8081:80",
        "[::1]8081:80",
        "[127.0.0.1]:8081:80",
        "[fe80::1%eth0]:8081:80",
        " 8081:80",
        "8081: 80",
        "8081:80\n",
        "8081:80\u{1b}[31m",
        "８０８１:80",
    ] {
        let outcome = topology.try_attach("db", 1, &["8070:80", spec]);
        // What cannot be printed is shown escaped.
        let printable = spec.chars().all(|c| c.is_ascii() && !c.is_ascii_control());
        expect_error(outcome, 2, if printable { spec } else { "8" });
        assert_eq!(topology.state(), before, "{spec:?}");
    }
    let long = "8".repeat(100_000);
    let outcome = topology.try_attach("db", 1, &[&long]);
    assert!(
        outcome.stderr.len() < 1_000,
        "{} bytes",
        outcome.stderr.len()
    );
    expect_error(outcome, 2, "888");
}

#[test]
fn malformed_names_addresses_and_arguments_are_named() {
    let topology = Topology::new(Shape::default());
    topology.attach("web", 0, &["8080:80"]);
    let before = topology.state();
    let long = "x".repeat(128);
    let name = |name: &'static str| ["attach", name, "--ip", "10.88.0.2", "-p", "8081:80"];
    for bad in ["a/b", "a b", "", "a\nb", "ä"] {
        expect_error(topology.portfwd(&name(bad)), 2, "error: ");
    }
    let arguments = ["attach", &long, "--ip", "10.88.0.2", "-p", "8081:80"];
    expect_error(topology.portfwd(&arguments), 2, "xxx");
    for ip in [
        "10.88.0",
        "10.88.0.2,",
        "10.88.0.2,10.88.0.3",
        "fd88::g",
        "10.88.0.2/24",
    ] {
        let arguments = ["attach", "db", "--ip", ip, "-p", "8081:80"];
        expect_error(topology.portfwd(&arguments), 2, ip);
    }
    let netns = topology.containers[1].netns();
    for (arguments, named) in [
        (vec!["attach", "db", "--netns", &netns], "--publish"),
        (vec!["attach", "db", "-p", "8081:80"], "db"),
        (vec!["attach", "db", "--pid", "x", "-p", "8081:80"], "x"),
        (vec!["attach", "db", "--pid", "0", "-p", "8081:80"], "0"),
        (
            vec![
                "attach", "db", "--pid", "1", "--ip", "10.0.0.1", "-p", "1:1",
            ],
            "--",
        ),
        (vec!["publish", "db"], "publish"),
        (vec!["list", "--no-such-option"], "--no-such-option"),
        (vec!["up", "--xdp", "sideways"], "sideways"),
        (vec!["up", "--device", "a/b"], "a/b"),
        (vec!["port", "web", "0"], "0"),
        (vec!["port", "web", "80/icmp"], "icmp"),
    ] {
        // Without a word of where it is, a container is asked of the runtimes, which know none.
        let code = if named == "db" {
            topology.portfwd(&arguments).code
        } else {
            2
        };
        assert!(code == 2 || code == 4, "{arguments:?}: {code}");
        expect_error(topology.portfwd(&arguments), code, named);
    }
    expect_error(portfwd::finish(portfwd::command()), 2, "error: ");
    let mut command = portfwd::command();
    command.args(["--instance", "../x", "list"]);
    expect_error(portfwd::finish(command), 2, "../x");
    assert_eq!(topology.state(), before);
}

#[test]
fn what_is_not_there_is_named_with_exit_code_4() {
    let topology = Topology::new(Shape::default());
    topology.attach("web", 0, &["8080:80"]);
    let before = topology.state();
    let mut child = Command::new("true").spawn().expect("start a process");
    child.wait().expect("wait for it");
    let dead = child.id().to_string();
    for (arguments, named) in [
        (
            vec![
                "attach",
                "db",
                "--netns",
                "/run/netns/pf-none",
                "-p",
                "81:80",
            ],
            "/run/netns/pf-none",
        ),
        (
            vec!["attach", "db", "--netns", "/etc/passwd", "-p", "81:80"],
            "/etc/passwd",
        ),
        (
            vec![
                "attach",
                "db",
                "--netns",
                "/proc/self/ns/mnt",
                "-p",
                "81:80",
            ],
            "/proc/self/ns/mnt",
        ),
        (
            vec!["attach", "db", "--pid", &dead, "-p", "81:80"],
            dead.as_str(),
        ),
        (vec!["detach", "nobody"], "nobody"),
        (vec!["detach", "web", "-p", "8081:80"], "8081"),
        (vec!["port", "nobody"], "nobody"),
        (vec!["port", "web", "81"], "81"),
        (vec!["list", "nobody"], "nobody"),
        (vec!["flows", "nobody"], "nobody"),
        (vec!["up", "--device", "none0"], "none0"),
    ] {
        expect_error(topology.portfwd(&arguments), 4, named);
        assert_eq!(topology.state(), before, "{arguments:?}");
    }
    let mut command = portfwd::command();
    command.args(["--bpffs"]).arg(topology.bpffs()).args([
        "--host-netns",
        "/run/netns/pf-none",
        "list",
    ]);
    expect_error(portfwd::finish(command), 4, "/run/netns/pf-none");
}

#[test]
fn the_host_itself_is_no_container() {
    let topology = Topology::new(Shape::default());
    let host = topology.host.path().display().to_string();
    let outcome = topology.portfwd(&["attach", "web", "--netns", &host, "-p", "8080:80"]);
    expect_error(outcome, 1, &format!("{host} is the host's own"));
}

#[test]
fn without_privilege_what_is_missing_is_named_and_nothing_changes() {
    let topology = Topology::new(Shape::default());
    topology.attach("web", 0, &["8080:80"]);
    let before = topology.state();
    // Where everybody may execute it.
    let directory = tempfile::tempdir().expect("a directory");
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).expect("open it");
    let binary = directory.path().join("portfwd");
    fs::copy(portfwd::binary(), &binary).expect("copy the binary");
    fs::set_permissions(&binary, Permissions::from_mode(0o755)).expect("open it");
    for bpffs in [
        topology.bpffs().display().to_string(),
        "/sys/fs/bpf".to_owned(),
    ] {
        let mut command = Command::new(&binary);
        command
            .args(["--bpffs", &bpffs, "--instance", topology.instance()])
            .args(["attach", "db", "--ip", "10.88.0.3", "-p", "8081:80"])
            .uid(65_534)
            .gid(65_534);
        expect_error(portfwd::finish(command), 5, "CAP_");
    }
    assert_eq!(topology.state(), before);
}

#[test]
fn a_file_in_the_way_of_the_instance_is_named_and_stays() {
    let topology = Topology::new(Shape::default());
    // A pin where the instance's directory would be.
    let parent = topology.bpffs().join("portfwd");
    fs::create_dir(&parent).expect("make a directory");
    fs::set_permissions(&parent, Permissions::from_mode(0o700)).expect("close it");
    Observer::load().pin(&topology.pins());
    for command in ["attach", "up", "down", "list", "status"] {
        let outcome = match command {
            "attach" => topology.try_attach("web", 0, &["8080:80"]),
            other => topology.portfwd(&[other]),
        };
        expect_error(outcome, 1, &topology.pins().display().to_string());
        assert_eq!(kernel::pins(topology.bpffs()), [topology.pins()]);
    }
    fs::remove_file(topology.pins()).expect("remove the pin");
    // A plain file where a BPF file system would be.
    let directory = tempfile::tempdir_in("/run").expect("a directory");
    let file = directory.path().join("file");
    fs::write(&file, "data").expect("write a file");
    let path = file.display().to_string();
    let mut command = portfwd::command();
    command
        .args(["--bpffs", &path, "--host-netns"])
        .arg(topology.host.path())
        .arg("up");
    expect_error(portfwd::finish(command), 1, &path);
    assert_eq!(fs::read_to_string(&file).expect("read it"), "data");
}

#[test]
fn maps_of_another_version_are_refused_and_stay() {
    let topology = Topology::new(Shape::default());
    fs::create_dir_all(topology.pins()).expect("make a directory");
    for directory in [topology.bpffs().join("portfwd"), topology.pins()] {
        fs::set_permissions(directory, Permissions::from_mode(0o700)).expect("close it");
    }
    // The names of ours, the form of others'.
    for name in [
        "ports",
        "forwards",
        "journal",
        "attachments",
        "links",
        "flows_v4",
    ] {
        let path = topology.pins().join(name).display().to_string();
        let form = "type array key 4 value 16 entries 3 name other";
        let arguments: Vec<&str> = ["map", "create", &path]
            .into_iter()
            .chain(form.split(' '))
            .collect();
        topology.host.output("bpftool", &arguments);
    }
    let before = (topology.objects(), kernel::pins(topology.bpffs()));
    for command in ["attach", "up", "list", "status", "flows"] {
        let outcome = match command {
            "attach" => topology.try_attach("web", 0, &["8080:80"]),
            other => topology.portfwd(&[other]),
        };
        expect_error(outcome, 1, topology.instance());
        assert_eq!((topology.objects(), kernel::pins(topology.bpffs())), before);
    }
    fs::remove_dir_all(topology.pins()).expect("remove the pins");
}

#[test]
fn a_directory_that_others_may_write_is_refused() {
    let topology = Topology::new(Shape::default());
    let parent = topology.bpffs().join("portfwd");
    fs::create_dir(&parent).expect("make a directory");
    fs::set_permissions(&parent, Permissions::from_mode(0o777)).expect("open it");
    let outcome = topology.try_attach("web", 0, &["8080:80"]);
    expect_error(outcome, 1, &parent.display().to_string());
    assert!(kernel::pins(topology.bpffs()).is_empty());
}
