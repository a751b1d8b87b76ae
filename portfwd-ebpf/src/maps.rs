//! The maps, all pinned by the loader under these names ([`portfwd_common::maps`]).

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray},
};
use portfwd_common::{
    MAX_STAGES,
    flow::{Flow, FlowKey, MAX_FLOWS, MAX_SHIFTS, MAX_STREAMS, MAX_YOUNG_FLOWS, Shift},
    forward::{AddressPort, Counters, Forward, Journal, MAX_FORWARDS, PORT_SLOTS, PortSlot},
    fragment::{Datagram, DatagramKey, Held, HeldKey, MAX_DATAGRAMS, MAX_HELD},
    host::{
        Attachment, Device, HostDatagram, Link, LinkSource, MAX_SOURCES, SocketKey, SocketOrigin,
    },
    masquerade::{
        DeviceFamily, Followed, Half, Key, MAX_ESTABLISHED, MAX_FOLLOWED, MAX_SUBNETS, MAX_YOUNG,
        Owner, PortElement, Settings,
    },
    net::{Ip, V4, V6},
    policy::MAX_RULES,
    verdict::MAX_REASONS,
};

use crate::{clock::Tick, drain::Search, pair::Work};

/// `BPF_F_MMAPABLE`: the loader writes through a mapping instead of a system call an element.
const MMAPABLE: u32 = 1 << 10;
/// `BPF_F_NO_PREALLOC`: memory only for what is there.
const ON_DEMAND: u32 = 1;

#[map(name = "ports")]
pub static PORTS: Array<u64> = Array::with_max_entries(PORT_SLOTS, MMAPABLE);
#[map(name = "address_ports")]
pub static ADDRESS_PORTS: HashMap<AddressPort, PortSlot> =
    HashMap::with_max_entries(MAX_FORWARDS, ON_DEMAND);
#[map(name = "forwards")]
pub static FORWARDS: Array<Forward> = Array::with_max_entries(MAX_FORWARDS, MMAPABLE);
#[map(name = "journal")]
pub static JOURNAL: Array<Journal> = Array::with_max_entries(1, MMAPABLE);
#[map(name = "attachments")]
pub static ATTACHMENTS: HashMap<u32, Attachment> =
    HashMap::with_max_entries(MAX_FORWARDS, ON_DEMAND);
#[map(name = "links")]
pub static LINKS: HashMap<u32, Link> = HashMap::with_max_entries(MAX_FORWARDS, ON_DEMAND);
#[map(name = "link_sources")]
pub static LINK_SOURCES: HashMap<LinkSource, u32> =
    HashMap::with_max_entries(MAX_SOURCES, ON_DEMAND);
#[map(name = "devices")]
pub static DEVICES: HashMap<u32, Device> = HashMap::with_max_entries(MAX_FORWARDS, ON_DEMAND);
#[map(name = "host_addresses")]
pub static HOST_ADDRESSES: HashMap<Ip, u32> = HashMap::with_max_entries(MAX_FORWARDS, ON_DEMAND);
#[map(name = "flows_v4")]
pub static FLOWS_V4: LruHashMap<FlowKey<V4>, Flow<V4>> = LruHashMap::with_max_entries(MAX_FLOWS, 0);
#[map(name = "flows_v6")]
pub static FLOWS_V6: LruHashMap<FlowKey<V6>, Flow<V6>> = LruHashMap::with_max_entries(MAX_FLOWS, 0);
#[map(name = "streams_v4")]
pub static STREAMS_V4: LruHashMap<FlowKey<V4>, Flow<V4>> =
    LruHashMap::with_max_entries(MAX_STREAMS, 0);
#[map(name = "streams_v6")]
pub static STREAMS_V6: LruHashMap<FlowKey<V6>, Flow<V6>> =
    LruHashMap::with_max_entries(MAX_STREAMS, 0);
#[map(name = "young_v4")]
pub static YOUNG_V4: LruHashMap<FlowKey<V4>, Flow<V4>> =
    LruHashMap::with_max_entries(MAX_YOUNG_FLOWS, 0);
#[map(name = "young_v6")]
pub static YOUNG_V6: LruHashMap<FlowKey<V6>, Flow<V6>> =
    LruHashMap::with_max_entries(MAX_YOUNG_FLOWS, 0);
