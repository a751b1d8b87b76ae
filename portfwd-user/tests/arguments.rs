//! The binary as a process, as far as it gets without touching the host: what comes out where, and the
//! exit code.

use std::fs::OpenOptions;
use std::process::{Command, Output, Stdio};

fn portfwd(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portfwd"));
    command.args(arguments);
    for name in ["PORTFWD_INSTANCE", "PORTFWD_BPFFS", "PORTFWD_HOST_IP"] {
        command.env_remove(name);
    }
    command
}

/// Exit code, standard output, standard error.
fn ended(output: Output) -> (Option<i32>, String, String) {
    let text = |bytes| String::from_utf8(bytes).expect("portfwd prints UTF-8");
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn an_error_goes_to_standard_error_alone_and_malformed_arguments_exit_with_2() {
    for (arguments, stderr) in [
        (
            &["attach", "web", "--pid", "1", "-p", "-1:80"][..],
            "error: SPEC \"-1:80\": host port \"-1\" is negative\nhint: a port is 1 to 65535\n",
        ),
        (
            &["--json", "list", "a/b"],
            "error: the name of the container \"a/b\" holds '/'\n\
             hint: the name of a container is 1 to 127 of A-Z a-z 0-9 _ . -\n",
        ),
        (
            &["frobnicate"],
            "error: unrecognized subcommand 'frobnicate'\nhint: portfwd --help shows what is possible\n",
        ),
    ] {
        let output = portfwd(arguments).output().unwrap();
        assert_eq!(ended(output), (Some(2), String::new(), stderr.to_owned()));
    }
}

#[test]
fn help_and_version_go_to_standard_output() {
    let (code, stdout, stderr) = ended(portfwd(&["--help"]).output().unwrap());
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(
        stdout.contains("attach") && stdout.contains("PORTFWD_INSTANCE"),
        "{stdout}"
    );
    let (code, stdout, stderr) = ended(portfwd(&["--version"]).output().unwrap());
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let (version, object) = stdout.trim_end().split_once('\n').unwrap();
    assert_eq!(version, concat!("portfwd ", env!("CARGO_PKG_VERSION")));
    let hash = object.strip_prefix("ebpf object sha256 ").unwrap();
    assert_eq!(hash.len(), 64);
    assert!(
        hash.bytes().all(|digit| digit.is_ascii_hexdigit()),
        "{hash}"
    );
}

#[test]
fn the_environment_is_read_and_an_empty_variable_is_none() {
    let mut command = portfwd(&["attach", "web", "--pid", "1", "-p", "80"]);
    let output = command
        .env("PORTFWD_HOST_IP", "localhost")
        .output()
        .unwrap();
    let (code, _, stderr) = ended(output);
    assert_eq!(code, Some(2));
    assert!(
        stderr.starts_with("error: PORTFWD_HOST_IP \"localhost\": "),
        "{stderr}"
    );
    let mut command = portfwd(&["completions", "bash"]);
    command
        .env("PORTFWD_INSTANCE", "")
        .env("PORTFWD_HOST_IP", "");
    assert_eq!(command.output().unwrap().status.code(), Some(0));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = portfwd(&["completions", "zsh"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let (code, _, stderr) = ended(child.wait_with_output().unwrap());
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
}

#[test]
fn output_that_cannot_be_written_is_one() {
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = portfwd(&["--version"]).stdout(full).output().unwrap();
    let (code, _, stderr) = ended(output);
    assert_eq!(code, Some(1));
    assert!(
        stderr.starts_with("error: cannot write to standard output: No space"),
        "{stderr}"
    );
}
