//! `/companion/auth-request`: nginx's `auth_request`, and ingress-nginx, which is made of it.
//!
//! nginx asks with GET and whatever headers its configuration sets beside the client's. It passes
//! on no other denial than 401 and 403, and of a denial no body, so that one is in a header, too.

use http::{HeaderName, HeaderValue, Method, Uri, request};

use super::{Original, malformed, method, once, target};
use crate::json;
use crate::rejection::Rejection;

pub(super) const PATH: &str = "/companion/auth-request";

/// Path and query, as nginx's `$request_uri` has them. The host is the sub-request's.
const X_ORIGINAL_URI: HeaderName = HeaderName::from_static("x-original-uri");
/// The whole URL, as ingress-nginx sends it. The sub-request's own host is then the companion's.
const X_ORIGINAL_URL: HeaderName = HeaderName::from_static("x-original-url");
const X_ORIGINAL_METHOD: HeaderName = HeaderName::from_static("x-original-method");

pub(super) static HEADERS: [HeaderName; 3] = [X_ORIGINAL_URI, X_ORIGINAL_URL, X_ORIGINAL_METHOD];

/// The body of a denial, for `auth_request_set`.
const X_SPI_DENIAL: HeaderName = HeaderName::from_static("x-spi-denial");

pub(super) fn original(head: &request::Parts) -> Result<Original, Rejection> {
    if head.method != Method::GET {
        return Err(Rejection::MethodNotAllowed);
    }
    let no_query = Rejection::OriginalMissing {
        what: "the original URL has no query",
        fix: "an ingress has to pass it on whole: in nginx proxy_set_header X-Original-URI $request_uri, not $uri",
    };
    let (uri, url) = (once(&head.headers, &X_ORIGINAL_URI)?, once(&head.headers, &X_ORIGINAL_URL)?);
    let (host, target) = match (uri, url) {
        (Some(uri), None) => (None, target(uri, no_query)?),
        (None, Some(url)) => {
            let (authority, rest) = absolute(url).ok_or_else(|| malformed("X-Original-URL is no http URL"))?;
            (Some(authority), target(rest, no_query)?)
        }
        // Even if both say the same: one is the client's, and next time they do not.
        (Some(_), Some(_)) => {
            return Err(malformed("X-Original-URI and X-Original-URL are both there; the ingress has to remove one"));
        }
        (None, None) => {
            return Err(Rejection::OriginalMissing {
                what: "neither X-Original-URI nor X-Original-URL is there",
                fix: "in nginx proxy_set_header X-Original-URI $request_uri; ingress-nginx sets X-Original-URL itself",
            });
        }
    };
    let method = method(once(&head.headers, &X_ORIGINAL_METHOD)?.ok_or(Rejection::OriginalMissing {
        what: "X-Original-Method is missing",
        fix: "in nginx proxy_set_header X-Original-Method $request_method",
    })?)?;
    Ok(Original { method, host, target })
}

/// Host, and path with query, of `http://host/path?query`. No user, no fragment.
fn absolute(url: &str) -> Option<(HeaderValue, &str)> {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"))?;
    let (authority, target) = rest.split_at(rest.find('/')?);
    // As a whole: what looks like a path here may be none there.
    let parsed: Uri = url.parse().ok()?;
    let same = parsed.authority().is_some_and(|parsed| parsed.as_str() == authority);
    if !same || authority.contains('@') {
        return None;
    }
    Some((HeaderValue::from_str(authority).ok()?, target))
}

/// The header that carries the body of a denial past nginx.
pub fn denial(body: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let text = str::from_utf8(body).ok()?;
    HeaderValue::from_str(&json::ascii(text)).ok().map(|value| (X_SPI_DENIAL, value))
}
