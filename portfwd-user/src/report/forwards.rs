//! Forwards: the lines of `attach` and `port`, the table and the document of `list`.

use std::cmp::Ordering;
use std::io::{self, Write};
use std::net::IpAddr;

use ipnet::IpNet;
use portfwd_common::net::Protocol;
use serde::{Serialize, Serializer};

use super::table::{Align, Table, bytes};
use crate::label::Label;
use crate::spec::{PortQuery, PortRange};

/// A forward in one family: what is published where.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Published {
    /// Whose it is.
    pub container: Label,
    /// The protocol.
    #[serde(serialize_with = "protocol_name")]
    pub protocol: Protocol,
    /// The host address; `0.0.0.0` or `::` for any.
    pub host_ip: IpAddr,
    /// The first port of the host.
    pub host_port: u16,
    /// How many ports in a row: 1 for a single one.
    pub count: u16,
    /// The container's address.
    pub container_ip: IpAddr,
    /// The first port of the container.
    pub container_port: u16,
}

/// A forward in one family, with who may use it and what has gone through it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ForwardRow {
    /// What is published where.
    #[serde(flatten)]
    pub published: Published,
    /// Clients that may use it; none given: all.
    #[serde(serialize_with = "networks")]
    pub allow: Vec<IpNet>,
    /// Clients that may not.
    #[serde(serialize_with = "networks")]
    pub deny: Vec<IpNet>,
    /// Connections and UDP flows so far, those of host processes included.
    pub connections: u64,
    /// Packets from clients to the container.
    pub rx_packets: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Packets from the container to clients.
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Packets dropped.
    pub drops: u64,
}

pub(super) fn protocol_name<S: Serializer>(protocol: &Protocol, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(protocol.name())
}

pub(super) fn networks<S: Serializer>(networks: &[IpNet], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(networks.iter().map(IpNet::to_string))
}

impl Published {
    /// The host's ports. A count that leads beyond 65535, or of 0, is cut to what there is.
    fn host_ports(&self) -> String {
        ports(self.host_port, self.count)
    }

    fn container_ports(&self) -> String {
        ports(self.container_port, self.count)
    }

    fn host(&self) -> String {
        socket(self.host_ip, &self.host_ports())
    }

    fn target(&self) -> String {
        socket(self.container_ip, &self.container_ports())
    }

    /// The host's port that leads to the container port that `query` names.
    fn host_port_for(&self, query: PortQuery) -> Option<u16> {
        let offset = query.port.checked_sub(self.container_port)?;
        let ours = self.protocol == query.protocol && offset < self.count;
        ours.then(|| self.host_port.checked_add(offset)).flatten()
    }

    /// By container, then as `docker port` sorts: by container port as a number, then protocol, with
    /// IPv4 before IPv6.
    fn order(&self, other: &Self) -> Ordering {
        let key = |row: &Self| {
            (
                row.container_port,
                row.protocol,
                row.host_port,
                row.host_ip.is_ipv6(),
                row.host_ip,
                row.count,
                row.container_ip,
            )
        };
        self.container
            .cmp(&other.container)
            .then_with(|| key(self).cmp(&key(other)))
    }
}

fn ports(first: u16, count: u16) -> String {
    PortRange::from_count(first, count).map_or_else(|| first.to_string(), |range| range.to_string())
}

/// `10.88.0.2:80`, `[fd00::2]:80`, also for a range of ports.
fn socket(address: IpAddr, ports: &str) -> String {
    match address {
        IpAddr::V4(v4) => format!("{v4}:{ports}"),
        IpAddr::V6(v6) => format!("[{v6}]:{ports}"),
    }
}

/// Puts forwards into the order in which they are shown.
pub fn sort(rows: &mut [Published]) {
    rows.sort_by(Published::order);
}

/// Those of `rows` that lead to the port that `query` names.
#[must_use]
pub fn answering(mut rows: Vec<Published>, query: PortQuery) -> Vec<Published> {
    rows.retain(|row| row.host_port_for(query).is_some());
    rows
}

/// `80/tcp -> 0.0.0.0:8080`, as `docker port` prints it.
pub(super) fn port_line(row: &Published) -> String {
    format!(
        "{}/{} -> {}",
        row.container_ports(),
        row.protocol.name(),
        row.host()
    )
}

