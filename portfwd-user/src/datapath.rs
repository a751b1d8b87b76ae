//! An instance that is up: brought up, opened, taken down.

mod devices;
mod programs;

pub use programs::log_level;

use std::{
    mem::offset_of,
    path::Path,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use portfwd_common::{flow::Lifetimes, forward::Journal};

use crate::{
    bpffs::Bpffs,
    cli::{self, Cli, Lifetime, LogLevel, Switch},
    error::{Doing, Error, InstanceError, Lacking},
    hooks::{self, sockets::Reach},
    instance::{self, Layout, Locked, Place, State, WAIT},
    label::InstanceName,
    masquerade, object,
    observe::{
        addresses::{self, Host},
        netns::{self, Netns, NetnsId},
        privilege::{Capability, Privileges},
    },
    sweep,
    tables::{self, Tables},
    talk, transaction,
};

/// How long the kernel may take to free what was removed, and commands that are ending to end.
const LINGERING: Duration = Duration::from_secs(3);

/// What the programs are loaded and attached with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Names of the devices to serve; none for every device on which the host has an address.
    pub devices: Vec<String>,
    /// Whether and how the XDP program runs; None leaves it as it is.
    pub xdp: Option<cli::XdpMode>,
    /// What the programs log; None leaves it as it is, which is nothing at first.
    pub log_level: Option<LogLevel>,
    /// How long flows live, where it is not as it was.
    pub lifetimes: Vec<Lifetime>,
    /// Whether flows count their bytes; None leaves it as it is.
    pub flow_bytes: Option<Switch>,
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
        let host = host(cli)?;
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

    /// Leaves nothing of an instance that could not be brought up; gives the error to tell.
    pub fn abandon(self, cause: Error) -> Error {
        with_undone(cause, self.bpffs.release().map(|_| ()))
    }

    /// The instance's name.
    pub fn name(&self) -> &InstanceName {
        self.place.name()
    }

    /// Whether no instance is up, nor anything else in its place.
    pub fn is_absent(&self) -> bool {
        matches!(self.place.find(), Ok(None))
    }

    /// The instance for reading, if it is up.
    ///
    /// # Errors
    /// When something else is in its place, or it serves another namespace.
    pub fn open(&self) -> Result<Option<Datapath>, Error> {
        let Some(layout) = self.place.find()? else {
            return Ok(None);
        };
        let tables = match open_tables(&layout) {
            Ok(tables) => tables,
            // Readers hold no lock: it may have gone down meanwhile.
            Err(error) => match self.place.find()? {
                None => return Ok(None),
                Some(_) => return Err(error),
            },
        };
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
            Ok(writable) => Ok((writable, false)),
            Err(locked) => Ok((self.build(locked, options)?, true)),
        }
    }

    fn open_locked(&self, locked: Locked) -> Result<Result<Writable, Locked>, Error> {
        let Some(layout) = self.place.find()? else {
            return Ok(Err(locked));
        };
        let mut tables = open_tables(&layout)?;
        self.check_namespace(&tables)?;
        programs::settle(&locked, &layout, &self.host)?;
        if transaction::recover(&mut tables).doing(|| "repair the forwards".to_owned())? {
            sweep::sweep(&mut tables, &layout, &self.host)?;
        }
        let host = observe(&self.host)?;
        let mut writable = Writable {
            datapath: Datapath { tables, layout },
            host,
            locked,
        };
        writable.run_own_for(&writable.host.devices, &self.host)?;
        writable.datapath.follow(&writable.host, &self.host)?;
        Ok(Ok(writable))
    }

    fn build(&self, locked: Locked, options: &Options) -> Result<Writable, Error> {
        let cookie = self.host.cookie()?;
        let host = observe(&self.host)?;
        self.refuse_second(cookie)?;
        self.refuse_second_elsewhere(cookie)?;
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
        let level = options.log_level.unwrap_or(LogLevel::Off);
        let load = object::Options {
            host_netns: cookie,
            log_level: level as u8,
        };
        let mut ebpf = object::load(load).doing(doing)?;
        object::pin_maps(&ebpf, &built.maps()).doing(doing)?;
        programs::pin(&mut ebpf, &built.object(), level)?;
        let mut tables = Tables::of(&ebpf).doing(doing)?;
        let mut journal = tables.journal.get(0);
        let file = self.host.id();
        journal.host_netns = cookie;
        journal.host_netns_file = [file.device, file.inode];
        journal.lifetimes = Lifetimes::DEFAULT;
        tables.journal.set(0, journal);
        warn_of_reach(&hooks::sockets::attach(&mut ebpf, built)?);
        let mut datapath = Datapath {
            tables,
            layout: built.clone(),
        };
        if !options.devices.is_empty() {
            datapath.serve_some()?;
        }
        datapath.follow(host, &self.host)?;
        datapath.serve(host, &self.host, options)?;
        datapath.tune(options);
        Ok(datapath.tables)
    }

    /// One instance a namespace.
    fn refuse_second(&self, cookie: u64) -> Result<(), Error> {
        let namespace = namespace_name(self.host.id().inode);
        for (name, state) in instance::all(&self.bpffs)? {
            let State::Present(layout) = state else {
                continue;
            };
            if name != *self.name() && open_tables(&layout)?.journal.get(0).host_netns == cookie {
                return Err(InstanceError::Second {
                    namespace,
                    first: name,
                }
                .into());
            }
        }
        Ok(())
    }

    /// The same, of instances in other bpffs: their maps are in the kernel all the same. Those of an
    /// instance that was just taken down are there for a moment more.
    fn refuse_second_elsewhere(&self, cookie: u64) -> Result<(), Error> {
        let deadline = Instant::now() + LINGERING;
        loop {
            // A killed command leaves an unfinished one in this bpffs.
            let here: Vec<u32> = instance::journals(&self.bpffs)?
                .iter()
                .filter_map(|pin| tables::map_id(pin))
                .collect();
            let mut others = tables::journals().filter(|(map, _)| !here.contains(map));
            let other = others.find(|(_, journal)| journal.host_netns == cookie);
            let Some((map, _)) = other else {
                return Ok(());
            };
            if Instant::now() >= deadline {
                let namespace = namespace_name(self.host.id().inode);
                return Err(InstanceError::SecondElsewhere { namespace, map }.into());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn check_namespace(&self, tables: &Tables) -> Result<(), Error> {
        let journal = tables.journal.get(0);
        if journal.host_netns == self.host.cookie()? {
            return Ok(());
        }
        let [device, inode] = journal.host_netns_file;
        let lives = netns::lives(NetnsId { device, inode }, journal.host_netns)
            .doing(|| format!("look for network namespace {}", namespace_name(inode)))?;
        if !lives {
            return Err(InstanceError::NamespaceGone(self.name().clone()).into());
        }
        Err(InstanceError::OtherNamespace {
            instance: self.name().clone(),
            theirs: namespace_name(inode),
            ours: namespace_name(self.host.id().inode),
        }
        .into())
    }

    fn withdraw_all(&self, mut tables: Tables, layout: &Layout) -> Result<(), Error> {
        match self.check_namespace(&tables) {
            // With its namespace went all that a sweep would end.
            Err(Error::Instance(InstanceError::NamespaceGone(_))) => return Ok(()),
            checked => checked?,
        }
        transaction::recover(&mut tables).doing(|| "repair the forwards".to_owned())?;
        let mut transaction = transaction::Transaction::begin(&mut tables);
        let all: Vec<u32> = transaction::serving(transaction.tables())
            .map(|f| f.0)
            .collect();
        all.into_iter()
            .for_each(|index| transaction.withdraw(index));
        masquerade::remove_all(transaction.tables())
            .doing(|| "end what is masqueraded".to_owned())?;
        transaction.commit();
        sweep::sweep(&mut tables, layout, &self.host)?;
        Ok(())
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
            match open_tables(layout) {
                Ok(tables) => self.withdraw_all(tables, layout)?,
                // What cannot be read can still be removed.
                Err(error) => talk::warn(&error.to_string()),
            }
        }
        self.detach_all(&locked)?;
        locked.remove()?;
        self.bpffs.release()?;
        Ok(state != State::Absent)
    }
}

impl Datapath {
    /// Changes what the programs read of the journal, where `options` say something else.
    pub fn tune(&mut self, options: &Options) {
        self.set_lifetimes(&options.lifetimes);
        if let Some(switch) = options.flow_bytes {
            let word = self.tables.journal.word(0, offset_of!(Journal, flow_bytes));
            word.store(u64::from(switch == Switch::On), Ordering::Relaxed);
        }
    }

    /// Changes how long flows live, of those that are there as well. The programs read each number at once.
    fn set_lifetimes(&mut self, lifetimes: &[Lifetime]) {
        let mut values = self.tables.journal.get(0).lifetimes.values();
        for lifetime in lifetimes {
            values[lifetime.place] = lifetime.seconds;
        }
        let at = offset_of!(Journal, lifetimes);
        let pairs: [u64; 2] = bytemuck::cast(Lifetimes::of_values(values));
        for (offset, pair) in [at, at + 8].into_iter().zip(pairs) {
            self.tables
                .journal
                .word(0, offset)
                .store(pair, Ordering::Relaxed);
        }
    }
}

fn warn_of_reach(reach: &Reach) {
    match reach {
        Reach::All => {}
        Reach::Below(part) => talk::warn(&format!(
            "no cgroup2 root is in sight, so of the host's processes only those below {} \
             reach published ports",
            part.display()
        )),
        Reach::None => {
            talk::warn("no cgroup2 is mounted, so host processes reach no published port");
        }
    }
}

impl Writable {
    /// Brings hooks and tables in step with the host, whose devices have changed since.
    ///
    /// # Errors
    /// When the host cannot be read, or the kernel refuses a hook.
    pub fn follow(&mut self, host: &Netns) -> Result<(), Error> {
        self.host = observe(host)?;
        self.datapath.follow(&self.host, host)
    }

    /// Gives the lock back.
    pub fn release(self) -> Datapath {
        drop(self.locked);
        self.datapath
    }
}

fn observe(host: &Netns) -> Result<Host, Error> {
    addresses::of_host(host).doing(|| "read the host's addresses".to_owned())
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

/// The namespace that plays the host, once the process is known to have the privileges.
///
/// # Errors
/// When a privilege is missing, or there is no such namespace.
pub fn host(cli: &Cli) -> Result<Netns, Error> {
    check_privileges(cli.host_netns.is_some())?;
    Ok(match &cli.host_netns {
        Some(path) => Netns::open(path)?,
        None => Netns::current()?,
    })
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
    let privileges = Privileges::read().doing(|| "read /proc/thread-self/status".to_owned())?;
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
