use std::path::PathBuf;

use super::*;
use crate::collision::{Family, Place};
use crate::masquerade::Room;
use crate::observe::cgroup::Cgroup;
use crate::observe::foreign::{Hook, firewall::FirewallChain};

fn unseen<T>() -> Seen<T> {
    Err(Unseen("it takes CAP_BPF".to_owned()))
}

fn device(name: &str) -> Device {
    Device {
        name: name.to_owned(),
        forwards_v4: true,
        rp_filter: 0,
        is_uplink: false,
    }
}

/// An instance that publishes nothing.
fn instance() -> Instance {
    Instance {
        name: "default".to_owned(),
        is_own_build: true,
        served: vec!["eth0".to_owned()],
        unserved: Vec::new(),
        sockets: SocketHooks::Root,
        publishes_v6: false,
        stack: [false; 2],
        past_stack: Vec::new(),
        masquerades: [false; 2],
        sctp: Vec::new(),
        strays: Ok(Vec::new()),
    }
}

/// A host that has everything.
fn facts() -> Facts {
    Facts {
        missing: Vec::new(),
        kernel: Kernel {
            program: Ok(Program::Compiled),
            datapath: Ok(Ok(())),
            btf: true,
            tc: Ok(Tc::Links),
            route_source: Ok(true),
        },
        cgroup: Ok(Some(Cgroup {
            path: PathBuf::from("/sys/fs/cgroup"),
            is_root: true,
        })),
        host: Ok(Host {
            devices: vec![device("eth0"), device("br0")],
            v6: V6::On { forwards: true },
            room: Ok(Room {
                ports: 30_000,
                by_range: false,
            }),
            firewall: Ok(Vec::new()),
        }),
        instance: Ok(State::Up(instance())),
    }
}

/// The check of that name, after a change of the facts.
fn check(name: &str, change: impl FnOnce(&mut Facts)) -> Check {
    let mut facts = facts();
    change(&mut facts);
    let checks = examine(&facts);
    let mut found = checks.into_iter().filter(|check| check.name == name);
    let check = found.next().expect("a check of that name");
    assert_eq!(found.next(), None, "two checks {name}");
    check
}

fn with_host(change: impl FnOnce(&mut Host)) -> impl FnOnce(&mut Facts) {
    |facts| change(facts.host.as_mut().expect("a host"))
}

