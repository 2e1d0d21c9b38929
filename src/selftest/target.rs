//! What is tested: a notify URL as it stands, or the vendor's backend behind a gateway of our own
//! that has the vendor's configuration, a journal in memory and ports that the system gives.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::relay::Relay;
use crate::backend::Backend;
use crate::clock;
use crate::config::admin::AdminConfig;
use crate::config::journal::Location;
use crate::config::listen::{Address as ListenAddress, ListenConfig};
use crate::config::scalar::Secret;
use crate::config::{Address, AppConfig, BackendConfig, BackendTls, CircuitConfig, Config, Endpoint, Send};
use crate::dialect::Dialect;
use crate::dialect::mac::SigningKey;
use crate::dialect::request::Strictness;
use crate::platform;
use crate::run::Instance;
use crate::server::inherited::Inherited;

/// What is tested.
pub struct Target {
    /// The notify URL.
    pub url: String,
    /// The dialect.
    pub dialect: Arc<Dialect>,
    /// The key.
    pub key: SigningKey,
    /// Its text, to be hidden.
    pub secret: Secret,
    /// Whether the gateway refuses what the platform's own examples lack.
    pub strict: bool,
    /// Oldest and farthest accepted time, where it is known.
    pub window: (Duration, Duration),
    /// The gateway, if it is our own.
    pub own: Option<Own>,
}

/// A gateway of our own before the vendor's backend.
pub struct Own {
    /// The app that is tested.
    pub app: String,
    /// The form in which the backend receives requests.
    pub send: Send,
    /// When the platform is answered at the latest.
    pub answer_within: Duration,
    /// Whether the journal sees to it that each order is delivered once.
    pub deliver_once: bool,
    /// Whether what breaks a rule is refused.
    pub enforce: bool,
    /// Between it and the backend.
    pub relay: Relay,
    gateway: Instance,
}

/// How long a backend may take to accept a connection before it counts as not there.
const REACHABLE_WITHIN: Duration = Duration::from_secs(5);

impl Target {
    /// A notify URL.
    ///
    /// # Errors
    /// A key that is none, a URL that cannot be called, nobody there.
    pub async fn at(url: &str, dialect: Dialect, secret: Secret) -> Result<Self, String> {
        let key = dialect.signing_key(secret.expose()).map_err(|error| error.to_string())?;
        platform::reach(url, REACHABLE_WITHIN)
            .await
            .map_err(|error| format!("the notify URL cannot be called: {error}"))?;
        let window = (Duration::ZERO, Duration::ZERO);
        Ok(Self { url: url.to_owned(), dialect: Arc::new(dialect), key, secret, strict: false, window, own: None })
    }

    /// An app of a configuration: starts a gateway with it.
    ///
    /// # Errors
    /// No such app, no key that verifies now, a backend that is not there, no port to be had.
    pub async fn of(mut config: Config, app: Option<&str>) -> Result<Self, String> {
        let names = config.apps.iter().map(|app| app.name.as_str()).collect::<Vec<_>>().join(", ");
        match app {
            Some(name) => config.apps.retain(|app| app.name == name),
            None if config.apps.len() > 1 => return Err(format!("--app: say which; there are {names}")),
            None => {}
        }
        let Some(app) = config.apps.first_mut() else { return Err(format!("--app: not known; there are {names}")) };
        let now = clock::now();
        let Some(key) = app.keys.iter().find(|key| key.verifies_at(now)) else {
            return Err(format!("no key of app {} verifies now: look at state, not_before and not_after", app.name));
        };
        let (key, secret) = (key.key.clone(), key.secret.clone());
        let Some(configured) = &app.backend else {
            return Err(format!(
                "app {} has no [apps.backend]: try its notify URL with --url and --key-file",
                app.name
            ));
        };
        let backend = direct(configured);
        let client = Backend::new(&backend, config.limits.reply_bytes, None)?;
        let there = client.accepts(Instant::now() + REACHABLE_WITHIN).await;
        there.map_err(|error| format!("the backend of app {} cannot be called: {error}", app.name))?;
        let relay = Relay::start(client, backend.timeout).await.map_err(|error| format!("no port: {error}"))?;
        let (send, answer_within) = (backend.send, backend.answer_within);
        app.backend = Some(behind(backend, relay.address));
        open_to_us(app);
        let mut target = Self {
            url: app.path.clone(),
            dialect: Arc::clone(&app.dialect),
            key,
            secret,
            strict: app.strictness == Strictness::Strict,
            window: (app.freshness.max_age, app.freshness.max_future),
            own: None,
        };
        let (name, deliver_once, enforce) = (app.name.clone(), app.deliver_once, app.enforce);
        config.listeners = vec![ListenConfig {
            name: "listen".to_owned(),
            address: ListenAddress::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
            trusted_proxies: Vec::new(),
            proxy_protocol: false,
            tls: None,
        }];
        config.companion = None;
        config.admin = AdminConfig {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            token: None,
            hosts: Vec::new(),
            read_only: true,
        };
        // The vendor's journal is not to hold tests, and one process may serve from it.
        config.journal.location = Location::Memory;
        config.limits.failed_per_minute = None;
        config.shutdown.delay = Duration::ZERO;
        config.shutdown.grace = Duration::from_secs(1);
        let gateway = Instance::start(config, Inherited::default(), None).await?;
        target.url = format!("http://{}{}", gateway.listen, target.url);
        target.own = Some(Own { app: name, send, answer_within, deliver_once, enforce, relay, gateway });
        Ok(target)
    }

    /// Ends what was started.
    pub async fn stop(self) {
        if let Some(own) = self.own {
            own.gateway.stop().await;
        }
    }
}

/// The backend as the relay calls it: each call by itself.
fn direct(backend: &BackendConfig) -> BackendConfig {
    BackendConfig { circuit: CircuitConfig::OFF, probe: None, ..backend.clone() }
}

/// The backend as the gateway sees it: the relay, under the backend's name.
fn behind(backend: BackendConfig, relay: SocketAddr) -> BackendConfig {
    let address = Address::Tcp { host: relay.ip().to_string(), port: relay.port() };
    let endpoint = Endpoint { tls: false, address, ..backend.endpoint };
    BackendConfig { endpoint, failover: Vec::new(), tls: BackendTls::default(), ..backend }
}

/// What depends on who calls from where is not what is tested.
fn open_to_us(app: &mut AppConfig) {
    app.host = None;
    app.allow_from.clear();
    app.ready_requires_backend = false;
}
