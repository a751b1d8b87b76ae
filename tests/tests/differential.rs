//! The datapath and the reference model, over the same packets.

use std::env;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use portfwd_tests::differential::campaign::Campaign;
use portfwd_tests::differential::host::{Subject, publish, world};
use portfwd_tests::differential::step;

/// Packets of a run that nobody has asked for more of.
const PACKETS: u64 = 300_000;

/// A number from the environment.
fn setting(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|error| panic!("{name}={text}: {error}")),
    )
}

#[test]
fn random_packets_meet_the_same_in_the_datapath_and_in_the_model() {
    let seed = setting("PORTFWD_SEED").unwrap_or(1);
    let packets = setting("PORTFWD_PACKETS").unwrap_or(PACKETS);
    let topology = publish();
    let mut campaign = Campaign::new(Subject::open(&topology), world(&topology));
    let start = Instant::now();
    let fixture = topology.host.run(|| {
        let (mut done, mut number) = (0, 0);
        while done < packets {
            match campaign.sequence(seed, number) {
                Ok(length) => done += length as u64,
                Err((steps, found)) => {
                    let fixture = campaign.fixture(&steps);
                    return Some(format!("sequence {number}, {}\n{fixture}", found.what));
                }
            }
            number += 1;
        }
        None
    });
    if let Some(fixture) = fixture {
        panic!("seed {seed}, {fixture}");
    }
    let time = start.elapsed();
    println!(
        "seed {seed}: {packets} packets in {time:.1?}, {:.0} a second",
        packets as f64 / time.max(Duration::from_millis(1)).as_secs_f64()
    );
}

#[test]
fn every_fixture_meets_the_same_in_the_datapath_and_in_the_model() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/differential");
    let topology = publish();
    let mut campaign = Campaign::new(Subject::open(&topology), world(&topology));
    let mut names: Vec<_> = fs::read_dir(&directory)
        .expect("the fixtures are a directory")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    names.sort();
    for path in names {
        let steps = step::read(&path);
        if let Err(found) = topology.host.run(|| campaign.replay(&steps)) {
            panic!(
                "{}: packet {}: {}",
                path.display(),
                found.place + 1,
                found.what
            );
        }
    }
}
