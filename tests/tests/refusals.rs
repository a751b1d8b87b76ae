//! What the command says when the kernel refuses one of its system calls, or answers what makes no sense. A tracer
//! stands between them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::errno::Errno;
use nix::libc;
use portfwd_common::{maps, masquerade::MAX_SUBNETS};
use portfwd_tests::portfwd::expect_error;
use portfwd_tests::ptrace::{Call, bpf};
use portfwd_tests::refusing::{Refused, Refusing};
use portfwd_tests::topology::HOST;
use portfwd_tests::{clients, kernel};

/// socket(2) of netlink, of one of its protocols.
fn is_netlink(call: &Call, protocol: libc::c_int) -> bool {
    call.number == libc::SYS_socket
        && call.arguments[0] == libc::AF_NETLINK as u64
        && call.arguments[2] == protocol as u64
}

const ATTACH: &str = "attach web --netns {0} -p 8080:80";

#[test]
fn a_namespace_that_cannot_be_used_is_named() {
    let stand = Refusing::default();
    let web = stand.topology.containers[0].netns();
    let cookie = |call: &Call| call.number == libc::SYS_getsockopt && call.arguments[2] == 71;
    let cases: [(&str, Refused, Errno, String); 4] = [
        (
            ATTACH,
            &|call| call.opens(&web),
            Errno::ENFILE,
            format!("cannot open network namespace {web}: Too many open files in system"),
        ),
        (
            ATTACH,
            &|call| call.number == libc::SYS_setns,
            Errno::ENOMEM,
            format!("cannot enter network namespace {web}: Cannot allocate memory"),
        ),
        (
            ATTACH,
            &|call| [libc::SYS_clone3, libc::SYS_clone].contains(&call.number),
            Errno::EAGAIN,
            format!(
                "cannot start a thread for network namespace {web}: Resource temporarily unavailable"
            ),
        ),
        (
            ATTACH,
            &cookie,
            Errno::ENOPROTOOPT,
            format!("cannot read the cookie of network namespace {web}: Protocol not available"),
        ),
    ];
    for (line, refused, errno, says) in cases {
        expect_error(stand.refuse(line, refused, errno), 1, &says);
    }
    assert_eq!(stand.topology.published(), Vec::<String>::new());
}

#[test]
fn programs_and_maps_that_the_kernel_does_not_take_are_named() {
    let stand = Refusing::default();
    let cases: [(Refused, Errno, &str); 5] = [
        (
            &|call| call.is_bpf(bpf::PROG_LOAD) && program_name(call).starts_with("tc_"),
            Errno::ENOMEM,
            "cannot load the eBPF programs: program tc_",
        ),
        (
            &|call| call.is_pin(bpf::OBJ_PIN, "/maps/journal"),
            Errno::ENOSPC,
            "/maps/journal: ",
        ),
        (
            &|call| call.number == libc::SYS_flock,
            Errno::ENOLCK,
            "cannot lock ",
        ),
        (
            &|call| call.number == libc::SYS_mmap && call.file(4).contains("bpf-map"),
            Errno::ENOMEM,
            ": cannot map it: Cannot allocate memory",
        ),
        (
            &|call| is_netlink(call, libc::NETLINK_ROUTE),
            Errno::EMFILE,
            "cannot open a netlink socket: Too many open files",
        ),
    ];
    for (refused, errno, says) in cases {
        expect_error(stand.refuse("up", refused, errno), 1, says);
        assert!(kernel::pins(stand.topology.bpffs()).is_empty(), "{says}");
    }
}

/// The name that a program is loaded under: `prog_name`.
fn program_name(call: &Call) -> String {
    call.text(call.arguments[1] + bpf::PROG_NAME)
}

#[test]
fn a_program_that_the_verifier_refuses_is_told_with_its_reason() {
    /// `r6 = r1`, with which programs keep their context, and `r6 = r9`, of which the second holds nothing yet.
    const KEEP: [u8; 8] = [0xbf, 0x16, 0, 0, 0, 0, 0, 0];
    const KEEP_NOTHING: [u8; 8] = [0xbf, 0x96, 0, 0, 0, 0, 0, 0];
    let stand = Refusing::default();
    let spoilt = |call: &Call| {
        if call.is_bpf(bpf::PROG_LOAD) && program_name(call).starts_with("tc_") {
            let start = call.attribute(bpf::INSTRUCTIONS);
            let code = call.memory::<512>(start);
            let (instructions, _) = code.as_chunks::<8>();
            if let Some(place) = instructions.iter().position(|code| *code == KEEP) {
                call.overwrite(start + 8 * place as u64, &KEEP_NOTHING);
            }
        }
        false
    };
    let outcome = stand.refuse("up", &spoilt, Errno::EIO);
    // Over which register is chance.
    expect_error(outcome.clone(), 5, ": the verifier refuses it: R");
    expect_error(
        outcome,
        5,
        " (Permission denied (os error 13))\nhint: use Linux 6.1",
    );
}

