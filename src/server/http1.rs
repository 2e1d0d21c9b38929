//! A connection that speaks HTTP/1, in clear or under TLS.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::sync::watch;
use tokio::task::{unconstrained, yield_now};
use tokio::time::Instant;
use tower::Service;

use super::pace::Pace;
use super::stream::Stream;
use super::wire::Wire;
use super::{MAX_HEAD, Phase};
use crate::peer::{Arrival, Peer};

/// How often a connection is looked at in a stop: nothing wakes it when it falls idle.
const STOP_CHECK: Duration = Duration::from_millis(50);

/// What there is to do for a connection besides polling it.
enum Turn {
    /// The process has come further on its way to the end, or its way is not known any more.
    Phase { known: bool },
    /// Its limits are to be looked at.
    Time,
    /// Nothing: it has ended.
    Ended,
}

/// Serves one connection to its end.
pub async fn serve<S, B>(stream: Stream, peer: Peer, pace: Pace, stack: S, mut phase: watch::Receiver<Phase>)
where
    S: Service<Request<Arrival>, Response = Response<B>, Error = Infallible, Future: Send> + Clone + Send + 'static,
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let pace = &pace;
    let io = TokioIo::new(Wire::new(stream, pace));
    // A connection's requests come one after the other, so one stack serves all of them.
    let stack = RefCell::new(stack);
    let service = service_fn(move |request: Request<Incoming>| {
        let at = pace.begun();
        let answer = stack.borrow_mut().call(request.map(|body| Arrival::new(peer.clone(), &body, at)));
        async move {
            let mut answer = answer.await;
            pace.answered();
            if let (Ok(response), true) = (&mut answer, pace.is_leaving()) {
                // hyper closes after it, too.
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            answer
        }
    });
    // Time is kept by `pace`, so hyper needs no timer; see dependencies on its own timeout. Its limit
    // of 100 headers is left as it is: more than the gateway's, so that the common excess gets an
    // answer in words, and any other would cost every request two allocations of 6 KB.
    let connection =
        http1::Builder::new().header_read_timeout(None).max_buf_size(MAX_HEAD as usize).serve_connection(io, service);
    let mut connection = pin!(connection);
    let mut check = pin!(tokio::time::sleep(pace.first_check()));
    // A connection that is taken in a stop hears of it here, too.
    phase.mark_changed();
    let mut stopping = false;
    let mut is_sure = false;
    loop {
        let turn = {
            let look = phase.clone();
            let mut changed = pin!(unconstrained(phase.changed()));
            // Both wake this task once they have been asked, whatever else wakes it meanwhile; then a look
            // says whether it was one of them, for a fraction of what it costs to ask again. But whoever
            // asks while the others are still being told of a phase may be woken for that same phase, and
            // would not be for the next one: from the first that is told on, it is asked each time.
            let mut asked = false;
            poll_fn(|context| {
                // In this order: what is answered from now on says that it is the last, and what has come
                // in time is read before the time is looked at.
                if !stopping
                    && (!asked || pace.is_leaving() || look.has_changed().unwrap_or(true))
                    && let Poll::Ready(changed) = changed.as_mut().poll(context)
                {
                    return Poll::Ready(Turn::Phase { known: changed.is_ok() });
                }
                // An error here is the peer's: a broken connection or a head that was refused.
                if connection.as_mut().poll(context).is_ready() {
                    return Poll::Ready(Turn::Ended);
                }
                if (!asked || check.is_elapsed()) && pin!(unconstrained(check.as_mut())).poll(context).is_ready() {
                    return Poll::Ready(Turn::Time);
                }
                asked = true;
                Poll::Pending
            })
            .await
        };
        match turn {
            Turn::Phase { known } => {
                let now = if known { *phase.borrow_and_update() } else { Phase::Stopping };
                if now >= Phase::Leaving {
                    pace.leave();
                }
                if now == Phase::Stopping {
                    stopping = true;
                    // The wire ends it when it is idle, as it may be now: the loop looks again.
                    pace.stop();
                    check.as_mut().reset(Instant::now() + STOP_CHECK);
                }
            }
            Turn::Ended => return,
            Turn::Time => match pace.next_check() {
                Some(next) => {
                    is_sure = false;
                    let next = if stopping { next.min(STOP_CHECK) } else { next };
                    check.as_mut().reset(Instant::now() + next);
                }
                // What came in time may not be known yet, if the machine stood still: the runtime asks the
                // kernel meanwhile.
                None if !std::mem::replace(&mut is_sure, true) => {
                    yield_now().await;
                    check.as_mut().reset(Instant::now());
                }
                // Too slow: closing is all that is owed.
                None => return,
            },
        }
    }
}
