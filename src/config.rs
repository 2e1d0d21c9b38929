//! The configuration: raw (as written), validated (as used), and the way between.
//!
//! [`raw::RawConfig`] has names, types and defaults; [`Config`] has addresses, durations, keys
//! and dialects. [`load`] goes from texts to one or the other's problems, all of them, each
//! with its path and place. It is the only reader of configuration.

pub mod journal;
mod peers;
pub mod raw;
pub mod scalar;
pub mod source;
pub mod units;
pub mod validate;

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method, Uri};
use ipnet::IpNet;

use crate::dialect::Dialect;
use crate::dialect::mac::SigningKey;
use crate::dialect::request::Strictness;
use journal::JournalConfig;
use raw::{LogFormat, LogLevel};
use source::{Problem, Sources};

/// A configuration that can be served.
#[derive(Debug)]
pub struct Config {
    /// The public listener.
    pub listen: SocketAddr,
    /// Whose forwarding headers are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether every connection begins with a PROXY header.
    pub proxy_protocol: bool,
    /// The admin listener.
    pub admin: SocketAddr,
    /// Logging.
    pub log: LogConfig,
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
#[derive(Debug)]
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
    /// Whether the journal sees to it that each order is delivered once.
    pub deliver_once: bool,
    /// Whether a delivery that may have been executed waits for the operator.
    pub hold_unconfirmed: bool,
    /// Whether a purchase without an order number joins an unanswered one of equal content.
    pub join_lookalikes: bool,
    /// The freshness window.
    pub freshness: Freshness,
    /// The backend.
    pub backend: BackendConfig,
}

/// A key of an app.
#[derive(Debug)]
pub struct KeyConfig {
    /// Its name in logs and metrics.
    pub id: String,
    /// Whether it verifies.
    pub active: bool,
    /// The key, prepared.
    pub key: SigningKey,
    /// The key's text, for `spigate explain`.
    pub secret: scalar::Secret,
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

/// Where and how an app's requests are delivered.
#[derive(Clone, Debug)]
pub struct BackendConfig {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// The form.
    pub send: Send,
    /// Budget of the whole request.
    pub answer_within: Duration,
    /// Budget of a call.
    pub timeout: Duration,
    /// Budget of connecting.
    pub connect_timeout: Duration,
    /// How long idle connections are kept.
    pub keep_alive: Duration,
    /// PEM text of certificate authorities, for https with `ca_file`.
    pub ca_pem: Option<Vec<u8>>,
    /// For each action of the dialect: method and path.
    pub routes: Vec<Route>,
}

/// An http or https endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Whether it is https.
    pub tls: bool,
    /// Host name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Value of the Host header.
    pub authority: HeaderValue,
    /// The query of the url, if it has one.
    pub query: Option<String>,
}

/// The form in which a backend receives a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Send {
    /// POST, JSON body.
    Json,
    /// GET, a header for each parameter.
    Headers,
    /// GET, decoded parameters in the query.
    Query,
    /// GET, the query as received.
    Raw,
}

/// Method and path of an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The method.
    pub method: Method,
    /// The path, in pieces.
    pub path: Vec<PathPart>,
}

/// A piece of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathPart {
    /// Fixed text.
    Literal(String),
    /// The action's name.
    Action,
    /// The value of the field at this position of the dialect.
    Field(usize),
}

impl Endpoint {
    /// Reads a url.
    ///
    /// # Errors
    /// What is wrong with it. Never the url itself: it may hold a password.
    pub fn parse(url: &str) -> Result<(Self, String), &'static str> {
        let uri: Uri = url.parse().map_err(|_| "is not a URL")?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err("must begin with http:// or https://"),
        };
        if url.contains('#') {
            return Err("must not have a fragment");
        }
        let authority = uri.authority().ok_or("has no host")?;
        if authority.as_str().contains('@') {
            return Err("must not have a user or a password");
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err("has no host");
        }
        let port = match authority.as_str().rsplit_once(':') {
            // An IPv6 address has colons of its own, and ends in a bracket.
            Some((_, port)) if !port.ends_with(']') => {
                port.parse().ok().filter(|&port| port > 0).ok_or("must have a port from 1 to 65535")?
            }
            _ if tls => 443,
            _ => 80,
        };
        let endpoint = Self {
            tls,
            host,
            port,
            authority: HeaderValue::from_str(authority.as_str()).map_err(|_| "has no host")?,
            query: uri.query().filter(|query| !query.is_empty()).map(str::to_owned),
        };
        Ok((endpoint, uri.path().to_owned()))
    }
}

/// Loads a configuration from its texts.
///
/// `base` is the directory that relative file names in it start from.
///
/// # Errors
/// Every problem found.
pub fn load(sources: &Sources, base: &Path) -> Result<Config, Vec<Problem>> {
    let (raw, problems) = sources.read();
    let Some(raw) = raw else { return Err(problems) };
    // Later checks look at what could be read, so that one run shows everything.
    validate::Validator::new(sources, base, problems).validate(&raw)
}
