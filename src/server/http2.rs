//! A connection that speaks HTTP/2, which only TLS leads to.
//!
//! Requests are small and have no bodies, so everything that a client could make the gateway
//! remember is bounded tightly: streams, heads, resets, windows.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use pin_project_lite::pin_project;
use tokio::sync::watch;
use tower::Service;

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

/// Serves one connection to its end.
pub async fn serve<S, B>(stream: Stream, peer: Peer, limits: Limits, stack: S, mut phase: watch::Receiver<Phase>)
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
            Ok::<_, Infallible>(answer.map(|body| Answer { body: (!is_head).then_some(body), open: open.answered() }))
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
    // Since when the client has been asked to leave.
    let mut leaving: Option<Instant> = None;
    loop {
        tokio::select! {
            // An error here is the peer's.
            _ = connection.as_mut() => return,
            () = check.as_mut() => {
                let next = match streams.pace(&limits, leaving) {
                    Pace::Fine(next) => next,
                    Pace::Idle => {
                        leaving = Some(Instant::now());
                        connection.as_mut().graceful_shutdown();
                        limits.header_timeout
                    }
                    // Too slow: closing is all that is owed.
                    Pace::Over => return,
                };
                check.as_mut().reset(tokio::time::Instant::now() + next);
            }
            changed = phase.changed(), if leaving.is_none() => {
                if changed.is_err() || *phase.borrow_and_update() == Phase::Stopping {
                    leaving = Some(Instant::now());
                    // GOAWAY, and whatever the client had sent before it heard of it is served.
                    connection.as_mut().graceful_shutdown();
                    check.as_mut().reset(tokio::time::Instant::now() + limits.header_timeout);
                }
            }
        }
    }
}

/// What the requests of a connection are doing. They run in tasks of their own.
struct Streams {
    born: Instant,
    begun: AtomicBool,
    /// Requests that are worked on.
    working: AtomicUsize,
    /// The same, and answers that were not sent wholly.
    open: AtomicUsize,
    /// When the last of these numbers changed: milliseconds from `born`.
    since: AtomicU64,
}

/// What is to become of a connection.
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
        let (working, open) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { born: Instant::now(), begun: AtomicBool::new(false), working, open, since: AtomicU64::new(0) }
    }

    fn changed(&self) {
        self.since.store(u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn pace(&self, limits: &Limits, leaving: Option<Instant>) -> Pace {
        let often = limits.header_timeout.min(limits.idle_timeout);
        // The gateway's own deadlines hold.
        if self.working.load(Ordering::Relaxed) > 0 {
            return Pace::Fine(often);
        }
        let spent = self.born.elapsed().saturating_sub(Duration::from_millis(self.since.load(Ordering::Relaxed)));
        let is_open = self.open.load(Ordering::Relaxed) > 0;
        let (spent, limit) = match leaving {
            // A client that was asked to leave has no reason to stay once it has its answers.
            Some(leaving) if !is_open => (leaving.elapsed().min(spent), limits.header_timeout),
            _ if !self.begun.load(Ordering::Relaxed) => (spent, limits.header_timeout),
            _ => (spent, limits.idle_timeout),
        };
        match limit.checked_sub(spent).filter(|left| !left.is_zero()) {
            Some(left) => Pace::Fine(left.min(often)),
            None if is_open || leaving.is_some() || !self.begun.load(Ordering::Relaxed) => Pace::Over,
            None => Pace::Idle,
        }
    }
}

/// A request, until its answer is sent or its stream reset.
struct Open {
    streams: Arc<Streams>,
    working: bool,
}

impl Open {
    fn new(streams: &Arc<Streams>) -> Self {
        streams.begun.store(true, Ordering::Relaxed);
        streams.working.fetch_add(1, Ordering::Relaxed);
        streams.open.fetch_add(1, Ordering::Relaxed);
        streams.changed();
        Self { streams: Arc::clone(streams), working: true }
    }

    fn answered(mut self) -> Self {
        self.working = false;
        self.streams.changed();
        self.streams.working.fetch_sub(1, Ordering::Relaxed);
        self
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.streams.changed();
        if self.working {
            self.streams.working.fetch_sub(1, Ordering::Relaxed);
        }
        self.streams.open.fetch_sub(1, Ordering::Relaxed);
    }
}

pin_project! {
    /// A body that is missed until it is sent; none for HEAD.
    struct Answer<B> {
        #[pin]
        body: Option<B>,
        open: Open,
    }
}

impl<B: Body> Body for Answer<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        match self.project().body.as_pin_mut() {
            Some(body) => body.poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}
