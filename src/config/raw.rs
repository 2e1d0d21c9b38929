//! The configuration as it is written: key names, types and defaults, nothing checked yet.
//!
//! The doc comments here are the descriptions in `spigate check-config --schema`, and a test
//! holds `config/spigate.example.toml` against these types. Quantities with a unit are texts
//! here; `validate.rs` reads them and reports what is wrong with the place.

use std::collections::BTreeMap;

use schemars::JsonSchema;

use super::scalar::{Flag, Int, OneOrMany, Secret, Strings};

/// Configuration of spigate.
#[derive(serde::Deserialize, serde::Serialize, JsonSchema, Default, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct RawConfig {
    /// Where the platform's requests arrive.
    pub listen: RawListen,
    /// Further listeners, each with the keys of `[listen]`.
    pub listeners: Vec<RawListen>,
    /// Where an ingress asks whether a request may pass. Off, unless it has both keys.
    pub companion: RawCompanion,
    /// Where operators and monitoring look: /livez, /readyz, /metrics. Keep it off the internet.
    pub admin: RawAdmin,
    /// What is logged, to standard output.
    pub log: RawLog,
    /// Traces, for a collector that speaks OTLP.
    pub telemetry: RawTelemetry,
    /// Limits for an open port.
    pub limits: RawLimits,
    /// How the process ends after SIGTERM.
    pub shutdown: RawShutdown,
    /// What remembers deliveries.
    pub journal: RawJournal,
    /// A directory of further dialects, one *.toml each; see docs/dialects.md.
    pub dialect_dir: Option<String>,
    /// One entry for each app that the platform calls.
    pub apps: Vec<RawApp>,
}

/// Where the platform's requests arrive.
#[derive(serde::Deserialize, serde::Serialize, JsonSchema, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct RawListen {
    /// Address and port, or `unix:` and the path of a socket.
    pub address: String,
    /// Certificates and their keys; without any the listener speaks plain HTTP/1.1. Several are
    /// told apart by the names in them; the first also answers for every other name.
    pub tls: OneOrMany<RawCertificate>,
    /// Certificate authorities (PEM): only clients with a certificate of one of them are served.
    pub client_ca: Option<String>,
    /// Networks (CIDR) of proxies in front whose X-Request-Id, X-Forwarded-For and Forwarded are
    /// believed. Nobody's by default.
    pub trusted_proxies: Strings,
    /// Whether every connection begins with a PROXY header, version 1 or 2, before TLS. Only trusted
    /// proxies can connect then.
    pub proxy_protocol: Flag,
}

impl Default for RawListen {
    fn default() -> Self {
        Self {
            address: "0.0.0.0:8080".into(),
            tls: OneOrMany::default(),
            client_ca: None,
            trusted_proxies: Strings::default(),
            proxy_protocol: Flag(false),
        }
    }
}

/// A certificate and its key.
#[derive(serde::Deserialize, serde::Serialize, JsonSchema, Debug, Default)]
#[serde(deny_unknown_fields, default)]
pub struct RawCertificate {
    /// A file (PEM) with the certificate, and after it those between it and the authority.
    pub certificate: Option<String>,
    /// A file (PEM) with the certificate's private key, not encrypted.
    pub key: Option<String>,
}

/// Where an ingress asks whether a request may pass; see docs/companion.md.
#[derive(serde::Deserialize, serde::Serialize, JsonSchema, Debug, Default)]
#[serde(deny_unknown_fields, default)]
pub struct RawCompanion {
    /// Address and port. Plain HTTP/1.1: keep it where only the ingress reaches it.
    pub address: Option<String>,
    /// Networks (CIDR) of the ingress: only it is answered, and its word on the client is believed.
    pub allow_from: Strings,
}

/// Where operators and monitoring look.
#[derive(serde::Deserialize, serde::Serialize, JsonSchema, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct RawAdmin {
    /// Address and port.
    pub address: String,
}

impl Default for RawAdmin {
    fn default() -> Self {
        Self { address: "127.0.0.1:9090".into() }
    }
}

/// What is logged.
#[derive(serde::Deserialize, serde::Serialize, JsonSchema, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct RawLog {
    /// The least level that is logged.
    pub level: LogLevel,
    /// One JSON object a line, or text for a human.
    pub format: LogFormat,
    /// Whether every request is logged.
    pub access: Flag,
}

impl Default for RawLog {
    fn default() -> Self {
        Self { level: LogLevel::Info, format: LogFormat::Json, access: Flag(true) }
    }
}

