//! The spans of a request: what debugging shows of its way, and what a trace is made of.
//!
//! All of them are at debug level, and cost next to nothing while nobody listens. Names and
//! attributes are OpenTelemetry's semantic conventions where those have one. Nothing of a query
//! or a body is among them.

use std::task::{Context, Poll};

use http::{HeaderValue, Method, Request, Response};
use tower::{Layer, Service};
use tracing::field::Empty;
use tracing::instrument::{Instrument as _, Instrumented};
use tracing::{Span, debug_span};

use super::traces;
use crate::access_log;
use crate::backend::outgoing::Outgoing;
use crate::backend::{CallError, RawReply};
use crate::delivery::Outcome;
use crate::exchange::Exchange;
use crate::peer::Arrival;
use crate::rejection::Rejection;

/// Puts every request into a span of its own, from its arrival to its answer. tower-http's layer
/// does it, too, but reads the clock six times for times that nobody asks for.
#[derive(Clone, Copy)]
pub struct SpanLayer;

impl<S> Layer<S> for SpanLayer {
    type Service = InSpan<S>;
    fn layer(&self, inner: S) -> InSpan<S> {
        InSpan { inner }
    }
}

/// See [`SpanLayer`].
#[derive(Clone)]
pub struct InSpan<S> {
    inner: S,
}

impl<S: Service<Request<Arrival>>> Service<Request<Arrival>> for InSpan<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = Instrumented<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Arrival>) -> Self::Future {
        let span = self::request(&request);
        let answer = span.in_scope(|| self.inner.call(request));
        answer.instrument(span)
    }
}

fn request(request: &Request<Arrival>) -> Span {
    let Arrival { peer, client, id, .. } = request.body();
    let span = debug_span!(
        "request",
        otel.kind = "server",
        otel.status_code = Empty,
        request_id = id.to_str().ok(),
        client.address = tracing::field::display(client.address),
        http.request.method = known(request.method()),
        url.path = access_log::shown_path(request.uri().path()),
        http.route = Empty,
        http.response.status_code = Empty,
        "error.type" = Empty,
        spigate.app = Empty,
        spigate.action = Empty,
        spigate.outcome = Empty,
    );
    traces::continue_from(&span, request.headers(), peer.trusted);
    span
}

/// A method, or the conventions' word for those that a stranger made up.
fn known(method: &Method) -> &str {
    let standard = [
        Method::GET,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::HEAD,
        Method::OPTIONS,
        Method::TRACE,
        Method::CONNECT,
    ];
    if standard.contains(method) { method.as_str() } else { "_OTHER" }
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
        traces::rename(&span, || format!("GET {}", app.config.path));
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
    let span = debug_span!(parent: None, "delivery", request_id);
    traces::follow_current(&span);
    span
}

/// What the journal is asked before a delivery.
pub fn claim() -> Span {
    debug_span!("claim", spigate.decision = Empty)
}

/// A call of the backend, whose request names it as its parent where it is traced.
pub fn backend(request: &mut Outgoing, host: Option<&HeaderValue>) -> Span {
    let host = || host.and_then(|host| http::uri::Authority::try_from(host.as_bytes()).ok());
    let span = debug_span!(
        "backend",
        otel.kind = "client",
        otel.name = request.method().as_str(),
        otel.status_code = Empty,
        http.request.method = request.method().as_str(),
        server.address = host().as_ref().map(http::uri::Authority::host),
        server.port = host().as_ref().and_then(http::uri::Authority::port_u16),
        http.response.status_code = Empty,
        "error.type" = Empty,
    );
    if !span.is_disabled() {
        traces::hand_on(&span, request.traced_mut());
    }
    span
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
