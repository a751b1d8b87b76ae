//! What the kernel says: mounts, sockets, routes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_sock_diag::SockDiagMessage;
use portfwd_common::net::Protocol;
use portfwd_user::observe::{cgroup, routes, sockets};

fuzz_target!(|data: &[u8]| {
    cgroup::mounts(data).for_each(drop);
    if let Ok(message) = NetlinkMessage::<SockDiagMessage>::deserialize(data)
        && let NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(socket)) = message.payload
    {
        let _ = sockets::listener(Protocol::Tcp, &socket);
    }
    if let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(data)
        && let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) = message.payload
    {
        let _ = routes::judge(&route);
    }
});
