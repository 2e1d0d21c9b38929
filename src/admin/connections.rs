//! Connections of the admin listener. They have places of their own, only some of them for each
//! client, and a deadline: whoever opens many, or says little on them, takes no memory and no file
//! descriptors away from deliveries, and keeps nobody else from looking.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tower::ServiceExt as _;

use crate::served::Served;
use crate::throttle::Throttle;

/// Connections at once.
const PLACES: usize = 512;
/// Those of one client: a browser opens six and keeps them, and many may be behind a proxy.
const PLACES_EACH: usize = 128;
/// How long accepting rests after an error: file descriptors do not come back at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Between two lines about connections that nobody serves.
const COMPLAIN_AGAIN: Duration = Duration::from_secs(10);

/// Serves the listener for as long as the process lives: monitoring may look until the very last.
pub(super) async fn serve(listener: TcpListener, router: Router, served: watch::Receiver<Arc<Served>>) {
    let (clients, complaints) = (Clients::default(), Throttle::new(COMPLAIN_AGAIN));
    loop {
        let (socket, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                if complaints.passes() {
                    tracing::warn!(%error, "cannot accept a connection; trying again");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Without it a small answer may wait for the acknowledgement of the one before.
        let _ = socket.set_nodelay(true);
        let client = address.ip().to_canonical();
        let Some(place) = clients.take(client) else {
            if complaints.passes() {
                tracing::warn!(%client, "a connection was closed: the admin listener has too many");
            }
            continue;
        };
        let router = router.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(ConnectInfo(address));
            router.clone().oneshot(request)
        });
        // hyper has one limit for a head and for the time between requests. A page that renews itself must
        // not meet the end of its connection each time.
        let head = served.borrow().limits.idle_timeout;
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(head)
            .serve_connection(TokioIo::new(socket), service);
        tokio::spawn(async move {
            // An error here is the client's.
            let _ = connection.await;
            drop(place);
        });
    }
}

/// How many connections each client has.
#[derive(Clone, Default)]
struct Clients(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// A connection's place, until it is dropped.
struct Place {
    clients: Clients,
    client: IpAddr,
}

impl Clients {
    /// Takes a place, if there is one for this client.
    fn take(&self, client: IpAddr) -> Option<Place> {
        let client = network(client);
        let mut taken = self.lock();
        let own = taken.get(&client).copied().unwrap_or_default();
        if own >= PLACES_EACH || taken.values().sum::<usize>() >= PLACES {
            return None;
        }
        taken.insert(client, own + 1);
        Some(Place { clients: self.clone(), client })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.clients.lock();
        if let Some(own) = taken.get_mut(&self.client) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.client);
            }
        }
    }
}

/// Whoever has one IPv6 address has the /64 around it.
fn network(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(address) => Ipv6Addr::from_bits((address.to_bits() >> 64) << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn each_client_has_places_and_all_together_have_no_more_than_there_are() {
        let clients = Clients::default();
        let take = |client: &str| (0..=PLACES_EACH).map_while(|_| clients.take(ip(client))).collect::<Vec<_>>();
        let mut held: Vec<_> = (1..=PLACES / PLACES_EACH).map(|number| take(&format!("10.0.0.{number}"))).collect();
        assert!(held.iter().all(|places| places.len() == PLACES_EACH));
        assert!(take("10.0.1.1").is_empty());
        held.pop();
        // Another address of the same network is the same client.
        let network = take("2001:db8::1");
        assert_eq!(network.len(), PLACES_EACH);
        assert!(clients.take(ip("2001:db8::2")).is_none());
        drop((held, network));
        assert!(clients.lock().is_empty());
    }
}
