//! Sockets of the host: a process that connects to a published port talks to the container directly, and
//! nothing is translated per packet.

use aya_ebpf::{
    Global,
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    macros::{cgroup_sock, cgroup_sock_addr},
    maps::LruHashMap,
    programs::{SockAddrContext, SockContext},
};
use portfwd_common::{
    forward::PortSlot,
    host::{HostDatagram, SocketKey, SocketOrigin},
    net::{Address, Ip, NetPort, Protocol, V4, V6},
};

use crate::{
    clock,
    family::Family,
    forward,
    maps::{HOST_DATAGRAMS, HOST_PEERS, HOST_SOCKETS},
    policy,
};

/// Cookie of the namespace that plays the host; set by the loader.
#[unsafe(no_mangle)]
static HOST_NETNS: Global<u64> = Global::new(0);

/// The call goes on. None of the programs here denies anything.
pub const ALLOW: i32 = 1;

/// `LOOPBACK_IFINDEX` of net/flow.h: every namespace's.
const LOOPBACK_DEVICE: u32 = 1;

/// An IPv6 address of a socket, word by word as the kernel wants it.
macro_rules! wide {
    ($socket:expr, $field:ident) => {{
        let word =
            |index: usize| core::ptr::read_volatile(&raw const (*$socket).$field[index]) as u64;
        V6(word(0) | word(1) << 32, word(2) | word(3) << 32)
    }};
}

/// The call that a program looks at.
pub struct Call(*mut bpf_sock_addr);

impl Call {
    /// Only sockets of the host's own namespace count.
    #[inline(always)]
    pub fn of_host(context: &SockAddrContext) -> Option<Self> {
        let call = Self(context.sock_addr);
        // SAFETY: a live context.
        let netns = unsafe { bpf_get_netns_cookie(call.0.cast()) };
        (netns == HOST_NETNS.load()).then_some(call)
    }
    #[inline(always)]
    pub fn protocol(&self) -> Option<Protocol> {
        // SAFETY: a live context.
        match unsafe { (*self.0).protocol } {
            6 => Some(Protocol::Tcp),
            17 => Some(Protocol::Udp),
            _ => None,
        }
    }
    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: a live context.
        unsafe { bpf_get_socket_cookie(self.0.cast()) }
    }
    #[inline(always)]
    pub fn port(&self) -> NetPort {
        // SAFETY: a live context; the port is in network order in the lower half.
        NetPort::from_wire(
            unsafe { core::ptr::read_volatile(&raw const (*self.0).user_port) } as u16,
        )
    }
    #[inline(always)]
    fn set_port(&self, port: NetPort) {
        // SAFETY: a live context; the kernel takes whole words only.
        unsafe { core::ptr::write_volatile(&raw mut (*self.0).user_port, port.wire() as u32) };
    }
    /// Whether the socket sends from a loopback address or by the loopback device, whatever it is sent to.
    #[inline(always)]
    fn is_bound_to_loopback(&self) -> bool {
        // SAFETY: a live context; the kernel checks the pointer.
        let device = unsafe {
            let socket = (*self.0).__bindgen_anon_1.sk;
            if socket.is_null() {
                return false;
            }
            (*socket).bound_dev_if
        };
        let bound = self.local_address();
        let loopback = if bound.is_v4() {
            V4::from_ip(bound).is_loopback()
        } else {
            V6::from_ip(bound).is_loopback()
        };
        device == LOOPBACK_DEVICE || loopback
    }
    /// Address that the socket is bound to; `Ip::NONE` if to none.
    #[inline(always)]
    fn local_address(&self) -> Ip {
        // SAFETY: a live context; the kernel checks the pointer, and takes single words only.
        let bound = unsafe {
            let socket = (*self.0).__bindgen_anon_1.sk;
            if socket.is_null() {
                return Ip::NONE;
            }
            if (*socket).family == V4::AF as u32 {
                V4((*socket).src_ip4).ip()
            } else {
                wide!(socket, src_ip6).ip()
            }
        };
        if bound.is_unspecified() {
            Ip::NONE
        } else {
            bound
        }
    }
    /// Port that the socket sends from.
    #[inline(always)]
    fn local_port(&self) -> NetPort {
        // SAFETY: a live context; the kernel checks the pointer, and holds this port in host order.
        unsafe {
            let socket = (*self.0).__bindgen_anon_1.sk;
            if socket.is_null() {
                NetPort::new(0)
            } else {
                NetPort::new((*socket).src_port as u16)
            }
        }
    }
}

/// The address argument of a call, in one family.
pub trait Argument: Family {
    fn read(call: &Call) -> Self;
    fn write(call: &Call, address: Self);
}

