//! What requests are judged by: made from the configuration, replaced whole when that is.
//!
//! A request takes it once, when it arrives, and keeps it to its end: no request is judged by
//! half of one configuration and half of the next.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::SignedDuration;

use crate::app::App;
use crate::config::admin::AdminConfig;
use crate::config::listen::{Address, ListenConfig};
use crate::config::{Config, Limits, ShutdownConfig};
use crate::failures::Failures;
use crate::metrics::Metrics;
use crate::peer::Proxies;
use crate::stage::route::Routes;

/// See the module.
pub struct Served {
    /// The apps by host and path.
    pub routes: Routes,
    /// The apps by name.
    pub apps: HashMap<String, Arc<App>>,
    /// Who is believed at each public listener that is open, by its name. Always those of the start:
    /// only a restart opens one, or closes it.
    pub doors: HashMap<String, Door>,
    /// How often clients fail to verify, where that is limited.
    pub failures: Option<Arc<Failures>>,
    /// Limits of requests and connections.
    pub limits: Limits,
    /// How the process ends.
    pub shutdown: ShutdownConfig,
    /// How long a recorded expire or delete is replayed.
    pub lifecycle_replay: SignedDuration,
    /// Who may look at the admin listener.
    pub admin: AdminConfig,
}

/// Who is believed at a public listener.
#[derive(Clone, Debug)]
pub struct Door {
    /// Where it listens, as the configuration had it at the start.
    pub address: Address,
    /// The proxies whose word counts.
    pub proxies: Proxies,
    /// Whether every connection begins with a PROXY header.
    pub proxy_protocol: bool,
}

impl Door {
    fn of(listener: &ListenConfig) -> Self {
        let proxies = Proxies::new(listener.trusted_proxies.iter().copied());
        Self { address: listener.address.clone(), proxies, proxy_protocol: listener.proxy_protocol }
    }
}

impl Served {
    /// Makes the apps of a configuration ready. Those whose backends are as they were `before` keep
    /// their connections.
    ///
    /// # Errors
    /// What is wrong with a backend's TLS settings; validated configurations have nothing wrong.
    pub fn new(config: &Config, metrics: &Metrics, before: Option<&Self>) -> Result<Self, String> {
        let mut apps = HashMap::new();
        for app in &config.apps {
            let backend = before
                .filter(|before| before.limits.reply_bytes == config.limits.reply_bytes)
                .and_then(|before| before.apps.get(&app.name))
                .filter(|known| known.config.backend == app.backend)
                .map(|known| Arc::clone(&known.backend));
            let made = App::new(app.clone(), backend, &config.limits, metrics);
            apps.insert(app.name.clone(), Arc::new(made.map_err(|error| format!("app {}: {error}", app.name))?));
        }
        // A listener that is gone from the configuration, or has another address there, stays open as
        // it was. Its name may stand for another one now, whose rules are for another door.
        let doors = match before {
            None => config.listeners.iter().map(|listener| (listener.name.clone(), Door::of(listener))).collect(),
            Some(before) => {
                let renewed = |(name, door): (&String, &Door)| {
                    let listener = config.listener(name, &door.address);
                    (name.clone(), listener.map_or_else(|| door.clone(), Door::of))
                };
                before.doors.iter().map(renewed).collect()
            }
        };
        let limit = config.limits.failed_per_minute;
        let known = before.filter(|before| before.limits.failed_per_minute == limit);
        let failures = match known {
            Some(known) => known.failures.clone(),
            None => limit.map(|limit| Arc::new(Failures::new(limit.get()))),
        };
        Ok(Self {
            doors,
            failures,
            routes: Routes::new(apps.values().map(Arc::clone)),
            apps,
            limits: config.limits,
            shutdown: config.shutdown,
            lifecycle_replay: config.journal.lifecycle_replay,
            admin: config.admin.clone(),
        })
    }
}
