//! `spigate explain`: what a signed URL says, whether it verifies, and if not, why.

use std::io::Read as _;
use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;

use super::signing::{DialectArgs, read_key};
use super::{Failure, load_config, terminal};
use crate::clock;
use crate::config::Freshness;
use crate::config::scalar::Secret;
use crate::diagnosis::{self, Candidate, Explanation};
use crate::dialect::request::{Strictness, Value};
use crate::dialect::{Dialect, builtin};
use crate::query::{Lookup, Params};
use crate::stage::freshness;

/// Arguments of `spigate explain`.
#[derive(Args)]
pub struct Explain {
    /// A URL, a line of an access log, or - for standard input
    #[arg(default_value = "-")]
    url: String,
    /// File with the key; may be repeated
    #[arg(long, value_name = "FILE")]
    key_file: Vec<PathBuf>,
    #[command(flatten)]
    dialect: DialectArgs,
    /// Take keys and dialects from the apps of a configuration
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only this app of the configuration
    #[arg(long, requires = "config")]
    app: Option<String>,
    /// The signature's header, where the signature came in one
    #[arg(long, value_name = "VALUE")]
    signature_header: Option<String>,
}

/// Keys that go with a dialect: an app's, or those given on the command line.
struct Context {
    dialect: Dialect,
    keys: Vec<Key>,
    app: Option<AppContext>,
}

/// What only a configuration tells.
struct AppContext {
    name: String,
    path: String,
    freshness: Freshness,
}

struct Key {
    name: String,
    secret: Secret,
    /// Why the gateway would not verify with it, if it would not.
    mistake: Option<&'static str>,
}

impl Explain {
    /// Runs the command.
    ///
    /// # Errors
    /// A request that the gateway would refuse, or input that holds no query.
    pub fn run(&self) -> Result<(), Failure> {
        let input = self.input()?;
        let (path, query) = query_in(&input).ok_or_else(|| {
            Failure::unusable("there is no query in the input: a URL or a log line with one is needed")
        })?;
        let contexts = self.contexts()?;
        let params = Params::parse(query.as_bytes(), usize::MAX)
            .map_err(|error| Failure::negative(format!("{error}: spigate answers malformed_request")))?;
        let Some(own) = own(&contexts, path, &params) else {
            return Err(Failure::unusable("there is no key; give --key-file, or --config (and an --app of it)"));
        };
        let dialect = &own.dialect;
        show_request(own, &params);

        let in_query = match params.get(&dialect.signature.parameter) {
            Lookup::Once(text) => Some(text),
            Lookup::Absent => None,
            Lookup::Repeated => return Err(Failure::negative("the signature stands twice: malformed_request")),
        };
        let Some(signature) = in_query.or(self.signature_header.as_deref()) else {
            let header = dialect.signature.header.as_ref().map_or_else(String::new, |name| {
                format!(
                    "; if it came as the header {name}, give it with --signature-header, and check that nothing in \
                     front drops it (nginx: underscores_in_headers on)"
                )
            });
            return Err(Failure::negative(format!("there is no signature: signature_missing{header}")));
        };
        let time = show_time(dialect, &params);
        let builtin = builtin::load().map_err(Failure::unusable)?;
        conclude(explain(&contexts, own, &builtin, query, signature))?;
        show_contract(dialect, params, time)?;
        match (&own.app, time, &dialect.time) {
            (_, None, Some(_)) => Err(Failure::negative("a request without a readable time is refused")),
            (Some(app), Some(time), _) => freshness::within(&app.freshness, time, clock::now())
                .map_err(|rejection| Failure::negative(format!("with this configuration: {rejection}"))),
            _ => Ok(()),
        }
    }

    fn input(&self) -> Result<String, Failure> {
        if self.url != "-" {
            return Ok(self.url.clone());
        }
        let mut text = String::new();
        std::io::stdin()
            .take(1024 * 1024)
            .read_to_string(&mut text)
            .map_err(|error| Failure::unusable(format!("standard input: {error}")))?;
        Ok(text)
    }

