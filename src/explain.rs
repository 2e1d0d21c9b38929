//! What a signed request says, whether it verifies, and if not, why: what `spigate explain` and
//! the page's workbench tell. Never a key, and never a signature that would have been right.

use jiff::Timestamp;

use crate::config::scalar::Secret;
use crate::config::{AppConfig, Freshness, KeyConfig};
use crate::diagnosis::{self, Candidate, Explanation};
use crate::dialect::Dialect;
use crate::dialect::field::Decoded;
use crate::dialect::request::{Strictness, Value};
use crate::dialect::time::iso8601;
use crate::plain::{plain, plain_lines};
use crate::query::{Lookup, Params};
use crate::stage::freshness;

/// Keys that go with a dialect.
pub struct Context {
    /// The dialect.
    pub dialect: Dialect,
    /// The keys.
    pub keys: Vec<Key>,
    /// The app whose they are, if they are an app's.
    pub app: Option<AppContext>,
}

/// What only a configuration tells.
pub struct AppContext {
    name: String,
    path: String,
    freshness: Freshness,
    strictness: Strictness,
}

/// A key that may have signed.
pub struct Key {
    /// Its name.
    pub name: String,
    /// Its text.
    pub secret: Secret,
    /// Why the gateway would not verify with it, if it would not.
    pub mistake: Option<&'static str>,
}

impl Context {
    /// The keys of an app, as they are at a time.
    pub fn of(app: &AppConfig, now: Timestamp) -> Self {
        let named = |key: &KeyConfig| Key {
            name: format!("{} of app {}", key.id, app.name),
            secret: key.secret.clone(),
            mistake: why_not(key, now),
        };
        Self {
            dialect: (*app.dialect).clone(),
            keys: app.keys.iter().map(named).collect(),
            app: Some(AppContext {
                name: app.name.clone(),
                path: app.path.clone(),
                freshness: app.freshness,
                strictness: app.strictness,
            }),
        }
    }
}

/// What a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// The app that it belongs to.
    App,
    /// Its dialect.
    Dialect,
    /// One of its parameters, and what it stands for.
    Parameter,
    /// The string that its signature is of.
    Signed,
    /// When it was signed.
    Time,
    /// Whether it verifies.
    Signature,
    /// Whether it keeps the contract.
    Contract,
}

impl Topic {
    /// Its name in listings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::App => "app",
            Self::Dialect => "dialect",
            Self::Parameter => "parameter",
            Self::Signed => "signed",
            Self::Time => "time",
            Self::Signature => "signature",
            Self::Contract => "contract",
        }
    }
}

/// What can be said of a request.
#[derive(Debug, Default)]
pub struct Report {
    /// Line by line, without control characters.
    pub lines: Vec<(Topic, String)>,
    /// Why the gateway would refuse it, if it would.
    pub problem: Option<Problem>,
}

/// Why the gateway would refuse a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Problem {
    /// For a human.
    pub message: String,
    /// What the signer did wrong, where that is known.
    pub mistakes: Vec<&'static str>,
}

/// Why nothing can be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// There is no query in the input.
    NoQuery,
    /// There is no key to try.
    NoKey,
}

impl Report {
    fn say(&mut self, topic: Topic, text: &str) {
        self.lines.push((topic, plain(text)));
    }

    fn refuse(mut self, message: &str) -> Self {
        self.problem = Some(Problem { message: plain_lines(message), mistakes: Vec::new() });
        self
    }
}

