//! Attaching the programs. Every attachment is a pinned link: removing its pin detaches it, and nothing
//! is left when the device goes away.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::programs::{
    CgroupAttachMode, LinkOrder, ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode,
    links::FdLink,
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
};
use nix::libc;
use portfwd_common::programs;

use crate::{
    error::{Doing, Error},
    instance::Layout,
    object,
    observe::{cgroup, links::Link, netlink, netns::Netns},
};

/// Place among filters of one hook where there is no TCX (before Linux 6.6).
const PRIORITY: u16 = 50;
/// `TC_H_CLSACT` of linux/pkt_sched.h.
const CLSACT: u32 = 0xffff_fff1;
const HANDLE: TcHandle = TcHandle::new(0, 1);

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

    fn program(self) -> &'static str {
        match self {
            Self::Device => programs::TC_DEVICE,
            Self::Link => programs::TC_LINK,
            Self::Egress => programs::TC_EGRESS,
        }
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
    /// Where its link is pinned.
    fn pin(self, layout: &Layout, index: u32) -> PathBuf {
        layout.links().join(format!("{}-{index}", self.prefix()))
    }
    /// What stands in for the pin where the attachment is a filter of a `clsact` qdisc. A bpffs takes
    /// directories as well.
    fn filter_mark(self, layout: &Layout, index: u32) -> PathBuf {
        layout
            .links()
            .join(format!("filter-{}-{index}", self.prefix()))
    }
}

/// Says that a `clsact` qdisc is of our making.
fn qdisc_mark(layout: &Layout, index: u32) -> PathBuf {
    layout.links().join(format!("qdisc-{index}"))
}

/// Whether the hook is in use on the device.
pub fn is_attached(layout: &Layout, hook: Hook, index: u32) -> bool {
    hook.pin(layout, index).exists() || hook.filter_mark(layout, index).exists()
}

/// Attaches the program of `hook` to `device` of `host`, if it is not attached yet.
///
/// # Errors
/// When the kernel refuses; nothing is attached then.
pub fn attach(layout: &Layout, hook: Hook, host: &Netns, device: &Link) -> Result<(), Error> {
    if is_attached(layout, hook, device.index) {
        return Ok(());
    }
    let doing = || format!("attach {} to {}", hook.program(), device.name);
    let mut program =
        SchedClassifier::from_pin(layout.programs().join(hook.program())).doing(doing)?;
    let attached = host
        .run_in(|| attach_tc(&mut program, layout, hook, device))
        .doing(doing)?;
    attached.doing(doing)
}

fn attach_tc(
    program: &mut SchedClassifier,
    layout: &Layout,
    hook: Hook,
    device: &Link,
) -> Result<(), AttachError> {
    let options = TcAttachOptions::TcxOrder(LinkOrder::first());
    match program.attach_with_options(&device.name, hook.direction(), options) {
        Ok(id) => {
            let link: FdLink = program.take_link(id)?.try_into()?;
            link.pin(hook.pin(layout, device.index))?;
            Ok(())
        }
        Err(error) if is_unknown(&error) => attach_filter(program, layout, hook, device),
        Err(error) => Err(error.into()),
    }
}

