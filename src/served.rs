//! What requests are judged by: made from the configuration, replaced whole when that is.
//!
//! A request takes it once, when it arrives, and keeps it to its end: no request is judged by
//! half of one configuration and half of the next.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::SignedDuration;

use crate::app::App;
use crate::companion::COMPANION;
use crate::config::listen::{Address, ListenConfig};
use crate::config::{CompanionConfig, Config, Limits, ShutdownConfig};
use crate::failures::Failures;
use crate::metrics::Metrics;
use crate::peer::{Peer, Proxies};
use crate::stage::route::Routes;

/// See the module.
pub struct Served {
    /// The apps by host and path.
    pub routes: Routes,
    /// The apps by name.
    pub apps: HashMap<String, Arc<App>>,
    /// Who is believed at each listener that is open, by its name. Always those of the start:
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
}

/// Who is believed at a listener.
#[derive(Clone, Debug)]
pub struct Door {
    /// Where it listens, as the configuration had it at the start.
    pub address: Address,
    /// Those whose word counts: proxies, at the companion's whoever may ask.
    pub believed: Proxies,
    /// The proxies that may stand between them and a client.
    pub beyond: Proxies,
    /// Whether every connection begins with a PROXY header.
    pub proxy_protocol: bool,
}

impl Door {
    fn of(listener: &ListenConfig) -> Self {
        let proxies = Proxies::new(listener.trusted_proxies.iter().copied());
        let (address, proxy_protocol) = (listener.address.clone(), listener.proxy_protocol);
        Self { address, believed: proxies.clone(), beyond: proxies, proxy_protocol }
    }

    /// The companion's. The ingress is believed when it says who called it, and not one step further:
    /// `allow_from` may be the network of a whole cluster, where clients live, too. Only proxies that
    /// `[listen]` trusts can have stood in front of it.
    fn of_companion(companion: &CompanionConfig, listeners: &[ListenConfig]) -> Self {
        let first = listeners.iter().find(|listener| listener.name == "listen");
        Self {
            address: Address::Tcp(companion.address),
            believed: Proxies::new(companion.allow_from.iter().copied()),
            beyond: Proxies::new(first.into_iter().flat_map(|listener| listener.trusted_proxies.iter().copied())),
            proxy_protocol: false,
        }
    }

    /// Whoever connects from this address.
    pub fn peer(&self, address: IpAddr) -> Peer {
        let peer = self.beyond.peer(address);
        Peer { trusted: self.believed.include(peer.address), ..peer }
    }
}

/// The doors of a configuration, by their listeners' names.
fn doors(config: &Config) -> HashMap<String, Door> {
    let public = config.listeners.iter().map(|listener| (listener.name.clone(), Door::of(listener)));
    let companion = config.companion.iter();
    let companion = companion.map(|companion| (COMPANION.to_owned(), Door::of_companion(companion, &config.listeners)));
    public.chain(companion).collect()
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
                .and_then(|known| known.backend.clone());
            let made = App::new(app.clone(), backend, &config.limits, metrics);
            apps.insert(app.name.clone(), Arc::new(made.map_err(|error| format!("app {}: {error}", app.name))?));
        }
        // A listener that is gone from the configuration, or has another address there, stays open as
        // it was. Its name may stand for another one now, whose rules are for another door.
        let mut doors = doors(config);
        if let Some(before) = before {
            let renewed = |(name, door): (&String, &Door)| {
                let now = doors.remove(name).filter(|now| now.address == door.address);
                (name.clone(), now.unwrap_or_else(|| door.clone()))
            };
            doors = before.doors.iter().map(renewed).collect();
        }
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
        })
    }
}
