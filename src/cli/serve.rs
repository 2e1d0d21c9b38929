//! `spigate serve`: the gateway as a process, until a signal ends it.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::disable_transparent_huge_pages;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use super::{Failure, Overrides, load_config_with_fingerprint, print_config, reload_config};
use crate::reload::Reloader;
use crate::run::Instance;
use crate::server::inherited::Inherited;
use crate::{systemd, telemetry};

/// Arguments of `spigate serve`.
#[derive(Args)]
pub struct Serve {
    /// The configuration file; - for standard input
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    #[command(flatten)]
    overrides: Overrides,
    /// Print the configuration with variables, flags and defaults, secrets masked, and end
    #[arg(long)]
    print_config: bool,
}

impl Serve {
    /// Runs the command until a signal ends it.
    ///
    /// # Errors
    /// Problems of the configuration, and addresses that cannot be used.
    pub fn run(&self) -> Result<(), Failure> {
        if self.print_config {
            return print_config(&self.config, self.overrides.settings());
        }
        without_huge_pages();
        // While there is one thread.
        let inherited = Inherited::take().map_err(Failure::unusable)?;
        let (config, made_of, sources) = load_config_with_fingerprint(&self.config, self.overrides.settings())?;
        let runtime = runtime().map_err(|error| Failure::unusable(format!("no runtime: {error}")))?;
        let telemetry = telemetry::init(&config, runtime.handle()).map_err(Failure::unusable)?;
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        raise_descriptor_limit(config.limits.connections);
        let result = runtime.block_on(async {
            // Before anything is accepted, so that no signal finds the process unprepared.
            let mut signals = Signals::new()?;
            let running = Instance::start(config, inherited, Some(&telemetry)).await.map_err(Failure::unusable)?;
            let path = self.config.clone();
            let reloader = Reloader::new(running.live(), move || reload_config(&path, &sources), made_of);
            tokio::spawn(reloader.run(Arc::clone(&signals.hangups)));
            systemd::ready(&running.status());
            tokio::spawn(systemd::watchdog());
            signals.first().await;
            systemd::stopping();
            tokio::select! {
                () = running.stop() => {
                    if let Some(traces) = &telemetry.traces {
                        traces.flush().await;
                    }
                }
                () = signals.second() => tracing::warn!("second signal: ending at once"),
            }
            Ok(())
        });
        // A name look-up that hangs must not hold up an end whose time has come.
        runtime.shutdown_background();
        result
    }
}

/// The runtime that requests run in. With one processor, as in most sidecars, everything runs in
/// this thread: there is nobody to share work with, and sharing costs.
fn runtime() -> std::io::Result<Runtime> {
    let mut builder = match std::thread::available_parallelism() {
        Ok(processors) if processors.get() == 1 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    builder.enable_all().build()
}

/// Keeps memory in pages of the usual size also where the system gives huge ones unasked; that the
/// allocator does not ask for them is said in `main.rs`, with what they cost.
fn without_huge_pages() {
    // A kernel that knows none is just as well.
    let _ = disable_transparent_huge_pages(true);
}

/// Raises the soft limit of file descriptors to the hard one. Shells give 1,024, which was meant
/// for programs that use `select`, and is far below what an open port needs.
fn raise_descriptor_limit(connections: usize) {
    let limit = getrlimit(Resource::Nofile);
    // A process that may not raise it goes on with what it has.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    if let Some(descriptors) = getrlimit(Resource::Nofile).current
        && usize::try_from(descriptors).is_ok_and(|descriptors| descriptors < connections)
    {
        tracing::warn!(
            descriptors,
            connections,
            "the process may open fewer files than limits.connections allows connections; raise its limit (ulimit -n, \
             LimitNOFILE) or lower limits.connections"
        );
    }
}

/// SIGTERM and SIGINT end the process; SIGHUP has the configuration looked at.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// Rings at every SIGHUP.
    hangups: Arc<Notify>,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|error| Failure::unusable(format!("signals: {error}")));
        let mut hangup = listen(SignalKind::hangup())?;
        let hangups = Arc::new(Notify::new());
        let rings = Arc::clone(&hangups);
        tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                rings.notify_one();
            }
        });
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())?, hangups })
    }

    async fn first(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    async fn second(&mut self) {
        self.first().await;
    }
}
