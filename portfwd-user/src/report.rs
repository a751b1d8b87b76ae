//! What goes to standard output: lines for people, or one JSON document. Pure but for the writer.

mod changes;
mod collected;
mod doctor;
mod explained;
mod flows;
mod forwards;
mod masquerade;
mod status;
mod table;
#[cfg(test)]
mod tests;

use std::io::{self, BufWriter, Write};

use serde::Serialize;

pub use changes::Changes;
pub use collected::{Collected, CollectedContainer, write_collected};
pub use doctor::write_checks;
pub use explained::{Explanation, LastDrop, Outcome, PacketRow};
pub use flows::{FlowRow, write_flows};
pub use forwards::{ForwardRow, Published, answering, sort, write_forwards, write_ports};
pub use masquerade::{MasqueradeRow, write_masqueraded};
pub use status::{Datapath, DeviceRow, ReasonRow, Status, write_status};

use crate::error::{Doing, Error};

/// Runs `write` on standard output, locked and buffered. A reader that has gone away (`| head -1`) has
/// read what it wanted, and is no error.
///
/// # Errors
/// When the output cannot be written for another reason, such as a full disk.
pub fn to_stdout(
    write: impl FnOnce(&mut BufWriter<io::StdoutLock<'static>>) -> io::Result<()>,
) -> Result<(), Error> {
    to_reader(write).map(|_| ())
}

/// The same, and says whether the reader is still there.
///
/// # Errors
/// As [`to_stdout`].
pub fn to_reader(
    write: impl FnOnce(&mut BufWriter<io::StdoutLock<'static>>) -> io::Result<()>,
) -> Result<bool, Error> {
    let mut out = BufWriter::new(io::stdout().lock());
    let written = write(&mut out).and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            // What is still in the buffer would be tried once more when it is dropped.
            let _discarded = out.into_parts();
            Ok(false)
        }
        written => written
            .map(|()| true)
            .doing(|| "write to standard output".to_owned()),
    }
}

/// `document` as indented JSON with an end of line.
///
/// # Errors
/// As the writer.
pub fn write_json(out: &mut impl Write, document: &(impl Serialize + ?Sized)) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, document)?;
    out.write_all(b"\n")
}
