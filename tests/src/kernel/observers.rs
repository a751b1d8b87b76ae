//! Programs of the tests beside those under test, instruction by instruction (RFC 9669).

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::TCX;
use super::call::{Attributes, WORDS, bpf, bpf_command, descriptor, length, make};
use super::map::{map_value, value_size};

/// A program that counts the packets it sees and lets each go on (`TCX_NEXT`), with its counter.
#[derive(Debug)]
pub struct Observer {
    program: OwnedFd,
    counter: OwnedFd,
}

impl Observer {
    /// Loads it.
    ///
    /// # Panics
    /// When the kernel refuses.
    #[must_use]
    pub fn load() -> Self {
        let counter = array_of_one(8);
        let program = classifier(&counting_program(descriptor(&counter)));
        Self { program, counter }
    }

    /// Puts it last on the TCX ingress hook of a device of the calling thread's namespace, until
    /// what is given back is dropped.
    ///
    /// # Panics
    /// When the kernel refuses.
    #[must_use]
    pub fn attach(&self, device: u32) -> OwnedFd {
        at_ingress(&self.program, device)
    }

    /// Pins the program, for `tc filter ... bpf da pinned`.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn pin(&self, path: &Path) {
        let name = CString::new(path.as_os_str().as_bytes()).expect("no zero byte");
        let mut attributes = Attributes([0; WORDS]);
        attributes.put_address(0, name.as_ptr() as u64);
        attributes.put(2, descriptor(&self.program));
        bpf(bpf_command::OBJ_PIN, &mut attributes).expect("pin a program");
    }

    /// How many packets it has seen.
    ///
    /// # Panics
    /// When the map cannot be read.
    #[must_use]
    pub fn packets(&self) -> u64 {
        let (key, mut value) = (0_u32, 0_u64);
        let mut attributes = Attributes([0; WORDS]);
        attributes.put(0, descriptor(&self.counter));
        attributes.put_address(2, &raw const key as u64);
        attributes.put_address(4, &raw mut value as u64);
        bpf(bpf_command::MAP_LOOKUP_ELEM, &mut attributes).expect("read a map");
        value
    }
}

/// `counter[0] += 1; return TCX_NEXT;`
fn counting_program(map: u32) -> [u64; 11] {
    [
        instruction(0x62, 10, 0, -4, 0), // *(u32 *)(r10 - 4) = 0
        instruction(0xbf, 2, 10, 0, 0),  // r2 = r10
        instruction(0x07, 2, 0, 0, -4),  // r2 += -4
        instruction(0x18, 1, 1, 0, map.cast_signed()), // r1 = the map
        0,                               // (second half of the load)
        instruction(0x85, 0, 0, 0, 1),   // r0 = bpf_map_lookup_elem(r1, r2)
        instruction(0x15, 0, 0, 2, 0),   // if r0 == 0 skip two
        instruction(0xb7, 1, 0, 0, 1),   // r1 = 1
        instruction(0xdb, 0, 1, 0, 0),   // lock *(u64 *)(r0 + 0) += r1
        instruction(0xb7, 0, 0, 0, -1),  // r0 = TCX_NEXT
        instruction(0x95, 0, 0, 0, 0),   // return r0
    ]
}

/// How many sums [`Sums`] notes.
const NOTED: i32 = 255;

/// A program that notes of each packet what the device says that its bytes add up to, from the network
/// header on (`CHECKSUM_COMPLETE`), and lets each go on.
#[derive(Debug)]
pub struct Sums {
    program: OwnedFd,
    noted: OwnedFd,
}

impl Sums {
    /// Loads it.
    ///
    /// # Panics
    /// When the kernel refuses.
    #[must_use]
    pub fn load() -> Self {
        let noted = array_of_one(8 * (1 + NOTED.cast_unsigned()));
        let program = classifier(&noting_program(descriptor(&noted)));
        Self { program, noted }
    }

    /// As [`Observer::attach`].
    ///
    /// # Panics
    /// When the kernel refuses.
    #[must_use]
    pub fn attach(&self, device: u32) -> OwnedFd {
        at_ingress(&self.program, device)
    }

