//! The layer that ends every request: turns the verdict into the answer, counts it, and writes
//! its one access line. A failure is logged here and nowhere else.

use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower::{Layer, Service};

use crate::access_log::{self, AccessLog, Line};
use crate::clock;
use crate::companion::{self, Contract};
use crate::delivery::{Delivery, Outcome};
use crate::exchange::{Answer as Words, Verdict};
use crate::journal::entry::Ask;
use crate::metrics::{AnswerMetrics, Metrics, UNKNOWN};
use crate::peer::{Arrival, X_REQUEST_ID};
use crate::rejection::Rejection;
use crate::stage::answer;
use crate::telemetry::spans;
use crate::throttle::Throttle;

/// Between two lines about what would be refused, where no access line says so: anybody can cause
/// them, and all are counted.
const COMPLAIN_AGAIN: Duration = Duration::from_secs(1);

/// Where requests are counted and logged.
pub struct Observer {
    metrics: Arc<Metrics>,
    /// For requests that no app could be found for.
    unknown: AnswerMetrics,
    log: Option<AccessLog>,
    logs_requests: AtomicBool,
    complaints: Throttle,
}

impl Observer {
    /// Makes an observer; without a log it only counts.
    pub fn new(metrics: Arc<Metrics>, log: Option<AccessLog>) -> Self {
        let unknown = AnswerMetrics::new(UNKNOWN, None);
        Self { metrics, unknown, log, logs_requests: AtomicBool::new(true), complaints: Throttle::new(COMPLAIN_AGAIN) }
    }

    /// Whether every request is logged from now on.
    pub fn log_requests(&self, all: bool) {
        self.logs_requests.store(all, Ordering::Relaxed);
    }

    /// The log of requests, where they are logged now.
    fn log(&self) -> Option<&AccessLog> {
        self.log.as_ref().filter(|_| self.logs_requests.load(Ordering::Relaxed))
    }

    fn conclude(&self, asked: &Asked, verdict: Verdict) -> Response<Full<Bytes>> {
        let Verdict { exchange, result, headers } = verdict;
        let request_id = asked.request_id.to_str().unwrap_or("-");
        let (mut response, rejection) = match result {
            Ok(Words::Judged(body)) => (answer::reply(body, headers), None),
            Ok(Words::AsItCame(reply)) => (answer::as_it_came(reply), None),
            Ok(Words::Allowed(headers)) => (answer::allowed(headers), None),
            Err(rejection) => (answer::rejection(&rejection, request_id), Some(rejection)),
        };
        let rejection = rejection.as_ref();
        if exchange.companion == Some(Contract::AuthRequest) && rejection.is_some() {
            let denial = companion::denial(response.body());
            response.headers_mut().extend(denial);
        }
        response.headers_mut().insert(X_REQUEST_ID, asked.request_id.clone());

        let took = asked.arrival.elapsed();
        let outcome = exchange.outcome.unwrap_or(Outcome::Rejected);
        let app = exchange.app.as_ref().map_or(&self.unknown, |app| &app.metrics.answers);
        app.answered(&self.metrics, exchange.action, outcome, took.as_secs_f64());
        if let Some(contract) = exchange.companion {
            app.vouched(&self.metrics, contract.as_str(), outcome);
        }
        if let Some(receipt) = &exchange.receipt {
            receipt.given();
        }
        if let Some(rejection) = rejection {
            app.rejected(&self.metrics, rejection.code());
        }
        spans::answered(&response, &exchange, outcome, rejection);
        let log = self.log();
        if let Some(refusal) = &exchange.would_refuse {
            app.would_refuse(&self.metrics, refusal.code());
            if log.is_none() && self.complaints.passes() {
                // Its access line would have said so.
                let app = exchange.app.as_ref().map(|app| app.config.name.as_str());
                let (code, cause) = (refusal.code(), refusal.told());
                tracing::warn!(request_id, app, code, cause, "would be refused, were it not for enforce = false");
            }
        }
        // One that came before the log was turned on has no line.
        if let (Some(log), Some((method, target))) = (log, &asked.line)
            && rejection.is_none_or(Rejection::is_logged)
        {
            log.write(&Line {
                now: clock::now(),
                request_id,
                client: asked.client,
                peer: Some(asked.socket).filter(|socket| *socket != asked.client),
                method: exchange.original.as_ref().map_or(method, |original| &original.0),
                path: exchange.original.as_ref().map_or(target, |original| &original.1),
                exchange: &exchange,
                outcome,
                status: response.status().as_u16(),
                rejection,
                took,
            });
        }
        response.map(Full::new)
    }
}

