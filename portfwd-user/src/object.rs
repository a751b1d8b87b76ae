//! The eBPF object that this binary carries: loading it and pinning what it defines.

use std::path::Path;

use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{Map, MapError, ProgramArray},
    programs::{Program, ProgramError, ProgramFd},
};
use portfwd_common::{Stage, maps, programs};
use sha2::{Digest, Sha256};

use crate::{bpffs, instance::ObjectPins};

/// The object, aligned as the ELF parser wants it.
pub static BYTES: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/portfwd.o"));

/// SHA-256 of the object in hexadecimal.
pub fn hash() -> String {
    Sha256::digest(BYTES)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// What is fixed when the programs are loaded.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Cookie of the namespace that plays the host: only its sockets are sent to containers.
    pub host_netns: u64,
    /// Highest level that the programs log: 0 is nothing and costs nothing, 5 is trace.
    pub log_level: u8,
}

/// Why the object could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The object or its maps.
    #[error("{}", first_line(.0))]
    Object(#[from] Box<aya::EbpfError>),
    /// The verifier does not take a program.
    #[error("program {name}: the verifier refuses it: {why} ({errno})")]
    Refused {
        /// Its name.
        name: String,
        /// The end of what the verifier said.
        why: String,
        /// The error that it gave: EACCES often, which is no matter of privileges here.
        errno: String,
    },
    /// One program, for another reason.
    #[error("program {name}: {}", first_line(.source))]
    Program {
        /// Its name.
        name: String,
        /// What the kernel or aya said.
        source: Box<ProgramError>,
    },
    /// The table of stages.
    #[error("stages: {}", first_line(.0))]
    Stages(#[from] MapError),
    /// The maps of an instance.
    #[error("its maps: {0}")]
    Maps(String),
    /// A pin.
    #[error("cannot pin {path}: {reason}")]
    Pin {
        /// Where.
        path: String,
        /// What the kernel said.
        reason: String,
    },
}

impl LoadError {
    fn of_program(name: &str, error: ProgramError) -> Self {
        let name = name.to_owned();
        match &error {
            ProgramError::LoadError {
                io_error,
                verifier_log,
            } => match last_words(&verifier_log.to_string()) {
                Some(why) => Self::Refused {
                    name,
                    why: why.to_owned(),
                    errno: io_error.to_string(),
                },
                None => Self::Program {
                    name,
                    source: Box::new(error),
                },
            },
            _ => Self::Program {
                name,
                source: Box::new(error),
            },
        }
    }
}

/// The verifier's log can run to thousands of lines: its last one but the statistics says why. None where it
/// had not got to look.
fn last_words(log: &str) -> Option<&str> {
    const STATISTICS: [&str; 3] = ["processed ", "verification time ", "stack depth "];
    log.lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty() && STATISTICS.iter().all(|start| !line.starts_with(start)))
}

fn first_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text.lines().next().unwrap_or_default().to_owned()
}

/// What names of programs end with that are for devices without an Ethernet header.
const L3: &str = "_l3";

/// Loads every map, and every program but those for devices without an Ethernet header, into the kernel.
/// They vanish with the returned value unless pinned.
pub fn load(options: Options) -> Result<Ebpf, LoadError> {
    load_from(BYTES, options)
}

/// The same from another object than the embedded one.
pub fn load_from(object: &[u8], options: Options) -> Result<Ebpf, LoadError> {
    let mut ebpf = load_with(EbpfLoader::new(), object, &options)?;
    load_frames(&mut ebpf)?;
    Ok(ebpf)
}

/// Loads every program once more, over the maps of an instance that are pinned in `maps`; with `l3` those for devices
/// without an Ethernet header too. Its table of stages is a new one: no program calls one of another object.
///
/// # Errors
/// When the kernel does not take them.
pub fn load_over(options: Options, maps: &Path, l3: bool) -> Result<Ebpf, LoadError> {
    let mut ebpf = load_maps(options, maps, None)?;
    load_frames(&mut ebpf)?;
    if l3 {
        load_packets(&mut ebpf)?;
    }
    Ok(ebpf)
}

/// Whether an instance has the programs for devices without an Ethernet header.
pub fn has_l3(object: &ObjectPins) -> bool {
    // The last to be pinned says that all of it is done.
    object.programs().join(programs::TC_DEVICE_L3).exists()
}

