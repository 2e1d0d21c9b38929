//! Stands between a gateway of our own and the vendor's backend: passes every request on as it came,
//! keeps what was said on both sides, and can hold an answer back. Without it a report could only
//! say that the gateway refused a reply, not what the reply was.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING};
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::backend::outgoing::Outgoing;
use crate::backend::{Backend, CallError, RawReply};

/// A request that was passed on, and what came of it.
pub struct Passed {
    /// Its method.
    pub method: Method,
    /// Its target.
    pub target: String,
    /// Its body.
    pub body: Bytes,
    /// The backend's reply.
    pub reply: Result<RawReply, CallError>,
    /// How long that took.
    pub took: Duration,
}

/// A running relay; ends when it is dropped.
pub struct Relay {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

struct Shared {
    backend: Backend,
    /// How long a call may take.
    timeout: Duration,
    passed: Mutex<Vec<Passed>>,
    /// How long the next answer is held back.
    hold: Mutex<Option<Duration>>,
}

/// The backend gave no reply, so neither does the relay.
#[derive(Debug)]
struct NoReply;

impl fmt::Display for NoReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the backend gave no reply")
    }
}

impl std::error::Error for NoReply {}

impl Relay {
    /// Starts one before a backend.
    ///
    /// # Errors
    /// No port to be had.
    pub async fn start(backend: Backend, timeout: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { backend, timeout, passed: Mutex::default(), hold: Mutex::default() });
        let served = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            loop {
                // A connection that ended before it was accepted is no reason to end.
                let Ok((stream, _)) = listener.accept().await else { continue };
                let shared = Arc::clone(&served);
                let service = service_fn(move |request| Arc::clone(&shared).pass(request));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Ok(Self { address, shared, _task: AbortOnDropHandle::new(task) })
    }

    /// Takes what was passed on since the last call.
    pub fn take(&self) -> Vec<Passed> {
        std::mem::take(&mut self.shared.passed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Holds the next answer back for so long; none with `None`.
    pub fn hold(&self, time: Option<Duration>) {
        *self.shared.hold.lock().unwrap_or_else(PoisonError::into_inner) = time;
    }
}

impl Shared {
    async fn pass(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, NoReply> {
        let (mut head, body) = request.into_parts();
        let body = body.collect().await.map_err(|_| NoReply)?.to_bytes();
        let host = head.headers.remove(HOST).ok_or(NoReply)?;
        // The body's length is set anew.
        head.headers.remove(CONTENT_LENGTH);
        head.headers.remove(TRANSFER_ENCODING);
        let mut outgoing = Outgoing::new(head.method.clone(), &head.uri, &host);
        head.headers.iter().for_each(|(name, value)| outgoing.header(name, value));
        outgoing.set_body(body.clone());
        let (method, target) = (head.method, head.uri.to_string());
        let begun = Instant::now();
        let reply = self.backend.call(outgoing, begun + self.timeout).await;
        let took = begun.elapsed();
        let response = reply.as_ref().map(respond).map_err(|_| NoReply);
        let passed = Passed { method, target, body, reply, took };
        self.passed.lock().unwrap_or_else(PoisonError::into_inner).push(passed);
        let hold = self.hold.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(hold) = hold {
            tokio::time::sleep(hold).await;
        }
        response
    }
}

fn respond(reply: &RawReply) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(reply.body.clone()));
    *response.status_mut() = reply.status;
    let headers = response.headers_mut();
    headers.extend(reply.content_type.clone().map(|value| (CONTENT_TYPE, value)));
    headers.extend(reply.content_encoding.clone().map(|value| (CONTENT_ENCODING, value)));
    response
}
