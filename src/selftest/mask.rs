//! What of an exchange may be shown: no key, no signature, no password, nothing that a terminal or a
//! browser would take for a command, and not more than a page of it. Pure.

use serde_json::Value;

use crate::cli::terminal::plain;
use crate::config::scalar::Secret;
use crate::journal::redact::{REDACTED, redact, redact_loosely};
use crate::json;
use crate::platform::wire;

/// Most characters of a body that are shown.
const LONGEST: usize = 4_000;

/// Hides what must not be shown.
pub struct Mask {
    /// The key, in every form in which it could come back.
    key: Vec<String>,
}

/// A text that may be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The text; no control characters but ends of lines.
    pub text: String,
    /// Whether something of it is left out.
    pub cut: bool,
}

impl Mask {
    /// Prepares for a key.
    pub fn new(key: &Secret) -> Self {
        Self { key: forms(key.expose()) }
    }

    /// A body, in a reply to a request with this signature or from a backend.
    pub fn body(&self, body: &[u8], signature: &str) -> Shown {
        let text = String::from_utf8_lossy(body);
        // JSON with a key twice is shown as it came, or one of the two would be missing.
        let read = json::is_object(body).ok().and_then(|_| serde_json::from_slice::<Value>(body).ok());
        let masked = match read {
            Some(mut value) => {
                redact(&mut value);
                value.to_string()
            }
            None => redact_loosely(&text),
        };
        self.show(&masked, signature)
    }

    /// Any other text: a header, a value, the cause of a failure.
    pub fn text(&self, text: &str, signature: &str) -> String {
        self.show(&redact_loosely(text), signature).text
    }

    /// A URL. The signature in it is hidden wherever it stands.
    pub fn url(&self, url: &str, signature: &str) -> String {
        self.text(url, signature)
    }

    fn show(&self, text: &str, signature: &str) -> Shown {
        let mut text = text.to_owned();
        // The longest first, or the rest of an encoded one would stay.
        let mut secrets: Vec<_> = self.key.iter().cloned().chain(forms(signature)).collect();
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        for secret in secrets.iter().filter(|secret| secret.len() >= SHORTEST) {
            text = text.replace(secret, REDACTED);
        }
        let cut = text.chars().nth(LONGEST).is_some();
        let kept: String = text.chars().take(LONGEST).collect();
        let lines = kept.split('\n').map(|line| plain(line.strip_suffix('\r').unwrap_or(line)));
        Shown { text: lines.collect::<Vec<_>>().join("\n"), cut }
    }
}

/// Anything shorter would be found in ordinary text.
const SHORTEST: usize = 6;

/// A secret as it is, on the wire, and in JSON.
fn forms(secret: &str) -> Vec<String> {
    let quoted = Value::from(secret).to_string();
    let slashes = secret.replace('/', "\\/");
    let component = wire(secret);
    let lower = percent_in_lower_case(&component);
    let mut forms = vec![secret.to_owned(), component, lower, quoted.trim_matches('"').to_owned(), slashes];
    forms.sort();
    forms.dedup();
    forms
}

fn percent_in_lower_case(text: &str) -> String {
    let mut parts = text.split('%');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |out, part| {
        let (digits, rest) = part.split_at(part.len().min(2));
        out + "%" + &digits.to_lowercase() + rest
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "m7Zt+Q4vX/0nWc8yRk1LhJpE2sDgUaFb";
    const SIGNATURE: &str = "puc6rZedSRTUTgSWoIX63eYb9ZM3QRuBWS1Jows9I5E=";

    fn body(body: &[u8]) -> Shown {
        Mask::new(&Secret::new(KEY)).body(body, SIGNATURE)
    }

    #[test]
    fn keys_and_signatures_are_hidden_in_every_form() {
        for form in [
            KEY.to_owned(),
            KEY.replace('+', "%2B").replace('/', "%2F"),
            KEY.replace('+', "%2b").replace('/', "%2f"),
            KEY.replace('/', "\\/"),
        ] {
            assert_eq!(body(format!("x {form} y").as_bytes()).text, "x (redacted) y", "{form}");
        }
        let url = "http://h/spi?a=1&signature=puc6rZedSRTUTgSWoIX63eYb9ZM3QRuBWS1Jows9I5E%3D";
        assert_eq!(Mask::new(&Secret::new(KEY)).url(url, SIGNATURE), "http://h/spi?a=1&signature=(redacted)");
        assert_eq!(body(format!("[\"{SIGNATURE}\"]").as_bytes()).text, "[\"(redacted)\"]");
    }

    #[test]
    fn passwords_are_hidden_in_json_and_in_what_only_looks_like_it() {
        let reply = r#"{"success":true,"appInfo":{"admin":{"password":"hunter2"}}}"#;
        assert_eq!(body(reply.as_bytes()).text, r#"{"success":true,"appInfo":{"admin":{"password":"(redacted)"}}}"#);
        for broken in [
            format!("Warning: x\n{reply}"),
            reply[..reply.len() - 5].to_owned(),
            r#"{"password":"hunter2","password":"hunter2"}"#.to_owned(),
        ] {
            let shown = body(broken.as_bytes()).text;
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }

    #[test]
    fn nothing_moves_a_cursor_and_nothing_fills_a_page() {
        assert_eq!(body(b"a\x1b[2J\r\nb\x00\xff\xe2\x80\xae").text, "a\\u{1b}[2J\nb\\u{0}\u{fffd}\\u{202e}");
        let long = body("x".repeat(1 << 20).as_bytes());
        assert!(long.cut && long.text.len() == LONGEST);
        assert!(!body(b"x").cut);
    }
}
