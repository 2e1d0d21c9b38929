//! Traces over OTLP/HTTP: what the spans of [`super::spans`] become where a collector is
//! configured.
//!
//! Ended spans wait in a queue of bounded size for a thread of their own; what does not fit is
//! dropped. A collector that is slow, gone or refuses costs requests nothing, and is told once.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HeaderExtractor, HeaderInjector, HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use rustls::pki_types::ServerName;
use tokio::runtime::Handle;
use tokio_rustls::TlsConnector;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::{Layer, Registry};

use super::BoxedLayer;
use crate::backend::dial::Dialer;
use crate::backend::{client_tls, describe, tls};
use crate::config::Endpoint;
use crate::config::telemetry::TelemetryConfig;

/// How long a collector may take to take spans, and all of them at the end of the process.
const EXPORT_WITHIN: Duration = Duration::from_secs(3);
/// Longest answer of a collector that is read.
const LONGEST_ANSWER: usize = 64 * 1024;
/// The service's name where nobody gave it one.
const SERVICE: &str = "spigate";
const SERVICE_NAME: &str = "service.name";
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Keeps traces going to their collector.
pub struct Traces {
    provider: SdkTracerProvider,
}

/// Traces as they are configured, and the layer that makes them; nothing without a collector.
/// Spans are sent by tasks of `runtime`.
///
/// # Errors
/// A certificate store that cannot be read, or a thread that cannot be started.
pub fn start(config: &TelemetryConfig, runtime: &Handle) -> Result<Option<(Traces, BoxedLayer)>, String> {
    let Some((endpoint, path)) = &config.collector else { return Ok(None) };
    let collector = Collector::new(endpoint, path, runtime.clone())?;
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(collector)
        // Read by the exporter, used by nobody: the collector's client knows the way.
        .with_endpoint(format!("http://collector{path}"))
        .with_timeout(EXPORT_WITHIN)
        .build()
        .map_err(|error| error.to_string())?;
    let share = f64::from(u8::try_from(config.sample_percent).unwrap_or(100)) / 100.0;
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(share))))
        .with_resource(resource(config.service_name.as_deref()))
        .build();
    let layer = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer(SERVICE))
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        // Ours only, and no events: those are for the log.
        .with_filter(
            filter_fn(|span| span.is_span() && span.target().starts_with(super::OURS))
                .with_max_level_hint(LevelFilter::DEBUG),
        );
    let layer: BoxedLayer = Layer::<Registry>::boxed(layer);
    Ok(Some((Traces { provider }, layer)))
}

/// Who makes these traces. What the standard variables say of it is taken in by the library.
fn resource(name: Option<&str>) -> Resource {
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let known = Resource::builder().with_attribute(version.clone()).build();
    let is_named = known.get(&SERVICE_NAME.into()).is_some_and(|name| !name.as_str().starts_with("unknown_service"));
    match name {
        None if is_named => known,
        name => {
            let name = name.unwrap_or(SERVICE).to_owned();
            Resource::builder().with_attribute(version).with_service_name(name).build()
        }
    }
}

impl Traces {
    /// Sends what is still waiting, for a few seconds at most.
    pub async fn flush(&self) {
        let provider = self.provider.clone();
        // It waits for a thread, which waits for this runtime.
        let ended = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(EXPORT_WITHIN));
        let _ = tokio::time::timeout(EXPORT_WITHIN, ended).await;
    }
}

/// Makes a request's span part of the trace that a trusted proxy began. What a stranger claims
/// is linked to and nothing more: it could have everything traced, or mix its traces with ours.
pub(super) fn continue_from(span: &Span, headers: &HeaderMap, trusted: bool) {
    let mut parents = headers.get_all(TRACEPARENT).iter();
    if span.is_disabled() || parents.next().is_none() || parents.next().is_some() {
        return;
    }
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(headers));
    let parent = context.span().span_context().clone();
    if !parent.is_valid() {
        return;
    }
    if trusted {
        // Fails only where nothing is traced.
        let _ = span.set_parent(context);
    } else {
        span.add_link(parent);
    }
}

