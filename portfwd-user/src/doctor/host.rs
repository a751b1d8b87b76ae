//! How the host is set up: cgroups, forwarding, source checks, IPv6.

use super::{Check, Facts, Host, Instance, Seen, State, V6, some};

pub(super) fn examine(facts: &Facts) -> Vec<Check> {
    let mut checks = vec![cgroup(facts)];
    checks.extend([forwarding_v4(facts), forwarding_v6(facts)]);
    checks.extend([rp_filter(facts), v6(facts), ports(facts)]);
    checks
}

fn instance(facts: &Facts) -> Option<&Instance> {
    match &facts.instance {
        Ok(State::Up(instance)) => Some(instance),
        _ => None,
    }
}

fn cgroup(facts: &Facts) -> Check {
    const NAME: &str = "cgroup2";
    match &facts.cgroup {
        Err(why) => Check::unseen(NAME, why),
        Ok(Some(found)) if found.is_root => Check::ok(
            NAME,
            format!("the root is mounted on {}", found.path.display()),
        ),
        Ok(Some(found)) => Check::warn(
            NAME,
            format!("only a part is in sight, on {}", found.path.display()),
            "of the host's processes only those in it reach published ports",
        )
        .remedy("bring the instance up where the root of the hierarchy is mounted"),
        Ok(None) => Check::warn(
            NAME,
            "none is mounted",
            "host processes reach no published port",
        )
        .remedy("mount -t cgroup2 none /sys/fs/cgroup, before the instance is brought up"),
    }
}

/// What asks the host to forward packets of a family; None if nothing does.
fn user_of_forwarding(facts: &Facts, family: usize) -> Seen<Option<&'static str>> {
    if let Err(why) = &facts.instance {
        return Err(why.clone());
    }
    let uses = |instance: &Instance| (instance.stack[family], instance.masquerades[family]);
    Ok(match instance(facts).map_or((false, false), uses) {
        (true, true) => Some("what is masqueraded, and targets without a veth, need it"),
        (true, false) => Some("targets without a veth need it"),
        (false, true) => Some("what is masqueraded needs it"),
        (false, false) => None,
    })
}

fn forwarding_v4(facts: &Facts) -> Check {
    const NAME: &str = "forwarding-ipv4";
    let host = match &facts.host {
        Ok(host) => host,
        Err(why) => return Check::unseen(NAME, why),
    };
    let off = names(host, |device| !device.forwards_v4);
    let user = match forwarding(NAME, off.is_empty(), user_of_forwarding(facts, 0)) {
        Ok(user) => user,
        Err(check) => return check,
    };
    if off.len() == host.devices.len() {
        return Check::fail(NAME, "off", user).remedy("sysctl -w net.ipv4.ip_forward=1");
    }
    let settings: Vec<String> = off
        .iter()
        .map(|device| format!("net.ipv4.conf.{}.forwarding=1", in_sysctl(device)))
        .collect();
    Check::warn(
        NAME,
        format!("off for what comes in by {}", some(&off)),
        user,
    )
    .remedy(format!("sysctl -w {}", settings.join(" ")))
}

fn forwarding_v6(facts: &Facts) -> Check {
    const NAME: &str = "forwarding-ipv6";
    let is_on = match &facts.host {
        Ok(host) => match host.v6 {
            V6::On { forwards } => forwards,
            V6::Absent | V6::Disabled => return Check::ok(NAME, "the host has no IPv6"),
        },
        Err(why) => return Check::unseen(NAME, why),
    };
    match forwarding(NAME, is_on, user_of_forwarding(facts, 1)) {
        Ok(user) => {
            Check::fail(NAME, "off", user).remedy("sysctl -w net.ipv6.conf.all.forwarding=1")
        }
        Err(check) => check,
    }
}

