//! The instance's maps, typed.

pub mod batch;

use std::{
    io, iter,
    marker::PhantomData,
    mem::size_of,
    os::fd::AsFd,
    path::Path,
    sync::{OnceLock, atomic::AtomicU64},
};

use aya::{
    Ebpf, Pod,
    maps::{HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray},
};
use memmap2::{MmapOptions, MmapRaw};
use portfwd_common::{
    flow::{Flow, FlowKey, Shift},
    forward::{AddressPort, Counters, Forward, Journal, MAX_FORWARDS, PORT_SLOTS, PortSlot},
    host::{Attachment, Device, HostDatagram, Link, LinkSource, SocketKey, SocketOrigin},
    maps,
    masquerade::{DeviceFamily, Half, Key, Owner, PortElement, Settings},
    net::{Ip, V4, V6},
    policy::KEY_LENGTH,
    programs,
};

/// Why a table could not be opened or used.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The map is missing, or of another type or size than this version's.
    #[error("map {name}: {source}")]
    Map {
        /// Its name.
        name: &'static str,
        /// What the kernel or aya said.
        source: Box<MapError>,
    },
    /// The map could not be mapped into memory.
    #[error("map {name}: cannot map it: {source}")]
    Memory {
        /// Its name.
        name: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The map has another shape than this version's.
    #[error("map {name}: {entries} entries of {value} bytes are not of this version")]
    Shape {
        /// Its name.
        name: &'static str,
        /// Size of an entry in bytes.
        value: usize,
        /// Number of entries.
        entries: u32,
    },
    /// A table has no room left.
    #[error("table {name} is full: it holds {capacity} entries")]
    Full {
        /// Its name.
        name: &'static str,
        /// How many entries it holds.
        capacity: u32,
    },
}

impl TableError {
    /// The next step, if there is one to tell.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        let Self::Full { name, .. } = self else {
            return None;
        };
        match *name {
            maps::FORWARDS => Some(
                "a port that is published singly takes an entry for each address family, and what it replaces keeps \
                 its own until then: give ranges such as 8000-8999:8000-8999, or detach first",
            ),
            maps::ADDRESS_PORTS => Some(
                "each block of 256 ports of a host address takes an entry, or a port that is published singly: give \
                 ranges such as 192.0.2.1:8000-8999:8000-8999, or no host address, or detach first",
            ),
            maps::POLICIES => Some(
                "each range of --allow and --deny takes an entry for each attach that gives it: give wider ones, or \
                 detach first",
            ),
            maps::SUBNETS => Some(
                "give one wider subnet in place of several; portfwd masquerade list shows every one",
            ),
            _ => None,
        }
    }
    /// E2BIG is how a hash says that it is full (`htab_map_update_elem`).
    pub fn full_or(name: &'static str, capacity: u32, source: MapError) -> Self {
        match &source {
            MapError::SyscallError(call)
                if call.io_error.raw_os_error() == Some(nix::libc::E2BIG) =>
            {
                Self::Full { name, capacity }
            }
            _ => Self::Map {
                name,
                source: Box::new(source),
            },
        }
    }
}

/// Bytes of an array that are mapped at once. The kernel makes all pages of a mapping present at once
/// (`remap_vmalloc_range`), and few commands look at more than a few of them.
const SEGMENT: usize = 128 << 10;

/// A mapped array (`BPF_F_MMAPABLE`). The kernel's programs read it at the same time, so single words
/// are stored and loaded volatile, and what must change at once is one word.
pub struct Mapped<T> {
    name: &'static str,
    data: MapData,
    segments: Vec<OnceLock<MmapRaw>>,
    length: u32,
    _type: PhantomData<T>,
}

impl<T: bytemuck::Pod> Mapped<T> {
    /// Elements of a segment.
    const PER_SEGMENT: u32 = (SEGMENT / size_of::<T>()) as u32;

