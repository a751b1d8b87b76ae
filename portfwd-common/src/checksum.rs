//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624, equation 3).

/// Folds a sum of 16-bit words, or of wider words in the same byte order, to 16 bits with end-around
/// carry.
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum & 0xffff) as u16
}

/// What is added to a one's complement sum when words that sum to `old` become words that sum to `new`.
/// Both as [`fold`] takes them, below 2^39, as of any header. The result fits the kernel's 32-bit
/// `__wsum`.
#[inline(always)]
pub const fn difference(old: u64, new: u64) -> u32 {
    // m' - m of RFC 1624, equation 4, above zero: 2^16 - 1 is the zero of these sums, and so are its multiples.
    let difference = (0xffff << 24) + new - old;
    (difference as u16) as u32 + (difference >> 16) as u16 as u32 + (difference >> 32) as u16 as u32
}

/// The same of one word.
#[inline(always)]
pub const fn word_difference(old: u16, new: u16) -> u32 {
    (!old) as u32 + new as u32
}

/// The checksum field after its data changed by `difference`. Field and difference in the byte order of
/// the packet.
#[inline(always)]
pub const fn update(field: u16, difference: u32) -> u16 {
    !fold((!field) as u64 + difference as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn full(bytes: &[u8]) -> u16 {
        let words = bytes
            .chunks(2)
            .map(|c| u16::from_ne_bytes([c[0], *c.get(1).unwrap_or(&0)]) as u64);
        !fold(words.sum())
    }

    proptest! {
        #[test]
        fn an_update_equals_a_full_computation(
            mut data in proptest::collection::vec(any::<u8>(), 40..1500),
            at in 0usize..16,
            new in any::<[u8; 4]>(),
        ) {
            // All-zero data has two representations of zero; packets never are.
            data[39] |= 1;
            let at = at * 2;
            let before = full(&data);
            let old = u32::from_ne_bytes(data[at..at + 4].try_into().unwrap());
            data[at..at + 4].copy_from_slice(&new);
            let changed = difference(old as u64, u32::from_ne_bytes(new) as u64);
            prop_assert_eq!(update(before, changed), full(&data));
        }

        #[test]
        fn differences_add_up(a in any::<u32>(), b in any::<u32>(), c in any::<u32>(), field in any::<u16>()) {
            let twice = update(update(field, difference(a as u64, b as u64)), difference(b as u64, c as u64));
            let once = update(field, difference(a as u64, c as u64));
            // 0x0000 and 0xffff are the two zeros of one's complement.
            prop_assert!(twice == once || (twice ^ once) == 0xffff);
        }
    }
}
