//! The devices that an instance serves, and keeping hooks and tables in step with them.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use portfwd_common::{forward::MAX_FORWARDS, host::Device, maps, net::Ip};

use super::{Datapath, Options};
use crate::{
    bpffs,
    cli::XdpMode,
    error::{Doing, Error, Missing},
    hooks::{self, Hook, xdp},
    masquerade, object,
    observe::{
        addresses::Host,
        links::{Carries, Link},
        netns::Netns,
        routes, settings,
    },
    tables::TableError,
    talk,
};

impl Datapath {
    /// Brings hooks and tables in step with the host's devices and addresses.
    pub(super) fn follow(&mut self, host: &Host, netns: &Netns) -> Result<(), Error> {
        self.follow_addresses(host)?;
        self.follow_devices(host, netns)?;
        let served = self.served(host)?;
        self.make_ready_for(&served)?;
        self.detach_all_but(&served, Hook::Device, netns)?;
        for device in served {
            hooks::attach_if_there(&self.layout, Hook::Device, netns, device)?;
        }
        xdp::forget_gone(&self.layout)?;
        if !hooks::attached(&self.layout, Hook::Egress)?.is_empty() {
            self.attach_egress(host, netns)?;
            let all: Vec<&Link> = host.devices.iter().collect();
            self.detach_all_but(&all, Hook::Egress, netns)?;
        }
        self.follow_masquerade(host, netns)
    }

