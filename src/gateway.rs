//! The whole way of a request on one screen: the stack of layers, outermost first, and behind
//! it the stops, in order. `docs/architecture.md` tells the same with a diagram.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, request};
use http_body_util::Full;
use prometheus::IntGauge;
use tokio::sync::watch;
use tokio::time::Instant;
use tower::{Service, ServiceBuilder};
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;

use crate::app::App;
use crate::backend::Backend;
use crate::clock;
use crate::companion::{self, COMPANION, Contract};
use crate::config::TestConnection;
use crate::delivery::{Delivery, Outcome};
use crate::dialect::ActionKind;
use crate::exchange::{Answer, Exchange, Verdict};
use crate::journal::entry::{Ask, Lifecycle, Subject};
use crate::journal::key::{self, DeliveryKey, Extras, Fingerprint, Lookalike, Origin};
use crate::metrics::{CountPanic, InFlight, Metrics};
use crate::observe::{self, AnswerLayer, Observer};
use crate::panics::CatchPanicLayer;
use crate::peer::{Arrival, TrustLayer};
use crate::places::{Place, Places};
use crate::rejection::Rejection;
use crate::served::Served;
use crate::stage::claim::{Deliveries, Go, Order};
use crate::stage::contract::Checked;
use crate::stage::normalize::{self, Attempt};
use crate::stage::parse::Parsed;
use crate::stage::receive::Received;
use crate::stage::{contract, forward, freshness, parse, receive, route, validate, verify};
use crate::telemetry::spans::SpanLayer;

/// Everything that requests share.
pub struct Gateway {
    /// What they are judged by, as the configuration has it now.
    pub served: watch::Receiver<Arc<Served>>,
    /// Deliveries, and the journal behind them.
    pub deliveries: Deliveries,
    /// Places for requests.
    pub slots: Places,
    /// All metrics.
    pub metrics: Arc<Metrics>,
}

/// How far a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The whole way, to its app's backend.
    Deliver,
    /// Up to the contract: an ingress asks about it, and passes it on itself.
    Vouch,
}

/// The stack around the stops. `sensitive` are headers that carry signatures.
pub fn stack(
    gateway: Arc<Gateway>,
    way: Way,
    observer: Arc<Observer>,
    sensitive: Arc<[HeaderName]>,
) -> impl Service<Request<Arrival>, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send> + Clone {
    let panics = CatchPanicLayer::new(&gateway.metrics.panics);
    ServiceBuilder::new()
        // Who asks, and the request's id. What a stranger claims of itself goes first, so that no
        // layer below believes it, and everything that follows can name the request.
        .layer(TrustLayer)
        // Before anything could print headers.
        .layer(SetSensitiveRequestHeadersLayer::from_shared(sensitive))
        // A span for debugging and traces, with the path only: the query holds the signature.
        .layer(SpanLayer)
        // Answers, counts and logs whatever the layers below came to, a panic included.
        .layer(AnswerLayer::new(observer))
        // A bug costs one request.
        .layer(panics)
        .service(Spi { gateway, way })
}

impl Gateway {
    /// The stops, in order. Each takes what the one before has proven.
    async fn exchange(
        &self,
        head: &request::Parts,
        caller: &Arrival,
        story: &mut Exchange,
    ) -> Result<Answer, Rejection> {
        // To its end the request is judged by the configuration that it found.
        let served = Arc::clone(&self.served.borrow());
        // A place first: under overload the cheapest answer is the one that reads nothing.
        let slot = self.slots.take(served.limits.in_flight).ok_or(Rejection::Overloaded)?;
        // Every stop that needs nobody else.
        let judged = self.judge(&served, Way::Deliver, head, caller, story)?;
        // Only an app that has one gets here.
        let backend = judged.app.backend.as_ref().ok_or(Rejection::UnknownApp)?;
        if !judged.app.config.enforce {
            // Its way ends here: what breaks a rule is told, and passed on all the same.
            return Box::pin(self.observe(&judged, backend, head, caller, story)).await;
        }
        let to = Destination { app: judged.app, backend };
        // From here on somebody paid: claim, normalize, forward, validate, record.
        let delivery = self.deliver(&served, to, judged.checked?, caller, slot, story).await?;
        story.conclude(delivery).map(Answer::Judged)
    }