    fn contexts(&self) -> Result<Vec<Context>, Failure> {
        let mut contexts = Vec::new();
        if let Some(path) = &self.config {
            for app in load_config(path, Vec::new())?.apps {
                if self.app.as_ref().is_some_and(|name| *name != app.name) {
                    continue;
                }
                let named = |key: &crate::config::KeyConfig| Key {
                    name: format!("{} of app {}", key.id, app.name),
                    secret: key.secret.clone(),
                    mistake: why_not(key),
                };
                contexts.push(Context {
                    dialect: (*app.dialect).clone(),
                    keys: app.keys.iter().map(named).collect(),
                    app: Some(AppContext { name: app.name, path: app.path, freshness: app.freshness }),
                });
            }
        }
        if !self.key_file.is_empty() {
            // Without a dialect given, all of them are looked at.
            let dialects = if self.dialect.is_given() {
                vec![self.dialect.load()?]
            } else {
                builtin::load().map_err(Failure::unusable)?
            };
            for dialect in dialects {
                let keys = self
                    .key_file
                    .iter()
                    .map(|path| Ok(Key { name: path.display().to_string(), secret: read_key(path)?, mistake: None }));
                contexts.push(Context { dialect, keys: keys.collect::<Result<_, Failure>>()?, app: None });
            }
        }
        Ok(contexts)
    }
}

/// Says how old the request is; gives its time if it can be read.
fn show_time(dialect: &Dialect, params: &Params) -> Option<Timestamp> {
    let rule = dialect.time.as_ref()?;
    let Lookup::Once(text) = params.get(&rule.parameter) else {
        terminal::say(&format!("time       {} is missing: timestamp_missing", rule.parameter));
        return None;
    };
    let time = rule.format.parse(text);
    match time {
        Some(time) => {
            let age = clock::now().as_second() - time.as_second();
            let words = if age >= 0 { format!("{age} s old") } else { format!("{} s in the future", -age) };
            terminal::say(&format!("time       {}, {words}", crate::dialect::time::iso8601(time)));
        }
        None => terminal::say(&format!("time       is not {}: timestamp_invalid", rule.format.describe())),
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
fn explain(
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

fn why_not(key: &crate::config::KeyConfig) -> Option<&'static str> {
    if !key.active {
        return Some("signed with a retired key of the app");
    }
    let in_time = key.verifies_at(clock::now());
    (!in_time).then_some("signed with a key of the app outside of its not_before and not_after")
}

fn show_request(own: &Context, params: &Params) {
    let dialect = &own.dialect;
    if let Some(app) = &own.app {
        terminal::say(&format!("app        {}", app.name));
    }
    terminal::say(&format!("dialect    {}", dialect.name));
    for param in params.received().filter(|param| param.name != dialect.signature.parameter) {
        let field = dialect.fields.iter().find(|field| field.name == param.name);
        let decoded = field.and_then(|field| match field.kind.decode(param.value) {
            Ok(crate::dialect::field::Decoded::Text(text) | crate::dialect::field::Decoded::Object(text)) => Some(text),
            Ok(_) => None,
            Err(why) => Some(format!("!! {why}")),
        });
        let note = decoded.map_or_else(String::new, |text| format!("  =  {text}"));
        let known = if dialect.is_protocol_parameter(param.name) { "" } else { "  (not documented)" };
        terminal::say(&terminal::plain(&format!("parameter  {} = {}{note}{known}", param.name, param.value)));
    }
    match dialect.canonical_string("GET", params) {
        Ok(text) => terminal::say(&terminal::plain(&format!("signed     {text}"))),
        Err(error) => terminal::say(&format!("signed     {error}")),
    }
}

fn conclude(explanation: Option<Explanation>) -> Result<(), Failure> {
    match explanation {
        Some(Explanation { key, mistakes, .. }) if mistakes.is_empty() => {
            terminal::say(&terminal::plain(&format!("signature  verifies with key {key}")));
            Ok(())
        }
        Some(Explanation { key, dialect, mistakes }) => {
            let list = mistakes.iter().map(|mistake| format!("\n  - {mistake}")).collect::<String>();
            Err(Failure::negative(terminal::plain_lines(&format!(
                "the signature does not verify for the gateway. It would with key {key} and dialect {dialect} if this is what \
                 happened:{list}"
            ))))
        }
        None => Err(Failure::negative(
            "the signature does not verify, and no known mistake explains it: most likely another key, or a \
             parameter that was changed, added or lost on the way",
        )),
    }
}

fn show_contract(dialect: &Dialect, params: Params, time: Option<Timestamp>) -> Result<(), Failure> {
    let request = dialect
        .check_request(params, time, Strictness::Lenient)
        .map_err(|error| Failure::negative(terminal::plain(&format!("contract   {error}"))))?;
    for field in request.lacking().iter().map(|&field| &dialect.fields[field].name) {
        terminal::say(&format!(
            "contract   {field} is documented as required and missing; contract = \"strict\" refuses it"
        ));
    }
    let count = request.documented(dialect).filter(|(_, value)| !matches!(value, Value::Time { .. })).count();
    terminal::say(&format!("contract   kept; {count} documented fields"));
    Ok(())
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
