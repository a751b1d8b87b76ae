//! An instance that is up: brought up, opened, kept in step with the host, taken down.

use std::path::{Path, PathBuf};

use portfwd_common::{host::Device, maps, net::Ip};

use crate::{
    bpffs::{self, Bpffs},
    cli::{self, Cli, LogLevel},
    error::{Doing, Error, InstanceError, Lacking, Missing},
    hooks::{self, Hook, sockets::Reach, xdp},
    instance::{self, Layout, Locked, Place, State, WAIT},
    label::InstanceName,
    object,
    observe::{
        addresses::{self, Host},
        links::Link,
        netns::Netns,
        privilege::{Capability, Privileges},
    },
    sweep,
    tables::{TableError, Tables},
    transaction,
};

/// What the programs are loaded and attached with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Names of the devices to serve; none for every device on which the host has an address.
    pub devices: Vec<String>,
    /// Whether and how the XDP program runs.
    pub xdp: cli::XdpMode,
    /// What the programs log.
    pub log_level: LogLevel,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            devices: Vec::new(),
            xdp: cli::XdpMode::Off,
            log_level: LogLevel::Off,
        }
    }
}

/// Where an instance is, and which namespace it serves.
pub struct Site {
    bpffs: Bpffs,
    place: Place,
    /// The namespace that plays the host.
    pub host: Netns,
}

/// An instance that is up.
pub struct Datapath {
    /// Its maps.
    pub tables: Tables,
    /// Its pins.
    pub layout: Layout,
}

/// An instance that is up, and that nobody else changes meanwhile.
pub struct Writable {
    /// The instance.
    pub datapath: Datapath,
    /// What the host answers to, as of now.
    pub host: Host,
    locked: Locked,
}

impl Site {
    /// That of a command. With `create` a bpffs is mounted where there is none.
    ///
    /// # Errors
    /// When a privilege is missing, or namespace or bpffs cannot be used.
    pub fn of(cli: &Cli, create: bool) -> Result<Option<Self>, Error> {
        check_privileges(cli.host_netns.is_some())?;
        let host = match &cli.host_netns {
            Some(path) => Netns::open(path)?,
            None => Netns::current()?,
        };
        let bpffs = if create {
            Bpffs::ensure(&cli.bpffs, WAIT)?
        } else {
            match Bpffs::open(&cli.bpffs)? {
                Some(bpffs) => bpffs,
                None => return Ok(None),
            }
        };
        let place = Place::new(&bpffs, cli.instance.clone());
        Ok(Some(Self { bpffs, place, host }))
    }

    /// The instance's name.
    pub fn name(&self) -> &InstanceName {
        self.place.name()
    }

    /// The instance for reading, if it is up.
    ///
    /// # Errors
    /// When something else is in its place, or it serves another namespace.
    pub fn open(&self) -> Result<Option<Datapath>, Error> {
        let Some(layout) = self.place.find()? else {
            return Ok(None);
        };
        let tables = open_tables(&layout)?;
        self.check_namespace(&tables)?;
        Ok(Some(Datapath { tables, layout }))
    }

    /// The instance for writing, if it is up: repaired, and in step with the host.
    ///
    /// # Errors
    /// As [`Site::open`]; when the lock cannot be had, or the hooks cannot be brought up to date.
    pub fn open_writable(&self) -> Result<Option<Writable>, Error> {
        match self.place.lock(WAIT)? {
            Some(locked) => self.open_locked(locked).map(|found| found.ok()),
            None => Ok(None),
        }
    }

    /// The instance for writing, brought up with `options` if it is not. Says whether it was brought up.
    ///
    /// # Errors
    /// As [`Site::open_writable`]; when the programs cannot be loaded or attached. Nothing is left then.
    pub fn up(&self, options: &Options) -> Result<(Writable, bool), Error> {
        let locked = self.place.lock_or_create(WAIT)?;
        match self.open_locked(locked)? {
            Ok(writable) => {
                self.refuse_other_level(&writable.datapath, options.log_level)?;
                Ok((writable, false))
            }
            Err(locked) => Ok((self.build(locked, options)?, true)),
        }
    }

    /// The log is loaded with the programs, so that it costs nothing without: it cannot be added later.
    fn refuse_other_level(&self, datapath: &Datapath, asked: LogLevel) -> Result<(), Error> {
        let known = datapath.tables.journal.get(0).log_level;
        if asked == LogLevel::Off || asked as u64 == known {
            return Ok(());
        }
        Err(InstanceError::OtherLogLevel(self.name().clone()).into())
    }

    fn open_locked(&self, locked: Locked) -> Result<Result<Writable, Locked>, Error> {
        let Some(layout) = self.place.find()? else {
            return Ok(Err(locked));
        };
        let mut tables = open_tables(&layout)?;
        self.check_namespace(&tables)?;
        if transaction::recover(&mut tables).doing(|| "repair the forwards".to_owned())? {
            sweep::sweep(&mut tables, &layout, &self.host)?;
        }
        let host = self.observe()?;
        let mut datapath = Datapath { tables, layout };
        datapath.follow(&host, &self.host)?;
        Ok(Ok(Writable {
            datapath,
            host,
            locked,
        }))
    }

