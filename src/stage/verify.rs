//! Fourth stop: did somebody who holds a key of this app sign exactly these parameters?

use http::HeaderMap;
use jiff::Timestamp;

use crate::app::App;
use crate::dialect::Dialect;
use crate::dialect::mac::Tag;
use crate::query::{Lookup, Params};
use crate::rejection::{BadSignature, Malformed, Rejection};
use crate::stage::parse::Parsed;
use crate::telemetry::spans;

/// A request with a genuine signature.
pub struct Verified {
    params: Params,
    signature: Tag,
    key: usize,
}

impl Verified {
    /// Its parameters, signature included.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Position of the app's key that verified it.
    pub fn key(&self) -> usize {
        self.key
    }

    pub(super) fn into_parts(self) -> (Params, Tag, usize) {
        (self.params, self.signature, self.key)
    }
}

/// Verifies the signature of a request that came `now`.
///
/// # Errors
/// `malformed_request` for protocol fields that stand twice and signatures that differ,
/// `signature_missing`, `signature_invalid`.
pub fn verify(
    app: &App,
    parsed: Parsed,
    method: &str,
    headers: &HeaderMap,
    now: Timestamp,
) -> Result<Verified, Rejection> {
    let span = spans::verify().entered();
    let dialect = &*app.config.dialect;
    let params = parsed.into_params();
    refuse_repeated(dialect, &params)?;
    let text = presented(dialect, &params, headers)?;
    let invalid = Rejection::SignatureInvalid;
    let tag = dialect.signature.output.decode(text).ok_or(invalid(BadSignature::Form))?;
    for (index, key) in app.config.keys.iter().enumerate().filter(|(_, key)| key.verifies_at(now)) {
        let verifies = dialect.verify(&key.key, &tag, method, &params);
        if verifies.map_err(|_| invalid(BadSignature::Ambiguous))? {
            span.record("spigate.key", key.id.as_str());
            return Ok(Verified { params, signature: tag, key: index });
        }
    }
    Err(invalid(BadSignature::NoKey))
}

/// A protocol field that stands twice is read differently by different readers.
fn refuse_repeated(dialect: &Dialect, params: &Params) -> Result<(), Rejection> {
    if params.repeated().any(|name| dialect.is_protocol_parameter(name)) {
        return Err(Rejection::MalformedRequest(Malformed::RepeatedParameter));
    }
    Ok(())
}

/// The signature that the request carries, in the query, the header, or equal in both.
fn presented<'r>(dialect: &Dialect, params: &'r Params, headers: &'r HeaderMap) -> Result<&'r str, Rejection> {
    let two = Rejection::MalformedRequest(Malformed::TwoSignatures);
    let rule = &dialect.signature;
    let in_query = match params.get(&rule.parameter) {
        Lookup::Once(text) => Some(text),
        Lookup::Absent => None,
        Lookup::Repeated => return Err(two),
    };
    let mut values = rule.header.as_ref().map(|name| headers.get_all(name).iter());
    let mut next = || values.as_mut().and_then(Iterator::next);
    let in_header = match (next(), next()) {
        (None, _) => None,
        // Bytes that are no text are no signature either.
        (Some(value), None) => Some(value.to_str().unwrap_or("")),
        (Some(_), Some(_)) => return Err(two),
    };
    match (in_query, in_header) {
        (Some(query), Some(header)) if query != header => Err(two),
        (Some(text), _) | (None, Some(text)) => Ok(text),
        (None, None) => {
            let header = rule.header.as_ref().map(ToString::to_string);
            Err(Rejection::SignatureMissing { header })
        }
    }
}