/// Says what is known of the request in `input`: a URL, a line of an access log, a query.
///
/// # Errors
/// Nothing can be said.
pub fn explain(
    input: &str,
    contexts: &[Context],
    builtin: &[Dialect],
    signature_header: Option<&str>,
    now: Timestamp,
) -> Result<Report, Unusable> {
    let (path, query) = query_in(input).ok_or(Unusable::NoQuery)?;
    let mut report = Report::default();
    let params = match Params::parse(query.as_bytes(), usize::MAX) {
        Ok(params) => params,
        Err(error) => return Ok(report.refuse(&format!("{error}: spigate answers malformed_request"))),
    };
    let own = own(contexts, path, &params).ok_or(Unusable::NoKey)?;
    let dialect = &own.dialect;
    say_request(&mut report, own, &params);

    let in_query = match params.get(&dialect.signature.parameter) {
        Lookup::Once(text) => Some(text),
        Lookup::Absent => None,
        Lookup::Repeated => return Ok(report.refuse("the signature stands twice: malformed_request")),
    };
    let Some(signature) = in_query.or(signature_header) else {
        let header = dialect.signature.header.as_ref().map_or_else(String::new, |name| {
            format!(
                "; if it came as the header {name}, give it too, and check that nothing in front drops it (nginx: \
                 underscores_in_headers on)"
            )
        });
        return Ok(report.refuse(&format!("there is no signature: signature_missing{header}")));
    };
    let time = say_time(&mut report, dialect, &params, now);
    match diagnose(contexts, own, builtin, query, signature) {
        Some(Explanation { key, mistakes, .. }) if mistakes.is_empty() => {
            report.say(Topic::Signature, &format!("verifies with key {key}"));
        }
        Some(Explanation { key, dialect, mistakes }) => {
            let message = format!(
                "the signature does not verify for the gateway. It would with key {key} and dialect {dialect} if this is \
                 what happened:"
            );
            let mut report = report.refuse(&message);
            report.problem.iter_mut().for_each(|problem| problem.mistakes.clone_from(&mistakes));
            return Ok(report);
        }
        None => {
            return Ok(report.refuse(
                "the signature does not verify, and no known mistake explains it: most likely another key, or a \
                 parameter that was changed, added or lost on the way",
            ));
        }
    }
    let strictness = own.app.as_ref().map_or(Strictness::Lenient, |app| app.strictness);
    let request = match dialect.check_request(params, time, strictness) {
        Ok(request) => request,
        Err(error) => return Ok(report.refuse(&format!("contract   {error}"))),
    };
    for field in request.lacking().iter().map(|&field| &dialect.fields[field].name) {
        let text = format!("{field} is documented as required and missing; contract = \"strict\" refuses it");
        report.say(Topic::Contract, &text);
    }
    let count = request.documented(dialect).filter(|(_, value)| !matches!(value, Value::Time { .. })).count();
    report.say(Topic::Contract, &format!("kept; {count} documented fields"));
    Ok(match (&own.app, time, &dialect.time) {
        (_, None, Some(_)) => report.refuse("a request without a readable time is refused"),
        (Some(app), Some(time), _) => match freshness::within(&app.freshness, time, now) {
            Ok(()) => report,
            Err(rejection) => report.refuse(&format!("with this configuration: {rejection}")),
        },
        _ => report,
    })
}

fn say_request(report: &mut Report, own: &Context, params: &Params) {
    let dialect = &own.dialect;
    if let Some(app) = &own.app {
        report.say(Topic::App, &app.name);
    }
    report.say(Topic::Dialect, &dialect.name);
    for param in params.received().filter(|param| param.name != dialect.signature.parameter) {
        let field = dialect.fields.iter().find(|field| field.name == param.name);
        let decoded = field.and_then(|field| match field.kind.decode(param.value) {
            Ok(Decoded::Text(text) | Decoded::Object(text)) => Some(text),
            Ok(_) => None,
            Err(why) => Some(format!("!! {why}")),
        });
        let note = decoded.map_or_else(String::new, |text| format!("  =  {text}"));
        let known = if dialect.is_protocol_parameter(param.name) { "" } else { "  (not documented)" };
        report.say(Topic::Parameter, &format!("{} = {}{note}{known}", param.name, param.value));
    }
    match dialect.canonical_string("GET", params) {
        Ok(text) => report.say(Topic::Signed, &text),
        Err(error) => report.say(Topic::Signed, &error.to_string()),
    }
}

/// Says how old the request is; gives its time if it can be read.
fn say_time(report: &mut Report, dialect: &Dialect, params: &Params, now: Timestamp) -> Option<Timestamp> {
    let rule = dialect.time.as_ref()?;
    let Lookup::Once(text) = params.get(&rule.parameter) else {
        report.say(Topic::Time, &format!("{} is missing: timestamp_missing", rule.parameter));
        return None;
    };
    let time = rule.format.parse(text);
    match time {
        Some(time) => {
            let age = now.as_second() - time.as_second();
            let words = if age >= 0 { format!("{age} s old") } else { format!("{} s in the future", -age) };
            report.say(Topic::Time, &format!("{}, {words}", iso8601(time)));
        }
        None => report.say(Topic::Time, &format!("is not {}: timestamp_invalid", rule.format.describe())),
    }
    time
}

