//! An app at run time: its configuration, its backend's connections, its metrics.

use crate::backend::{Backend, Watched};
use crate::config::{AppConfig, Limits};
use crate::metrics::{AppMetrics, Metrics};
use crate::stage::normalize::Template;

/// An app that is served.
pub struct App {
    /// What the configuration says.
    pub config: AppConfig,
    /// Its backend.
    pub backend: Backend,
    /// Its metrics.
    pub metrics: AppMetrics,
    /// What of its backend's requests is the same each time.
    pub template: Template,
}

impl App {
    /// Makes an app ready.
    ///
    /// # Errors
    /// What is wrong with its backend's TLS settings; validated configurations have nothing.
    pub fn new(config: AppConfig, limits: &Limits, metrics: &Metrics) -> Result<Self, String> {
        let backend = Backend::new(&config.backend, limits.reply_bytes, Some(Watched { app: &config.name, metrics }))?;
        let keys = config.keys.iter().map(|key| key.id.as_str());
        let metrics = AppMetrics::new(metrics, &config.name, &config.dialect, keys);
        let template = Template::new(&config);
        Ok(Self { config, backend, metrics, template })
    }
}
