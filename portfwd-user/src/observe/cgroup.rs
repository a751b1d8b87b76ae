//! The cgroup v2 hierarchy, on whose root the socket programs are attached.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// The root directory's inode number, which is also its ID: kernfs gives its root the ID 1 (`kernfs_create_root`).
pub const ROOT_INODE: u64 = 1;

/// The best mount of the cgroup v2 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// Where it is mounted.
    pub path: PathBuf,
    /// Whether that is the hierarchy's root. If not (a cgroup namespace, or a bind mount of a part), the
    /// programs see the processes below it only.
    pub is_root: bool,
}

/// Finds the mount of the hierarchy's root, or else of a part of it; None when there is no cgroup v2
/// mount.
///
/// # Errors
/// When `/proc/self/mountinfo` cannot be read.
pub fn find() -> io::Result<Option<Cgroup>> {
    let mountinfo = fs::read("/proc/self/mountinfo")?;
    let mut best: Option<Cgroup> = None;
    for path in mounts(&mountinfo) {
        // A mount that is hidden by another, or out of reach, is not a candidate.
        let Ok(metadata) = fs::metadata(&path) else {
            continue;
        };
        let is_root = metadata.ino() == ROOT_INODE && path.join("cgroup.controllers").exists();
        if is_root {
            return Ok(Some(Cgroup { path, is_root }));
        }
        best.get_or_insert(Cgroup { path, is_root });
    }
    Ok(best)
}

/// Mount points of file systems of type cgroup2, in the format of proc_pid_mountinfo(5).
pub fn mounts(mountinfo: &[u8]) -> impl Iterator<Item = PathBuf> {
    mountinfo.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let mount_point = fields.nth(4)?;
        // A variable number of optional fields ends with a lone hyphen; the type follows.
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        (kind == b"cgroup2").then(|| PathBuf::from(OsString::from_vec(unescape(mount_point))))
    })
}

/// Space, tab, newline and backslash stand as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        let octal = |digits: &[u8]| {
            let text = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(text, 8).ok()
        };
        match (first, after.get(..3).and_then(octal)) {
            (b'\\', Some(byte)) => {
                plain.push(byte);
                rest = &after[3..];
            }
            _ => {
                plain.push(*first);
                rest = after;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_the_second_version_are_told_from_those_of_the_first() {
        let text = b"24 1 0:22 / /sys rw - sysfs sysfs rw\n\
            30 24 0:26 / /sys/fs/cgroup/cpu rw,nosuid shared:9 - cgroup cgroup rw,cpu\n\
            31 24 0:27 / /sys/fs/cgroup/unified rw shared:10 master:3 - cgroup2 cgroup2 rw\n\
            32 24 0:27 /part /mnt/a\\040b rw - cgroup2 cgroup2 rw\n";
        let found: Vec<PathBuf> = mounts(text).collect();
        assert_eq!(
            found,
            [
                PathBuf::from("/sys/fs/cgroup/unified"),
                PathBuf::from("/mnt/a b")
            ]
        );
    }

    #[test]
    fn lines_that_are_cut_short_are_passed_over() {
        assert_eq!(mounts(b"31 24 0:27 / /x rw -\n31 24\n\n").count(), 0);
    }
}
