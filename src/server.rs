//! The public listener: accepts connections, gives each its limits, hands requests to the stack
//! and lets go of everything when the process is to end.

pub mod pace;
pub mod proxy;
pub mod wire;

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::task::TaskTracker;
use tower::Service;

use self::pace::Pace;
use self::proxy::Introductions;
use self::wire::Wire;
use crate::config::Limits;
use crate::metrics::{InFlight, Metrics};
use crate::peer::{Peer, Proxies};
use crate::rejection::Rejection;
use crate::stage::answer;
use crate::stage::receive::MAX_HEADERS;
use crate::throttle::Throttle;

/// hyper answers 414 by itself where a target passes 65,534 bytes; its buffer must hold more.
const MAX_HEAD: usize = 128 * 1024;
/// How long accepting rests after an error: file descriptors do not come back at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Between two lines about it: it may go on for as long as somebody holds all descriptors.
const COMPLAIN_AGAIN: Duration = Duration::from_secs(10);

/// What the listener needs to know.
pub struct Server {
    /// Limits of connections.
    pub limits: Limits,
    /// Whose forwarding headers are believed.
    pub proxies: Proxies,
    /// Whether every connection begins with a PROXY header.
    pub proxy_protocol: bool,
    /// Metrics of connections.
    pub metrics: Arc<Metrics>,
}

impl Server {
    /// Serves `listener` with `stack` until `stop` turns true; then takes no new connections,
    /// closes idle ones and returns the tracker of those that still finish a request.
    pub async fn serve<S, B>(self, listener: TcpListener, stack: S, mut stop: watch::Receiver<bool>) -> TaskTracker
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send>
            + Clone
            + Send
            + 'static,
        B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
    {
        let connections = TaskTracker::new();
        let introductions = self.proxy_protocol.then(|| {
            let within = self.limits.header_timeout;
            Arc::new(Introductions::new(self.proxies.clone(), within, Arc::clone(&self.metrics)))
        });
        let complaints = Throttle::new(COMPLAIN_AGAIN);
        let places = Arc::new(Semaphore::new(self.limits.connections));
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = stop.wait_for(|stop| *stop) => break,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    self.rest_after(&error, &complaints).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                self.metrics.connections_refused.inc();
                refuse(&stream);
                continue;
            };
            let peer = self.proxies.peer(address.ip());
            let running = InFlight::new(&self.metrics.connections);
            let (limits, stack, mut stop) = (self.limits, stack.clone(), stop.clone());
            let introductions = introductions.clone();
            connections.spawn(async move {
                if let Some((stream, peer)) = introduced(stream, peer, introductions, &mut stop).await {
                    connection(stream, peer, limits, stack, stop).await;
                }
                drop((place, running));
            });
        }
        connections.close();
        connections
    }

    /// A connection that broke before it was accepted is its own problem; anything else, like
    /// having no file descriptors left, takes time to pass.
    async fn rest_after(&self, error: &io::Error, complaints: &Throttle) {
        use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
        if matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
            return;
        }
        self.metrics.accept_errors.inc();
        if complaints.passes() {
            tracing::warn!(%error, "cannot accept a connection; trying again");
        }
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

/// A connection and whom it is from, where a proxy has to say that; `None` if there is nobody to
/// serve.
async fn introduced(
    mut stream: TcpStream,
    peer: Peer,
    introductions: Option<Arc<Introductions>>,
    stop: &mut watch::Receiver<bool>,
) -> Option<(TcpStream, Peer)> {
    let Some(introductions) = introductions else { return Some((stream, peer)) };
    let peer = tokio::select! {
        // What has come before the stop is served.
        biased;
        peer = introductions.introduce(&mut stream, peer) => peer?,
        _ = stop.wait_for(|stop| *stop) => return None,
    };
    Some((stream, peer))
}

/// Serves one connection to its end.
async fn connection<S, B>(stream: TcpStream, peer: Peer, limits: Limits, stack: S, mut stop: watch::Receiver<bool>)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send> + Clone + Send + 'static,
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    // Without it a small answer may wait for the acknowledgement of the one before.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let pace = Arc::new(Pace::new(&limits));
    let io = TokioIo::new(Wire::new(stream, Arc::clone(&pace)));
    let service_pace = Arc::clone(&pace);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let pace = Arc::clone(&service_pace);
        pace.begun();
        request.extensions_mut().insert(peer);
        let answer = stack.clone().call(request);
        async move {
            let answer = answer.await;
            pace.answered();
            answer
        }
    });
    // Time is kept by `pace`, so hyper needs no timer; see dependencies on its own timeout.
    let connection = http1::Builder::new()
        .header_read_timeout(None)
        .max_buf_size(MAX_HEAD)
        // More than the gateway allows, so that the common excess gets an answer in words.
        .max_headers(2 * MAX_HEADERS)
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    let mut check = pin!(tokio::time::sleep(limits.header_timeout.min(limits.idle_timeout)));
    let mut stopping = *stop.borrow();
    if stopping {
        connection.as_mut().graceful_shutdown();
    }
    loop {
        tokio::select! {
            // An error here is the peer's: a broken connection or a head that was refused.
            _ = connection.as_mut() => return,
            () = check.as_mut() => match pace.next_check() {
                Some(next) => check.as_mut().reset(tokio::time::Instant::now() + next),
                // Too slow: closing is all that is owed.
                None => return,
            },
            _ = stop.wait_for(|stop| *stop), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Tells a connection beyond the limit to come again, if it can be told without waiting.
fn refuse(stream: &TcpStream) {
    let response = answer::rejection(&Rejection::Overloaded, "-");
    let mut text = String::from("HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n");
    for (name, value) in response.headers() {
        text.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap_or_default()));
    }
    let body = response.body();
    text.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
    text.push_str(&String::from_utf8_lossy(body));
    // Whoever cannot take it now finds the connection closed, which says the same.
    let _ = stream.try_write(text.as_bytes());
}