/// Who needs forwarding where it is off; else the check.
fn forwarding(
    name: &'static str,
    is_on: bool,
    user: Seen<Option<&'static str>>,
) -> Result<&'static str, Check> {
    let state = if is_on { "on" } else { "off" };
    match user {
        Ok(Some(user)) if !is_on => Ok(user),
        Ok(Some(user)) => Err(Check::ok(name, format!("{state}, and {user}"))),
        Ok(None) => Err(Check::ok(name, format!("{state}, and nothing needs it"))),
        Err(_) if is_on => Err(Check::ok(name, state)),
        Err(why) => Err(Check {
            seen: format!(
                "{state}; whether anything needs it cannot be seen: {}",
                why.0
            ),
            ..Check::unseen(name, &why)
        }),
    }
}

/// The datapath checks sources as the host does, by the routing table, of which programs are told only where
/// the device forwards. A host with one way out sees every client by it; with several, the way back may be another one.
fn rp_filter(facts: &Facts) -> Check {
    const NAME: &str = "rp-filter";
    let host = match &facts.host {
        Ok(host) => host,
        Err(why) => return Check::unseen(NAME, why),
    };
    let unchecked = names(host, |device| device.rp_filter == 1 && !device.forwards_v4);
    if !unchecked.is_empty() {
        return Check::warn(
            NAME,
            format!("strict on {}, where forwarding is off", some(&unchecked)),
            "programs get no routes there, so sources are not checked for published ports",
        );
    }
    let uplinks = names(host, |device| device.is_uplink);
    let strict = names(host, |device| device.rp_filter == 1);
    let affected = names(host, |device| device.rp_filter == 1 && device.is_uplink);
    if uplinks.len() < 2 || affected.is_empty() {
        return Check::ok(
            NAME,
            match strict.is_empty() {
                true => "strict on no device".to_owned(),
                false => format!("strict on {}, where clients have one way", some(&strict)),
            },
        );
    }
    let settings: Vec<String> = affected
        .iter()
        .map(|device| format!("net.ipv4.conf.{}.rp_filter=2", in_sysctl(device)))
        .collect();
    Check::warn(
        NAME,
        format!("strict on {}, of several uplinks", some(&affected)),
        "a client that comes in by another device than its route leaves by is not served",
    )
    .remedy(format!("sysctl -w {}", settings.join(" ")))
}

fn v6(facts: &Facts) -> Check {
    const NAME: &str = "ipv6";
    let host = match &facts.host {
        Ok(host) => host,
        Err(why) => return Check::unseen(NAME, why),
    };
    let seen = match host.v6 {
        V6::On { .. } => return Check::ok(NAME, "on"),
        V6::Absent => "the kernel has none",
        V6::Disabled => "switched off",
    };
    if !instance(facts).is_some_and(|instance| instance.publishes_v6) {
        return Check::ok(NAME, seen);
    }
    let check = Check::warn(NAME, seen, "ports published in IPv6 are reached by nobody");
    match host.v6 {
        V6::Disabled => check.remedy("sysctl -w net.ipv6.conf.all.disable_ipv6=0"),
        _ => check,
    }
}

fn ports(facts: &Facts) -> Check {
    const NAME: &str = "masquerade-ports";
    let room = match facts.host.as_ref().map(|host| host.room.as_ref()) {
        Ok(Ok(room)) => room,
        Ok(Err(why)) | Err(why) => return Check::unseen(NAME, why),
    };
    let seen = format!("{} to give out", room.shown());
    if !room.is_short() {
        return Check::ok(NAME, seen);
    }
    if let Err(why) = &facts.instance {
        return Check::unseen(NAME, why);
    }
    if !instance(facts).is_some_and(|instance| instance.masquerades.contains(&true)) {
        return Check::ok(NAME, format!("{seen}, and nothing is masqueraded"));
    }
    Check::warn(NAME, seen, room.cost()).remedy(room.remedy())
}

fn names(host: &Host, wanted: impl Fn(&super::Device) -> bool) -> Vec<String> {
    let devices = host.devices.iter().filter(|device| wanted(device));
    devices.map(|device| device.name.clone()).collect()
}

/// A device's name as sysctl(8) takes it, for which a dot is a separator.
fn in_sysctl(device: &str) -> String {
    device.replace('.', "/")
}