/// Adds the programs for devices without an Ethernet header to an instance, if it has not got them: the
/// kernel takes as long to verify them as all others, and most hosts have no such device.
pub fn add_l3(options: Options, maps: &Path, object: &ObjectPins) -> Result<(), LoadError> {
    if has_l3(object) {
        return Ok(());
    }
    let mut ebpf = load_maps(options, maps, Some(&object.stages()))?;
    load_packets(&mut ebpf)?;
    let programs = object.programs();
    let mut loaded: Vec<_> = ebpf
        .programs_mut()
        .filter(|(name, _)| name.ends_with(L3))
        .collect();
    loaded.sort_by_key(|(name, _)| *name == programs::TC_DEVICE_L3);
    for (name, program) in loaded {
        let path = programs.join(name);
        // What a command that was killed has left here is the same program.
        if !path.exists() {
            pin_program(program, &path)?;
        }
    }
    Ok(())
}

/// The programs of TC once more, with the maps of an instance that say what is published, and with tables of their
/// own, which are small, for what they write: whatever they are run over, nothing comes of it. `l3`: those for devices
/// without an Ethernet header.
///
/// # Errors
/// When the kernel does not take them.
pub fn rehearse(options: Options, maps: &Path, l3: bool) -> Result<Ebpf, LoadError> {
    /// More would be memory, and no flow is there but that of the packet.
    const ENTRIES: u32 = 64;
    let mut loader = EbpfLoader::new();
    for name in READ {
        loader.map_pin_path(name, maps.join(name));
    }
    for name in WRITTEN {
        loader.map_max_entries(name, ENTRIES);
    }
    let mut ebpf = load_with(loader, BYTES, &options)?;
    let stages = Stage::ALL.map(|stage| {
        let own = match l3 {
            true => stage.program_l3(),
            false => Some(stage.program()),
        };
        (stage.place(l3), own)
    });
    let hooks = match l3 {
        true => [programs::TC_DEVICE_L3, programs::TC_EGRESS_L3],
        false => [programs::TC_DEVICE, programs::TC_LINK],
    };
    let is_wanted =
        |name: &str| hooks.contains(&name) || stages.iter().any(|(_, own)| *own == Some(name));
    load_programs(&mut ebpf, is_wanted)?;
    connect_stages(&mut ebpf, &stages)?;
    Ok(ebpf)
}

/// Maps that programs only read, or that the loader writes.
const READ: [&str; 15] = [
    maps::PORTS,
    maps::ADDRESS_PORTS,
    maps::FORWARDS,
    maps::JOURNAL,
    maps::LINKS,
    maps::LINK_SOURCES,
    maps::DEVICES,
    maps::HOST_ADDRESSES,
    maps::OWNERS,
    maps::CONTAINER_IPS,
    maps::SUBNETS,
    maps::POLICIES,
    maps::MASQUERADE,
    maps::OUTBOUND_PORTS,
    maps::DEVICE_IPS,
];

/// Large tables that programs write.
const WRITTEN: [&str; 13] = [
    maps::FLOWS_V4,
    maps::FLOWS_V6,
    maps::STREAMS_V4,
    maps::STREAMS_V6,
    maps::YOUNG_V4,
    maps::YOUNG_V6,
    maps::SHIFTS,
    maps::HELD,
    maps::HOST_SOCKETS,
    maps::HOST_PEERS,
    maps::HOST_DATAGRAMS,
    maps::MASQUERADED,
    maps::MASQUERADED_YOUNG,
];

/// The object with the maps that are pinned in `pins`; its table of stages is a new one if no pin is given.
fn load_maps(options: Options, pins: &Path, stages: Option<&Path>) -> Result<Ebpf, LoadError> {
    let names = bpffs::names(pins).map_err(|error| LoadError::Maps(first_line(&error)))?;
    let mut loader = EbpfLoader::new();
    for name in &names {
        loader.map_pin_path(name, pins.join(name));
    }
    if let Some(pin) = stages {
        loader.map_pin_path(maps::STAGES, pin);
    }
    load_with(loader, BYTES, &options)
}

fn load_with<'a>(
    mut loader: EbpfLoader<'a>,
    object: &[u8],
    options: &'a Options,
) -> Result<Ebpf, LoadError> {
    let ebpf = loader
        .verifier_log_level(VerifierLogLevel::STATS)
        .override_global("HOST_NETNS", &options.host_netns, true)
        .override_global(aya_log::LEVEL, &options.log_level, false)
        .load(object);
    Ok(ebpf.map_err(Box::new)?)
}