    /// Loads what these devices need beside the programs that every instance has, which are of this build.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn make_ready_for(&self, devices: &[&Link]) -> Result<(), Error> {
        let carries_packets = |device: &&Link| device.carries == Carries::Packets;
        let Some(device) = devices.iter().copied().find(carries_packets) else {
            return Ok(());
        };
        let options = object::Options {
            host_netns: self.tables.journal.get(0).host_netns,
            log_level: self.log_level()? as u8,
        };
        object::add_l3(options, &self.layout.maps(), &self.layout.object())
            .doing(|| format!("load the eBPF programs for {}", device.name))
    }

    fn detach_all_but(&self, devices: &[&Link], hook: Hook, netns: &Netns) -> Result<(), Error> {
        let kept = |index: u32| devices.iter().any(|device| device.index == index);
        for gone in hooks::attached(&self.layout, hook)? {
            if !kept(gone) {
                hooks::detach(&self.layout, hook, netns, gone)?;
            }
        }
        Ok(())
    }

    fn follow_addresses(&mut self, host: &Host) -> Result<(), Error> {
        let doing = || "refresh the host's addresses".to_owned();
        let failed = |name| move |source| TableError::full_or(name, MAX_FORWARDS, source);
        let own: Vec<Ip> = host
            .addresses
            .iter()
            .filter(|own| own.is_reachable())
            .map(|own| own.ip.into())
            .collect();
        let addresses = &mut self.tables.host_addresses;
        let known: Vec<Ip> = addresses
            .keys()
            .collect::<Result<_, _>>()
            .map_err(failed(maps::HOST_ADDRESSES))
            .doing(doing)?;
        for ip in known.iter().filter(|ip| !own.contains(ip)) {
            addresses
                .remove(ip)
                .map_err(failed(maps::HOST_ADDRESSES))
                .doing(doing)?;
        }
        for ip in own.iter().filter(|ip| !known.contains(ip)) {
            addresses
                .insert(ip, 1, 0)
                .map_err(failed(maps::HOST_ADDRESSES))
                .doing(doing)?;
        }
        Ok(())
    }

    /// Tells the programs of the host's devices, and how it checks sources there.
    fn follow_devices(&mut self, host: &Host, netns: &Netns) -> Result<(), Error> {
        let doing = || "refresh the host's devices".to_owned();
        let failed = |source| TableError::full_or(maps::DEVICES, MAX_FORWARDS, source);
        let records = records(host, netns)?;
        let devices = &mut self.tables.devices;
        let known: Vec<u32> = devices
            .keys()
            .collect::<Result<_, _>>()
            .map_err(failed)
            .doing(doing)?;
        let is_gone = |index: &&u32| host.devices.iter().all(|device| device.index != **index);
        for index in known.iter().filter(is_gone) {
            devices.remove(index).map_err(failed).doing(doing)?;
        }
        for (index, record) in records {
            devices
                .insert(index, record, 0)
                .map_err(failed)
                .doing(doing)?;
        }
        Ok(())
    }

    /// Attaches what `up` was told to, on all of its devices or on none.
    ///
    /// # Errors
    /// When a device does not exist, or refuses.
    pub fn serve(&mut self, host: &Host, netns: &Netns, options: &Options) -> Result<(), Error> {
        let named = !options.devices.is_empty();
        let devices = match named {
            true => named_devices(host, netns, &options.devices)?,
            false => self.served(host)?,
        };
        if let Some(mode) = options.xdp {
            let mut devices = devices.clone();
            // Only where it was asked for by name it is an error that XDP has nothing to read there.
            devices.retain(|device| named || has_frames(device));
            self.serve_xdp(netns, &devices, mode, named)?;
        }
        self.make_ready_for(&devices)?;
        let attach = match named {
            true => hooks::attach,
            false => hooks::attach_if_there,
        };
        for device in devices {
            attach(&self.layout, Hook::Device, netns, device)?;
            if !self.serves_all() {
                make_directory(&self.some_devices().join(escaped(&device.name)))?;
            }
        }
        self.follow_masquerade(host, netns)
    }

    fn serve_xdp(
        &self,
        netns: &Netns,
        devices: &[&Link],
        mode: XdpMode,
        named: bool,
    ) -> Result<(), Error> {
        let modes = xdp::attached(&self.layout)?.into_iter().collect();
        for (done, device) in devices.iter().enumerate() {
            let Err(cause) = self.set_xdp(netns, device, mode, named) else {
                continue;
            };
            let failures: Vec<Error> = devices[..done]
                .iter()
                .filter_map(|device| self.restore_xdp(netns, device, &modes).err())
                .collect();
            return Err(match failures.is_empty() {
                true => cause,
                false => Error::Undo {
                    cause: Box::new(cause),
                    failures,
                },
            });
        }
        Ok(())
    }

    fn set_xdp(
        &self,
        netns: &Netns,
        device: &Link,
        mode: XdpMode,
        named: bool,
    ) -> Result<(), Error> {
        let attach = |mode| match named {
            true => xdp::attach(&self.layout, netns, device, mode),
            false => xdp::attach_if_there(&self.layout, netns, device, mode),
        };
        match mode {
            XdpMode::Off => xdp::detach(&self.layout, device.index),
            XdpMode::Native => attach(xdp::Mode::Native),
            XdpMode::Generic => attach(xdp::Mode::Generic),
            XdpMode::Auto => attach(xdp::Mode::Native).or_else(|error| {
                talk::warn(&format!("{} runs without XDP: {error}", device.name));
                Ok(())
            }),
        }
    }

    fn restore_xdp(
        &self,
        netns: &Netns,
        device: &Link,
        modes: &HashMap<u32, xdp::Mode>,
    ) -> Result<(), Error> {
        match modes.get(&device.index) {
            Some(mode) => xdp::attach_if_there(&self.layout, netns, device, *mode),
            None => xdp::detach(&self.layout, device.index),
        }
    }

    /// Attaches the egress program to every device: flows through the stack need it.
    ///
    /// # Errors
    /// When a device refuses.
    pub fn attach_egress(&self, host: &Host, netns: &Netns) -> Result<(), Error> {
        self.make_ready_for(&host.devices.iter().collect::<Vec<_>>())?;
        for device in &host.devices {
            hooks::attach_if_there(&self.layout, Hook::Egress, netns, device)?;
        }
        Ok(())
    }

    /// Prepares the programs for masqueraded packets: nothing is masqueraded by that alone.
    ///
    /// # Errors
    /// When the host cannot be observed, or a device refuses.
    pub fn masquerade(&mut self, host: &Host, netns: &Netns) -> Result<(), Error> {
        self.refresh_masquerade(host, netns)?;
        masquerade::set_active(&self.tables, true);
        self.attach_egress(host, netns)
    }

    fn follow_masquerade(&mut self, host: &Host, netns: &Netns) -> Result<(), Error> {
        match masquerade::is_active(&self.tables) {
            true => self.refresh_masquerade(host, netns),
            false => Ok(()),
        }
    }

    fn refresh_masquerade(&mut self, host: &Host, netns: &Netns) -> Result<(), Error> {
        let served = self.served(host)?;
        masquerade::refresh(&mut self.tables, host, &served, netns)
    }

    /// The devices of the host that this instance serves: all, or those that `up --device` named. They
    /// are known by name, so that one that goes and comes again is served again.
    ///
    /// # Errors
    /// When their names cannot be listed.
    pub fn served<'a>(&self, host: &'a Host) -> Result<Vec<&'a Link>, Error> {
        let mut devices: Vec<&Link> = host.devices.iter().collect();
        if !self.serves_all() {
            let named = bpffs::names(&self.some_devices())?;
            devices.retain(|device| named.contains(&escaped(&device.name)));
        }
        Ok(devices)
    }

    /// Makes the instance one that serves only devices that are named.
    pub(super) fn serve_some(&self) -> Result<(), Error> {
        make_directory(&self.some_devices())
    }

    fn serves_all(&self) -> bool {
        !self.some_devices().exists()
    }

    fn some_devices(&self) -> PathBuf {
        self.layout.links().join(SOME_DEVICES)
    }
}