impl Argument for V4 {
    #[inline(always)]
    fn read(call: &Call) -> Self {
        // SAFETY: a live context.
        Self(unsafe { core::ptr::read_volatile(&raw const (*call.0).user_ip4) })
    }
    #[inline(always)]
    fn write(call: &Call, address: Self) {
        // SAFETY: a live context.
        unsafe { core::ptr::write_volatile(&raw mut (*call.0).user_ip4, address.0) };
    }
}

/// Words of an IPv6 argument: the kernel lets programs touch whole words only.
macro_rules! word {
    ($call:expr, $index:literal) => {
        &raw mut (*$call.0).user_ip6[$index]
    };
}

impl Argument for V6 {
    #[inline(always)]
    fn read(call: &Call) -> Self {
        // SAFETY: a live context.
        unsafe {
            let word = |at: *mut u32| core::ptr::read_volatile(at) as u64;
            Self(
                word(word!(call, 0)) | word(word!(call, 1)) << 32,
                word(word!(call, 2)) | word(word!(call, 3)) << 32,
            )
        }
    }
    #[inline(always)]
    fn write(call: &Call, address: Self) {
        // SAFETY: a live context.
        unsafe {
            core::ptr::write_volatile(word!(call, 0), address.0 as u32);
            core::ptr::write_volatile(word!(call, 1), (address.0 >> 32) as u32);
            core::ptr::write_volatile(word!(call, 2), address.1 as u32);
            core::ptr::write_volatile(word!(call, 3), (address.1 >> 32) as u32);
        }
    }
}

/// An end of a connection as a call is told it.
type End = (Ip, NetPort);

/// Where `connect` and `sendmsg` to `address` really lead, if a forward publishes it. `datagram`: the
/// socket is not connected, and may talk to many.
#[inline(always)]
fn target<A: Argument>(call: &Call, address: A, datagram: bool) -> Option<End> {
    let protocol = call.protocol()?;
    let port = call.port();
    // Linux takes the unspecified address for its own.
    let host = if address.ip().is_unspecified() {
        A::LOOPBACK
    } else {
        address
    };
    let slot = forward::slot::<A>(protocol, port);
    let published = forward::published(slot, protocol, host, port)
        .filter(|published| !published.record.target.is_unspecified())
        .filter(|_| host.is_loopback() || forward::is_host_address(host))
        // A process of the host counts as one that sends from the loopback address.
        .filter(|published| policy::admits(published, A::LOOPBACK.ip()).is_ok());
    let Some(published) = published else {
        let end = (address.ip(), port);
        let key = || SocketKey::new(call.cookie(), end.0, end.1);
        // The same socket may have got there through a published port before.
        if !datagram {
            let key = key();
            let _ = HOST_SOCKETS.remove(&key);
            forget_datagrams(protocol, &key);
        } else {
            if slot.has(PortSlot::CONTAINER_SIDE) {
                note_direct(&key());
            }
            note_datagram(call, end);
        }
        return None;
    };
    let record = published.record;
    let end = (record.target, record.target_port_of(port));
    if !published.is_unchanged() {
        return None;
    }
    // Nothing leaves the host from 127.0.0.1: refused by the closed port is better than without an answer.
    if call.is_bound_to_loopback() {
        return None;
    }
    let known_ends = if datagram { &HOST_PEERS } else { &HOST_SOCKETS };
    let key = SocketKey::new(call.cookie(), end.0, end.1);
    let (index, generation) = (published.index, published.generation);
    let origin = SocketOrigin::new(host.ip(), port, protocol, index, generation);
    note_origin(known_ends, &key, &origin)?;
    if datagram {
        note_datagram(call, end);
    } else {
        forget_datagrams(protocol, &key);
    }
    Some(end)
}

/// Remembers what a socket asked for. Without the entry the answers could not be translated back: then the
/// call is to be left alone.
#[inline(always)]
fn note_origin(
    known_ends: &LruHashMap<SocketKey, SocketOrigin>,
    key: &SocketKey,
    origin: &SocketOrigin,
) -> Option<()> {
    if said(known_ends, key) != Some(*origin) {
        known_ends.insert(key, origin, 0).ok()?;
        forward::count_connection(origin.forward);
    }
    Some(())
}

/// Once a UDP socket is connected, what it sent to that end before tells no more whom it asks.
#[inline(always)]
fn forget_datagrams(protocol: Protocol, key: &SocketKey) {
    if protocol == Protocol::Udp {
        let _ = HOST_PEERS.remove(key);
    }
}

/// Remembers that a datagram goes to the container's own address, if the socket got there through a published
/// port before: for as long as that is remembered.
#[inline(always)]
fn note_direct(key: &SocketKey) {
    let Some(mut origin) = sent_through(key) else {
        return;
    };
    if (origin.address, origin.port) != (key.peer, key.port) {
        (origin.address, origin.port) = (key.peer, key.port);
        // Without room for it the answer bears the other address.
        let _ = HOST_PEERS.insert(key, &origin, 0);
    }
}

