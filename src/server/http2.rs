//! A connection that speaks HTTP/2, which only TLS leads to.
//!
//! Requests are small and have no bodies, so everything that a client could make the gateway
//! remember is bounded tightly: streams, heads, resets, windows.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use http::header::CONTENT_LENGTH;
use http::{Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use pin_project_lite::pin_project;
use tokio::sync::watch;
use tokio::task::{unconstrained, yield_now};
use tower::Service;

use super::pace::FIRST_BYTE;
use super::stream::Stream;
use super::{MAX_HEAD, Phase};
use crate::config::Limits;
use crate::peer::{Arrival, Peer};

/// Most requests at once of a connection.
const MAX_STREAMS: u32 = 100;
/// Most streams that a client has opened and reset before they were looked at.
const MAX_PENDING_RESETS: usize = 20;
/// Most streams that are reset because of a client's errors, before the connection ends.
const MAX_ERROR_RESETS: usize = 64;
/// Most bytes of a body that nobody will read.
const STREAM_WINDOW: u32 = 16 * 1024;
/// The least that the protocol allows.
const CONNECTION_WINDOW: u32 = 65_535;
/// How often a client is asked whether it is still there, and how long it may take to say so.
const PING: Duration = Duration::from_secs(20);

/// Serves one connection to its end. Says whether its client may have something left to read.
pub async fn serve<S, B>(
    stream: Stream,
    peer: Peer,
    limits: Limits,
    stack: S,
    mut phase: watch::Receiver<Phase>,
) -> bool
where
    S: Service<Request<Arrival>, Response = Response<B>, Error = Infallible, Future: Send> + Clone + Send + 'static,
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let streams = Arc::new(Streams::new());
    let opened = Arc::clone(&streams);
    let service = service_fn(move |request: Request<Incoming>| {
        let open = Open::new(&opened);
        let is_head = request.method() == Method::HEAD;
        let answer =
            stack.clone().call(request.map(|body| Arrival::new(peer.clone(), &body, tokio::time::Instant::now())));
        async move {
            let mut answer = answer.await?;
            if let (true, Some(length)) = (is_head, answer.body().size_hint().exact()) {
                answer.headers_mut().insert(CONTENT_LENGTH, length.into());
            }
            // hyper leaves the body out for HTTP/1 only.
            Ok::<_, Infallible>(
                answer.map(|body| Answer { body: (!is_head).then_some(body), open: Some(open.answered()) }),
            )
        }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_ERROR_RESETS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let mut check = pin!(tokio::time::sleep(limits.header_timeout.min(limits.idle_timeout)));
    // A connection that is taken in a stop hears of it here, too.
    phase.mark_changed();
    let mut farewell = Farewell::default();
    let mut is_sure = false;
    loop {
        tokio::select! {
            // What is known to have come is read before the time is looked at. A peer that sends without end
            // may use up the task's turn; the others do not ask how much is left of it.
            biased;
            // An error here is the peer's.
            _ = connection.as_mut() => return true,
            () = unconstrained(check.as_mut()) => {
                let next = match streams.pace(&limits, &farewell) {
                    Pace::Fine(next) => {
                        is_sure = false;
                        next
                    }
                    // What came in time may not be known yet, if the machine stood still.
                    _ if !std::mem::replace(&mut is_sure, true) => {
                        yield_now().await;
                        Duration::ZERO
                    }
                    Pace::Idle => {
                        farewell.said = Some(Instant::now());
                        connection.as_mut().graceful_shutdown();
                        limits.header_timeout
                    }
                    // Too slow: closing is all that is owed.
                    Pace::Over => return streams.begun.load(Ordering::Relaxed),
                };
                check.as_mut().reset(tokio::time::Instant::now() + next);
            }
            changed = unconstrained(phase.changed()), if farewell.stopping.is_none() => {
                if changed.is_err() || *phase.borrow_and_update() == Phase::Stopping {
                    let now = Instant::now();
                    farewell = Farewell { said: farewell.said.or(Some(now)), stopping: Some(now) };
                    // GOAWAY, and whatever the client had sent before it heard of it is served.
                    connection.as_mut().graceful_shutdown();
                    // Other limits hold from here on.
                    check.as_mut().reset(now.into());
                }
            }
        }
    }
}

/// How far a connection has come on its way to the end.
#[derive(Default)]
struct Farewell {
    /// Since when the client has been asked to leave.
    said: Option<Instant>,
    /// Since when there has been a stop.
    stopping: Option<Instant>,
}

/// What the requests of a connection are doing. They run in tasks of their own.
struct Streams {
    born: Instant,
    begun: AtomicBool,
    /// Requests that are worked on.
    working: AtomicUsize,
    /// Of the answers that were not sent wholly, when each was ready; as many as there may be streams.
    /// One clock for all of them would be set anew by every small request.
    answers: Mutex<Vec<Instant>>,
    /// When a request last came or ended: milliseconds from `born`.
    since: AtomicU64,
}

/// What is to become of a connection.
#[derive(Debug, PartialEq, Eq)]
enum Pace {
    /// It goes on; look again then.
    Fine(Duration),
    /// Nothing happens on it.
    Idle,
    /// It took too long for something.
    Over,
}

impl Streams {
    fn new() -> Self {
        Self {
            born: Instant::now(),
            begun: AtomicBool::new(false),
            working: AtomicUsize::new(0),
            answers: Mutex::default(),
            since: AtomicU64::new(0),
        }
    }

    fn changed(&self, now: Instant) {
        let since = now.saturating_duration_since(self.born).as_millis();
        self.since.store(u64::try_from(since).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    // No panic leaves it half changed.
    fn answers(&self) -> MutexGuard<'_, Vec<Instant>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pace(&self, limits: &Limits, farewell: &Farewell) -> Pace {
        let often = limits.header_timeout.min(limits.idle_timeout);
        let begun = self.begun.load(Ordering::Relaxed);
        let oldest = self.answers().iter().min().map(Instant::elapsed);
        // Whatever else is worked on: else a client that always asks would never have to read.
        let left = match oldest {
            Some(unread) => {
                let left = limits.idle_timeout.saturating_sub(unread);
                match farewell.stopping {
                    // A stop does not wait as long.
                    Some(stop) => left.min(limits.header_timeout.saturating_sub(stop.elapsed().min(unread))),
                    None => left,
                }
            }
            // The gateway's own deadlines hold.
            None if self.working.load(Ordering::Relaxed) > 0 => return Pace::Fine(often),
            None => self.left_for_a_request(limits, farewell, begun),
        };
        if !left.is_zero() {
            Pace::Fine(left.min(often))
        } else if oldest.is_some() || farewell.said.is_some() || !begun {
            Pace::Over
        } else {
            Pace::Idle
        }
    }

    /// How long a connection on which nothing is open may stay so.
    fn left_for_a_request(&self, limits: &Limits, farewell: &Farewell, begun: bool) -> Duration {
        let spent = self.born.elapsed().saturating_sub(Duration::from_millis(self.since.load(Ordering::Relaxed)));
        match (farewell.stopping, farewell.said) {
            // The first request of a new connection may be on the way.
            (Some(stop), _) if !begun => {
                FIRST_BYTE.saturating_sub(stop.elapsed()).min(limits.header_timeout.saturating_sub(spent))
            }
            // A client that was asked to leave has no reason to stay once it has its answers.
            (_, Some(said)) => limits.header_timeout.saturating_sub(said.elapsed().min(spent)),
            _ if !begun => limits.header_timeout.saturating_sub(spent),
            _ => limits.idle_timeout.saturating_sub(spent),
        }
    }
}

/// A request, until its answer is sent or its stream reset.
struct Open {
    streams: Arc<Streams>,
    /// When its answer was ready; until then it is worked on.
    answered: Option<Instant>,
}

impl Open {
    fn new(streams: &Arc<Streams>) -> Self {
        streams.begun.store(true, Ordering::Relaxed);
        streams.working.fetch_add(1, Ordering::Relaxed);
        streams.changed(Instant::now());
        Self { streams: Arc::clone(streams), answered: None }
    }

    fn answered(mut self) -> Self {
        let now = Instant::now();
        self.streams.changed(now);
        self.streams.answers().push(now);
        self.answered = Some(now);
        self.streams.working.fetch_sub(1, Ordering::Relaxed);
        self
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.streams.changed(Instant::now());
        let Some(answered) = self.answered else {
            self.streams.working.fetch_sub(1, Ordering::Relaxed);
            return;
        };
        let mut answers = self.streams.answers();
        // Any one of the same time will do.
        if let Some(place) = answers.iter().position(|at| *at == answered) {
            answers.swap_remove(place);
        }
    }
}

/// A part of an answer, until it is sent: with a window of a single byte the whole of it leaves its
/// body, and waits in h2's buffer.
struct Part {
    bytes: Bytes,
    /// With the last part only.
    _open: Option<Open>,
}

impl Buf for Part {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

pin_project! {
    /// A body that is missed until it is sent; none for HEAD.
    struct Answer<B> {
        #[pin]
        body: Option<B>,
        open: Option<Open>,
    }
}

impl<B: Body<Data = Bytes>> Body for Answer<B> {
    type Data = Part;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Part>, B::Error>>> {
        let this = self.project();
        let Some(mut body) = this.body.as_pin_mut() else { return Poll::Ready(None) };
        let frame = ready!(body.as_mut().poll_frame(context));
        let is_last = body.is_end_stream();
        let part = |bytes| Part { bytes, _open: if is_last { this.open.take() } else { None } };
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;
    use crate::server::pace::tests::LIMITS;

    /// Whether the connection is over if an answer may wait for no time at all.
    fn is_over(streams: &Arc<Streams>) -> bool {
        let limits = Limits { idle_timeout: Duration::ZERO, ..LIMITS };
        streams.pace(&limits, &Farewell::default()) == Pace::Over
    }

    #[test]
    fn an_answer_is_unread_until_its_last_part_is_sent_whatever_else_is_asked() {
        let streams = Arc::new(Streams::new());
        let open = Open::new(&streams);
        assert!(!is_over(&streams));
        let mut answer = Answer { body: Some(Full::new(Bytes::from_static(b"all"))), open: Some(open.answered()) };
        assert!(is_over(&streams));
        let frame = Pin::new(&mut answer).poll_frame(&mut Context::from_waker(std::task::Waker::noop()));
        let Poll::Ready(Some(Ok(part))) = frame else { panic!("no part") };
        drop(answer);
        // Others come and go meanwhile.
        drop(Open::new(&streams).answered());
        let working = Open::new(&streams);
        assert!(is_over(&streams));
        drop(part);
        assert!(!is_over(&streams));
        drop(working);
        assert_eq!(streams.pace(&Limits { idle_timeout: Duration::ZERO, ..LIMITS }, &Farewell::default()), Pace::Idle);
    }

    #[test]
    fn in_a_stop_nobody_waits_for_longer_than_a_head_may_take() {
        let now = Some(Instant::now());
        let in_a_stop = Farewell { said: now, stopping: now };
        let limits = Limits { header_timeout: Duration::ZERO, ..LIMITS };
        let streams = Arc::new(Streams::new());
        assert!(matches!(streams.pace(&LIMITS, &in_a_stop), Pace::Fine(left) if left <= FIRST_BYTE));
        let open = Open::new(&streams);
        // The gateway's own deadlines hold.
        assert!(matches!(streams.pace(&limits, &in_a_stop), Pace::Fine(_)));
        let open = open.answered();
        assert_eq!(streams.pace(&limits, &in_a_stop), Pace::Over);
        assert!(matches!(streams.pace(&LIMITS, &in_a_stop), Pace::Fine(left) if left > FIRST_BYTE));
        drop(open);
        assert_eq!(streams.pace(&limits, &in_a_stop), Pace::Over);
    }
}
