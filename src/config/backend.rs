//! `[apps.backend]`: where an app's requests are delivered, in which form, and what becomes of
//! a backend that cannot be reached.

use std::collections::HashSet;
use std::time::Duration;

use http::Method;

use super::endpoint::same_place;
use super::raw::{self, RawBackend};
use super::scalar::Secret;
use super::validate::{Validator, is_path};
use crate::backend::tls;
use crate::dialect::{Dialect, Presence};

pub use super::endpoint::{Address, Endpoint};

/// Where and how an app's requests are delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendConfig {
    /// The first endpoint.
    pub endpoint: Endpoint,
    /// Further endpoints of the same path and query, for calls of which nothing was sent.
    pub failover: Vec<Endpoint>,
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
    /// The urls' path.
    pub path: String,
    /// What https endpoints are checked against and shown.
    pub tls: BackendTls,
    /// When an endpoint is left alone for a while.
    pub circuit: CircuitConfig,
    /// How to look whether endpoints are well, if at all.
    pub probe: Option<ProbeConfig>,
    /// For each action of the dialect: method and path.
    pub routes: Vec<Route>,
}

/// What https endpoints are checked against and shown. Contents of files, not their names: a
/// file that changed makes another configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendTls {
    /// PEM text of certificate authorities; the system's if `None`.
    pub ca_pem: Option<Vec<u8>>,
    /// Who we are.
    pub identity: Option<ClientIdentity>,
    /// The name that certificates must have, instead of the endpoint's host.
    pub server_name: Option<String>,
}

/// A client certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientIdentity {
    /// PEM text of the certificate and its chain.
    pub certificate_pem: Vec<u8>,
    /// PEM text of the key.
    pub key_pem: Secret,
}

/// When an endpoint is left alone for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CircuitConfig {
    /// So many failures in a row open the circuit; never if 0.
    pub failures: u32,
    /// How long it stays open before a call tries it.
    pub open_for: Duration,
    /// What counts.
    pub count: CountedFailures,
}

impl CircuitConfig {
    /// One that never opens.
    pub const OFF: Self = Self { failures: 0, open_for: Duration::ZERO, count: CountedFailures::Connect };
}

/// What counts as a failure of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountedFailures {
    /// No connection came about: nothing was sent.
    Connect,
    /// Also a reply that broke off or did not come in time, and 5xx.
    Any,
}

/// How to look whether an endpoint is well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeConfig {
    /// Path and query that are asked for; connecting is enough if `None`.
    pub path: Option<String>,
    /// How often.
    pub every: Duration,
    /// How long one look may take.
    pub timeout: Duration,
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

/// Most URLs of a backend: a call may come to try all of them, one connect timeout each.
pub const MAX_ENDPOINTS: usize = 8;

impl BackendConfig {
    /// All endpoints, in the order in which they are tried.
    pub fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        std::iter::once(&self.endpoint).chain(&self.failover)
    }
}