    fn open(name: &'static str, data: MapData, length: u32) -> Result<Self, TableError> {
        let info = data.info().map_err(|source| TableError::Map {
            name,
            source: Box::new(source),
        })?;
        let (value, entries) = (info.value_size() as usize, info.max_entries());
        if value != size_of::<T>() || entries != length {
            return Err(TableError::Shape {
                name,
                value,
                entries,
            });
        }
        let segments = length.div_ceil(Self::PER_SEGMENT) as usize;
        assert!(
            segments == 1 || SEGMENT.is_multiple_of(size_of::<T>()),
            "an element of {name} would lie in two segments"
        );
        let mapped = Self {
            name,
            data,
            segments: iter::repeat_with(OnceLock::new).take(segments).collect(),
            length,
            _type: PhantomData,
        };
        mapped.reach(0, 1)?;
        Ok(mapped)
    }
    /// Maps `count` elements from `first` on, so that whoever looks at them needs no memory for it.
    ///
    /// # Errors
    /// When the kernel has none.
    pub fn reach(&self, first: u32, count: u32) -> Result<(), TableError> {
        let end = first.saturating_add(count).min(self.length);
        for segment in first / Self::PER_SEGMENT..end.div_ceil(Self::PER_SEGMENT) {
            let segment = segment as usize;
            if self.segments[segment].get().is_none() {
                let memory = self.map(segment)?;
                self.segments[segment].get_or_init(|| memory);
            }
        }
        Ok(())
    }
    fn map(&self, segment: usize) -> Result<MmapRaw, TableError> {
        let first = segment * SEGMENT;
        let bytes = self.length as usize * size_of::<T>() - first;
        MmapOptions::new()
            .offset(first as u64)
            .len(bytes.min(SEGMENT))
            .map_raw(&self.data.fd().as_fd())
            .map_err(|source| TableError::Memory {
                name: self.name,
                source,
            })
    }
    /// Number of elements.
    pub fn len(&self) -> u32 {
        self.length
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
    /// Where element `index` lies.
    ///
    /// # Panics
    /// Beyond the end, which no caller's input reaches; and of what was not [reached](Self::reach), without memory.
    pub fn at(&self, index: u32) -> *mut T {
        assert!(index < self.length, "element {index} of {}", self.length);
        let segment = (index / Self::PER_SEGMENT) as usize;
        let memory = self.segments[segment]
            .get_or_init(|| self.map(segment).unwrap_or_else(|error| panic!("{error}")));
        // SAFETY: within the segment, which has all elements up to the end of the next one or of the array.
        unsafe {
            memory
                .as_mut_ptr()
                .cast::<T>()
                .add((index % Self::PER_SEGMENT) as usize)
        }
    }
    /// The aligned 64-bit word at `offset` of element `index`: what programs must see change at once.
    /// Panics if there is none.
    pub fn word(&self, index: u32, offset: usize) -> &AtomicU64 {
        assert!(
            offset.is_multiple_of(8) && offset + 8 <= size_of::<T>(),
            "word at {offset}"
        );
        // SAFETY: within the element by the assertion, which `at` has found within the mapping; elements
        // of every map are aligned to 8 bytes, and nobody has a plain reference to them.
        unsafe { AtomicU64::from_ptr(self.at(index).cast::<u8>().add(offset).cast()) }
    }
    /// A copy of element `index`.
    pub fn get(&self, index: u32) -> T {
        // SAFETY: `at` is in bounds, aligned (maps start on a page) and any bytes make a `T`.
        unsafe { core::ptr::read_volatile(self.at(index)) }
    }
    /// Stores element `index`.
    pub fn set(&mut self, index: u32, value: T) {
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(self.at(index), value) }
    }
}

/// A hash of the instance.
pub type Hash<K, V> = HashMap<MapData, K, V>;