    fn observe(&self) -> Result<Host, Error> {
        addresses::of_host(&self.host).doing(|| "read the host's addresses".to_owned())
    }

    fn build(&self, locked: Locked, options: &Options) -> Result<Writable, Error> {
        let cookie = self.host.cookie()?;
        let host = self.observe()?;
        self.detach_all(&locked)?;
        let built = locked.build()?;
        let done = self
            .fill(&built, cookie, &host, options)
            .and_then(|tables| {
                let allowed = || self.refuse_second(cookie);
                let layout = locked.publish(&built, WAIT, allowed)?;
                Ok(Datapath { tables, layout })
            });
        match done {
            Ok(datapath) => Ok(Writable {
                datapath,
                host,
                locked,
            }),
            Err(cause) => {
                let undone = self.detach_all(&locked).and_then(|()| locked.clean());
                Err(with_undone(cause, undone))
            }
        }
    }

    /// Detaches everything, finished or not, of whatever version.
    fn detach_all(&self, locked: &Locked) -> Result<(), Error> {
        locked
            .layouts()?
            .iter()
            .try_for_each(|layout| hooks::detach_all(layout, &self.host))
    }

    fn fill(
        &self,
        built: &Layout,
        cookie: u64,
        host: &Host,
        options: &Options,
    ) -> Result<Tables, Error> {
        let doing = || "load the eBPF programs".to_owned();
        let load = object::Options {
            host_netns: cookie,
            log_level: options.log_level as u8,
        };
        let mut ebpf = object::load(load).doing(doing)?;
        object::pin(&mut ebpf, &built.maps(), &built.programs()).doing(doing)?;
        let mut tables = Tables::of(&ebpf).doing(doing)?;
        let mut journal = tables.journal.get(0);
        let file = self.host.id();
        journal.host_netns = cookie;
        journal.host_netns_file = [file.device, file.inode];
        journal.log_level = options.log_level as u64;
        tables.journal.set(0, journal);
        warn_of_reach(&hooks::sockets::attach(&mut ebpf, built)?);
        let mut datapath = Datapath {
            tables,
            layout: built.clone(),
        };
        if !options.devices.is_empty() {
            make_directory(&datapath.some_devices())?;
        }
        datapath.follow(host, &self.host)?;
        datapath.serve(host, &self.host, options)?;
        Ok(datapath.tables)
    }

    /// One instance a namespace.
    fn refuse_second(&self, cookie: u64) -> Result<(), Error> {
        for (name, state) in instance::all(&self.bpffs)? {
            let State::Present(layout) = state else {
                continue;
            };
            if name != *self.name() && open_tables(&layout)?.journal.get(0).host_netns == cookie {
                let namespace = namespace_name(self.host.id().inode);
                return Err(InstanceError::Second {
                    namespace,
                    first: name,
                }
                .into());
            }
        }
        Ok(())
    }

    fn check_namespace(&self, tables: &Tables) -> Result<(), Error> {
        let journal = tables.journal.get(0);
        if journal.host_netns == self.host.cookie()? {
            return Ok(());
        }
        Err(InstanceError::OtherNamespace {
            instance: self.name().clone(),
            theirs: namespace_name(journal.host_netns_file[1]),
            ours: namespace_name(self.host.id().inode),
        }
        .into())
    }

    /// Takes the instance down, of whatever version it is. Says whether there was one.
    ///
    /// # Errors
    /// Everything that could not be removed.
    pub fn down(self) -> Result<bool, Error> {
        let Some(locked) = self.place.lock(WAIT)? else {
            return Ok(false);
        };
        let state = self.place.state()?;
        if let State::Present(layout) = &state {
            let mut tables = open_tables(layout)?;
            self.check_namespace(&tables)?;
            transaction::recover(&mut tables).doing(|| "repair the forwards".to_owned())?;
            let mut transaction = transaction::Transaction::begin(&mut tables);
            let all: Vec<u32> = transaction::visible(transaction.tables())
                .map(|f| f.0)
                .collect();
            all.into_iter()
                .for_each(|index| transaction.withdraw(index));
            transaction.commit();
            sweep::sweep(&mut tables, layout, &self.host)?;
        }
        self.detach_all(&locked)?;
        locked.remove()?;
        self.bpffs.release()?;
        Ok(state != State::Absent)
    }
}

