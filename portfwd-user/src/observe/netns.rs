//! Network namespaces: found by path or process, told apart, and entered by a thread of their own.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::stat::fstat;
use nix::sys::statfs::{FsType, fstatfs};

use crate::error::Missing;

/// Superblock magic of the file system that namespace files live on (`include/uapi/linux/magic.h`).
const NSFS_MAGIC: u32 = 0x6e73_6673;
/// `SO_NETNS_COOKIE` of `include/uapi/asm-generic/socket.h`, since Linux 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// Why a namespace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// Nothing is there. At a path there may be something, but no network namespace: often the empty file that
    /// `ip netns` leaves when its mount is gone. A process may have exited and only wait for its parent.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// The file cannot be opened.
    #[error("cannot open network namespace {name}: {source}")]
    Open {
        /// Path or process.
        name: Origin,
        /// The reason the kernel gives.
        source: io::Error,
    },
    /// setns(2) failed; EPERM means that CAP_SYS_ADMIN is missing.
    #[error("cannot enter network namespace {name}: {source}")]
    Enter {
        /// Path or process.
        name: Origin,
        /// The reason the kernel gives.
        source: io::Error,
    },
    /// No thread could be started to enter the namespace with.
    #[error("cannot start a thread for network namespace {name}: {source}")]
    Thread {
        /// Path or process.
        name: Origin,
        /// The reason the kernel gives.
        source: io::Error,
    },
    /// The kernel does not tell the namespace's cookie (it does since 5.14).
    #[error("cannot read the cookie of network namespace {name}: {source}")]
    Cookie {
        /// Path or process.
        name: Origin,
        /// The reason the kernel gives.
        source: io::Error,
    },
}

/// How a namespace was named; messages repeat it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The caller's own.
    Current,
    /// A file, as `ip netns` and container runtimes bind-mount it.
    Path(PathBuf),
    /// The namespace of a process.
    Process(u32),
}

impl Origin {
    fn path(&self) -> PathBuf {
        match self {
            Self::Current => PathBuf::from("/proc/thread-self/ns/net"),
            Self::Path(path) => path.clone(),
            Self::Process(pid) => PathBuf::from(format!("/proc/{pid}/ns/net")),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Current => f.write_str("of the caller"),
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Process(pid) => write!(f, "of process {pid}"),
        }
    }
}

/// What makes two files the same namespace, as namespaces(7) defines it. Reused by the kernel once a
/// namespace is gone, so it identifies one only while something holds it open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NetnsId {
    /// `st_dev` of the namespace's file.
    pub device: u64,
    /// `st_ino` of the namespace's file, the number in `net:[4026531840]`.
    pub inode: u64,
}

/// An open network namespace. While it is held, the namespace lives.
#[derive(Debug)]
pub struct Netns {
    file: File,
    id: NetnsId,
    origin: Origin,
}

impl Netns {
    /// The namespace of the calling thread.
    pub fn current() -> Result<Self, NetnsError> {
        Self::open_origin(Origin::Current)
    }

