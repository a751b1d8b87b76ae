//! What is loaded into the kernel goes with its last user. Needs root.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::{Map, MapData};
use portfwd_common::maps;
use portfwd_user::object::{self, Options};
use portfwd_user::tables;

/// IDs of every map of the kernel. None is opened: that alone may keep a table of programs for ever.
fn ids() -> Vec<u32> {
    const MAP_GET_NEXT_ID: i64 = 12;
    let (mut found, mut attributes) = (Vec::new(), [0u32; 16]);
    loop {
        // SAFETY: the attributes are readable and writable for the size that is passed.
        let result = unsafe {
            nix::libc::syscall(
                nix::libc::SYS_bpf,
                MAP_GET_NEXT_ID,
                attributes.as_mut_ptr(),
                size_of_val(&attributes),
            )
        };
        if result != 0 {
            return found;
        }
        attributes[0] = attributes[1];
        found.push(attributes[1]);
    }
}

fn id_of(map: &Map) -> u32 {
    let data = |data: &MapData| data.info().expect("facts of the map").id();
    match map {
        Map::ProgramArray(map) | Map::Array(map) => data(map),
        other => panic!("{other:?}"),
    }
}

/// Fails if `tables::journals` opens every map of the kernel: the table of stages is kept then, mostly.
#[test]
fn who_looks_for_other_instances_keeps_nothing_of_one_that_goes() {
    let options = Options {
        host_netns: 0,
        log_level: 0,
    };
    for _ in 0..3 {
        let ebpf = object::load(options).expect("programs that load");
        let [stages, journal] = [maps::STAGES, maps::JOURNAL].map(|name| {
            let map = ebpf.map(name).expect("a map of that name");
            id_of(map)
        });
        let known = || tables::journals().any(|(id, _)| id == journal);
        assert!(known(), "an instance that is there is not found");
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    tables::journals().for_each(drop);
                }
            });
            drop(ebpf);
            let deadline = Instant::now() + Duration::from_secs(10);
            while ids().contains(&journal) && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(10));
            }
            stop.store(true, Ordering::Relaxed);
        });
        let deadline = Instant::now() + Duration::from_secs(10);
        while ids().contains(&stages) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        let left = ids();
        assert!(!left.contains(&journal), "the journal is kept");
        assert!(!left.contains(&stages), "the table of stages is kept");
    }
}
