//! An app at run time: its configuration, its backend's connections, its metrics.

use std::sync::Arc;

use crate::backend::{Backend, Watched};
use crate::config::{AppConfig, Limits};
use crate::journal::key;
use crate::metrics::{AppMetrics, Metrics};
use crate::stage::normalize::Template;

/// An app that is served.
pub struct App {
    /// What the configuration says.
    pub config: AppConfig,
    /// Its name, for whatever outlives its requests.
    pub name: Arc<str>,
    /// The names of its dialect's actions, in their order, for the same.
    pub actions: Box<[Arc<str>]>,
    /// Its backend, if it has one.
    pub backend: Option<Arc<Backend>>,
    /// Its metrics.
    pub metrics: AppMetrics,
    /// What of its backend's requests is the same each time.
    pub template: Template,
    /// What of its deliveries' keys is the same each time.
    pub keys: key::Begun,
}

impl App {
    /// Makes an app ready, with a `backend` that is there already or its own.
    ///
    /// # Errors
    /// What is wrong with its backend's TLS settings; validated configurations have nothing.
    pub fn new(
        config: AppConfig,
        backend: Option<Arc<Backend>>,
        limits: &Limits,
        metrics: &Metrics,
    ) -> Result<Self, String> {
        let backend = match (backend, &config.backend) {
            (Some(backend), _) => Some(backend),
            (None, Some(own)) => {
                let watched = Watched { app: &config.name, metrics };
                Some(Arc::new(Backend::new(own, limits.reply_bytes, Some(watched))?))
            }
            (None, None) => None,
        };
        let key_ids = config.keys.iter().map(|key| key.id.as_str());
        let metrics = AppMetrics::new(metrics, &config.name, &config.dialect, key_ids);
        let template = Template::new(&config);
        let name = config.name.as_str().into();
        let actions = config.dialect.actions.iter().map(|action| action.name.as_str().into()).collect();
        let keys = key::Begun::new(&config.name, &config.dialect);
        Ok(Self { config, name, actions, backend, metrics, template, keys })
    }
}
