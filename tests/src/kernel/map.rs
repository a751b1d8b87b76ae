//! What lies in maps.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc;

use super::call::{Attributes, WORDS, bpf, bpf_command, descriptor};

/// All values of an array, `values` being as long as they are together: of a per-CPU array an element has
/// eight bytes for each possible CPU.
///
/// # Errors
/// Those of `BPF_MAP_LOOKUP_BATCH`.
pub fn array_values(map: &OwnedFd, count: u32, values: &mut [u8]) -> io::Result<()> {
    let mut keys = vec![0_u32; count as usize];
    let mut place = 0_u32;
    let mut attributes = Attributes([0; WORDS]);
    attributes.put_address(2, &raw mut place as u64);
    attributes.put_address(4, keys.as_mut_ptr() as u64);
    attributes.put_address(6, values.as_mut_ptr() as u64);
    attributes.put(8, count);
    attributes.put(9, descriptor(map));
    // The end of the array is told by an error.
    found(bpf(bpf_command::MAP_LOOKUP_BATCH, &mut attributes)).map(|_| ())
}

/// The value under `key` in a map, if it is there. `value` has to be as long as the map's, that of a
/// per-CPU map being one element for each possible CPU.
///
/// # Errors
/// Those of `BPF_MAP_LOOKUP_ELEM`.
pub fn map_value(map: &OwnedFd, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let mut attributes = Attributes([0; WORDS]);
    attributes.put(0, descriptor(map));
    attributes.put_address(2, key.as_ptr() as u64);
    attributes.put_address(4, value.as_mut_ptr() as u64);
    found(bpf(bpf_command::MAP_LOOKUP_ELEM, &mut attributes))
}

/// Puts a value under `key` into a map, in place of what is there.
///
/// # Errors
/// Those of `BPF_MAP_UPDATE_ELEM`.
pub fn put_map_value(map: &OwnedFd, key: &[u8], value: &[u8]) -> io::Result<()> {
    let mut attributes = Attributes([0; WORDS]);
    attributes.put(0, descriptor(map));
    attributes.put_address(2, key.as_ptr() as u64);
    attributes.put_address(4, value.as_ptr() as u64);
    bpf(bpf_command::MAP_UPDATE_ELEM, &mut attributes).map(|_| ())
}

/// Removes what is under `key`. Says whether anything was.
///
/// # Errors
/// Those of `BPF_MAP_DELETE_ELEM`.
pub fn remove_map_value(map: &OwnedFd, key: &[u8]) -> io::Result<bool> {
    let mut attributes = Attributes([0; WORDS]);
    attributes.put(0, descriptor(map));
    attributes.put_address(2, key.as_ptr() as u64);
    found(bpf(bpf_command::MAP_DELETE_ELEM, &mut attributes))
}

/// The keys of a hash table, each `size` bytes long. Nobody may change it meanwhile.
///
/// # Errors
/// Those of the system calls.
pub fn keys(map: &OwnedFd, size: usize) -> io::Result<Vec<Vec<u8>>> {
    let mut keys = Vec::new();
    let mut key = next_key(map, None, size)?;
    while let Some(current) = key {
        key = next_key(map, Some(&current), size)?;
        keys.push(current);
    }
    Ok(keys)
}

/// Removes every element of a hash table whose keys are `size` bytes long.
///
/// # Errors
/// Those of the system calls.
pub fn clear_map(map: &OwnedFd, size: usize) -> io::Result<()> {
    let mut key = next_key(map, None, size)?;
    while let Some(current) = key {
        // Asked for first: what follows a key that is gone is the table's beginning.
        key = next_key(map, Some(&current), size)?;
        let mut attributes = Attributes([0; WORDS]);
        attributes.put(0, descriptor(map));
        attributes.put_address(2, current.as_ptr() as u64);
        found(bpf(bpf_command::MAP_DELETE_ELEM, &mut attributes))?;
    }
    Ok(())
}

/// The key after `key`, or the first.
fn next_key(map: &OwnedFd, key: Option<&[u8]>, size: usize) -> io::Result<Option<Vec<u8>>> {
    let mut next = vec![0_u8; size];
    let mut attributes = Attributes([0; WORDS]);
    attributes.put(0, descriptor(map));
    attributes.put_address(2, key.map_or(0, |key| key.as_ptr() as u64));
    attributes.put_address(4, next.as_mut_ptr() as u64);
    Ok(found(bpf(bpf_command::MAP_GET_NEXT_KEY, &mut attributes))?.then_some(next))
}

/// The length of a map's keys.
///
/// # Panics
/// When the descriptor is no map's.
#[must_use]
pub fn key_size(map: &OwnedFd) -> usize {
    told(map, "key_size:")
}

/// The length of a map's values.
///
/// # Panics
/// When the descriptor is no map's.
#[must_use]
pub fn value_size(map: &OwnedFd) -> usize {
    told(map, "value_size:")
}

/// A number that the kernel tells of a map.
fn told(map: &OwnedFd, name: &str) -> usize {
    let path = format!("/proc/self/fdinfo/{}", map.as_raw_fd());
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
        .unwrap_or_else(|| panic!("{path} is not of a map"))
}

/// Whether an element was there.
fn found(result: io::Result<i32>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}
