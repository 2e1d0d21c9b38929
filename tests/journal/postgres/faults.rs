//! A server that goes away and comes back, and connections that break at the worst moment.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use spigate::journal::entry::{Ask, End, State};
use spigate::journal::machine::Decision;
use spigate::journal::store::{Filter, Unavailable};

use super::Postgres;
use crate::bench::{Bench as _, Gateway};
use crate::postgres_server::{EVERYBODY, Server};
use crate::sample::{Call, failed};

/// Copies of a few orders come, again and again, at every gateway.
pub(super) struct Load {
    stop: AtomicBool,
    /// Which attempts were forwarded: an order and a number may come once.
    forwarded: Mutex<HashSet<(String, u32)>>,
    done: AtomicUsize,
}

impl Load {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { stop: AtomicBool::new(false), forwarded: Mutex::default(), done: AtomicUsize::new(0) })
    }

    pub(super) fn start(self: &Arc<Self>, gateways: &[Gateway], orders: usize) -> Vec<tokio::task::JoinHandle<()>> {
        let workers = gateways.iter().cycle().take(gateways.len() * 4).enumerate();
        workers
            .map(|(worker, gateway)| {
                let (load, gateway) = (Arc::clone(self), gateway.clone());
                tokio::spawn(async move {
                    let mut turn = worker;
                    while !load.stop.load(Ordering::Relaxed) {
                        turn += 1;
                        load.deliver(&gateway, format!("o-{}", turn % orders), turn).await;
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect()
    }

    async fn deliver(&self, gateway: &Gateway, order: String, turn: usize) {
        let ask = Arc::new(gateway.create(&order));
        let Ok(claimed) = gateway.store.claim(Arc::clone(&ask)).await else {
            tokio::time::sleep(Duration::from_millis(5)).await;
            return;
        };
        if claimed.decision != Decision::Forward {
            return;
        }
        let attempt = claimed.entry.latest.number;
        assert_eq!(claimed.entry.latest.claimant, ask.claimant);
        let new = self.forwarded.lock().unwrap().insert((order.clone(), attempt));
        assert!(new, "attempt {attempt} of {order} was forwarded twice");
        let call = Call { ask, entry: Arc::unwrap_or_clone(claimed.entry) };
        // Few are confirmed, so that most orders are claimed many times.
        let confirmed = turn.is_multiple_of(40);
        let ending = if confirmed { gateway.confirmed(&format!("i-{order}")) } else { failed() };
        finish(gateway, call.end(ending)).await;
        self.done.fetch_add(1, Ordering::Relaxed);
    }
}

/// A test that waits for what does not happen fails instead of hanging.
async fn within_deadline<T>(what: &str, future: impl Future<Output = T>) -> T {
    const DEADLINE: Duration = Duration::from_secs(120);
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what}: not within {DEADLINE:?}"))
}

/// As the gateway does it: until it is recorded.
async fn finish(gateway: &Gateway, end: End) {
    while let Err(Unavailable { .. }) = gateway.store.finish(end.clone()).await {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until `load` has done some more.
pub(super) async fn progress(load: &Load, more: usize) {
    let until = load.done.load(Ordering::Relaxed) + more;
    within_deadline("deliveries end", async {
        while load.done.load(Ordering::Relaxed) < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// Everything that was forwarded has ended, and claims that nobody knew of are released: no
/// delivery stays running although its gateways live.
async fn nothing_runs(gateway: &Gateway) {
    let runs = async || {
        let records = gateway.list(Filter::default()).await;
        records.iter().any(|record| record.entry.state == State::Running)
    };
    within_deadline("nothing runs", async {
        while runs().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// The attempts of every delivery are numbered without a gap, and each forwarded one is there.
async fn histories_are_whole(gateway: &Gateway, load: &Load) {
    let mut attempts = HashMap::new();
    for record in gateway.list(Filter::default()).await {
        let numbers: Vec<_> = record.attempts().map(|attempt| attempt.number).collect();
        let count = u32::try_from(numbers.len()).unwrap();
        assert_eq!(numbers, (1..=count).collect::<Vec<_>>());
        assert!(record.attempts().all(|attempt| attempt.ended.is_some()), "{record:#?}");
        attempts.insert(record.entry.subject.order_id.clone().unwrap(), count);
    }
    for (order, number) in load.forwarded.lock().unwrap().iter() {
        assert!(attempts[&**order] >= *number, "attempt {number} of {order} is not recorded");
    }
}

/// Ends the load and judges what it has left.
pub(super) async fn end(load: &Load, workers: Vec<tokio::task::JoinHandle<()>>, gateway: &Gateway) {
    load.stop.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.await.unwrap();
    }
    nothing_runs(gateway).await;
    histories_are_whole(gateway, load).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_broken_under_load_break_no_promise() {
    let Some(mut bench) = Postgres::new().await else { return };
    let gateways = [bench.open().await, bench.open().await];
    let load = Load::new();
    let workers = load.start(&gateways, 12);
    let (killer, connection) =
        tokio_postgres::connect(&bench.server.url("postgres"), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let kill = format!(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
         WHERE datname = '{}' AND application_name = 'spigate' AND state = 'active'",
        bench.database
    );
    for _ in 0..300 {
        progress(&load, 1).await;
        killer.batch_execute(&kill).await.unwrap();
    }
    end(&load, workers, &gateways[0]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_and_starts_under_load_breaks_no_promise() {
    let Some(server) = Server::start(&[], EVERYBODY).map(Arc::new) else { return };
    let mut bench = Postgres::on(Arc::clone(&server));
    let gateways = [bench.open().await, bench.open().await];
    let load = Load::new();
    let workers = load.start(&gateways, 12);
    for round in 0..4 {
        progress(&load, 20).await;
        let ended = Arc::clone(&server);
        let end = move || if round % 2 == 0 { ended.stop() } else { ended.kill() };
        tokio::task::spawn_blocking(end).await.unwrap();
        // While it is away, everybody is told so. Not the load is asked: all of its workers may
        // hold a claim, and wait until its end can be recorded.
        for gateway in &gateways {
            for number in 0..20 {
                let ask = Arc::new(gateway.create(&format!("away-{round}-{number}")));
                within_deadline("a claim is refused", gateway.store.claim(ask)).await.unwrap_err();
            }
            gateway.store.probe().await.unwrap_err();
        }
        let server = Arc::clone(&server);
        tokio::task::spawn_blocking(move || server.resume()).await.unwrap();
    }
    progress(&load, 20).await;
    end(&load, workers, &gateways[0]).await;
}

/// A claim that was given up while its statement waited in the server is written all the same,
/// and must not run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_nobody_waits_for_is_released() {
    let Some(mut bench) = Postgres::new().await else { return };
    let gateway = bench.open().await;
    let url = bench.server.url(&bench.database);
    let (mut blocker, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    for (order, known) in [("o-1", false), ("o-2", true)] {
        if known {
            let call = gateway.forward(gateway.create(order)).await;
            gateway.finish(call.end(failed())).await;
        }
        let before = version(&bench, order);
        let lock = blocker.transaction().await.unwrap();
        lock.batch_execute("LOCK TABLE spigate_deliveries IN SHARE MODE").await.unwrap();
        let ask = gateway.create(order);
        let claim = tokio::spawn({
            let gateway = gateway.clone();
            let ask = Arc::new(ask.clone());
            async move { gateway.store.claim(ask).await.map(|claimed| claimed.decision) }
        });
        // Until the claim's statement waits for the lock.
        waits_for_a_lock(&bench).await;
        claim.abort();
        assert!(claim.await.unwrap_err().is_cancelled());
        lock.commit().await.unwrap();
        is_released(&bench, &gateway, &ask, &before).await;
        let next = gateway.forward(gateway.create(order)).await;
        let history = gateway.record(next.key()).await.history;
        let codes: Vec<_> = history.iter().map(|attempt| attempt.ended.clone().unwrap().code.unwrap()).collect();
        // A delivery that was known may have been shut to the claim before it was written.
        let released = codes.last().is_some_and(|code| code == "journal_unavailable");
        assert!(released || known, "{codes:?}");
    }
}

/// The same, but for a claim that gave up by itself, because the server did not answer in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_had_no_answer_in_time_is_released() {
    let Some(bench) = Postgres::new().await else { return };
    let gateway = bench.open_hasty().await;
    let url = bench.server.url(&bench.database);
    let (mut blocker, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let lock = blocker.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE spigate_deliveries IN SHARE MODE").await.unwrap();
    let ask = gateway.create("o-1");
    gateway.store.claim(Arc::new(ask.clone())).await.unwrap_err();
    lock.commit().await.unwrap();
    is_released(&bench, &gateway, &ask, "").await;
    let next = gateway.forward(gateway.create("o-1")).await;
    assert_eq!(next.entry.latest.number, 2);
}

async fn waits_for_a_lock(bench: &Postgres) {
    let waiting = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = '{}' AND wait_event_type = 'Lock'",
        bench.database
    );
    within_deadline("a statement waits", async {
        while bench.sql(&waiting) == "0" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

fn version(bench: &Postgres, order: &str) -> String {
    bench.sql(&format!("SELECT version FROM spigate_deliveries WHERE order_id = '{order}'"))
}

/// Waits until something has been written since `before`, and nothing runs: then the claim has
/// been released, or shut out.
async fn is_released(bench: &Postgres, gateway: &Gateway, ask: &Ask, before: &str) {
    within_deadline("the claim is released", async {
        while version(bench, ask.subject.order_id.as_ref().unwrap()) == before
            || gateway.look(ask.base).await.state == State::Running
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// Somebody put an empty database in the place of the journal, or restored one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_that_are_gone_are_made_again() {
    let Some(mut bench) = Postgres::new().await else { return };
    let gateway = bench.open().await;
    gateway.forward(gateway.create("o-1")).await;
    bench.sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public");
    let mut answers = Vec::new();
    for _ in 0..3 {
        answers.push(gateway.store.claim(Arc::new(gateway.create("o-1"))).await.map(|claimed| claimed.decision));
    }
    assert_eq!(answers.pop().unwrap().unwrap(), Decision::Join, "after {answers:?}");
}

/// An operator who works on the tables holds deliveries up, and must not make others take this
/// gateway for gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lease_is_kept_while_everything_else_waits_for_a_lock() {
    let Some(bench) = Postgres::new().await else { return };
    let gateway = bench.open_hasty().await;
    let (mut client, connection) =
        tokio_postgres::connect(&bench.server.url(&bench.database), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let lock = client.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE spigate_deliveries IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let claims = (0..20).map(|order| {
        let (gateway, ask) = (gateway.clone(), Arc::new(gateway.create(&format!("o-{order}"))));
        tokio::spawn(async move { gateway.store.claim(ask).await.is_err() })
    });
    let claims: Vec<_> = claims.collect();
    for claim in claims {
        assert!(claim.await.unwrap(), "it cannot be claimed");
    }
    // What was given up still has its connection.
    assert_eq!(gateway.store.probe().await, Ok(()));
    lock.rollback().await.unwrap();
}
