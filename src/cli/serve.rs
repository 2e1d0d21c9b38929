//! `spigate serve`: the gateway as a process, from the configuration to the last request.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use http::HeaderName;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};

use super::{Failure, Overrides, load_config};
use crate::access_log::AccessLog;
use crate::admin::{self, Admin};
use crate::app::App;
use crate::config::{Config, ShutdownConfig, units};
use crate::gateway::{self, Gateway};
use crate::metrics::Metrics;
use crate::observe::Observer;
use crate::server::Server;
use crate::stage::claim::Deliveries;
use crate::stage::route::Routes;
use crate::telemetry::{self, Telemetry};

/// Arguments of `spigate serve`.
#[derive(Args)]
pub struct Serve {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    #[command(flatten)]
    overrides: Overrides,
}

impl Serve {
    /// Runs the command until a signal ends it.
    ///
    /// # Errors
    /// Problems of the configuration, and addresses that cannot be used.
    pub fn run(&self) -> Result<(), Failure> {
        let config = load_config(&self.config, self.overrides.settings())?;
        let telemetry = telemetry::init(&config.log);
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::unusable(format!("no runtime: {error}")))?;
        runtime.block_on(async {
            let running = Running::start(config, Some(&telemetry)).await?;
            let mut signals = Signals::new()?;
            signals.first().await;
            tokio::select! {
                () = running.stop() => {}
                () = signals.second() => tracing::warn!("second signal: ending at once"),
            }
            Ok(())
        })
    }
}

/// A running gateway: both listeners and everything behind them.
pub struct Running {
    /// Where the public listener really listens.
    pub listen: std::net::SocketAddr,
    /// Where the admin listener really listens.
    pub admin: std::net::SocketAddr,
    ready: watch::Sender<bool>,
    stop: watch::Sender<bool>,
    server: tokio::task::JoinHandle<tokio_util::task::TaskTracker>,
    deliveries: Deliveries,
    shutdown: ShutdownConfig,
}

impl Running {
    /// Starts the gateway. Without telemetry there is no access log.
    ///
    /// # Errors
    /// Addresses that cannot be used.
    pub async fn start(config: Config, telemetry: Option<&Telemetry>) -> Result<Self, Failure> {
        let unusable = |what: &str, error: &dyn std::fmt::Display| Failure::unusable(format!("{what}: {error}"));
        let metrics = Arc::new(Metrics::new().map_err(|error| unusable("metrics", &error))?);
        metrics.build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);

        let bind = async |key: &str, address| {
            TcpListener::bind(address).await.map_err(|error| unusable(&format!("{key} = \"{address}\""), &error))
        };
        let (public, private) =
            (bind("listen.address", config.listen).await?, bind("admin.address", config.admin).await?);
        let address = |listener: &TcpListener| listener.local_addr().map_err(|error| unusable("listener", &error));
        let (listen, admin) = (address(&public)?, address(&private)?);

        let mut headers: Vec<HeaderName> =
            config.dialects.iter().filter_map(|dialect| dialect.signature.header.clone()).collect();
        headers.dedup();
        let apps = config.apps.into_iter().map(|app| App::new(app, &config.limits, &metrics).map(Arc::new));
        let apps = apps.collect::<Result<Vec<_>, _>>().map_err(|error| unusable("backend", &error))?;
        let names = apps.iter().map(|app| app.config.name.clone()).collect::<Vec<_>>().join(", ");
        let deliveries = Deliveries::default();
        let gateway = Arc::new(Gateway {
            routes: Routes::new(apps),
            limits: config.limits,
            deliveries: deliveries.clone(),
            slots: Arc::new(Semaphore::new(config.limits.in_flight)),
            metrics: Arc::clone(&metrics),
        });
        let log = telemetry
            .filter(|_| config.log.access)
            .map(|telemetry| AccessLog::new(telemetry.out.clone(), config.log.format));
        let observer = Arc::new(Observer::new(Arc::clone(&metrics), log));
        let stack = gateway::stack(gateway, observer, headers.into());

        let (ready, is_ready) = watch::channel(true);
        let (stop, stopping) = watch::channel(false);
        let admin_router = admin::router(Admin { metrics: Arc::clone(&metrics), ready: is_ready });
        // Ends with the process: monitoring may look until the very last.
        tokio::spawn(async move { axum::serve(private, admin_router).await });
        let server = Server { limits: config.limits, trusted_proxies: config.trusted_proxies, metrics };
        let server = tokio::spawn(server.serve(public, stack, stopping));
        tracing::info!(%listen, %admin, apps = names, version = env!("CARGO_PKG_VERSION"), "ready");
        Ok(Self { listen, admin, ready, stop, server, deliveries, shutdown: config.shutdown })
    }

    /// Stops: first not ready, then no new connections, then what still runs, within limits.
    pub async fn stop(self) {
        let ShutdownConfig { delay, grace } = self.shutdown;
        tracing::info!(delay = units::show_duration(delay), "stopping: not ready any more");
        self.ready.send_replace(false);
        tokio::time::sleep(delay).await;
        self.stop.send_replace(true);
        let drained = async {
            if let Ok(connections) = self.server.await {
                connections.wait().await;
            }
            self.deliveries.drained().await;
        };
        if tokio::time::timeout(grace, drained).await.is_err() {
            let deliveries = self.deliveries.running();
            tracing::warn!(deliveries, "stopping although something still runs: shutdown.grace has passed");
        } else {
            tracing::info!("stopped");
        }
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|error| Failure::unusable(format!("signals: {error}")));
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
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
