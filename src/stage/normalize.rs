//! Eighth stop: the request as the backend wants it. Built anew, never edited: what a client
//! sent reaches the backend only where this file puts it.

use std::collections::HashMap;
use std::net::IpAddr;

use http::header::{CONNECTION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::app::App;
use crate::backend::outgoing::{Fixed, Line, Outgoing};
use crate::config::{BackendConfig, PathPart, Route, Send};
use crate::dialect::Dialect;
use crate::dialect::request::{Documented, SpiRequest, Value};
use crate::dialect::time::{TimeFormat, iso8601};
use crate::json;
use crate::peer::X_REQUEST_ID;
use crate::peer::client::X_FORWARDED_FOR;
use crate::percent;
use crate::stage::contract::Checked;
use crate::stage::receive::Received;

/// What one attempt adds to a request.
pub struct Attempt<'a> {
    /// Its number, from 1.
    pub number: u32,
    /// The request's id.
    pub request_id: &'a HeaderValue,
    /// The delivery's key, the same for every attempt.
    pub idempotency_key: String,
}

/// Everything but the unreserved characters of RFC 3986.
const COMPONENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

const X_SPI_APP: HeaderName = HeaderName::from_static("x-spi-app");
const X_SPI_DIALECT: HeaderName = HeaderName::from_static("x-spi-dialect");
const X_SPI_ACTION: HeaderName = HeaderName::from_static("x-spi-action");
const X_SPI_DEBUG: HeaderName = HeaderName::from_static("x-spi-debug");
const X_SPI_KEY_ID: HeaderName = HeaderName::from_static("x-spi-key-id");
const X_SPI_ATTEMPT: HeaderName = HeaderName::from_static("x-spi-attempt");
/// The header of a delivery's key.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// What of a backend's request is the same each time: made once per app.
pub struct Template {
    app: Fixed,
    dialect: Fixed,
    /// For each action: its name among our headers and among the parameters.
    actions: Vec<[Fixed; 2]>,
    keys: Vec<Fixed>,
    /// No, and yes.
    debug: [Fixed; 2],
    first_attempt: Fixed,
    /// What the action's name stands behind in JSON.
    action_key: Vec<u8>,
    time: Param,
    fields: Vec<Param>,
    /// For each action: its target, where neither fields nor parameters are part of it. Nothing
    /// without a backend.
    targets: Vec<Option<Uri>>,
}

/// A documented parameter's name, in both forms that name it.
struct Param {
    header: HeaderName,
    /// In JSON, with the colon.
    key: Vec<u8>,
}

impl Param {
    fn new(name: &str) -> Self {
        Self { header: param_header(name), key: json_key(name) }
    }
}

impl Template {
    /// Prepares an app's template.
    pub fn new(config: &crate::config::AppConfig) -> Self {
        let target = |backend: &BackendConfig| {
            let routes = backend.routes.iter();
            routes.map(|route| target_without_values(backend, route)).collect()
        };
        let dialect = &config.dialect;
        let action_param = param_header(&dialect.action_parameter);
        let action = |name: &str| [X_SPI_ACTION, action_param.clone()].map(|header| fixed(header, name));
        Self {
            app: fixed(X_SPI_APP, &config.name),
            dialect: fixed(X_SPI_DIALECT, &dialect.name),
            actions: dialect.actions.iter().map(|named| action(&named.name)).collect(),
            keys: config.keys.iter().map(|key| fixed(X_SPI_KEY_ID, &key.id)).collect(),
            debug: [false, true].map(|debug| fixed(X_SPI_DEBUG, boolean(debug))),
            first_attempt: fixed(X_SPI_ATTEMPT, "1"),
            action_key: json_key(&dialect.action_parameter),
            time: Param::new(dialect.time.as_ref().map_or("", |rule| &rule.parameter)),
            fields: dialect.fields.iter().map(|field| Param::new(&field.name)).collect(),
            targets: config.backend.as_ref().map(target).unwrap_or_default(),
        }
    }

