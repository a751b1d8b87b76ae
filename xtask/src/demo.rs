//! `cargo xtask demo`: a real web server and a UDP service in a container namespace, published and
//! reached from all sides, withdrawn again, and nothing left behind.
//!
//! Every command is shown as one would type it on its machine, with what it printed, and is checked.

mod machines;
mod services;
mod step;
mod traces;

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
    process::Command,
};

use anyhow::{anyhow, ensure};
use nix::unistd::Uid;
use portfwd_tests::kernel::{self, Object};

use self::{
    machines::{BPFFS, Machines, Place},
    services::Services,
    step::{Interrupts, Stage, Step},
    traces::Traces,
};
use crate::{process, setup, workspace};

/// Sets up, builds and plays. Whatever was made is removed again, also after a failure or ctrl-C.
pub(crate) fn run() -> anyhow::Result<()> {
    setup::ensure(setup::Extras::default())?;
    ensure!(
        Uid::effective().is_root(),
        "the demo makes network namespaces, which needs root"
    );
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    process::run(
        Command::new(cargo)
            .args(["build", "--release", "--package", "portfwd-user"])
            .current_dir(workspace::root()),
    )?;
    // Before the first thread and the first child: both inherit it.
    let interrupts = Interrupts::hold_back()?;
    machines::isolate()?;
    // The harness of the tests panics where a step fails.
    catch_unwind(AssertUnwindSafe(|| play(interrupts)))
        .unwrap_or_else(|_| Err(anyhow!("a step of the preparation failed (see above)")))
}

fn play(interrupts: Interrupts) -> anyhow::Result<()> {
    let stage = Stage::new(Machines::new(), interrupts)?;
    println!("{}", machines::PICTURE);
    let services = start_services(&stage)?;
    let traces = Traces::before(&stage.machines);
    publish(&stage)?;
    from_a_client(&stage)?;
    from_the_host(&stage)?;
    whom_the_server_saw(&stage)?;
    views(&stage)?;
    let objects = kernel::pinned_objects(BPFFS.as_ref());
    collision(&stage)?;
    withdraw(&stage)?;
    take_down(&stage, &traces, &objects)?;
    services.stop()?;
    stage.strike()?;
    println!("\nThe demo has shown all it promised.");
    Ok(())
}

fn start_services(stage: &Stage) -> anyhow::Result<Services> {
    stage.title("A web server (nginx) and a UDP service (socat) inside the container");
    let services = Services::start(stage)?;
    stage.note("The host forwards nothing and has no firewall rule:");
    stage.play(&[
        Step::new(Place::Host, "sysctl net.ipv4.ip_forward").prints(&["= 0"]),
        Step::new(Place::Host, "nft list ruleset").prints_nothing(),
    ])?;
    Ok(services)
}

fn publish(stage: &Stage) -> anyhow::Result<()> {
    stage.title("Publish both");
    stage.play(&[
        Step::new(Place::Host, "portfwd --version").prints(&["portfwd "]),
        Step::new(
            Place::Host,
            "portfwd attach web --netns /run/netns/web -p 8080:80 -p 5353:53/udp",
        )
        .prints(&[
            "80/tcp -> 0.0.0.0:8080",
            "80/tcp -> [::]:8080",
            "53/udp -> 0.0.0.0:5353",
            "53/udp -> [::]:5353",
        ]),
    ])
}

fn from_a_client(stage: &Stage) -> anyhow::Result<()> {
    stage.title("From a client: TCP and UDP, IPv4 and IPv6");
    stage.play(&[
        Step::new(
            Place::Client,
            "curl -sS --max-time 5 http://192.0.2.1:8080/",
        )
        .prints(&["asked by 192.0.2.2"]),
        Step::new(
            Place::Client,
            "curl -sS --max-time 5 'http://[2001:db8:1::1]:8080/'",
        )
        .prints(&["asked by 2001:db8:1::2"]),
        Step::new(
            Place::Client,
            "echo hello | socat -t 1 - UDP4:192.0.2.1:5353",
        )
        .prints(&["hello from 192.0.2.2"]),
        Step::new(
            Place::Client,
            "echo hello | socat -t 1 - 'UDP6:[2001:db8:1::1]:5353'",
        )
        .prints(&["hello from [2001:0db8:0001:0000:0000:0000:0000:0002]"]),
    ])
}