impl Datapath {
    /// Brings hooks and tables in step with the host's devices and addresses.
    fn follow(&mut self, host: &Host, netns: &Netns) -> Result<(), Error> {
        self.follow_addresses(host)?;
        let served = self.served(host)?;
        self.detach_all_but(&served, Hook::Device, netns)?;
        for device in served {
            hooks::attach(&self.layout, Hook::Device, netns, device)?;
        }
        xdp::forget_gone(&self.layout)?;
        if !hooks::attached(&self.layout, Hook::Egress)?.is_empty() {
            self.attach_egress(host, netns)?;
            let all: Vec<&Link> = host.devices.iter().collect();
            self.detach_all_but(&all, Hook::Egress, netns)?;
        }
        Ok(())
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
        let failed = |name| move |source| TableError::full_or(name, u32::MAX, source);
        let own: Vec<Ip> = host
            .addresses
            .iter()
            .filter(|own| !own.loopback && !own.link_local)
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
        for device in &host.devices {
            let Some(mac) = device.mac else { continue };
            let record = Device::with_address(mac);
            let devices = &mut self.tables.devices;
            devices
                .insert(device.index, record, 0)
                .map_err(failed(maps::DEVICES))
                .doing(doing)?;
        }
        Ok(())
    }

    /// Attaches what `up` was told to.
    ///
    /// # Errors
    /// When a device does not exist, or refuses.
    pub fn serve(&mut self, host: &Host, netns: &Netns, options: &Options) -> Result<(), Error> {
        let devices = match options.devices.is_empty() {
            true => self.served(host)?,
            false => named_devices(host, netns, &options.devices)?,
        };
        for device in devices {
            hooks::attach(&self.layout, Hook::Device, netns, device)?;
            self.serve_xdp(netns, device, options.xdp)?;
            if !self.serves_all() {
                make_directory(&self.some_devices().join(escaped(&device.name)))?;
            }
        }
        Ok(())
    }

    fn serve_xdp(&self, netns: &Netns, device: &Link, mode: cli::XdpMode) -> Result<(), Error> {
        let attach = |mode| xdp::attach(&self.layout, netns, device, mode);
        match mode {
            cli::XdpMode::Off => Ok(()),
            cli::XdpMode::Native => attach(xdp::Mode::Native),
            cli::XdpMode::Generic => attach(xdp::Mode::Generic),
            cli::XdpMode::Auto => attach(xdp::Mode::Native).or_else(|error| {
                eprintln!("warning: {} runs without XDP: {error}", device.name);
                Ok(())
            }),
        }
    }

    /// Attaches the egress program to every device: flows through the stack need it.
    ///
    /// # Errors
    /// When a device refuses.
    pub fn attach_egress(&self, host: &Host, netns: &Netns) -> Result<(), Error> {
        for device in &host.devices {
            hooks::attach(&self.layout, Hook::Egress, netns, device)?;
        }
        Ok(())
    }

    /// The devices of the host that this instance serves: all, or those that `up --device` named. They
    /// are known by name, so that one that goes and comes again is served again.
    fn served<'a>(&self, host: &'a Host) -> Result<Vec<&'a Link>, Error> {
        let mut devices: Vec<&Link> = host.devices.iter().collect();
        if !self.serves_all() {
            let named = bpffs::names(&self.some_devices())?;
            devices.retain(|device| named.contains(&escaped(&device.name)));
        }
        Ok(devices)
    }

    fn serves_all(&self) -> bool {
        !self.some_devices().exists()
    }

    fn some_devices(&self) -> PathBuf {
        self.layout.links().join(SOME_DEVICES)
    }
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

fn warn_of_reach(reach: &Reach) {
    match reach {
        Reach::All => {}
        Reach::Below(part) => eprintln!(
            "warning: no cgroup2 root is in sight, so of the host's processes only those below {} \
             reach published ports",
            part.display()
        ),
        Reach::None => {
            eprintln!("warning: no cgroup2 is mounted, so host processes reach no published port");
        }
    }
}

impl Writable {
    /// Gives the lock back.
    pub fn release(self) -> Datapath {
        drop(self.locked);
        self.datapath
    }
}

fn open_tables(layout: &Layout) -> Result<Tables, Error> {
    Tables::open(&layout.maps()).doing(|| format!("open {}", display(layout.root())))
}

fn display(path: &Path) -> String {
    path.display().to_string()
}

fn with_undone(cause: Error, undone: Result<(), Error>) -> Error {
    match undone {
        Ok(()) => cause,
        Err(failure) => Error::Undo {
            cause: Box::new(cause),
            failures: vec![failure],
        },
    }
}

/// As `readlink /proc/self/ns/net` shows it.
pub fn namespace_name(inode: u64) -> String {
    format!("net:[{inode}]")
}

/// Before anything is opened: what the process may not do is named at once.
fn check_privileges(enters_namespace: bool) -> Result<(), Error> {
    let mut needed = vec![Capability::Bpf, Capability::NetAdmin, Capability::Perfmon];
    if enters_namespace {
        needed.push(Capability::SysAdmin);
    }
    let privileges = Privileges::read().doing(|| "read /proc/self/status".to_owned())?;
    let missing = privileges.missing(&needed);
    if missing.is_empty() {
        return Ok(());
    }
    Err(Lacking::Capability {
        action: "work on the datapath".to_owned(),
        capabilities: missing,
    }
    .into())
}
