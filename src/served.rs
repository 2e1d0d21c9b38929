//! What requests are judged by: made from the configuration, replaced whole when that is.
//!
//! A request takes it once, when it arrives, and keeps it to its end: no request is judged by
//! half of one configuration and half of the next.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::SignedDuration;

use crate::app::App;
use crate::config::{Config, Limits, ShutdownConfig};
use crate::metrics::Metrics;
use crate::stage::route::Routes;

/// See the module.
pub struct Served {
    /// The apps by host and path.
    pub routes: Routes,
    /// The apps by name.
    pub apps: HashMap<String, Arc<App>>,
    /// Limits of requests.
    pub limits: Limits,
    /// How the process ends.
    pub shutdown: ShutdownConfig,
    /// How long a recorded expire or delete is replayed.
    pub lifecycle_replay: SignedDuration,
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
        Ok(Self {
            routes: Routes::new(apps.values().map(Arc::clone)),
            apps,
            limits: config.limits,
            shutdown: config.shutdown,
            lifecycle_replay: config.journal.lifecycle_replay,
        })
    }
}