    /// The headers that the form `headers` may have, ours included.
    pub fn names(&self) -> impl Iterator<Item = &HeaderName> {
        static OURS: [HeaderName; 8] = [
            X_SPI_APP,
            X_SPI_DIALECT,
            X_SPI_ACTION,
            X_SPI_DEBUG,
            X_SPI_KEY_ID,
            X_SPI_ATTEMPT,
            X_REQUEST_ID,
            IDEMPOTENCY_KEY,
        ];
        let action_param = self.actions.first().map(|[_, param]| param.name());
        OURS.iter().chain(action_param).chain([&self.time].into_iter().chain(&self.fields).map(|param| &param.header))
    }
}

fn target_without_values(backend: &BackendConfig, route: &Route) -> Option<Uri> {
    let fixed = matches!(backend.send, Send::Json | Send::Headers);
    match (&route.path[..], &backend.endpoint.query) {
        ([PathPart::Literal(path)], None) if fixed => path.parse().ok(),
        ([PathPart::Literal(path)], Some(query)) if fixed => format!("{path}?{query}").parse().ok(),
        _ => None,
    }
}

/// What headers are put into: the backend's request, or a map for an ingress that sends its own.
trait Headers {
    fn put(&mut self, name: &HeaderName, value: &HeaderValue);
    fn put_fixed(&mut self, header: &Fixed);
    /// Percent-encoded where a header's decoders need it.
    fn put_encoded(&mut self, name: &HeaderName, text: &str);
    /// Nothing if it is not visible ASCII, which it is.
    fn put_text(&mut self, name: &HeaderName, text: &str);
}

impl Headers for Outgoing {
    fn put(&mut self, name: &HeaderName, value: &HeaderValue) {
        self.header(name, value);
    }
    fn put_fixed(&mut self, header: &Fixed) {
        self.fixed(header);
    }
    fn put_encoded(&mut self, name: &HeaderName, text: &str) {
        self.encoded(name, text);
    }
    fn put_text(&mut self, name: &HeaderName, text: &str) {
        self.text(name, text);
    }
}

impl Headers for HeaderMap {
    fn put(&mut self, name: &HeaderName, value: &HeaderValue) {
        self.insert(name, value.clone());
    }
    fn put_fixed(&mut self, header: &Fixed) {
        self.insert(header.name(), header.value().clone());
    }
    fn put_encoded(&mut self, name: &HeaderName, text: &str) {
        self.insert(name, header_value(text));
    }
    fn put_text(&mut self, name: &HeaderName, text: &str) {
        if let Ok(value) = HeaderValue::from_str(text) {
            self.insert(name, value);
        }
    }
}

/// Builds the backend's request.
///
/// # Errors
/// Only a target longer than `http::Uri` holds: decoded parameters, encoded anew, can be three
/// times as long as they came. Everything else was checked with the configuration.
pub fn normalize(
    app: &App,
    backend: &BackendConfig,
    checked: &Checked,
    attempt: &Attempt<'_>,
) -> Result<Outgoing, http::Error> {
    let request = checked.request();
    let action = request.action_index();
    let route = &backend.routes[action];
    let built;
    let uri = match &app.template.targets[action] {
        // Only JSON has room for undocumented parameters elsewhere than in the query.
        Some(uri) if backend.send == Send::Json || !request.has_undocumented() => uri,
        _ => {
            built = target(app, backend, checked, route)?;
            &built
        }
    };
    let mut outgoing = Outgoing::new(route.method.clone(), uri, &backend.endpoint.authority);
    pass_on(&mut outgoing, checked.passed_on());
    match backend.send {
        Send::Json => {
            outgoing.header(&CONTENT_TYPE, &HeaderValue::from_static("application/json"));
            outgoing.set_body(json_body(app, request));
        }
        Send::Headers => put_params(&mut outgoing, app, request),
        Send::Query | Send::Raw => {}
    }
    // Nothing above has one of these names.
    put_ours(&mut outgoing, app, checked, attempt);
    Ok(outgoing)
}

/// The form `headers` alone, whatever the app's backend is sent: what a companion's ingress adds to
/// the request that it holds. Undocumented parameters are in that one's query.
pub fn headers(app: &App, checked: &Checked, attempt: &Attempt<'_>) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(24);
    put_params(&mut headers, app, checked.request());
    put_ours(&mut headers, app, checked, attempt);
    headers
}

/// What of that can be said of a request that is not believed, for an app that is observed only.
pub fn headers_of_observed(app: &App, request_id: &HeaderValue) -> HeaderMap {
    let mut headers = HeaderMap::new();
    put_app(&mut headers, app, request_id);
    headers
}

