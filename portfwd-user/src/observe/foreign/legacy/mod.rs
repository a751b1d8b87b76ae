//! Rules of ip_tables and ip6_tables, which `iptables-legacy` and `ip6tables-legacy` make.

mod table;

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::firewall::FirewallChain;
use super::region::Families;
use super::sought::Sought;
use super::walk::taken;
use super::{ForeignError, rules_of, unchanged};
use crate::collision::{Place, Rule};
use table::{ENTRIES_HEADER, INFO_LENGTH, Info, NAME_LENGTH, Table};

/// What IPv4 and IPv6 have apart.
#[derive(Clone, Copy, Debug)]
struct Variant {
    families: Families,
    domain: AddressFamily,
    level: libc::c_int,
    program: &'static str,
    /// File of the tables that exist, below `/proc/net`.
    names: &'static str,
}

const VARIANTS: [Variant; 2] = [
    Variant {
        families: Families::V4,
        domain: AddressFamily::Inet,
        level: libc::SOL_IP,
        program: "iptables",
        names: "ip_tables_names",
    },
    Variant {
        families: Families::V6,
        domain: AddressFamily::Inet6,
        level: libc::SOL_IPV6,
        program: "ip6tables",
        names: "ip6_tables_names",
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
    here(Sought::Destinations, Source::rules)
}

/// The chains that may deny packets, of both families.
pub(super) fn firewall_here() -> Result<Vec<FirewallChain>, ForeignError> {
    here(Sought::Denials, Source::firewall)
}

/// What is found in a table.
type InTable<T> = fn(Source, Table) -> Result<Vec<T>, ForeignError>;

fn here<T>(sought: Sought, in_table: InTable<T>) -> Result<Vec<T>, ForeignError> {
    let mut all = Vec::new();
    for variant in VARIANTS {
        let names = variant.names()?;
        let exists = |table: &&&str| names.lines().any(|name| name == **table);
        for table in tables(sought).iter().filter(exists) {
            let source = Source { variant, table };
            let read = || {
                let table = source.read(sought)?;
                table.map(|table| in_table(source, table)).transpose()
            };
            all.extend(unchanged(&source.what(), read)?);
        }
    }
    Ok(all)
}

/// The tables with such rules.
const fn tables(sought: Sought) -> &'static [&'static str] {
    match sought {
        Sought::Destinations => &["nat"],
        Sought::Denials => &["raw", "mangle", "filter", "security"],
    }
}

impl Variant {
    /// The tables that exist. Asking for one by getsockopt(2) would make it (`xt_request_find_table_lock`).
    fn names(self) -> Result<String, ForeignError> {
        // `/proc/net` is the process's namespace, which need not be the thread's.
        match fs::read_to_string(format!("/proc/thread-self/net/{}", self.names)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            read => read.map_err(|source| ForeignError::Failed {
                request: format!("read the tables of {}-legacy", self.program),
                source,
            }),
        }
    }
}

/// A table of one family.
#[derive(Clone, Copy, Debug)]
struct Source {
    variant: Variant,
    table: &'static str,
}

impl Source {
    /// What is read, for messages.
    fn what(self) -> String {
        format!(
            "the {} table of {}-legacy",
            self.table, self.variant.program
        )
    }

    fn place(self, chain: String) -> Place {
        Place::Legacy {
            program: self.variant.program,
            table: self.table,
            chain,
        }
    }

    fn rules(self, mut table: Table) -> Result<Vec<Rule>, ForeignError> {
        let roots = table.roots.iter().map(|root| root.chain.as_str());
        let taken = taken(roots, |chain| {
            Ok::<_, ForeignError>(table.chains.remove(chain).unwrap_or_default())
        })?;
        let rules = taken.into_iter().flat_map(|taken| {
            let place = self.place(taken.chain);
            let regions = taken.regions.into_iter();
            regions.flat_map(move |region| rules_of(&region, &place))
        });
        Ok(rules.collect())
    }

    fn firewall(self, table: Table) -> Result<Vec<FirewallChain>, ForeignError> {
        let mut all = Vec::new();
        for root in &table.roots {
            let taken = taken([root.chain.as_str()], |chain| {
                Ok::<_, ForeignError>(table.chains.get(chain).cloned().unwrap_or_default())
            })?;
            let place = self.place(root.chain.clone());
            all.extend(FirewallChain::of(
                root,
                place,
                self.variant.families,
                &taken,
            ));
        }
        Ok(all)
    }

    /// None if the table changed while it was read.
    fn read(self, sought: Sought) -> Result<Option<Table>, ForeignError> {
        let socket = self.socket()?;
        let mut info = [0; INFO_LENGTH];
        name_table(self.table, &mut info);
        let length = self.ask(&socket, GET_INFO, &mut info)?;
        let info = Info::parse(sought, &info[..length.min(INFO_LENGTH)])
            .map_err(|malformed| malformed.of(self.what()))?;
        let Some(entries) = self.entries(&socket, &info)? else {
            return Ok(None);
        };
        let table = Table::parse(sought, self.variant.families, &info, &entries);
        let table = table.map_err(|malformed| malformed.of(self.what()))?;
        Ok(Some(table))
    }

    fn socket(self) -> Result<OwnedFd, ForeignError> {
        socket(
            self.variant.domain,
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
        name_table(self.table, &mut buffer);
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
                self.variant.level,
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
            request: format!("read {}", self.what()),
            source,
        }
    }
}

fn name_table(table: &str, buffer: &mut [u8]) {
    buffer[..table.len()].copy_from_slice(table.as_bytes());
}
