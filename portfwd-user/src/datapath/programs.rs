//! The programs of an instance change: to those of another build, or to such that log at another level. The maps stay,
//! and with them every flow and every forward.
//!
//! The new ones are pinned as `next`, then every attachment goes over, then `next` and `object` change places. A command
//! that finds a `next` comes after one that was killed in between: it lets those of `object` run, and removes the others.

use std::{mem::offset_of, sync::atomic::Ordering};

use portfwd_common::forward::Journal;

use super::{Datapath, Writable};
use crate::{
    cli::LogLevel,
    error::{Doing, Error},
    hooks,
    instance::{Layout, Locked},
    object,
    observe::netns::Netns,
};

impl Datapath {
    /// Whether the programs that run are of the object that this binary carries.
    ///
    /// # Errors
    /// When the instance cannot be read.
    pub fn runs_own_build(&self) -> Result<bool, Error> {
        Ok(self.layout.object().hash()? == Some(object::hash()))
    }
}

impl Writable {
    /// Lets the programs of this build run, with the given level of their log if there is one. Says whether those of another
    /// build ran until now.
    ///
    /// # Errors
    /// When the kernel does not take them. The others go on, all or some: the next command that writes lets all of them.
    pub fn change_programs(&self, level: Option<LogLevel>, host: &Netns) -> Result<bool, Error> {
        let layout = &self.datapath.layout;
        let journal = self.datapath.tables.journal.get(0);
        let level = level.map_or(journal.log_level, |level| level as u64);
        let others = !self.datapath.runs_own_build()?;
        if !others && level == journal.log_level {
            return Ok(false);
        }
        let doing = || "load the eBPF programs".to_owned();
        let options = object::Options {
            host_netns: journal.host_netns,
            log_level: level as u8,
        };
        let l3 = object::has_l3(&layout.object());
        let mut ebpf = object::load_over(options, &layout.maps(), l3).doing(doing)?;
        let next = self.locked.begin_next(layout)?;
        object::pin_programs(&mut ebpf, &next).doing(doing)?;
        next.note_hash(&object::hash())?;
        hooks::swap(layout, &layout.object(), &next, host)?;
        self.locked.exchange(layout)?;
        let at = offset_of!(Journal, log_level);
        let word = self.datapath.tables.journal.word(0, at);
        word.store(level, Ordering::Relaxed);
        self.locked.remove_next(layout)?;
        Ok(others)
    }
}

/// Ends what a command has left that was killed while it changed the programs.
pub(super) fn settle(locked: &Locked, layout: &Layout, host: &Netns) -> Result<(), Error> {
    let next = layout.next();
    if next.exists() {
        hooks::swap(layout, &next, &layout.object(), host)?;
        locked.remove_next(layout)?;
    }
    Ok(())
}
