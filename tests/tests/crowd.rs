//! Many commands at once, and many containers.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::process::{Command, Stdio};
use std::thread;

use portfwd_tests::portfwd::{self, Outcome};
use portfwd_tests::topology::{Shape, Topology};

/// Processes that change the same ports.
const CROWD: usize = 64;
/// Ports that they want.
const PORTS: usize = 12;
/// Containers beside each other. `PORTFWD_FULL=1`: as many as anybody runs on a host.
const CONTAINERS: usize = 200;
const ALL_CONTAINERS: usize = 2_000;

fn port(number: usize) -> String {
    format!("{}", 7_000 + number % PORTS)
}

fn run(mut command: Command) -> Outcome {
    command.stdin(Stdio::null());
    portfwd::finish(command)
}

/// What one process has done.
struct Deed {
    name: String,
    port: String,
    attached: Outcome,
    detached: Option<Outcome>,
}

/// Each attaches a container of its own to one of a few ports, and every second one that could detaches it again:
/// what is left is what they say that they did, and nobody was refused a port that nobody ever had.
#[test]
fn a_crowd_that_attaches_and_detaches_at_once_leaves_what_some_order_of_it_gives() {
    let topology = Topology::watched(Shape::default());
    topology.attach("stays", 0, &["6999:80"]);
    let deed = |number: usize| {
        let (name, port) = (format!("racer{number}"), port(number));
        let (netns, spec) = (
            topology.containers[number % 2].netns(),
            format!("{port}:80"),
        );
        let attach = ["attach", &name, "--netns", &netns, "-p", &spec];
        let attached = run(topology.command(&attach));
        let detaches = attached.code == 0 && number.is_multiple_of(2);
        let detached = detaches.then(|| run(topology.command(&["detach", &name])));
        Deed {
            name,
            port,
            attached,
            detached,
        }
    };
    let deeds: Vec<Deed> = thread::scope(|scope| {
        let racers: Vec<_> = (0..CROWD)
            .map(|number| scope.spawn(move || deed(number)))
            .collect();
        let deeds = racers.into_iter();
        deeds.map(|racer| racer.join().expect("a racer")).collect()
    });
    let mut had: BTreeSet<&str> = BTreeSet::new();
    let mut left: BTreeMap<&str, &str> = BTreeMap::new();
    for deed in &deeds {
        if deed.attached.code == 0 {
            had.insert(&deed.port);
        }
        match &deed.detached {
            Some(detached) => assert_eq!(detached.code, 0, "{}", detached.stderr),
            None if deed.attached.code == 0 => {
                let other = left.insert(&deed.port, &deed.name);
                assert_eq!(other, None, "port {} has two owners", deed.port);
            }
            None => {}
        }
    }
    for deed in deeds.iter().filter(|deed| deed.attached.code != 0) {
        let stderr = &deed.attached.stderr;
        assert_eq!(deed.attached.code, 3, "{stderr}");
        assert!(had.contains(deed.port.as_str()), "{}: {stderr}", deed.name);
        let holder = stderr.split("held by: container \"").nth(1);
        let holder = holder.and_then(|rest| rest.split('"').next());
        let holder = deeds
            .iter()
            .find(|other| Some(other.name.as_str()) == holder);
        let is_true =
            holder.is_some_and(|holder| holder.port == deed.port && holder.attached.code == 0);
        assert!(is_true, "{stderr}");
    }
    let mut listed: BTreeMap<String, String> = BTreeMap::new();
    for row in topology.list() {
        let name = row["container"].as_str().expect("a name").to_owned();
        if name != "stays" {
            listed.insert(row["hostPort"].to_string(), name);
        }
    }
    let left = left
        .into_iter()
        .map(|(port, name)| (port.to_owned(), name.to_owned()));
    assert_eq!(listed, left.collect());
    assert_eq!(had.len(), PORTS);
    topology.take_down();
}

/// The bug that this began with, at scale: two chosen ports each, and no port twice.
#[test]
fn every_one_of_many_containers_has_ports_of_its_own() {
    let topology = Topology::new(Shape::default());
    let full = env::var_os("PORTFWD_FULL").is_some();
    let containers = if full { ALL_CONTAINERS } else { CONTAINERS };
    for number in 0..containers {
        topology.attach(&format!("c{number}"), number % 2, &["80", "90"]);
    }
    let rows = topology.list();
    let v4 = rows.iter().filter(|row| row["hostIp"] == "0.0.0.0");
    let ports: BTreeSet<u64> = v4
        .map(|row| row["hostPort"].as_u64().expect("a port"))
        .collect();
    assert_eq!(ports.len(), 2 * containers);
    assert_eq!(rows.len(), 4 * containers);
    for number in (0..containers).step_by(7) {
        let name = format!("c{number}");
        let again = topology.attach(&name, number % 2, &["80", "90"]);
        let known = topology.portfwd(&["port", &name]).expect_ok();
        assert_eq!(again.stdout, known.stdout, "the same ports again");
    }
}
