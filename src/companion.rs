//! Companion mode: an ingress asks, by an auth sub-request, whether the request that it holds may
//! pass. Here is found out which request that is; judged it is by the stops of `gateway.rs`, like
//! any other.
//!
//! Every kind of ingress says it in another way, and has a path of its own: which headers count is
//! never guessed from what came. A header that a contract does not name is the client's, and not
//! looked at. What names the original twice, or badly, is refused: one of the two is a stranger's.
//!
//! Pure: no I/O.

mod auth_request;
mod ext_authz;
mod forward_auth;

use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, request};

use crate::rejection::{Malformed, Rejection};

pub use auth_request::denial;
pub use ext_authz::to_remove;

/// The name of the companion's listener, as of `[listen]` it is `listen`.
pub const COMPANION: &str = "companion";

/// How an ingress says which request it asks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contract {
    /// nginx's `auth_request`, and ingress-nginx.
    AuthRequest,
    /// Traefik's `forwardAuth`.
    ForwardAuth,
    /// Envoy's `ext_authz` over HTTP, and what is made with it, like Gateway API.
    ExtAuthz,
}

/// The request that an ingress asks about.
struct Original {
    method: Method,
    /// Its host; that of the sub-request, if `None`.
    host: Option<HeaderValue>,
    target: PathAndQuery,
}

impl Contract {
    /// The contract that a sub-request was sent to.
    ///
    /// # Errors
    /// `unknown_app`: no contract has this path.
    pub fn of(head: &request::Parts) -> Result<Self, Rejection> {
        match head.uri.path() {
            auth_request::PATH => Ok(Self::AuthRequest),
            forward_auth::PATH => Ok(Self::ForwardAuth),
            path if ext_authz::original_path(path).is_some() => Ok(Self::ExtAuthz),
            _ => Err(Rejection::UnknownApp),
        }
    }

    /// Its name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AuthRequest => "auth-request",
            Self::ForwardAuth => "forward-auth",
            Self::ExtAuthz => "ext-authz",
        }
    }

    /// The request that a sub-request asks about, as if it had come itself: its method, target and
    /// Host, and the sub-request's headers but for those that said so.
    ///
    /// # Errors
    /// `original_missing`, `malformed_request`, `method_not_allowed`, `uri_too_long`.
    pub fn original(self, head: &request::Parts) -> Result<request::Parts, Rejection> {
        // No ingress asks that way, and its authority would be one more host to disagree with.
        if head.uri.authority().is_some() {
            return Err(Rejection::MalformedRequest(Malformed::Target));
        }
        let (original, named_by) = match self {
            Self::AuthRequest => (auth_request::original(head)?, &auth_request::HEADERS[..]),
            Self::ForwardAuth => (forward_auth::original(head)?, &forward_auth::HEADERS[..]),
            Self::ExtAuthz => (ext_authz::original(head)?, &[][..]),
        };
        let (mut parts, ()) = Request::new(()).into_parts();
        parts.method = original.method;
        parts.uri = Uri::from(original.target);
        parts.headers.clone_from(&head.headers);
        for name in named_by {
            parts.headers.remove(name);
        }
        if let Some(host) = original.host {
            parts.headers.insert(HOST, host);
        }
        Ok(parts)
    }
}

/// The headers that hold a signature, in whatever contract: never to be printed.
pub fn sensitive() -> impl Iterator<Item = HeaderName> {
    auth_request::HEADERS.iter().chain(&forward_auth::HEADERS).cloned()
}

/// The value of a header that must not stand twice: a proxy that adds its own to a client's has
/// left both.
fn once<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h str>, Rejection> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| malformed("a header is not ASCII")),
        (Some(_), Some(_)) => Err(malformed("a header stands twice; the ingress has to replace the client's")),
    }
}

fn malformed(what: &'static str) -> Rejection {
    Rejection::MalformedRequest(Malformed::Original(what))
}

fn method(text: &str) -> Result<Method, Rejection> {
    Method::from_bytes(text.as_bytes()).map_err(|_| Rejection::MethodNotAllowed)
}

/// Longest target that `http::Uri` holds.
const MAX_TARGET: usize = 65_534;

/// A path with a query, byte for byte. `no_query` says what to do where there is none: without its
/// query a request is not what was signed.
fn target(text: &str, no_query: Rejection) -> Result<PathAndQuery, Rejection> {
    // `http` would cut a fragment off silently.
    if !text.starts_with('/') || text.contains('#') {
        return Err(malformed("its target is no path with a query"));
    }
    if text.len() > MAX_TARGET {
        return Err(Rejection::UriTooLong { limit: MAX_TARGET });
    }
    let target = PathAndQuery::try_from(text).map_err(|_| malformed("its target is no path with a query"))?;
    if target.query().is_none() { Err(no_query) } else { Ok(target) }
}

#[cfg(test)]
mod tests;
