//! First stop: is this a request that can be read at all? Method, body, target, host, sizes.
//!
//! Framing itself (lengths, chunks, line ends) is hyper's and `server/wire.rs`'s; what reaches
//! this stage is one well-framed request.

use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Version, request};

use crate::config::Limits;
use crate::rejection::{Malformed, Rejection};

/// Most headers of a request, with the request id that it is given here.
pub const MAX_HEADERS: usize = 80;
/// Most bytes of a request's headers.
pub const MAX_HEADER_BYTES: usize = 32 * 1024;

/// The parts of a request that later stops read.
#[derive(Clone, Copy)]
pub struct Received<'r> {
    path: &'r str,
    query: &'r str,
    host: &'r str,
}

impl<'r> Received<'r> {
    /// The path, as sent.
    pub fn path(&self) -> &'r str {
        self.path
    }

    /// The query, as sent, without `?`.
    pub fn query(&self) -> &'r str {
        self.query
    }

    /// The host, without port, as sent.
    pub fn host(&self) -> &'r str {
        self.host
    }
}

/// Accepts a request's head.
///
/// # Errors
/// `malformed_request`, `method_not_allowed`, `body_not_allowed`, `headers_too_large`,
/// `uri_too_long`.
pub fn receive<'r>(parts: &'r request::Parts, has_body: bool, limits: &Limits) -> Result<Received<'r>, Rejection> {
    let seen = Seen::of(&parts.headers);
    // The host first: whatever is wrong besides, a request without one is not for us.
    let host = host(parts, &seen)?;
    if parts.method != Method::GET {
        return Err(Rejection::MethodNotAllowed);
    }
    // `*` and a bare authority belong to methods that SPI has not; raw bytes beyond ASCII belong
    // to no path at all.
    if !parts.uri.path().starts_with('/') || !parts.uri.path().is_ascii() {
        return Err(Rejection::MalformedRequest(Malformed::Target));
    }
    if has_body || seen.promises_body {
        return Err(Rejection::BodyNotAllowed);
    }
    if parts.headers.len() > MAX_HEADERS || seen.bytes > MAX_HEADER_BYTES {
        return Err(Rejection::HeadersTooLarge);
    }
    let query = parts.uri.query().unwrap_or("");
    if query.len() > limits.query_bytes {
        return Err(Rejection::UriTooLong { limit: limits.query_bytes });
    }
    Ok(Received { path: parts.uri.path(), query, host })
}

/// What one look at all headers finds: requests have few, so it is cheaper than to look each up.
#[derive(Default)]
struct Seen<'r> {
    host: Option<&'r HeaderValue>,
    /// Of the lines of Host.
    hosts: usize,
    /// Whether a header says that something follows the head.
    promises_body: bool,
    bytes: usize,
}

impl<'r> Seen<'r> {
    fn of(headers: &'r HeaderMap) -> Self {
        let mut seen = Self::default();
        for (name, value) in headers {
            seen.bytes += name.as_str().len() + value.len() + 4;
            if *name == HOST {
                seen.host = Some(value);
                seen.hosts += 1;
            } else if *name == CONTENT_LENGTH {
                seen.promises_body |= value.as_bytes() != b"0";
            } else if *name == TRANSFER_ENCODING || *name == UPGRADE {
                seen.promises_body = true;
            }
        }
        seen
    }
}

/// The host that the request is for: exactly one, well-formed, and the same in the target where
/// that has one. HTTP/2 carries it in the target and needs no Host.
fn host<'r>(parts: &'r request::Parts, seen: &Seen<'r>) -> Result<&'r str, Rejection> {
    let malformed = |what| Rejection::MalformedRequest(what);
    let header = match (seen.host, seen.hosts) {
        (Some(host), 1) => Some(host.to_str().map_err(|_| malformed(Malformed::Host))?),
        (None, _) if parts.version >= Version::HTTP_2 => None,
        _ => return Err(malformed(Malformed::Host)),
    };
    let target = parts.uri.authority().map(http::uri::Authority::as_str);
    match (header, target) {
        (Some(header), Some(target)) if !header.eq_ignore_ascii_case(target) => Err(malformed(Malformed::Target)),
        (Some(text), _) | (None, Some(text)) => host_name(text).ok_or(malformed(Malformed::Host)),
        (None, None) => Err(malformed(Malformed::Host)),
    }
}

/// The name in `name:port`; `None` if the text is no such thing.
fn host_name(text: &str) -> Option<&str> {
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            address.parse::<std::net::Ipv6Addr>().ok()?;
            (&text[..address.len() + 2], port)
        }
        None => text.split_at(memchr::memchr(b':', text.as_bytes()).unwrap_or(text.len())),
    };
    let port_is_fine = port.is_empty()
        || port
            .strip_prefix(':')
            .is_some_and(|port| !port.is_empty() && port.parse::<u16>().is_ok() && !port.starts_with('+'));
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let name_is_fine = name.starts_with('[') || (!name.is_empty() && name.bytes().all(plain));
    (port_is_fine && name_is_fine).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names() {
        for (text, name) in
            [("a.example", "a.example"), ("a:80", "a"), ("127.0.0.1:8080", "127.0.0.1"), ("[::1]:8", "[::1]")]
        {
            assert_eq!(host_name(text), Some(name));
        }
        for text in
            ["", ":80", "a:", "a:x", "a:99999", "a:+80", "a b", "a/b", "u@a", "a,b", "[::1", "[x]", "[::1]8", "ä"]
        {
            assert_eq!(host_name(text), None, "{text}");
        }
    }
}
