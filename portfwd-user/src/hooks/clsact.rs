//! TC hooks without TCX (before Linux 6.6): filters of a `clsact` qdisc.
//!
//! Such a filter belongs to nobody: it stays when its maker ends. Which one is ours the ID of its program
//! says, so an attachment is what the kernel lists, never what we remember. Where to look is remembered,
//! by directories beside the pins: `filter-HOOK-INDEX` and, where the qdisc is of our making,
//! `qdisc-INDEX`. A mark is made before what it stands for and removed after it, so that no crash leaves
//! something unmarked.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd},
    path::PathBuf,
};

use aya::programs::{ProgramError, ProgramInfo, SchedClassifier, TcAttachType};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{
        TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcHeader, TcMessage,
        TcOption,
    },
};
use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
};

use super::{AttachError, Hook, Programs, names, remove};
use crate::{
    bpffs,
    error::{Doing, Error},
    instance::{Layout, ObjectPins},
    observe::{
        links::Link,
        netlink::{self, NetlinkError, Session},
        netns::{Netns, NetnsError},
    },
};

/// The qdisc with a hook for each direction.
const CLSACT: &str = "clsact";
/// Its older kin, with ingress alone; the two exclude each other.
const INGRESS: &str = "ingress";
/// The qdisc's own handle.
const HANDLE: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0,
};

/// What stands for the filter of `hook` on a device.
pub(super) fn filter_mark(layout: &Layout, hook: Hook, index: u32) -> PathBuf {
    let name = format!("{}{}-{index}", FILTER, hook.prefix());
    layout.links().join(name)
}

/// What such a name begins with.
pub(super) const FILTER: &str = "filter-";
const QDISC: &str = "qdisc-";

/// Says that the qdisc is of our making.
fn qdisc_mark(layout: &Layout, index: u32) -> PathBuf {
    layout.links().join(format!("{QDISC}{index}"))
}

/// A filter of a hook, of whatever kind.
struct Filter {
    header: TcHeader,
    kind: String,
    /// The program of a BPF filter.
    program: Option<u32>,
}

impl Filter {
    fn priority(&self) -> u16 {
        (self.header.info >> 16) as u16
    }

    /// Whether it runs one of these programs.
    fn runs(&self, programs: &[u32]) -> bool {
        self.program.is_some_and(|id| programs.contains(&id))
    }

