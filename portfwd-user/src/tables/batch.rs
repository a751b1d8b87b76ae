//! Hash tables read, and rid of entries, by thousands a system call: aya makes two for each entry.
//!
//! Of the tables of flows this is what makes the difference, as they hold what the whole host has open. Their types are
//! `BPF_MAP_TYPE_HASH` and `BPF_MAP_TYPE_LRU_HASH`, which [`Hash`] is alone; values of per-CPU tables are laid out in
//! another way.

use std::{io, os::fd::AsFd as _, ptr};

use aya::{
    Pod,
    maps::{IterableMap as _, MapError},
    sys::SyscallError,
};
use aya_obj::generated::bpf_cmd;
use nix::errno::Errno;

use super::Hash;
use crate::bpf::{bpf, descriptor};

#[cfg(test)]
mod tests;

const LOOKUP: (bpf_cmd, &str) = (bpf_cmd::BPF_MAP_LOOKUP_BATCH, "bpf_map_lookup_batch");
const DELETE: (bpf_cmd, &str) = (bpf_cmd::BPF_MAP_DELETE_BATCH, "bpf_map_delete_batch");

/// Entries of a call: of the largest, flows over IPv6, they take 640 KiB.
const AT_ONCE: usize = 4096;

/// What `union bpf_attr` has of these commands.
#[repr(C)]
#[derive(Default)]
struct Request {
    /// Address of the place to go on from; none for the beginning.
    from: u64,
    /// Address of where to write the place after the last entry.
    to: u64,
    keys: u64,
    values: u64,
    /// Room for entries, or how many keys there are; then how many the kernel has read or removed.
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// Every entry of `table`.
///
/// While it changes, an entry may be given twice, or not at all if it was not there all the time. Other than with aya's
/// iterators, nothing begins again because a key has gone: the kernel goes on by the number of a bucket.
pub fn entries<K: Pod, V: Pod>(
    table: &Hash<K, V>,
) -> impl Iterator<Item = Result<(K, V), MapError>> {
    Entries::with_room(table, AT_ONCE)
}

/// Removes what is under `keys`. Returns how many entries that were: an LRU table may have dropped some.
///
/// # Errors
/// When the kernel refuses; what was removed until then is.
pub fn remove<K: Pod, V: Pod>(table: &mut Hash<K, V>, mut keys: &[K]) -> Result<usize, MapError> {
    let mut removed = 0;
    while !keys.is_empty() {
        let mut request = Request {
            keys: keys.as_ptr() as u64,
            count: keys.len().min(AT_ONCE) as u32,
            ..Request::of(table)
        };
        // SAFETY: as many keys as are said lie there, and they are as long as the table's, which aya has compared.
        let done = unsafe { bpf(DELETE.0, &mut request) };
        let gone = match done {
            Ok(_) => 0,
            // The kernel stops at the first that is not there (`generic_map_delete_batch`).
            Err(Errno::ENOENT) => 1,
            Err(errno) => return Err(failed(DELETE.1, errno)),
        };
        removed += request.count as usize;
        keys = keys
            .get(request.count as usize + gone..)
            .unwrap_or_default();
    }
    Ok(removed)
}

struct Entries<'t, K, V> {
    table: &'t Hash<K, V>,
    /// Those of the last call.
    keys: Vec<K>,
    values: Vec<V>,
    /// How many of them were given.
    given: usize,
    /// For how many a call has room.
    room: usize,
    /// The bucket to go on from, once there was a call.
    place: Option<u32>,
    is_last: bool,
}

impl<'t, K: Pod, V: Pod> Entries<'t, K, V> {
    fn with_room(table: &'t Hash<K, V>, room: usize) -> Self {
        Self {
            table,
            keys: Vec::new(),
            values: Vec::new(),
            given: 0,
            room,
            place: None,
            is_last: false,
        }
    }

    fn read(&mut self) -> Result<(), MapError> {
        self.keys.clear();
        self.values.clear();
        self.given = 0;
        let mut next = 0_u32;
        let count = loop {
            self.keys.reserve(self.room);
            self.values.reserve(self.room);
            let mut request = Request {
                from: self
                    .place
                    .as_ref()
                    .map_or(0, |place| ptr::from_ref(place) as u64),
                to: (&raw mut next) as u64,
                keys: self.keys.as_mut_ptr() as u64,
                values: self.values.as_mut_ptr() as u64,
                count: self.room as u32,
                ..Request::of(self.table)
            };
            // SAFETY: there is room for as many keys and values as are said, as long as the table's, which aya has
            // compared; the places are a hash table's, of 4 bytes.
            match unsafe { bpf(LOOKUP.0, &mut request) } {
                Ok(_) => break request.count,
                // The end, with the last entries (`__htab_map_lookup_and_delete_batch`).
                Err(Errno::ENOENT) => {
                    self.is_last = true;
                    break request.count;
                }
                // A bucket is read as a whole, and the first one has more entries.
                Err(Errno::ENOSPC) => self.room *= 2,
                Err(errno) => return Err(failed(LOOKUP.1, errno)),
            }
        };
        self.place = Some(next);
        // SAFETY: the kernel has written so many of both, which had room; as with aya, any
        // bytes of the kernel's make a `Pod`.
        unsafe {
            self.keys.set_len(count as usize);
            self.values.set_len(count as usize);
        }
        Ok(())
    }
}

impl<K: Pod, V: Pod> Iterator for Entries<'_, K, V> {
    type Item = Result<(K, V), MapError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.given == self.keys.len() {
            if self.is_last {
                return None;
            }
            if let Err(error) = self.read() {
                self.is_last = true;
                return Some(Err(error));
            }
        }
        let entry = (self.keys[self.given], self.values[self.given]);
        self.given += 1;
        Some(Ok(entry))
    }
}

impl Request {
    fn of<K: Pod, V: Pod>(table: &Hash<K, V>) -> Self {
        Self {
            map: descriptor(&table.map().fd().as_fd()),
            ..Self::default()
        }
    }
}

fn failed(call: &'static str, errno: Errno) -> MapError {
    let io_error = io::Error::from(errno);
    SyscallError { call, io_error }.into()
}
