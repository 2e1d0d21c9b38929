//! The spans of a request: what debugging shows of its way, and what a trace is made of.
//!
//! All of them are at debug level, and cost next to nothing while nobody listens. Names and
//! attributes are OpenTelemetry's semantic conventions where those have one. Nothing of a query
//! or a body is among them.

use http::{HeaderValue, Request, Response, header};
use tracing::field::{Empty, display};
use tracing::{Span, debug_span};

use crate::access_log;
use crate::backend::{CallError, RawReply};
use crate::delivery::Outcome;
use crate::exchange::Exchange;
use crate::peer::Peer;
use crate::rejection::Rejection;

/// The whole of a request, from its arrival to its answer.
pub fn request<B>(request: &Request<B>) -> Span {
    let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
    let id = request.extensions().get::<tower_http::request_id::RequestId>();
    debug_span!(
        "request",
        otel.kind = "server",
        otel.name = Empty,
        otel.status_code = Empty,
        request_id = id.and_then(|id| id.header_value().to_str().ok()),
        client.address = %peer.address,
        http.request.method = request.method().as_str(),
        url.path = access_log::shown_path(request.uri().path()),
        http.route = Empty,
        http.response.status_code = Empty,
        "error.type" = Empty,
        spigate.app = Empty,
        spigate.action = Empty,
        spigate.outcome = Empty,
    )
}

/// Tells the span of the request that is being answered what it came to.
pub fn answered<B>(response: &Response<B>, exchange: &Exchange, outcome: Outcome, rejection: Option<&Rejection>) {
    let span = Span::current();
    if span.is_disabled() {
        return;
    }
    span.record("http.response.status_code", response.status().as_u16());
    span.record("spigate.outcome", outcome.as_str());
    if let Some(app) = exchange.app.as_deref() {
        span.record("spigate.app", app.config.name.as_str());
        span.record("http.route", app.config.path.as_str());
        span.record("otel.name", display(format_args!("GET {}", app.config.path)));
        if let Some(action) = exchange.action {
            span.record("spigate.action", app.config.dialect.actions[action].name.as_str());
        }
    }
    if let Some(rejection) = rejection {
        span.record("error.type", rejection.code());
    }
    // What a caller did wrong is no error of the server.
    if response.status().is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
}

/// The look at the signature.
pub fn verify() -> Span {
    debug_span!("verify", spigate.key = Empty)
}

/// A delivery, which outlives its request where it has to; so it is no part of the request's
/// span, which ends with the answer.
pub fn delivery(request_id: &str) -> Span {
    debug_span!(parent: None, "delivery", request_id)
}

/// What the journal is asked before a delivery.
pub fn claim() -> Span {
    debug_span!("claim", spigate.decision = Empty)
}

/// A call of the backend.
pub fn backend<B>(request: &Request<B>) -> Span {
    let host = request.headers().get(header::HOST).map(HeaderValue::as_bytes);
    let host = host.and_then(|host| http::uri::Authority::try_from(host).ok());
    debug_span!(
        "backend",
        otel.kind = "client",
        otel.name = request.method().as_str(),
        otel.status_code = Empty,
        http.request.method = request.method().as_str(),
        server.address = host.as_ref().map(http::uri::Authority::host),
        server.port = host.as_ref().and_then(http::uri::Authority::port_u16),
        http.response.status_code = Empty,
        "error.type" = Empty,
    )
}

/// Tells the span of a call what it came to.
pub fn called(span: &Span, result: &Result<RawReply, CallError>) {
    let error = match result {
        Ok(reply) => {
            span.record("http.response.status_code", reply.status.as_u16());
            (reply.status.is_client_error() || reply.status.is_server_error()).then_some("status")
        }
        Err(CallError::Unreachable(_)) => Some("unreachable"),
        Err(CallError::Broken(_)) => Some("broken"),
        Err(CallError::TimedOut) => Some("timeout"),
    };
    if let Some(error) = error {
        span.record("error.type", error);
        span.record("otel.status_code", "ERROR");
    }
}
