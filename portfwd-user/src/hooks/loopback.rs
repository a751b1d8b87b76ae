//! The program inside a container, for services that listen on its loopback address. Containers of one
//! namespace (a pod) share it: a device takes the same program once. So its pin has the namespace's
//! cookie in its name, and the device's index, which repeats from namespace to namespace.

use std::{collections::BTreeSet, path::PathBuf};

use nix::libc;
use portfwd_common::programs;

use super::{fitting, names, pins, remove};
use crate::{
    error::{Doing, Error, Lacking},
    instance::Layout,
    observe::{links::Link, netns::Netns},
};

const PREFIX: &str = "loopback-";
const PROGRAMS: [&str; 2] = [programs::TC_LOOPBACK, programs::TC_LOOPBACK_L3];

fn pin(layout: &Layout, cookie: u64, device: u32) -> PathBuf {
    layout.links().join(format!("{PREFIX}{cookie}-{device}"))
}

/// The cookie of the namespace in a pin's name.
fn cookie_of(name: &str) -> Option<u64> {
    let (cookie, _) = name.strip_prefix(PREFIX)?.split_once('-')?;
    cookie.parse().ok()
}

/// Attaches the program to `device` of the namespace with that cookie, if it is not attached yet.
///
/// # Errors
/// When the kernel refuses, or has no TCX; nothing is attached then.
pub fn attach(layout: &Layout, cookie: u64, container: &Netns, device: &Link) -> Result<(), Error> {
    let doing = || format!("attach {} to {}", fitting(PROGRAMS, device), device.name);
    let pin = pin(layout, cookie, device.index);
    if pins::holds(&pin, device.index).doing(doing)? {
        return Ok(());
    }
    let program = layout.programs().join(fitting(PROGRAMS, device));
    let place = (pins::Tcx::Ingress, device.index);
    let attached = container
        .run_in(|| pins::make(&pin, &program, place, None))
        .doing(doing)?;
    match attached {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Err(without_tcx().into()),
        attached => attached.doing(doing),
    }
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

/// Whether the program is attached in the namespace with that cookie.
///
/// # Errors
/// When the pins cannot be listed.
pub fn is_attached(layout: &Layout, cookie: u64) -> Result<bool, Error> {
    Ok(names(layout)?
        .iter()
        .any(|name| cookie_of(name) == Some(cookie)))
}

/// Detaches the program everywhere but in the namespaces with those cookies.
///
/// # Errors
/// When the pins cannot be listed, or one that is to go cannot be removed.
pub fn detach_but(layout: &Layout, served: &BTreeSet<u64>) -> Result<(), Error> {
    for name in names(layout)? {
        if cookie_of(&name).is_some_and(|cookie| !served.contains(&cookie)) {
            remove(&layout.links().join(name), pins::remove)?;
        }
    }
    Ok(())
}
