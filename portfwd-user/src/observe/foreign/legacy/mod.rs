//! Rules of ip_tables and ip6_tables, which `iptables-legacy` and `ip6tables-legacy` make.

mod table;

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::region::Families;
use super::walk::taken;
use super::{ForeignError, rules_of, unchanged};
use crate::collision::{Place, Rule};
use table::{ENTRIES_HEADER, INFO_LENGTH, Info, NAME_LENGTH, TABLE, Table};

/// What IPv4 and IPv6 have apart.
#[derive(Clone, Copy, Debug)]
struct Variant {
    families: Families,
    domain: AddressFamily,
    level: libc::c_int,
    program: &'static str,
    /// File of the tables that exist, below `/proc/net`.
    names: &'static str,
    /// What is read, for messages.
    what: &'static str,
}

const VARIANTS: [Variant; 2] = [
    Variant {
        families: Families::V4,
        domain: AddressFamily::Inet,
        level: libc::SOL_IP,
        program: "iptables",
        names: "ip_tables_names",
        what: "the nat table of iptables-legacy",
    },
    Variant {
        families: Families::V6,
        domain: AddressFamily::Inet6,
        level: libc::SOL_IPV6,
        program: "ip6tables",
        names: "ip6_tables_names",
        what: "the nat table of ip6tables-legacy",
    },
];

/// IPT_SO_GET_INFO and IPT_SO_GET_ENTRIES of `include/uapi/linux/netfilter_ipv4/ip_tables.h`; those of IPv6
/// have the same numbers.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// The longest table that is asked for. The kernel says how long one is, and a blob beyond this is no
/// table of rules.
const LONGEST_TABLE: usize = 1 << 30;

/// The rules of both families in the calling thread's namespace.
pub(super) fn rules_here() -> Result<Vec<Rule>, ForeignError> {
    let mut all = Vec::new();
    for variant in VARIANTS {
        if variant.has_table()? {
            all.extend(unchanged(variant.what, || variant.rules())?);
        }
    }
    Ok(all)
}

impl Variant {
    /// Whether the table exists. Asking for it by getsockopt(2) would make it (`xt_request_find_table_lock`).
    fn has_table(self) -> Result<bool, ForeignError> {
        // `/proc/net` is the process's namespace, which need not be the thread's.
        match fs::read_to_string(format!("/proc/thread-self/net/{}", self.names)) {
            Ok(names) => Ok(names.lines().any(|name| name == TABLE)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(self.failed(source)),
        }
    }

    /// None if the table changed while it was read.
    fn rules(self) -> Result<Option<Vec<Rule>>, ForeignError> {
        let socket = self.socket()?;
        let mut info = [0; INFO_LENGTH];
        name_table(&mut info);
        let length = self.ask(&socket, GET_INFO, &mut info)?;
        let info = Info::parse(&info[..length.min(INFO_LENGTH)])
            .map_err(|malformed| malformed.of(self.what))?;
        let Some(entries) = self.entries(&socket, &info)? else {
            return Ok(None);
        };
        let mut table = Table::parse(self.families, &info, &entries)
            .map_err(|malformed| malformed.of(self.what))?;
        let taken = taken(&table.roots, |chain| {
            Ok::<_, ForeignError>(table.chains.remove(chain).unwrap_or_default())
        })?;
        let rules = taken.into_iter().flat_map(|taken| {
            let place = Place::Legacy {
                program: self.program,
                table: TABLE,
                chain: taken.chain,
            };
            let regions = taken.regions.into_iter();
            regions.flat_map(move |region| rules_of(&region, &place))
        });
        Ok(Some(rules.collect()))
    }

    fn socket(self) -> Result<OwnedFd, ForeignError> {
        socket(
            self.domain,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .map_err(|errno| self.failed(errno.into()))
    }

    /// `struct ipt_get_entries`: the table's name, the length of its entries, and the entries. EAGAIN says that
    /// the length is another one by now (`get_entries`).
    fn entries(self, socket: &OwnedFd, info: &Info) -> Result<Option<Vec<u8>>, ForeignError> {
        let size = info.size as usize;
        if size > LONGEST_TABLE {
            let source = io::Error::other(format!("it has {size} bytes"));
            return Err(self.failed(source));
        }
        let mut buffer = vec![0; ENTRIES_HEADER + size];
        name_table(&mut buffer);
        buffer[NAME_LENGTH..NAME_LENGTH + 4].copy_from_slice(&info.size.to_ne_bytes());
        match self.ask(socket, GET_ENTRIES, &mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                Ok(Some(buffer.split_off(ENTRIES_HEADER.min(length))))
            }
            Err(ForeignError::Failed { source, .. })
                if source.raw_os_error() == Some(libc::EAGAIN) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Has the kernel fill the buffer, and returns how much of it.
    fn ask(
        self,
        socket: &OwnedFd,
        option: libc::c_int,
        buffer: &mut [u8],
    ) -> Result<usize, ForeignError> {
        let mut length = libc::socklen_t::try_from(buffer.len())
            .map_err(|error| self.failed(io::Error::other(error)))?;
        // SAFETY: the kernel writes at most `length` bytes to the buffer, which has that many.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                self.level,
                option,
                buffer.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        Errno::result(result).map_err(|errno| self.failed(errno.into()))?;
        Ok(length as usize)
    }

    fn failed(self, source: io::Error) -> ForeignError {
        ForeignError::Failed {
            request: format!("read {}", self.what),
            source,
        }
    }
}

fn name_table(buffer: &mut [u8]) {
    buffer[..TABLE.len()].copy_from_slice(TABLE.as_bytes());
}