/// The least level that is logged.
#[derive(serde::Deserialize, serde::Serialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Failures that need somebody.
    Error,
    /// What may need somebody.
    Warn,
    /// What happens.
    Info,
    /// How it happens.
    Debug,
    /// Everything.
    Trace,
}

/// The form of log lines.
#[derive(serde::Deserialize, serde::Serialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// Text for a human.
    Text,
}

/// Traces, for a collector that speaks OTLP. Only in a spigate that was built with them.
#[derive(serde::Deserialize, serde::Serialize, JsonSchema, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct RawTelemetry {
    /// Where OTLP/HTTP is taken, like `http://127.0.0.1:4318`; `/v1/traces` is added. Without it
    /// there are no traces.
    pub otlp_endpoint: Option<String>,
    /// The service's name in traces. Without it, what `OTEL_SERVICE_NAME` says, or else "spigate".
    pub service_name: Option<String>,
    /// How many of a hundred requests are traced; those that a trusted proxy traces always are.
    pub sample_percent: Int,
}

impl Default for RawTelemetry {
    fn default() -> Self {
        Self { otlp_endpoint: None, service_name: None, sample_percent: Int(100) }
    }
}

/// Limits for an open port.
#[derive(serde::Deserialize, serde::Serialize, JsonSchema, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct RawLimits {
    /// Most parameters in a query.
    pub parameters: Int,
    /// Longest query.
    pub query_bytes: String,
    /// Longest reply of a backend.
    pub reply_bytes: String,
    /// Most connections at once; further ones are refused.
    pub connections: Int,
    /// Most requests at once; further ones get 503 with Retry-After.
    pub in_flight: Int,
    /// Most requests of a client's address (IPv6: its /64) that may fail to verify in a minute; further
    /// ones that fail get 429. Requests that verify always pass. 0: any number.
    pub failed_per_minute: Int,
    /// How long a client may take to send a request's head.
    pub header_timeout: String,
    /// How long an idle connection is kept, and how long a client may take to read an answer.
    pub idle_timeout: String,
}

impl Default for RawLimits {
    fn default() -> Self {
        Self {
            parameters: Int(64),
            query_bytes: "16KiB".into(),
            reply_bytes: "1MiB".into(),
            connections: Int(16_000),
            in_flight: Int(1_024),
            failed_per_minute: Int(0),
            header_timeout: "10s".into(),
            idle_timeout: "75s".into(),
        }
    }
}

/// How the process ends after SIGTERM.
#[derive(serde::Deserialize, serde::Serialize, JsonSchema, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct RawShutdown {
    /// How long /readyz says no while requests are still accepted.
    pub delay: String,
    /// How long running requests and deliveries may take after that.
    pub grace: String,
}

impl Default for RawShutdown {
    fn default() -> Self {
        Self { delay: "5s".into(), grace: "25s".into() }
    }
}

/// What remembers deliveries.
#[derive(serde::Deserialize, serde::Serialize, JsonSchema, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct RawJournal {
    /// Where: `sqlite:PATH`, `postgres://USER@HOST/DATABASE`, or `memory:`, which a restart empties.
    pub url: String,
    /// How long a claim outlives a process that fell silent, where several share a journal.
    pub lease: String,
    /// What wraps the keys that seal replies; without it, every key of the app does.
    pub encryption_key: Option<RawSecret>,
    /// How long replies are kept whole; after that, only their success and instance id.
    pub retain_replies: String,
    /// How long deliveries are remembered at all.
    pub retain_history: String,
    /// How long a recorded expire or delete is replayed before the next one is a new one.
    pub lifecycle_replay: String,
}

/// A secret: exactly one of `file`, `env` and `value`.
#[derive(serde::Deserialize, serde::Serialize, JsonSchema, Debug, Default)]
#[serde(deny_unknown_fields, default)]
pub struct RawSecret {
    /// A file that holds it; one trailing newline is ignored.
    pub file: Option<String>,
    /// An environment variable that holds it.
    pub env: Option<String>,
    /// The secret itself. Prefer `file`.
    pub value: Option<Secret>,
}

impl Default for RawJournal {
    fn default() -> Self {
        Self {
            url: "sqlite:./spigate.db".into(),
            lease: "10s".into(),
            encryption_key: None,
            retain_replies: "30d".into(),
            retain_history: "400d".into(),
            lifecycle_replay: "1h".into(),
        }
    }
}

