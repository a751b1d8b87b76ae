//! What the calling process may do.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

/// Inode of the initial user namespace (PROC_USER_INIT_INO of `include/linux/proc_ns.h`).
const INITIAL_USER_NAMESPACE: u64 = 0xefff_fffd;

/// Capabilities that portfwd may need; the value is the kernel's number (`include/uapi/linux/capability.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Capability {
    /// Links, addresses, hooks, ending sockets.
    NetAdmin = 12,
    /// Naming the processes of other users.
    SysPtrace = 19,
    /// Entering namespaces, mounting bpffs.
    SysAdmin = 21,
    /// Programs that read kernel structures.
    Perfmon = 38,
    /// Maps and programs.
    Bpf = 39,
}

impl Capability {
    /// Each of them.
    pub const ALL: [Self; 5] = [
        Self::Bpf,
        Self::NetAdmin,
        Self::Perfmon,
        Self::SysAdmin,
        Self::SysPtrace,
    ];

    /// As capabilities(7) writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::SysPtrace => "CAP_SYS_PTRACE",
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::Perfmon => "CAP_PERFMON",
            Self::Bpf => "CAP_BPF",
        }
    }
}

/// What is allowed to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Privileges {
    effective: u64,
    initial_user_namespace: bool,
}

impl Privileges {
    /// Reads those of the calling thread.
    ///
    /// # Errors
    /// When `/proc` is not readable.
    pub fn read() -> io::Result<Self> {
        let status = fs::read_to_string("/proc/thread-self/status")?;
        let effective = effective(&status)
            .ok_or_else(|| io::Error::other("/proc/thread-self/status has no CapEff line"))?;
        let namespace = fs::metadata("/proc/thread-self/ns/user")?.ino();
        Ok(Self {
            effective,
            initial_user_namespace: namespace == INITIAL_USER_NAMESPACE,
        })
    }

    /// Whether a capability is effective where portfwd needs it.
    ///
    /// CAP_SYS_ADMIN includes CAP_BPF and CAP_PERFMON (`bpf_capable`, `perfmon_capable` of
    /// `include/linux/capability.h`), and these two count in the initial user namespace only.
    pub fn has(self, capability: Capability) -> bool {
        let bit = |capability: Capability| self.effective >> (capability as u8) & 1 == 1;
        match capability {
            Capability::Bpf | Capability::Perfmon => {
                self.initial_user_namespace && (bit(capability) || bit(Capability::SysAdmin))
            }
            other => bit(other),
        }
    }

    /// Names of those that are needed and not there.
    pub fn missing(self, needed: &[Capability]) -> Vec<&'static str> {
        needed
            .iter()
            .filter(|one| !self.has(**one))
            .map(|one| one.name())
            .collect()
    }
}

fn effective(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str =
        "Name:\tportfwd\nCapInh:\t0000000000000000\nCapEff:\t0000000000201000\nSeccomp:\t0\n";

    #[test]
    fn sys_admin_includes_bpf_and_perfmon_but_not_net_admin() {
        let privileges = Privileges {
            effective: 1 << 21,
            initial_user_namespace: true,
        };
        assert!(privileges.has(Capability::Bpf) && privileges.has(Capability::Perfmon));
        assert_eq!(
            privileges.missing(&[Capability::Bpf, Capability::NetAdmin]),
            ["CAP_NET_ADMIN"]
        );
    }

    #[test]
    fn without_any_capability_all_that_is_needed_is_named() {
        let privileges = Privileges {
            effective: 0,
            initial_user_namespace: true,
        };
        let needed = [Capability::Bpf, Capability::NetAdmin, Capability::Perfmon];
        assert_eq!(
            privileges.missing(&needed),
            ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]
        );
    }

    #[test]
    fn root_of_a_user_namespace_has_no_bpf() {
        let privileges = Privileges {
            effective: u64::MAX,
            initial_user_namespace: false,
        };
        assert_eq!(
            privileges.missing(&[Capability::Bpf, Capability::NetAdmin]),
            ["CAP_BPF"]
        );
    }

    #[test]
    fn the_effective_set_is_read_from_its_line() {
        assert_eq!(effective(STATUS), Some(1 << 21 | 1 << 12));
        assert_eq!(effective("Name:\tx\n"), None);
    }
}
