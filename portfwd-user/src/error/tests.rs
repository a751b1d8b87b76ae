use std::path::PathBuf;
use std::time::Duration;

use portfwd_common::maps;

use super::*;
use crate::connection::fit::Side;
use crate::observe::networks::Placed;
use crate::observe::processes::Process;

/// One of each, with its exit code and everything it says.
fn every_error() -> Vec<(Error, u8, &'static str)> {
    let web = || "web".parse().unwrap();
    let lab = || "lab".parse().unwrap();
    let path = || PathBuf::from("/sys/fs/bpf/portfwd");
    let not_found = || io::Error::from_raw_os_error(2);
    vec![
        (
            Missing::Target(web()).into(),
            4,
            "error: no such container: web\n\
             hint: give --netns PATH, --pid PID or --ip ADDR\n",
        ),
        (
            "8080:x".parse::<crate::spec::Spec>().unwrap_err().into(),
            2,
            "error: SPEC \"8080:x\": container port \"x\" is not a number\n\
             hint: a SPEC is [HOSTIP:][HOSTPORT[-END]]:CONTAINERPORT[-END][/tcp|udp|sctp], as in 8080:80\n",
        ),
        (
            Missing::Container(web()).into(),
            4,
            "error: no such container: web\nhint: portfwd list shows every container\n",
        ),
        (
            Missing::Forward {
                container: web(),
                spec: "8080:80/tcp".to_owned(),
            }
            .into(),
            4,
            "error: container \"web\" has no forward 8080:80/tcp\n\
             hint: portfwd port web shows what it publishes\n",
        ),
        (
            Missing::Port {
                container: web(),
                query: "81".parse().unwrap(),
            }
            .into(),
            4,
            "error: no public port 81/tcp published for container \"web\"\n\
             hint: portfwd port web shows what it publishes\n",
        ),
        (
            Missing::Namespace(PathBuf::from("/run/netns/a b")).into(),
            4,
            "error: no such network namespace: \"/run/netns/a b\"\n\
             hint: give a file such as /run/netns/NAME or /proc/PID/ns/net\n",
        ),
        (
            Missing::NotNamespace(PathBuf::from("/etc/passwd")).into(),
            4,
            "error: /etc/passwd is not a network namespace\n\
             hint: give a file such as /run/netns/NAME or /proc/PID/ns/net\n",
        ),
        (
            Missing::Process(4711).into(),
            4,
            "error: no such process: 4711\nhint: give the PID of a running process in the container\n",
        ),
        (
            Missing::Route("100.64.0.1".parse().unwrap()).into(),
            4,
            "error: the host has no route to 100.64.0.1\nhint: ip route shows every route\n",
        ),
        (
            Missing::Client("fe80::1".parse().unwrap()).into(),
            4,
            "error: nobody is known that could send to fe80::1\nhint: say who sends it, with --from ADDR\n",
        ),
        (
            Missing::Device("eth9".to_owned()).into(),
            4,
            "error: no such device: \"eth9\"\nhint: ip link shows every device\n",
        ),
        (
            Lacking::Capability {
                action: "load the datapath".to_owned(),
                capabilities: vec!["CAP_BPF", "CAP_NET_ADMIN"],
            }
            .into(),
            5,
            "error: missing privilege to load the datapath: CAP_BPF, CAP_NET_ADMIN\n\
             hint: run it as root, or with CAP_BPF and CAP_NET_ADMIN\n",
        ),
        (
            Lacking::KernelFeature {
                feature: "BPF type format (CONFIG_DEBUG_INFO_BTF)".to_owned(),
                hint: None,
            }
            .into(),
            5,
            "error: missing kernel feature: BPF type format (CONFIG_DEBUG_INFO_BTF)\n",
        ),
        (
            Lacking::Checks(vec!["bpf", "tc"]).into(),
            5,
            "error: something necessary is missing: bpf, tc\n",
        ),
        (
            Missing::Subnet("10.88.0.0/16".parse().unwrap()).into(),
            4,
            "error: subnet 10.88.0.0/16 is not masqueraded\n\
             hint: portfwd masquerade list shows everything that is\n",
        ),
        (
            InstanceError::InTheWay(path()).into(),
            1,
            "error: /sys/fs/bpf/portfwd is in the way: it is not a directory of portfwd\n\
             hint: move it away, or choose another --instance or --bpffs\n",
        ),
        (
            InstanceError::OtherLayout {
                instance: lab(),
                found: Some(2),
                own: 1,
            }
            .into(),
            1,
            "error: instance \"lab\" has layout 2, this portfwd has layout 1\n\
             hint: use the portfwd that made it, or its `down` and then this one, or another --instance\n",
        ),
        (
            InstanceError::Unsafe {
                path: path(),
                why: "writable by others".to_owned(),
            }
            .into(),
            1,
            "error: /sys/fs/bpf/portfwd is not safe: it is writable by others\n\
             hint: it has to be owned by root and writable by root alone\n",
        ),
        (
            InstanceError::Second {
                namespace: "net:[4026531840]".to_owned(),
                first: lab(),
            }
            .into(),
            1,
            "error: the network namespace net:[4026531840] already has an instance: \"lab\"\n\
             hint: use --instance lab\n",
        ),
        (
            InstanceError::OtherNamespace {
                instance: lab(),
                theirs: "net:[1]".to_owned(),
                ours: "net:[2]".to_owned(),
            }
            .into(),
            1,
            "error: instance \"lab\" belongs to network namespace net:[1], not to net:[2]\n\
             hint: choose another --instance, or give that namespace with --host-netns\n",
        ),
        (
            InstanceError::Down(lab()).into(),
            1,
            "error: instance \"lab\" is not up\nhint: portfwd up, or the first attach, brings it up\n",
        ),
        (
            InstanceError::NotBpffs(PathBuf::from("/tmp")).into(),
            1,
            "error: /tmp is not a bpffs\nhint: mount -t bpf bpf DIR, or choose another --bpffs\n",
        ),
        (
            ContainerError::KnownElsewhere {
                label: web(),
                known: "network namespace net:[1]".to_owned(),
                asked: "network namespace net:[2]".to_owned(),
            }
            .into(),
            1,
            "error: container \"web\" is known with network namespace net:[1], not with network namespace net:[2]\n\
             hint: attach --replace puts this one in its place; or choose another name\n",
        ),
        (
            ContainerError::OtherPolicy {
                label: web(),
                spec: "8080:80".parse().unwrap(),
            }
            .into(),
            1,
            "error: container \"web\" has forward 8080:80/tcp already, with other --allow or --deny\n\
             hint: attach --replace changes who may use what is published\n",
        ),
        (
            ContainerError::NotInside {
                from: web(),
                to: "green".parse().unwrap(),
            }
            .into(),
            1,
            "error: container \"web\" serves ports with --loopback, and \"green\" was not attached so\n\
             hint: say where green is, with --netns PATH or --pid PID\n",
        ),
        (
            ContainerError::Drains(web()).into(),
            1,
            "error: container \"web\" has no port to hand over: what it had, it has handed over already\n",
        ),
        (
            ContainerError::NoFamily {
                label: web(),
                host: "::1".parse().unwrap(),
            }
            .into(),
            1,
            "error: container \"web\" has no IPv6 address for host address ::1\n",
        ),
        (
            ConnectError::HasAddress(Placed {
                net: "10.88.0.2/24".parse().unwrap(),
                ifindex: 2,
                device: "eth0".to_owned(),
            })
            .into(),
            1,
            "error: the container has an address already, 10.88.0.2/24\n\
             held by: interface of the container eth0 (10.88.0.2/24)\n\
             hint: attach it without --connect, or remove the address first\n",
        ),
        (
            ConnectError::NoV6 {
                side: Side::Container,
                address: "fd99::2".parse().unwrap(),
            }
            .into(),
            1,
            "error: IPv6 is off for new devices of the container, so they cannot have fd99::2\n\
             hint: leave IPv6 out, or sysctl -w net.ipv6.conf.default.disable_ipv6=0 there\n",
        ),
        (
            Err::<(), _>(not_found())
                .doing(|| "open /x".to_owned())
                .unwrap_err(),
            1,
            "error: cannot open /x: No such file or directory (os error 2)\n",
        ),
        (
            LockError::Busy {
                path: path(),
                waited: Duration::from_secs(30),
                holder: Some(Process {
                    pid: 812,
                    name: "portfwd".to_owned(),
                }),
            }
            .into(),
            1,
            "error: /sys/fs/bpf/portfwd has been busy for 30 s, now with process portfwd (pid 812)\n\
             hint: try again; if 812 has it still, kill that: the next command repairs what it leaves\n",
        ),
        (
            LockError::Busy {
                path: path(),
                waited: Duration::from_secs(30),
                holder: None,
            }
            .into(),
            1,
            "error: /sys/fs/bpf/portfwd has been busy for 30 s\n\
             hint: try again; fuser -v /sys/fs/bpf/portfwd names who has it, where every process is seen\n",
        ),
        (
            Err::<(), _>(TableError::Full {
                name: maps::POLICIES,
                capacity: 4,
            })
            .doing(|| "store who may connect".to_owned())
            .unwrap_err(),
            1,
            "error: cannot store who may connect: table policies is full: it holds 4 entries\n\
             hint: each range of --allow and --deny takes an entry for each attach that gives it: give wider \
             ones, or detach first\n",
        ),
        (
            Error::from(Missing::Process(1)).after_commit(),
            4,
            "error: what was asked for is done, but not all that goes with it: no such process: 1\n\
             hint: portfwd list shows what is published; portfwd up does the rest, as every command that \
             changes something\n",
        ),
        (
            Error::Declared {
                file: "host.toml".to_owned(),
                line: 7,
                cause: Box::new(Missing::Process(1).into()),
            },
            4,
            "error: host.toml, line 7: no such process: 1\n\
             hint: give the PID of a running process in the container\n",
        ),
        (
            Error::Undo {
                cause: Box::new(Missing::Process(1).into()),
                failures: vec![
                    Err::<(), _>(not_found())
                        .doing(|| "remove /x".to_owned())
                        .unwrap_err(),
                ],
            },
            4,
            "error: no such process: 1\n\
             left behind: cannot remove /x: No such file or directory (os error 2)\n\
             hint: give the PID of a running process in the container\n",
        ),
        (
            Error::Teardown {
                failures: vec![Missing::Process(1).into(), Missing::Process(2).into()],
            },
            1,
            "error: 2 things could not be removed\n\
             left behind: no such process: 1\n\
             left behind: no such process: 2\n",
        ),
    ]
}

