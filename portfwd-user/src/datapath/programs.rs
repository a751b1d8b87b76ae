//! The programs of an instance change: to those of another build, or to such that log at another level. The maps stay,
//! and with them every flow and every forward.
//!
//! The new ones are pinned as `next`, then every attachment goes over, then `next` and `object` change places. A command
//! that finds a `next` comes after one that was killed in between: it lets those of `object` run, and removes the others.

use aya::Ebpf;
use clap::ValueEnum as _;
use portfwd_common::maps;

use super::{Datapath, Writable};
use crate::{
    cli::LogLevel,
    error::{Doing, Error},
    hooks,
    instance::{Layout, Locked, ObjectPins},
    object,
    observe::{
        links::{Carries, Link},
        netns::Netns,
    },
    tables,
};

/// The programs of this build over the maps of an instance, none of which runs yet.
pub struct Loaded {
    ebpf: Ebpf,
    fit: Fit,
}

/// What programs are loaded for.
#[derive(PartialEq, Eq)]
struct Fit {
    /// ID of the map that is the instance's journal.
    journal: Option<u32>,
    level: LogLevel,
    /// Whether those for devices without an Ethernet header are among them.
    l3: bool,
}

impl Datapath {
    /// Whether the programs that run are of the object that this binary carries.
    ///
    /// # Errors
    /// When the instance cannot be read.
    pub fn runs_own_build(&self) -> Result<bool, Error> {
        Ok(self.layout.object().hash()? == Some(object::hash()))
    }

    /// What the programs log.
    ///
    /// # Errors
    /// When the instance cannot be read.
    pub fn log_level(&self) -> Result<LogLevel, Error> {
        log_level(&self.layout.object())
    }

    /// Loads the programs of this build, for the given level of their log if there is one, unless just these run. The
    /// kernel takes a second to verify them: nobody has to wait for that.
    ///
    /// # Errors
    /// When the kernel does not take them.
    pub fn load_own(&self, level: Option<LogLevel>) -> Result<Option<Loaded>, Error> {
        let fit = self.fit(level)?;
        if self.runs_own_build()? && self.log_level()? == fit.level {
            return Ok(None);
        }
        let options = object::Options {
            host_netns: self.tables.journal.get(0).host_netns,
            log_level: fit.level as u8,
        };
        let ebpf = object::load_over(options, &self.layout.maps(), fit.l3)
            .doing(|| "load the eBPF programs".to_owned())?;
        Ok(Some(Loaded { ebpf, fit }))
    }

    fn fit(&self, level: Option<LogLevel>) -> Result<Fit, Error> {
        Ok(Fit {
            journal: tables::map_id(&self.layout.maps().join(maps::JOURNAL)),
            level: level.map_or_else(|| self.log_level(), Ok)?,
            l3: object::has_l3(&self.layout.object()),
        })
    }
}

impl Writable {
    /// Lets the programs of this build run, with the given level of their log if there is one: those that were loaded
    /// before the instance was locked, if they are still the right ones. Says whether those of another build ran until
    /// now.
    ///
    /// # Errors
    /// When the kernel does not take them. The others go on, all or some: the next command that writes lets all of them.
    pub fn run_own(
        &self,
        early: Option<Loaded>,
        level: Option<LogLevel>,
        host: &Netns,
    ) -> Result<bool, Error> {
        let fit = self.datapath.fit(level)?;
        let loaded = match early.filter(|early| early.fit == fit) {
            None => self.datapath.load_own(level)?,
            early => early,
        };
        let Some(loaded) = loaded else {
            return Ok(false);
        };
        let others = !self.datapath.runs_own_build()?;
        self.exchange(loaded, host)?;
        Ok(others)
    }

    /// Lets the programs of this build run if one of these devices needs some that those of another build have not
    /// loaded: programs of two builds do not share a table of stages.
    ///
    /// # Errors
    /// As [`Writable::run_own`].
    pub fn run_own_for<'a>(
        &self,
        devices: impl IntoIterator<Item = &'a Link>,
        host: &Netns,
    ) -> Result<(), Error> {
        let mut devices = devices.into_iter();
        let lacks = devices.any(|device| device.carries == Carries::Packets)
            && !object::has_l3(&self.datapath.layout.object());
        if lacks && !self.datapath.runs_own_build()? {
            self.run_own(None, None, host)?;
        }
        Ok(())
    }

    fn exchange(&self, mut loaded: Loaded, host: &Netns) -> Result<(), Error> {
        let layout = &self.datapath.layout;
        let next = self.locked.begin_next(layout)?;
        pin(&mut loaded.ebpf, &next, loaded.fit.level)?;
        hooks::swap(layout, &layout.object(), &next, host)?;
        self.locked.exchange(layout)?;
        self.locked.remove_next(layout)
    }
}

/// What the programs of an object log.
///
/// # Errors
/// When its pins cannot be listed.
pub fn log_level(object: &ObjectPins) -> Result<LogLevel, Error> {
    let noted = object.level()?;
    let level = noted.and_then(|level| LogLevel::from_str(&level, false).ok());
    Ok(level.unwrap_or(LogLevel::Off))
}

/// Pins what belongs to a loaded object alone, and notes which it is.
pub(super) fn pin(ebpf: &mut Ebpf, object: &ObjectPins, level: LogLevel) -> Result<(), Error> {
    object::pin_programs(ebpf, object).doing(|| "load the eBPF programs".to_owned())?;
    object.note(&object::hash(), level.name())
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
