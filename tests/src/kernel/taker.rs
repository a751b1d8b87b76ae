//! A program that gives an entry of an LRU table to others, faster than system calls do.

use std::io;
use std::os::fd::OwnedFd;

use super::call::{Attributes, WORDS, bpf, bpf_command, descriptor, length};
use super::map::{put_map_value, value_size};
use super::observers::{array_of_one, classifier, instruction};

/// Puts an entry into a table and takes it out again, and at once puts another one where it was, which stays: over
/// and over.
#[derive(Debug)]
pub struct Taker {
    program: OwnedFd,
    entries: OwnedFd,
}

impl Taker {
    /// How many entries there have to be beside the one that is taken: so many rounds pass before that gets an old
    /// place again, and what looks at it twice in two of its lives would not see that there are others between.
    pub const OTHERS: u16 = 64;
    /// Rounds of a call.
    const ROUNDS: u32 = 1_000;

    /// Loads it for `table`, whose keys and values have these lengths, in bytes.
    ///
    /// # Panics
    /// When the kernel refuses.
    #[must_use]
    pub fn load(table: &OwnedFd, lengths: [usize; 2]) -> Self {
        let lengths = lengths.map(|length| length.next_multiple_of(8));
        let size = HEAD.cast_unsigned() as usize
            + lengths.iter().sum::<usize>() * (usize::from(Self::OTHERS) + 1);
        let entries = array_of_one(u32::try_from(size).expect("short entries"));
        let program = classifier(&taking_program(table, &entries, lengths));
        Self { program, entries }
    }

    /// Plays some rounds with these entries, keys with their values, each filled up to whole words: the one that is
    /// taken, and then the others.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn play(&self, entries: &[u8]) -> io::Result<()> {
        let mut value = vec![0; HEAD.cast_unsigned() as usize];
        value.extend_from_slice(entries);
        assert_eq!(value.len(), value_size(&self.entries));
        put_map_value(&self.entries, &0_u32.to_ne_bytes(), &value)?;
        let frame = [0_u8; 64];
        let mut attributes = Attributes([0; WORDS]);
        attributes.put(0, descriptor(&self.program));
        attributes.put(2, length(frame.len())?);
        attributes.put_address(4, frame.as_ptr() as u64);
        attributes.put(8, Self::ROUNDS);
        bpf(bpf_command::PROG_TEST_RUN, &mut attributes).map(|_| ())
    }
}

/// Bytes before the entries: the number of rounds.
const HEAD: i32 = 8;
/// How often the clock is read while the entry is there.
const DWELL: usize = 8;

/// ```text
/// own, others[] = entries
/// bpf_map_update_elem(table, own.key, own.value, 0);
/// bpf_ktime_get_ns(), some times;
/// bpf_map_delete_elem(table, own.key);
/// other = others[rounds++ % OTHERS];
/// bpf_map_update_elem(table, other.key, other.value, 0);
/// bpf_map_delete_elem(table, others[rounds % OTHERS].key);
/// return TCX_NEXT;
/// ```
fn taking_program(table: &OwnedFd, entries: &OwnedFd, lengths: [usize; 2]) -> Vec<u64> {
    let [key, value] = lengths.map(|length| i32::try_from(length).expect("a short one"));
    let [table, entries] = [table, entries].map(|map| descriptor(map).cast_signed());
    let mask = i32::from(Taker::OTHERS) - 1;
    let update = |entry: u8| {
        [
            instruction(0x18, 1, 1, 0, table), // r1 = table
            0,                                 // (second half of the load)
            instruction(0xbf, 2, entry, 0, 0), // r2 = entry
            instruction(0xbf, 3, entry, 0, 0), // r3 = entry
            instruction(0x07, 3, 0, 0, key),   // r3 += key
            instruction(0xb7, 4, 0, 0, 0),     // r4 = 0
            instruction(0x85, 0, 0, 0, 2),     // bpf_map_update_elem(r1, r2, r3, r4)
        ]
    };
    let delete = |entry: u8| {
        [
            instruction(0x18, 1, 1, 0, table), // r1 = table
            0,                                 // (second half of the load)
            instruction(0xbf, 2, entry, 0, 0), // r2 = entry
            instruction(0x85, 0, 0, 0, 3),     // bpf_map_delete_elem(r1, r2)
        ]
    };
    // r9 = &others[r8 % OTHERS]
    let other = [
        instruction(0xbf, 9, 8, 0, 0),           // r9 = r8
        instruction(0x57, 9, 0, 0, mask),        // r9 &= OTHERS - 1
        instruction(0x27, 9, 0, 0, key + value), // r9 *= key + value
        instruction(0x0f, 9, 6, 0, 0),           // r9 += r6
        instruction(0x07, 9, 0, 0, key + value), // r9 += key + value
    ];
    let mut program = vec![
        instruction(0x62, 10, 0, -4, 0),     // *(u32 *)(r10 - 4) = 0
        instruction(0xbf, 2, 10, 0, 0),      // r2 = r10
        instruction(0x07, 2, 0, 0, -4),      // r2 += -4
        instruction(0x18, 1, 1, 0, entries), // r1 = entries
        0,                                   // (second half of the load)
        instruction(0x85, 0, 0, 0, 1),       // r0 = bpf_map_lookup_elem(r1, r2)
        instruction(0x55, 0, 0, 2, 0),       // if r0 != 0 skip two
        instruction(0xb7, 0, 0, 0, -1),      // r0 = TCX_NEXT
        instruction(0x95, 0, 0, 0, 0),       // return r0
        instruction(0x79, 8, 0, 0, 0),       // r8 = *(u64 *)(r0 + 0)
        instruction(0xb7, 1, 0, 0, 1),       // r1 = 1
        instruction(0x0f, 1, 8, 0, 0),       // r1 += r8
        instruction(0x7b, 0, 1, 0, 0),       // *(u64 *)(r0 + 0) = r1
        instruction(0xbf, 6, 0, 0, 0),       // r6 = r0
        instruction(0x07, 6, 0, 0, HEAD),    // r6 += HEAD
    ];
    program.extend(update(6));
    program.extend([instruction(0x85, 0, 0, 0, 5); DWELL]); // r0 = bpf_ktime_get_ns()
    // Looked for before: there is nothing between the two that takes time.
    program.extend(other);
    program.extend(delete(6));
    program.extend(update(9));
    program.push(instruction(0x07, 8, 0, 0, 1)); // r8 += 1
    program.extend(other);
    program.extend(delete(9));
    program.extend([
        instruction(0xb7, 0, 0, 0, -1), // r0 = TCX_NEXT
        instruction(0x95, 0, 0, 0, 0),  // return r0
    ]);
    program
}
