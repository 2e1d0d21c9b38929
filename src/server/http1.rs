//! A connection that speaks HTTP/1, in clear or under TLS.

use std::cell::RefCell;
use std::convert::Infallible;
use std::pin::pin;
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
use tokio::time::Instant;
use tower::Service;

use super::pace::Pace;
use super::stream::Stream;
use super::wire::Wire;
use super::{MAX_HEAD, Phase};
use crate::peer::{Arrival, Peer};

/// How often a connection is looked at in a stop: nothing wakes it when it falls idle.
const STOP_CHECK: Duration = Duration::from_millis(50);

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
        pace.begun();
        let answer = stack.borrow_mut().call(request.map(|body| Arrival::now(peer.clone(), &body)));
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
    loop {
        tokio::select! {
            // In this order: what is answered from now on says that it is the last, and what has come in
            // time is read before the time is looked at.
            biased;
            changed = phase.changed(), if !stopping => {
                let now = if changed.is_ok() { *phase.borrow_and_update() } else { Phase::Stopping };
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
            // An error here is the peer's: a broken connection or a head that was refused.
            _ = connection.as_mut() => return,
            () = check.as_mut() => match pace.next_check() {
                Some(next) => {
                    let next = if stopping { next.min(STOP_CHECK) } else { next };
                    check.as_mut().reset(Instant::now() + next);
                }
                // Too slow: closing is all that is owed.
                None => return,
            },
        }
    }
}