/// An app that the platform calls.
#[derive(serde::Deserialize, serde::Serialize, JsonSchema, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct RawApp {
    /// Its name in logs, metrics and `X-Spi-App`: letters, digits, `-` and `_`.
    pub name: Option<String>,
    /// The host that the platform calls; any, if it is left out.
    pub host: Option<String>,
    /// The path that the platform calls, exactly.
    pub path: Option<String>,
    /// Networks (CIDR) of the clients that may call this app, the platform's; everybody if empty.
    pub allow_from: Strings,
    /// The marketplace's dialect.
    pub dialect: Option<String>,
    /// Keys from the platform's console; any active one verifies.
    pub keys: Vec<RawKey>,
    /// Whether fields that the platform's documentation requires and its own examples lack are
    /// required.
    pub contract: RawContract,
    /// What answers the platform's connection test: the backend itself, a look whether it
    /// accepts a connection, or spigate alone.
    pub test_connection: RawTestConnection,
    /// Whether what breaks a rule is refused. With false spigate only observes: everything is
    /// checked, would-be refusals are counted and logged, and everything is passed on.
    pub enforce: Flag,
    /// Whether each order is delivered once: claimed, recorded and replayed by the journal. Without
    /// it spigate is a plain verified proxy for backends that tell copies apart themselves.
    pub deliver_once: Flag,
    /// What becomes of a delivery that the backend may have executed.
    pub on_unconfirmed: RawOnUnconfirmed,
    /// What tells purchases apart that carry no order number.
    pub without_order_id: RawWithoutOrderId,
    /// Whether /readyz says no while no URL of the backend is well. Such a backend is probed, with
    /// the defaults of `backend.probe` if it has none.
    pub ready_requires_backend: Flag,
    /// How far a request's time may be off.
    pub freshness: RawFreshness,
    /// Where requests are delivered. Without it only a companion's ingress is answered about the app.
    pub backend: Option<RawBackend>,
}

impl Default for RawApp {
    fn default() -> Self {
        Self {
            name: None,
            host: None,
            path: None,
            allow_from: Strings::default(),
            dialect: None,
            keys: Vec::new(),
            contract: RawContract::Lenient,
            test_connection: RawTestConnection::Forward,
            enforce: Flag(true),
            deliver_once: Flag(true),
            on_unconfirmed: RawOnUnconfirmed::Retry,
            without_order_id: RawWithoutOrderId::Signature,
            ready_requires_backend: Flag(false),
            freshness: RawFreshness::default(),
            backend: None,
        }
    }
}

/// How strictly documented requirements are taken.
#[derive(serde::Deserialize, serde::Serialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum RawContract {
    /// Accept what the platform's own examples lack, and count it.
    Lenient,
    /// Refuse it.
    Strict,
}

/// What becomes of a delivery that the backend may have executed.
#[derive(serde::Deserialize, serde::Serialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum RawOnUnconfirmed {
    /// The next copy is forwarded, with the same Idempotency-Key and a higher X-Spi-Attempt.
    Retry,
    /// Copies get 503 until the operator decides with `spigate journal resolve`.
    Hold,
}

/// What tells purchases apart that carry no order number.
#[derive(serde::Deserialize, serde::Serialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum RawWithoutOrderId {
    /// The request's signature: only a byte-identical replay is the same purchase.
    Signature,
    /// The same, and a request with equal content is the same purchase for as long as the earlier
    /// one was never answered with success.
    Unanswered,
}

/// What answers the platform's connection test.
#[derive(serde::Deserialize, serde::Serialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum RawTestConnection {
    /// The backend.
    Forward,
    /// spigate, if the backend accepts a connection.
    Probe,
    /// spigate.
    Answer,
}

/// A key from the platform's console: exactly one of `file`, `env` and `value`.
#[derive(serde::Deserialize, serde::Serialize, JsonSchema, Debug, Default)]
#[serde(deny_unknown_fields, default)]
pub struct RawKey {
    /// Its name in logs and metrics; never the key itself.
    pub id: Option<String>,
    /// A file that holds it; one trailing newline is ignored.
    pub file: Option<String>,
    /// An environment variable that holds it.
    pub env: Option<String>,
    /// The key itself. Prefer `file`.
    pub value: Option<Secret>,
    /// Whether it verifies requests.
    pub state: RawKeyState,
    /// The time (RFC 3339, like 2026-11-30T00:00:00+08:00) before which it verifies nothing.
    pub not_before: Option<String>,
    /// The time after which it verifies nothing.
    pub not_after: Option<String>,
}

/// Whether a key verifies requests.
#[derive(serde::Deserialize, serde::Serialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Default)]
#[serde(rename_all = "lowercase")]
pub enum RawKeyState {
    /// It does.
    #[default]
    Active,
    /// It does not any more. It still opens replies that were sealed with it.
    Retired,
}

