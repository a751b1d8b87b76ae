//! What is masqueraded.

use std::io::{self, Write};

use serde::Serialize;

use super::table::{Align, Table};
use crate::label::Label;
use crate::subnet::Subnet;

/// A subnet, or an address of a container.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MasqueradeRow {
    /// What packets come from.
    pub subnet: Subnet,
    /// The container whose address it is.
    pub container: Option<Label>,
    /// Flows that live.
    pub flows: u64,
}

/// The table of `masquerade list`, in the order of the rows.
///
/// # Errors
/// As the writer.
pub fn write_masqueraded(out: &mut impl Write, rows: &[MasqueradeRow]) -> io::Result<()> {
    let mut table = Table::new(&[
        ("SUBNET", Align::Left),
        ("CONTAINER", Align::Left),
        ("FLOWS", Align::Right),
    ]);
    for row in rows {
        let container = row.container.as_ref().map_or("-", Label::as_str);
        table.row(vec![
            row.subnet.to_string(),
            container.to_owned(),
            row.flows.to_string(),
        ]);
    }
    table.write(out)
}
