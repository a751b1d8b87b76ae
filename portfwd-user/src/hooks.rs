//! Attaching the programs. An attachment is a pinned link: removing its pin detaches it, and nothing is
//! left when the device goes away. Before Linux 6.6 TC has no links: see [`clsact`].

mod clsact;
pub mod loopback;
mod pins;
pub mod sockets;
pub mod xdp;

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
};

use aya::programs::{ProgramError, ProgramInfo, TcAttachType};
use nix::libc;
use pins::Tcx;
use portfwd_common::programs;

use crate::{
    bpffs,
    error::{Doing, Error},
    instance::{Layout, ObjectPins},
    observe::{
        links::{self, Carries, Link},
        netlink::{self, NetlinkError, Session},
        netns::{Netns, NetnsError},
    },
};

/// A TC hook of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    /// Ingress of a device on which the host owns an address.
    Device,
    /// Ingress of a container's host-side link.
    Link,
    /// Egress of a device.
    Egress,
}

impl Hook {
    const ALL: [Self; 3] = [Self::Device, Self::Link, Self::Egress];

    /// Its programs: that for devices with Ethernet frames, and that for those without. A container's
    /// link is one of a pair, which has frames.
    const fn programs(self) -> [&'static str; 2] {
        match self {
            Self::Device => [programs::TC_DEVICE, programs::TC_DEVICE_L3],
            Self::Link => [programs::TC_LINK; 2],
            Self::Egress => [programs::TC_EGRESS, programs::TC_EGRESS_L3],
        }
    }
    /// The program for a device.
    fn program(self, device: &Link) -> &'static str {
        fitting(self.programs(), device)
    }
    fn prefix(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Link => "link",
            Self::Egress => "egress",
        }
    }
    fn direction(self) -> TcAttachType {
        match self {
            Self::Device | Self::Link => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }
    fn tcx(self) -> Tcx {
        match self {
            Self::Device | Self::Link => Tcx::Ingress,
            Self::Egress => Tcx::Egress,
        }
    }
    /// Where its link is pinned.
    fn pin(self, layout: &Layout, index: u32) -> PathBuf {
        layout.links().join(format!("{}-{index}", self.prefix()))
    }
}

