//! `--connect`: whether the container is connected already, and if not, whether it can be.

use std::collections::BTreeSet;

use crate::{
    connection::{Connection, fit},
    error::Error,
    observe::{
        container::{self, ContainerError},
        links::Link,
        netns::Netns,
        networks::Networks,
        settings,
    },
    pair::{self, Mark},
    plan::{Found, Plan},
    talk,
};

/// The container of a namespace, whose link is there or is to be made. Of the pairs that portfwd has made those
/// in `used` have a container; others are left over, and go before a new one is made.
pub(super) fn find(
    host: &Netns,
    inside: &Netns,
    connection: &Connection,
    used: &BTreeSet<u32>,
) -> Result<Found, Error> {
    if host.is_same(inside) {
        let netns = inside.origin().to_string();
        return Err(ContainerError::HostNetwork { netns }.into());
    }
    let cookie = inside.cookie()?;
    let name = Mark::of(cookie).name();
    let is_used = |pair: &Link| used.contains(&pair.index);
    let (attached, left): (Vec<Link>, Vec<Link>) = pair::all(host)?.into_iter().partition(is_used);
    let outer = left.iter().map(|pair| pair.index).collect();
    let inner = left.iter().filter(|pair| pair.name == name);
    let inner = inner.filter_map(|pair| pair.peer_index).collect();
    let networks = (Networks::of(host, &outer)?, Networks::of(inside, &inner)?);
    match attached.iter().find(|pair| pair.name == name) {
        Some(pair) => {
            fit::check_made(connection, pair, &networks.0, &networks.1)?;
            let link = container::find(host, inside)?;
            Ok(Found::Link(Box::new(link), cookie))
        }
        None => {
            fit::check(connection, &networks.0, &networks.1)?;
            Ok(Found::Unconnected(connection.clone(), cookie))
        }
    }
}

/// Says what the host's settings, which stay as they are, make of the container's link.
pub(super) fn warn(host: &Netns, connection: &Connection, plan: &Plan) -> Result<(), Error> {
    let device = Mark::of(plan.container.netns).name();
    let forwards_v6 = settings::v6(host)?.is_some_and(|v6| v6.forwards);
    let (forwards_v4, heeds_routers) = host.run_in(|| {
        (
            settings::forwards_v4_here(&device),
            settings::heeds_routers_here(&device),
        )
    })?;
    warn_of_forwarding(connection, plan, [forwards_v4, forwards_v6]);
    if heeds_routers {
        talk::warn(&format!(
            "the host takes IPv6 routes that container \"{}\" may announce to it; \
             sysctl -w net.ipv6.conf.{device}.accept_ra=0",
            plan.label
        ));
    }
    Ok(())
}

/// What comes in for published ports needs no forwarding; what the container itself sends does.
fn warn_of_forwarding(connection: &Connection, plan: &Plan, forwards: [bool; 2]) {
    let families = [
        (connection.v4(), "IPv4", "net.ipv4.ip_forward"),
        (connection.v6(), "IPv6", "net.ipv6.conf.all.forwarding"),
    ];
    for ((asked, family, setting), forwards) in families.into_iter().zip(forwards) {
        if asked.is_some() && !forwards {
            talk::warn(&format!(
                "the host does not forward {family}, so container \"{}\" can open no connection to \
                 anybody beyond it; sysctl -w {setting}=1",
                plan.label
            ));
        }
    }
}
