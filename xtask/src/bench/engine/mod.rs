//! The traffic: blocking clients and servers, one thread each.
//!
//! Every measurement has a server and a client, each a process of its own. One of the two counts:
//! the client where it waits for answers, the server where data flows one way, so that only what
//! arrived is counted.

mod batch;
mod tcp;
mod udp;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::workload::Workload;

/// How long nothing may arrive before a party gives up.
const SILENCE: Duration = Duration::from_secs(3);

/// What the counting party saw within its window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Count {
    /// Round trips, connections, bytes or datagrams.
    pub(crate) units: u64,
    /// The window as it really was, in nanoseconds.
    pub(crate) nanos: u64,
    /// Requests without an answer, or datagrams that never arrived.
    pub(crate) lost: u64,
}

impl Count {
    /// Units per second.
    pub(crate) fn rate(&self) -> f64 {
        self.units as f64 * 1e9 / self.nanos.max(1) as f64
    }
}

/// The time that is counted, and the time before it that is not.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    /// Traffic runs, uncounted, until caches, neighbours and the congestion window are warm.
    pub(crate) warmup: Duration,
    /// Traffic is counted.
    pub(crate) length: Duration,
}

/// Follows a window: what comes in the warm-up is forgotten, the first unit after the end closes it.
struct Meter {
    window: Window,
    started: Instant,
    counting: bool,
    units: u64,
    lost: u64,
}

impl Meter {
    fn start(window: Window) -> Self {
        Meter {
            window,
            started: Instant::now(),
            counting: false,
            units: 0,
            lost: 0,
        }
    }

    /// Adds what has just come. Gives the result once the window is over.
    fn add(&mut self, units: u64, lost: u64) -> Option<Count> {
        let elapsed = self.started.elapsed();
        if !self.counting {
            if elapsed >= self.window.warmup {
                self.counting = true;
                self.started += elapsed;
            }
            return None;
        }
        self.units += units;
        self.lost += lost;
        (elapsed >= self.window.length).then(|| Count {
            units: self.units,
            nanos: u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX),
            lost: self.lost,
        })
    }
}

/// Serves `workload` at `address`. Calls `ready` once a client can come. Returns the count where the
/// server is the counting party; otherwise it serves until its process is ended.
pub(crate) fn serve(
    workload: Workload,
    address: SocketAddr,
    window: Window,
    ready: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Count> {
    match workload {
        Workload::TcpRoundTrips => tcp::echo(address, ready),
        Workload::TcpConnections => tcp::answer(address, ready),
        Workload::TcpBulk => tcp::drain(address, window, ready),
        Workload::UdpRoundTrips => udp::echo(address, ready),
        Workload::UdpDatagrams => udp::drain(address, window, ready),
    }
}

/// Drives `workload` against `target`. Returns the count where the client is the counting party;
/// otherwise it sends until its process is ended or its connection is closed.
pub(crate) fn drive(
    workload: Workload,
    target: SocketAddr,
    window: Window,
) -> anyhow::Result<Option<Count>> {
    match workload {
        Workload::TcpRoundTrips => tcp::ping(target, window).map(Some),
        Workload::TcpConnections => tcp::request(target, window).map(Some),
        Workload::TcpBulk => tcp::flood(target).map(|()| None),
        Workload::UdpRoundTrips => udp::ping(target, window).map(Some),
        Workload::UdpDatagrams => udp::flood(target),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meter_counts_only_between_the_warm_up_and_the_end() {
        let mut meter = Meter::start(Window {
            warmup: Duration::ZERO,
            length: Duration::from_millis(5),
        });
        assert_eq!(
            meter.add(1000, 7),
            None,
            "what came in the warm-up is forgotten"
        );
        assert_eq!(meter.add(2, 1), None);
        std::thread::sleep(Duration::from_millis(6));
        let count = meter.add(3, 0).expect("the window is over");
        assert_eq!((count.units, count.lost), (5, 1));
        assert!(count.nanos >= 5_000_000);
    }

    #[test]
    fn a_rate_is_per_second() {
        let count = Count {
            units: 50,
            nanos: 500_000_000,
            lost: 0,
        };
        assert!((count.rate() - 100.0).abs() < 1e-9);
    }

    #[test]
    fn every_workload_runs_over_loopback() {
        let window = Window {
            warmup: Duration::from_millis(5),
            length: Duration::from_millis(20),
        };
        for workload in Workload::ALL {
            // Port 0 cannot be told to the client before the server is up, so the port is found first.
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let address = free.local_addr().unwrap();
            drop(free);
            let (up, is_up) = std::sync::mpsc::channel();
            let server =
                std::thread::spawn(move || serve(workload, address, window, || Ok(up.send(())?)));
            is_up.recv().unwrap();
            // The client of a one-way workload ends with its process, so it is left behind.
            let client = std::thread::spawn(move || drive(workload, address, window));
            let count = if workload.server_counts() {
                server.join().unwrap().unwrap()
            } else {
                client.join().unwrap().unwrap().unwrap()
            };
            assert!(count.units > 0, "{workload:?}: {count:?}");
        }
    }
}