/// As a filter, on kernels without TCX. The filter has no owner but the qdisc, so marks beside the pins
/// say what is to be removed; they are made first, so that a crash leaves none unknown.
fn attach_filter(
    program: &mut SchedClassifier,
    layout: &Layout,
    hook: Hook,
    device: &Link,
) -> Result<(), AttachError> {
    let qdisc = qdisc_mark(layout, device.index);
    let known = qdisc.exists();
    if !known {
        fs::create_dir(&qdisc)?;
    }
    match tc::qdisc_add_clsact(&device.name) {
        Ok(()) => {}
        // Somebody else's, unless our mark was there already.
        Err(_) if !known => fs::remove_dir(&qdisc)?,
        Err(_) => {}
    }
    fs::create_dir(hook.filter_mark(layout, device.index))?;
    let options = NlOptions {
        priority: PRIORITY,
        handle: HANDLE,
        ..NlOptions::default()
    };
    let id = program.attach_with_options(
        &device.name,
        hook.direction(),
        TcAttachOptions::Netlink(options),
    )?;
    // Dropping the link would detach the filter.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

/// Detaches the program of `hook` from the device with that index; nothing to do is no error.
///
/// # Errors
/// When something that is attached cannot be removed.
pub fn detach(layout: &Layout, hook: Hook, host: &Netns, index: u32) -> Result<(), Error> {
    remove(&hook.pin(layout, index), |pin| fs::remove_file(pin))?;
    let mark = hook.filter_mark(layout, index);
    if mark.exists() {
        host.run_in(|| detach_filter(hook, index))
            .doing(|| format!("detach device {index}"))?;
        remove(&mark, |mark| fs::remove_dir(mark))?;
    }
    Ok(())
}

fn detach_filter(hook: Hook, index: u32) {
    let attached = nix::net::if_::if_indextoname(index).ok().and_then(|name| {
        SchedClassifierLink::attached(
            name.to_str().ok()?,
            hook.direction(),
            PRIORITY,
            HANDLE,
            None,
        )
        .ok()
    });
    // Dropping the link detaches it. A device that is gone has taken its filters along.
    drop(attached);
}

/// Removes the filters and qdiscs that stand beside the pins; pins are removed with their directory.
///
/// # Errors
/// The first that cannot be removed.
pub fn detach_filters(layout: &Layout, host: &Netns) -> Result<(), Error> {
    for name in names(layout)? {
        for hook in Hook::ALL {
            let prefix = format!("filter-{}-", hook.prefix());
            if let Some(index) = name
                .strip_prefix(&prefix)
                .and_then(|index| index.parse().ok())
            {
                detach(layout, hook, host, index)?;
            }
        }
        if let Some(index) = name
            .strip_prefix("qdisc-")
            .and_then(|index| index.parse().ok())
        {
            delete_qdisc(host, index)?;
            remove(&qdisc_mark(layout, index), |mark| fs::remove_dir(mark))?;
        }
    }
    Ok(())
}

fn delete_qdisc(host: &Netns, index: u32) -> Result<(), Error> {
    let deleted = netlink::converse(
        host,
        async |session: &mut netlink::Session| -> Result<_, Error> {
            let mut qdisc = session.handle().qdisc().del(index as i32);
            qdisc.message_mut().header.parent = CLSACT.into();
            Ok(qdisc.execute().await)
        },
    );
    match deleted? {
        // The device has gone, or somebody else has removed it.
        Err(rtnetlink::Error::NetlinkError(answer))
            if matches!(
                -answer.raw_code(),
                libc::ENODEV | libc::ENOENT | libc::EINVAL
            ) =>
        {
            Ok(())
        }
        deleted => deleted.doing(|| format!("remove the clsact qdisc of device {index}")),
    }
}

/// The devices on which `hook` is attached.
///
/// # Errors
/// When the pins cannot be listed.
pub fn attached(layout: &Layout, hook: Hook) -> Result<Vec<u32>, Error> {
    let pin = format!("{}-", hook.prefix());
    let mark = format!("filter-{}-", hook.prefix());
    let index = |name: &String| {
        name.strip_prefix(&pin)
            .or_else(|| name.strip_prefix(&mark))?
            .parse()
            .ok()
    };
    Ok(names(layout)?.iter().filter_map(index).collect())
}

/// Attaches the XDP program to `device`, if it is not attached yet.
///
/// # Errors
/// When the driver or the kernel refuses.
pub fn attach_xdp(
    layout: &Layout,
    host: &Netns,
    device: &Link,
    mode: XdpMode,
) -> Result<(), Error> {
    let pin = layout.links().join(format!("xdp-{}", device.index));
    if pin.exists() {
        return Ok(());
    }
    let doing = || format!("attach {} to {}", programs::XDP_DEVICE, device.name);
    let path = layout.programs().join(programs::XDP_DEVICE);
    let kind = aya_obj::programs::XdpAttachType::Interface;
    let mut program = Xdp::from_pin(path, kind).doing(doing)?;
    let attached = host.run_in(|| -> Result<(), AttachError> {
        let id = program.attach(&device.name, mode)?;
        let link: FdLink = program.take_link(id)?.try_into()?;
        link.pin(&pin)?;
        Ok(())
    });
    attached.doing(doing)?.doing(doing)
}

/// Attaches the socket programs of a loaded object to the root of the cgroup hierarchy. Without one
/// (or without a cgroup2 mount) host processes reach no published port; that is told, not failed.
///
/// # Errors
/// When the kernel refuses.
pub fn attach_sockets(ebpf: &mut aya::Ebpf, layout: &Layout) -> Result<bool, Error> {
    let Some(root) = cgroup::find().doing(|| "find the cgroup2 mount".to_owned())? else {
        return Ok(false);
    };
    let path = root.path.display().to_string();
    let directory = fs::File::open(&root.path).doing(|| format!("open {path}"))?;
    for name in programs::SOCKET {
        let doing = || format!("attach {name} to {path}");
        let program = object::socket_program(ebpf, name)
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
            .doing(doing)?;
        let id = program
            .attach(&directory, CgroupAttachMode::Single)
            .doing(doing)?;
        let link: FdLink = program
            .take_link(id)
            .doing(doing)?
            .try_into()
            .doing(doing)?;
        link.pin(layout.links().join(format!("socket-{name}")))
            .doing(doing)?;
    }
    Ok(true)
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
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Whether the kernel does not know TCX: it then takes the call for one with bad arguments.
fn is_unknown(error: &ProgramError) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return io.raw_os_error() == Some(libc::EINVAL);
        }
        cause = error.source();
    }
    false
}

fn remove(path: &Path, how: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), Error> {
    match how(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.doing(|| format!("remove {}", path.display())),
    }
}

fn names(layout: &Layout) -> Result<Vec<String>, Error> {
    crate::bpffs::names(&layout.links())
}
