//! What each command does, from its arguments to its output.

mod apply;
mod attach;
mod detach;
mod doctor;
mod explain;
mod flows;
mod follow_log;
mod gc;
mod masquerade;
mod repoint;
mod show;

use crate::{
    cli::{Cli, Command},
    datapath::{Options, Site},
    error::{Error, InstanceError},
    report, talk,
};

/// Runs a command.
///
/// # Errors
/// Whatever ends it early.
pub fn run(cli: &Cli) -> Result<(), Error> {
    match &cli.command {
        Command::Attach(attach) => attach::run(cli, attach),
        Command::Detach(detach) => detach::run(cli, detach),
        Command::Apply(apply) => apply::run(cli, apply),
        Command::Repoint(repoint) => repoint::run(cli, repoint),
        Command::List(container) => show::list(cli, container.as_ref()),
        Command::Port(container, query) => show::port(cli, container, *query),
        Command::Explain(asked) => explain::run(cli, asked),
        Command::Flows(asked) => flows::run(cli, asked),
        Command::FlowsPurge => flows::purge(cli),
        Command::Masquerade(masquerade) => masquerade::run(cli, *masquerade),
        Command::Status => show::status(cli),
        Command::Up(up) => {
            let options = Options {
                devices: up.devices.clone(),
                xdp: up.xdp,
                log_level: up.log_level,
                lifetimes: up.lifetimes.clone(),
                flow_bytes: up.flow_bytes,
            };
            bring_up(cli, &options)
        }
        Command::Down => down(cli),
        Command::Log => follow_log::run(cli),
        Command::Gc => gc::run(cli),
        Command::Doctor => doctor::run(cli),
        Command::Completions(shell) => {
            let script = crate::cli::completions(*shell);
            report::to_stdout(|out| std::io::Write::write_all(out, &script))
        }
        Command::Man(path) => {
            let page = crate::cli::manual(path)?;
            report::to_stdout(|out| page.render(out))
        }
    }
}

fn bring_up(cli: &Cli, options: &Options) -> Result<(), Error> {
    let site = create(cli)?;
    let early = match site.open()? {
        Some(datapath) => datapath.load_own(options.log_level)?,
        None => None,
    };
    let (mut writable, fresh) = match site.up(options) {
        Ok(up) => up,
        Err(cause) => return Err(site.abandon(cause)),
    };
    if !fresh {
        let host = writable.host.clone();
        writable.datapath.serve(&host, &site.host, options)?;
        if writable.run_own(early, options.log_level, &site.host)? {
            talk::say("the programs of another build are replaced by those of this one");
        }
        writable.datapath.tune(options);
        talk::say(&format!("instance \"{}\" was up already", site.name()));
    }
    Ok(())
}

fn down(cli: &Cli) -> Result<(), Error> {
    let was_up = match Site::of(cli, false)? {
        Some(site) => site.down()?,
        None => false,
    };
    if !was_up {
        talk::say(&format!("instance \"{}\" was not up", cli.instance));
    }
    Ok(())
}

/// The site of a command that makes what is missing.
fn create(cli: &Cli) -> Result<Site, Error> {
    Site::of(cli, true)?.ok_or_else(|| InstanceError::NotBpffs(cli.bpffs.clone()).into())
}