#[test]
fn what_is_written_and_opened_while_it_comes_up_is_named() {
    let stand = Refusing::default();
    let loaded = AtomicBool::new(false);
    let fills_stages = |call: &Call| {
        let loads = call.is_bpf(bpf::PROG_LOAD) && program_name(call).starts_with("tc_");
        loaded.fetch_or(loads, Ordering::Relaxed);
        loaded.load(Ordering::Relaxed) && call.is_bpf(bpf::MAP_UPDATE_ELEM)
    };
    let outcome = stand.refuse("up", &fills_stages, Errno::ENOMEM);
    expect_error(outcome, 1, "cannot load the eBPF programs: stages: ");

    stand.topology.host.ip("tuntap add dev tun7 mode tun
         addr add 198.18.7.1/24 dev tun7
         link set tun7 up\n");
    let lists_maps = |call: &Call| call.number == libc::SYS_openat && call.names("~building/maps");
    let outcome = stand
        .refuse("up", &lists_maps, Errno::EMFILE)
        .expect_code(1)
        .expect_stderr("for tun7: its maps: cannot list ");
    // Cleaning up needs the list as well.
    let (_, rest) = outcome.stderr.split_once('\n').expect("more lines");
    assert!(rest.starts_with("left behind: cannot list "), "{rest}");
    let outcome = stand
        .topology
        .portfwd(&["up", "--xdp", "native", "--device", "tun7"]);
    expect_error(
        outcome,
        1,
        "attach xdp_device to tun7 (native): the device carries no Ethernet frames",
    );
}

#[test]
fn tables_that_cannot_be_opened_or_are_full_are_named() {
    let stand = Refusing::default();
    stand.topology.portfwd(&["up"]).expect_ok();
    let outcome = stand.refuse(
        "list",
        &|call| call.is_pin(bpf::OBJ_GET, "/maps/journal"),
        Errno::ENOMEM,
    );
    expect_error(outcome, 1, "map journal: ");

    let subnets = stand.topology.pinned(maps::SUBNETS);
    let address_length = kernel::key_size(&subnets) - 4;
    for number in 0..MAX_SUBNETS {
        let mut key = (8 * address_length as u32).to_ne_bytes().to_vec();
        key.resize(4 + address_length - 4, 0xfd);
        key.extend(number.to_be_bytes());
        kernel::put_map_value(&subnets, &key, &[0; 4]).expect("room for an entry");
    }
    let outcome = stand
        .topology
        .portfwd(&["masquerade", "add", "10.88.0.0/24"]);
    let says = "table subnets is full: it holds 4096 entries\nhint: give one wider subnet ";
    expect_error(outcome, 1, says);
}

#[test]
fn what_cannot_be_removed_is_left_behind_and_said() {
    let stand = Refusing::default();
    stand.topology.portfwd(&["up"]).expect_ok();
    let refused = |call: &Call| !call.is_bpf(bpf::OBJ_GET) && call.names("~removing/maps/journal");
    let outcome = stand.refuse("down", &refused, Errno::EIO).expect_code(1);
    let lines: Vec<&str> = outcome.stderr.lines().collect();
    assert_eq!(
        lines[0], "error: 3 things could not be removed",
        "{lines:?}"
    );
    assert!(
        lines[1].ends_with("~removing/maps/journal: Input/output error (os error 5)"),
        "{lines:?}"
    );
    assert!(
        lines[1..]
            .iter()
            .all(|line| line.starts_with("left behind: cannot remove ")),
        "{lines:?}"
    );
    stand.topology.portfwd(&["down"]).expect_ok();
}

#[test]
fn kernels_without_the_newer_hooks_lack_what_needs_them() {
    let stand = Refusing::default();
    let add = ["qdisc", "add", "dev", "eth0", "ingress"];
    stand.topology.host.output("tc", &add);
    let outcome = stand.refuse(
        "masquerade add 10.88.0.0/24",
        &Call::attaches_tcx,
        Errno::EINVAL,
    );
    expect_error(
        outcome,
        1,
        "attach tc_egress to eth0: another qdisc is in the place of a clsact one: ingress",
    );
    let outcome = stand.refuse(
        &format!("{ATTACH} --loopback"),
        &Call::attaches_tcx,
        Errno::EINVAL,
    );
    expect_error(
        outcome,
        5,
        "missing kernel feature: TCX (Linux 6.6), by which --loopback works",
    );
}

#[test]
fn sockets_that_the_kernel_cannot_end_are_named() {
    /// SOCK_DESTROY of `include/uapi/linux/sock_diag.h`, and where the family stands after `struct nlmsghdr`.
    const SOCK_DESTROY: u16 = 21;
    const FAMILY: u64 = 16;
    let stand = Refusing::default();
    let _servers = stand.topology.serve();
    stand.topology.attach("web", 0, &["8080:80"]);
    let to = SocketAddr::new(HOST, 8080);
    let open = clients::connect(&stand.topology.host, to).expect("connect");
    // There is a diagnosis of local sockets, and none of them can be ended so.
    let of_others = |call: &Call| {
        if call.sends().is_some_and(|(kind, _)| kind == SOCK_DESTROY) {
            call.overwrite(call.arguments[1] + FAMILY, &[libc::AF_UNIX as u8]);
        }
        false
    };
    let outcome = stand.refuse("detach web", &of_others, Errno::EIO);
    let says = "missing kernel feature: CONFIG_INET_DIAG_DESTROY, by which the socket 10.88.0.1:";
    expect_error(outcome, 5, says);
    drop(open);
}

/// NFNL_SUBSYS_NFTABLES and NFT_MSG_GETGEN, as the type of a message.
const NFTABLES: u16 = 10 << 8;
const GET_GENERATION: u16 = NFTABLES | 16;

#[test]
fn rules_of_others_that_cannot_be_read_are_told() {
    let stand = Refusing::default();
    let host = &stand.topology.host;
    let add = "add table ip other
        add chain ip other pre { type nat hook prerouting priority -100; }
        add rule ip other pre tcp dport 81 dnat to 10.4.0.9:80\n";
    host.feed("nft", &["-f", "-"], add);
    let changes = |call: &Call| {
        if call.sends().is_some_and(|(kind, _)| kind == GET_GENERATION) {
            host.feed(
                "nft",
                &["-f", "-"],
                "add chain ip other more\ndelete chain ip other more\n",
            );
        }
        false
    };
    let outcome = stand.refuse(ATTACH, &changes, Errno::EIO);
    expect_error(outcome, 1, "changed during each of 8 readings");

    let asks = AtomicU64::new(u64::MAX);
    let cuts = |call: &Call| {
        if call
            .sends()
            .is_some_and(|(kind, _)| kind & 0xff00 == NFTABLES)
        {
            asks.store(call.arguments[0], Ordering::Relaxed);
        }
        let is_answer =
            call.number == libc::SYS_recvfrom && call.arguments[0] == asks.load(Ordering::Relaxed);
        is_answer.then_some(8)
    };
    expect_error(
        stand.fake(ATTACH, cuts),
        1,
        "a netlink message is cut short",
    );

    host.output(
        "iptables-legacy",
        &["-t", "nat", "-A", "PREROUTING", "-p", "tcp", "-j", "ACCEPT"],
    );
    /// IPT_SO_GET_ENTRIES, beside SOL_IP.
    const GET_ENTRIES: u64 = 65;
    let is_entries = |call: &Call| {
        call.number == libc::SYS_getsockopt && call.arguments[1..3] == [0, GET_ENTRIES]
    };
    let outcome = stand.fake(ATTACH, |call| is_entries(call).then_some(0));
    expect_error(outcome, 1, "cannot read the nat table of iptables-legacy: ");
}

#[test]
fn settings_that_make_no_sense_are_named() {
    let stand = Refusing::default();
    let mut rest = &b"1-2,x\n"[..];
    let odd = |call: &Call| {
        let is_read =
            call.number == libc::SYS_read && call.file(0).ends_with("/ip_local_reserved_ports");
        is_read.then(|| {
            call.overwrite(call.arguments[1], rest);
            std::mem::take(&mut rest).len() as i64
        })
    };
    let says = "cannot read /proc/sys/net/ipv4/ip_local_reserved_ports: \"x\" is not a port or a range of ports";
    expect_error(stand.fake(ATTACH, odd), 1, says);
}