/// One line a forward, as `docker port` prints it: `80/tcp -> 0.0.0.0:8080`; with `query` only the host
/// addresses and ports of what leads there: `0.0.0.0:8080`.
///
/// # Errors
/// As the writer.
pub fn write_ports(
    out: &mut impl Write,
    rows: &[Published],
    query: Option<PortQuery>,
) -> io::Result<()> {
    let mut sorted = rows.to_vec();
    sort(&mut sorted);
    for row in &sorted {
        match query {
            None => writeln!(out, "{}", port_line(row))?,
            Some(query) => {
                if let Some(port) = row.host_port_for(query) {
                    writeln!(out, "{}", socket(row.host_ip, &port.to_string()))?;
                }
            }
        }
    }
    Ok(())
}

/// The table of `list`. A forward that is the same in both families, on every address of each, is one
/// line with `*` for the address and the sums of both.
///
/// # Errors
/// As the writer.
pub fn write_forwards(out: &mut impl Write, rows: &[ForwardRow]) -> io::Result<()> {
    let mut columns = vec![
        ("CONTAINER", Align::Left),
        ("PROTOCOL", Align::Left),
        ("HOST", Align::Left),
        ("TARGET", Align::Left),
        ("CONNECTIONS", Align::Right),
        ("RECEIVED", Align::Right),
        ("SENT", Align::Right),
        ("DROPS", Align::Right),
    ];
    let is_limited = |row: &ForwardRow| !row.allow.is_empty() || !row.deny.is_empty();
    let limits = rows.iter().any(is_limited);
    if limits {
        columns.push(("CLIENTS", Align::Left));
    }
    let mut table = Table::new(&columns);
    let mut sorted: Vec<&ForwardRow> = rows.iter().collect();
    sorted.sort_by(|a, b| a.published.order(&b.published));
    let mut rest = sorted.as_slice();
    while let [row, others @ ..] = rest {
        let twin = others.first().filter(|other| are_one(row, other)).copied();
        rest = &others[usize::from(twin.is_some())..];
        let mut line = line(row, twin);
        line.extend(limits.then(|| clients(&row.allow, &row.deny)));
        table.row(line);
    }
    table.write(out)
}

/// Who may use a forward: `10.0.0.0/8, not 10.9.0.0/16`.
pub(super) fn clients(allow: &[IpNet], deny: &[IpNet]) -> String {
    let allowed = allow.iter().map(IpNet::to_string);
    let denied = deny.iter().map(|net| format!("not {net}"));
    let all = allow.is_empty().then(|| "all".to_owned());
    let parts: Vec<String> = all.into_iter().chain(allowed).chain(denied).collect();
    parts.join(", ")
}

/// Whether `v6` is the IPv6 half of what `v4` is the IPv4 half of. In sorted order it comes right after.
fn are_one(v4: &ForwardRow, v6: &ForwardRow) -> bool {
    let (a, b) = (&v4.published, &v6.published);
    let everywhere = a.host_ip.is_unspecified() && b.host_ip.is_unspecified();
    let ports = |row: &Published| (row.protocol, row.host_port, row.container_port, row.count);
    everywhere
        && a.host_ip.is_ipv4()
        && b.host_ip.is_ipv6()
        && a.container == b.container
        && ports(a) == ports(b)
        && (&v4.allow, &v4.deny) == (&v6.allow, &v6.deny)
}

fn line(row: &ForwardRow, twin: Option<&ForwardRow>) -> Vec<String> {
    let published = &row.published;
    let sum =
        |counter: fn(&ForwardRow) -> u64| counter(row).saturating_add(twin.map_or(0, counter));
    let (host, target) = match twin {
        Some(twin) => (
            format!("*:{}", published.host_ports()),
            format!("{}, {}", published.target(), twin.published.target()),
        ),
        None => (published.host(), published.target()),
    };
    vec![
        published.container.to_string(),
        published.protocol.name().to_owned(),
        host,
        target,
        sum(|row| row.connections).to_string(),
        bytes(sum(|row| row.rx_bytes)),
        bytes(sum(|row| row.tx_bytes)),
        sum(|row| row.drops).to_string(),
    ]
}
