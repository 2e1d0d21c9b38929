//! A gateway that serves, and how it takes another configuration without letting go of anybody.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::config::Config;
use crate::config::journal::Location;
use crate::config::raw::LogFormat;
use crate::journal::Journal;
use crate::metrics::Metrics;
use crate::observe::Observer;
use crate::served::Served;
use crate::telemetry::level::Levels;

/// What of a running gateway follows the configuration.
pub struct Live {
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// What requests are judged by.
    pub served: watch::Sender<Arc<Served>>,
    journal: Arc<Journal>,
    observer: Arc<Observer>,
    levels: Option<Levels>,
    /// What it was started with and keeps.
    fixed: Fixed,
}

impl Live {
    /// The parts of a gateway that was started with `config`.
    pub fn new(
        config: &Config,
        metrics: Arc<Metrics>,
        served: watch::Sender<Arc<Served>>,
        journal: Arc<Journal>,
        observer: Arc<Observer>,
        levels: Option<Levels>,
    ) -> Self {
        Self { metrics, served, journal, observer, levels, fixed: Fixed::of(config) }
    }

    /// Serves by another configuration from now on. Requests that are here keep the one that they
    /// found. Says which keys differ that only a restart can change; they stay as they are.
    ///
    /// # Errors
    /// What is wrong with a backend's TLS settings. Nothing has changed then.
    pub fn apply(&self, config: &Config) -> Result<Vec<&'static str>, String> {
        let before = Arc::clone(&self.served.borrow());
        let served = Served::new(config, &self.metrics, Some(&before))?;
        // The keys that open replies before requests can be verified by new ones.
        self.journal.reconfigure(config);
        self.observer.log_requests(config.log.access);
        if let Some(levels) = &self.levels {
            levels.configure(config.log.level);
        }
        self.served.send_replace(Arc::new(served));
        Ok(self.fixed.differences(&Fixed::of(config)))
    }
}

/// What only a restart can change.
struct Fixed {
    listen: SocketAddr,
    admin: SocketAddr,
    journal: Location,
    lease: Duration,
    format: LogFormat,
}

impl Fixed {
    fn of(config: &Config) -> Self {
        Self {
            listen: config.listen,
            admin: config.admin,
            journal: config.journal.location.clone(),
            lease: config.journal.lease,
            format: config.log.format,
        }
    }

    /// The keys in which two differ.
    fn differences(&self, other: &Self) -> Vec<&'static str> {
        let differs = [
            ("listen.address", self.listen != other.listen),
            ("admin.address", self.admin != other.admin),
            ("journal.url", !self.journal.is(&other.journal)),
            ("journal.lease", self.lease != other.lease),
            ("log.format", self.format != other.format),
        ];
        differs.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
    }
}
