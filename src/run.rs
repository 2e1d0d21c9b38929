//! A gateway that runs: both listeners and everything behind them, from a configuration to the
//! last delivery. `serve` runs one with signals, `demo` one without.

use std::sync::Arc;

use http::HeaderName;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::access_log::AccessLog;
use crate::admin::{self, Admin};
use crate::app::App;
use crate::config::{Config, ShutdownConfig, units};
use crate::failures::Failures;
use crate::gateway::{self, Gateway};
use crate::journal::Journal;
use crate::metrics::Metrics;
use crate::observe::Observer;
use crate::peer::Proxies;
use crate::server::Server;
use crate::stage::claim::Deliveries;
use crate::stage::route::Routes;
use crate::telemetry::Telemetry;

/// A running gateway: both listeners and everything behind them.
pub struct Instance {
    /// Where the public listener really listens.
    pub listen: std::net::SocketAddr,
    /// Where the admin listener really listens.
    pub admin: std::net::SocketAddr,
    ready: watch::Sender<bool>,
    stop: watch::Sender<bool>,
    server: tokio::task::JoinHandle<tokio_util::task::TaskTracker>,
    deliveries: Deliveries,
    /// Keeps the journal, and with it the lease.
    keeper: tokio::task::JoinHandle<()>,
    shutdown: ShutdownConfig,
}

impl Instance {
    /// Starts the gateway. Without telemetry there is no access log.
    ///
    /// # Errors
    /// Addresses that cannot be used.
    pub async fn start(config: Config, telemetry: Option<&Telemetry>) -> Result<Self, String> {
        let unusable = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
        let metrics = Arc::new(Metrics::new().map_err(|error| unusable("metrics", &error))?);
        metrics.build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);

        // Before anything listens: a gateway that cannot record must not be called.
        let journal = Journal::open(&config, Arc::clone(&metrics)).await?;
        let keeper = tokio::spawn(Arc::clone(&journal).keep());

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
        let deliveries = Deliveries::new(Arc::clone(&journal), Arc::clone(&metrics));
        let gateway = Arc::new(Gateway {
            routes: Routes::new(apps),
            limits: config.limits,
            deliveries: deliveries.clone(),
            failures: config.limits.failed_per_minute.map(|limit| Failures::new(limit.get())),
            slots: Arc::new(Semaphore::new(config.limits.in_flight)),
            metrics: Arc::clone(&metrics),
        });
        let log = telemetry
            .filter(|_| config.log.access)
            .map(|telemetry| AccessLog::new(telemetry.out.clone(), config.log.format));
        let observer = Arc::new(Observer::new(Arc::clone(&metrics), log));
        let proxies = Proxies::new(config.trusted_proxies);
        let stack = gateway::stack(gateway, observer, headers.into(), proxies.clone());

        let (ready, is_ready) = watch::channel(true);
        let (stop, stopping) = watch::channel(false);
        let admin_router = admin::router(Admin {
            metrics: Arc::clone(&metrics),
            journal: Arc::clone(&journal),
            ready: is_ready,
            dropped_lines: telemetry.map(|telemetry| Arc::new(telemetry.dropped_lines()) as _),
            requests: tokio::runtime::Handle::current(),
        });
        admin::serve(private, admin_router).map_err(|error| unusable("admin listener", &error))?;
        let server = Server { limits: config.limits, proxies, proxy_protocol: config.proxy_protocol, metrics };
        let server = tokio::spawn(server.serve(public, stack, stopping));
        tracing::info!(%listen, %admin, apps = names, version = env!("CARGO_PKG_VERSION"), "ready");
        Ok(Self { listen, admin, ready, stop, server, deliveries, keeper, shutdown: config.shutdown })
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
            tracing::warn!("stopping although something still runs: shutdown.grace has passed");
            self.deliveries.abandon().await;
        } else {
            tracing::info!("stopped");
        }
        // Or it would take the lease again that is given up now.
        self.keeper.abort();
        self.deliveries.journal().close().await;
    }
}
