//! `/companion/ext-authz/…`: Envoy's `ext_authz` over HTTP with a `path_prefix`, and Gateway API
//! implementations that are made of Envoy.
//!
//! Envoy asks with the original's method, Host, path and query. It allows on exactly 200, adds the
//! headers of the answer that its configuration lists, and then removes those that the answer names.

use std::collections::BTreeSet;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, request};

use super::{Original, target};
use crate::app::App;
use crate::peer::X_REQUEST_ID;
use crate::rejection::Rejection;
use crate::stage::normalize::IDEMPOTENCY_KEY;

const PREFIX: &str = "/companion/ext-authz";

/// What Envoy is to remove from the request before it passes it on.
const TO_REMOVE: HeaderName = HeaderName::from_static("x-envoy-auth-headers-to-remove");

/// The original's path: what stands behind the prefix.
pub(super) fn original_path(path: &str) -> Option<&str> {
    path.strip_prefix(PREFIX).filter(|rest| rest.is_empty() || rest.starts_with('/'))
}

pub(super) fn original(head: &request::Parts) -> Result<Original, Rejection> {
    let path_and_query = head.uri.path_and_query().map_or("", PathAndQuery::as_str);
    let text = path_and_query.strip_prefix(PREFIX).unwrap_or_default();
    if !text.starts_with('/') {
        return Err(Rejection::OriginalMissing {
            what: "there is no original path behind the prefix",
            fix: "in Envoy path_prefix: /companion/ext-authz, to which it adds the original's path",
        });
    }
    let no_query = Rejection::OriginalMissing {
        what: "the original URL has no query",
        fix: "an ingress has to pass it on whole; in Envoy, look for a filter before ext_authz that rewrites :path",
    };
    // The sub-request's own method and Host are the original's.
    Ok(Original { method: head.method.clone(), host: None, target: target(text, no_query)? })
}

/// The header that has Envoy remove what could pose as ours: of the names that the answer may have,
/// those that it has not, and of the sub-request's headers (as far as Envoy passes them on) every
/// other spelling. What the answer sets replaces the client's, and must not be named: Envoy sets
/// first and removes then.
pub fn to_remove(app: &App, asked: &HeaderMap, answer: &HeaderMap) -> Option<(HeaderName, HeaderValue)> {
    let signature = app.config.dialect.signature.header.as_ref();
    let poses = |name: &&HeaderName| {
        let plain = folded(name);
        plain.starts_with("x-spi-")
            || plain == IDEMPOTENCY_KEY.as_str()
            || plain == X_REQUEST_ID.as_str()
            // The header itself was verified. What only looks like it was not.
            || signature.is_some_and(|signature| *signature != **name && folded(signature) == plain)
    };
    let names: BTreeSet<&str> = asked
        .keys()
        .filter(poses)
        .chain(app.template.names())
        .filter(|name| !answer.contains_key(*name))
        .map(HeaderName::as_str)
        .collect();
    let list = names.into_iter().collect::<Vec<_>>().join(",");
    // Names of headers and commas.
    HeaderValue::from_str(&list).ok().map(|list| (TO_REMOVE, list))
}

/// A name as a backend may read it: many take `-`, `_` and `.` for the same.
fn folded(name: &HeaderName) -> String {
    name.as_str().replace(['_', '.'], "-")
}