fn with_instance(change: impl FnOnce(&mut Instance)) -> impl FnOnce(&mut Facts) {
    |facts| match &mut facts.instance {
        Ok(State::Up(instance)) => change(instance),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn assert_says(check: &Check, finding: Finding, words: &[&str]) {
    let parts = [
        Some(&check.seen),
        check.cost.as_ref(),
        check.remedy.as_ref(),
    ];
    let text: Vec<&str> = parts.into_iter().flatten().map(String::as_str).collect();
    let text = text.join("; ");
    assert_eq!(check.finding, finding, "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

#[test]
fn where_nothing_is_missing_every_check_is_ok_and_says_no_more() {
    for check in examine(&facts()) {
        assert_eq!(check.finding, Finding::Ok, "{check:?}");
        assert_eq!((check.cost, check.remedy), (None, None), "{}", check.name);
    }
}

#[test]
fn names_of_checks_are_words_and_differ() {
    let mut names: Vec<_> = examine(&facts()).iter().map(|check| check.name).collect();
    for name in &names {
        assert!(
            name.chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        );
    }
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}

#[test]
fn what_cannot_be_seen_is_neither_good_nor_bad() {
    let checks = examine(&Facts {
        missing: vec!["CAP_BPF"],
        kernel: Kernel {
            program: unseen(),
            datapath: unseen(),
            btf: true,
            tc: unseen(),
            route_source: unseen(),
        },
        cgroup: unseen(),
        host: unseen(),
        instance: unseen(),
    });
    for check in checks {
        match check.name {
            "capabilities" => assert_says(&check, Finding::Fail, &["CAP_BPF", "as root"]),
            "btf" => assert_eq!(check.finding, Finding::Ok),
            _ => assert_says(&check, Finding::Unseen, &["cannot be seen", "CAP_BPF"]),
        }
    }
}

#[test]
fn capabilities_that_are_only_of_use_are_a_warning() {
    let found = check("capabilities", |facts| {
        facts.missing = vec!["CAP_SYS_PTRACE"];
    });
    assert_says(&found, Finding::Warn, &["CAP_SYS_PTRACE", "not named"]);
}

#[test]
fn what_the_kernel_lacks_is_told_with_its_cost() {
    let interpreted = check("bpf", |facts| {
        facts.kernel.program = Ok(Program::Interpreted);
    });
    assert_says(&interpreted, Finding::Warn, &["bpf_jit_enable=1"]);
    let refused = Program::Refused("Function not implemented".to_owned());
    let refused = check("bpf", |facts| facts.kernel.program = Ok(refused));
    assert_says(&refused, Finding::Fail, &["Function not implemented"]);
    let programs = check("programs", |facts| {
        facts.kernel.datapath = Ok(Err("program tc_link: R0 !read_ok".to_owned()));
    });
    assert_says(&programs, Finding::Fail, &["tc_link: R0 !read_ok"]);
    let filters = check("tc", |facts| facts.kernel.tc = Ok(Tc::Filters));
    assert_says(&filters, Finding::Warn, &["clsact", "--loopback", "6.6"]);
    let none = check("tc", |facts| facts.kernel.tc = Ok(Tc::None));
    assert_says(&none, Finding::Fail, &["neither"]);
    let source = check("route-source", |facts| {
        facts.kernel.route_source = Ok(false);
    });
    assert_says(&source, Finding::Warn, &["first address", "6.7"]);
    let btf = check("btf", |facts| facts.kernel.btf = false);
    assert_says(&btf, Finding::Ok, &["/sys/kernel/btf/vmlinux"]);
}

#[test]
fn without_the_root_of_cgroup2_host_processes_are_named_as_the_cost() {
    let none = check("cgroup2", |facts| facts.cgroup = Ok(None));
    assert_says(
        &none,
        Finding::Warn,
        &["host processes", "mount -t cgroup2"],
    );
    let part = Cgroup {
        path: PathBuf::from("/run/part"),
        is_root: false,
    };
    let part = check("cgroup2", |facts| facts.cgroup = Ok(Some(part)));
    assert_says(&part, Finding::Warn, &["/run/part", "only those in it"]);
    for (place, word) in [
        (SocketHooks::Part, "only those"),
        (SocketHooks::None, "no published"),
    ] {
        let hooks = check(
            "socket-hooks",
            with_instance(|instance| instance.sockets = place),
        );
        assert_says(&hooks, Finding::Warn, &[word, "down and up"]);
    }
}

#[test]
fn forwarding_is_necessary_where_packets_go_through_the_stack_and_nowhere_else() {
    let off = |host: &mut Host| {
        host.devices
            .iter_mut()
            .for_each(|device| device.forwards_v4 = false);
        host.v6 = V6::On { forwards: false };
    };
    for name in ["forwarding-ipv4", "forwarding-ipv6"] {
        assert_says(
            &check(name, with_host(off)),
            Finding::Ok,
            &["off", "nothing needs it"],
        );
        let masquerades = check(name, |facts| {
            with_host(off)(facts);
            with_instance(|instance| instance.masquerades = [true; 2])(facts);
        });
        assert_says(
            &masquerades,
            Finding::Fail,
            &["masqueraded", "sysctl -w", "forward"],
        );
        let stack = check(name, |facts| {
            with_host(off)(facts);
            with_instance(|instance| instance.stack = [true; 2])(facts);
        });
        assert_says(
            &stack,
            Finding::Fail,
            &["without a veth", "sysctl -w", "forward"],
        );
    }
    let other_family = check("forwarding-ipv6", |facts| {
        with_host(off)(facts);
        with_instance(|instance| instance.masquerades = [true, false])(facts);
    });
    assert_says(&other_family, Finding::Ok, &["nothing needs it"]);
}

#[test]
fn an_instance_that_cannot_be_seen_may_need_forwarding() {
    for name in ["forwarding-ipv4", "forwarding-ipv6"] {
        let on = check(name, |facts| facts.instance = unseen());
        assert_says(&on, Finding::Ok, &["on"]);
        let off = check(name, |facts| {
            with_host(|host| {
                host.devices
                    .iter_mut()
                    .for_each(|device| device.forwards_v4 = false);
                host.v6 = V6::On { forwards: false };
            })(facts);
            facts.instance = unseen();
        });
        assert_says(
            &off,
            Finding::Unseen,
            &["off; ", "cannot be seen", "CAP_BPF"],
        );
    }
}

#[test]
fn a_single_device_that_does_not_forward_is_named_as_sysctl_takes_it() {
    let found = check("forwarding-ipv4", |facts| {
        with_host(|host| {
            let mut tagged = device("eth0.5");
            tagged.forwards_v4 = false;
            host.devices.push(tagged);
        })(facts);
        with_instance(|instance| instance.masquerades[0] = true)(facts);
    });
    let words = ["by eth0.5", "net.ipv4.conf.eth0/5.forwarding=1"];
    assert_says(&found, Finding::Warn, &words);
}

#[test]
fn strict_source_checks_matter_where_there_are_several_ways_out() {
    let strict = |uplinks: usize| {
        move |host: &mut Host| {
            for (number, device) in host.devices.iter_mut().enumerate() {
                device.rp_filter = 1;
                device.is_uplink = number < uplinks;
            }
        }
    };
    let one = check("rp-filter", with_host(strict(1)));
    assert_says(&one, Finding::Ok, &["strict on eth0, br0"]);
    let two = check("rp-filter", with_host(strict(2)));
    let words = ["strict on eth0, br0", "net.ipv4.conf.eth0.rp_filter=2"];
    assert_says(&two, Finding::Warn, &words);
    let unchecked = check("rp-filter", |facts| {
        with_host(strict(1))(facts);
        with_host(|host| host.devices[0].forwards_v4 = false)(facts);
    });
    let words = ["strict on eth0, where forwarding is off", "not checked"];
    assert_says(&unchecked, Finding::Warn, &words);
    let loose = check("rp-filter", |facts| {
        with_host(strict(2))(facts);
        with_host(|host| {
            host.devices
                .iter_mut()
                .for_each(|device| device.rp_filter = 2);
        })(facts);
    });
    assert_says(&loose, Finding::Ok, &["on no device"]);
}

#[test]
fn a_host_without_ipv6_matters_to_ports_published_in_it() {
    for (v6, word) in [(V6::Absent, "none"), (V6::Disabled, "disable_ipv6=0")] {
        let published = check("ipv6", |facts| {
            with_host(|host| host.v6 = v6)(facts);
            with_instance(|instance| instance.publishes_v6 = true)(facts);
        });
        assert_says(&published, Finding::Warn, &[word]);
        let unpublished = check("ipv6", with_host(|host| host.v6 = v6));
        assert_eq!(unpublished.finding, Finding::Ok);
    }
}

#[test]
fn what_the_instance_does_not_serve_is_named() {
    assert_says(
        &check(
            "build",
            with_instance(|instance| instance.is_own_build = false),
        ),
        Finding::Warn,
        &["of another build", "portfwd up"],
    );
    let unserved = vec!["eth3".to_owned()];
    let devices = check(
        "devices",
        with_instance(|instance| instance.unserved = unserved),
    );
    assert_says(&devices, Finding::Warn, &["eth3", "portfwd up"]);
    let none = check("devices", with_instance(|instance| instance.served.clear()));
    assert_says(&none, Finding::Warn, &["none is served"]);
    let sctp = vec!["port 3868 of container \"web\"".to_owned()];
    let sctp = check("sctp", with_instance(|instance| instance.sctp = sctp));
    assert_says(&sctp, Finding::Warn, &["3868", "web", "host processes"]);
    let stray = Stray {
        peer: "127.0.0.1:53".parse().expect("an address"),
        owner: Some("process dns (pid 12)".to_owned()),
    };
    let strays = Ok(vec![stray]);
    let strays = check(
        "old-sockets",
        with_instance(|instance| instance.strays = strays),
    );
    let words = ["process dns (pid 12) to 127.0.0.1:53", "again"];
    assert_says(&strays, Finding::Warn, &words);
}

fn chain(family: Family, hook: Hook) -> FirewallChain {
    FirewallChain {
        place: Place::Nftables {
            family: "inet",
            table: "filter".to_owned(),
            chain: format!("{hook:?}").to_lowercase(),
        },
        hook,
        family,
        drops: hook == Hook::Input,
        rules: Vec::new(),
        devices: Vec::new(),
    }
}

/// The check where these chains and ports are: a port's number, whether it is of IPv4, and whether it is open.
fn firewall(chains: Vec<FirewallChain>, ports: &[(u16, bool, bool)]) -> Check {
    let port = |&(number, is_v4, is_open): &(u16, bool, bool)| PastStack {
        port: format!("port {number} of container \"web\""),
        is_v4,
        is_open,
    };
    let published: Vec<PastStack> = ports.iter().map(port).collect();
    check("firewall", |facts| {
        with_host(|host| host.firewall = Ok(chains))(facts);
        with_instance(|instance| instance.past_stack = published)(facts);
    })
}

#[test]
fn ports_that_are_open_to_all_are_named_with_the_chains_that_they_pass_by() {
    let chains = || {
        vec![
            chain(Family::Both, Hook::Input),
            chain(Family::V4, Hook::Forward),
        ]
    };
    let open = firewall(
        chains(),
        &[(80, true, true), (80, false, true), (81, true, false)],
    );
    let words = [
        "nftables chain: table inet filter, chain input (policy drop)",
        "chain forward (rules that deny)",
        "keep out gets in here: port 80 of container \"web\";",
        "--allow",
        "127.0.0.1",
    ];
    assert_says(&open, Finding::Warn, &words);
    let limited = firewall(chains(), &[(80, true, false)]);
    let words = [
        "chain input",
        "chain forward",
        "all that do have --allow or --deny",
    ];
    assert_says(&limited, Finding::Ok, &words);
    let none = firewall(chains(), &[]);
    assert_says(&none, Finding::Ok, &["no port"]);
}

#[test]
fn chains_of_another_family_are_passed_by_by_nobody() {
    let chains = || vec![chain(Family::V6, Hook::Input)];
    let v4 = firewall(chains(), &[(80, true, true)]);
    assert_says(&v4, Finding::Ok, &["denies nothing"]);
    let both = firewall(chains(), &[(80, true, true), (81, false, true)]);
    assert_says(&both, Finding::Warn, &["gets in here: port 81"]);
    let limited = firewall(chains(), &[(80, true, true), (81, false, false)]);
    assert_says(
        &limited,
        Finding::Ok,
        &["all that do have --allow or --deny"],
    );
}

#[test]
fn a_firewall_that_cannot_be_seen_matters_where_ports_pass_it_by() {
    let hidden = |ports: &[PastStack]| {
        check("firewall", |facts| {
            with_host(|host| host.firewall = unseen())(facts);
            with_instance(|instance| instance.past_stack = ports.to_vec())(facts);
        })
    };
    let port = PastStack {
        port: "port 80".to_owned(),
        is_v4: true,
        is_open: true,
    };
    assert_eq!(hidden(&[port]).finding, Finding::Unseen);
    assert_eq!(hidden(&[]).finding, Finding::Ok);
    let no_instance = check("firewall", |facts| facts.instance = unseen());
    assert_says(&no_instance, Finding::Unseen, &["CAP_BPF"]);
}

#[test]
fn an_instance_that_cannot_be_used_is_told_with_its_hint() {
    let unusable = State::Unusable {
        why: "instance \"default\" has layout 1".to_owned(),
        hint: Some("use the portfwd that made it".to_owned()),
    };
    let found = check("instance", |facts| facts.instance = Ok(unusable));
    assert_says(&found, Finding::Fail, &["layout 1", "that made it"]);
    let down = check("instance", |facts| facts.instance = Ok(State::Down));
    assert_says(&down, Finding::Ok, &["not up"]);
}

#[test]
fn long_lists_are_cut() {
    let names: Vec<String> = (0..6).map(|number| format!("eth{number}")).collect();
    assert_eq!(some(&names), "eth0, eth1, eth2, eth3 and 2 more");
    assert_eq!(some(&names[..4]), "eth0, eth1, eth2, eth3");
}