fn put_app(headers: &mut impl Headers, app: &App, request_id: &HeaderValue) {
    headers.put_fixed(&app.template.app);
    headers.put_fixed(&app.template.dialect);
    headers.put(&X_REQUEST_ID, request_id);
}

fn put_ours(headers: &mut impl Headers, app: &App, checked: &Checked, attempt: &Attempt<'_>) {
    let (dialect, request) = (&*app.config.dialect, checked.request());
    put_app(headers, app, attempt.request_id);
    headers.put_fixed(&app.template.actions[request.action_index()][0]);
    headers.put_fixed(&app.template.debug[usize::from(request.is_debug(dialect))]);
    headers.put_fixed(&app.template.keys[checked.key()]);
    match attempt.number {
        // Nearly always.
        1 => headers.put_fixed(&app.template.first_attempt),
        number => headers.put_text(&X_SPI_ATTEMPT, &number.to_string()),
    }
    headers.put_text(&IDEMPOTENCY_KEY, &attempt.idempotency_key);
}

/// The request as it came, signature and all, for an app that is observed only: what cannot be
/// decoded or is not believed has no other form.
///
/// # Errors
/// Only a target longer than `http::Uri` holds.
pub fn as_it_came(
    app: &App,
    backend: &BackendConfig,
    received: &Received<'_>,
    incoming: &HeaderMap,
    request_id: &HeaderValue,
    client: Option<IpAddr>,
) -> Result<Outgoing, http::Error> {
    let mut target = backend.path.clone();
    let mut query = Query { target: &mut target, separator: '?' };
    for text in backend.endpoint.query.as_deref().into_iter().chain([received.query()]) {
        if !text.is_empty() {
            query.raw(text);
        }
    }
    let mut outgoing = Outgoing::new(Method::GET, &target.parse()?, &backend.endpoint.authority);
    let mut headers = passed_on(incoming, app, client);
    if let Some(name) = &app.config.dialect.signature.header {
        headers.retain(|(kept, _)| kept != name);
        headers.extend(incoming.get_all(name).iter().map(|signature| (name.clone(), signature.clone())));
    }
    pass_on(&mut outgoing, &headers);
    put_app(&mut outgoing, app, request_id);
    Ok(outgoing)
}

/// Adds headers that are passed on, but none that could pose as ours, as whoever wrote a dialect
/// may have named its signature; those of a trace stay where they can be changed.
fn pass_on(outgoing: &mut Outgoing, headers: &[Line]) {
    let is_ours = |name: &HeaderName| {
        name.as_str().starts_with("x-spi-") || [HOST, CONTENT_TYPE, X_REQUEST_ID, IDEMPOTENCY_KEY].contains(name)
    };
    for (name, value) in headers.iter().filter(|(name, _)| !is_ours(name)) {
        if *name == TRACEPARENT || *name == TRACESTATE {
            outgoing.traced_mut().append(name, value.clone());
        } else {
            outgoing.header(name, value);
        }
    }
}

/// The incoming headers that a backend may see: a short list, so that nothing can pose as ours.
///
/// Hop-by-hop names that `Connection` lists are left out. `client`, an address that a trusted proxy
/// vouches for, is the whole of `X-Forwarded-For`: of what came, nothing else is believed. `raw`
/// backends verify themselves and need the signature's header.
pub fn passed_on(incoming: &HeaderMap, app: &App, client: Option<IpAddr>) -> Vec<Line> {
    let is_raw = app.config.backend.as_ref().is_some_and(|backend| backend.send == Send::Raw);
    let signature = app.config.dialect.signature.header.as_ref().filter(|_| is_raw);
    let is_of_trace = |name: &HeaderName| *name == TRACEPARENT || *name == TRACESTATE;
    let mut kept = Vec::new();
    let (mut parents, mut is_traced, mut names_others) = (0, false, false);
    // All lines of a header: a proxy may have added its own behind one that a stranger sent.
    for (name, value) in incoming {
        if *name == TRACEPARENT {
            parents += 1;
            is_traced = parents == 1 && is_traceparent(value);
        }
        if *name == USER_AGENT || is_of_trace(name) || Some(name) == signature {
            kept.push((name.clone(), value.clone()));
        }
        names_others |= *name == CONNECTION;
    }
    // Two of them, or a malformed one, are none (W3C Trace Context, section 3.2).
    if !is_traced {
        kept.retain(|(name, _)| !is_of_trace(name) || Some(name) == signature);
    }
    if names_others {
        kept.retain(|(name, _)| !names_hop_by_hop(incoming, name));
    }
    // An address is visible ASCII.
    if let Some(Ok(client)) = client.map(|client| HeaderValue::try_from(client.to_string())) {
        kept.push((X_FORWARDED_FOR, client));
    }
    kept
}