    /// The same for a request that an ingress holds and asks about. It ends where the other way
    /// begins to deliver: nothing is claimed, and what is forwarded and answered is the ingress's.
    fn vouch(&self, head: &request::Parts, caller: &Arrival, story: &mut Exchange) -> Result<Answer, Rejection> {
        let served = Arc::clone(&self.served.borrow());
        let contract = Contract::of(head);
        story.companion = contract.as_ref().ok().copied();
        // Before anything else: whoever asks and may not learns nothing at all.
        let may_ask = served.doors.get(COMPANION).is_some_and(|door| door.believed.include(caller.peer.socket));
        if !may_ask {
            return Err(Rejection::NotTheIngress { peer: caller.peer.socket });
        }
        let _slot = self.slots.take(served.limits.in_flight).ok_or(Rejection::Overloaded)?;
        // The request that it is about, which is judged as if it had come itself.
        let contract = contract?;
        let original = contract.original(head)?;
        story.original = Some(Box::new((original.method.clone(), original.uri.clone())));
        let Judged { app, checked, .. } = self.judge(&served, Way::Vouch, &original, caller, story)?;
        let mut headers = match checked {
            Ok(checked) => {
                let idempotency_key = delivery_key(app, &checked).idempotency_key();
                let attempt = Attempt { number: 1, request_id: &caller.id, idempotency_key };
                normalize::headers(app, &checked, &attempt)
            }
            Err(refusal) if !app.config.enforce => {
                story.would_refuse = Some(refusal);
                normalize::headers_of_observed(app, &caller.id)
            }
            Err(refusal) => return Err(refusal),
        };
        if contract == Contract::ExtAuthz {
            headers.extend(companion::to_remove(app, &head.headers, &headers));
        }
        story.outcome = Some(Outcome::Allowed);
        Ok(Answer::Allowed(headers))
    }

