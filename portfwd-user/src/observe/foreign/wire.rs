//! Bytes from the kernel, read with every offset checked.

use std::borrow::Cow;
use std::ops::Range;

use super::ForeignError;

/// What is wrong with bytes that the kernel gave.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Malformed {
    /// They end before what should be there.
    #[error("{0} is cut short")]
    Short(&'static str),
    /// A number in them cannot be.
    #[error("{0} is {1}, which cannot be")]
    Number(&'static str, u64),
}

impl Malformed {
    /// As the reason why `what` cannot be read.
    pub(super) fn of(self, what: impl Into<String>) -> ForeignError {
        ForeignError::Malformed {
            what: what.into(),
            detail: self,
        }
    }
}

/// The bytes of a range.
pub(super) fn bytes<'a>(
    from: &'a [u8],
    range: Range<usize>,
    name: &'static str,
) -> Result<&'a [u8], Malformed> {
    from.get(range).ok_or(Malformed::Short(name))
}

/// `N` bytes from `at` on.
pub(super) fn array<const N: usize>(
    from: &[u8],
    at: usize,
    name: &'static str,
) -> Result<[u8; N], Malformed> {
    from.get(at..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .ok_or(Malformed::Short(name))
}

/// A number of 16 bits in host order.
pub(super) fn host_u16(from: &[u8], at: usize, name: &'static str) -> Result<u16, Malformed> {
    array(from, at, name).map(u16::from_ne_bytes)
}

/// A number of 32 bits in host order.
pub(super) fn host_u32(from: &[u8], at: usize, name: &'static str) -> Result<u32, Malformed> {
    array(from, at, name).map(u32::from_ne_bytes)
}

/// Up to 16 bytes as a number in network order; None if there are more.
pub(super) fn big_endian(from: &[u8]) -> Option<u128> {
    let mut wide = [0; 16];
    let start = wide.len().checked_sub(from.len())?;
    wide[start..].copy_from_slice(from);
    Some(u128::from_be_bytes(wide))
}

/// A name as the kernel writes it: up to the first NUL, if there is one.
pub(super) fn name(from: &[u8]) -> Cow<'_, str> {
    let end = from.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&from[..end.unwrap_or(from.len())])
}
