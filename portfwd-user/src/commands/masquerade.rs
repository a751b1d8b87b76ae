//! `portfwd masquerade`: subnets whose packets leave under the host's address.

use std::net::IpAddr;

use crate::{
    apply,
    cli::{Cli, Masquerade},
    datapath::{Datapath, Options, Site, Writable},
    error::{Doing, Error, Missing},
    masquerade::{self, Masqueraded, Room},
    observe::netns::Netns,
    report::{self, MasqueradeRow},
    state,
    subnet::Subnet,
    talk,
};

pub(super) fn run(cli: &Cli, masquerade: Masquerade) -> Result<(), Error> {
    match masquerade {
        Masquerade::Add(subnet) => add(cli, subnet),
        Masquerade::Remove(subnet) => remove(cli, subnet),
        Masquerade::List(subnet) => list(cli, subnet),
    }
}

fn add(cli: &Cli, subnet: Subnet) -> Result<(), Error> {
    let site = super::create(cli)?;
    let (mut writable, _) = match site.up(&Options::default()) {
        Ok(up) => up,
        Err(cause) => return Err(site.abandon(cause)),
    };
    warn_of_ports(&site.host)?;
    if is_masqueraded(&writable, subnet)? {
        return Ok(());
    }
    apply::masquerade(&mut writable, &site.host, subnet)
}

/// Without ports nothing is masqueraded, and no packet says so.
pub(super) fn warn_of_ports(host: &Netns) -> Result<(), Error> {
    let room = Room::of(host)?;
    if room.is_short() {
        let (shown, cost) = (room.shown(), room.cost());
        talk::warn(&format!(
            "masquerade has {shown} to give out: {cost}; {}",
            room.remedy()
        ));
    }
    Ok(())
}

fn remove(cli: &Cli, subnet: Subnet) -> Result<(), Error> {
    let site = Site::of(cli, false)?;
    let writable = match &site {
        Some(site) => site.open_writable()?,
        None => None,
    };
    let (Some(site), Some(mut writable)) = (site, writable) else {
        return Err(Missing::Subnet(subnet).into());
    };
    if !is_masqueraded(&writable, subnet)? {
        return Err(not_masqueraded(&writable.datapath, subnet)?.into());
    }
    apply::unmasquerade(&mut writable, &site.host, subnet)
}

/// Who would remove a container's own address is told how that ends.
fn not_masqueraded(datapath: &Datapath, subnet: Subnet) -> Result<Missing, Error> {
    let state = state::read(&datapath.tables)?;
    let all = masquerade::list(&datapath.tables, &state)?;
    let mut rows = all.into_iter().filter(|row| row.subnet == subnet);
    Ok(match rows.find_map(|row| row.container) {
        Some(container) => Missing::SubnetOf { subnet, container },
        None => Missing::Subnet(subnet),
    })
}

fn is_masqueraded(writable: &Writable, subnet: Subnet) -> Result<bool, Error> {
    let owner = masquerade::owner_of(&writable.datapath.tables, subnet);
    Ok(owner
        .doing(|| "read what is masqueraded".to_owned())?
        .is_some())
}

fn list(cli: &Cli, subnet: Option<Subnet>) -> Result<(), Error> {
    let mut rows = match Site::of(cli, false)? {
        Some(site) => site
            .open()?
            .map_or(Ok(Vec::new()), |datapath| rows(&datapath))?,
        None => Vec::new(),
    };
    if let Some(subnet) = subnet {
        rows.retain(|row| row.subnet == subnet);
        if rows.is_empty() {
            return Err(Missing::Subnet(subnet).into());
        }
    }
    report::to_stdout(|out| {
        if cli.json {
            report::write_json(out, &rows)
        } else {
            report::write_masqueraded(out, &rows)
        }
    })
}

fn rows(datapath: &Datapath) -> Result<Vec<MasqueradeRow>, Error> {
    let state = state::read(&datapath.tables)?;
    let counts = masquerade::count_flows(&datapath.tables)?;
    let row = |Masqueraded {
                   subnet,
                   container,
                   owner,
               }: Masqueraded| {
        let counts = counts.iter().filter(|((id, _), _)| *id == owner);
        let is_its = |address: &IpAddr| container.is_none() || Subnet::of(*address) == subnet;
        let flows = counts.filter_map(|((_, address), count)| is_its(address).then_some(count));
        let flows = flows.sum();
        MasqueradeRow {
            subnet,
            container,
            flows,
        }
    };
    let all = masquerade::list(&datapath.tables, &state)?;
    Ok(all.into_iter().map(row).collect())
}