    /// The namespace that is bind-mounted at a path.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        Self::open_origin(Origin::Path(path.to_owned()))
    }

    /// The namespace of a process.
    pub fn of_process(pid: u32) -> Result<Self, NetnsError> {
        Self::open_origin(Origin::Process(pid))
    }

    fn open_origin(origin: Origin) -> Result<Self, NetnsError> {
        let path = origin.path();
        // A path from the command line may name anything: O_NONBLOCK keeps a FIFO from blocking us.
        let opened = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(&path);
        let file = match opened {
            Ok(file) => file,
            Err(source) => return Err(open_error(origin, source)),
        };
        let failed = |errno: Errno| NetnsError::Open {
            name: origin.clone(),
            source: errno.into(),
        };
        if !is_netns(&file).map_err(failed)? {
            return Err(Missing::NotNamespace(path).into());
        }
        let id = identity(&file).map_err(failed)?;
        Ok(Self { file, id, origin })
    }

    /// How it was named when it was opened.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Device and inode.
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// Whether both are the same namespace, whatever they were opened by.
    pub fn is_same(&self, other: &Self) -> bool {
        self.id == other.id
    }

    /// The number by which BPF programs know the namespace (`bpf_get_netns_cookie`): never reused until
    /// the next boot.
    pub fn cookie(&self) -> Result<u64, NetnsError> {
        self.run_in(current_cookie)?
            .map_err(|errno| NetnsError::Cookie {
                name: self.origin.clone(),
                source: errno.into(),
            })
    }

    /// Runs `work` in a new thread that is in this namespace, and waits for it. The calling thread never
    /// changes its namespace. A panic in `work` goes on in the caller.
    ///
    /// # Errors
    /// When no thread can be started, or it may not enter (CAP_SYS_ADMIN). The namespace that the caller
    /// is in already needs no privilege.
    pub fn run_in<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        let in_thread = || {
            self.enter()?;
            Ok(work())
        };
        thread::scope(|scope| {
            let spawned = thread::Builder::new()
                .name("netns".into())
                .spawn_scoped(scope, in_thread);
            let thread = spawned.map_err(|source| NetnsError::Thread {
                name: self.origin.clone(),
                source,
            })?;
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread here, unless it is here.
    fn enter(&self) -> Result<(), NetnsError> {
        let already = File::open(Origin::Current.path())
            .ok()
            .and_then(|file| identity(&file).ok())
            .is_some_and(|id| id == self.id);
        if already {
            return Ok(());
        }
        setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|errno| NetnsError::Enter {
            name: self.origin.clone(),
            source: errno.into(),
        })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Whether a namespace still lives: whether a process is in it, or it is mounted somewhere in sight.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn lives(id: NetnsId, cookie: u64) -> io::Result<bool> {
    let of_processes = fs::read_dir("/proc")?
        .filter_map(Result::ok)
        .map(|entry| entry.path().join("ns/net"));
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    // Mount point and root of proc_pid_mountinfo(5).
    let name = format!("net:[{}]", id.inode);
    let mounted = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(3);
        (fields.next()? == name).then(|| fields.next().map(PathBuf::from))?
    });
    let same = |path: &PathBuf| {
        // What has gone meanwhile, or is no namespace, is not the one.
        let found = Netns::open(path).ok().filter(|netns| netns.id() == id);
        found.is_some_and(|netns| netns.cookie().is_ok_and(|found| found == cookie))
    };
    Ok(of_processes.chain(mounted).any(|path| same(&path)))
}

/// The cookie of the calling thread's namespace: for code that runs inside [`Netns::run_in`] already.
pub fn current_cookie() -> nix::Result<u64> {
    let any = socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let mut cookie = 0u64;
    let mut length = size_of_val(&cookie) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `cookie`, which is a plain number of that size.
    let result = unsafe {
        libc::getsockopt(
            any.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    Errno::result(result).map(|_| cookie)
}

fn open_error(origin: Origin, source: io::Error) -> NetnsError {
    let gone = matches!(
        source.raw_os_error(),
        Some(libc::ENOENT | libc::ENOTDIR | libc::ESRCH)
    );
    match origin {
        Origin::Path(path) if gone => Missing::Namespace(path).into(),
        Origin::Process(pid) if gone => Missing::Process(pid).into(),
        name => NetnsError::Open { name, source },
    }
}

/// The file system is asked first: the ioctl's number may mean something else to another kind of file.
fn is_netns(file: &File) -> nix::Result<bool> {
    if fstatfs(file)?.filesystem_type() != FsType(NSFS_MAGIC.into()) {
        return Ok(false);
    }
    // SAFETY: NS_GET_NSTYPE takes no argument and only returns a number (ioctl_nsfs(2)).
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), libc::NS_GET_NSTYPE) };
    Errno::result(kind).map(|kind| kind == libc::CLONE_NEWNET)
}

fn identity(file: &File) -> nix::Result<NetnsId> {
    let stat = fstat(file)?;
    Ok(NetnsId {
        device: stat.st_dev,
        inode: stat.st_ino,
    })
}
