//! Last stop: the answer in the one form that the platform accepts.
//!
//! `Content-Type` is exactly `application/json`: the platform compares the whole header.

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde::Serialize;

use crate::backend::RawReply;
use crate::rejection::Rejection;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Room for so many headers is used again; hyper keeps it for as long as the connection is open.
const ROOM: usize = 24;

/// The backend's words, as they came. Of the request's headers only their room is used.
pub fn reply(body: Bytes, request: HeaderMap) -> Response<Bytes> {
    let mut headers = if request.capacity() <= ROOM { request } else { HeaderMap::new() };
    headers.clear();
    headers.insert(CONTENT_TYPE, JSON);
    let mut response = Response::new(body);
    *response.headers_mut() = headers;
    response
}

/// The backend's reply as it came, for an app that is observed only.
pub fn as_it_came(reply: RawReply) -> Response<Bytes> {
    let RawReply { status, content_type, content_encoding, body } = reply;
    let mut response = Response::new(body);
    *response.status_mut() = status;
    for (name, value) in [(CONTENT_TYPE, content_type), (CONTENT_ENCODING, content_encoding)] {
        response.headers_mut().extend(value.map(|value| (name, value)));
    }
    response
}

/// Yes, to an ingress that asked. No body, so that this is no success for a platform that it reaches
/// by mistake: nothing has been delivered.
pub fn allowed(headers: HeaderMap) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.headers_mut() = headers;
    response
}

/// A rejection.
pub fn rejection(rejection: &Rejection, request_id: &str) -> Response<Bytes> {
    #[derive(Serialize)]
    struct Body<'a> {
        success: bool,
        message: &'a str,
        code: &'static str,
        request_id: &'a str,
    }
    let body = Body { success: false, message: &rejection.message(), code: rejection.code(), request_id };
    // Texts and a boolean always serialize; were it otherwise, an empty body is still no success.
    let body = serde_json::to_vec(&body).unwrap_or_default();
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = rejection.status();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, JSON);
    if let Some(seconds) = rejection.retry_after() {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if rejection.status() == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET"));
    }
    if rejection.closes_connection() {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
