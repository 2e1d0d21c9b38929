//! An exchange as a report shows it. Pure; what is hidden is `mask.rs`'s business.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::Serialize;

use super::Text;
use super::mask::Mask;
use super::relay::Passed;
use super::request::Request;
use crate::backend::RawReply;
use crate::dialect::field::FieldType;
use crate::dialect::time::iso8601;
use crate::dialect::{Action, Dialect};
use crate::journal::redact::REDACTED;
use crate::platform::{self, CallFailure, Reply, Verdict};
use crate::query::Params;

/// A request and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Exchange {
    /// What it is.
    pub label: Text,
    /// When it was sent.
    pub at: String,
    /// The URL, as it was on the wire.
    pub url: String,
    /// The header that carried the signature, if one did.
    pub header: Option<String>,
    /// The parameters, decoded.
    pub parameters: Vec<Parameter>,
    /// The reply, if there is one.
    pub reply: Option<Received>,
    /// Why there is none.
    pub failure: Option<String>,
    /// What the platform makes of it: `success`, `refused` (for good) or `retry`.
    pub platform: &'static str,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// What the gateway asked the backend, and what it answered; only with a configuration.
    pub backend: Vec<Behind>,
}

/// A parameter of a request.
#[derive(Clone, Debug, Serialize)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// Its value, decoded from base64 where it came so.
    pub value: String,
}

/// A reply.
#[derive(Clone, Debug, Serialize)]
pub struct Received {
    /// Its status.
    pub status: u16,
    /// Its media type.
    pub content_type: Option<String>,
    /// Its body, secrets hidden.
    pub body: String,
    /// How many bytes it had.
    pub bytes: usize,
    /// Whether not all of it is shown.
    pub cut: bool,
}

/// A call of the backend by the gateway.
#[derive(Clone, Debug, Serialize)]
pub struct Behind {
    /// Method and target.
    pub request: String,
    /// Its body, secrets hidden.
    pub body: String,
    /// The reply, if there is one.
    pub reply: Option<Received>,
    /// Why there is none.
    pub failure: Option<String>,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// Shows exchanges of a dialect.
pub struct Witness<'a> {
    /// The dialect.
    pub dialect: &'a Dialect,
    /// What hides secrets.
    pub mask: &'a Mask,
}

impl Witness<'_> {
    /// An exchange for the report.
    pub fn exchange(
        &self,
        label: Text,
        at: Timestamp,
        action: &Action,
        request: &Request,
        reply: &Result<Reply, CallFailure>,
        took: Duration,
    ) -> Exchange {
        let signature = request.signature.as_str();
        let mask = |text: &str| self.mask.text(text, signature);
        let platform = match reply {
            Ok(reply) => match platform::judge(&action.reply, reply, platform::PATIENCE).0 {
                Verdict::Success => "success",
                Verdict::Refused => "refused",
                Verdict::Retry => "retry",
            },
            Err(_) => "retry",
        };
        Exchange {
            label,
            at: iso8601(at),
            url: self.mask.url(&request.url, signature),
            header: request.header.as_ref().map(|(name, _)| format!("{}: {REDACTED}", mask(name))),
            parameters: self.parameters(request),
            reply: reply.as_ref().ok().map(|reply| self.received(&reply.raw, signature)),
            failure: reply.as_ref().err().map(|failure| mask(&failure.to_string())),
            platform,
            seconds: seconds(took),
            backend: Vec::new(),
        }
    }

    /// A call of the backend.
    pub fn behind(&self, passed: &Passed, signature: &str) -> Behind {
        let request = format!("{} {}", passed.method, self.mask.url(&passed.target, signature));
        Behind {
            request,
            body: self.mask.body(&passed.body, signature).text,
            reply: passed.reply.as_ref().ok().map(|reply| self.received(reply, signature)),
            failure: passed.reply.as_ref().err().map(|error| self.mask.text(&error.to_string(), signature)),
            seconds: seconds(passed.took),
        }
    }

    fn received(&self, raw: &RawReply, signature: &str) -> Received {
        let shown = self.mask.body(&raw.body, signature);
        let content_type =
            raw.content_type.as_ref().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        Received {
            status: raw.status.as_u16(),
            content_type: content_type.map(|text| self.mask.text(&text, signature)),
            body: shown.text,
            bytes: raw.body.len(),
            cut: shown.cut,
        }
    }

    fn parameters(&self, request: &Request) -> Vec<Parameter> {
        let query = request.url.split_once('?').map_or("", |(_, query)| query);
        let Ok(params) = Params::parse(query.as_bytes(), usize::MAX) else { return Vec::new() };
        let shown = |name: &str, value: &str| {
            if name == self.dialect.signature.parameter && !value.is_empty() {
                return REDACTED.to_owned();
            }
            let field = self.dialect.field_index(name).map(|field| self.dialect.fields[field].kind);
            let decoded = match field {
                Some(FieldType::Base64Text | FieldType::Base64Json) => STANDARD.decode(value).ok(),
                _ => None,
            };
            match decoded.and_then(|bytes| String::from_utf8(bytes).ok()) {
                Some(text) => self.mask.text(&text, &request.signature),
                // By its name, too: a notify URL may carry a token of the vendor's own.
                None => {
                    let pair = self.mask.text(&format!("{name}={value}"), &request.signature);
                    let masked = pair.ends_with(&format!("={REDACTED}"));
                    if masked { REDACTED.to_owned() } else { self.mask.text(value, &request.signature) }
                }
            }
        };
        params
            .received()
            .map(|param| Parameter {
                name: self.mask.text(param.name, &request.signature),
                value: shown(param.name, param.value),
            })
            .collect()
    }
}

fn seconds(took: Duration) -> f64 {
    // Milliseconds are what anybody reads.
    (took.as_secs_f64() * 1_000.0).round() / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::scalar::Secret;
    use crate::dialect::builtin;

    #[test]
    fn parameters_are_decoded_and_secrets_are_not_shown() {
        let dialect = &builtin::load().unwrap()[0];
        let mask = Mask::new(&Secret::new("the-key"));
        let witness = Witness { dialect, mask: &mask };
        let url = "http://h/spi?token=mine&spec=5aWX6aSQ5ZCN56ewMQ%3D%3D&a=b%1b&signature=abcdefgh%3D".to_owned();
        let request = Request { url, header: None, signature: "abcdefgh=".into() };
        let shown: Vec<_> =
            witness.parameters(&request).into_iter().map(|param| format!("{}={}", param.name, param.value)).collect();
        assert_eq!(shown, ["token=(redacted)", "spec=套餐名称1", "a=b\\u{1b}", "signature=(redacted)"]);
    }
}