/// Makes a span that outlives the current one part of its trace all the same.
pub(super) fn follow_current(span: &Span) {
    let current = Span::current();
    if !span.is_disabled() && !current.is_disabled() {
        let _ = span.set_parent(current.context());
    }
}

/// Gives a span that has begun another name, as its part of a trace.
pub(super) fn rename(span: &Span, name: impl FnOnce() -> String) {
    let context = span.context();
    if context.span().is_recording() {
        context.span().update_name(name());
    }
}

/// Names a span as the parent of what the receiver of these headers does. Where nothing is
/// traced they stay as they are.
pub(super) fn hand_on(span: &Span, headers: &mut HeaderMap) {
    let context = span.context();
    if !context.span().span_context().is_valid() {
        return;
    }
    headers.remove(TRACESTATE);
    TraceContextPropagator::new().inject_context(&context, &mut HeaderInjector(headers));
    if headers.get(TRACESTATE).is_some_and(HeaderValue::is_empty) {
        headers.remove(TRACESTATE);
    }
}

/// A client that takes spans to the collector, with the TLS that everything here uses.
struct Collector {
    dialer: std::sync::Arc<Dialer>,
    authority: HeaderValue,
    path: PathAndQuery,
    runtime: Handle,
    /// Whether its last call failed, and that was told.
    failing: AtomicBool,
}

impl Collector {
    fn new(endpoint: &Endpoint, path: &str, runtime: Handle) -> Result<Self, String> {
        let tls = if endpoint.tls {
            let connector = TlsConnector::from(std::sync::Arc::new(client_tls(None)?));
            let name: ServerName<'static> = tls::server_name(endpoint.address.host())?;
            Some((connector, name))
        } else {
            None
        };
        let dialer = Dialer { address: endpoint.address.clone(), tls, limit: EXPORT_WITHIN };
        Ok(Self {
            dialer: std::sync::Arc::new(dialer),
            authority: endpoint.authority.clone(),
            path: path.parse().map_err(|_| "the path of telemetry.otlp_endpoint cannot be called".to_owned())?,
            runtime,
            failing: AtomicBool::new(false),
        })
    }

    fn told(&self, failure: Option<&str>) {
        let was_failing = self.failing.swap(failure.is_some(), Ordering::Relaxed);
        match failure {
            Some(cause) if !was_failing => {
                tracing::warn!(cause, "traces cannot be delivered: they are dropped until they can");
            }
            None if was_failing => tracing::info!("traces are delivered again"),
            _ => {}
        }
    }
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Collector")
    }
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let mut request = request.map(Full::new);
        *request.uri_mut() = Uri::from(self.path.clone());
        request.headers_mut().insert(HOST, self.authority.clone());
        let dialer = std::sync::Arc::clone(&self.dialer);
        let sent = self.runtime.spawn(async move {
            let sent = tokio::time::timeout(EXPORT_WITHIN, send(&dialer, request));
            sent.await.unwrap_or_else(|_| Err("no answer in time".into()))
        });
        let result = sent.await.unwrap_or_else(|_| Err("the process ends".into()));
        match &result {
            Ok(answer) if answer.status().is_success() => self.told(None),
            Ok(answer) => self.told(Some(&format!("the collector answered {}", answer.status().as_u16()))),
            Err(cause) => self.told(Some(cause)),
        }
        result.map_err(Into::into)
    }
}

/// One request on a connection of its own: there is one in seconds.
async fn send(dialer: &Dialer, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, String> {
    let stream = TokioIo::new(dialer.connect().await?);
    let (mut sender, connection) = http1::handshake(stream).await.map_err(|error| describe(&error))?;
    // Ends with its sender; its error reaches the caller through that.
    tokio::spawn(connection);
    let answer = sender.send_request(request).await.map_err(|error| describe(&error))?;
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, LONGEST_ANSWER).collect().await.map_err(|error| error.to_string())?;
    Ok(Response::from_parts(head, body.to_bytes()))
}
