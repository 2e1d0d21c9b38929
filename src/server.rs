//! A public listener: accepts connections, gives each its limits, hands requests to the stack
//! and lets go of everything when the process is to end.

pub mod http1;
pub mod http2;
pub mod inherited;
pub mod listener;
pub mod pace;
pub mod proxy;
pub mod stream;
pub mod wire;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tower::Service;

use self::listener::Listener;
use self::pace::Pace;
use self::proxy::Introductions;
use self::stream::{Socket, Stream};
use crate::config::Limits;
use crate::metrics::{InFlight, Metrics};
use crate::peer::{Arrival, Peer};
use crate::places::Places;
use crate::rejection::Rejection;
use crate::served::Served;
use crate::stage::answer;
use crate::throttle::Throttle;
use crate::tls::{self, Acceptors};

/// Most bytes of a request's head. hyper answers 414 by itself where a target passes 65,534 bytes;
/// its buffer must hold more.
const MAX_HEAD: u32 = 128 * 1024;
/// How long accepting rests after an error: file descriptors do not come back at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a client has to notice that its connection was ended: a busy one's last answers may still
/// lie unread, and a reset would take them away.
const LINGER: Duration = Duration::from_secs(5);
/// Between two lines about it: it may go on for as long as somebody holds all descriptors.
const COMPLAIN_AGAIN: Duration = Duration::from_secs(10);

/// How far the process has come on its way to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Everything is served.
    Serving,
    /// Everything is served, and clients are asked to connect anew, which may lead elsewhere.
    Leaving,
    /// What was begun is finished; nothing new begins.
    Stopping,
}

/// What a listener needs to know.
pub struct Server {
    /// Its name in the configuration.
    name: String,
    /// Limits of connections, and who is believed, as the configuration has it now.
    served: watch::Receiver<Arc<Served>>,
    /// Places for connections, of all listeners.
    places: Places,
    /// Its side of TLS handshakes; plain HTTP/1 without.
    tls: Option<Arc<Acceptors>>,
    introductions: Arc<Introductions>,
    metrics: Arc<Metrics>,
}

impl Server {
    /// The server of the listener called `name`; `places` are shared by all of them.
    pub fn new(
        name: String,
        served: watch::Receiver<Arc<Served>>,
        places: Places,
        tls: Option<Arc<Acceptors>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let introductions = Arc::new(Introductions::new(Arc::clone(&metrics)));
        Self { name, served, places, tls, introductions, metrics }
    }