/// What the programs know of each device.
fn records(host: &Host, netns: &Netns) -> Result<Vec<(u32, Device)>, Error> {
    let record = |device: &Link| {
        let mut record = Device::with_address(device.mac.unwrap_or_default());
        record.source_check = settings::rp_filter_here(&device.name);
        (device.index, record)
    };
    let records = || host.devices.iter().map(record).collect();
    let mut records: Vec<(u32, Device)> = netns.run_in(records)?;
    // There may be a million routes: nobody else has to know of them.
    let is_strict = |(_, record): &(u32, Device)| record.source_check == Device::STRICTLY;
    if records.iter().any(is_strict) {
        let shared = routes::shared(netns)?;
        for (index, record) in &mut records {
            let place = shared.iter().position(|all| all.contains(index));
            // Beyond so many a device counts as one that shares none.
            let number = place.and_then(|place| u8::try_from(place + 1).ok());
            record.shared = number.unwrap_or(0);
        }
    }
    Ok(records)
}

fn has_frames(device: &Link) -> bool {
    device.carries == Carries::Frames
}

/// Present among the links if `up --device` has named the devices to serve; their names are in it.
const SOME_DEVICES: &str = "some-devices";

/// A device's name as a bpffs takes it: without dots.
fn escaped(name: &str) -> String {
    name.replace('~', "~~").replace('.', "~d")
}

fn make_directory(path: &Path) -> Result<(), Error> {
    match bpffs::make_directory(path)? {
        true => Ok(()),
        false => Err(bpffs::no_parent(path)),
    }
}

fn named_devices<'a>(
    host: &'a Host,
    netns: &Netns,
    names: &[String],
) -> Result<Vec<&'a Link>, Error> {
    let find = |name: &String| {
        let found = host.devices.iter().find(|device| device.name == *name);
        if let Some(device) = found {
            return Ok(device);
        }
        let exists = netns.run_in(|| nix::net::if_::if_nametoindex(name.as_str()).is_ok())?;
        Err(match exists {
            true => Missing::DeviceAddress(name.clone()),
            false => Missing::Device(name.clone()),
        }
        .into())
    };
    names.iter().map(find).collect()
}
