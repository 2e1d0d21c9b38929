//! From the raw configuration to the one that is served: reads quantities, keys and dialects,
//! checks what belongs together, and reports everything at once.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::files::{Files, Fingerprint};
use super::listen::Address;
use super::raw::{self, RawApp, RawConfig, RawKey};
use super::scalar::{Int, Secret};
use super::source::{Problem, Sources};
use super::{AppConfig, Config, Freshness, KeyConfig, Limits, LogConfig, ShutdownConfig, TestConnection, units};
use crate::clock;
use crate::dialect::request::Strictness;
use crate::dialect::{Dialect, builtin, file};
use crate::stage::normalize;

/// Validates one raw configuration.
pub(super) struct Validator<'s> {
    sources: &'s Sources,
    pub(super) base: &'s Path,
    pub(super) files: Files,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl<'s> Validator<'s> {
    pub(super) fn new(sources: &'s Sources, base: &'s Path, problems: Vec<Problem>) -> Self {
        Self { sources, base, files: Files::new(&sources.text), problems, warnings: Vec::new() }
    }

    /// The configuration, or everything that is wrong with it; and what it was made of either way.
    pub(super) fn validate(mut self, raw: &RawConfig) -> (Result<Config, Vec<Problem>>, Fingerprint) {
        let config = self.config(raw);
        (config, self.files.fingerprint())
    }

    fn config(&mut self, raw: &RawConfig) -> Result<Config, Vec<Problem>> {
        let dialects = self.dialects(raw.dialect_dir.as_deref());
        let listeners = self.listeners(&raw.listen, &raw.listeners);
        let admin = self.admin(&raw.admin);
        let admin_address = admin.as_ref().map(|admin| admin.address);
        if let Some(admin) = admin_address.filter(|address| address.port() != 0)
            && listeners.iter().any(|listener| listener.address == Address::Tcp(admin))
        {
            self.problem("admin.address", "must not be a public listener's address");
        }
        let companion = self.companion(&raw.companion, &listeners, admin_address);
        let limits = self.limits(&raw.limits);
        let shutdown = ShutdownConfig {
            delay: self.duration("shutdown.delay", &raw.shutdown.delay),
            grace: self.duration("shutdown.grace", &raw.shutdown.grace),
        };
        let telemetry = self.telemetry(&raw.telemetry);
        let journal = self.journal(&raw.journal);
        if raw.apps.is_empty() && !self.problems.iter().any(|problem| problem.path.starts_with("apps")) {
            self.problem("apps", "there is no [[apps]] entry; nothing would be served");
        }
        let mut apps = Vec::new();
        for (index, app) in raw.apps.iter().enumerate() {
            apps.extend(self.app(&format!("apps[{index}]"), app, &dialects, &apps, raw.companion.address.is_some()));
        }
        self.doubt_lists(&listeners, companion.as_ref(), &apps);
        let is_slow = |app: &&AppConfig| app.backend.as_ref().is_some_and(|backend| shutdown.grace < backend.timeout);
        if let Some(app) = apps.iter().find(is_slow) {
            self.warn(
                "shutdown.grace",
                &format!(
                    "is shorter than the timeout of app {}'s backend: a stop may cut a running delivery off",
                    app.name
                ),
            );
        }
        if apps.iter().any(|app| app.backend.is_some()) {
            self.doubt_journal(&journal);
        }
        let (Some(admin), true) = (admin, self.problems.is_empty()) else {
            self.problems.dedup();
            return Err(std::mem::take(&mut self.problems));
        };
        Ok(Config {
            listeners,
            companion,
            admin,
            log: LogConfig { level: raw.log.level, format: raw.log.format, access: raw.log.access.0 },
            limits,
            shutdown,
            telemetry,
            journal,
            dialects,
            apps,
            warnings: std::mem::take(&mut self.warnings),
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

    pub(super) fn address(&mut self, path: &str, text: &str) -> Option<SocketAddr> {
        let address = text.parse().map_err(|_| "is not an address and port, like \"0.0.0.0:8080\"".to_owned());
        self.read(path, address)
    }

    pub(super) fn count(&mut self, path: &str, number: Int, range: std::ops::RangeInclusive<u64>) -> usize {
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
            match self.files.list(&self.base.join(dir), "toml") {
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

    fn dialect_file(&mut self, path: &Path, dialects: &mut Vec<Dialect>) {
        let name = path.display();
        let dialect = self
            .files
            .read_text(path)
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

    fn app(
        &mut self,
        at: &str,
        raw: &RawApp,
        dialects: &[Arc<Dialect>],
        others: &[AppConfig],
        has_companion: bool,
    ) -> Option<AppConfig> {
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
        if is_known {
            self.headers_differ(at, raw, &dialect, has_companion);
        }
        let backend = match &raw.backend {
            None if has_companion => {
                if raw.ready_requires_backend.0 {
                    self.problem(&format!("{at}.ready_requires_backend"), "needs a backend");
                }
                None
            }
            None => {
                self.problem(&format!("{at}.backend"), "is missing; only with [companion] an app can do without");
                return None;
            }
            Some(raw_backend) => {
                let place = format!("{at}.backend");
                let backend = self.backend(&place, raw_backend, &dialect, raw.ready_requires_backend.0);
                if !is_known {
                    // Actions of a dialect that is not known cannot be wrong.
                    self.problems.retain(|problem| !problem.path.starts_with(&format!("{place}.routes.")));
                }
                Some(backend?)
            }
        };
        if raw.test_connection == raw::RawTestConnection::Answer
            && dialect.action_of(crate::dialect::ActionKind::Test).is_none()
        {
            self.problem(&format!("{at}.test_connection"), "the dialect has no connection test");
        }
        if !raw.enforce.0 {
            self.warn(
                &format!("{at}.enforce"),
                &format!("is false: app {name} is only observed; nothing is refused, recorded or delivered once"),
            );
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
            enforce: raw.enforce.0,
            deliver_once: raw.deliver_once.0,
            hold_unconfirmed: raw.on_unconfirmed == raw::RawOnUnconfirmed::Hold,
            join_lookalikes: raw.without_order_id == raw::RawWithoutOrderId::Unanswered,
            freshness,
            ready_requires_backend: raw.ready_requires_backend.0,
            backend,
        })
    }

    /// Whether the parameters of a dialect stay apart where they become headers.
    fn headers_differ(&mut self, at: &str, raw: &RawApp, dialect: &Dialect, has_companion: bool) {
        let sender = match &raw.backend {
            Some(backend) if matches!(backend.send, raw::RawSend::Headers) => "send = \"headers\"",
            _ if has_companion => "[companion]",
            _ => return,
        };
        if let Some((one, other, header)) = normalize::same_header(dialect) {
            self.problem(
                &format!("{at}.dialect"),
                &format!("cannot be used with {sender}: its parameters {one} and {other} are both the header {header}"),
            );
        }
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
            let mut time = |name: &str, text: &Option<String>| {
                let time = text.as_ref().map(|text| text.parse::<Timestamp>());
                let wrong = "is not a time like \"2026-11-30T00:00:00+08:00\"";
                time.and_then(|time| self.read(&format!("{at}.{name}"), time.map_err(|_| wrong.to_owned())))
            };
            let (not_before, not_after) = (time("not_before", &key.not_before), time("not_after", &key.not_after));
            if not_before.zip(not_after).is_some_and(|(begin, end)| end < begin) {
                self.problem(&format!("{at}.not_after"), "must not be before not_before");
            }
            let Some((place, secret)) = self.secret(&at, &key.file, &key.env, &key.value) else { continue };
            match dialect.signing_key(secret.expose()) {
                Ok(signing) => {
                    let active = key.state == raw::RawKeyState::Active;
                    keys.push(KeyConfig { id, active, not_before, not_after, key: signing, secret });
                }
                Err(error) => self.problem(&place, &error.to_string()),
            }
        }
        if !raw.iter().any(|key| key.state == raw::RawKeyState::Active) {
            self.problem(&format!("{at}.keys"), "there is no active key; no request could be verified");
        } else if !keys.is_empty() && !keys.iter().any(|key| key.verifies_at(clock::now())) {
            self.warn(
                &format!("{at}.keys"),
                "no active key verifies now: not_before is still to come, or not_after has passed, for all of them",
            );
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
                match self.files.read_secret(&self.base.join(file)) {
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
}

/// A path that `http::Uri` takes and that a platform can call.
pub(super) fn is_path(path: &str) -> bool {
    path.starts_with('/')
        && !path.contains(['?', '#'])
        && path.is_ascii()
        && path.parse::<http::uri::PathAndQuery>().is_ok()
}

pub(super) fn is_host(host: &str) -> bool {
    let authority = host.parse::<http::uri::Authority>();
    authority.is_ok_and(|authority| authority.port().is_none() && authority.host() == host && !host.contains('@'))
}