    /// The stops that need nobody else: what the request is, whose it is, and whether it is genuine,
    /// recent and complete. A request that breaks a rule of its app is judged, too: whether that
    /// counts is the app's affair.
    fn judge<'r>(
        &self,
        served: &'r Served,
        way: Way,
        head: &'r request::Parts,
        caller: &Arrival,
        story: &mut Exchange,
    ) -> Result<Judged<'r>, Rejection> {
        // Method, host, body, sizes: what needs no look at the content.
        let received = receive::receive(head, caller.has_body, &served.limits)?;
        // The strict reading comes before any use of a parameter.
        let parsed = parse::parse(&received, &served.limits);
        // The app decides on dialect and keys. One without a backend is the companion's only.
        let app = match served.routes.find(&received) {
            Ok(app) if way == Way::Vouch || app.backend.is_some() => app,
            unknown => return Err(parsed.err().or(unknown.err()).unwrap_or(Rejection::UnknownApp)),
        };
        let running = InFlight::new(&app.metrics.in_flight);
        story.app = Some(Arc::clone(app));
        // Before the work of verifying: whoever may not call learns nothing of keys and times.
        let checked = route::admit(app, caller.client)
            .and(parsed)
            .and_then(|parsed| self.check(app, parsed, head, &received, caller, story));
        Ok(Judged { app, received, checked, _running: running })
    }

    /// The stops that ask whether the platform meant just this.
    fn check(
        &self,
        app: &App,
        parsed: Parsed,
        head: &request::Parts,
        received: &Received<'_>,
        caller: &Arrival,
        story: &mut Exchange,
    ) -> Result<Box<Checked>, Rejection> {
        // Before anything in the request is believed.
        let now = clock::now();
        let verified = verify::verify(app, parsed, head.method.as_str(), &head.headers, now)?;
        story.key = Some(verified.key());
        app.metrics.verifications[verified.key()].inc();
        // A genuine request, but perhaps an old one.
        let fresh = freshness::check(app, verified, now)?;
        story.action = fresh.action(app);
        // Only now may an error name a field to the caller.
        let passed_on = normalize::passed_on(&head.headers, app, caller.vouched());
        // By its address from here on: every future on the way would make room for it.
        let checked = Box::new(contract::check(app, fresh, received, passed_on, &self.metrics)?);
        story.learn(app, &checked);
        Ok(checked)
    }

    /// The rest of the way for an app that is only observed (`enforce = false`): no claim, no
    /// verdict on the reply. What was refused else is told.
    async fn observe(
        &self,
        judged: &Judged<'_>,
        backend: &Backend,
        head: &request::Parts,
        caller: &Arrival,
        story: &mut Exchange,
    ) -> Result<Answer, Rejection> {
        let Judged { app, received, checked, .. } = judged;
        let request = match checked {
            Ok(checked) => {
                let idempotency_key = delivery_key(app, checked).idempotency_key();
                let attempt = Attempt { number: 1, request_id: &caller.id, idempotency_key };
                normalize::normalize(app, &backend.config, checked, &attempt)
            }
            Err(_) => {
                let (headers, id) = (&head.headers, &caller.id);
                normalize::as_it_came(app, &backend.config, received, headers, id, caller.vouched())
            }
        };
        let request = request.map_err(|_| Rejection::UriTooLong { limit: MAX_TARGET })?;
        let begun = Instant::now();
        let reply = forward::forward(backend, request, caller.at + backend.config.timeout).await;
        let took = begun.elapsed();
        story.backend_time = Some(took);
        let action = checked.as_ref().ok().map(|checked| checked.request().action_index());
        let count = |outcome| app.metrics.answers.called(&self.metrics, action, outcome, took.as_secs_f64());
        let reply = reply.map_err(|delivery| {
            count(delivery.outcome);
            story.outcome = Some(delivery.outcome);
            delivery.answer.err().unwrap_or(Rejection::Internal)
        })?;
        story.observed(&app.config.dialect, checked.as_deref(), &reply);
        count(story.outcome.unwrap_or(Outcome::Delivered));
        if let (Some(action), Some(Rejection::BackendContract(violation))) = (action, &story.would_refuse) {
            app.metrics.answers.violated(&self.metrics, action, &violation.rule);
        }
        Ok(Answer::AsItCame(reply))
    }

    /// Decides who answers, and that each order reaches the backend once.
    ///
    /// `slot` is held until the delivery is recorded, even if the caller is gone by then.
    async fn deliver(
        &self,
        served: &Served,
        to: Destination<'_>,
        checked: Box<Checked>,
        caller: &Arrival,
        slot: Place,
        story: &Exchange,
    ) -> Result<Delivery, Rejection> {
        let Destination { app, backend } = to;
        let config = &app.config;
        let action = checked.request().action(&config.dialect);
        let answer_by = caller.at + backend.config.answer_within;
        if action.kind == ActionKind::Test && config.test_connection != TestConnection::Forward {
            // On the heap: to connect takes more room than all the rest of a request.
            if config.test_connection == TestConnection::Probe
                && let Err(unreachable) = Box::pin(forward::probe(backend, answer_by)).await
            {
                return Ok(unreachable);
            }
            let sample = Bytes::copy_from_slice(action.reply.sample.as_bytes());
            return Ok(Delivery::answered(Outcome::Delivered, sample, None));
        }
        let key = delivery_key(app, &checked);
        if !config.deliver_once || !key::is_delivery(action.kind) {
            let go = Go { number: 1, idempotency_key: key.idempotency_key() };
            return Ok(attempt(app, backend, &checked, &self.metrics, &caller.id, go, answer_by).await);
        }
        let order = Order {
            ask: Arc::new(self.ask(served, app, &checked, key, caller, story)),
            dialect: Arc::clone(&config.dialect),
            action: checked.request().action_index(),
            deadline: answer_by,
            slot,
        };
        let call_by = caller.at + backend.config.timeout;
        // It may outlive the request.
        let (app, backend, metrics) = (Arc::clone(app), Arc::clone(backend), Arc::clone(&self.metrics));
        let request_id = caller.id.clone();
        let first = move |go: Go| {
            Box::pin(async move {
                let _panics = CountPanic::new(&metrics.panics);
                attempt(&app, &backend, &checked, &metrics, &request_id, go, call_by).await
            })
        };
        self.deliveries.once(order, first, observe::unheard).await
    }

    /// What a request asks of the journal.
    fn ask(
        &self,
        served: &Served,
        app: &App,
        checked: &Checked,
        base: DeliveryKey,
        caller: &Arrival,
        story: &Exchange,
    ) -> Ask {
        let (config, dialect, request) = (&app.config, &*app.config.dialect, checked.request());
        let journal = self.deliveries.journal();
        let text = |field: Option<usize>| field.and_then(|field| request.text(field)).map(Arc::from);
        let kind = request.action(dialect).kind;
        let by_instance =
            dialect.instance.is_some() && key::dedupe(dialect, request).map(|(field, _)| field) == dialect.instance;
        let fingerprint = Fingerprint::of(dialect, request);
        let lookalike = config.join_lookalikes.then(|| Lookalike::of(&config.name, dialect, request, &fingerprint));
        let subject = Subject {
            origin: Origin::of(&config.name, dialect, request, checked.signature()),
            lookalike: lookalike.flatten(),
            fingerprint,
            extras: Extras::of(dialect, request),
            app: Arc::clone(&app.name),
            action: Arc::clone(&app.actions[request.action_index()]),
            debug: request.is_debug(dialect),
            // As the story has learned it, whole: both hold the same text.
            order_id: story.order_id.clone(),
            instance_id: text(dialect.instance),
            user_id: text(dialect.user),
        };
        Ask {
            base,
            subject: Arc::new(subject),
            lifecycle: match kind {
                ActionKind::Expire | ActionKind::Delete if by_instance => {
                    Lifecycle::Ends { replay_for: served.lifecycle_replay }
                }
                ActionKind::Renew | ActionKind::Upgrade => Lifecycle::Revives,
                _ => Lifecycle::None,
            },
            hold: config.hold_unconfirmed,
            instance_must_be_new: kind == ActionKind::Create,
            claimant: journal.claimant(),
            request_id: caller.id.to_str().unwrap_or("-").into(),
            now: clock::now(),
        }
    }
}