    /// The sums of those packets that have one, folded, in the order of bytes in memory.
    ///
    /// # Panics
    /// When the map cannot be read, or has no room for more.
    #[must_use]
    pub fn noted(&self) -> Vec<u16> {
        let mut value = vec![0; value_size(&self.noted)];
        let found = map_value(&self.noted, &0_u32.to_ne_bytes(), &mut value).expect("read a map");
        assert!(found, "an array has all its elements");
        let words: Vec<u64> = value
            .chunks_exact(8)
            .map(|word| u64::from_ne_bytes(word.try_into().expect("eight bytes")))
            .collect();
        let count = usize::try_from(words[0]).expect("a small number");
        assert!(count < words.len() - 1, "more packets than are noted");
        // What is no number of 32 bits is an error: there is no such sum.
        let sums = words[1..=count].iter().map(|sum| u32::try_from(*sum));
        sums.filter_map(|sum| Some(fold(sum.ok()?))).collect()
    }
}

/// The one's complement sum of bytes, as [`Sums`] has them.
#[must_use]
pub fn sum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| [pair[0], *pair.get(1).unwrap_or(&0)];
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_ne_bytes(word(pair))));
    fold(words.sum())
}

fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    u16::try_from((sum & 0xffff) + (sum >> 16)).expect("folded twice")
}

/// ```text
/// if noted.count < NOTED { noted.count += 1; noted.sums[noted.count] = bpf_csum_update(packet, 0); }
/// return TCX_NEXT;
/// ```
fn noting_program(map: u32) -> [u64; 21] {
    [
        instruction(0xbf, 6, 1, 0, 0),                 // r6 = r1, the packet
        instruction(0x62, 10, 0, -4, 0),               // *(u32 *)(r10 - 4) = 0
        instruction(0xbf, 2, 10, 0, 0),                // r2 = r10
        instruction(0x07, 2, 0, 0, -4),                // r2 += -4
        instruction(0x18, 1, 1, 0, map.cast_signed()), // r1 = the map
        0,                                             // (second half of the load)
        instruction(0x85, 0, 0, 0, 1),                 // r0 = bpf_map_lookup_elem(r1, r2)
        instruction(0x15, 0, 0, 11, 0),                // if r0 == 0 skip eleven
        instruction(0xbf, 7, 0, 0, 0),                 // r7 = r0
        instruction(0xbf, 1, 6, 0, 0),                 // r1 = r6
        instruction(0xb7, 2, 0, 0, 0),                 // r2 = 0
        instruction(0x85, 0, 0, 0, 40),                // r0 = bpf_csum_update(r1, r2)
        instruction(0x79, 8, 7, 0, 0),                 // r8 = *(u64 *)(r7 + 0)
        instruction(0x35, 8, 0, 5, NOTED),             // if r8 >= NOTED skip five
        instruction(0x07, 8, 0, 0, 1),                 // r8 += 1
        instruction(0x7b, 7, 8, 0, 0),                 // *(u64 *)(r7 + 0) = r8
        instruction(0x67, 8, 0, 0, 3),                 // r8 <<= 3
        instruction(0x0f, 7, 8, 0, 0),                 // r7 += r8
        instruction(0x7b, 7, 0, 0, 0),                 // *(u64 *)(r7 + 0) = r0
        instruction(0xb7, 0, 0, 0, -1),                // r0 = TCX_NEXT
        instruction(0x95, 0, 0, 0, 0),                 // return r0
    ]
}

/// An instruction as RFC 9669 encodes it.
pub(super) fn instruction(code: u8, target: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    u64::from(code)
        | u64::from(target | source << 4) << 8
        | u64::from(offset.cast_unsigned()) << 16
        | u64::from(immediate.cast_unsigned()) << 32
}

/// A map with a single element of so many bytes.
pub(super) fn array_of_one(size: u32) -> OwnedFd {
    const ARRAY: u32 = 2;
    make(bpf_command::MAP_CREATE, |attributes| {
        for (word, value) in [ARRAY, 4, size, 1].into_iter().enumerate() {
            attributes.put(word, value);
        }
    })
}

pub(super) fn classifier(instructions: &[u64]) -> OwnedFd {
    const SCHED_CLS: u32 = 3;
    let license = c"GPL";
    make(bpf_command::PROG_LOAD, |attributes| {
        attributes.put(0, SCHED_CLS);
        attributes.put(1, length(instructions.len()).expect("a short program"));
        attributes.put_address(2, instructions.as_ptr() as u64);
        attributes.put_address(4, license.as_ptr() as u64);
    })
}

/// Puts a program last on the TCX ingress hook of a device of the calling thread's namespace.
fn at_ingress(program: &OwnedFd, device: u32) -> OwnedFd {
    make(bpf_command::LINK_CREATE, |attributes| {
        attributes.put(0, descriptor(program));
        attributes.put(1, device);
        attributes.put(2, TCX[0]);
    })
}
