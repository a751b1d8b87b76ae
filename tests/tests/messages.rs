//! Error messages that belong to no feature's own tests, each provoked by the command itself. That every message of
//! the source is provoked somewhere is what `cargo xtask test` makes sure of.

use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use portfwd_tests::clients;
use portfwd_tests::namespace::Namespace;
use portfwd_tests::needs::{Need, need};
use portfwd_tests::portfwd::{self, Outcome, expect_error};
use portfwd_tests::ptrace;
use portfwd_tests::topology::{HOST, Shape, Topology};

/// Runs a command line in which `{0}` and `{1}` stand for the namespaces of the containers.
fn run(topology: &Topology, line: &str) -> Outcome {
    let [web, db] = &topology.containers;
    let line = line
        .replace("{0}", &web.netns())
        .replace("{1}", &db.netns());
    topology.portfwd(&line.split_whitespace().collect::<Vec<_>>())
}

/// The same for another host namespace, instance or bpffs.
fn elsewhere(host: &Path, instance: &str, bpffs: &Path, arguments: &[&str]) -> Outcome {
    let mut command = portfwd::command();
    command
        .args(["--instance", instance, "--bpffs"])
        .arg(bpffs)
        .arg("--host-netns")
        .arg(host)
        .args(arguments);
    portfwd::finish(command)
}

#[test]
fn specs_and_addresses_of_the_right_form_may_be_wrong_still() {
    let topology = Topology::new(Shape::default());
    for (line, says) in [
        (
            "-p 224.0.0.1:80:80",
            "SPEC \"224.0.0.1:80:80\": the host address 224.0.0.1 is multicast, where no port is published",
        ),
        ("-p 80:80 -p 80:80", "SPEC \"80:80/tcp\" is given twice"),
        (
            "-p 80-90:80-90 -p 85:1",
            "SPEC \"85:1/tcp\" shares host port 85 with SPEC \"80-90:80-90/tcp\"",
        ),
        (
            "-p 80:80 --connect 10.99.0.1,10.99.0.2/24",
            "connection \"10.99.0.1,10.99.0.2/24\": \"10.99.0.1\" is not an IP address with the length of its prefix",
        ),
        (
            "-p 80:80 --connect 10.99.0.1/24,10.98.0.2/24",
            "10.99.0.1/24 and 10.98.0.2/24 are not of one subnet",
        ),
        (
            "-p 80:80 --connect 10.99.0.1/0,10.99.0.2/0",
            "every address is in the subnet of 10.99.0.1/0",
        ),
        (
            "-p 80:80 --connect 127.0.0.1/8,127.0.0.2/8",
            "subnet 127.0.0.0/8 holds loopback addresses, where no container is reached",
        ),
        (
            "-p 80:80 --connect 10.99.0.0/24,10.99.0.2/24",
            "10.99.0.0/24 is the network address of its subnet",
        ),
    ] {
        let outcome = run(&topology, &format!("attach web --netns {{0}} {line}"));
        expect_error(outcome, 2, says);
    }
    let outcome = run(&topology, "attach web --ip 127.0.0.1 -p 80:80");
    let says = "container address \"127.0.0.1\": 127.0.0.1 is a loopback address, where no container is reached";
    expect_error(outcome, 2, says);
}

#[test]
fn options_of_the_right_form_may_make_no_sense_still() {
    let topology = Topology::new(Shape::default());
    let web = "attach web --netns {0} -p 80:80";
    for (line, says) in [
        (
            format!("{web} --allow 10.0.0.0/8 --deny 10.0.0.0/8"),
            "10.0.0.0/8 stands with --allow and with --deny",
        ),
        (
            format!("{web} --deny-silently"),
            "--deny-silently denies nobody\nhint: say whom with --allow or --deny",
        ),
        (
            format!("{web} -p 81:80/sctp"),
            "SPEC 81:80/sctp would change the port, which SCTP does not allow\nhint: publish 80:80/sctp",
        ),
        (
            "repoint web web".to_owned(),
            "container \"web\" cannot hand its ports over to itself\nhint: portfwd attach --replace",
        ),
        (
            "repoint web db --drain 0s".to_owned(),
            "--drain \"0s\": less than a second is --cut\nhint: give a time",
        ),
        (
            "repoint web db --drain 1000d".to_owned(),
            "--drain \"1000d\": more than 30 days\nhint: give a time",
        ),
        (
            format!("{web} --deny 10.0.0.1/8"),
            "--deny \"10.0.0.1/8\": bits are set behind the prefix\nhint: ",
        ),
        (
            format!("{web} --deny ::ffff:10.0.0.1"),
            "packets never bear an IPv4 address in this form\nhint: ",
        ),
        (
            format!("{web} --allow lan"),
            "--allow \"lan\": neither an address nor one with the length of its prefix\nhint: such as 192.0.2.7",
        ),
        (
            "up --lifetime forever".to_owned(),
            "--lifetime \"forever\": there is no =\nhint: give STATE=SECONDS",
        ),
        (
            "up --lifetime established=0".to_owned(),
            "\"0\" is no number of seconds from 1 to 2592000\nhint: give STATE=SECONDS",
        ),
        (
            "up --lifetime forever=1".to_owned(),
            "--lifetime \"forever=1\": unknown state \"forever\"\nhint: give STATE=SECONDS",
        ),
    ] {
        expect_error(run(&topology, &line), 2, says);
    }
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    let text = "[[container]]\nname = \"web\"\nnetns = \"\"\npublish = [\"80:80\"]\n";
    file.write_all(text.as_bytes()).expect("write it");
    let outcome = run(&topology, &format!("apply -f {}", file.path().display()));
    expect_error(outcome, 2, "line 2: the path given with --netns is empty");
}

