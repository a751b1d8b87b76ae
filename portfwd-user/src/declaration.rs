//! The text of a declared set, of which no more is read than one may be long.

use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::AsFd as _,
        unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    },
    path::Path,
    string::FromUtf8Error,
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    libc,
    poll::{PollFd, PollFlags, ppoll},
    sys::time::{TimeSpec, TimeValLike as _},
};

use crate::error::{Doing, Error, Usage, shown_path};

/// Longest text in MiB: each of as many forwards as there is room for may have the longest SPEC.
const LONGEST: u64 = 4;

/// Seconds that a FIFO may have nobody who writes to it.
const UNWRITTEN: i64 = 5;

/// Why a text is not used.
#[derive(Debug, thiserror::Error)]
pub enum DeclarationError {
    /// It has no end, or it is none that anybody wrote.
    #[error("it is longer than {LONGEST} MiB")]
    TooLong,
    /// A FIFO of which nothing comes.
    #[error("nobody writes to it")]
    Unwritten,
}

impl DeclarationError {
    /// The next step.
    #[must_use]
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::TooLong => "give a file of TOML, with ranges such as 8000-8999:8000-8999",
            Self::Unwritten => "start what writes to the FIFO first, or give a file",
        }
    }
}

/// The name of the file, and what is in it.
///
/// # Errors
/// When it cannot be read, or is no text.
pub fn read(file: &Path) -> Result<(String, String), Error> {
    let (name, shown) = match file == Path::new("-") {
        true => ("standard input".to_owned(), "standard input".to_owned()),
        false => (file.display().to_string(), shown_path(file)),
    };
    let doing = || format!("read {shown}");
    let mut bytes = Vec::new();
    match file == Path::new("-") {
        true => read_on(io::stdin().lock(), &mut bytes).doing(doing)?,
        false => {
            let file = open(file).doing(doing)?;
            if is_unwritten(&file, &mut bytes).doing(doing)? {
                return Err(DeclarationError::Unwritten).doing(doing);
            }
            read_on(&file, &mut bytes).doing(doing)?;
        }
    }
    if bytes.len() as u64 > LONGEST << 20 {
        return Err(DeclarationError::TooLong).doing(doing);
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok((name, text)),
        Err(error) => Err(not_text(name, &error)),
    }
}

fn not_text(file: String, error: &FromUtf8Error) -> Error {
    let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
    let cause = Usage {
        message: "it is not UTF-8".to_owned(),
        hint: None,
    };
    Error::Declared {
        file,
        line: 1 + valid.iter().filter(|byte| **byte == b'\n').count(),
        cause: Box::new(cause.into()),
    }
}

/// Does not wait for who writes to a FIFO, who may never come.
fn open(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    let options = options.read(true).custom_flags(libc::O_NONBLOCK);
    options.open(path)
}

/// Whether it is a FIFO to which nobody writes in time. Afterwards reading waits, after what was read meanwhile.
fn is_unwritten(file: &File, bytes: &mut Vec<u8>) -> io::Result<bool> {
    if file.metadata()?.file_type().is_fifo() && !is_ready(file)? {
        match read_on(file, bytes) {
            Ok(()) if bytes.is_empty() => return Ok(true),
            // Who writes takes the time that it takes.
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            _ => {}
        }
    }
    fcntl(file, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok(false)
}

/// Waits for something to read, or for the end.
fn is_ready(file: &File) -> io::Result<bool> {
    let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
    Ok(ppoll(&mut fds, Some(TimeSpec::seconds(UNWRITTEN)), None)? > 0)
}

/// Reads to the end, or to where it is too long.
fn read_on(source: impl Read, bytes: &mut Vec<u8>) -> io::Result<()> {
    let rest = (LONGEST << 20) + 1 - bytes.len() as u64;
    source.take(rest).read_to_end(bytes).map(|_| ())
}