#[test]
fn every_error_says_what_and_what_next_and_has_its_exit_code() {
    for (error, code, report) in every_error() {
        assert_eq!(error.report(), report);
        assert_eq!(error.exit_code(), code, "{report}");
    }
}

#[test]
fn errors_of_the_system_get_their_place_in_the_contract() {
    use crate::observe::container::ContainerError as LinkError;
    use crate::observe::netns::{NetnsError, Origin};
    let refused = |errno| NetnsError::Enter {
        name: Origin::Process(7),
        source: io::Error::from_raw_os_error(errno),
    };
    for (error, code, says) in [
        (
            Error::from(NetnsError::from(Missing::Namespace("/run/netns/x".into()))),
            4,
            "error: no such network namespace: /run/netns/x\n",
        ),
        (
            Error::from(LinkError::Netns(Missing::Process(7).into())),
            4,
            "error: no such process: 7\n",
        ),
        (
            Error::from(NetnsError::from(Missing::NotNamespace(
                "/etc/passwd".into(),
            ))),
            4,
            "error: /etc/passwd is not a network namespace\n",
        ),
        (
            Error::from(refused(1)),
            5,
            "error: cannot enter network namespace of process 7: Operation not permitted (os error 1)\n\
             hint: run it as root, or with CAP_BPF,",
        ),
        (
            Error::from(refused(12)),
            1,
            "error: cannot enter network namespace of process 7: Cannot allocate memory (os error 12)\n",
        ),
        (
            Error::from(LinkError::NoRoute("10.88.0.2".parse().unwrap())),
            1,
            "error: no route to 10.88.0.2\nhint: ",
        ),
    ] {
        assert!(error.report().starts_with(says), "{}", error.report());
        assert_eq!(error.exit_code(), code, "{says}");
    }
}