fn names_hop_by_hop(incoming: &HeaderMap, name: &HeaderName) -> bool {
    incoming.get_all(CONNECTION).iter().any(|value| {
        value
            .as_bytes()
            .split(|&byte| byte == b',')
            .any(|item| item.trim_ascii().eq_ignore_ascii_case(name.as_str().as_bytes()))
    })
}

/// W3C Trace Context, version 00: `00-<32 hex>-<16 hex>-<2 hex>`, ids not all zero.
fn is_traceparent(value: &HeaderValue) -> bool {
    let bytes = value.as_bytes();
    let lower_hex = |range: std::ops::Range<usize>| {
        bytes[range].iter().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte))
    };
    let not_zero = |range: std::ops::Range<usize>| bytes[range].iter().any(|&byte| byte != b'0');
    bytes.len() == 55
        && bytes[..3] == *b"00-"
        && bytes[35] == b'-'
        && bytes[52] == b'-'
        && lower_hex(3..35)
        && lower_hex(36..52)
        && lower_hex(53..55)
        && not_zero(3..35)
        && not_zero(36..52)
}

fn target(app: &App, backend: &BackendConfig, checked: &Checked, route: &Route) -> Result<Uri, http::Error> {
    let dialect = &*app.config.dialect;
    let request = checked.request();
    let mut target = String::with_capacity(checked.query().len() + 64);
    for part in &route.path {
        match part {
            PathPart::Literal(text) => target.push_str(text),
            PathPart::Action => target.extend(utf8_percent_encode(&request.action(dialect).name, COMPONENT)),
            PathPart::Field(field) => {
                target.extend(utf8_percent_encode(request.text(*field).unwrap_or(""), COMPONENT));
            }
        }
    }
    let mut query = Query { target: &mut target, separator: '?' };
    match backend.send {
        Send::Raw => query.raw(checked.query()),
        send => {
            if let Some(own) = &backend.endpoint.query {
                query.raw(own);
            }
            if send == Send::Query {
                for (name, value) in request.documented(dialect) {
                    query.pair(name, as_text(&value));
                }
            }
            if send != Send::Json {
                for param in request.undocumented(dialect) {
                    query.pair(param.name, param.value);
                }
            }
        }
    }
    Ok(target.parse::<Uri>()?)
}

struct Query<'t> {
    target: &'t mut String,
    separator: char,
}

impl Query<'_> {
    fn raw(&mut self, text: &str) {
        self.target.push(self.separator);
        self.target.push_str(text);
        self.separator = '&';
    }

    fn pair(&mut self, name: &str, value: &str) {
        self.target.push(self.separator);
        self.target.extend(utf8_percent_encode(name, COMPONENT));
        self.target.push('=');
        self.target.extend(utf8_percent_encode(value, COMPONENT));
        self.separator = '&';
    }
}

/// Each documented parameter as a header: visible ASCII.
fn put_params(headers: &mut impl Headers, app: &App, request: &SpiRequest) {
    let dialect = &*app.config.dialect;
    for (place, value) in request.values(dialect) {
        let header = match place {
            Documented::Action => {
                headers.put_fixed(&app.template.actions[request.action_index()][1]);
                continue;
            }
            Documented::Field(field) => &app.template.fields[field].header,
            Documented::Time => &app.template.time.header,
        };
        match value {
            // JSON keeps its quotes and commas; all that is not ASCII is escaped in JSON's way.
            Value::Object(document) => headers.put_text(header, &json::ascii(document)),
            value => headers.put_encoded(header, as_text(&value)),
        }
    }
}