/// A table of flows, under the name of its map.
pub type FlowTable<A> = (&'static str, Hash<FlowKey<A>, Flow<A>>);

/// The flows of one family.
pub struct Flows<A> {
    /// Settled connections.
    pub settled: FlowTable<A>,
    /// UDP streams.
    pub streams: FlowTable<A>,
    /// Young ones.
    pub young: FlowTable<A>,
}

impl<A> Flows<A>
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    fn open(
        [settled, streams, young]: [&'static str; 3],
        mut data: impl FnMut(&'static str) -> Result<MapData, TableError>,
    ) -> Result<Self, TableError> {
        let mut table = |name| Ok((name, hash(name, data(name)?)?));
        Ok(Self {
            settled: table(settled)?,
            streams: table(streams)?,
            young: table(young)?,
        })
    }
    /// All of them. A flow that moves meanwhile may be in two, or be missed.
    pub fn tables(&self) -> [&FlowTable<A>; 3] {
        [&self.young, &self.settled, &self.streams]
    }
    /// The same to change. Young ones come first: a flow that settles meanwhile is in both tables, or in
    /// the other.
    pub fn tables_mut(&mut self) -> [&mut FlowTable<A>; 3] {
        [&mut self.young, &mut self.settled, &mut self.streams]
    }
    /// How many flows there are.
    ///
    /// # Errors
    /// When a table cannot be read.
    pub fn count(&self) -> Result<usize, TableError> {
        let mut all = 0;
        for (name, flows) in self.tables() {
            for entry in batch::entries(flows) {
                entry.map_err(|source| TableError::Map {
                    name,
                    source: Box::new(source),
                })?;
                all += 1;
            }
        }
        Ok(all)
    }
}

/// Every map of an instance.
pub struct Tables {
    /// Port slots, as the 64 bits that are stored at once.
    pub ports: Mapped<u64>,
    /// Forwards.
    pub forwards: Mapped<Forward>,
    /// The journal.
    pub journal: Mapped<Journal>,
    /// Forwards of one host address.
    pub address_ports: Hash<AddressPort, PortSlot>,
    /// Containers.
    pub attachments: Hash<u32, Attachment>,
    /// Host-side links of containers.
    pub links: Hash<u32, Link>,
    /// What containers may send from.
    pub link_sources: Hash<LinkSource, u32>,
    /// Devices that own an address.
    pub devices: Hash<u32, Device>,
    /// Addresses of the host.
    pub host_addresses: Hash<Ip, u32>,
    /// IPv4 flows.
    pub flows_v4: Flows<V4>,
    /// IPv6 flows.
    pub flows_v6: Flows<V6>,
    /// Clients' ports that were changed.
    pub shifts: Hash<Shift, u32>,
    /// Traffic of forwards.
    pub counters: PerCpuArray<MapData, Counters>,
    /// Counts of reasons.
    pub reasons: PerCpuArray<MapData, u64>,
    /// Connected host sockets that were sent to a container.
    pub host_sockets: Hash<SocketKey, SocketOrigin>,
    /// Unconnected ones.
    pub host_peers: Hash<SocketKey, SocketOrigin>,
    /// Remote ends of the host's unconnected UDP sockets.
    pub host_datagrams: Hash<HostDatagram, u32>,
    /// Attached containers and masqueraded subnets, by ID.
    pub owners: Hash<u32, Owner>,
    /// Addresses of attached containers, with their owners.
    pub container_ips: Hash<Ip, u32>,
    /// Subnets that are masqueraded, with their owners; IPv4 is mapped into IPv6.
    pub subnets: LpmTrie<MapData, [u8; 16], u32>,
    /// Which clients may open connections.
    pub policies: LpmTrie<MapData, [u8; KEY_LENGTH], u32>,
    /// What masquerade depends on.
    pub masquerade: Mapped<Settings>,
    /// Ports that masqueraded flows may have.
    pub outbound_ports: Mapped<PortElement>,
    /// Addresses that devices give masqueraded flows.
    pub device_ips: Hash<DeviceFamily, Ip>,
    /// Masqueraded flows that are established.
    pub masqueraded: Hash<Key, Half>,
    /// Those that are not.
    pub masqueraded_young: Hash<Key, Half>,
}

fn hash<K: Pod, V: Pod>(name: &'static str, data: MapData) -> Result<Hash<K, V>, TableError> {
    let map = Map::from_map_data(data).map_err(|e| TableError::Map {
        name,
        source: Box::new(e),
    })?;
    HashMap::try_from(map).map_err(|e| TableError::Map {
        name,
        source: Box::new(e),
    })
}

fn trie<K: Pod, V: Pod>(
    name: &'static str,
    data: MapData,
) -> Result<LpmTrie<MapData, K, V>, TableError> {
    let failed = |e| TableError::Map {
        name,
        source: Box::new(e),
    };
    LpmTrie::try_from(Map::from_map_data(data).map_err(failed)?).map_err(failed)
}

fn per_cpu<V: Pod>(
    name: &'static str,
    data: MapData,
) -> Result<PerCpuArray<MapData, V>, TableError> {
    let map = Map::from_map_data(data).map_err(|e| TableError::Map {
        name,
        source: Box::new(e),
    })?;
    PerCpuArray::try_from(map).map_err(|e| TableError::Map {
        name,
        source: Box::new(e),
    })
}

impl Tables {
    /// Opens the maps pinned in `directory`.
    pub fn open(directory: &Path) -> Result<Self, TableError> {
        Self::from_source(|name| {
            MapData::from_pin(directory.join(name)).map_err(|e| TableError::Map {
                name,
                source: Box::new(e),
            })
        })
    }

    /// The maps of an object that is loaded but not pinned.
    pub fn of(ebpf: &Ebpf) -> Result<Self, TableError> {
        Self::from_source(|name| {
            let missing = || MapError::InvalidName {
                name: name.to_owned(),
            };
            let failed = |source| TableError::Map {
                name,
                source: Box::new(source),
            };
            let map = ebpf.map(name).ok_or_else(|| failed(missing()))?;
            let fd = map_data(map).ok_or_else(|| failed(missing()))?.fd().as_fd();
            let fd = fd
                .try_clone_to_owned()
                .map_err(|source| TableError::Memory { name, source })?;
            MapData::from_fd(fd).map_err(failed)
        })
    }

    fn from_source(
        mut open: impl FnMut(&'static str) -> Result<MapData, TableError>,
    ) -> Result<Self, TableError> {
        let journal = Mapped::<Journal>::open(maps::JOURNAL, open(maps::JOURNAL)?, 1)?;
        let forwards = Mapped::open(maps::FORWARDS, open(maps::FORWARDS)?, MAX_FORWARDS)?;
        forwards.reach(0, journal.get(0).forwards_used)?;
        Ok(Self {
            ports: Mapped::open(maps::PORTS, open(maps::PORTS)?, PORT_SLOTS)?,
            forwards,
            journal,
            address_ports: hash(maps::ADDRESS_PORTS, open(maps::ADDRESS_PORTS)?)?,
            attachments: hash(maps::ATTACHMENTS, open(maps::ATTACHMENTS)?)?,
            links: hash(maps::LINKS, open(maps::LINKS)?)?,
            link_sources: hash(maps::LINK_SOURCES, open(maps::LINK_SOURCES)?)?,
            devices: hash(maps::DEVICES, open(maps::DEVICES)?)?,
            host_addresses: hash(maps::HOST_ADDRESSES, open(maps::HOST_ADDRESSES)?)?,
            flows_v4: Flows::open(
                [maps::FLOWS_V4, maps::STREAMS_V4, maps::YOUNG_V4],
                &mut open,
            )?,
            flows_v6: Flows::open(
                [maps::FLOWS_V6, maps::STREAMS_V6, maps::YOUNG_V6],
                &mut open,
            )?,
            shifts: hash(maps::SHIFTS, open(maps::SHIFTS)?)?,
            counters: per_cpu(maps::COUNTERS, open(maps::COUNTERS)?)?,
            reasons: per_cpu(maps::REASONS, open(maps::REASONS)?)?,
            host_sockets: hash(maps::HOST_SOCKETS, open(maps::HOST_SOCKETS)?)?,
            host_peers: hash(maps::HOST_PEERS, open(maps::HOST_PEERS)?)?,
            host_datagrams: hash(maps::HOST_DATAGRAMS, open(maps::HOST_DATAGRAMS)?)?,
            owners: hash(maps::OWNERS, open(maps::OWNERS)?)?,
            container_ips: hash(maps::CONTAINER_IPS, open(maps::CONTAINER_IPS)?)?,
            subnets: trie(maps::SUBNETS, open(maps::SUBNETS)?)?,
            policies: trie(maps::POLICIES, open(maps::POLICIES)?)?,
            masquerade: Mapped::open(maps::MASQUERADE, open(maps::MASQUERADE)?, 1)?,
            outbound_ports: Mapped::open(
                maps::OUTBOUND_PORTS,
                open(maps::OUTBOUND_PORTS)?,
                1 << 16,
            )?,
            device_ips: hash(maps::DEVICE_IPS, open(maps::DEVICE_IPS)?)?,
            masqueraded: hash(maps::MASQUERADED, open(maps::MASQUERADED)?)?,
            masqueraded_young: hash(maps::MASQUERADED_YOUNG, open(maps::MASQUERADED_YOUNG)?)?,
        })
    }
}

/// Whether what was to be removed was not there (ENOENT).
pub fn is_gone(error: &MapError) -> bool {
    match error {
        MapError::KeyNotFound => true,
        MapError::SyscallError(call) => call.io_error.raw_os_error() == Some(nix::libc::ENOENT),
        _ => false,
    }
}

/// ID of the map that is pinned at `path`, if one is.
pub fn map_id(path: &Path) -> Option<u32> {
    Some(MapData::from_pin(path).ok()?.info().ok()?.id())
}

/// The journals of all instances of the kernel, with the IDs of their maps. Only those that can be seen:
/// without CAP_SYS_ADMIN, none.
///
/// They are looked for among the maps of a program that hands nothing on to stages. If every map were opened,
/// so would be tables of programs that are just being given up: the kernel would clear such a table a second
/// time, lose count of who holds it (`prog_array_map_clear`) and keep it for ever.
pub fn journals() -> impl Iterator<Item = (u32, Journal)> {
    aya::programs::loaded_programs()
        // What has gone meanwhile is none.
        .filter_map(Result::ok)
        .filter(|program| program.name_as_str() == Some(programs::SOCKET[0]))
        .filter_map(|program| program.map_ids().ok().flatten())
        .flatten()
        .filter_map(|id| Some((id, journal(id)?)))
}

/// The journal in the map with that ID, if it is one.
fn journal(id: u32) -> Option<Journal> {
    let data = MapData::from_id(id).ok()?;
    let ours = data.info().ok()?.name_as_str() == Some(maps::JOURNAL);
    let journal = ours.then(|| Mapped::open(maps::JOURNAL, data, 1).ok())??;
    Some(journal.get(0))
}

fn map_data(map: &Map) -> Option<&MapData> {
    Some(match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::LpmTrie(data)
        | Map::PerCpuArray(data) => data,
        _ => return None,
    })
}
