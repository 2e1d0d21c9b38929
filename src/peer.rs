//! Who is on the other end of a connection, and what of its claims is believed.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use http::{HeaderName, HeaderValue, Request};
use tower::{Layer, Service};
use tower_http::request_id::RequestId;

/// The other end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// Its address.
    pub address: IpAddr,
    /// Whether it is a proxy that the configuration trusts.
    pub trusted: bool,
}

impl Default for Peer {
    fn default() -> Self {
        Self { address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), trusted: false }
    }
}

/// The request id's header, from trusted proxies, to backends and in answers.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longer ids are somebody's data, not an id.
const MAX_REQUEST_ID: usize = 128;

/// Drops the request id that a stranger gave, and one that does not look like an id.
#[derive(Clone, Copy)]
pub struct TrustLayer;

impl<S> Layer<S> for TrustLayer {
    type Service = Trust<S>;
    fn layer(&self, inner: S) -> Trust<S> {
        Trust { inner }
    }
}

/// See [`TrustLayer`].
#[derive(Clone)]
pub struct Trust<S> {
    inner: S,
}

impl<S: Service<Request<B>>, B> Service<Request<B>> for Trust<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> S::Future {
        let trusted = request.extensions().get().is_some_and(|peer: &Peer| peer.trusted);
        let plausible = |id: &HeaderValue| {
            (1..=MAX_REQUEST_ID).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
        };
        if !trusted || !request.headers().get(X_REQUEST_ID).is_some_and(plausible) {
            request.headers_mut().remove(X_REQUEST_ID);
        }
        self.inner.call(request)
    }
}

/// Makes request ids: sixteen random digits for the process, sixteen counted ones for the
/// request. Unique without asking the kernel for each.
#[derive(Clone, Copy)]
pub struct MakeRequestId;

impl tower_http::request_id::MakeRequestId for MakeRequestId {
    fn make_request_id<B>(&mut self, _: &Request<B>) -> Option<RequestId> {
        static PROCESS: LazyLock<u64> =
            LazyLock::new(|| getrandom::u64().unwrap_or_else(|_| u64::from(std::process::id())));
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let mut text = [0_u8; 32];
        for (index, digit) in text.iter_mut().enumerate() {
            let (half, position) = if index < 16 { (*PROCESS, index) } else { (number, index - 16) };
            let nibble = (half >> (60 - 4 * position)) & 15;
            *digit = b"0123456789abcdef"[usize::try_from(nibble).unwrap_or(0)];
        }
        HeaderValue::from_bytes(&text).ok().map(RequestId::new)
    }
}