/// Logs a delivery whose caller hung up or was answered 504 before it ended: what became of the
/// order has no access line to stand in.
pub fn unheard(ask: &Ask, delivery: &Delivery) {
    let subject = &*ask.subject;
    let rejection = delivery.answer.as_ref().err();
    tracing::warn!(
        request_id = &*ask.request_id,
        app = &*subject.app,
        action = &*subject.action,
        debug = subject.debug,
        order_id = subject.order_id.as_deref(),
        delivery = delivery.recorded.map(|(key, _)| key.idempotency_key()),
        attempt = delivery.recorded.map(|(_, attempt)| attempt),
        instance_id = delivery.instance_id.as_deref().or(subject.instance_id.as_deref()),
        outcome = delivery.outcome.as_str(),
        code = rejection.map(Rejection::code),
        backend_ms = delivery.backend_time.map(access_log::milliseconds),
        "a delivery ended when nobody waited for it any more"
    );
}

/// See the module.
#[derive(Clone)]
pub struct AnswerLayer {
    observer: Arc<Observer>,
}

impl AnswerLayer {
    /// A layer that reports to `observer`.
    pub fn new(observer: Arc<Observer>) -> Self {
        Self { observer }
    }
}

impl<S> Layer<S> for AnswerLayer {
    type Service = Answer<S>;
    fn layer(&self, inner: S) -> Answer<S> {
        Answer { inner, observer: Arc::clone(&self.observer) }
    }
}

/// See [`AnswerLayer`].
#[derive(Clone)]
pub struct Answer<S> {
    inner: S,
    observer: Arc<Observer>,
}

impl<S> Service<Request<Arrival>> for Answer<S>
where
    S: Service<Request<Arrival>, Response = Verdict, Error = Infallible>,
{
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Answering<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Arrival>) -> Self::Future {
        let Arrival { peer, client, id, at, .. } = request.body();
        let asked = Asked {
            arrival: *at,
            request_id: id.clone(),
            client: client.address,
            socket: peer.socket,
            line: self.observer.log().map(|_| (request.method().clone(), request.uri().clone())),
        };
        let pending = Pending { asked, observer: Arc::clone(&self.observer), answered: false };
        Answering { inner: self.inner.call(request), pending }
    }
}

/// What the layer keeps of a request while it is answered.
struct Asked {
    arrival: Instant,
    request_id: HeaderValue,
    /// The client's address, as far as it is known.
    client: IpAddr,
    /// The other end of the connection.
    socket: IpAddr,
    /// What its access line needs, if it gets one. Of the target only the path is ever shown.
    line: Option<(http::Method, http::Uri)>,
}

struct Pending {
    asked: Asked,
    observer: Arc<Observer>,
    answered: bool,
}

/// A request that is dropped before its answer lost its caller: hyper ends the future when the
/// connection breaks. Its delivery goes on; here only the fact is noted.
impl Drop for Pending {
    fn drop(&mut self) {
        if !self.answered {
            self.observer.metrics.callers_gone.inc();
            tracing::info!(
                request_id = self.asked.request_id.to_str().unwrap_or("-"),
                client = %self.asked.client,
                "the caller hung up before the answer"
            );
        }
    }
}

pin_project! {
    /// The future of [`Answer`].
    pub struct Answering<F> {
        #[pin]
        inner: F,
        pending: Pending,
    }
}

impl<F> Future for Answering<F>
where
    F: Future<Output = Result<Verdict, Infallible>>,
{
    type Output = Result<Response<Full<Bytes>>, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Ok(verdict) = ready!(this.inner.poll(context));
        this.pending.answered = true;
        Poll::Ready(Ok(this.pending.observer.conclude(&this.pending.asked, verdict)))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Empty};
    use tower::{ServiceBuilder, ServiceExt as _, service_fn};

    use super::*;
    use crate::panics::CatchPanicLayer;
    use crate::peer::{Peer, TrustLayer};

    fn buggy() -> Verdict {
        panic!("a bug that knows a secret")
    }

    #[tokio::test]
    async fn a_panic_costs_one_request_and_is_counted() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let observer = Arc::new(Observer::new(Arc::clone(&metrics), None));
        // The part of `gateway.rs`'s stack that a panic runs through.
        let service = ServiceBuilder::new()
            .layer(TrustLayer)
            .layer(AnswerLayer::new(observer))
            .layer(CatchPanicLayer::new(&metrics.panics))
            .service(service_fn(|_: Request<Arrival>| async { Ok::<_, Infallible>(buggy()) }));
        for count in 1..=2 {
            let arrival = Arrival::new(Peer::default(), &Empty::<Bytes>::new(), Instant::now());
            let request = Request::get("/spi?secret=1").body(arrival).unwrap();
            let response = service.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status(), 500);
            assert_eq!(response.headers()["content-type"], "application/json");
            let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!((&body["success"], &body["code"]), (&false.into(), &"internal".into()));
            assert_eq!(body["request_id"], id);
            assert!(!body.to_string().contains("secret"), "{body}");
            assert_eq!(metrics.panics.get(), count);
        }
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
        assert!(text.contains(r#"spigate_rejections_total{app="unknown",code="internal"} 2"#), "{text}");
    }
}