/// Every program but those for devices without an Ethernet header.
fn load_frames(ebpf: &mut Ebpf) -> Result<(), LoadError> {
    load_programs(ebpf, |name| !name.ends_with(L3))?;
    let stages = Stage::ALL.map(|stage| (stage.place(false), Some(stage.program())));
    connect_stages(ebpf, &stages)
}

/// Those for devices without an Ethernet header.
fn load_packets(ebpf: &mut Ebpf) -> Result<(), LoadError> {
    load_programs(ebpf, |name| name.ends_with(L3))?;
    let stages = Stage::ALL.map(|stage| (stage.place(true), stage.program_l3()));
    connect_stages(ebpf, &stages)
}

fn load_programs(ebpf: &mut Ebpf, wanted: impl Fn(&str) -> bool) -> Result<(), LoadError> {
    for (name, program) in ebpf.programs_mut().filter(|(name, _)| wanted(name)) {
        let loaded = match program {
            Program::SchedClassifier(program) => program.load(),
            Program::Xdp(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            Program::CgroupSock(program) => program.load(),
            _ => Err(ProgramError::UnexpectedProgramType),
        };
        loaded.map_err(|error| LoadError::of_program(name, error))?;
    }
    Ok(())
}

/// Lets the programs of the hooks find those of the stages, by their places.
fn connect_stages(
    ebpf: &mut Ebpf,
    stages: &[(u32, Option<&'static str>)],
) -> Result<(), LoadError> {
    let programs: Vec<(u32, ProgramFd)> = stages
        .iter()
        .filter_map(|(place, program)| Some((*place, (*program)?)))
        .map(|(place, program)| Ok((place, program_fd(ebpf, program)?)))
        .collect::<Result<_, LoadError>>()?;
    let missing = || MapError::InvalidName {
        name: maps::STAGES.to_owned(),
    };
    let map = ebpf.map_mut(maps::STAGES).ok_or_else(missing)?;
    let mut stages = ProgramArray::try_from(map)?;
    for (place, program) in &programs {
        stages.set(*place, program, 0)?;
    }
    Ok(())
}

fn program_fd(ebpf: &Ebpf, name: &str) -> Result<ProgramFd, LoadError> {
    let failed = |source| LoadError::Program {
        name: name.to_owned(),
        source: Box::new(source),
    };
    let fd = match ebpf.program(name) {
        Some(Program::SchedClassifier(program)) => program.fd(),
        _ => Err(ProgramError::UnexpectedProgramType),
    };
    let fd = fd.map_err(failed)?;
    fd.try_clone().map_err(|source| failed(source.into()))
}

/// Pins every map under `maps`, by name, but the table of stages.
pub fn pin_maps(ebpf: &Ebpf, maps: &Path) -> Result<(), LoadError> {
    // Constants of the programs: nobody opens them again.
    let shared = |(name, _): &(&str, _)| !name.starts_with('.') && *name != maps::STAGES;
    let mut shared = ebpf.maps().filter(shared);
    shared.try_for_each(|(name, map)| pin_map(map, &maps.join(name)))
}

/// Pins what belongs to the object alone: every program that is loaded, and the table of stages.
pub fn pin_programs(ebpf: &mut Ebpf, object: &ObjectPins) -> Result<(), LoadError> {
    let stages = ebpf.map(maps::STAGES);
    stages.map_or(Ok(()), |map| pin_map(map, &object.stages()))?;
    let programs = object.programs();
    ebpf.programs_mut()
        .filter(|(_, program)| program.fd().is_ok())
        .try_for_each(|(name, program)| pin_program(program, &programs.join(name)))
}

fn pin_map(map: &Map, path: &Path) -> Result<(), LoadError> {
    map.pin(path).map_err(|error| LoadError::Pin {
        path: path.display().to_string(),
        reason: first_line(&error),
    })
}

fn pin_program(program: &mut Program, path: &Path) -> Result<(), LoadError> {
    program.pin(path).map_err(|error| LoadError::Pin {
        path: path.display().to_string(),
        reason: first_line(&error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_refusal_is_the_last_line_before_the_statistics() {
        let log = "0: R1=ctx() R10=fp0\n1: (bf) r6 = r9\nR9 !read_ok\nverification time 51 usec\n\
            stack depth 0\nprocessed 2 insns (limit 1000000) max_states_per_insn 0\n\n";
        assert_eq!(last_words(log), Some("R9 !read_ok"));
        assert_eq!(last_words("\nprocessed 0 insns\n"), None);
    }
}