    /// Serves `listener` with `stack` until `phase` is [`Phase::Stopping`]; then takes the
    /// connections that wait already and no new ones, closes idle ones and returns the tracker of
    /// those that still finish a request.
    pub async fn serve<S, B>(self, listener: Listener, stack: S, mut phase: watch::Receiver<Phase>) -> TaskTracker
    where
        S: Service<Request<Arrival>, Response = Response<B>, Error = Infallible, Future: Send> + Clone + Send + 'static,
        B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
    {
        let connections = TaskTracker::new();
        let complaints = Throttle::new(COMPLAIN_AGAIN);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = phase.wait_for(|phase| *phase == Phase::Stopping) => break,
            };
            match accepted {
                Ok((socket, address)) => self.take(socket, address, &stack, &phase, &connections),
                Err(error) => self.rest_after(&error, &complaints).await,
            }
        }
        for (socket, address) in listener.close() {
            self.take(socket, address, &stack, &phase, &connections);
        }
        connections.close();
        connections
    }

    /// Gives a connection a task of its own, if there is a place for it.
    fn take<S, B>(
        &self,
        socket: Socket,
        address: SocketAddr,
        stack: &S,
        phase: &watch::Receiver<Phase>,
        connections: &TaskTracker,
    ) where
        S: Service<Request<Arrival>, Response = Response<B>, Error = Infallible, Future: Send> + Clone + Send + 'static,
        B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
    {
        let served = Arc::clone(&self.served.borrow());
        let Some(place) = self.places.take(served.limits.connections) else {
            self.metrics.connections_refused.inc();
            // A client that waits for a TLS handshake could not read an answer.
            if self.tls.is_none() {
                refuse(&socket);
            }
            return;
        };
        // There always is one; without it nobody would be believed.
        let Some(door) = served.doors.get(&self.name) else { return };
        let peer = door.peer(address.ip());
        let running = InFlight::new(self.metrics.connections.clone());
        let (limits, tls, metrics) = (served.limits, self.tls.clone(), Arc::clone(&self.metrics));
        let introductions = door.proxy_protocol.then(|| Arc::clone(&self.introductions));
        let (stack, mut phase) = (stack.clone(), phase.clone());
        // A connection is idle for most of its life. What it waits in then is all that is kept here: an
        // introduction, a handshake and HTTP/2 have places of their own on the heap, and give them back.
        connections.spawn(async move {
            let (_place, _running) = (place, running);
            let (mut socket, mut peer) = (socket, peer);
            if let Some(introductions) = introductions {
                let introduction = introductions.introduce(&mut socket, peer, limits.header_timeout);
                match Box::pin(in_time(introduction, &mut phase)).await.flatten() {
                    Some(introduced) => peer = introduced,
                    None => return,
                }
            }
            // Without it a small answer may wait for the acknowledgement of the one before.
            if socket.set_nodelay().is_err() {
                return;
            }
            match tls {
                None => http1::serve(Stream::Plain(socket), peer, Pace::new(&limits), stack, phase).await,
                Some(tls) => Box::pin(secured(socket, peer, limits, tls, metrics, stack, phase)).await,
            }
        });
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

/// What comes of how a connection begins, before its first request; `None` if a stop does not wait
/// for it any longer.
async fn in_time<T>(beginning: impl Future<Output = T>, phase: &mut watch::Receiver<Phase>) -> Option<T> {
    let mut beginning = pin!(beginning);
    tokio::select! {
        result = beginning.as_mut() => return Some(result),
        _ = phase.wait_for(|phase| *phase == Phase::Stopping) => {}
    }
    // What has come before the stop is served, although nobody has looked yet.
    timeout(pace::FIRST_BYTE, beginning).await.ok()
}

/// Serves one connection under TLS to its end.
async fn secured<S, B>(
    socket: Socket,
    peer: Peer,
    limits: Limits,
    tls: Arc<Acceptors>,
    metrics: Arc<Metrics>,
    stack: S,
    mut phase: watch::Receiver<Phase>,
) where
    S: Service<Request<Arrival>, Response = Response<B>, Error = Infallible, Future: Send> + Clone + Send + 'static,
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let handshake = timeout(limits.header_timeout, tls.current().accept(socket));
    let Some(handshake) = Box::pin(in_time(handshake, &mut phase)).await else { return };
    let stream = match handshake {
        Ok(Ok(stream)) => Box::new(stream),
        failed => {
            let reason = match &failed {
                Err(_) => "timeout",
                Ok(Err(error))
                    if error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<rustls::Error>) =>
                {
                    "refused"
                }
                Ok(_) => "closed",
            };
            metrics.tls_handshake_errors.with_label_values(&[reason]).inc();
            if let Ok(Err(error)) = failed {
                tracing::debug!(client = %peer.address, %error, "TLS handshake failed");
            }
            return;
        }
    };
    if stream.get_ref().1.alpn_protocol() != Some(tls::H2) {
        return http1::serve(Stream::Tls(stream), peer, Pace::new(&limits), stack, phase).await;
    }
    // A client that has not read GOAWAY yet may be writing a request: it must not meet a closed port.
    let lingering = stream.get_ref().0.duplicate().ok();
    let may_read = Box::pin(http2::serve(Stream::Tls(stream), peer, limits, stack, phase)).await;
    if let (true, Some(socket)) = (may_read, lingering) {
        let _ = timeout(LINGER, socket.linger()).await;
    }
}

/// Tells a connection beyond the limit to come again, if it can be told without waiting.
fn refuse(socket: &Socket) {
    let response = answer::rejection(&Rejection::Overloaded, "-");
    let mut text = String::from("HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n");
    for (name, value) in response.headers() {
        text.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap_or_default()));
    }
    let body = response.body();
    text.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
    text.push_str(&String::from_utf8_lossy(body));
    // Whoever cannot take it now finds the connection closed, which says the same.
    let _ = socket.try_write(text.as_bytes());
}