#[test]
fn a_refusal_for_want_of_privilege_is_told_from_other_failures() {
    for errno in [1, 13] {
        let denied = io::Error::from_raw_os_error(errno);
        let error = Err::<(), _>(denied)
            .doing(|| "open /x".to_owned())
            .unwrap_err();
        assert_eq!(error.exit_code(), 5);
        assert!(error.hint().unwrap().contains("CAP_BPF"));
    }
}

#[test]
fn no_value_adds_a_line_or_turns_one_round() {
    for hostile in ["a\nhint: b", "a\r\x1b[2K", "a\u{202e}b", "a\u{2028}b", "\0"] {
        let error = Error::from(Usage {
            message: hostile.to_owned(),
            hint: Some(hostile.to_owned()),
        });
        let report = error.report();
        assert_eq!(report.lines().count(), 2, "{report:?}");
        let plain = |c: char| c.is_ascii_graphic() || c == ' ' || c == '\n';
        assert!(report.chars().all(plain), "{report:?}");
    }
}

/// An error with a long text and another below it, as those of the verifier are.
#[derive(Debug, thiserror::Error)]
#[error("the program was refused\n0: (bf) r6 = r1\n1: ...")]
struct Refused(#[source] io::Error);

#[test]
fn a_message_of_many_lines_shrinks_to_its_first_and_keeps_its_cause() {
    let refused = || Refused(io::Error::from_raw_os_error(22));
    let line = "the program was refused: Invalid argument (os error 22)";
    assert_eq!(one_line(&refused()), line);
    let error = Err::<(), _>(refused())
        .doing(|| "load tc_device".to_owned())
        .unwrap_err();
    assert_eq!(error.to_string(), format!("cannot load tc_device: {line}"));
    assert_eq!(one_line(&io::Error::other("x".repeat(1_000))).len(), 243);
}

#[test]
fn values_are_quoted_and_cut() {
    assert_eq!(shown("a\"b\n"), "\"a\\\"b\\n\"");
    assert_eq!(
        shown(&"é".repeat(200)),
        format!("\"{}...\"", "é".repeat(80))
    );
    assert_eq!(shown_path("/run/netns/web".as_ref()), "/run/netns/web");
    assert_eq!(shown_path("".as_ref()), "\"\"");
    assert_eq!(shown_path("a\nb".as_ref()), "\"a\\nb\"");
}
