//! Takes a changed configuration into use while the gateway serves: looks at the contents of its
//! files every few seconds and when it is asked to (SIGHUP).
//!
//! What is half-written, invalid or gone changes nothing: the gateway serves by what it has,
//! says once what is wrong, and looks again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::clock;
use crate::config::Config;
use crate::config::files::Fingerprint;
use crate::config::source::Problem;
use crate::live::Live;
use crate::systemd;

/// How often contents are looked at. Reading a handful of small files costs next to nothing.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long a change has to stay as it is: a file that is being written may be valid half-way.
const SETTLE: Duration = Duration::from_millis(300);

/// A configuration, or what is wrong with it; and what it was made of.
pub type Loaded = (Result<Config, Vec<Problem>>, Fingerprint);

/// See the module.
pub struct Reloader {
    live: Arc<Live>,
    load: Arc<dyn Fn() -> Loaded + Send + Sync>,
    /// What is served.
    served: Fingerprint,
    /// What was refused, and said so.
    refused: Option<Fingerprint>,
}

impl Reloader {
    /// Reloads what `load` reads into `live`, which serves what was made of `served`.
    pub fn new(live: Arc<Live>, load: impl Fn() -> Loaded + Send + Sync + 'static, served: Fingerprint) -> Self {
        for result in [SUCCESS, FAILURE] {
            live.metrics.config_reloads.with_label_values(&[result]);
        }
        live.metrics.config_loaded.set(clock::now().as_second());
        live.metrics.config_reload_successful.set(1);
        Self { live, load: Arc::new(load), served, refused: None }
    }

    /// Looks again and again, and at once when `asked`.
    pub async fn run(mut self, asked: Arc<Notify>) {
        loop {
            let is_asked = tokio::time::timeout(LOOK_EVERY, asked.notified()).await.is_ok();
            self.look(is_asked).await;
        }
    }

    async fn look(&mut self, is_asked: bool) {
        // systemd, which may have asked, waits for the end of this.
        let _reloading = is_asked.then(systemd::reloading);
        let Some((_, found)) = self.read().await else { return };
        if found == self.served {
            if self.refused.take().is_some() {
                self.live.metrics.config_reload_successful.set(1);
                tracing::info!("the configuration is as it is served again");
            } else if is_asked {
                tracing::info!("the configuration has not changed");
            }
            return;
        }
        if self.refused == Some(found) && !is_asked {
            return;
        }
        tokio::time::sleep(SETTLE).await;
        let Some((loaded, settled)) = self.read().await else { return };
        if settled != found {
            // Somebody is still writing. The next look sees what comes of it.
            return;
        }
        let applied = loaded.map_err(|problems| problems.iter().map(ToString::to_string).collect());
        let applied = applied.and_then(|config| match self.live.apply(&config) {
            Ok(ignored) => Ok((config, ignored)),
            Err(problem) => Err(vec![problem]),
        });
        match applied {
            Ok((config, ignored)) => self.succeeded(&config, &ignored, settled),
            Err(problems) => self.failed(&problems, settled),
        }
    }

    fn succeeded(&mut self, config: &Config, ignored: &[String], made_of: Fingerprint) {
        (self.served, self.refused) = (made_of, None);
        self.live.metrics.config_reloads.with_label_values(&[SUCCESS]).inc();
        self.live.metrics.config_reload_successful.set(1);
        self.live.metrics.config_loaded.set(clock::now().as_second());
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        for key in ignored {
            tracing::warn!(key, "cannot change while the gateway runs: restart it for this one");
        }
        let apps = config.apps.iter().map(|app| app.name.as_str()).collect::<Vec<_>>().join(", ");
        tracing::info!(apps, "the configuration was reloaded");
        systemd::status("serving by a configuration that was reloaded");
    }

    fn failed(&mut self, problems: &[String], made_of: Fingerprint) {
        self.refused = Some(made_of);
        self.live.metrics.config_reloads.with_label_values(&[FAILURE]).inc();
        self.live.metrics.config_reload_successful.set(0);
        for problem in problems {
            tracing::error!(problem, "the changed configuration cannot be used; the one before stays");
        }
        systemd::status("serving by the configuration before: the changed one has problems, see the log");
    }

    /// Reads on a thread where it may block: files may lie on a network.
    async fn read(&self) -> Option<Loaded> {
        let load = Arc::clone(&self.load);
        // A bug in reading must not end the looking.
        tokio::task::spawn_blocking(move || load()).await.ok()
    }
}

const SUCCESS: &str = "success";
const FAILURE: &str = "failure";
