//! `portfwd log`: what the programs tell, as it comes, until it is interrupted.

use std::{
    io::{self, Write as _},
    path::Path,
    time::Duration,
};

use aya::programs::SchedClassifier;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use portfwd_common::programs;
use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    cli::{Cli, LogLevel},
    datapath::Site,
    error::{Doing, Error, InstanceError},
    talk,
};

/// How often it is looked whether the instance is still up.
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
    let program = SchedClassifier::from_pin(&path).doing(doing)?;
    let id = program.info().doing(doing)?.id();
    let logger = EbpfLogger::init_from_id_with_logger(id, Lines).doing(doing)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .doing(doing)?;
    // Held no longer: `down` is not to find them in use.
    drop((site, datapath, program));
    runtime.block_on(follow(logger, &path)).doing(doing)
}

/// Follows until the instance goes down, which takes the pin of its program away.
async fn follow(logger: EbpfLogger<Lines>, pin: &Path) -> io::Result<()> {
    // SAFETY: the logger owns the descriptor of its ring for as long as it lives, and `AsyncFd` owns the
    // logger.
    let mut ring = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) }?;
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            ready = ring.readable_mut() => {
                let mut ready = ready?;
                ready.get_inner_mut().flush();
                ready.clear_ready();
                match io::stdout().flush() {
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                    flushed => flushed?,
                }
            }
            _ = look.tick() => if !pin.exists() {
                talk::say("the instance is down");
                return Ok(());
            },
            interrupted = tokio::signal::ctrl_c() => return interrupted,
        }
    }
}