/// Of the two programs, that for frames or that without.
fn fitting([frames, packets]: [&'static str; 2], device: &Link) -> &'static str {
    match device.carries {
        Carries::Packets => packets,
        Carries::Frames | Carries::Other => frames,
    }
}

/// Attaches the program of `hook` to `device` of `host`, if it is not attached yet.
///
/// # Errors
/// When the kernel refuses; nothing is attached then.
pub fn attach(layout: &Layout, hook: Hook, host: &Netns, device: &Link) -> Result<(), Error> {
    let doing = || format!("attach {} to {}", hook.program(device), device.name);
    if pins::holds(&hook.pin(layout, device.index), device.index).doing(doing)? {
        return Ok(());
    }
    host.run_in(|| attach_here(layout, hook, device))
        .doing(doing)?
        .doing(doing)
}

/// The same of a device that nobody has asked for.
///
/// # Errors
/// As [`attach`]; that the device has gone since it was looked at is none.
pub fn attach_if_there(
    layout: &Layout,
    hook: Hook,
    host: &Netns,
    device: &Link,
) -> Result<(), Error> {
    let attached = attach(layout, hook, host, device);
    unless_gone(host, device, attached, || {
        detach(layout, hook, host, device.index)
    })
}

/// What came of attaching; if the device has gone, and its packets with it, that of clearing away what was begun.
fn unless_gone(
    host: &Netns,
    device: &Link,
    attached: Result<(), Error>,
    clear: impl FnOnce() -> Result<(), Error>,
) -> Result<(), Error> {
    let Err(error) = attached else {
        return Ok(());
    };
    let found = netlink::converse(host, async |session: &mut Session| {
        Ok::<_, AttachError>(links::by_index(session, device.index, None).await?)
    });
    match found {
        Ok(None) => clear(),
        _ => Err(error),
    }
}

fn attach_here(layout: &Layout, hook: Hook, device: &Link) -> Result<(), AttachError> {
    let program = layout.programs().join(hook.program(device));
    let place = (hook.tcx(), device.index);
    let before = program_before(layout, hook, device.index)?;
    match pins::make(
        &hook.pin(layout, device.index),
        &program,
        place,
        before.as_deref(),
    ) {
        // A kernel without TCX.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            clsact::attach(layout, hook, device)
        }
        made => Ok(made?),
    }
}

/// The link's program decides what a container may send, so the device's goes behind it where a
/// container's link is a device of the host as well.
fn program_before(layout: &Layout, hook: Hook, index: u32) -> io::Result<Option<PathBuf>> {
    let is_behind = hook == Hook::Device && pins::holds(&Hook::Link.pin(layout, index), index)?;
    Ok(is_behind.then(|| layout.programs().join(programs::TC_LINK)))
}

/// Whether the program of `hook` is attached to the device with that index.
///
/// # Errors
/// When its pin, or the filters of the device, cannot be looked at.
pub fn is_attached(layout: &Layout, hook: Hook, host: &Netns, index: u32) -> Result<bool, Error> {
    let pin = hook.pin(layout, index);
    let linked = pins::is_on(&pin, index).doing(|| format!("look at {}", pin.display()))?;
    Ok(linked || clsact::is_attached(layout, hook, host, index)?)
}

/// Detaches the program of `hook` from the device with that index; nothing to do is no error.
///
/// # Errors
/// When something that is attached cannot be removed.
pub fn detach(layout: &Layout, hook: Hook, host: &Netns, index: u32) -> Result<(), Error> {
    remove(&hook.pin(layout, index), pins::remove)?;
    clsact::detach(layout, hook, host, index)
}

/// The programs of one object, by the IDs that attachments tell.
type Programs = HashMap<u32, String>;

/// Lets every attachment that runs a program of `from` run that of the same name of `to`. Each goes over between two
/// packets.
///
/// # Errors
/// When one cannot be changed: it goes on as it is.
pub fn swap(
    layout: &Layout,
    from: &ObjectPins,
    to: &ObjectPins,
    host: &Netns,
) -> Result<(), Error> {
    let running = programs_of(from)?;
    for name in names(layout)? {
        let pin = layout.links().join(&name);
        let doing = || format!("swap the program of {name}");
        if pin.is_dir() {
            clsact::swap(&name, &running, to, host).doing(doing)?;
        } else if let Some(program) = running.get(&pins::program_of(&pin).doing(doing)?) {
            pins::swap(&pin, &to.programs().join(program)).doing(doing)?;
        }
    }
    Ok(())
}

fn programs_of(object: &ObjectPins) -> Result<Programs, Error> {
    let directory = object.programs();
    let id_of = |name: String| {
        let path = directory.join(&name);
        let info = ProgramInfo::from_pin(&path).doing(|| format!("look at {}", path.display()))?;
        Ok((info.id(), name))
    };
    bpffs::names(&directory)?.into_iter().map(id_of).collect()
}

/// Detaches everything at once: links, filters, and the qdiscs made for them.
///
/// # Errors
/// The first that cannot be removed.
pub fn detach_all(layout: &Layout, host: &Netns) -> Result<(), Error> {
    clsact::detach_all(layout, host)?;
    for name in names(layout)? {
        let pin = layout.links().join(name);
        if !pin.is_dir() {
            remove(&pin, pins::remove)?;
        }
    }
    Ok(())
}

/// Whether the kernel takes programs as filters of a `clsact` qdisc, for want of TCX.
///
/// # Errors
/// When it cannot be tried: that takes `CAP_SYS_ADMIN`.
pub fn takes_clsact() -> io::Result<bool> {
    clsact::is_known()
}

/// The devices on which `hook` is attached, or was when they were there.
///
/// # Errors
/// When the pins cannot be listed.
pub fn attached(layout: &Layout, hook: Hook) -> Result<Vec<u32>, Error> {
    let pin = format!("{}-", hook.prefix());
    let mark = format!("{}{pin}", clsact::FILTER);
    let index = |name: &String| index_after(name, &pin).or_else(|| index_after(name, &mark));
    Ok(names(layout)?.iter().filter_map(index).collect())
}

/// Why a program could not be attached.
#[derive(Debug, thiserror::Error)]
enum AttachError {
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Link(#[from] aya::programs::links::LinkError),
    #[error(transparent)]
    Pin(#[from] aya::pin::PinError),
    #[error("{}", .0)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Netns(#[from] NetnsError),
    #[error(transparent)]
    Occupied(#[from] xdp::Occupied),
    #[error("the device carries no Ethernet frames")]
    WithoutFrames,
    #[error("another qdisc is in the place of a clsact one: {0}")]
    Qdisc(String),
}

/// The system's error at the bottom of one of the library's.
fn errno_of(error: &ProgramError) -> Option<i32> {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return io.raw_os_error();
        }
        cause = error.source();
    }
    None
}

fn remove(path: &Path, how: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), Error> {
    match how(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.doing(|| format!("remove {}", path.display())),
    }
}

fn names(layout: &Layout) -> Result<Vec<String>, Error> {
    bpffs::names(&layout.links())
}

/// The device's index at the end of a name.
fn index_after(name: &str, prefix: &str) -> Option<u32> {
    name.strip_prefix(prefix)?.parse().ok()
}