/// Where what is handed to the kernel is made, one thing at a time: the verifier grants 512 bytes of
/// stack.
#[map(name = "scratch")]
pub static SCRATCH: PerCpuArray<[u64; 8]> = PerCpuArray::with_max_entries(1, 0);
/// What the flow said that this CPU's packet belongs to.
#[map(name = "seen")]
pub static SEEN: PerCpuArray<Flow<V6>> = PerCpuArray::with_max_entries(1, 0);
/// Where a connection is looked for of a forward that drains.
#[map(name = "search")]
pub static SEARCH: PerCpuArray<Search> = PerCpuArray::with_max_entries(1, 0);
#[map(name = "shifts")]
pub static SHIFTS: LruHashMap<Shift, u32> = LruHashMap::with_max_entries(MAX_SHIFTS, 0);
#[map(name = "datagrams")]
pub static DATAGRAMS: LruHashMap<DatagramKey, Datagram> =
    LruHashMap::with_max_entries(MAX_DATAGRAMS, 0);
#[map(name = "held")]
pub static HELD: LruHashMap<HeldKey, Held> = LruHashMap::with_max_entries(MAX_HELD, 0);
/// Where a fragment that is going to wait is copied to.
#[map(name = "held_scratch")]
pub static HELD_SCRATCH: PerCpuArray<Held> = PerCpuArray::with_max_entries(1, 0);
/// Key of the first fragment that this CPU is at.
#[map(name = "first_fragment")]
pub static FIRST_FRAGMENT: PerCpuArray<DatagramKey> = PerCpuArray::with_max_entries(1, 0);
#[map(name = "stages")]
pub static STAGES: ProgramArray = ProgramArray::with_max_entries(MAX_STAGES, 0);
#[map(name = "counters")]
pub static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(MAX_FORWARDS, 0);
#[map(name = "reasons")]
pub static REASONS: PerCpuArray<u64> = PerCpuArray::with_max_entries(MAX_REASONS, 0);
#[map(name = "host_sockets")]
pub static HOST_SOCKETS: LruHashMap<SocketKey, SocketOrigin> =
    LruHashMap::with_max_entries(65_536, 0);
#[map(name = "host_peers")]
pub static HOST_PEERS: LruHashMap<SocketKey, SocketOrigin> =
    LruHashMap::with_max_entries(16_384, 0);
#[map(name = "host_datagrams")]
pub static HOST_DATAGRAMS: LruHashMap<HostDatagram, u32> = LruHashMap::with_max_entries(16_384, 0);
#[map(name = "clock")]
pub static CLOCK: PerCpuArray<Tick> = PerCpuArray::with_max_entries(1, 0);
#[map(name = "owners")]
pub static OWNERS: HashMap<u32, Owner> = HashMap::with_max_entries(MAX_FORWARDS, ON_DEMAND);
#[map(name = "container_ips")]
pub static CONTAINER_IPS: HashMap<Ip, u32> = HashMap::with_max_entries(MAX_SOURCES, ON_DEMAND);
#[map(name = "subnets")]
pub static SUBNETS: LpmTrie<[u32; 4], u32> = LpmTrie::with_max_entries(MAX_SUBNETS, ON_DEMAND);
#[map(name = "policies")]
pub static POLICIES: LpmTrie<[u32; 5], u32> = LpmTrie::with_max_entries(MAX_RULES, ON_DEMAND);
#[map(name = "masquerade")]
pub static MASQUERADE: Array<Settings> = Array::with_max_entries(1, MMAPABLE);
#[map(name = "outbound_ports")]
pub static OUTBOUND_PORTS: Array<PortElement> = Array::with_max_entries(1 << 16, MMAPABLE);
#[map(name = "device_ips")]
pub static DEVICE_IPS: HashMap<DeviceFamily, Ip> =
    HashMap::with_max_entries(2 * MAX_FORWARDS, ON_DEMAND);
#[map(name = "masqueraded")]
pub static MASQUERADED: LruHashMap<Key, Half> = LruHashMap::with_max_entries(MAX_ESTABLISHED, 0);
#[map(name = "masqueraded_new")]
pub static MASQUERADED_YOUNG: LruHashMap<Key, Half> = LruHashMap::with_max_entries(MAX_YOUNG, 0);
/// Where a masqueraded packet's flow is put together.
#[map(name = "work")]
pub static WORK: PerCpuArray<Work> = PerCpuArray::with_max_entries(1, 0);
#[map(name = "outbound_frags")]
pub static MASQUERADED_FRAGMENTS: LruHashMap<DatagramKey, Followed> =
    LruHashMap::with_max_entries(MAX_FOLLOWED, 0);
#[map(name = "masquerade_mark")]
pub static MASQUERADE_MARKS: Array<[u8; 4]> = Array::with_max_entries(1 << 16, 0);
