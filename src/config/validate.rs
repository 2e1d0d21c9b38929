//! From the raw configuration to the one that is served: reads quantities, keys and dialects,
//! checks what belongs together, and reports everything at once.

use std::collections::HashSet;
use std::fs;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use zeroize::Zeroizing;

use super::raw::{self, RawApp, RawBackend, RawConfig, RawKey};
use super::scalar::{Int, Secret};
use super::source::{Problem, Sources};
use super::{
    AppConfig, BackendConfig, Config, Endpoint, Freshness, KeyConfig, Limits, LogConfig, PathPart, Route, Send,
    ShutdownConfig, TestConnection, units,
};
use crate::dialect::request::Strictness;
use crate::dialect::{Dialect, Presence, builtin, file};

/// Validates one raw configuration.
pub(super) struct Validator<'s> {
    sources: &'s Sources,
    pub(super) base: &'s Path,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl<'s> Validator<'s> {
    pub(super) fn new(sources: &'s Sources, base: &'s Path, problems: Vec<Problem>) -> Self {
        Self { sources, base, problems, warnings: Vec::new() }
    }

    pub(super) fn validate(mut self, raw: &RawConfig) -> Result<Config, Vec<Problem>> {
        let dialects = self.dialects(raw.dialect_dir.as_deref());
        let listen = self.address("listen.address", &raw.listen.address);
        let admin = self.address("admin.address", &raw.admin.address);
        if listen == admin && listen.is_some_and(|address| address.port() != 0) {
            self.problem("admin.address", "must not be the public listener's address");
        }
        let trusted_proxies = self.networks("listen.trusted_proxies", &raw.listen.trusted_proxies);
        self.introductions(&raw.listen);
        let limits = self.limits(&raw.limits);
        let shutdown = ShutdownConfig {
            delay: self.duration("shutdown.delay", &raw.shutdown.delay),
            grace: self.duration("shutdown.grace", &raw.shutdown.grace),
        };
        let journal = self.journal(&raw.journal);
        if raw.apps.is_empty() && !self.problems.iter().any(|problem| problem.path.starts_with("apps")) {
            self.problem("apps", "there is no [[apps]] entry; nothing would be served");
        }
        let mut apps = Vec::new();
        for (index, app) in raw.apps.iter().enumerate() {
            apps.extend(self.app(&format!("apps[{index}]"), app, &dialects, &apps));
        }
        self.doubt_lists(listen, &trusted_proxies, &apps);
        for app in &apps {
            if shutdown.grace < app.backend.timeout {
                self.warn(
                    "shutdown.grace",
                    &format!(
                        "is shorter than the timeout of app {}'s backend: a stop may cut a running delivery off",
                        app.name
                    ),
                );
                break;
            }
        }
        let (Some(listen), Some(admin), true) = (listen, admin, self.problems.is_empty()) else {
            self.problems.dedup();
            return Err(self.problems);
        };
        Ok(Config {
            listen,
            trusted_proxies,
            proxy_protocol: raw.listen.proxy_protocol.0,
            admin,
            log: LogConfig { level: raw.log.level, format: raw.log.format, access: raw.log.access.0 },
            limits,
            shutdown,
            journal,
            dialects,
            apps,
            warnings: self.warnings,
        })
    }

    pub(super) fn problem(&mut self, path: &str, message: &str) {
        let known = self.problems.iter().any(|problem| problem.path == path);
        // A value that could not even be read was replaced by a default: one complaint will do.
        if !known {
            self.problems.push(self.sources.problem(path, message));
        }
    }

    pub(super) fn warn(&mut self, path: &str, message: &str) {
        self.warnings.push(self.sources.problem(path, message));
    }

    pub(super) fn read<T>(&mut self, path: &str, value: Result<T, String>) -> Option<T> {
        value.map_err(|message| self.problem(path, &message)).ok()
    }

    pub(super) fn duration(&mut self, path: &str, text: &str) -> Duration {
        self.read(path, units::duration(text)).unwrap_or_default()
    }

    pub(super) fn positive_duration(&mut self, path: &str, text: &str) -> Duration {
        let duration = self.duration(path, text);
        if duration.is_zero() {
            self.problem(path, "must be more than zero");
        }
        duration
    }

    fn address(&mut self, path: &str, text: &str) -> Option<SocketAddr> {
        let address = text.parse().map_err(|_| "is not an address and port, like \"0.0.0.0:8080\"".to_owned());
        self.read(path, address)
    }

    fn count(&mut self, path: &str, number: Int, range: std::ops::RangeInclusive<u64>) -> usize {
        if !range.contains(&number.0) {
            self.problem(path, &format!("must be from {} to {}", range.start(), range.end()));
        }
        usize::try_from(number.0).unwrap_or(usize::MAX)
    }

    fn size(&mut self, path: &str, text: &str, range: std::ops::RangeInclusive<usize>) -> usize {
        let size = self.read(path, units::bytes(text)).unwrap_or(*range.start());
        if !range.contains(&size) {
            self.problem(path, &format!("must be from {} to {} bytes", range.start(), range.end()));
        }
        size
    }

    fn limits(&mut self, raw: &raw::RawLimits) -> Limits {
        Limits {
            parameters: self.count("limits.parameters", raw.parameters, 4..=4_096),
            // http::Uri ends at 65,534 bytes, path included.
            query_bytes: self.size("limits.query_bytes", &raw.query_bytes, 256..=60 * 1024),
            reply_bytes: self.size("limits.reply_bytes", &raw.reply_bytes, 256..=64 * 1024 * 1024),
            connections: self.count("limits.connections", raw.connections, 1..=1_000_000),
            in_flight: self.count("limits.in_flight", raw.in_flight, 1..=1_000_000),
            failed_per_minute: {
                let count = self.count("limits.failed_per_minute", raw.failed_per_minute, 0..=1_000_000);
                NonZeroU64::new(u64::try_from(count).unwrap_or(u64::MAX))
            },
            header_timeout: self.positive_duration("limits.header_timeout", &raw.header_timeout),
            idle_timeout: self.positive_duration("limits.idle_timeout", &raw.idle_timeout),
        }
    }

    fn dialects(&mut self, dir: Option<&str>) -> Vec<Arc<Dialect>> {
        let mut dialects = match builtin::load() {
            Ok(dialects) => dialects,
            Err(problems) => {
                self.problem("", &format!("a built-in dialect is broken: {problems}"));
                Vec::new()
            }
        };
        if let Some(dir) = dir {
            match self.dialect_files(dir) {
                Ok(files) => {
                    for path in files {
                        self.dialect_file(&path, &mut dialects);
                    }
                }
                Err(error) => self.problem("dialect_dir", &format!("cannot be read: {error}")),
            }
        }
        dialects.into_iter().map(Arc::new).collect()
    }

    fn dialect_files(&self, dir: &str) -> std::io::Result<Vec<PathBuf>> {
        let mut files = fs::read_dir(self.base.join(dir))?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<std::io::Result<Vec<_>>>()?;
        files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
        files.sort();
        Ok(files)
    }

    fn dialect_file(&mut self, path: &Path, dialects: &mut Vec<Dialect>) {
        let name = path.display();
        let dialect = fs::read_to_string(path)
            .map_err(|error| format!("{name}: cannot be read: {error}"))
            .and_then(|text| file::load(&text).map_err(|problems| format!("{name}: {problems}")));
        match dialect {
            Ok(dialect) if dialects.iter().any(|known| known.name == dialect.name) => {
                // Replacing a dialect silently would change what is verified.
                let message =
                    format!("{name}: there is already a dialect called {}; give it another name", dialect.name);
                self.problems.push(self.sources.problem("dialect_dir", &message));
            }
            Ok(dialect) => dialects.push(dialect),
            Err(message) => self.problems.push(self.sources.problem("dialect_dir", &message)),
        }
    }

    fn app(&mut self, at: &str, raw: &RawApp, dialects: &[Arc<Dialect>], others: &[AppConfig]) -> Option<AppConfig> {
        let name = raw.name.clone().unwrap_or_default();
        let plain = |char: char| char.is_ascii_alphanumeric() || char == '-' || char == '_';
        if raw.name.is_none() {
            self.problem(&format!("{at}.name"), "is missing");
        } else if name.is_empty() || name.len() > 64 || !name.chars().all(plain) || name == "unknown" {
            self.problem(&format!("{at}.name"), "must be 1 to 64 letters, digits, - or _, and not \"unknown\"");
        } else if others.iter().any(|other| other.name == name) {
            self.problem(&format!("{at}.name"), "is used by another app");
        }
        let host = raw.host.as_ref().map(|host| host.to_ascii_lowercase());
        if host.as_deref().is_some_and(|host| !is_host(host)) {
            self.problem(&format!("{at}.host"), "must be a host name or address, without scheme and port");
        }
        let path = raw.path.clone().unwrap_or_default();
        if raw.path.is_none() {
            self.problem(&format!("{at}.path"), "is missing");
        } else if !is_path(&path) {
            self.problem(
                &format!("{at}.path"),
                "must begin with / and be a path as it can stand in a URL, without ? and #",
            );
        } else if others.iter().any(|other| other.path == path && other.host == host) {
            self.problem(&format!("{at}.path"), "another app has this host and path");
        }
        let allow_from = self.networks(&format!("{at}.allow_from"), &raw.allow_from);
        let freshness = Freshness {
            max_age: self.positive_duration(&format!("{at}.freshness.max_age"), &raw.freshness.max_age),
            max_future: self.duration(&format!("{at}.freshness.max_future"), &raw.freshness.max_future),
        };
        let dialect = raw.dialect.as_ref().and_then(|name| dialects.iter().find(|known| known.name == *name));
        if dialect.is_none() {
            let known = dialects.iter().map(|dialect| dialect.name.as_str()).collect::<Vec<_>>().join(", ");
            let what = if raw.dialect.is_some() { "is not known" } else { "is missing" };
            self.problem(&format!("{at}.dialect"), &format!("{what}; known: {known}"));
        }
        // Any dialect will do to find what else is wrong; such an app is not served.
        let is_known = dialect.is_some();
        let dialect = Arc::clone(dialect.or(dialects.first())?);
        let keys = self.keys(at, &raw.keys, &dialect);
        let backend = self.backend(&format!("{at}.backend"), &raw.backend, &dialect);
        if !is_known {
            // Actions of a dialect that is not known cannot be wrong.
            self.problems.retain(|problem| !problem.path.starts_with(&format!("{at}.backend.routes.")));
        }
        let backend = backend?;
        if raw.test_connection == raw::RawTestConnection::Answer
            && dialect.action_of(crate::dialect::ActionKind::Test).is_none()
        {
            self.problem(&format!("{at}.test_connection"), "the dialect has no connection test");
        }
        Some(AppConfig {
            name,
            host,
            path,
            allow_from,
            dialect,
            keys,
            strictness: match raw.contract {
                raw::RawContract::Lenient => Strictness::Lenient,
                raw::RawContract::Strict => Strictness::Strict,
            },
            test_connection: match raw.test_connection {
                raw::RawTestConnection::Forward => TestConnection::Forward,
                raw::RawTestConnection::Probe => TestConnection::Probe,
                raw::RawTestConnection::Answer => TestConnection::Answer,
            },
            deliver_once: raw.deliver_once.0,
            hold_unconfirmed: raw.on_unconfirmed == raw::RawOnUnconfirmed::Hold,
            join_lookalikes: raw.without_order_id == raw::RawWithoutOrderId::Unanswered,
            freshness,
            backend,
        })
    }

    fn keys(&mut self, at: &str, raw: &[RawKey], dialect: &Dialect) -> Vec<KeyConfig> {
        let mut keys: Vec<KeyConfig> = Vec::new();
        let mut ids = HashSet::new();
        for (index, key) in raw.iter().enumerate() {
            let at = format!("{at}.keys[{index}]");
            let id = key.id.clone().unwrap_or_default();
            if id.is_empty() || id.len() > 64 || !id.bytes().all(|byte| byte.is_ascii_graphic()) {
                self.problem(
                    &format!("{at}.id"),
                    "must be 1 to 64 visible ASCII characters; it is logged, the key is not",
                );
            } else if !ids.insert(id.clone()) {
                self.problem(&format!("{at}.id"), "is used by another key of this app");
            }
            let Some((place, secret)) = self.secret(&at, &key.file, &key.env, &key.value) else { continue };
            match dialect.signing_key(secret.expose()) {
                Ok(signing) => {
                    keys.push(KeyConfig { id, active: key.state == raw::RawKeyState::Active, key: signing, secret });
                }
                Err(error) => self.problem(&place, &error.to_string()),
            }
        }
        if !raw.iter().any(|key| key.state == raw::RawKeyState::Active) {
            self.problem(&format!("{at}.keys"), "there is no active key; no request could be verified");
        }
        keys
    }

    /// The text of a secret and the path of where it came from.
    pub(super) fn secret(
        &mut self,
        at: &str,
        file: &Option<String>,
        env: &Option<String>,
        value: &Option<Secret>,
    ) -> Option<(String, Secret)> {
        match (file, env, value) {
            (Some(file), None, None) => {
                let place = format!("{at}.file");
                match read_secret(&self.base.join(file)) {
                    Ok(secret) => Some((place, secret)),
                    Err(error) => {
                        self.problem(&place, &format!("cannot be read: {error}"));
                        None
                    }
                }
            }
            (None, Some(name), None) => {
                let place = format!("{at}.env");
                let value = std::env::var_os(name).and_then(|value| value.into_string().ok());
                if value.is_none() {
                    self.problem(&place, "there is no such environment variable");
                }
                value.map(|value| (place, Secret::new(value)))
            }
            (None, None, Some(value)) => Some((format!("{at}.value"), value.clone())),
            _ => {
                // A value of a wrong type was reported already and looks like none here.
                if !self.problems.iter().any(|problem| problem.path.starts_with(at)) {
                    self.problem(at, "must have exactly one of file, env and value");
                }
                None
            }
        }
    }

    fn backend(&mut self, at: &str, raw: &RawBackend, dialect: &Dialect) -> Option<BackendConfig> {
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
        let ca_pem = raw.ca_file.as_ref().and_then(|file| {
            let pem = fs::read(self.base.join(file)).map_err(|error| format!("cannot be read: {error}"));
            self.read(&format!("{at}.ca_file"), pem)
        });
        let routes = self.routes(at, raw, send, parsed.as_ref().map_or("/", |(_, path)| path), dialect);
        let (endpoint, _) = parsed?;
        let backend =
            BackendConfig { endpoint, send, answer_within, timeout, connect_timeout, keep_alive, ca_pem, routes };
        if let Err(error) = crate::backend::tls_config(&backend) {
            self.problem(&format!("{at}.ca_file"), &error);
        }
        Some(backend)
    }

    fn routes(&mut self, at: &str, raw: &RawBackend, send: Send, path: &str, dialect: &Dialect) -> Vec<Route> {
        let method = if send == Send::Json { Method::POST } else { Method::GET };
        let standard = Route { method, path: vec![PathPart::Literal(path.to_owned())] };
        let mut routes = vec![standard.clone(); dialect.actions.len()];
        for (name, route) in &raw.routes {
            let at = format!("{at}.routes.{name}");
            let Some(index) = dialect.action_index(name) else {
                let known = dialect.actions.iter().map(|action| action.name.as_str()).collect::<Vec<_>>().join(", ");
                self.problem(&at, &format!("the dialect has no such action; it has {known}"));
                continue;
            };
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

/// Reads a key file; one trailing newline is an editor's, not the key's.
///
/// # Errors
/// The reason why the file cannot be read as text.
pub fn read_secret(path: &Path) -> std::io::Result<Secret> {
    let text = Zeroizing::new(fs::read_to_string(path)?);
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(Secret::new(text.strip_suffix('\r').unwrap_or(text)))
}

fn is_route_method(method: &Method, send: Send) -> bool {
    match *method {
        Method::POST | Method::PUT | Method::PATCH | Method::DELETE => true,
        Method::GET => send != Send::Json,
        _ => false,
    }
}

/// A path that `http::Uri` takes and that a platform can call.
fn is_path(path: &str) -> bool {
    path.starts_with('/')
        && !path.contains(['?', '#'])
        && path.is_ascii()
        && path.parse::<http::uri::PathAndQuery>().is_ok()
}

fn is_host(host: &str) -> bool {
    let authority = host.parse::<http::uri::Authority>();
    authority.is_ok_and(|authority| authority.port().is_none() && authority.host() == host && !host.contains('@'))
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
