//! Who is on the other end of a connection, and what of its claims is believed.

pub mod client;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};

use http::{HeaderName, HeaderValue, Request};
use http_body::Body;
use ipnet::IpNet;
use tokio::time::Instant;
use tower::{Layer, Service};

use client::Client;

/// The other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub address: IpAddr,
    /// Whether it is a proxy that the configuration trusts.
    pub trusted: bool,
    /// Whether the address is its own. A proxy that hands connections through may not know.
    pub known: bool,
    /// The other end of the socket: another one than `address` where a proxy hands connections
    /// through and says for whom.
    pub socket: IpAddr,
    /// The proxies whose word counted when the connection was made.
    pub proxies: Proxies,
}

impl Default for Peer {
    fn default() -> Self {
        Proxies::default().peer(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
    }
}

/// The proxies that the configuration trusts, by their networks.
#[derive(Clone, Debug, Default)]
pub struct Proxies(Arc<[IpNet]>);

impl Proxies {
    /// Trusts every address in these networks.
    pub fn new(networks: impl IntoIterator<Item = IpNet>) -> Self {
        Self(networks.into_iter().collect())
    }

    /// Whether an address is a trusted proxy's.
    pub fn include(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }

    /// The peer at an address.
    pub fn peer(&self, address: IpAddr) -> Peer {
        let address = address.to_canonical();
        Peer { address, trusted: self.include(address), known: true, socket: address, proxies: self.clone() }
    }
}

/// How a request arrived, and what it is called. It takes the place of the body, which no request
/// of these platforms has: extensions would cost a map and a box for each of them.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// The connection's other end.
    pub peer: Peer,
    /// The client behind it: not known before [`TrustLayer`] has looked.
    pub client: Client,
    /// The request's id, from there on, too.
    pub id: HeaderValue,
    /// When its head was read.
    pub at: Instant,
    /// Whether it came with a body all the same.
    pub has_body: bool,
}

impl Arrival {
    /// A request whose head was read at this time.
    pub fn new(peer: Peer, body: &impl Body, at: Instant) -> Self {
        let client = Client { address: peer.address, known: false };
        Self { peer, client, id: HeaderValue::from_static("-"), at, has_body: !body.is_end_stream() }
    }

    /// The client's address, where a trusted proxy vouches for it.
    pub fn vouched(&self) -> Option<IpAddr> {
        (self.client.known && self.client.address != self.peer.socket).then_some(self.client.address)
    }
}

/// The request id's header, from trusted proxies, to backends and in answers.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longer ids are somebody's data, not an id.
const MAX_REQUEST_ID: usize = 128;

/// Finds out who the client is, and gives the request its id: the one that it came with, unless a
/// stranger gave it or it does not look like one.
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

impl<S: Service<Request<Arrival>>> Service<Request<Arrival>> for Trust<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Arrival>) -> S::Future {
        let plausible = |id: &HeaderValue| {
            (1..=MAX_REQUEST_ID).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
        };
        let client = client::client(&request.body().peer, request.headers());
        // Nothing below looks at the header again.
        let given = request.headers_mut().remove(X_REQUEST_ID);
        let arrival = request.body_mut();
        arrival.client = client;
        arrival.id = given.filter(|id| arrival.peer.trusted && plausible(id)).unwrap_or_else(request_id);
        self.inner.call(request)
    }
}

/// A new request id: sixteen random digits for the process, sixteen counted ones for the request.
/// Unique without asking the kernel for each.
fn request_id() -> HeaderValue {
    static PROCESS: LazyLock<[u8; 16]> =
        LazyLock::new(|| digits(getrandom::u64().unwrap_or_else(|_| u64::from(std::process::id()))));
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut text = [0_u8; 32];
    text[..16].copy_from_slice(&*PROCESS);
    text[16..].copy_from_slice(&digits(COUNT.fetch_add(1, Ordering::Relaxed)));
    // Digits are a header's value.
    HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("-"))
}

/// A number in sixteen hexadecimal digits.
fn digits(number: u64) -> [u8; 16] {
    let mut digits = [0; 16];
    for (pair, byte) in digits.chunks_exact_mut(2).zip(number.to_be_bytes()) {
        pair.copy_from_slice(&[byte >> 4, byte & 15].map(|half| b"0123456789abcdef"[usize::from(half)]));
    }
    digits
}