#[test]
fn an_address_has_to_lead_to_one_container() {
    let topology = Topology::new(Shape::default());
    for (address, says) in [
        (
            "198.51.100.9",
            "no route to 198.51.100.9\nhint: see `ip route get`",
        ),
        ("192.0.2.1", "192.0.2.1 is an address of the host itself"),
        (
            "192.0.2.255",
            "192.0.2.255 is not the address of a container",
        ),
        (
            "10.88.0.2,fd88::3",
            "10.88.0.2 and fd88::3 lead to different links: veth1, veth2",
        ),
    ] {
        let outcome = run(&topology, &format!("attach web --ip {address} -p 80:80"));
        expect_error(outcome, 1, says);
    }
    let outcome = run(&topology, "attach web --ip 10.88.0.2 -p [::1]:80:80");
    let says = "container \"web\" has no IPv6 address for host address ::1";
    expect_error(outcome, 1, says);
    // An address that the host may get is no error.
    run(&topology, "attach web --ip 10.88.0.2 -p 198.51.100.7:80:80")
        .expect_ok()
        .expect_stderr("warning: 198.51.100.7 is not an address of the host now");
}

#[test]
fn a_container_without_a_network_of_ours_is_told_what_it_has_instead() {
    let topology = Topology::new(Shape::default());
    let bare = Namespace::new("bare");
    let attach = || {
        let netns = bare.path().display().to_string();
        topology.portfwd(&["attach", "web", "--netns", &netns, "-p", "80:80"])
    };
    let says = format!(
        "no interface with an address is up in network namespace {}",
        bare.path().display()
    );
    expect_error(
        attach(),
        1,
        &format!("{says}\nhint: give the container a network first"),
    );
    bare.ip("link add eth0 type veth peer name eth1\n");
    expect_error(attach(), 1, &format!("{says}: eth1 is down, eth0 is down"));
    bare.ip("link del eth0\n");

    need(Need::Child("macvlan"));
    topology.host.ip(&format!(
        "link add link eth1 name mac type macvlan
         link set mac netns {}\n",
        bare.name()
    ));
    bare.ip("addr add 203.0.113.77/24 dev mac
             link set mac up\n");
    let says = "interface mac of the container is a macvlan: it has its own address on that network, 203.0.113.77\n\
                hint: connect to 203.0.113.77 itself";
    expect_error(attach(), 1, says);
}

#[test]
fn what_an_instance_is_not_is_said() {
    let topology = Topology::new(Shape::default());
    let name = topology.instance();
    for line in ["flows purge", "log"] {
        let says = format!("instance \"{name}\" is not up\nhint: portfwd up");
        expect_error(run(&topology, line), 1, &says);
    }
    run(&topology, "up").expect_ok();
    let says = format!("instance \"{name}\" logs nothing\nhint: portfwd up --log-level");
    expect_error(run(&topology, "log"), 1, &says);

    let client = topology.client.path();
    let says = format!("instance \"{name}\" belongs to network namespace net:[");
    expect_error(
        elsewhere(&client, name, topology.bpffs(), &["list"]),
        1,
        &says,
    );
    let gone = Namespace::new("gone");
    elsewhere(&gone.path(), "gone", topology.bpffs(), &["up"]).expect_ok();
    drop(gone);
    let says = "instance \"gone\" belongs to a network namespace that is gone\nhint: portfwd down removes it";
    expect_error(
        elsewhere(&client, "gone", topology.bpffs(), &["list"]),
        1,
        says,
    );
}

#[test]
fn a_place_that_is_not_ours_is_left_alone() {
    let topology = Topology::new(Shape::default());
    let directory = tempfile::tempdir_in("/run").expect("a directory");
    let path = directory.path();
    fs::write(path.join("file"), "data").expect("a file");
    let says = format!(
        "{} is not a bpffs\nhint: mount -t bpf bpf DIR",
        path.display()
    );
    let host = topology.host.path();
    expect_error(elsewhere(&host, "other", path, &["up"]), 1, &says);
    fs::remove_file(path.join("file")).expect("no file");

    // An instance of this namespace is there, although no pin of it is in sight.
    run(&topology, "up").expect_ok();
    let says = "already has an instance in another bpffs: map ";
    expect_error(elsewhere(&host, "other", path, &["up"]), 1, says);
    run(&topology, "down").expect_ok();

    let other = topology.pins().join("layout-999");
    for directory in [&topology.bpffs().join("portfwd"), &topology.pins(), &other] {
        let made = fs::create_dir(directory)
            .and_then(|()| fs::set_permissions(directory, Permissions::from_mode(0o700)));
        made.expect("a directory");
    }
    let says = format!(
        "instance \"{}\" has layout 999, this portfwd has layout {}\nhint: use the portfwd that made it",
        topology.instance(),
        portfwd_common::LAYOUT
    );
    expect_error(run(&topology, "list"), 1, &says);
    fs::remove_dir(&other).expect("an empty directory");
}

#[test]
fn ports_are_handed_over_once_and_to_those_who_can_serve_them() {
    let topology = Topology::new(Shape::default());
    let _servers = topology.serve();
    run(&topology, "attach web --netns {0} -p 8080:80").expect_ok();
    let open = clients::connect(&topology.client, SocketAddr::new(HOST, 8080)).expect("connect");
    clients::ask_stream(&open).expect("an answer");
    run(&topology, "repoint web db --netns {1} --drain 1h").expect_ok();
    let says =
        "container \"web\" has no port to hand over: what it had, it has handed over already";
    expect_error(run(&topology, "repoint web db"), 1, says);
    drop(open);

    need(Need::Tcx);
    run(&topology, "attach inner --netns {0} -p 8090:90 --loopback").expect_ok();
    let says = "container \"inner\" serves ports with --loopback, and \"green\" was not attached so\n\
                hint: say where green is, with --netns PATH or --pid PID";
    expect_error(
        run(&topology, "repoint inner green --ip 10.88.0.3"),
        1,
        says,
    );
}

#[test]
fn addresses_that_nobody_can_send_to_and_no_subnets_are_told() {
    let topology = Topology::new(Shape::default());
    topology.host.ip("addr add 198.18.0.1/32 dev eth0\n");
    let says =
        "nobody is known that could send to 198.18.0.1\nhint: say who sends it, with --from ADDR";
    expect_error(run(&topology, "explain 198.18.0.1:80"), 4, says);

    topology.host.set_sysctl("ipv4/ip_forward", "1");
    topology.attach_masqueraded("web", 0, "8080:80");
    let says = "10.88.0.2/32 is masqueraded as an address of container \"web\", and as no subnet\n\
                hint: portfwd detach web ends it";
    expect_error(run(&topology, "masquerade remove 10.88.0.2"), 4, says);
}

#[test]
fn a_map_of_another_shape_is_refused() {
    let topology = Topology::new(Shape::default());
    run(&topology, "up").expect_ok();
    let pin = topology.layout().join("maps/ports");
    fs::remove_file(&pin).expect("a pin");
    let pin = pin.display().to_string();
    let form = "type array key 4 value 16 entries 3 name other flags 0x400";
    let arguments: Vec<&str> = ["map", "create", &pin]
        .into_iter()
        .chain(form.split(' '))
        .collect();
    topology.host.output("bpftool", &arguments);
    let says = "map ports: 3 entries of 16 bytes are not of this version";
    expect_error(run(&topology, "list"), 1, says);
}

#[test]
fn a_lock_that_somebody_keeps_is_named_with_its_holder() {
    let topology = Topology::new(Shape::default());
    run(&topology, "up").expect_ok();
    let directory = File::open(topology.pins()).expect("the instance's directory");
    let _lock = Flock::lock(directory, FlockArg::LockExclusive).expect("the lock");
    let seen = || run(&topology, "gc");
    // As in a container, whose /proc/locks leaves out what processes elsewhere have locked.
    let unseen = || {
        ptrace::refuse(topology.command(&["gc"]), |call| {
            call.opens("/proc/locks").then_some(Errno::ENOENT)
        })
    };
    let (seen, unseen) = thread::scope(|scope| {
        let seen = scope.spawn(seen);
        let unseen = unseen();
        (seen.join().expect("no panic"), unseen)
    });
    let pid = std::process::id();
    let path = topology.pins().display().to_string();
    let says = format!("{path} has been busy for 30 s, now with process ");
    expect_error(seen.clone(), 1, &says);
    expect_error(seen.clone(), 1, &format!(" (pid {pid})\n"));
    let hint = format!("hint: try again; if {pid} has it still, kill that: ");
    expect_error(seen, 1, &hint);
    expect_error(
        unseen.clone(),
        1,
        &format!("{path} has been busy for 30 s\n"),
    );
    let hint = format!("hint: try again; fuser -v {path} ");
    expect_error(unseen, 1, &hint);
}
