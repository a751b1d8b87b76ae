//! The socket programs on the root of the cgroup hierarchy.

use std::{fs::File, io, path::PathBuf};

use aya::programs::{CgroupAttachMode, Program, ProgramError, links::FdLink};
use portfwd_common::programs;

use super::{AttachError, pins};
use crate::{
    error::{Doing, Error},
    instance::Layout,
    observe::cgroup,
};

/// Which processes of the host reach published ports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reach {
    /// All.
    All,
    /// Those below a part of the hierarchy, mounted here: its root is not in sight.
    Below(PathBuf),
    /// None: no cgroup2 is mounted.
    None,
}

/// Attaches the socket programs of a loaded object. Without a cgroup2 mount that is told, not failed.
///
/// # Errors
/// When the kernel refuses.
pub fn attach(ebpf: &mut aya::Ebpf, layout: &Layout) -> Result<Reach, Error> {
    let Some(root) = cgroup::find().doing(|| "find the cgroup2 mount".to_owned())? else {
        return Ok(Reach::None);
    };
    let path = root.path.display().to_string();
    let directory = File::open(&root.path).doing(|| format!("open {path}"))?;
    for name in programs::SOCKET
        .into_iter()
        .chain(programs::BIND)
        .chain([programs::SOCKET_RELEASE])
    {
        let doing = || format!("attach {name} to {path}");
        let program = ebpf
            .program_mut(name)
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
            .doing(doing)?;
        let link = attach_one(program, &directory).doing(doing)?;
        link.pin(pin(layout, name)).doing(doing)?;
    }
    Ok(if root.is_root {
        Reach::All
    } else {
        Reach::Below(root.path)
    })
}

/// The ID of the control group that the programs are attached to; None if they are attached to none.
///
/// # Errors
/// When their pins cannot be looked at.
pub fn attached(layout: &Layout) -> io::Result<Option<u64>> {
    match pins::cgroup_of(&pin(layout, programs::SOCKET_RELEASE)) {
        Ok(cgroup) => Ok(Some(cgroup)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn pin(layout: &Layout, name: &str) -> PathBuf {
    layout.links().join(format!("socket-{name}"))
}

fn attach_one(program: &mut Program, cgroup: &File) -> Result<FdLink, AttachError> {
    let mode = CgroupAttachMode::Single;
    Ok(match program {
        Program::CgroupSockAddr(program) => {
            let id = program.attach(cgroup, mode)?;
            program.take_link(id)?.try_into()?
        }
        Program::CgroupSock(program) => {
            let id = program.attach(cgroup, mode)?;
            program.take_link(id)?.try_into()?
        }
        _ => return Err(ProgramError::UnexpectedProgramType.into()),
    })
}
