//! Processes: whose a socket is.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs;
use std::io;

/// A process, as messages name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number in the caller's PID namespace.
    pub pid: u32,
    /// Its command name, at most 15 bytes (`/proc/PID/comm`).
    pub name: String,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} (pid {})", self.name, self.pid)
    }
}

/// The processes that hold sockets with these inodes, each socket's with the lowest number: of a server
/// that hands its listeners to workers that is the server itself. Reads the descriptors of every process,
/// so it is for messages only.
///
/// A socket whose owner cannot be seen (another PID namespace, no CAP_SYS_PTRACE, the kernel's own) is
/// missing from the result.
///
/// # Errors
/// When `/proc` cannot be read at all.
pub fn owners(inodes: &[u32]) -> io::Result<HashMap<u32, Process>> {
    let mut wanted: HashSet<u32> = inodes.iter().copied().filter(|inode| *inode != 0).collect();
    let mut found = HashMap::new();
    for pid in pids()? {
        if wanted.is_empty() {
            break;
        }
        for inode in sockets_of(pid) {
            if wanted.remove(&inode) {
                let name = name_of(pid).unwrap_or_else(|| "?".to_owned());
                found.insert(inode, Process { pid, name });
            }
        }
    }
    Ok(found)
}

/// The command name of a process; None when there is none of that number.
pub fn name_of(pid: u32) -> Option<String> {
    let comm = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(
        String::from_utf8_lossy(&comm)
            .trim_end_matches('\n')
            .to_owned(),
    )
}

fn pids() -> io::Result<Vec<u32>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        pids.extend(
            entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<u32>().ok()),
        );
    }
    pids.sort_unstable();
    Ok(pids)
}

/// Inodes of the sockets that a process has open. Processes come and go and some may not be looked into,
/// so a process that cannot be read has none.
fn sockets_of(pid: u32) -> impl Iterator<Item = u32> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten();
    descriptors.filter_map(|entry| {
        let target = fs::read_link(entry.path()).ok()?;
        target
            .to_str()?
            .strip_prefix("socket:[")?
            .strip_suffix(']')?
            .parse()
            .ok()
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_socket_is_traced_to_the_process_that_holds_it() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let link = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        let inode: u32 = link
            .to_str()
            .unwrap()
            .trim_start_matches("socket:[")
            .trim_end_matches(']')
            .parse()
            .unwrap();
        let found = owners(&[inode, 0]).unwrap();
        assert_eq!(found[&inode].pid, std::process::id());
        assert_eq!(
            Some(&found[&inode].name),
            name_of(std::process::id()).as_ref()
        );
        assert_eq!(found.len(), 1);
    }
}
