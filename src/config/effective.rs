//! A configuration as text again: what file, variables, flags and defaults come to, without its
//! secrets.

use toml::Value;

use super::raw::RawConfig;
use super::source::{Problem, Sources};

/// What stands where a secret was.
const MASK: &str = "…";

/// The configuration that `sources` come to, as TOML. Keys without a value are left out; secrets
/// are masked, and refused if that is loaded again.
///
/// # Errors
/// Every problem of names and types.
pub fn show(sources: &Sources) -> Result<String, Vec<Problem>> {
    let (raw, problems) = sources.read();
    let raw = raw.filter(|_| problems.is_empty()).ok_or(problems)?;
    text(&raw).map_err(|error| vec![sources.problem("", &format!("cannot be written as TOML: {error}"))])
}

fn text(raw: &RawConfig) -> Result<String, toml::ser::Error> {
    let mut tree = Value::try_from(raw)?;
    mask(&mut tree);
    toml::to_string(&tree)
}

/// Keys mask themselves; what is left are URLs that hold a secret.
fn mask(value: &mut Value) {
    match value {
        Value::String(text) => *text = mask_url(text),
        Value::Array(list) => list.iter_mut().for_each(mask),
        Value::Table(table) => {
            for (key, value) in table.iter_mut() {
                mask(value);
                // The path of a probe may have a query like any URL.
                if key == "path"
                    && let Value::String(path) = value
                    && let Some((before, query)) = path.split_once('?')
                {
                    *path = format!("{before}{}", mask_query(query, false));
                }
            }
        }
        _ => {}
    }
}

/// A URL with its password, and what else it may hold that gives access, masked.
fn mask_url(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://").filter(|(scheme, _)| !scheme.starts_with("sqlite")) else {
        return text.to_owned();
    };
    let is_database = scheme.starts_with("postgres");
    // A password may hold a ? as well; what follows the login has no @.
    let login_ends = if is_database { rest.rfind('@').unwrap_or(0) } else { 0 };
    let query_begins = rest[login_ends..].find('?').map(|at| login_ends + at);
    let (server, query) = query_begins.map_or((rest, None), |at| (&rest[..at], Some(&rest[at + 1..])));
    // A password may hold a slash or another @ that nobody encoded.
    let server = match server.rsplit_once('@') {
        Some((login, host)) => {
            login.split_once(':').map_or(server.to_owned(), |(user, _)| format!("{user}:{MASK}@{host}"))
        }
        None => server.to_owned(),
    };
    let query = query.map(|query| mask_query(query, is_database));
    format!("{scheme}://{server}{}", query.unwrap_or_default())
}

/// A query with what may be a secret in it masked. Of a database's options only passwords are; what
/// a backend's query says is known to the backend.
fn mask_query(query: &str, is_database: bool) -> String {
    let options = query.split('&').map(|option| match option.split_once('=') {
        Some((name, value)) if !value.is_empty() && (!is_database || name.contains("pass")) => {
            format!("{name}={MASK}")
        }
        _ => option.to_owned(),
    });
    format!("?{}", options.collect::<Vec<_>>().join("&"))
}

/// Whether a text is what [`show`] leaves of a secret.
pub(super) fn is_masked(text: &str) -> bool {
    text == MASK || (text.contains("://") && text.contains(MASK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_lose_what_gives_access() {
        for (url, shown) in [
            ("http://crm:9000/spi", "http://crm:9000/spi"),
            ("http://crm/spi?token=abc&x&empty=", "http://crm/spi?token=…&x&empty="),
            ("postgres://u:p@h/d?sslmode=require", "postgres://u:…@h/d?sslmode=require"),
            ("postgres://u:p/w@x@h/d?password=p&sslrootcert=a.pem", "postgres://u:…@h/d?password=…&sslrootcert=a.pem"),
            ("postgres://u:se?cret@h/d?sslmode=require", "postgres://u:…@h/d?sslmode=require"),
            ("postgres://u@h/d", "postgres://u@h/d"),
            ("sqlite:///var/a:b@c?d=e", "sqlite:///var/a:b@c?d=e"),
            ("10.0.0.0/8", "10.0.0.0/8"),
        ] {
            assert_eq!(mask_url(url), shown);
            assert_eq!(is_masked(shown), url != shown, "{shown}");
        }
    }
}