/// One attempt: normalize, forward, validate. Needs nothing of the connection it came from.
async fn attempt(
    app: &App,
    backend: &Backend,
    checked: &Checked,
    metrics: &Metrics,
    request_id: &HeaderValue,
    go: Go,
    call_by: Instant,
) -> Delivery {
    let attempt = Attempt { number: go.number, request_id, idempotency_key: go.idempotency_key };
    let Ok(request) = normalize::normalize(app, &backend.config, checked, &attempt) else {
        // Paths are checked with the configuration and parts are encoded: what is left is a
        // query that decoding and encoding anew made longer than any target may be.
        return Delivery::failed(Rejection::UriTooLong { limit: MAX_TARGET });
    };
    let action = checked.request().action_index();
    let begun = Instant::now();
    let mut delivery = match forward::forward(backend, request, call_by).await {
        Ok(reply) => validate::validate(&app.config.dialect.actions[action].reply, reply),
        Err(delivery) => delivery,
    };
    let took = begun.elapsed();
    delivery.backend_time = Some(took);
    app.metrics.answers.called(metrics, Some(action), delivery.outcome, took.as_secs_f64());
    if let Err(Rejection::BackendContract(violation)) = &delivery.answer {
        app.metrics.answers.violated(metrics, action, &violation.rule);
    }
    delivery
}

/// What a request came to at the stops that need nobody else.
struct Judged<'r> {
    app: &'r Arc<App>,
    received: Received<'r>,
    /// Whether it keeps every rule.
    checked: Result<Box<Checked>, Rejection>,
    _running: InFlight<&'r IntGauge>,
}

/// Where an order is delivered.
#[derive(Clone, Copy)]
struct Destination<'r> {
    app: &'r Arc<App>,
    backend: &'r Arc<Backend>,
}

fn delivery_key(app: &App, checked: &Checked) -> DeliveryKey {
    app.keys.key(&app.config.dialect, checked.request(), checked.signature())
}

/// Longest target that `http::Uri` holds.
const MAX_TARGET: usize = 65_534;

/// The innermost service: runs the stops and hands the verdict up.
#[derive(Clone)]
struct Spi {
    gateway: Arc<Gateway>,
    way: Way,
}

impl Service<Request<Arrival>> for Spi {
    type Response = Verdict;
    type Error = Infallible;
    /// The one box of the stack: the stops are an async function, whose type has no name.
    type Future = Pin<Box<dyn Future<Output = Result<Verdict, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Arrival>) -> Self::Future {
        let (gateway, way) = (Arc::clone(&self.gateway), self.way);
        // Outside, or the future would have room for the request both whole and in parts.
        let (head, caller) = request.into_parts();
        Box::pin(async move {
            let mut exchange = Exchange::default();
            let result = match way {
                Way::Deliver => gateway.exchange(&head, &caller, &mut exchange).await,
                Way::Vouch => gateway.vouch(&head, &caller, &mut exchange),
            };
            // Behind all stops: a request that verifies never gets here, however many failed before.
            let result = result.map_err(|rejection| match &gateway.served.borrow().failures {
                Some(failures) => failures.answer(rejection, caller.client),
                None => rejection,
            });
            Ok(Verdict { exchange, result, headers: head.headers })
        })
    }
}
