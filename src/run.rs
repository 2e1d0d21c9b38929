//! A gateway that runs: its listeners and everything behind them, from a configuration to the
//! last delivery. `serve` runs one with signals, `demo` one without.

use std::collections::HashSet;
use std::sync::Arc;

use http::HeaderName;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use crate::access_log::AccessLog;
use crate::admin::{self, Admin};
use crate::companion::{self, COMPANION};
use crate::config::listen::{Address, ListenConfig};
use crate::config::{CompanionConfig, Config, ShutdownConfig, units};
use crate::gateway::{self, Gateway, Way};
use crate::journal::Journal;
use crate::live::{Fixed, Live};
use crate::metrics::Metrics;
use crate::observe::Observer;
use crate::places::Places;
use crate::served::Served;
use crate::server::inherited::Inherited;
use crate::server::listener::Listener;
use crate::server::{Phase, Server};
use crate::stage::claim::Deliveries;
use crate::telemetry::Telemetry;
use crate::tls::Acceptors;

/// A running gateway: its listeners and everything behind them.
pub struct Instance {
    /// Where the first public listener really listens.
    pub listen: Address,
    /// Where the admin listener really listens.
    pub admin: std::net::SocketAddr,
    ready: watch::Sender<bool>,
    phase: watch::Sender<Phase>,
    /// One for each public listener, and the companion's.
    servers: Vec<JoinHandle<TaskTracker>>,
    deliveries: Deliveries,
    /// Keeps the journal, and with it the lease.
    keeper: JoinHandle<()>,
    live: Arc<Live>,
}

impl Instance {
    /// Starts the gateway on what was `inherited`, and on sockets of its own for everything else.
    /// Without telemetry there is no access log.
    ///
    /// # Errors
    /// Addresses that cannot be used, and sockets that have none of the configuration's.
    pub async fn start(
        config: Config,
        mut inherited: Inherited,
        telemetry: Option<&Telemetry>,
    ) -> Result<Self, String> {
        let unusable = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
        let metrics = Arc::new(Metrics::new().map_err(|error| unusable("metrics", &error))?);
        metrics.build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);

        // Before anything listens: a gateway that cannot record must not be called.
        let journal = Journal::open(&config, Arc::clone(&metrics)).await?;
        let keeper = tokio::spawn(Arc::clone(&journal).keep());

        let mut public = Vec::new();
        for ListenConfig { name, address, tls, .. } in config.listeners.clone() {
            let wrong = |error: &dyn std::fmt::Display| unusable(&format!("{name}.address = \"{address}\""), error);
            // First: it may take a while, and nobody should be let in who has to wait for the rest of it.
            let tls = tls.map(|tls| Acceptors::new(&name, &tls, Arc::clone(&metrics)).map(Arc::new));
            let tls = tls.transpose().map_err(|error| unusable(&format!("{name}.tls"), &error))?;
            let listener = Listener::bind(&address, &mut inherited).map_err(|error| wrong(&error))?;
            let address = listener.address().map_err(|error| wrong(&error))?;
            public.push((listener, address, name, tls));
        }
        let mut companion = None;
        if let Some(CompanionConfig { address, .. }) = &config.companion {
            let wrong = |error: &dyn std::fmt::Display| unusable(&format!("companion.address = \"{address}\""), error);
            let listener = Listener::bind(&Address::Tcp(*address), &mut inherited);
            let listener = listener.map_err(|error| wrong(&error))?;
            let address = listener.address().map_err(|error| wrong(&error))?;
            companion = Some((listener, address));
        }
        let wrong = |error| unusable(&format!("admin.address = \"{}\"", config.admin.address), &error);
        let private = match inherited.tcp(config.admin.address) {
            Some(socket) => TcpListener::from_std(socket),
            None => TcpListener::bind(config.admin.address).await,
        };
        let private = private.map_err(wrong)?;
        let admin = private.local_addr().map_err(wrong)?;
        inherited.all_taken()?;
        let listen = public.first().map(|(_, address, ..)| address.clone()).ok_or("there is no public listener")?;

        // Each is looked for in every request, so an ingress's are left to the companion.
        let signatures = config.dialects.iter().filter_map(|dialect| dialect.signature.header.clone());
        let signatures: HashSet<HeaderName> = signatures.collect();
        let held: HashSet<HeaderName> = companion::sensitive().chain(signatures.iter().cloned()).collect();
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
        let stack = |way, sensitive: HashSet<HeaderName>| {
            gateway::stack(Arc::clone(&gateway), way, Arc::clone(&observer), sensitive.into_iter().collect())
        };
        let (deliver, vouch) = (stack(Way::Deliver, signatures), stack(Way::Vouch, held));
        let levels = telemetry.map(|telemetry| telemetry.levels.clone());
        let live = Arc::new(Live {
            metrics: Arc::clone(&metrics),
            served,
            journal: Arc::clone(&journal),
            observer,
            levels: levels.clone(),
            tls: public.iter().filter_map(|(.., tls)| tls.clone()).collect(),
            fixed: Fixed::of(&config),
        });

        let (ready, is_ready) = watch::channel(true);
        let (phase, is_in_phase) = watch::channel(Phase::Serving);
        let desk = Admin {
            metrics: Arc::clone(&metrics),
            journal: Arc::clone(&journal),
            served: now_served.clone(),
            ready: is_ready,
            levels,
            dropped_lines: telemetry.map(|telemetry| Arc::new(telemetry.dropped_lines()) as _),
            requests: tokio::runtime::Handle::current(),
            address: admin,
        };
        admin::serve(private, desk).map_err(|error| unusable("admin listener", &error))?;
        let places = Places::default();
        let mut servers = Vec::new();
        let asked_at = companion.as_ref().map(|(_, address)| address.to_string());
        let public = public.into_iter().map(|(listener, address, name, tls)| (listener, address, name, tls, &deliver));
        let companion = companion.map(|(listener, address)| (listener, address, COMPANION.to_owned(), None, &vouch));
        for (listener, address, name, tls, stack) in public.chain(companion) {
            tracing::info!(listener = name, %address, tls = tls.is_some(), "listening");
            let (served, places) = (now_served.clone(), places.clone());
            let server = Server::new(name, served, places, tls, Arc::clone(&metrics));
            servers.push(tokio::spawn(server.serve(listener, stack.clone(), is_in_phase.clone())));
        }
        let version = env!("CARGO_PKG_VERSION");
        tracing::info!(%listen, %admin, companion = asked_at, apps = names, version, "ready");
        Ok(Self { listen, admin, ready, phase, servers, deliveries, keeper, live })
    }

    /// What of it follows the configuration.
    pub fn live(&self) -> Arc<Live> {
        Arc::clone(&self.live)
    }

    /// What it does, in a line.
    pub fn status(&self) -> String {
        format!("serving on {}", self.listen)
    }

    /// Stops: first not ready, and clients are asked to connect anew; then no new connections; then
    /// what still runs, within limits.
    pub async fn stop(self) {
        let ShutdownConfig { delay, grace } = self.live.served.borrow().shutdown;
        tracing::info!(delay = units::show_duration(delay), "stopping: not ready any more");
        // In this order: whoever has seen that it is not ready finds that clients are asked to leave.
        self.phase.send_replace(Phase::Leaving);
        self.ready.send_replace(false);
        tokio::time::sleep(delay).await;
        self.phase.send_replace(Phase::Stopping);
        let drained = async {
            for server in self.servers {
                if let Ok(connections) = server.await {
                    connections.wait().await;
                }
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