fn from_the_host(stage: &Stage) -> anyhow::Result<()> {
    stage.title("From the host itself");
    stage.play(&[
        Step::new(Place::Host, "curl -sS --max-time 5 http://127.0.0.1:8080/")
            .prints(&["asked by 10.88.0.1"]),
        Step::new(Place::Host, "curl -sS --max-time 5 http://192.0.2.1:8080/")
            .prints(&["asked by 10.88.0.1"]),
        Step::new(Place::Host, "curl -sS --max-time 5 'http://[::1]:8080/'")
            .prints(&["asked by fd88::1"]),
        Step::new(Place::Host, "echo hello | socat -t 1 - UDP4:127.0.0.1:5353")
            .prints(&["hello from 10.88.0.1"]),
    ])
}

fn whom_the_server_saw(stage: &Stage) -> anyhow::Result<()> {
    stage.title("The server's own log names the clients");
    stage.play(&[Step::new(Place::Web, "cat access.log").prints(&[
        "192.0.2.2 - -",
        "2001:db8:1::2 - -",
        "10.88.0.1 - -",
        "fd88::1 - -",
    ])])
}

fn views(stage: &Stage) -> anyhow::Result<()> {
    stage.title("What is published, and who is connected");
    stage.play(&[
        Step::new(Place::Host, "portfwd list").prints(&["web", "*:8080", "10.88.0.2:80"]),
        Step::new(Place::Host, "portfwd port web 80").prints(&["0.0.0.0:8080", "[::]:8080"]),
        Step::new(Place::Host, "portfwd flows").prints(&[
            "192.0.2.2:",
            "[2001:db8:1::2]:",
            "tcp",
            "udp",
        ]),
    ])
}

fn collision(stage: &Stage) -> anyhow::Result<()> {
    stage.title("A port has one owner, and an attach is all or nothing");
    stage.play(&[
        Step::new(
            Place::Host,
            "portfwd attach other --netns /run/netns/other -p 8081:80 -p 8080:80",
        )
        .exits_with(3)
        .prints(&[
            "bind for 0.0.0.0:8080 failed: port is already allocated",
            "held by: container \"web\" (tcp)",
        ]),
        Step::new(Place::Host, "portfwd list other")
            .exits_with(4)
            .prints(&["other"]),
        Step::new(
            Place::Client,
            "curl -sS --max-time 5 http://192.0.2.1:8080/",
        )
        .prints(&["asked by 192.0.2.2"]),
    ])
}

fn withdraw(stage: &Stage) -> anyhow::Result<()> {
    // Of curl: the connection was refused, as by any closed port.
    const REFUSED: i32 = 7;
    stage.title("Withdraw");
    stage.play(&[
        Step::new(Place::Host, "portfwd detach web").prints_nothing(),
        Step::new(
            Place::Client,
            "curl -sS --max-time 5 http://192.0.2.1:8080/",
        )
        .exits_with(REFUSED),
        Step::new(
            Place::Client,
            "curl -sS --max-time 5 'http://[2001:db8:1::1]:8080/'",
        )
        .exits_with(REFUSED),
        Step::new(Place::Host, "curl -sS --max-time 5 http://127.0.0.1:8080/").exits_with(REFUSED),
        Step::new(Place::Host, "portfwd flows").lacks(&["192.0.2.2"]),
    ])
}

fn take_down(stage: &Stage, traces: &Traces, objects: &BTreeSet<Object>) -> anyhow::Result<()> {
    stage.title("Nothing is left behind");
    stage.play(&[Step::new(Place::Host, "portfwd down").prints_nothing()])?;
    traces.compare(&stage.machines, objects)
}