/// Two parameters of a dialect that become one header, and that header: no form with headers can
/// tell them apart.
pub fn same_header(dialect: &Dialect) -> Option<(&str, &str, HeaderName)> {
    let time = dialect.time.as_ref().map(|rule| &rule.parameter);
    let fields = dialect.fields.iter().map(|field| &field.name);
    let mut taken = HashMap::new();
    std::iter::once(&dialect.action_parameter).chain(time).chain(fields).find_map(|name| {
        let header = param_header(name);
        taken.insert(header.clone(), name).map(|other| (other.as_str(), name.as_str(), header))
    })
}

/// `user_id` becomes `x-spi-param-user-id`.
fn param_header(name: &str) -> HeaderName {
    let plain = |char: char| if char.is_ascii_alphanumeric() { char.to_ascii_lowercase() } else { '-' };
    let name: String = "x-spi-param-".chars().chain(name.chars().map(plain)).collect();
    // Letters, digits and hyphens only: always a header name.
    HeaderName::from_bytes(name.as_bytes()).unwrap_or(HeaderName::from_static("x-spi-param"))
}

fn as_text<'v>(value: &Value<'v>) -> &'v str {
    match *value {
        Value::Text(text) | Value::Object(text) | Value::Period { text, .. } | Value::Time { text, .. } => text,
        Value::Boolean(value) => boolean(value),
    }
}

fn boolean(value: bool) -> &'static str {
    if value { "true" } else { "false" }
}

/// The decoded parameters as a flat JSON object: documented ones first, in the dialect's order.
fn json_body(app: &App, request: &SpiRequest) -> Vec<u8> {
    let dialect = &*app.config.dialect;
    let mut object = JsonObject { out: Vec::with_capacity(512), separator: b'{' };
    for (place, value) in request.values(dialect) {
        object.key(match place {
            Documented::Action => &app.template.action_key,
            Documented::Field(field) => &app.template.fields[field].key,
            Documented::Time => &app.template.time.key,
        });
        match value {
            Value::Text(text) => object.text(text),
            Value::Object(document) => object.out.extend_from_slice(document.as_bytes()),
            Value::Boolean(value) => object.out.extend_from_slice(boolean(value).as_bytes()),
            Value::Period { value, unit, .. } => {
                let period = format!("{{\"value\":{value},\"unit\":\"{}\"}}", unit.as_str());
                object.out.extend_from_slice(period.as_bytes());
            }
            Value::Time { time, text } => match dialect.time.as_ref().map(|rule| rule.format) {
                Some(TimeFormat::Iso8601) => object.text(text),
                _ => object.text(&iso8601(time)),
            },
        }
    }
    let mut undocumented: Vec<_> = request.undocumented(dialect).collect();
    // A stable sort: equal names stay in received order.
    undocumented.sort_by_key(|param| param.name);
    for values in undocumented.chunk_by(|a, b| a.name == b.name) {
        object.key(&json_key(values[0].name));
        if let [only] = values {
            object.text(only.value);
        } else {
            let mut separator = b'[';
            for param in values {
                object.out.push(separator);
                object.text(param.value);
                separator = b',';
            }
            object.out.push(b']');
        }
    }
    object.out.push(b'}');
    object.out
}

/// A member's name, with the colon.
fn json_key(name: &str) -> Vec<u8> {
    // A text always serializes.
    let mut key = serde_json::to_vec(name).unwrap_or_default();
    key.push(b':');
    key
}

struct JsonObject {
    out: Vec<u8>,
    separator: u8,
}

impl JsonObject {
    /// Begins a member.
    fn key(&mut self, key: &[u8]) {
        self.out.push(self.separator);
        self.out.extend_from_slice(key);
        self.separator = b',';
    }

    fn text(&mut self, text: &str) {
        // Writing a string to a Vec cannot fail.
        let _ = serde_json::to_writer(&mut self.out, text);
    }
}

fn fixed(header: HeaderName, text: &str) -> Fixed {
    Fixed::new(header, header_value(text))
}

/// A text as a header's value, percent-encoded where its decoders need it.
fn header_value(text: &str) -> HeaderValue {
    let mut encoded = Vec::with_capacity(text.len());
    percent::encode(text, &percent::IN_HEADERS, |bytes| encoded.extend_from_slice(bytes));
    // What is encoded is visible ASCII.
    HeaderValue::try_from(encoded).unwrap_or(HeaderValue::from_static(""))
}
