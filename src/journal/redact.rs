//! Replies as they may be shown: without passwords, keys and tokens.
//!
//! Pure, and generous: what merely looks like a credential is hidden too. Free text stays as it
//! is.

use std::borrow::Cow;

use serde_json::Value;

/// What is shown instead of a credential.
pub const REDACTED: &str = "(redacted)";

/// Parts of names of credentials, without case and punctuation.
const PARTS: [&str; 17] = [
    "password",
    "passwd",
    "passphrase",
    "passcode",
    "pwd",
    "secret",
    "token",
    "key",
    "credential",
    "authorization",
    "cookie",
    "session",
    "signature",
    "密码",
    "口令",
    "密钥",
    "令牌",
];
/// Whole names of credentials.
const NAMES: [&str; 8] = ["pass", "pin", "otp", "auth", "bearer", "jwt", "ticket", "sig"];
/// Members that say what the member beside them is: `{"name":"password","value":"…"}`.
const LABELS: [&str; 6] = ["name", "label", "title", "field", "key", "type"];

/// Hides every credential in a value.
pub fn redact(value: &mut Value) {
    match value {
        Value::Object(members) => {
            let is_labelled =
                LABELS.iter().any(|label| members.get(*label).and_then(Value::as_str).is_some_and(is_credential));
            for (name, value) in members {
                if is_credential(name) || (is_labelled && !LABELS.contains(&name.as_str())) {
                    hide(value);
                } else {
                    redact(value);
                }
            }
        }
        Value::Array(elements) => elements.iter_mut().for_each(redact),
        Value::String(text) => {
            if let Some(redacted) = redact_text(text) {
                *text = redacted;
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Hides credentials in text that is not JSON but may hold some, or a part of it: what stands after
/// the name of one.
pub fn redact_loosely(text: &str) -> String {
    let urls = redact_urls(text);
    let mut rest = &*urls;
    let mut out = String::with_capacity(rest.len());
    let is_part = |char: char| char.is_alphanumeric() || matches!(char, '_' | '-');
    while let Some(begin) = rest.find(is_part) {
        let word = &rest[begin..];
        let word = &word[..word.find(|char| !is_part(char)).unwrap_or(word.len())];
        let (before, after) = rest.split_at(begin + word.len());
        out.push_str(before);
        rest = after;
        let value = after_separator(rest);
        let separator = &rest[..rest.len() - value.len()];
        if is_credential(word) && separator.contains([':', '=', '>']) {
            out.push_str(separator);
            let quote = separator.chars().last().filter(|char| matches!(char, '"' | '\'' | ';'));
            rest = &value[end_of_value(value, quote)..];
            if rest.len() < value.len() {
                out.push_str(REDACTED);
            }
        }
    }
    out.push_str(rest);
    out
}

/// What follows the punctuation between a name and its value.
fn after_separator(text: &str) -> &str {
    let mut rest = text;
    loop {
        let next = rest.trim_start_matches([' ', '\t', '"', '\'', ':', '=', '>', '\\']);
        let next = next.strip_prefix("&quot;").or_else(|| next.strip_prefix("&#34;")).unwrap_or(next);
        if next.len() == rest.len() {
            return rest;
        }
        rest = next;
    }
}

/// Where a value ends: at the quote that it began with, or at any punctuation.
fn end_of_value(value: &str, quote: Option<char>) -> usize {
    let mut escaped = false;
    let end = value.char_indices().find(|&(_, char)| {
        let ends = match quote {
            _ if matches!(char, '\r' | '\n') => true,
            _ if escaped => false,
            Some(';') => char == '&',
            Some(quote) => char == quote,
            None => char.is_whitespace() || matches!(char, '"' | '\'' | ',' | '&' | '<' | '}' | ']' | ';'),
        };
        escaped = char == '\\' && !escaped;
        ends
    });
    end.map_or(value.len(), |(at, _)| at)
}

/// Hides a value, whatever it is; one that says nothing may stay.
fn hide(value: &mut Value) {
    let says_nothing = match value {
        Value::Null | Value::Bool(_) => true,
        Value::Number(_) => false,
        Value::String(text) => text.is_empty(),
        Value::Array(elements) => elements.is_empty(),
        Value::Object(members) => members.is_empty(),
    };
    if !says_nothing {
        *value = Value::String(REDACTED.to_owned());
    }
}

fn is_credential(name: &str) -> bool {
    let bare = name.chars().filter(|char| char.is_alphanumeric()).flat_map(char::to_lowercase).collect::<String>();
    NAMES.contains(&bare.as_str()) || PARTS.iter().any(|part| bare.contains(part))
}

/// JSON in a text, and URLs in it; `None` if there is nothing to hide.
fn redact_text(text: &str) -> Option<String> {
    if text.trim_start().starts_with(['{', '['])
        && let Ok(mut value) = serde_json::from_str::<Value>(text)
    {
        let before = value.clone();
        redact(&mut value);
        return (value != before).then(|| value.to_string());
    }
    let redacted = redact_urls(text);
    (redacted != text).then(|| redacted.into_owned())
}

/// Hides users, passwords and tokens in the URLs of a text.
fn redact_urls(text: &str) -> Cow<'_, str> {
    if !text.contains("://") && !text.contains(['?', '&']) {
        return Cow::Borrowed(text);
    }
    let is_end = |char: char| char.is_whitespace() || matches!(char, '"' | '\'' | '<' | '>' | '`');
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let (word, tail) = rest.split_at(rest.find(is_end).unwrap_or(rest.len()));
        redact_url(word, &mut out);
        let (end, tail) = tail.split_at(tail.chars().next().map_or(0, char::len_utf8));
        out.push_str(end);
        rest = tail;
    }
    Cow::Owned(out)
}

fn redact_url(url: &str, out: &mut String) {
    let (before, parameters) = url.split_at(url.find(['?', '#', '&']).unwrap_or(url.len()));
    match before.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            out.push_str(scheme);
            out.push_str("://");
            match authority.rsplit_once('@') {
                Some((_, host)) => out.extend([REDACTED, "@", host]),
                None => out.push_str(authority),
            }
            out.push_str(path);
        }
        None => out.push_str(before),
    }
    // Tokens travel in fragments too: #access_token=…
    for part in parameters.split_inclusive(['?', '#', '&', ';']) {
        let (pair, end) = part.split_at(part.trim_end_matches(['?', '#', '&', ';']).len());
        match pair.split_once('=') {
            Some((name, value)) if !value.is_empty() && is_credential(name) => out.extend([name, "=", REDACTED]),
            _ => out.push_str(pair),
        }
        out.push_str(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redacted(json: &str) -> String {
        let mut value = serde_json::from_str(json).unwrap();
        redact(&mut value);
        value.to_string()
    }

    #[test]
    fn hides_credentials_at_any_depth_and_leaves_the_rest() {
        let reply = r#"{"success":true,"instanceId":"i-1","appInfo":{"admin":{"url":"https://h/a","username":"admin","password":"x1"},"list":[{"ApiKey":7,"API-SECRET":{"a":"x2"},"access_token":["x3"]}]},"message":null,"密码":"x4"}"#;
        assert_eq!(
            redacted(reply),
            r#"{"success":true,"instanceId":"i-1","appInfo":{"admin":{"url":"https://h/a","username":"admin","password":"(redacted)"},"list":[{"ApiKey":"(redacted)","API-SECRET":"(redacted)","access_token":"(redacted)"}]},"message":null,"密码":"(redacted)"}"#
        );
        assert_eq!(
            redacted(r#"{"password":"","token":null,"key":false}"#),
            r#"{"password":"","token":null,"key":false}"#
        );
        assert_eq!(
            redacted(r#"[{"name":"Password","value":"x"},{"name":"user","value":"u"}]"#),
            r#"[{"name":"Password","value":"(redacted)"},{"name":"user","value":"u"}]"#
        );
        assert_eq!(redacted(r#"{"info":"{\"password\":\"x\"}"}"#), r#"{"info":"{\"password\":\"(redacted)\"}"}"#);
    }

    #[test]
    fn hides_what_urls_carry() {
        for (before, after) in [
            ("https://admin:pw@h:8/a?b=c", "https://(redacted)@h:8/a?b=c"),
            ("https://h/?a=1&access_token=x&b=2", "https://h/?a=1&access_token=(redacted)&b=2"),
            ("https://h/#id_token=x", "https://h/#id_token=(redacted)"),
            ("see https://h/?token=x, or \"http://u@h\"", "see https://h/?token=(redacted) or \"http://(redacted)@h\""),
            ("/login?password=x&next=/", "/login?password=(redacted)&next=/"),
            ("https://h/path@2x?q=1?token=x", "https://h/path@2x?q=1?token=(redacted)"),
            ("a & b = c?", "a & b = c?"),
            ("https://h/?token=", "https://h/?token="),
            ("", ""),
        ] {
            assert_eq!(redact_text(before).as_deref().unwrap_or(before), after);
        }
    }

    #[test]
    fn hides_credentials_in_what_only_looks_like_json() {
        for (before, after) in [
            ("Notice: x\n{\"password\":\"a \\\" b, c\",\"id\":1}", "Notice: x\n{\"password\":\"(redacted)\",\"id\":1}"),
            ("{\"password\": \"cut of", "{\"password\": \"(redacted)"),
            ("&quot;password&quot;:&quot;x y&quot;,", "&quot;password&quot;:&quot;(redacted)&quot;,"),
            ("password=x&next=/", "password=(redacted)&next=/"),
            ("<b>Password</b>: hunter2 <i>", "<b>Password</b>: hunter2 <i>"),
            ("api_key = s3cret; id = 7", "api_key = (redacted); id = 7"),
            ("'token': 7, 'a': 1", "'token': (redacted), 'a': 1"),
            ("the password was wrong", "the password was wrong"),
            ("密码：x", "密码：x"),
            ("\"密码\":\"x\"", "\"密码\":\"(redacted)\""),
            ("https://u:p@h/?token=x", "https://(redacted)@h/?token=(redacted)"),
            ("", ""),
        ] {
            assert_eq!(redact_loosely(before), after);
        }
    }
}