impl Validator<'_> {
    /// Reads a backend. One that `/readyz` waits for is probed in any case: once traffic is withdrawn,
    /// nothing else would find out that it is back.
    pub(super) fn backend(
        &mut self,
        at: &str,
        raw: &RawBackend,
        dialect: &Dialect,
        is_waited_for: bool,
    ) -> Option<BackendConfig> {
        let send = match raw.send {
            raw::RawSend::Json => Send::Json,
            raw::RawSend::Headers => Send::Headers,
            raw::RawSend::Query => Send::Query,
            raw::RawSend::Raw => Send::Raw,
        };
        let answer_within = self.positive_duration(&format!("{at}.answer_within"), &raw.answer_within);
        let timeout = self.positive_duration(&format!("{at}.timeout"), &raw.timeout);
        let connect_timeout = self.positive_duration(&format!("{at}.connect_timeout"), &raw.connect_timeout);
        let keep_alive = self.duration(&format!("{at}.keep_alive"), &raw.keep_alive);
        if timeout < answer_within {
            self.problem(&format!("{at}.timeout"), "must not be shorter than answer_within");
        }
        if connect_timeout > answer_within {
            self.problem(&format!("{at}.connect_timeout"), "must not be longer than answer_within");
        }
        let parsed = match &raw.url {
            Some(url) => self.read(&format!("{at}.url"), Endpoint::parse(url).map_err(str::to_owned)),
            None => {
                self.problem(&format!("{at}.url"), "is missing");
                None
            }
        };
        if let Some((endpoint, _)) = &parsed
            && endpoint.query.is_some()
            && send == Send::Raw
        {
            self.problem(&format!("{at}.url"), "must not have a query with send = \"raw\": the platform's own is sent");
        }
        let failover = self.failover(at, &raw.failover.0, parsed.as_ref());
        let tls = self.backend_tls(at, raw);
        let circuit = CircuitConfig {
            failures: u32::try_from(self.count(&format!("{at}.health.failures"), raw.health.failures, 0..=1_000))
                .unwrap_or(u32::MAX),
            open_for: self.positive_duration(&format!("{at}.health.open_for"), &raw.health.open_for),
            count: match raw.health.count {
                raw::RawCount::Connect => CountedFailures::Connect,
                raw::RawCount::Any => CountedFailures::Any,
            },
        };
        let by_default = is_waited_for.then(raw::RawProbe::default);
        let probe = raw.probe.as_ref().or(by_default.as_ref()).map(|probe| self.probe(&format!("{at}.probe"), probe));
        let routes = self.routes(at, raw, send, parsed.as_ref().map_or("/", |(_, path)| path), dialect);
        let (endpoint, path) = parsed?;
        let backend = BackendConfig {
            endpoint,
            failover,
            send,
            answer_within,
            timeout,
            connect_timeout,
            keep_alive,
            path,
            tls,
            circuit,
            probe,
            routes,
        };
        self.tls_fits(at, &backend);
        Some(backend)
    }

    fn failover(&mut self, at: &str, urls: &[String], first: Option<&(Endpoint, String)>) -> Vec<Endpoint> {
        if urls.len() >= MAX_ENDPOINTS {
            self.problem(&format!("{at}.failover"), &format!("must have at most {} URLs", MAX_ENDPOINTS - 1));
        }
        let mut endpoints: Vec<Endpoint> = Vec::new();
        for (index, url) in urls.iter().enumerate() {
            let place = format!("{at}.failover[{index}]");
            let Some((endpoint, path)) = self.read(&place, Endpoint::parse(url).map_err(str::to_owned)) else {
                continue;
            };
            let Some((main, main_path)) = first else { continue };
            if path != *main_path || endpoint.query != main.query {
                self.problem(&place, "must have the path and query of url: only scheme, host and port may differ");
            } else if same_place(&endpoint, main) || endpoints.iter().any(|other| same_place(&endpoint, other)) {
                self.problem(&place, "names the same host and port as a URL before it");
            }
            endpoints.push(endpoint);
        }
        endpoints
    }

    fn backend_tls(&mut self, at: &str, raw: &RawBackend) -> BackendTls {
        let mut read = |key: &str, file: &Option<String>| {
            let file = file.as_ref()?;
            let content = self.files.read(&self.base.join(file)).map_err(|error| format!("cannot be read: {error}"));
            self.read(&format!("{at}.{key}"), content)
        };
        let ca_pem = read("ca_file", &raw.ca_file);
        let certificate_pem = read("client_certificate", &raw.client_certificate);
        let key_pem = read("client_key", &raw.client_key);
        match (&raw.client_certificate, &raw.client_key) {
            (Some(_), None) => self.problem(&format!("{at}.client_certificate"), "needs client_key, too"),
            (None, Some(_)) => self.problem(&format!("{at}.client_key"), "needs client_certificate, too"),
            _ => {}
        }
        let key_pem = key_pem.and_then(|pem| {
            let text = String::from_utf8(pem).map_err(|_| "is not a PEM file".to_owned());
            self.read(&format!("{at}.client_key"), text)
        });
        BackendTls {
            ca_pem,
            identity: certificate_pem
                .zip(key_pem)
                .map(|(certificate_pem, key_pem)| ClientIdentity { certificate_pem, key_pem: Secret::new(key_pem) }),
            server_name: raw.server_name.clone(),
        }
    }

    /// Whether the TLS settings can be used, and are.
    fn tls_fits(&mut self, at: &str, backend: &BackendConfig) {
        // Wrong files are told also where no URL needs them yet; without any, nothing can be wrong, and
        // the system's roots need not be read before somebody trusts them.
        let has_files = backend.tls.ca_pem.is_some() || backend.tls.identity.is_some();
        if has_files && let Err(wrong) = tls::client_config(&backend.tls) {
            self.problem(&format!("{at}.{}", wrong.key), &wrong.what);
        }
        if let Some(name) = &backend.tls.server_name
            && tls::server_name(name).is_err()
        {
            self.problem(&format!("{at}.server_name"), "must be a host name or address, without scheme and port");
        }
        if !backend.endpoints().any(|endpoint| endpoint.tls) {
            let tls = &backend.tls;
            for (key, is_set) in [
                ("ca_file", tls.ca_pem.is_some()),
                ("client_certificate", tls.identity.is_some()),
                ("server_name", tls.server_name.is_some()),
            ] {
                if is_set {
                    self.warn(&format!("{at}.{key}"), "has no effect: no URL of this backend is https");
                }
            }
        }
    }

    fn probe(&mut self, at: &str, raw: &raw::RawProbe) -> ProbeConfig {
        let is_target = |path: &String| {
            is_path(path.split('?').next().unwrap_or_default()) && path.parse::<http::uri::PathAndQuery>().is_ok()
        };
        if raw.path.as_ref().is_some_and(|path| path.contains('#') || !is_target(path)) {
            self.problem(&format!("{at}.path"), "must begin with / and be a path as it can stand in a URL, without #");
        }
        ProbeConfig {
            path: raw.path.clone(),
            every: self.positive_duration(&format!("{at}.every"), &raw.every),
            timeout: self.positive_duration(&format!("{at}.timeout"), &raw.timeout),
        }
    }

    fn routes(&mut self, at: &str, raw: &RawBackend, send: Send, path: &str, dialect: &Dialect) -> Vec<Route> {
        let method = if send == Send::Json { Method::POST } else { Method::GET };
        let standard = Route { method, path: vec![PathPart::Literal(path.to_owned())] };
        let mut routes = vec![standard.clone(); dialect.actions.len()];
        let mut taken = HashSet::new();
        for (name, route) in &raw.routes {
            let at = format!("{at}.routes.{name}");
            // The name of a variable may be in capitals only.
            let in_capitals = || dialect.actions.iter().position(|action| action.name.eq_ignore_ascii_case(name));
            let Some(index) = dialect.action_index(name).or_else(in_capitals) else {
                let known = dialect.actions.iter().map(|action| action.name.as_str()).collect::<Vec<_>>().join(", ");
                self.problem(&at, &format!("the dialect has no such action; it has {known}"));
                continue;
            };
            if !taken.insert(index) {
                self.problem(&at, "the action has another route, in other letters");
            }
            let mut method = standard.method.clone();
            if let Some(text) = &route.method {
                match Method::from_bytes(text.as_bytes()) {
                    Ok(chosen) if is_route_method(&chosen, send) => method = chosen,
                    _ if send == Send::Json => {
                        self.problem(
                            &format!("{at}.method"),
                            "must be POST, PUT, PATCH or DELETE: the request has a body",
                        );
                    }
                    _ => self.problem(&format!("{at}.method"), "must be GET, POST, PUT, PATCH or DELETE"),
                }
            }
            let mut parts = standard.path.clone();
            if let Some(template) = &route.path {
                let compiled = path_parts(template, dialect, &dialect.actions[index].presence);
                parts = self.read(&format!("{at}.path"), compiled).unwrap_or_default();
            }
            routes[index] = Route { method, path: parts };
        }
        routes
    }
}

