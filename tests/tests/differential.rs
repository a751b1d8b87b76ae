//! The datapath and the reference model, over the same packets.

use std::env;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use portfwd_tests::differential::campaign::Campaign;
use portfwd_tests::differential::host::{Subject, published, topology, world};
use portfwd_tests::differential::step;
use portfwd_tests::portfwd;
use portfwd_tests::topology::Topology;

/// Packets of a run that nobody has asked for more of.
const PACKETS: u64 = 300_000;
/// Packets within which a mistake in the programs has to be noticed.
const ENOUGH: u64 = 20_000;

/// A number from the environment.
fn setting(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|error| panic!("{name}={text}: {error}")),
    )
}

fn campaign(topology: &Topology) -> Campaign {
    Campaign::new(Subject::open(topology), world(topology))
}

/// Plays sequences until as many packets have gone through, or until the two sides disagree: then the
/// fixture.
fn play(
    topology: &Topology,
    campaign: &mut Campaign,
    seed: u64,
    packets: u64,
) -> Result<(), String> {
    topology.host.run(|| {
        let (mut done, mut number) = (0, 0);
        while done < packets {
            match campaign.sequence(seed, number) {
                Ok(length) => done += length as u64,
                Err((steps, found)) => {
                    let fixture = campaign.fixture(&steps);
                    let what = found.what;
                    return Err(format!("seed {seed}, sequence {number}, {what}\n{fixture}"));
                }
            }
            number += 1;
        }
        Ok(())
    })
}

#[test]
fn random_packets_meet_the_same_in_the_datapath_and_in_the_model() {
    let seed = setting("PORTFWD_SEED").unwrap_or(1);
    let packets = setting("PORTFWD_PACKETS").unwrap_or(PACKETS);
    let topology = published(topology());
    let start = Instant::now();
    let mut campaign = campaign(&topology);
    if let Err(fixture) = play(&topology, &mut campaign, seed, packets) {
        panic!("{fixture}");
    }
    let time = start.elapsed();
    println!("{}", campaign.summary());
    if packets >= PACKETS {
        assert_eq!(campaign.missing(), Vec::<String>::new(), "nobody met these");
    }
    println!(
        "seed {seed}: {packets} packets in {time:.1?}, {:.0} a second",
        packets as f64 / time.max(Duration::from_millis(1)).as_secs_f64()
    );
}

#[test]
fn every_fixture_meets_the_same_in_the_datapath_and_in_the_model() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/differential");
    let topology = published(topology());
    let mut campaign = campaign(&topology);
    let mut paths: Vec<_> = fs::read_dir(&directory)
        .expect("the fixtures are a directory")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    for path in paths {
        let steps = step::read(&path);
        if let Err(found) = topology.host.run(|| campaign.replay(&steps)) {
            let place = found.place + 1;
            panic!("{}: packet {place}: {}", path.display(), found.what);
        }
    }
}

/// A test of the test above: programs with a wrong checksum, a port in the wrong place, another number
/// for a reason.
#[test]
fn every_mistake_in_the_datapath_is_noticed() {
    for name in ["checksum", "port", "reason"] {
        let topology = published(topology().with_binary(portfwd::mutant(name)));
        match play(&topology, &mut campaign(&topology), 1, ENOUGH) {
            Ok(()) => panic!("{name}: nobody has noticed in {ENOUGH} packets"),
            Err(fixture) => assert!(fixture.contains(name), "{name}: {fixture}"),
        }
    }
}
