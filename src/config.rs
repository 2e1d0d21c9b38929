//! The configuration: raw (as written), validated (as used), and the way between.
//!
//! [`raw::RawConfig`] has names, types and defaults; [`Config`] has addresses, durations, keys
//! and dialects. [`load`] goes from texts to one or the other's problems, all of them, each
//! with its path and place. It is the only reader of configuration.

pub mod backend;
pub mod companion;
pub mod effective;
pub mod endpoint;
pub mod files;
pub mod journal;
pub mod keys;
pub mod listen;
mod peers;
pub mod raw;
pub mod scalar;
pub mod source;
pub mod telemetry;
pub mod units;
pub mod validate;

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;

use crate::dialect::Dialect;
use crate::dialect::mac::SigningKey;
use crate::dialect::request::Strictness;
pub use backend::{
    Address, BackendConfig, BackendTls, CircuitConfig, ClientIdentity, CountedFailures, Endpoint, PathPart,
    ProbeConfig, Route, Send,
};
pub use companion::CompanionConfig;
use files::Fingerprint;
use journal::JournalConfig;
use listen::ListenConfig;
use raw::{LogFormat, LogLevel};
use source::{Problem, Sources};
use telemetry::TelemetryConfig;

/// A configuration that can be served.
#[derive(Debug)]
pub struct Config {
    /// The public listeners; the first is `[listen]`.
    pub listeners: Vec<ListenConfig>,
    /// Where an ingress asks, if one may.
    pub companion: Option<CompanionConfig>,
    /// The admin listener.
    pub admin: SocketAddr,
    /// Logging.
    pub log: LogConfig,
    /// Traces.
    pub telemetry: TelemetryConfig,
    /// Limits of the public listener.
    pub limits: Limits,
    /// How the process ends.
    pub shutdown: ShutdownConfig,
    /// What remembers deliveries.
    pub journal: JournalConfig,
    /// All dialects, built-in and from `dialect_dir`.
    pub dialects: Vec<Arc<Dialect>>,
    /// The apps.
    pub apps: Vec<AppConfig>,
    /// What works, but not as one might think.
    pub warnings: Vec<Problem>,
}

/// Logging.
#[derive(Clone, Copy, Debug)]
pub struct LogConfig {
    /// Least level.
    pub level: LogLevel,
    /// Form of the lines.
    pub format: LogFormat,
    /// Whether every request is logged.
    pub access: bool,
}

/// Limits of the public listener.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most parameters in a query.
    pub parameters: usize,
    /// Longest query in bytes.
    pub query_bytes: usize,
    /// Longest reply of a backend in bytes.
    pub reply_bytes: usize,
    /// Most connections at once.
    pub connections: usize,
    /// Most requests at once.
    pub in_flight: usize,
    /// Most requests that may fail to verify in a minute, of each client; any number if `None`.
    pub failed_per_minute: Option<NonZeroU64>,
    /// Longest time for a request's head.
    pub header_timeout: Duration,
    /// Longest idle time of a connection.
    pub idle_timeout: Duration,
}

/// How the process ends.
#[derive(Clone, Copy, Debug)]
pub struct ShutdownConfig {
    /// Time between "not ready" and "no new connections".
    pub delay: Duration,
    /// Time for what still runs.
    pub grace: Duration,
}

/// An app.
#[derive(Clone, Debug)]
pub struct AppConfig {
    /// Its name.
    pub name: String,
    /// The host it is called at, lower case; any if `None`.
    pub host: Option<String>,
    /// The path it is called at.
    pub path: String,
    /// Whose requests are looked at; everybody's if it is empty.
    pub allow_from: Vec<IpNet>,
    /// Its dialect.
    pub dialect: Arc<Dialect>,
    /// Its keys.
    pub keys: Vec<KeyConfig>,
    /// How strictly the request contract is taken.
    pub strictness: Strictness,
    /// What answers connection tests.
    pub test_connection: TestConnection,
    /// Whether what breaks a rule is refused; else it is observed only.
    pub enforce: bool,
    /// Whether the journal sees to it that each order is delivered once.
    pub deliver_once: bool,
    /// Whether a delivery that may have been executed waits for the operator.
    pub hold_unconfirmed: bool,
    /// Whether a purchase without an order number joins an unanswered one of equal content.
    pub join_lookalikes: bool,
    /// The freshness window.
    pub freshness: Freshness,
    /// Whether `/readyz` waits for the backend.
    pub ready_requires_backend: bool,
    /// The backend; without one, only a companion's ingress is answered about the app.
    pub backend: Option<BackendConfig>,
}

/// A key of an app.
#[derive(Clone, Debug)]
pub struct KeyConfig {
    /// Its name in logs and metrics.
    pub id: String,
    /// Whether it verifies at all.
    pub active: bool,
    /// From when on, if not always.
    pub not_before: Option<Timestamp>,
    /// Until when, if not for ever.
    pub not_after: Option<Timestamp>,
    /// The key, prepared.
    pub key: SigningKey,
    /// The key's text, for `spigate explain`.
    pub secret: scalar::Secret,
}

impl Config {
    /// The public listener of this name, if it still has this address.
    pub fn listener(&self, name: &str, address: &listen::Address) -> Option<&ListenConfig> {
        self.listeners.iter().find(|listener| listener.name == name && listener.address == *address)
    }
}

impl KeyConfig {
    /// Whether it verifies requests that come at this time; both ends belong to it.
    pub fn verifies_at(&self, time: Timestamp) -> bool {
        self.active && self.not_before.is_none_or(|begin| begin <= time) && self.not_after.is_none_or(|end| time <= end)
    }
}

/// What answers connection tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestConnection {
    /// The backend.
    Forward,
    /// spigate, if the backend accepts a connection.
    Probe,
    /// spigate.
    Answer,
}

/// How far a request's time may be off.
#[derive(Clone, Copy, Debug)]
pub struct Freshness {
    /// Oldest accepted request.
    pub max_age: Duration,
    /// Farthest accepted future.
    pub max_future: Duration,
}

/// Loads a configuration from its texts.
///
/// `base` is the directory that relative file names in it start from.
///
/// # Errors
/// Every problem found.
pub fn load(sources: &Sources, base: &Path) -> Result<Config, Vec<Problem>> {
    load_with_fingerprint(sources, base).0
}

/// The same, and what it was made of: the texts and every file that was read, as they were.
pub fn load_with_fingerprint(sources: &Sources, base: &Path) -> (Result<Config, Vec<Problem>>, Fingerprint) {
    let (raw, problems) = sources.read();
    let Some(raw) = raw else { return (Err(problems), Fingerprint::of(&sources.text)) };
    // Later checks look at what could be read, so that one run shows everything.
    validate::Validator::new(sources, base, problems).validate(&raw)
}
