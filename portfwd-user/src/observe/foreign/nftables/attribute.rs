//! Netlink attributes of nf_tables. Their numbers are in network byte order.

use super::super::wire::{Malformed, array, bytes, host_u16};

/// `struct nlattr`: length with this header, type.
const HEADER: usize = 4;
/// NLA_F_NESTED and NLA_F_NET_BYTEORDER, which share the field of the type.
const FLAGS: u16 = 0xc000;

/// The attributes in `rest`, each as its type and its value, up to the first that is not right.
pub(super) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = Result<(u16, &[u8]), Malformed>> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let attribute = first(rest);
        rest = match &attribute {
            Ok((_, value)) => {
                let length = HEADER + value.len();
                rest.get(length.next_multiple_of(4)..).unwrap_or_default()
            }
            Err(_) => &[],
        };
        Some(attribute)
    })
}

fn first(rest: &[u8]) -> Result<(u16, &[u8]), Malformed> {
    const NAME: &str = "an attribute";
    let length = host_u16(rest, 0, NAME)?;
    let kind = host_u16(rest, 2, NAME)? & !FLAGS;
    Ok((kind, bytes(rest, HEADER..length.into(), NAME)?))
}

/// The values of the attributes of some types.
pub(super) fn pick<const N: usize>(
    bytes: &[u8],
    kinds: [u16; N],
) -> Result<[Option<&[u8]>; N], Malformed> {
    let mut values = [None; N];
    for attribute in attributes(bytes) {
        let (kind, value) = attribute?;
        if let Some(place) = kinds.iter().position(|wanted| *wanted == kind) {
            values[place] = Some(value);
        }
    }
    Ok(values)
}

/// The number in an attribute, if it is there.
pub(super) fn number(value: Option<&[u8]>) -> Result<Option<u32>, Malformed> {
    let read = |bytes| array(bytes, 0, "a number").map(u32::from_be_bytes);
    value.map(read).transpose()
}

/// The number in an attribute that must be there.
pub(super) fn needed(value: Option<&[u8]>, name: &'static str) -> Result<u32, Malformed> {
    number(value)?.ok_or(Malformed::Short(name))
}