/// How far a request's time may be off.
#[derive(serde::Deserialize, serde::Serialize, JsonSchema, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct RawFreshness {
    /// Oldest accepted request.
    pub max_age: String,
    /// Farthest accepted future, for clocks that differ.
    pub max_future: String,
}

impl Default for RawFreshness {
    fn default() -> Self {
        Self { max_age: "5m".into(), max_future: "1m".into() }
    }
}

/// Where requests are delivered.
#[derive(serde::Deserialize, serde::Serialize, JsonSchema, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct RawBackend {
    /// The endpoint, http or https; a Unix socket is `http://unix:/run/app.sock:/path`.
    pub url: Option<String>,
    /// Further URLs with the same path and query, tried in order where nothing was sent to those
    /// before.
    pub failover: Strings,
    /// The form in which the backend receives a request.
    pub send: RawSend,
    /// When the platform is answered at the latest, counted from the request's arrival.
    pub answer_within: String,
    /// How long a call of the backend may take; it runs on after `answer_within`.
    pub timeout: String,
    /// How long connecting may take, TLS included.
    pub connect_timeout: String,
    /// How long an idle connection is kept. Keep it below the backend's own keep-alive.
    pub keep_alive: String,
    /// Certificate authorities (PEM) for an https backend, instead of the system's.
    pub ca_file: Option<String>,
    /// The certificate (PEM, with its chain) that an https backend is shown.
    pub client_certificate: Option<String>,
    /// The key (PEM) of `client_certificate`.
    pub client_key: Option<String>,
    /// The name that an https backend's certificate must have, instead of the URL's host.
    pub server_name: Option<String>,
    /// When a URL is left alone for a while.
    pub health: RawHealth,
    /// Looks from time to time whether each URL is well; does not, if it is left out.
    pub probe: Option<RawProbe>,
    /// Method and path of single actions.
    pub routes: BTreeMap<String, RawRoute>,
}

impl Default for RawBackend {
    fn default() -> Self {
        Self {
            url: None,
            failover: Strings::default(),
            send: RawSend::Json,
            answer_within: "13s".into(),
            timeout: "60s".into(),
            connect_timeout: "2s".into(),
            keep_alive: "1s".into(),
            ca_file: None,
            client_certificate: None,
            client_key: None,
            server_name: None,
            health: RawHealth::default(),
            probe: None,
            routes: BTreeMap::new(),
        }
    }
}

/// When a URL of a backend is left alone for a while: its circuit is open.
#[derive(serde::Deserialize, serde::Serialize, JsonSchema, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct RawHealth {
    /// So many failures in a row open the circuit; 0 means never.
    pub failures: Int,
    /// How long it stays open before single calls try it; up to a quarter longer, by chance.
    pub open_for: String,
    /// What counts as a failure.
    pub count: RawCount,
}

impl Default for RawHealth {
    fn default() -> Self {
        Self { failures: Int(5), open_for: "1s".into(), count: RawCount::Connect }
    }
}

/// What counts as a failure of a backend's URL.
#[derive(serde::Deserialize, serde::Serialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum RawCount {
    /// No connection came about: nothing was sent.
    Connect,
    /// Also a reply that broke off or did not come in time, and 5xx.
    Any,
}

/// How to look whether a backend's URL is well.
#[derive(serde::Deserialize, serde::Serialize, JsonSchema, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct RawProbe {
    /// What is asked for with GET, 2xx and 3xx being well; without it, connecting is enough.
    pub path: Option<String>,
    /// How often.
    pub every: String,
    /// How long one look may take.
    pub timeout: String,
}

impl Default for RawProbe {
    fn default() -> Self {
        Self { path: None, every: "5s".into(), timeout: "2s".into() }
    }
}

/// The form in which a backend receives a request.
#[derive(serde::Deserialize, serde::Serialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum RawSend {
    /// POST with the decoded parameters as a JSON object.
    Json,
    /// GET with a header for each parameter.
    Headers,
    /// GET with decoded parameters in the query, without the signature.
    Query,
    /// GET with the query as received.
    Raw,
}

/// Method and path of an action.
#[derive(serde::Deserialize, serde::Serialize, JsonSchema, Debug, Default)]
#[serde(deny_unknown_fields, default)]
pub struct RawRoute {
    /// The method.
    pub method: Option<String>,
    /// The path, instead of the url's. `{action}` and `{instance_id}` (or another required
    /// field) stand for their values.
    pub path: Option<String>,
}

/// The JSON schema of the configuration.
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(RawConfig).to_value()
}
