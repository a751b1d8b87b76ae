//! Connections through a forward that another one follows at its ports: they go where they went, as long as it
//! drains. They are looked for by a stage of their own, which hands the packet back with what it has found.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_loop;
use portfwd_common::{
    Stage,
    flow::{FlowKey, Shift},
    forward::{MAX_FORMERS, PortSlot},
    net::{Address, V4, V6},
};

use crate::{
    family::Family,
    flow::{self, Found, Request},
    forward::{self, Published},
    maps::SEARCH,
    shift,
    verdict::Verdict,
};

/// How many forwards the search passes at most: as many that drain as it has to, and others between them that the loader
/// is about to take out.
const MAX_STEPS: u32 = 2 * MAX_FORMERS;

/// What is looked for, and what is found.
#[repr(C)]
pub struct Search {
    /// The connection as its client has it.
    request: Shift,
    /// The key of the flow that is found.
    found: FlowKey<V6>,
    /// The forward to look at next.
    former: u64,
    /// Interface index of the container's link that the packet came by, 0 if by none.
    link: u32,
    /// 1 of a SYN, which opens a new connection in place of one that is closed.
    opens: u32,
    /// The [`Stage`] that asks.
    stage: u32,
    /// [`Answer`].
    answer: u32,
}

/// What the search has come to.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Nobody has asked.
    None = 0,
    /// There is no such flow.
    Nothing = 1,
    /// There is one.
    Found = 2,
}

/// This CPU's.
#[inline(always)]
fn here() -> Option<*mut Search> {
    SEARCH.get_ptr_mut(0)
}

/// The key in the other family's shape: IPv4 is mapped into IPv6, and back.
#[inline(always)]
fn reshaped<A: Address, B: Address>(key: &FlowKey<A>) -> FlowKey<B> {
    FlowKey {
        client: B::from_ip(key.client.ip()),
        container: B::from_ip(key.container.ip()),
        client_port: key.client_port,
        container_port: key.container_port,
        protocol: key.protocol,
    }
}

/// What is asked for: the flow of `request`, which came by the container's link of that index (0: by none), through
/// a forward that `published` follows. Says whether it follows any; [`Stage::Drain`] is to look then, and hands
/// back to `stage`.
#[inline(always)]
pub fn ask<A: Family>(
    request: &Request<A>,
    protocol: u8,
    (link, opens): (u32, bool),
    published: &Published,
    stage: Stage,
) -> bool {
    let Some(former) = forward::former(published.index, published.generation) else {
        return false;
    };
    let Some(search) = here() else {
        return false;
    };
    // SAFETY: this CPU's own element.
    let search = unsafe { &mut *search };
    search.request = shift::key_of(request, protocol);
    search.former = former.to_bits();
    search.link = link;
    search.opens = opens as u32;
    search.stage = stage as u32;
    search.answer = Answer::Nothing as u32;
    true
}

/// Takes the answer, if it is about `request`.
#[inline(always)]
pub fn answer<A: Family>(request: &Request<A>, protocol: u8) -> Answer {
    let Some(search) = here() else {
        return Answer::None;
    };
    // SAFETY: as above.
    let search = unsafe { &mut *search };
    let answer = search.answer;
    search.answer = Answer::None as u32;
    if answer == Answer::None as u32 || search.request != shift::key_of(request, protocol) {
        return Answer::None;
    }
    match answer == Answer::Found as u32 {
        true => Answer::Found,
        false => Answer::Nothing,
    }
}

/// The flow that was found, whose key `key` is then.
#[inline(always)]
pub fn found<A: Family>(key: &mut FlowKey<A>) -> Found<A> {
    let Some(search) = here() else {
        return Found::Nothing;
    };
    match flow::found_last() {
        Some(live) => {
            // SAFETY: as above.
            *key = reshaped(unsafe { &(*search).found });
            Found::Own(live)
        }
        None => Found::Nothing,
    }
}

/// [`Stage::Drain`].
#[inline(always)]
pub fn search() -> Verdict {
    let Some(search) = here() else {
        return Verdict::NEXT;
    };
    // SAFETY: this CPU's own element; the callbacks have the signature that the kernel wants.
    unsafe {
        let look = match (*search).request.client.ip().is_v4() {
            true => look::<V4>,
            false => look::<V6>,
        };
        let look: unsafe extern "C" fn(u32, *mut c_void) -> i64 = look;
        bpf_loop(MAX_STEPS, look as *mut c_void, core::ptr::null_mut(), 0);
        Verdict::stage_of(core::ptr::read_volatile(&raw const (*search).stage))
    }
}

/// Looks at one forward, and which one it follows. 1 ends the search.
unsafe extern "C" fn look<A: Family>(_number: u32, _context: *mut c_void) -> i64 {
    let Some(search) = here() else {
        return 1;
    };
    // SAFETY: this CPU's own element.
    let search = unsafe { &mut *search };
    let slot = PortSlot::from_bits(search.former);
    // One that serves no longer still says whom it has followed.
    if let Some(published) = forward::serving(slot.index(), slot.generation)
        && look_at::<A>(search, &published)
    {
        return 1;
    }
    match forward::former(slot.index(), slot.generation) {
        Some(former) => {
            search.former = former.to_bits();
            0
        }
        None => 1,
    }
}

/// Whether the connection is one through `published`: it is noted then.
#[inline(always)]
fn look_at<A: Family>(search: &mut Search, published: &Published) -> bool {
    let asked: FlowKey<A> = reshaped(&search.request);
    let request = Request {
        client: asked.client,
        client_port: asked.client_port,
        host: asked.container,
        host_port: asked.container_port,
    };
    let record = published.record;
    let is_hairpin = search.link != 0 && search.link == record.link;
    let mut key = FlowKey {
        client: if is_hairpin {
            request.host
        } else {
            request.client
        },
        container: A::from_ip(record.target),
        container_port: record.target_port_of(request.host_port),
        ..asked
    };
    if let Found::Own(live) = shift::find(&mut key, &request, published)
        && !(search.opens != 0 && live.state.gives_way_to_syn())
    {
        search.found = reshaped(&key);
        search.answer = Answer::Found as u32;
        return true;
    }
    false
}