/// What a UDP socket asked by, when its datagrams went to that end: a datagram that is sent to an address of
/// its own comes after the `connect`.
#[inline(always)]
fn sent_through(key: &SocketKey) -> Option<SocketOrigin> {
    said(&HOST_PEERS, key).or_else(|| said(&HOST_SOCKETS, key))
}

/// What the entry of `key` says. The kernel may give it to another socket while it is read, as those of LRU
/// tables: it was still this one's if it is found again.
#[inline(always)]
pub fn said(table: &LruHashMap<SocketKey, SocketOrigin>, key: &SocketKey) -> Option<SocketOrigin> {
    let entry = table.get_ptr(key)?;
    // SAFETY: an element of a map.
    let origin = unsafe { *entry };
    (table.get_ptr(key) == Some(entry)).then_some(origin)
}

/// Remembers whom an unconnected UDP socket talks to, if its own port is one that is published: the
/// answer is the socket's then.
#[inline(always)]
fn note_datagram(call: &Call, (remote, remote_port): End) {
    let local_port = call.local_port();
    if !forward::slot::<V4>(Protocol::Udp, local_port).is_published()
        && !forward::slot::<V6>(Protocol::Udp, local_port).is_published()
    {
        return;
    }
    let local = call.local_address();
    let key = HostDatagram::new(local, local_port, remote, remote_port);
    let now = clock::now();
    match HOST_DATAGRAMS.get_ptr_mut(&key) {
        // SAFETY: an aligned word of the element.
        Some(seen) => unsafe { *seen = now },
        // An entry that finds no room costs the answer at worst; the send itself goes on.
        None => drop(HOST_DATAGRAMS.insert(&key, &now, 0)),
    }
}

/// What the process that owns the socket takes the other end for; `datagram`: the sender of one.
#[inline(always)]
fn origin<A: Argument>(call: &Call, address: A, datagram: bool) -> Option<End> {
    let key = SocketKey::new(call.cookie(), address.ip(), call.port());
    let origin = if datagram {
        sent_through(&key)
    } else {
        said(&HOST_SOCKETS, &key)
    }?;
    Some((origin.address, origin.port))
}

#[inline(always)]
fn rewrite<A: Argument>(call: &Call, end: Option<End>) {
    if let Some((address, port)) = end {
        A::write(call, A::from_ip(address));
        call.set_port(port);
    }
}

/// A destination of a socket of family `A`; an IPv6 one may be given an IPv4 destination.
#[inline(always)]
fn to<A: Argument>(context: &SockAddrContext, datagram: bool) -> i32 {
    if let Some(call) = Call::of_host(context) {
        let address = A::read(&call);
        let end = if address.ip().is_v4() {
            target(&call, V4::from_ip(address.ip()), datagram)
        } else {
            target(&call, V6::from_ip(address.ip()), datagram)
        };
        rewrite::<A>(&call, end);
    }
    ALLOW
}

/// An address that is told to the owner of a socket of family `A`.
#[inline(always)]
fn from<A: Argument>(context: &SockAddrContext, datagram: bool) -> i32 {
    if let Some(call) = Call::of_host(context) {
        rewrite::<A>(&call, origin(&call, A::read(&call), datagram));
    }
    ALLOW
}

#[cgroup_sock_addr(connect4)]
pub fn connect4(context: SockAddrContext) -> i32 {
    to::<V4>(&context, false)
}
#[cgroup_sock_addr(connect6)]
pub fn connect6(context: SockAddrContext) -> i32 {
    to::<V6>(&context, false)
}
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(context: SockAddrContext) -> i32 {
    to::<V4>(&context, true)
}
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(context: SockAddrContext) -> i32 {
    to::<V6>(&context, true)
}
#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(context: SockAddrContext) -> i32 {
    from::<V4>(&context, true)
}
#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(context: SockAddrContext) -> i32 {
    from::<V6>(&context, true)
}
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(context: SockAddrContext) -> i32 {
    from::<V4>(&context, false)
}
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(context: SockAddrContext) -> i32 {
    from::<V6>(&context, false)
}

/// A socket that is closed needs its entry no more: so the table holds those that `detach` has to end.
#[cgroup_sock(sock_release)]
pub fn sock_release(context: SockContext) -> i32 {
    let socket: *mut bpf_sock = context.sock;
    // SAFETY: a live context.
    unsafe {
        let port = NetPort::from_wire((*socket).dst_port);
        if port.wire() == 0 || bpf_get_netns_cookie(socket.cast()) != HOST_NETNS.load() {
            return ALLOW;
        }
        let peer = if (*socket).family == V4::AF as u32 {
            V4((*socket).dst_ip4).ip()
        } else {
            wide!(socket, dst_ip6).ip()
        };
        let key = SocketKey::new(bpf_get_socket_cookie(socket.cast()), peer, port);
        // Most sockets have none.
        let _ = HOST_SOCKETS.remove(&key);
    }
    ALLOW
}
