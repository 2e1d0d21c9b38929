//! A gateway that serves, and how it takes another configuration without letting go of anybody.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::app::App;
use crate::config::Config;
use crate::config::journal::Location;
use crate::config::listen::Address;
use crate::config::raw::LogFormat;
use crate::config::telemetry::TelemetryConfig;
use crate::journal::Journal;
use crate::metrics::Metrics;
use crate::observe::Observer;
use crate::served::Served;
use crate::telemetry::level::Levels;
use crate::tls::{Acceptors, Prepared};

/// What of a running gateway follows the configuration.
pub struct Live {
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// What requests are judged by.
    pub served: watch::Sender<Arc<Served>>,
    /// The journal, which keeps to some of it.
    pub journal: Arc<Journal>,
    /// Who writes access lines.
    pub observer: Arc<Observer>,
    /// Levels of the log, where there is one.
    pub levels: Option<Levels>,
    /// Certificates of the listeners that have some.
    pub tls: Vec<Arc<Acceptors>>,
    /// What it was started with and keeps.
    pub fixed: Fixed,
}

impl Live {
    /// Serves by another configuration from now on. Requests that are here keep the one that they
    /// found. Says which keys differ that only a restart can change; they stay as they are.
    ///
    /// # Errors
    /// What is wrong with TLS settings. Nothing has changed then.
    pub fn apply(&self, config: &Config) -> Result<Vec<String>, String> {
        let before = Arc::clone(&self.served.borrow());
        let served = Served::new(config, &self.metrics, Some(&before))?;
        let mut handshakes = Vec::new();
        for acceptors in &self.tls {
            let name = acceptors.listener();
            let listener = before.doors.get(name).and_then(|door| config.listener(name, &door.address));
            if let Some(tls) = listener.and_then(|listener| listener.tls.as_ref()) {
                handshakes.push(acceptors.prepare(tls).map_err(|error| format!("{name}.tls: {error}"))?);
            }
        }
        // Nothing can go wrong from here on.
        handshakes.into_iter().for_each(Prepared::apply);
        self.forget_backends(&before, &served);
        // The keys that open replies before requests can be verified by new ones.
        self.journal.reconfigure(config);
        self.observer.log_requests(config.log.access);
        if let Some(levels) = &self.levels {
            levels.configure(config.log.level);
        }
        self.served.send_replace(Arc::new(served));
        Ok(self.fixed.differences(&Fixed::of(config)))
    }

    /// A backend that is gone must not stay in the metrics as it was last seen.
    fn forget_backends(&self, before: &Served, now: &Served) {
        for (name, app) in &before.apps {
            let endpoints = |app: &App| app.config.backend.as_ref().map_or(0, |backend| backend.endpoints().count());
            let stays = now.apps.get(name).map_or(0, |app| endpoints(app));
            for position in stays..endpoints(app) {
                let _ = self.metrics.backend_up.remove_label_values(&[name, &position.to_string()]);
            }
        }
    }
}

/// What only a restart can change.
pub struct Fixed {
    /// Names and addresses of the listeners, and whether they have TLS.
    listeners: Vec<(String, Address, bool)>,
    companion: Option<SocketAddr>,
    admin: SocketAddr,
    journal: Location,
    lease: Duration,
    format: LogFormat,
    telemetry: TelemetryConfig,
}

impl Fixed {
    /// What a configuration says of it.
    pub fn of(config: &Config) -> Self {
        let listeners = config.listeners.iter();
        Self {
            listeners: listeners
                .map(|listener| (listener.name.clone(), listener.address.clone(), listener.tls.is_some()))
                .collect(),
            companion: config.companion.as_ref().map(|companion| companion.address),
            admin: config.admin,
            journal: config.journal.location.clone(),
            lease: config.journal.lease,
            format: config.log.format,
            telemetry: config.telemetry.clone(),
        }
    }

    /// The keys in which two differ.
    fn differences(&self, other: &Self) -> Vec<String> {
        let mut keys = Vec::new();
        for ((name, address, tls), (_, other_address, other_tls)) in self.listeners.iter().zip(&other.listeners) {
            keys.extend((address != other_address).then(|| format!("{name}.address")));
            keys.extend((tls != other_tls).then(|| format!("{name}.tls")));
        }
        let others = [
            ("listeners", self.listeners.len() != other.listeners.len()),
            ("companion.address", self.companion != other.companion),
            ("admin.address", self.admin != other.admin),
            ("journal.url", !self.journal.is(&other.journal)),
            ("journal.lease", self.lease != other.lease),
            ("log.format", self.format != other.format),
            ("telemetry", self.telemetry != other.telemetry),
        ];
        keys.extend(others.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key.to_owned()));
        keys
    }
}
