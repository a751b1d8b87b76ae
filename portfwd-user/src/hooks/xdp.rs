//! The XDP hook of a device. It takes one program: whoever else has it keeps it.

use std::{fmt, path::PathBuf};

use aya::programs::{Xdp, links::FdLink, loaded_programs, xdp::XdpMode};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage, LinkXdp},
};
use nix::libc;
use portfwd_common::programs;

use super::{AttachError, errno_of, index_after, names, pins, remove, unless_gone};
use crate::{
    error::{Doing, Error},
    instance::Layout,
    observe::{
        links::{Carries, Link},
        netlink::{self, NetlinkError, Session},
        netns::Netns,
    },
};

/// Where the program runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// In the driver.
    Native,
    /// In the kernel's generic hook, after the driver.
    Generic,
}

impl Mode {
    const ALL: [Self; 2] = [Self::Native, Self::Generic];

    fn prefix(self) -> String {
        format!("xdp-{self}-")
    }
    fn pin(self, layout: &Layout, index: u32) -> PathBuf {
        layout.links().join(format!("{}{index}", self.prefix()))
    }
    fn other(self) -> Self {
        match self {
            Self::Native => Self::Generic,
            Self::Generic => Self::Native,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

/// Attaches the XDP program to `device`, if it is not attached in that mode yet; from the other mode it
/// is moved.
///
/// # Errors
/// When driver or kernel refuse, or another program has the hook. What was attached stays then.
pub fn attach(layout: &Layout, host: &Netns, device: &Link, mode: Mode) -> Result<(), Error> {
    let doing = || {
        let name = programs::XDP_DEVICE;
        format!("attach {name} to {} ({mode})", device.name)
    };
    if pins::holds(&mode.pin(layout, device.index), device.index).doing(doing)? {
        return Ok(());
    }
    let other = mode.other();
    let old = other.pin(layout, device.index);
    let moved = pins::holds(&old, device.index).doing(doing)?;
    if moved {
        remove(&old, pins::remove)?;
    }
    let attached = host
        .run_in(|| attach_here(layout, device, mode))
        .doing(doing)?;
    if attached.is_err() && moved {
        host.run_in(|| attach_here(layout, device, other))
            .doing(doing)?
            .doing(doing)?;
    }
    attached.doing(doing)
}

/// The same of a device that nobody has asked for.
///
/// # Errors
/// As [`attach`]; that the device has gone since it was looked at is none.
pub fn attach_if_there(
    layout: &Layout,
    host: &Netns,
    device: &Link,
    mode: Mode,
) -> Result<(), Error> {
    let attached = attach(layout, host, device, mode);
    unless_gone(host, device, attached, || detach(layout, device.index))
}

/// Detaches the XDP program from the device with that index; nothing to do is no error.
///
/// # Errors
/// When it cannot be detached.
pub fn detach(layout: &Layout, index: u32) -> Result<(), Error> {
    Mode::ALL
        .iter()
        .try_for_each(|mode| remove(&mode.pin(layout, index), pins::remove))
}

fn attach_here(layout: &Layout, device: &Link, mode: Mode) -> Result<(), AttachError> {
    if device.carries != Carries::Frames {
        return Err(AttachError::WithoutFrames);
    }
    let path = layout.programs().join(programs::XDP_DEVICE);
    let mut program = Xdp::from_pin(path, aya_obj::programs::XdpAttachType::Interface)?;
    let flags = match mode {
        Mode::Native => XdpMode::Driver,
        Mode::Generic => XdpMode::Skb,
    };
    let attached = program.attach_to_if_index(device.index, flags);
    let id = attached.map_err(|error| match errno_of(&error) {
        Some(libc::EBUSY | libc::EEXIST) => occupant(device.index).into(),
        _ => AttachError::from(error),
    })?;
    let link: FdLink = program.take_link(id)?.try_into()?;
    link.pin(mode.pin(layout, device.index))?;
    Ok(())
}

/// Who has the hook.
fn occupant(index: u32) -> Occupied {
    let asked = netlink::converse_here(async |session| program_on(session, index).await);
    // The error to tell is that the hook is taken; by whom is said as far as it can be found out.
    let id = asked.ok().flatten();
    let name = id.and_then(|id| {
        loaded_programs()
            .filter_map(Result::ok)
            .find(|program| program.id() == id)
            .and_then(|program| program.name_as_str().map(str::to_owned))
    });
    Occupied { id, name }
}

async fn program_on(session: &mut Session, index: u32) -> Result<Option<u32>, NetlinkError> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let request = format!("read network interface {index}");
    let answer = session
        .get(&request, RouteNetlinkMessage::GetLink(message))
        .await?;
    let RouteNetlinkMessage::NewLink(message) = answer else {
        return Ok(None);
    };
    Ok(message
        .attributes
        .into_iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Xdp(facts) => facts.into_iter().find_map(|fact| match fact {
                LinkXdp::ProgId(id) => Some(id),
                _ => None,
            }),
            _ => None,
        }))
}

/// Another XDP program runs on the device.
#[derive(Debug)]
pub(super) struct Occupied {
    id: Option<u32>,
    name: Option<String>,
}

impl std::error::Error for Occupied {}

impl fmt::Display for Occupied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another XDP program has the device")?;
        match (&self.name, self.id) {
            (Some(name), Some(id)) => write!(f, ": \"{name}\" (id {id})"),
            (None, Some(id)) => write!(f, ": id {id}"),
            _ => Ok(()),
        }
    }
}

/// The devices on which the program is attached, and how.
///
/// # Errors
/// When the pins cannot be listed.
pub fn attached(layout: &Layout) -> Result<Vec<(u32, Mode)>, Error> {
    let names = names(layout)?;
    let found = Mode::ALL.iter().flat_map(|mode| {
        let prefix = mode.prefix();
        let index = move |name: &String| Some((index_after(name, &prefix)?, *mode));
        names.iter().filter_map(index)
    });
    Ok(found.collect())
}

/// Removes the pins whose devices have gone.
///
/// # Errors
/// When one cannot be looked at or removed.
pub fn forget_gone(layout: &Layout) -> Result<(), Error> {
    for (index, mode) in attached(layout)? {
        let pin = mode.pin(layout, index);
        pins::holds(&pin, index).doing(|| format!("look at {}", pin.display()))?;
    }
    Ok(())
}
