//! Privileges, and what the kernel has.

use super::{Check, Facts, Program, Tc};

const NECESSARY: [&str; 3] = ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"];

pub(super) fn examine(facts: &Facts) -> Vec<Check> {
    vec![
        capabilities(facts),
        bpf(facts),
        programs(facts),
        btf(facts),
        tc(facts),
        route_source(facts),
    ]
}

fn capabilities(facts: &Facts) -> Check {
    const NAME: &str = "capabilities";
    let missing = &facts.missing;
    if missing.is_empty() {
        return Check::ok(NAME, "all that are of use");
    }
    let seen = format!("without {}", missing.join(", "));
    let run = "run it as root, or with them";
    if missing.iter().any(|one| NECESSARY.contains(one)) {
        return Check::fail(NAME, seen, "nothing can be published").remedy(run);
    }
    let mut costs = Vec::new();
    if missing.contains(&"CAP_SYS_ADMIN") {
        costs.push("other network namespaces cannot be entered");
    }
    if missing.contains(&"CAP_SYS_PTRACE") {
        costs.push("processes that hold a port are not named");
    }
    Check::warn(NAME, seen, costs.join(", ")).remedy(run)
}

fn bpf(facts: &Facts) -> Check {
    const NAME: &str = "bpf";
    match &facts.kernel.program {
        Err(why) => Check::unseen(NAME, why),
        Ok(Program::Compiled) => Check::ok(NAME, "programs are translated into machine code"),
        Ok(Program::Interpreted) => Check::warn(
            NAME,
            "programs are interpreted",
            "every packet takes several times as long",
        )
        .remedy("sysctl -w net.core.bpf_jit_enable=1"),
        Ok(Program::Refused(why)) => Check::fail(
            NAME,
            format!("the kernel refuses a program that does nothing: {why}"),
            "nothing can be published",
        )
        .remedy("use a kernel with CONFIG_BPF_SYSCALL and CONFIG_NET_CLS_ACT"),
    }
}

fn programs(facts: &Facts) -> Check {
    const NAME: &str = "programs";
    match &facts.kernel.datapath {
        Err(why) => Check::unseen(NAME, why),
        Ok(Ok(())) => Check::ok(NAME, "the kernel takes every program of the datapath"),
        Ok(Err(why)) => Check::fail(NAME, why, "nothing can be published"),
    }
}

/// The programs bring their own types.
fn btf(facts: &Facts) -> Check {
    const NAME: &str = "btf";
    match facts.kernel.btf {
        true => Check::ok(NAME, "the kernel describes its types"),
        false => Check::ok(NAME, "no /sys/kernel/btf/vmlinux, and nothing needs it"),
    }
}

fn tc(facts: &Facts) -> Check {
    const NAME: &str = "tc";
    match &facts.kernel.tc {
        Err(why) => Check::unseen(NAME, why),
        Ok(Tc::Links) => Check::ok(NAME, "TCX"),
        Ok(Tc::Filters) => Check::warn(
            NAME,
            "clsact, no TCX",
            "attach --loopback is refused, and who removes the qdisc stops what is published",
        )
        .remedy("use Linux 6.6 or later"),
        Ok(Tc::None) => Check::fail(NAME, "neither TCX nor clsact", "nothing can be published")
            .remedy("use Linux 6.6 or later, or CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF"),
    }
}

fn route_source(facts: &Facts) -> Check {
    const NAME: &str = "route-source";
    match &facts.kernel.route_source {
        Err(why) => Check::unseen(NAME, why),
        Ok(true) => Check::ok(NAME, "programs learn source addresses from the routing table"),
        Ok(false) => Check::warn(
            NAME,
            "programs cannot ask the routing table for a source address",
            "masqueraded flows leave under the first address of the device, whatever src the route has",
        )
        .remedy("use Linux 6.7 or later"),
    }
}
