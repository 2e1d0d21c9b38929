//! Answers that get lost between the server and the gateway: what was written, was written.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use spigate::config::scalar::Secret;
use spigate::journal::entry::State;
use spigate::journal::machine::{Finished, Resolution};
use spigate::journal::postgres::PostgresStore;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::faults::{Load, end, progress};
use super::{LEASE, Postgres, name};
use crate::bench::Gateway;
use crate::sample::{failed, unconfirmed};

/// What statements say that write a change, or a lease.
const WRITES: [&[u8]; 2] = [b"INSERT INTO spigate_deliveries", b"INSERT INTO spigate_gateways"];

/// Stands between a gateway and the server, and keeps an answer to itself when told to.
struct Way {
    port: u16,
    lose_next: Arc<AtomicBool>,
}

impl Way {
    async fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let lose_next = Arc::new(AtomicBool::new(false));
        let lose = Arc::clone(&lose_next);
        tokio::spawn(async move {
            loop {
                let (gateway, _) = listener.accept().await.unwrap();
                tokio::spawn(carry(gateway, server, Arc::clone(&lose)));
            }
        });
        Self { port, lose_next }
    }

    /// The answer to the next change will be lost.
    fn lose_next(&self) {
        self.lose_next.store(true, Ordering::Relaxed);
    }

    fn has_lost(&self) -> bool {
        !self.lose_next.load(Ordering::Relaxed)
    }
}

/// Carries bytes both ways, until the answer that is to be lost: both sides are cut off then.
async fn carry(mut gateway: TcpStream, server: u16, lose: Arc<AtomicBool>) {
    let mut server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
    let (mut asked, mut answered) = ([0; 64 * 1024], [0; 64 * 1024]);
    let mut losing = false;
    loop {
        tokio::select! {
            read = gateway.read(&mut asked) => {
                let Ok(length @ 1..) = read else { return };
                let says = |write: &&[u8]| asked[..length].windows(write.len()).any(|window| window == *write);
                let is_write = WRITES.iter().any(says);
                losing |= is_write && lose.swap(false, Ordering::Relaxed);
                server.write_all(&asked[..length]).await.unwrap();
            }
            read = server.read(&mut answered) => {
                // The server answers a statement when it is committed.
                let Ok(length @ 1..) = read else { return };
                if losing || gateway.write_all(&answered[..length]).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn start() -> Option<(Postgres, Gateway, Way)> {
    let bench = Postgres::new().await?;
    let way = Way::to(bench.server.port()).await;
    let url = format!("postgres://postgres@127.0.0.1:{}/{}?sslmode=disable", way.port, bench.database);
    let name = name();
    let store = PostgresStore::new(&Secret::new(url), name.clone(), LEASE).unwrap();
    store.open().await.unwrap();
    Some((bench, Gateway::new(name, Arc::new(store)).await, way))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_whose_answer_is_lost_is_made_once() {
    let Some((_bench, gateway, way)) = start().await else { return };
    for attempt in 1..=3 {
        way.lose_next();
        let call = gateway.forward(gateway.create("o-1")).await;
        assert!(way.has_lost());
        assert_eq!(call.entry.latest.number, attempt);
        assert_eq!(call.entry, gateway.look(call.key()).await);
        gateway.finish(call.end(unconfirmed())).await;
    }
    way.lose_next();
    let renewal = gateway.forward(gateway.renew("o-2", "i-1")).await;
    assert_eq!(gateway.forward(gateway.expire("i-1")).await.entry.cycle, 1, "it was raised once");
    assert_eq!(renewal.entry.latest.number, 1);
}

/// The first claim after a while takes the lease again, over a connection that may be dead by then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_whose_answer_is_lost_is_taken_all_the_same() {
    let Some((bench, gateway, way)) = start().await else { return };
    bench.end_lease(&gateway.name);
    way.lose_next();
    gateway.forward(gateway.create("o-1")).await;
    assert!(way.has_lost());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_whose_answer_is_lost_is_recorded_once() {
    let Some((_bench, gateway, way)) = start().await else { return };
    let endings = [failed(), unconfirmed(), gateway.refused(), gateway.confirmed("i-1")];
    for (number, ending) in (1..).zip(endings) {
        let call = gateway.forward(gateway.create("o-1")).await;
        way.lose_next();
        let (finished, entry) = gateway.finish(call.end(ending)).await;
        assert!(way.has_lost());
        assert_eq!(finished, Finished::Recorded);
        assert_eq!(entry, gateway.look(call.key()).await);
        assert_eq!(gateway.record(call.key()).await.attempts().count(), number);
    }
    let other = gateway.forward(gateway.create("o-2")).await;
    way.lose_next();
    let (finished, entry) = gateway.finish(other.end(gateway.confirmed("i-1"))).await;
    assert_eq!((finished, entry.state), (Finished::InstanceReused, State::Unconfirmed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decision_whose_answer_is_lost_is_made_once() {
    let Some((_bench, gateway, way)) = start().await else { return };
    let call = gateway.forward(gateway.create("o-1")).await;
    gateway.finish(call.end(unconfirmed())).await;
    for resolution in [Resolution::Failed { message: "no".into() }, Resolution::Retry, gateway.done("i-1", false)] {
        way.lose_next();
        let entry = gateway.resolve(call.key(), resolution).await.unwrap();
        assert!(way.has_lost());
        assert_eq!(entry, gateway.look(call.key()).await);
    }
}

/// Many answers get lost while copies come: no attempt is made twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_lost_under_load_break_no_promise() {
    let Some((_bench, gateway, way)) = start().await else { return };
    let load = Load::new();
    let workers = load.start(std::slice::from_ref(&gateway), 6);
    for _ in 0..100 {
        way.lose_next();
        progress(&load, 2).await;
    }
    end(&load, workers, &gateway).await;
}
