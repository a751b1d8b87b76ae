//! Debian packages.

use std::{collections::HashSet, path::Path, process::Command, thread, time::Duration};

use anyhow::{bail, ensure};
use nix::unistd::Uid;

use super::Extras;
use crate::process;

/// To build the linker of the eBPF programs, and LLVM's tools.
const BUILD: &[&str] = &[
    "g++",
    "llvm-22",
    "llvm-22-dev",
    "libzstd-dev",
    "zlib1g-dev",
    "libxml2-dev",
];

/// What tests and demo run beside portfwd: servers and clients, captures, other tools' rules.
const RUN: &[&str] = &[
    "bind9-dnsutils",
    "bpftool",
    "curl",
    "dnsmasq-base",
    "dropbear-bin",
    "ethtool",
    "iperf3",
    "iproute2",
    "iptables",
    "iputils-ping",
    "mtr-tiny",
    "netcat-openbsd",
    "nftables",
    "nginx",
    "openssh-client",
    "procps",
    "python3-minimal",
    "python3-pyftpdlib",
    "socat",
    "tcpdump",
    "traceroute",
    "util-linux",
];

/// What the programs are linked with that are taken out of packages (`tools.rs`).
const LIBRARIES: &[&str] = &["libdevmapper1.02.1", "libseccomp2"];

/// To fetch the database of advisories.
const CHECK: &[&str] = &["git", "ca-certificates"];

/// To run virtual machines, and to make what they boot from.
const MACHINES: &[&str] = &[
    "busybox-static",
    "cpio",
    "qemu-system-x86",
    "wireguard-tools",
    "xz-utils",
];

/// Waits for dpkg's lock, and downloads as root rather than warn that another user cannot write here.
const OPTIONS: [&str; 4] = [
    "-o",
    "DPkg::Lock::Timeout=600",
    "-o",
    "APT::Sandbox::User=root",
];

/// How often another one's lock on the package lists is waited for, five seconds each time.
const ATTEMPTS: u32 = 60;

/// The packages that are needed and not installed.
pub(super) fn missing(extras: Extras) -> anyhow::Result<Vec<&'static str>> {
    let checks = if extras.check { CHECK } else { &[] };
    let machines = if extras.machines { MACHINES } else { &[] };
    let wanted: Vec<&str> = [BUILD, RUN, LIBRARIES, checks, machines].concat();
    let installed = installed(&wanted)?;
    Ok(wanted
        .into_iter()
        .filter(|name| !installed.contains(*name))
        .collect())
}

/// Those of `names` that are installed.
fn installed(names: &[&str]) -> anyhow::Result<HashSet<String>> {
    // It ends with 1 if it does not know one of the names, and still answers for the others.
    let output = Command::new("dpkg-query")
        .args([
            "--show",
            "--showformat",
            "${Package} ${db:Status-Status}\\n",
        ])
        .args(names)
        .output();
    let Ok(output) = output else {
        bail!(
            "dpkg-query did not start: setup knows Debian only\n\
             hint: elsewhere, install what these Debian packages hold: {}",
            names.join(" ")
        );
    };
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.strip_suffix(" installed"))
        .map(str::to_owned)
        .collect())
}

/// Installs packages, without starting or enabling any service that comes with them.
pub(super) fn install(names: &[&str]) -> anyhow::Result<()> {
    ensure!(
        Uid::effective().is_root(),
        "installing Debian packages needs root\nhint: as root, apt-get install {}",
        names.join(" ")
    );
    update()?;
    // Maintainer scripts start and enable services through these four. In a mount namespace of its own
    // apt finds them doing nothing, and when it ends, however it ends, nothing of that is left.
    let quiet = "for helper in /usr/sbin/invoke-rc.d /usr/sbin/update-rc.d \
                 /usr/bin/deb-systemd-invoke /usr/bin/deb-systemd-helper; do \
                 if [ -e $helper ]; then mount --bind /bin/true $helper || exit; fi; done; exec \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", quiet, "sh", "apt-get"])
        .args(OPTIONS)
        .args(["install", "--yes", "--no-install-recommends"])
        .args(names);
    process::run(unattended(&mut command))
}

/// Fetches the package lists. Unlike installing, this does not wait for another apt by itself.
pub(super) fn update() -> anyhow::Result<()> {
    for _ in 0..ATTEMPTS {
        let output = apt_get().arg("update").output()?;
        if output.status.success() {
            return Ok(());
        }
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            error.contains("Could not get lock"),
            "apt-get update ended with {}: {}",
            output.status,
            error.trim()
        );
        eprintln!("setup: another apt is at work, waiting for it");
        thread::sleep(Duration::from_secs(5));
    }
    bail!("another apt holds the package lists for too long")
}

/// Fetches the package `name` into `directory`.
pub(super) fn download(name: &str, directory: &Path) -> anyhow::Result<()> {
    process::output(apt_get().args(["download", name]).current_dir(directory)).map(|_| ())
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    unattended(command.args(OPTIONS));
    command
}

fn unattended(command: &mut Command) -> &mut Command {
    // The messages are looked at: they are to be English.
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C")
}
