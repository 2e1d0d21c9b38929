//! The clock is stepped by an hour, forward and back, while the gateway runs: freshness follows
//! it, and what the journal knows does not depend on it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::support::backend::{Backend, CREATED, Gate, Seen, Step, json};
use crate::support::gateway::{Gateway, Setup};
use crate::support::order::{Order, action, create, now};
use crate::support::{has_program, within_deadline};

const HOUR: i64 = 3600;

/// A gateway whose clock is set by a file.
struct Shifted {
    gateway: Arc<Gateway>,
    by: PathBuf,
}

impl Shifted {
    async fn start(setup: Setup) -> Option<Self> {
        if !has_program("faketime") {
            return None;
        }
        let library = library();
        let by = setup.directory().path().join("shift");
        std::fs::write(&by, "+0").unwrap();
        let setup = setup
            .environment("LD_PRELOAD", library.to_str().unwrap())
            .environment("FAKETIME_TIMESTAMP_FILE", by.to_str().unwrap())
            .environment("FAKETIME_NO_CACHE", "1")
            // Only the wall clock can be stepped.
            .environment("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        Some(Self { gateway: Arc::new(setup.start().await), by })
    }

    /// Steps the clock to so many seconds from the real one.
    fn step(&self, seconds: i64) {
        // Never half written.
        let next = self.by.with_extension("next");
        std::fs::write(&next, format!("{seconds:+}")).unwrap();
        std::fs::rename(next, &self.by).unwrap();
    }
}

/// Where Debian's package keeps it, on any processor.
fn library() -> PathBuf {
    let found = std::fs::read_dir("/usr/lib").unwrap().filter_map(Result::ok);
    let mut found = found.map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"));
    found.find(|library| Path::new(library).exists()).expect("libfaketimeMT.so.1 of the package faketime")
}

/// Signed at the stepped time.
fn at(order: &Order<'static>, seconds: i64) -> Order<'static> {
    order.clone().signed_at(shifted(seconds))
}

fn shifted(seconds: i64) -> Timestamp {
    now() + SignedDuration::from_secs(seconds)
}

/// Answers the first create when the gate opens, and everything else at once.
async fn backend(gate: &Gate) -> Backend {
    let gate = gate.clone();
    Backend::start(move |request: &Seen| {
        let body = request.json();
        let wait = vec![Step::Wait(gate.clone())];
        match body["action"].as_str().unwrap() {
            "CreateAppInstance" if body["user_id"] == "patient" => [wait, json(CREATED)].concat(),
            "CreateAppInstance" => {
                json(format!(r#"{{"success":true,"instanceId":"of-{}"}}"#, body["order_id"].as_str().unwrap()))
            }
            _ => json(r#"{"success":true}"#),
        }
    })
    .await
}

async fn a_step_changes_nothing_that_is_recorded(seconds: i64) {
    let gate = Gate::closed();
    let backend = backend(&gate).await;
    let setup = Setup::new(&backend).top("[journal]\nlifecycle_replay = \"30m\"\n");
    let Some(shifted) = Shifted::start(setup).await else { return };
    let gateway = &shifted.gateway;
    let (done, running, expired) = (create(), create().with("user_id", "patient"), action("ExpireAppInstance"));
    let first = gateway.order(&done).await;
    assert_eq!(first.status, 200);
    gateway.order(&expired).await.assert_is(r#"{"success":true}"#);
    let send = |order: Order<'static>| {
        let gateway = Arc::clone(gateway);
        tokio::spawn(async move { gateway.order(&order).await })
    };
    let runs = send(running.clone());
    backend.wait_for(3).await;

    shifted.step(seconds);
    // The gateway's clock decides on freshness.
    let (status, code) = (401, if seconds > 0 { "timestamp_expired" } else { "timestamp_in_future" });
    gateway.order(&create()).await.assert_rejected(status, code);
    gateway.order(&done.clone().signed_at(now())).await.assert_rejected(status, code);
    // What was done stays done, what runs is joined, and a new order is new.
    gateway.order(&at(&done, seconds)).await.assert_is(&first.text());
    let joined = send(at(&running, seconds));
    gateway.wait_for_metric("spigate_in_flight_requests{app=\"crm\"}", |running| running == 2.0).await;
    let new = create();
    assert_eq!(gateway.order(&at(&new, seconds)).await.status, 200);
    assert_eq!(backend.count(), 4);
    gate.open();
    for reply in [runs, joined] {
        within_deadline("the running delivery", reply).await.unwrap().assert_is(CREATED);
    }
    if seconds < 0 {
        // One that was recorded in the future is not older for that.
        gateway.order(&at(&expired, seconds)).await.assert_is(r#"{"success":true}"#);
    }
    assert_eq!(backend.count(), 4);

    // And back, with a process that knows all of it from the file.
    shifted.step(0);
    let mut gateway = Arc::into_inner(shifted.gateway).unwrap();
    gateway.restart().await;
    gateway.order(&done.clone().signed_at(now())).await.assert_is(&first.text());
    gateway.order(&running.signed_at(now())).await.assert_is(CREATED);
    assert_eq!(gateway.order(&new.signed_at(now())).await.status, 200);
    gateway.order(&expired.signed_at(now())).await.assert_is(r#"{"success":true}"#);
    assert_eq!(backend.count(), 4);
    gateway.order(&create()).await;
    assert_eq!(backend.count(), 5);
}

#[tokio::test]
async fn a_step_forward_changes_nothing_that_is_recorded() {
    a_step_changes_nothing_that_is_recorded(HOUR).await;
}

#[tokio::test]
async fn a_step_back_changes_nothing_that_is_recorded() {
    a_step_changes_nothing_that_is_recorded(-HOUR).await;
}

#[tokio::test]
async fn a_process_that_starts_an_hour_early_takes_over_what_one_from_the_future_left() {
    let gate = Gate::closed();
    let backend = backend(&gate).await;
    let Some(shifted) = Shifted::start(Setup::new(&backend)).await else { return };
    shifted.step(HOUR);
    let order = create().with("user_id", "patient");
    let lost = tokio::spawn({
        let (gateway, order) = (Arc::clone(&shifted.gateway), at(&order, HOUR));
        async move {
            let mut connection = crate::support::client::Connection::open(gateway.listen).await;
            connection.send(crate::support::client::get(&order.target(), "")).await;
            connection
        }
    });
    let _connection = lost.await.unwrap();
    backend.wait_for(1).await;
    let mut gateway = Arc::into_inner(shifted.gateway).unwrap();
    gateway.kill();
    std::fs::write(&shifted.by, "+0").unwrap();
    gate.open();
    gateway.spawn_again(None);
    gateway.until_ready().await;
    // Unconfirmed, and open at once: nobody waits an hour for a lease.
    gateway.order(&order.signed_at(now())).await.assert_is(CREATED);
    let attempts: Vec<_> =
        backend.requests().iter().map(|request| request.header("x-spi-attempt").map(str::to_owned)).collect();
    assert_eq!(attempts, [Some("1".to_owned()), Some("2".to_owned())]);
}