    fn of(message: TcMessage) -> Self {
        let mut filter = Self {
            header: message.header,
            kind: String::new(),
            program: None,
        };
        for attribute in message.attributes {
            match attribute {
                TcAttribute::Kind(kind) => filter.kind = kind,
                TcAttribute::Options(options) => {
                    filter.program = options.iter().find_map(|option| match option {
                        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        filter
    }
}

/// Attaches in the calling thread's namespace, unless the kernel lists the filter already.
pub(super) fn attach(layout: &Layout, hook: Hook, device: &Link) -> Result<(), AttachError> {
    let (name, index) = (hook.program(device), device.index);
    let program = SchedClassifier::from_pin(layout.programs().join(name))?;
    let own = program.info()?.id();
    let filters =
        netlink::converse_here(async |session| filters(session, index, hook.direction()).await)?;
    if filters.iter().any(|filter| filter.program == Some(own)) {
        return Ok(());
    }
    ensure_qdisc(layout, hook, index)?;
    make_mark(filter_mark(layout, hook, index))?;
    let links = program_ids(layout, Hook::Link)?;
    let mut place = TcMessage::with_index(index.cast_signed()).header;
    place.parent = parent(hook.direction());
    let priority = free_priority(hook, &filters, &links);
    place.info = u32::from(priority) << 16 | u32::from(ALL_PROTOCOLS.to_be());
    let message = filter_at(place, name, &program)?;
    netlink::converse_here(async |session: &mut Session| {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        session.order("add a filter", message, flags).await
    })?;
    Ok(())
}

/// `ETH_P_ALL` of linux/if_ether.h.
const ALL_PROTOCOLS: u16 = 3;

/// What makes a filter, or changes the one in that place, which then runs the program and does what that says.
fn filter_at(
    place: TcHeader,
    name: &str,
    program: &SchedClassifier,
) -> Result<RouteNetlinkMessage, ProgramError> {
    let descriptor = program.fd()?.as_fd().as_raw_fd();
    let options = [
        TcFilterBpfOption::ProgFd(descriptor.unsigned_abs()),
        TcFilterBpfOption::ProgName(name.to_owned()),
        TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
    ];
    let mut message = TcMessage::default();
    message.header = place;
    message.attributes = vec![
        TcAttribute::Kind(TcFilterBpf::KIND.to_owned()),
        TcAttribute::Options(options.map(TcOption::Bpf).to_vec()),
    ];
    Ok(RouteNetlinkMessage::NewTrafficFilter(message))
}

/// Whether the kernel lists our filter: a mark stays when a device goes.
pub(super) fn is_attached(
    layout: &Layout,
    hook: Hook,
    host: &Netns,
    index: u32,
) -> Result<bool, Error> {
    let doing = || format!("look at the filters of device {index}");
    if !filter_mark(layout, hook, index).exists() {
        return Ok(false);
    }
    let own = program_ids(layout, hook).doing(doing)?;
    let filters = netlink::converse(host, async |session: &mut Session| {
        let filters = filters(session, index, hook.direction()).await;
        filters.map_err(ClsactError::from)
    })
    .doing(doing)?;
    Ok(filters.iter().any(|filter| filter.runs(&own)))
}

/// A place before all other filters, for one of those may end the way of a packet; where there is no
/// room, the first that is free. But the link's program decides what a container may send, so the
/// device's goes behind it where a container's link is a device of the host as well.
fn free_priority(hook: Hook, filters: &[Filter], links: &[u32]) -> u16 {
    const LAST: u16 = 50;
    let behind = |priority: u16| {
        let free = |place: &u16| filters.iter().all(|filter| filter.priority() != *place);
        (priority..u16::MAX).find(free).unwrap_or(LAST)
    };
    let of_link = filters.iter().find(|filter| filter.runs(links));
    match (hook, of_link) {
        (Hook::Device, Some(of_link)) => behind(of_link.priority()),
        _ => match filters.iter().map(Filter::priority).min() {
            None => LAST,
            Some(0 | 1) => behind(1),
            Some(first) => LAST.min(first - 1),
        },
    }
}

/// Lets the filter that a mark stands for run the program of `to` that has the name of the one of `running` that it runs
/// (`cls_bpf_change` puts a filter in the place of another at once). A device that has gone has none.
pub(super) fn swap(
    mark: &str,
    running: &Programs,
    to: &ObjectPins,
    host: &Netns,
) -> Result<(), AttachError> {
    let Some((hook, index)) = Hook::ALL.into_iter().find_map(|hook| {
        let index = super::index_after(mark, &format!("{FILTER}{}-", hook.prefix()))?;
        Some((hook, index))
    }) else {
        return Ok(());
    };
    netlink::converse(host, async |session: &mut Session| {
        for filter in filters(session, index, hook.direction()).await? {
            let Some(name) = filter.program.and_then(|id| running.get(&id)) else {
                continue;
            };
            let program = SchedClassifier::from_pin(to.programs().join(name))?;
            let message = filter_at(filter.header, name, &program)?;
            match session.order("change a filter", message, 0).await {
                Err(error) if is_gone(&error) => {}
                changed => changed?,
            }
        }
        Ok(())
    })
}

fn ensure_qdisc(layout: &Layout, hook: Hook, index: u32) -> Result<(), AttachError> {
    let kind = || netlink::converse_here(async |session| qdisc_kind(session, index).await);
    let mut present = kind()?;
    if present.is_none() {
        let mark = qdisc_mark(layout, index);
        make_mark(mark.clone())?;
        let added = netlink::converse_here(async |session: &mut Session| {
            let message = RouteNetlinkMessage::NewQueueDiscipline(qdisc(index));
            let request = "add a clsact qdisc";
            session
                .order(request, message, NLM_F_CREATE | NLM_F_EXCL)
                .await
        });
        match added {
            Ok(()) => return Ok(()),
            Err(error) => fs::remove_dir(mark).map_err(AttachError::from).and_then(
                // Somebody else was faster.
                |()| match error.errno() {
                    Some(Errno::EEXIST) => Ok(()),
                    _ => Err(error.into()),
                },
            )?,
        }
        present = kind()?;
    }
    match present.as_deref() {
        Some(CLSACT) => Ok(()),
        Some(INGRESS) if hook.direction() == TcAttachType::Ingress => Ok(()),
        Some(other) => Err(AttachError::Qdisc(other.to_owned())),
        None => Err(AttachError::Qdisc("changing".to_owned())),
    }
}

/// Removes the filter of `hook`; and the qdisc if it is ours and nobody else has a filter in it.
pub(super) fn detach(layout: &Layout, hook: Hook, host: &Netns, index: u32) -> Result<(), Error> {
    let mark = filter_mark(layout, hook, index);
    if !mark.exists() {
        return Ok(());
    }
    let doing = || format!("remove the filters of device {index}");
    let own = program_ids(layout, hook).doing(doing)?;
    netlink::converse(host, async |session: &mut Session| {
        remove_filters(session, hook, index, &own).await
    })
    .doing(doing)?;
    remove(&mark, |mark| fs::remove_dir(mark))?;
    release_qdisc(layout, host, index)
}

/// The IDs of the hook's programs, with those of a change that was not finished. None without a pin: its filters cannot be
/// told from others' then, but programs are pinned before and removed after all filters.
fn program_ids(layout: &Layout, hook: Hook) -> Result<Vec<u32>, AttachError> {
    let objects = [layout.object(), layout.next()];
    let pins = objects
        .iter()
        .flat_map(|object| hook.programs().map(|name| object.programs().join(name)));
    pins.filter(|pin| pin.exists())
        .map(|pin| Ok(ProgramInfo::from_pin(pin)?.id()))
        .collect()
}

async fn remove_filters(
    session: &mut Session,
    hook: Hook,
    index: u32,
    own: &[u32],
) -> Result<(), ClsactError> {
    for filter in filters(session, index, hook.direction()).await? {
        if filter.runs(own) {
            let mut message = TcMessage::default();
            message.header = filter.header;
            message.attributes.push(TcAttribute::Kind(filter.kind));
            let message = RouteNetlinkMessage::DelTrafficFilter(message);
            gone_is_fine(session.order("remove a filter", message, 0).await)?;
        }
    }
    Ok(())
}

fn release_qdisc(layout: &Layout, host: &Netns, index: u32) -> Result<(), Error> {
    let mark = qdisc_mark(layout, index);
    let used = |hook: &Hook| filter_mark(layout, *hook, index).exists();
    if !mark.exists() || Hook::ALL.iter().any(used) {
        return Ok(());
    }
    netlink::converse(host, async |session: &mut Session| {
        for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
            // With the qdisc others' filters would go: from now on it is theirs.
            if !filters(session, index, direction).await?.is_empty() {
                return Ok(());
            }
        }
        let message = RouteNetlinkMessage::DelQueueDiscipline(qdisc(index));
        gone_is_fine(session.order("remove the clsact qdisc", message, 0).await)
    })
    .doing(|| format!("release device {index}"))?;
    remove(&mark, |mark| fs::remove_dir(mark))
}

/// Removes all that the marks of a layout stand for.
///
/// # Errors
/// The first that cannot be removed; its mark stays.
pub(super) fn detach_all(layout: &Layout, host: &Netns) -> Result<(), Error> {
    for name in names(layout)? {
        for hook in Hook::ALL {
            let prefix = format!("{FILTER}{}-", hook.prefix());
            if let Some(index) = super::index_after(&name, &prefix) {
                detach(layout, hook, host, index)?;
            }
        }
        // A crash between the two marks leaves this one alone.
        if let Some(index) = super::index_after(&name, QDISC) {
            release_qdisc(layout, host, index)?;
        }
    }
    Ok(())
}

/// Every filter of one direction; none without a qdisc or a device.
async fn filters(
    session: &mut Session,
    index: u32,
    direction: TcAttachType,
) -> Result<Vec<Filter>, NetlinkError> {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.parent = parent(direction);
    let request = RouteNetlinkMessage::GetTrafficFilter(message);
    let answers = session
        .dump(&format!("list the filters of device {index}"), &request)
        .await?;
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewTrafficFilter(message) => Some(Filter::of(message)),
            _ => None,
        })
        .collect())
}

/// The hook of a direction, as what filters are below.
fn parent(direction: TcAttachType) -> TcHandle {
    let minor = match direction {
        TcAttachType::Egress => TcHandle::MIN_EGRESS,
        _ => TcHandle::MIN_INGRESS,
    };
    TcHandle {
        major: HANDLE.major,
        minor,
    }
}

/// The kind of the qdisc that has the place of a `clsact` on the device.
async fn qdisc_kind(session: &mut Session, index: u32) -> Result<Option<String>, NetlinkError> {
    let message = TcMessage::with_index(index.cast_signed());
    let request = RouteNetlinkMessage::GetQueueDiscipline(message);
    let answers = session
        .dump(&format!("list the qdiscs of device {index}"), &request)
        .await?;
    Ok(answers.into_iter().find_map(|answer| match answer {
        // The dump is of all devices.
        RouteNetlinkMessage::NewQueueDiscipline(message)
            if message.header.index == index.cast_signed()
                && message.header.parent == TcHandle::CLSACT =>
        {
            message
                .attributes
                .into_iter()
                .find_map(|attribute| match attribute {
                    TcAttribute::Kind(kind) => Some(kind),
                    _ => None,
                })
        }
        _ => None,
    }))
}

/// Whether the kernel takes a `clsact` qdisc: tried on the loopback device of a new namespace, which goes
/// with its only thread.
pub(super) fn is_known() -> io::Result<bool> {
    let in_thread = || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let added = netlink::converse_here(async |session: &mut Session| {
            let message = RouteNetlinkMessage::NewQueueDiscipline(qdisc(LOOPBACK));
            let flags = NLM_F_CREATE | NLM_F_EXCL;
            session.order("add a clsact qdisc", message, flags).await
        });
        match added {
            Ok(()) => Ok(true),
            // How the kernel says that it knows no such kind (`qdisc_create`).
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(false),
            Err(error) => Err(io::Error::other(error)),
        }
    };
    let spawned = std::thread::Builder::new().spawn(in_thread)?;
    spawned
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// `LOOPBACK_IFINDEX` of linux/netdevice.h: the same in every namespace.
const LOOPBACK: u32 = 1;

fn qdisc(index: u32) -> TcMessage {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.handle = HANDLE;
    message.header.parent = TcHandle::CLSACT;
    message
        .attributes
        .push(TcAttribute::Kind(CLSACT.to_owned()));
    message
}

/// Whether the filter, or the device with it, was not there.
fn is_gone(error: &NetlinkError) -> bool {
    matches!(error.errno(), Some(Errno::ENODEV | Errno::ENOENT))
}

/// The device has gone and has taken everything along, or somebody else has removed it: that may have been the qdisc.
fn gone_is_fine(result: Result<(), NetlinkError>) -> Result<(), ClsactError> {
    match result {
        Err(error) if is_gone(&error) || error.errno() == Some(Errno::EINVAL) => Ok(()),
        result => Ok(result?),
    }
}

fn make_mark(mark: PathBuf) -> Result<(), io::Error> {
    match bpffs::make_directory(&mark) {
        Ok(true) => Ok(()),
        Ok(false) => Err(io::Error::from(io::ErrorKind::NotFound)),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// Why filters cannot be removed.
#[derive(Debug, thiserror::Error)]
enum ClsactError {
    #[error(transparent)]
    Netns(#[from] NetnsError),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(priority: u16, program: Option<u32>) -> Filter {
        let header = TcHeader {
            info: u32::from(priority) << 16,
            ..TcHeader::default()
        };
        Filter {
            header,
            kind: "bpf".to_owned(),
            program,
        }
    }

    #[test]
    fn our_filters_go_before_others_and_the_links_before_the_devices() {
        let link = Some(7);
        let place = |hook, filters: &[Filter]| free_priority(hook, filters, &[7]);
        assert_eq!(place(Hook::Device, &[]), 50);
        assert_eq!(place(Hook::Link, &[filter(50, Some(8))]), 49);
        assert_eq!(place(Hook::Device, &[filter(50, link)]), 51);
        let others = [filter(9, link), filter(10, None), filter(11, Some(9))];
        assert_eq!(place(Hook::Device, &others), 12);
        assert_eq!(place(Hook::Egress, &[filter(10, None)]), 9);
        assert_eq!(place(Hook::Egress, &[filter(60_000, None)]), 50);
        assert_eq!(place(Hook::Egress, &[filter(1, None), filter(2, None)]), 3);
    }
}
