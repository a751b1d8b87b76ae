//! The state of an instance.

use std::io::{self, Write};

use portfwd_common::{flow::Lifetimes, verdict::Reason};
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use crate::cli::LogLevel;
use crate::label::InstanceName;

/// What `status` shows.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The instance.
    pub instance: InstanceName,
    /// What is loaded; `None` if the instance is not up.
    pub datapath: Option<Datapath>,
}

/// The datapath of an instance that is up.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Datapath {
    /// Version of what is pinned.
    pub layout: u32,
    /// SHA-256 of the eBPF object, in hexadecimal.
    pub object_sha256: Option<String>,
    /// What the programs log.
    pub log_level: LogLevel,
    /// The namespace that plays the host, as `net:[INODE]`.
    pub host_namespace: String,
    /// The devices that are served.
    pub devices: Vec<DeviceRow>,
    /// How many containers are attached.
    pub containers: u64,
    /// How many forwards there are, one a family.
    pub forwards: u64,
    /// How many connections are translated.
    pub flows: u64,
    /// How many connections of containers leave under the host's address.
    pub masqueraded_flows: u64,
    /// How long flows without a packet live, in seconds.
    #[serde(serialize_with = "lifetimes")]
    pub lifetimes: Lifetimes,
    /// Whether flows count their bytes.
    pub flow_bytes: bool,
    /// Packets that were dropped or left alone although their port is published, by reason.
    pub reasons: Vec<ReasonRow>,
}

/// `{"established":7440,...}`.
fn lifetimes<S: Serializer>(lifetimes: &Lifetimes, to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(Lifetimes::NAMES.iter().zip(lifetimes.values()))
}

/// A device of the host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceRow {
    /// Its name.
    pub name: String,
    /// Its interface index.
    pub index: u32,
    /// The hooks that are used on it, such as `tcx ingress`.
    pub hooks: Vec<String>,
}

/// A counter of packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReasonRow {
    /// Why.
    pub reason: Reason,
    /// How many.
    pub packets: u64,
}

impl Serialize for ReasonRow {
    /// `{"reason":"foreign-source","dropped":true,"packets":3}`; `dropped` false: it went on unchanged.
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut row = to.serialize_struct("ReasonRow", 3)?;
        row.serialize_field("reason", self.reason.name())?;
        row.serialize_field("dropped", &self.reason.is_drop())?;
        row.serialize_field("packets", &self.packets)?;
        row.end()
    }
}

/// The text of `status`, without the reasons that have not come up.
///
/// # Errors
/// As the writer.
pub fn write_status(out: &mut impl Write, status: &Status) -> io::Result<()> {
    let Some(datapath) = &status.datapath else {
        writeln!(out, "instance    {}", status.instance)?;
        return writeln!(out, "state       down");
    };
    writeln!(out, "instance    {}", status.instance)?;
    writeln!(out, "state       up")?;
    writeln!(out, "host        {}", datapath.host_namespace)?;
    writeln!(out, "layout      {}", datapath.layout)?;
    let hash = datapath.object_sha256.as_deref().unwrap_or("unknown");
    writeln!(out, "object      sha256 {hash}")?;
    writeln!(out, "containers  {}", datapath.containers)?;
    writeln!(out, "forwards    {}", datapath.forwards)?;
    writeln!(out, "flows       {}", datapath.flows)?;
    writeln!(out, "masqueraded {}", datapath.masqueraded_flows)?;
    let named = Lifetimes::NAMES.iter().zip(datapath.lifetimes.values());
    let named: Vec<String> = named
        .map(|(name, seconds)| format!("{name} {seconds} s"))
        .collect();
    writeln!(out, "lifetimes   {}", named.join(", "))?;
    let counted = if datapath.flow_bytes { "on" } else { "off" };
    writeln!(out, "flow bytes  {counted}")?;
    writeln!(out, "log         {}", datapath.log_level.name())?;
    for device in &datapath.devices {
        writeln!(
            out,
            "device      {}: {}",
            device.name,
            device.hooks.join(", ")
        )?;
    }
    let seen = datapath.reasons.iter().filter(|row| row.packets > 0);
    for ReasonRow { reason, packets } in seen {
        let what = if reason.is_drop() {
            "dropped"
        } else {
            "passed"
        };
        writeln!(out, "{what:<10}  {}: {packets}", reason.name())?;
    }
    Ok(())
}
