//! A gateway that runs: both listeners and everything behind them, from a configuration to the
//! last delivery. `serve` runs one with signals, `demo` one without.

use std::sync::Arc;

use http::HeaderName;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::access_log::AccessLog;
use crate::admin::{self, Admin};
use crate::config::{Config, ShutdownConfig, units};
use crate::gateway::{self, Gateway};
use crate::journal::Journal;
use crate::live::Live;
use crate::metrics::Metrics;
use crate::observe::Observer;
use crate::places::Places;
use crate::served::Served;
use crate::server::Server;
use crate::stage::claim::Deliveries;
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
    live: Arc<Live>,
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
        let names = config.apps.iter().map(|app| app.name.as_str()).collect::<Vec<_>>().join(", ");
        let (served, now_served) = watch::channel(Arc::new(Served::new(&config, &metrics, None)?));
        let deliveries = Deliveries::new(Arc::clone(&journal), Arc::clone(&metrics));
        let gateway = Arc::new(Gateway {
            served: now_served.clone(),
            deliveries: deliveries.clone(),
            slots: Places::default(),
            metrics: Arc::clone(&metrics),
        });
        let log = telemetry.map(|telemetry| AccessLog::new(telemetry.out.clone(), config.log.format));
        let observer = Arc::new(Observer::new(Arc::clone(&metrics), log));
        observer.log_requests(config.log.access);
        let stack = gateway::stack(gateway, Arc::clone(&observer), headers.into());
        let levels = telemetry.map(|telemetry| telemetry.levels.clone());
        let live = Live::new(&config, Arc::clone(&metrics), served, Arc::clone(&journal), observer, levels.clone());

        let (ready, is_ready) = watch::channel(true);
        let (stop, stopping) = watch::channel(false);
        let admin_router = admin::router(Admin {
            metrics: Arc::clone(&metrics),
            journal: Arc::clone(&journal),
            served: now_served,
            ready: is_ready,
            levels,
        });
        let admin_router = admin_router.into_make_service_with_connect_info::<std::net::SocketAddr>();
        // Ends with the process: monitoring may look until the very last.
        tokio::spawn(async move { axum::serve(private, admin_router).await });
        let server = Server { limits: config.limits, trusted_proxies: config.trusted_proxies, metrics };
        let server = tokio::spawn(server.serve(public, stack, stopping));
        tracing::info!(%listen, %admin, apps = names, version = env!("CARGO_PKG_VERSION"), "ready");
        Ok(Self { listen, admin, ready, stop, server, deliveries, keeper, live: Arc::new(live) })
    }

    /// What of it follows the configuration.
    pub fn live(&self) -> Arc<Live> {
        Arc::clone(&self.live)
    }

    /// What it does, in a line.
    pub fn status(&self) -> String {
        format!("serving on {}", self.listen)
    }

    /// Stops: first not ready, then no new connections, then what still runs, within limits.
    pub async fn stop(self) {
        let ShutdownConfig { delay, grace } = self.live.served.borrow().shutdown;
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
