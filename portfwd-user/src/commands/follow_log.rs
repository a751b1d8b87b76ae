//! `portfwd log`: what the programs tell, as it comes, until it is interrupted or nothing comes any more.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use aya::programs::SchedClassifier;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use portfwd_common::programs;
use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    cli::{Cli, LogLevel},
    datapath::{self, Site},
    error::{Doing, Error, InstanceError},
    instance::ObjectPins,
    talk,
};

/// How often it is looked whether the instance is still up, and logs.
const LOOK: Duration = Duration::from_millis(500);

/// Writes each record to standard output as one line.
struct Lines;

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &Record<'_>) {
        let mut out = io::stdout().lock();
        // The reader may have gone; the next flush of the ring then finds standard output closed.
        let _ = writeln!(
            out,
            "{} {}",
            record.level().as_str().to_lowercase(),
            record.args()
        );
    }
    fn flush(&self) {}
}

pub(super) fn run(cli: &Cli) -> Result<(), Error> {
    let down = || InstanceError::Down(cli.instance.clone());
    let site = Site::of(cli, false)?.ok_or_else(down)?;
    let datapath = site.open()?.ok_or_else(down)?;
    if datapath.log_level()? == LogLevel::Off {
        return Err(InstanceError::Silent(cli.instance.clone()).into());
    }
    let doing = || "read the log".to_owned();
    let path = datapath.layout.programs().join(programs::TC_DEVICE);
    let object = datapath.layout.object();
    let program = SchedClassifier::from_pin(&path).doing(doing)?;
    let id = program.info().doing(doing)?.id();
    let logger = EbpfLogger::init_from_id_with_logger(id, Lines).doing(doing)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .doing(doing)?;
    // Held no longer: `down` is not to find them in use.
    drop((site, datapath, program));
    let why = runtime.block_on(follow(logger, &object))?;
    match why {
        End::Unwanted => {}
        End::Down => talk::say("the instance is down"),
        End::Silent => talk::say(&format!(
            "instance \"{}\" logs nothing any more",
            cli.instance
        )),
    }
    Ok(())
}

/// Why a log is followed no longer.
enum End {
    /// It was interrupted, or nobody reads it.
    Unwanted,
    Down,
    /// `up --log-level off`.
    Silent,
}

/// Follows until there is nothing to follow: programs that log, and whose pins go with the instance.
async fn follow(logger: EbpfLogger<Lines>, object: &ObjectPins) -> Result<End, Error> {
    let doing = || "read the log".to_owned();
    // SAFETY: the logger owns the descriptor of its ring for as long as it lives, and `AsyncFd` owns the
    // logger.
    let mut ring =
        unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) }.doing(doing)?;
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            ready = ring.readable_mut() => {
                let mut ready = ready.doing(doing)?;
                ready.get_inner_mut().flush();
                ready.clear_ready();
                match io::stdout().flush() {
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                        return Ok(End::Unwanted);
                    }
                    flushed => flushed.doing(doing)?,
                }
            }
            _ = look.tick() => {
                let level = datapath::log_level(object);
                if !object.exists() {
                    return Ok(End::Down);
                }
                if level? == LogLevel::Off {
                    return Ok(End::Silent);
                }
            }
            interrupted = tokio::signal::ctrl_c() => {
                return interrupted.doing(doing).map(|()| End::Unwanted);
            }
        }
    }
}