fn is_route_method(method: &Method, send: Send) -> bool {
    match *method {
        Method::POST | Method::PUT | Method::PATCH | Method::DELETE => true,
        Method::GET => send != Send::Json,
        _ => false,
    }
}

fn path_parts(template: &str, dialect: &Dialect, presence: &[Presence]) -> Result<Vec<PathPart>, String> {
    let probe = template.replace(['{', '}'], "x");
    if !is_path(&probe) {
        return Err("must begin with / and be a path as it can stand in a URL, without ? and #".into());
    }
    let mut parts = Vec::new();
    let mut rest = template;
    while !rest.is_empty() {
        let (literal, tail) = rest.split_at(rest.find('{').unwrap_or(rest.len()));
        if literal.contains('}') {
            return Err("has a } without a {".into());
        }
        if !literal.is_empty() {
            parts.push(PathPart::Literal(literal.to_owned()));
        }
        let Some(tail) = tail.strip_prefix('{') else { break };
        let (name, tail) = tail.split_once('}').ok_or("has a { without a }")?;
        let field = dialect.field_index(name);
        parts.push(match field {
            None if name == dialect.action_parameter || name == "action" => PathPart::Action,
            Some(index) if presence[index] == Presence::Required => PathPart::Field(index),
            _ => return Err(format!("{{{name}}} is neither {{action}} nor a field that this action requires")),
        });
        rest = tail;
    }
    Ok(parts)
}
