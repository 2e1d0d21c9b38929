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

use crate::{json, percent};

/// See the module.
pub struct Outgoing {
    method: Method,
    /// Request line and headers so far, each with its line end.
    head: Vec<u8>,
    /// Where in it the value of Host stands.
    host: Range<usize>,
    /// Headers of a trace, which may still be changed. Most requests are in none.
    traced: Option<Box<HeaderMap>>,
    body: Bytes,
}

/// A header's name, and one of its values.
pub type Line = (HeaderName, HeaderValue);

/// A header that is the same each time, and how it is written.
pub struct Fixed {
    name: HeaderName,
    value: HeaderValue,
    line: Vec<u8>,
}

impl Fixed {
    /// Prepares a header.
    pub fn new(name: HeaderName, value: HeaderValue) -> Self {
        let mut line = Vec::new();
        put_line(&mut line, &name, value.as_bytes());
        Self { name, value, line }
    }

    /// Its name.
    pub fn name(&self) -> &HeaderName {
        &self.name
    }

    /// Its value.
    pub fn value(&self) -> &HeaderValue {
        &self.value
    }
}

/// A request that is complete.
pub(super) struct Written {
    bytes: Vec<u8>,
    host: Range<usize>,
}

impl Outgoing {
    /// Room for a usual request. What is larger costs the allocator several times as much.
    const ROOM: usize = 1024;

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
        Self { method, head, host: end - host.len()..end, traced: None, body: Bytes::new() }
    }

    /// Its method.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// Adds a header. Which stands already is not looked at: whoever builds a request knows.
    pub fn header(&mut self, name: &HeaderName, value: &HeaderValue) {
        put_line(&mut self.head, name, value.as_bytes());
    }

    /// Adds a header that is the same each time.
    pub fn fixed(&mut self, header: &Fixed) {
        self.head.extend_from_slice(&header.line);
    }

    /// Adds a header with this text, percent-encoded where its decoders need it.
    pub fn encoded(&mut self, name: &HeaderName, text: &str) {
        put_name(&mut self.head, name);
        percent::encode(text, &percent::IN_HEADERS, |bytes| self.head.extend_from_slice(bytes));
        self.head.extend_from_slice(LINE_END);
    }

    /// Adds a header with this text; nothing if it has other characters than visible ASCII and
    /// spaces.
    pub fn text(&mut self, name: &HeaderName, value: &str) {
        if json::is_plain_ascii(value) {
            put_line(&mut self.head, name, value.as_bytes());
        }
    }

    /// The headers of a trace.
    pub fn traced_mut(&mut self) -> &mut HeaderMap {
        self.traced.get_or_insert_default()
    }

    /// Sets the body.
    pub fn set_body(&mut self, body: impl Into<Bytes>) {
        self.body = body.into();
    }

    /// Nothing more is added.
    pub(super) fn write(self) -> Written {
        let Self { method, head: mut bytes, host, traced, body } = self;
        for (name, value) in traced.iter().flat_map(|headers| headers.iter()) {
            put_line(&mut bytes, name, value.as_bytes());
        }
        // A method that has a body has a length, even of none: some servers ask for it (411).
        if !body.is_empty() || matches!(method, Method::POST | Method::PUT | Method::PATCH) {
            // Writing to a Vec cannot fail.
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
    put_name(out, name);
    out.extend_from_slice(value);
    out.extend_from_slice(LINE_END);
}

fn put_name(out: &mut Vec<u8>, name: &HeaderName) {
    out.extend_from_slice(name.as_str().as_bytes());
    out.extend_from_slice(b": ");
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
        request.fixed(&Fixed::new(ACCEPT, value("4")));
        request.encoded(&ACCEPT, "5 套");
        request.traced_mut().insert("traceparent", value("00-1"));
        request.set_body("{}");
        let mut written = request.write();
        let rest = "user-agent: x\r\naccept: 1\r\naccept: 2\r\naccept: 3 ~\r\naccept: 4\r\n\
                    accept: 5%20%E5%A5%97\r\ntraceparent: 00-1\r\ncontent-length: 2\r\n\r\n{}";
        assert_eq!(text(&written), format!("POST /spi/renew?a=b HTTP/1.1\r\nhost: a.example\r\n{rest}"));
        for host in ["[::1]:8080", "b", "a.example"] {
            written.rename(&value(host));
            assert_eq!(text(&written), format!("POST /spi/renew?a=b HTTP/1.1\r\nhost: {host}\r\n{rest}"));
        }
    }

    #[test]
    fn a_method_that_has_a_body_tells_the_length_of_none() {
        for (method, tells) in
            [(Method::GET, false), (Method::DELETE, false), (Method::POST, true), (Method::PUT, true)]
        {
            let request = Outgoing::new(method.clone(), &"/".parse().unwrap(), &HeaderValue::from_static("h"));
            assert_eq!(text(&request.write()).contains("\r\ncontent-length: 0\r\n"), tells, "{method}");
        }
    }

    #[test]
    fn no_text_can_end_its_line() {
        for bad in ["a\r\nx-spi-app: crm", "a\nb", "\0", "\u{7f}", "é", "\t"] {
            let mut request = Outgoing::new(Method::GET, &"/".parse().unwrap(), &HeaderValue::from_static("h"));
            request.text(&ACCEPT, bad);
            assert_eq!(text(&request.write()), "GET / HTTP/1.1\r\nhost: h\r\n\r\n", "{bad:?}");
            let mut request = Outgoing::new(Method::GET, &"/".parse().unwrap(), &HeaderValue::from_static("h"));
            request.encoded(&ACCEPT, bad);
            let written = request.write();
            let value = text(&written).strip_prefix("GET / HTTP/1.1\r\nhost: h\r\naccept: ").unwrap();
            assert!(value.strip_suffix("\r\n\r\n").unwrap().bytes().all(|byte| byte.is_ascii_graphic()), "{bad:?}");
        }
    }
}
