//! The access log: one line for each request, with everything that helps to find an order and
//! nothing that must not be found: no key, no signature, no password, no query, no personal
//! data (`docs/logging.md` has the list).

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use http::{Method, Uri};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Serializer;
use tracing_appender::non_blocking::NonBlocking;

use crate::companion::Contract;
use crate::config::raw::LogFormat;
use crate::delivery::Outcome;
use crate::exchange::Exchange;
use crate::json;
use crate::rejection::{Fault, Rejection};

/// Longest path that is logged; strangers choose it.
const MAX_PATH: usize = 256;
/// Longest method that is logged; they choose that, too.
const MAX_METHOD: usize = 32;

/// A path as it is logged: not all of one that is too long.
pub(crate) fn shown_path(path: &str) -> &str {
    path.get(..MAX_PATH).unwrap_or(if path.len() > MAX_PATH { "(long)" } else { path })
}

/// Where access lines go.
pub struct AccessLog {
    out: NonBlocking,
    format: LogFormat,
}

/// What a line is made of.
pub struct Line<'a> {
    /// When the request was answered.
    pub now: Timestamp,
    /// Its id.
    pub request_id: &'a str,
    /// The client's address; where it is not known, the last one on the way that is.
    pub client: IpAddr,
    /// The other end of the connection, where it is not the client.
    pub peer: Option<IpAddr>,
    /// Its method.
    pub method: &'a Method,
    /// Its target; only the path is logged.
    pub path: &'a Uri,
    /// Its story.
    pub exchange: &'a Exchange,
    /// How it ended.
    pub outcome: Outcome,
    /// The status answered.
    pub status: u16,
    /// Why it has no backend's reply.
    pub rejection: Option<&'a Rejection>,
    /// From its arrival to its answer.
    pub took: Duration,
}

/// A line's fields, in their order; `docs/logging.md` explains them.
#[derive(Serialize)]
struct Fields<'a> {
    timestamp: String,
    level: &'static str,
    message: &'static str,
    request_id: &'a str,
    client: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<IpAddr>,
    method: &'a str,
    path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    companion: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    app: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    debug: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    order_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delivery: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    outcome: &'static str,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    would_refuse: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
    duration_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    backend_ms: Option<f64>,
}

impl AccessLog {
    /// A log that writes to `out`.
    pub fn new(out: NonBlocking, format: LogFormat) -> Self {
        Self { out, format }
    }

    /// Writes a line. Never blocks: a full buffer drops the line, and the writer counts it.
    pub fn write(&self, line: &Line<'_>) {
        let fields = fields(line);
        let mut text = Vec::with_capacity(512);
        match self.format {
            // Texts and numbers always serialize.
            LogFormat::Json => drop(fields.serialize(&mut Serializer::with_formatter(&mut text, json::Inert))),
            LogFormat::Text => text.extend_from_slice(for_humans(&fields).as_bytes()),
        }
        text.push(b'\n');
        // The writer is a channel; it has nowhere to report a failure to.
        let _ = self.out.clone().write_all(&text);
    }
}

fn fields<'a>(line: &Line<'a>) -> Fields<'a> {
    let Line { exchange, rejection, .. } = *line;
    let app = exchange.app.as_deref();
    let action = app.zip(exchange.action).map(|(app, action)| app.config.dialect.actions[action].name.as_str());
    let (method, path) = (line.method.as_str(), line.path.path());
    let told = rejection.or(exchange.would_refuse.as_ref());
    Fields {
        timestamp: format!("{:.3}", line.now),
        level: match rejection.map(Rejection::fault) {
            Some(Fault::Backend | Fault::Gateway) => "WARN",
            Some(Fault::Client) | None => "INFO",
        },
        message: "request",
        request_id: line.request_id,
        client: line.client,
        peer: line.peer,
        method: if method.len() > MAX_METHOD { "(long)" } else { method },
        path: shown_path(path),
        companion: exchange.companion.map(Contract::as_str),
        app: app.map(|app| app.config.name.as_str()),
        action,
        debug: exchange.debug,
        order_id: exchange.order_id.as_deref(),
        instance_id: exchange.instance_id.as_deref(),
        delivery: exchange.recorded.map(|(key, _)| key.idempotency_key()),
        attempt: exchange.recorded.map(|(_, attempt)| attempt),
        key: app.zip(exchange.key).map(|(app, key)| app.config.keys[key].id.as_str()),
        outcome: line.outcome.as_str(),
        status: line.status,
        code: rejection.map(Rejection::code),
        would_refuse: exchange.would_refuse.as_ref().map(Rejection::code),
        rule: told.and_then(|rejection| match rejection {
            Rejection::BackendContract(violation) => Some(&*violation.rule),
            _ => None,
        }),
        cause: told.map(Rejection::told),
        duration_ms: milliseconds(line.took),
        backend_ms: exchange.backend_time.map(milliseconds),
    }
}

/// Milliseconds with three digits behind the point.
pub fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1_000_000.0).round() / 1000.0
}

/// `name=value` pairs; whatever could move a terminal's cursor is escaped.
fn for_humans(fields: &Fields<'_>) -> String {
    let mut text = format!("{} {:5} {}", fields.timestamp, fields.level, fields.message);
    let mut put = |name: &str, value: Option<&dyn std::fmt::Display>| {
        if let Some(value) = value {
            let value = value.to_string();
            let plain = !value.is_empty() && !value.contains([' ', '"', '=']) && !value.contains(char::is_control);
            // Writing to a String cannot fail.
            let _ = if plain { write!(text, " {name}={value}") } else { write!(text, " {name}={value:?}") };
        }
    };
    put("app", fields.app.as_ref().map(|value| value as _));
    put("action", fields.action.as_ref().map(|value| value as _));
    put("outcome", Some(&fields.outcome));
    put("status", Some(&fields.status));
    put("code", fields.code.as_ref().map(|value| value as _));
    put("would_refuse", fields.would_refuse.as_ref().map(|value| value as _));
    put("rule", fields.rule.as_ref().map(|value| value as _));
    put("order_id", fields.order_id.as_ref().map(|value| value as _));
    put("instance_id", fields.instance_id.as_ref().map(|value| value as _));
    put("delivery", fields.delivery.as_ref().map(|value| value as _));
    put("attempt", fields.attempt.as_ref().map(|value| value as _));
    put("debug", fields.debug.as_ref().map(|value| value as _));
    put("key", fields.key.as_ref().map(|value| value as _));
    put("duration_ms", Some(&fields.duration_ms));
    put("backend_ms", fields.backend_ms.as_ref().map(|value| value as _));
    put("client", Some(&fields.client));
    put("peer", fields.peer.as_ref().map(|value| value as _));
    put("method", Some(&fields.method));
    put("path", Some(&fields.path));
    put("companion", fields.companion.as_ref().map(|value| value as _));
    put("request_id", Some(&fields.request_id));
    put("cause", fields.cause.as_ref().map(|value| value as _));
    text
}
