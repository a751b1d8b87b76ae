//! The program inside a container, for services that listen on its loopback address. Its pin has the
//! container's ID in its name: interface indexes repeat from namespace to namespace.

use std::path::PathBuf;

use aya::programs::{LinkOrder, TcAttachType, links::FdLink, tc::TcAttachOptions};
use nix::libc;
use portfwd_common::programs;

use super::{AttachError, errno_of, fitting, index_after, names, open, pins, remove};
use crate::{
    error::{Doing, Error, Lacking},
    instance::Layout,
    observe::{links::Link, netns::Netns},
};

const PREFIX: &str = "loopback-";
const PROGRAMS: [&str; 2] = [programs::TC_LOOPBACK, programs::TC_LOOPBACK_L3];

fn pin(layout: &Layout, attachment: u32) -> PathBuf {
    layout.links().join(format!("{PREFIX}{attachment}"))
}

/// Attaches the program to `device` of the container with that ID and namespace, if it is not attached
/// yet.
///
/// # Errors
/// When the kernel refuses, or has no TCX; nothing is attached then.
pub fn attach(
    layout: &Layout,
    attachment: u32,
    container: &Netns,
    device: &Link,
) -> Result<(), Error> {
    let doing = || format!("attach {} to {}", fitting(PROGRAMS, device), device.name);
    if pins::holds(&pin(layout, attachment), device.index).doing(doing)? {
        return Ok(());
    }
    let attached = container
        .run_in(|| attach_here(layout, attachment, device))
        .doing(doing)?;
    match attached {
        Err(AttachError::Program(error)) if errno_of(&error) == Some(libc::EINVAL) => {
            Err(without_tcx().into())
        }
        attached => attached.doing(doing),
    }
}

fn attach_here(layout: &Layout, attachment: u32, device: &Link) -> Result<(), AttachError> {
    let mut program = open(layout, fitting(PROGRAMS, device))?;
    let options = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program.attach_with_options(&device.name, TcAttachType::Ingress, options)?;
    let link: FdLink = program.take_link(id)?.try_into()?;
    link.pin(pin(layout, attachment))?;
    Ok(())
}

/// A filter of a `clsact` qdisc would outlive the instance: nobody can remove it from a container's
/// namespace that only its name is known of.
fn without_tcx() -> Lacking {
    Lacking::KernelFeature {
        feature: "TCX (Linux 6.6), by which --loopback works inside the container".to_owned(),
        hint: Some(
            "let the service listen on the container's own address, and attach without --loopback"
                .to_owned(),
        ),
    }
}

/// Detaches the program from the container with that ID; nothing to do is no error.
///
/// # Errors
/// When it is attached and cannot be removed.
pub fn detach(layout: &Layout, attachment: u32) -> Result<(), Error> {
    remove(&pin(layout, attachment), pins::remove)
}

/// IDs of the containers that the program is attached in, or was when they were there.
///
/// # Errors
/// When the pins cannot be listed.
pub fn attached(layout: &Layout) -> Result<Vec<u32>, Error> {
    let id = |name: &String| index_after(name, PREFIX);
    Ok(names(layout)?.iter().filter_map(id).collect())
}
