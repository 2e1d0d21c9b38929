//! A request to a backend, as the bytes that are sent. Pure: no I/O.
//!
//! It is written once, from front to back, into one buffer: a map of headers, only to be walked
//! through and written out, would cost more than all the rest of a forwarded request's making.
//! What may stand in a header's value is guarded by type (`HeaderValue`) or looked at here.

use std::io::Write as _;
use std::ops::Range;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

/// See the module.
pub struct Outgoing {
    method: Method,
    /// Request line and headers so far, each with its line end.
    head: Vec<u8>,
    /// Where in it the value of Host stands.
    host: Range<usize>,
    /// Headers of a trace, which may still be changed.
    traced: HeaderMap,
    body: Bytes,
}

/// A request that is complete.
pub(super) struct Written {
    bytes: Vec<u8>,
    host: Range<usize>,
}

impl Outgoing {
    /// Room for the request line and headers of a usual request.
    const ROOM: usize = 1536;

    /// A request for `target`, which must be one: a path with or without a query, as `http::Uri`
    /// holds it.
    pub fn new(method: Method, target: &http::Uri, host: &HeaderValue) -> Self {
        let mut head = Vec::with_capacity(Self::ROOM);
        head.extend_from_slice(method.as_str().as_bytes());
        head.push(b' ');
        head.extend_from_slice(target.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).as_bytes());
        head.extend_from_slice(b" HTTP/1.1\r\n");
        put_line(&mut head, &HOST, host.as_bytes());
        let end = head.len() - LINE_END.len();
        Self { method, head, host: end - host.len()..end, traced: HeaderMap::new(), body: Bytes::new() }
    }

    /// Its method.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// Adds a header. Which stands already is not looked at: whoever builds a request knows.
    pub fn header(&mut self, name: &HeaderName, value: &HeaderValue) {
        put_line(&mut self.head, name, value.as_bytes());
    }

    /// Adds a header with this text; nothing if it has other characters than visible ASCII and
    /// spaces.
    pub fn text(&mut self, name: &HeaderName, value: &str) {
        // Every byte is looked at, which goes faster than to stop at the first.
        if value.bytes().fold(true, |all, byte| all & (b' '..0x7f).contains(&byte)) {
            put_line(&mut self.head, name, value.as_bytes());
        }
    }

    /// The headers of a trace.
    pub fn traced_mut(&mut self) -> &mut HeaderMap {
        &mut self.traced
    }

    /// Sets the body.
    pub fn set_body(&mut self, body: impl Into<Bytes>) {
        self.body = body.into();
    }

    /// Nothing more is added.
    pub(super) fn write(self) -> Written {
        let Self { head: mut bytes, host, traced, body, .. } = self;
        for (name, value) in &traced {
            put_line(&mut bytes, name, value.as_bytes());
        }
        if !body.is_empty() {
            let _ = write!(bytes, "{CONTENT_LENGTH}: {}\r\n", body.len());
        }
        bytes.extend_from_slice(LINE_END);
        bytes.extend_from_slice(&body);
        Written { bytes, host }
    }
}

impl Written {
    /// All of it.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Names another host.
    pub(super) fn rename(&mut self, host: &HeaderValue) {
        self.bytes.splice(self.host.clone(), host.as_bytes().iter().copied());
        self.host.end = self.host.start + host.len();
    }
}

const LINE_END: &[u8] = b"\r\n";

fn put_line(out: &mut Vec<u8>, name: &HeaderName, value: &[u8]) {
    let name = name.as_str().as_bytes();
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(LINE_END);
}

#[cfg(test)]
mod tests {
    use http::header::{ACCEPT, USER_AGENT};

    use super::*;

    fn text(written: &Written) -> &str {
        std::str::from_utf8(written.bytes()).unwrap()
    }

    #[test]
    fn a_request_is_written_as_http_wants_it() {
        let value = HeaderValue::from_static;
        let target = "/spi/renew?a=b".parse().unwrap();
        let mut request = Outgoing::new(Method::POST, &target, &value("a.example"));
        request.header(&USER_AGENT, &value("x"));
        request.header(&ACCEPT, &value("1"));
        request.header(&ACCEPT, &value("2"));
        request.text(&ACCEPT, "3 ~");
        request.traced_mut().insert("traceparent", value("00-1"));
        request.set_body("{}");
        let mut written = request.write();
        let rest = "user-agent: x\r\naccept: 1\r\naccept: 2\r\naccept: 3 ~\r\ntraceparent: 00-1\r\n\
                    content-length: 2\r\n\r\n{}";
        assert_eq!(text(&written), format!("POST /spi/renew?a=b HTTP/1.1\r\nhost: a.example\r\n{rest}"));
        for host in ["[::1]:8080", "b", "a.example"] {
            written.rename(&value(host));
            assert_eq!(text(&written), format!("POST /spi/renew?a=b HTTP/1.1\r\nhost: {host}\r\n{rest}"));
        }
    }

    #[test]
    fn no_text_can_end_its_line() {
        for bad in ["a\r\nx-spi-app: crm", "a\nb", "\0", "\u{7f}", "é", "\t"] {
            let mut request = Outgoing::new(Method::GET, &"/".parse().unwrap(), &HeaderValue::from_static("h"));
            request.text(&ACCEPT, bad);
            assert_eq!(text(&request.write()), "GET / HTTP/1.1\r\nhost: h\r\n\r\n", "{bad:?}");
        }
    }
}
