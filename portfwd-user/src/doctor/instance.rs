//! The instance: its hooks, and what they cannot serve.

use super::{Check, Facts, Instance, SocketHooks, State, Stray, some};

pub(super) fn examine(facts: &Facts) -> Vec<Check> {
    const NAME: &str = "instance";
    match &facts.instance {
        Err(why) => vec![Check::unseen(NAME, why)],
        Ok(State::Down) => vec![Check::ok(NAME, "not up")],
        Ok(State::Unusable { why, hint }) => {
            let check = Check::fail(NAME, why, "its ports cannot be changed or shown");
            vec![match hint {
                Some(hint) => check.remedy(hint),
                None => check,
            }]
        }
        Ok(State::Up(instance)) => vec![
            Check::ok(NAME, format!("{} is up", instance.name)),
            build(instance),
            devices(instance),
            sockets(instance),
            strays(instance),
            sctp(instance),
        ],
    }
}

fn build(instance: &Instance) -> Check {
    const NAME: &str = "build";
    match instance.is_own_build {
        true => Check::ok(NAME, "the programs that run are those of this portfwd"),
        false => Check::warn(
            NAME,
            "the programs that run are of another build",
            "what differs in this one is not in effect",
        )
        .remedy("portfwd up, which replaces them and cuts no connection"),
    }
}

fn devices(instance: &Instance) -> Check {
    const NAME: &str = "devices";
    if !instance.unserved.is_empty() {
        return Check::warn(
            NAME,
            format!("{} not served", some(&instance.unserved)),
            "published ports are not reached by what comes in there",
        )
        .remedy("portfwd up");
    }
    match instance.served.is_empty() {
        true => Check::warn(
            NAME,
            "none is served",
            "published ports are reached by the host's own processes alone",
        )
        .remedy("give the host an address, then portfwd up"),
        false => Check::ok(NAME, format!("{} served", some(&instance.served))),
    }
}

fn sockets(instance: &Instance) -> Check {
    const NAME: &str = "socket-hooks";
    const AGAIN: &str = "portfwd down and up where the root of the cgroup2 hierarchy is mounted";
    match instance.sockets {
        SocketHooks::Root => Check::ok(NAME, "on the root of the cgroup2 hierarchy"),
        SocketHooks::Part => Check::warn(
            NAME,
            "on a part of the cgroup2 hierarchy",
            "of the host's processes only those in it reach published ports",
        )
        .remedy(AGAIN),
        SocketHooks::None => Check::warn(
            NAME,
            "none: no cgroup2 was mounted when the instance was brought up",
            "host processes reach no published port",
        )
        .remedy(AGAIN),
    }
}

fn strays(instance: &Instance) -> Check {
    const NAME: &str = "old-sockets";
    let strays = match &instance.strays {
        Ok(strays) => strays,
        Err(why) => return Check::unseen(NAME, why),
    };
    if strays.is_empty() {
        return Check::ok(
            NAME,
            "no socket of the host is older than the port it sends to",
        );
    }
    let name = |stray: &Stray| match &stray.owner {
        Some(owner) => format!("{owner} to {}", stray.peer),
        None => format!("one to {}", stray.peer),
    };
    let names: Vec<String> = strays.iter().map(name).collect();
    Check::warn(
        NAME,
        format!("UDP sockets that the hooks did not see: {}", some(&names)),
        "connected before the port was published, or bound to a loopback address, they do not reach the container",
    )
    .remedy("start these processes again")
}

fn sctp(instance: &Instance) -> Check {
    const NAME: &str = "sctp";
    if instance.sctp.is_empty() {
        return Check::ok(NAME, "no port is published");
    }
    Check::warn(
        NAME,
        format!("published: {}", some(&instance.sctp)),
        "host processes do not reach it, as socket hooks know TCP and UDP alone",
    )
    .remedy("let them use the container's own address")
}
