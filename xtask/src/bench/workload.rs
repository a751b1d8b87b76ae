//! What is measured.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// One kind of traffic, and how it is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Workload {
    /// One byte there and back, on one connection
    TcpRoundTrips,
    /// Connect, request, answer, close
    TcpConnections,
    /// One connection, as fast as it goes
    TcpBulk,
    /// A small datagram there and back
    UdpRoundTrips,
    /// 64-byte datagrams, one way
    UdpDatagrams,
}

impl Workload {
    /// All of them, in the order of the report.
    pub(crate) const ALL: [Workload; 5] = [
        Workload::TcpRoundTrips,
        Workload::TcpConnections,
        Workload::TcpBulk,
        Workload::UdpRoundTrips,
        Workload::UdpDatagrams,
    ];

    /// The title of its part of the report.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Workload::TcpRoundTrips => "TCP round trips",
            Workload::TcpConnections => "TCP connect, request, close",
            Workload::TcpBulk => "TCP bulk",
            Workload::UdpRoundTrips => "UDP round trips",
            Workload::UdpDatagrams => "64-byte UDP datagrams",
        }
    }

    /// What its absolute figures count, per second.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Workload::TcpRoundTrips | Workload::UdpRoundTrips => "round trips/s",
            Workload::TcpConnections => "connections/s",
            Workload::TcpBulk => "bytes/s",
            Workload::UdpDatagrams => "datagrams/s",
        }
    }

    /// What portfwd is to reach, as a ratio to direct.
    pub(crate) fn goal(self) -> f64 {
        match self {
            Workload::TcpRoundTrips => 1.12,
            Workload::TcpConnections => 1.06,
            Workload::TcpBulk => 1.05,
            Workload::UdpRoundTrips => 1.10,
            Workload::UdpDatagrams => 1.17,
        }
    }

    /// Whether the server counts what arrives (else the client counts what was answered).
    pub(crate) fn server_counts(self) -> bool {
        matches!(self, Workload::TcpBulk | Workload::UdpDatagrams)
    }
}