/// The context that the request belongs to: the app at its path, else the first whose dialect
/// has its action and its time, else the first.
fn own<'c>(contexts: &'c [Context], path: &str, params: &Params) -> Option<&'c Context> {
    let at_path = |context: &&Context| context.app.as_ref().is_some_and(|app| app.path == path);
    let knows = |context: &&Context| {
        let dialect = &context.dialect;
        let has_time = dialect.time.as_ref().is_none_or(|rule| params.get(&rule.parameter) != Lookup::Absent);
        let has_action = |name| dialect.action_index(name).is_some();
        has_time && matches!(params.get(&dialect.action_parameter), Lookup::Once(name) if has_action(name))
    };
    contexts.iter().find(at_path).or_else(|| contexts.iter().find(knows)).or(contexts.first())
}

/// Tries every key with every dialect, the request's own first.
fn diagnose(
    contexts: &[Context],
    own: &Context,
    builtin: &[Dialect],
    query: &str,
    signature: &str,
) -> Option<Explanation> {
    let mut dialects = vec![&own.dialect];
    for dialect in contexts.iter().map(|context| &context.dialect).chain(builtin) {
        if !dialects.iter().any(|known| known.name == dialect.name) {
            dialects.push(dialect);
        }
    }
    let app_of = |context: &Context| context.app.as_ref().map(|app| app.name.clone());
    let mut keys: Vec<Candidate<'_>> = Vec::new();
    for context in std::iter::once(own).chain(contexts) {
        for key in &context.keys {
            let foreign = app_of(context) != app_of(own);
            let mistake = if foreign { Some("signed with a key of another app") } else { key.mistake };
            if !keys.iter().any(|known| known.name == key.name) {
                keys.push(Candidate { name: key.name.clone(), secret: key.secret.expose(), mistake });
            }
        }
    }
    diagnosis::explain(&dialects, &keys, query, signature)
}

fn why_not(key: &KeyConfig, now: Timestamp) -> Option<&'static str> {
    if !key.active {
        return Some("signed with a retired key of the app");
    }
    let in_time = key.verifies_at(now);
    (!in_time).then_some("signed with a key of the app outside of its not_before and not_after")
}

/// Path and query in a URL, a request line or a log line; an empty path where there is only a
/// query.
fn query_in(input: &str) -> Option<(&str, &str)> {
    let line = input.lines().find(|line| line.contains('?') || line.contains('='))?.trim();
    let ends = |char: char| char.is_whitespace() || matches!(char, '"' | '\'' | '#' | '`');
    // The first ? begins the query; white space, a quote or a fragment ends it.
    let (before, query) = line.split_once('?').unwrap_or(("", line));
    let query = &query[..query.find(ends).unwrap_or(query.len())];
    let url = &before[before.rfind(ends).map_or(0, |at| at + 1)..];
    let after_scheme = url.split_once("://").map_or(url, |(_, rest)| rest);
    let path = after_scheme.find('/').map_or("", |at| &after_scheme[at..]);
    query.contains('=').then_some((path, query))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_query_in_what_people_paste() {
        for input in [
            "https://h/spi?a=1&b=2",
            "/spi?a=1&b=2",
            "a=1&b=2",
            "?a=1&b=2",
            "\n  GET /spi?a=1&b=2 HTTP/1.1\r\nHost: h\r\n",
            r#"10.0.0.1 - - [22/Nov/2026:10:00:00 +0000] "GET /spi?a=1&b=2 HTTP/1.1" 401 134 "-" "x?y=z""#,
            "curl -i 'http://h/spi?a=1&b=2'",
            "http://h/spi?a=1&b=2#part",
        ] {
            let (path, query) = query_in(input).unwrap();
            assert_eq!(query, "a=1&b=2", "{input}");
            assert_eq!(path, if input.contains("/spi") { "/spi" } else { "" }, "{input}");
        }
        assert_eq!(query_in(""), None);
        assert_eq!(query_in("hello"), None);
    }
}
