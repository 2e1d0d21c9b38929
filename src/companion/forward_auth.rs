//! `/companion/forward-auth`: Traefik's `forwardAuth`, and whatever else sends its four headers.
//!
//! Traefik asks with GET. It sets the four itself unless `trustForwardHeader` lets a client's stand.

use http::{HeaderName, HeaderValue, Method, request};

use super::{Original, malformed, method, once, target};
use crate::rejection::Rejection;

pub(super) const PATH: &str = "/companion/forward-auth";

const X_FORWARDED_METHOD: HeaderName = HeaderName::from_static("x-forwarded-method");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");

pub(super) static HEADERS: [HeaderName; 4] = [X_FORWARDED_METHOD, X_FORWARDED_PROTO, X_FORWARDED_HOST, X_FORWARDED_URI];

pub(super) fn original(head: &request::Parts) -> Result<Original, Rejection> {
    if head.method != Method::GET {
        return Err(Rejection::MethodNotAllowed);
    }
    let needed = |name: &HeaderName, what| {
        once(&head.headers, name)?.ok_or(Rejection::OriginalMissing {
            what,
            fix: "Traefik's forwardAuth sets it; another ingress has to do the same",
        })
    };
    let method = method(needed(&X_FORWARDED_METHOD, "X-Forwarded-Method is missing")?)?;
    let scheme = needed(&X_FORWARDED_PROTO, "X-Forwarded-Proto is missing")?;
    if !matches!(scheme, "http" | "https") {
        return Err(malformed("X-Forwarded-Proto is neither http nor https"));
    }
    let host = needed(&X_FORWARDED_HOST, "X-Forwarded-Host is missing")?;
    // Whether it is a host is for the first stop to say.
    let host = HeaderValue::from_str(host).map_err(|_| malformed("X-Forwarded-Host is no host"))?;
    let no_query = Rejection::OriginalMissing {
        what: "the original URL has no query",
        fix: "X-Forwarded-Uri has to be path and query as they came; look for a middleware before forwardAuth that \
              rewrites them",
    };
    let target = target(needed(&X_FORWARDED_URI, "X-Forwarded-Uri is missing")?, no_query)?;
    Ok(Original { method, host: Some(host), target })
}
