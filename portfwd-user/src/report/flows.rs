//! Translated connections.

use std::borrow::Cow;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

use portfwd_common::net::Protocol;
use serde::{Serialize, Serializer};

use super::forwards::protocol_name;
use super::table::{Align, Table, bytes, duration};
use crate::label::Label;

/// A translated connection.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowRow {
    /// Whose it is.
    pub container: Label,
    /// The protocol.
    #[serde(serialize_with = "protocol_name")]
    pub protocol: Protocol,
    /// The client.
    pub client: SocketAddr,
    /// The host address and port that the client talks to.
    pub host: SocketAddr,
    /// The container's address and port.
    pub container_address: SocketAddr,
    /// What it has come to, such as `established`.
    pub state: Cow<'static, str>,
    /// Time since it was opened, whole seconds in the document.
    #[serde(serialize_with = "seconds")]
    pub age: Duration,
    /// Time since its last packet, whole seconds in the document.
    #[serde(serialize_with = "seconds")]
    pub idle: Duration,
    /// Bytes from the client, from the IP header on; None if flows do not count theirs.
    pub rx_bytes: Option<u64>,
    /// Bytes to the client.
    pub tx_bytes: Option<u64>,
}

pub(super) fn seconds<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(time.as_secs())
}

/// The table of `flows`, by container, then host port, protocol and client.
///
/// # Errors
/// As the writer.
pub fn write_flows(out: &mut impl Write, rows: &[FlowRow]) -> io::Result<()> {
    let mut table = Table::new(&[
        ("CONTAINER", Align::Left),
        ("PROTOCOL", Align::Left),
        ("CLIENT", Align::Left),
        ("HOST", Align::Left),
        ("TARGET", Align::Left),
        ("STATE", Align::Left),
        ("AGE", Align::Right),
        ("IDLE", Align::Right),
        ("RX", Align::Right),
        ("TX", Align::Right),
    ]);
    let counted = |count: Option<u64>| count.map_or_else(|| "-".to_owned(), bytes);
    let mut sorted: Vec<&FlowRow> = rows.iter().collect();
    sorted.sort_by_key(|row| {
        let place = (row.host.port(), row.protocol, row.client, row.host);
        (&row.container, place)
    });
    for row in sorted {
        table.row(vec![
            row.container.to_string(),
            row.protocol.name().to_owned(),
            row.client.to_string(),
            row.host.to_string(),
            row.container_address.to_string(),
            row.state.clone().into_owned(),
            duration(row.age),
            duration(row.idle),
            counted(row.rx_bytes),
            counted(row.tx_bytes),
        ]);
    }
    table.write(out)
}
