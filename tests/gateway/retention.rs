//! What the journal forgets and when, and that its file does not grow for ever.

use jiff::{SignedDuration, Timestamp};
use spigate::journal::sqlite::SqliteStore;
use spigate::journal::store::{Archive as _, Retention};
use tokio::task::JoinSet;

use crate::support::backend::{Backend, Seen, json};
use crate::support::gateway::{Gateway, Setup};
use crate::support::order::{create, now};
use crate::support::within_deadline;

/// Gives each order an instance and a password.
async fn backend() -> Backend {
    Backend::start(|request: &Seen| {
        let order = request.json()["order_id"].as_str().unwrap().to_owned();
        json(format!(
            r#"{{"success":true,"instanceId":"i-{order}","appInfo":{{"frontEnd":{{"url":"https://crm.example","username":"u","password":"p-{order}"}}}}}}"#
        ))
    })
    .await
}

const PRUNED: &str = "spigate_journal_seconds_count{operation=\"prune\"}";

/// Starts the gateway again, with what it is set to, and waits until it has removed what is too
/// old by then.
async fn sweep(gateway: &mut Gateway, setting: Option<(&str, &str)>) {
    gateway.kill();
    gateway.spawn_again(setting);
    gateway.until_ready().await;
    gateway.wait_for_metric(PRUNED, |sweeps| sweeps >= 1.0).await;
}

#[tokio::test]
async fn credentials_go_first_and_then_the_delivery() {
    let backend = backend().await;
    let times = "[journal]\nretain_replies = \"1s\"\n";
    let mut gateway = Setup::new(&backend).top(times).start().await;
    let order = create();
    let whole = gateway.order(&order).await.text();
    let id = order.value("order_id");
    assert!(whole.contains(&format!("p-{id}")), "{whole}");

    let shorter = async {
        loop {
            let reply = gateway.order(&order).await;
            assert_eq!(reply.status, 200, "{reply:?}");
            if reply.text() != whole {
                return reply;
            }
            sweep(&mut gateway, None).await;
        }
    };
    let shorter = within_deadline("the end of retain_replies", shorter).await;
    shorter.assert_is(&format!(r#"{{"success":true,"instanceId":"i-{id}"}}"#));
    assert_eq!(backend.count(), 1);

    let forgotten = async {
        while backend.count() == 1 {
            sweep(&mut gateway, Some(("SPIGATE_JOURNAL__RETAIN_HISTORY", "1s"))).await;
            assert_eq!(gateway.order(&order).await.status, 200);
        }
    };
    within_deadline("the end of retain_history", forgotten).await;
    gateway.order(&order).await.assert_is(&whole);
    let calls = backend.requests();
    assert_eq!(calls.len(), 2);
    // It is a new delivery, and the same order.
    for call in &calls {
        assert_eq!(call.header("x-spi-attempt"), Some("1"));
        assert_eq!(call.header("idempotency-key"), calls[0].header("idempotency-key"));
    }
}

/// Together more than the writer remembers before it puts them into the index of keys (16,384).
const ROUNDS: usize = 60;
const ORDERS: usize = 400;
/// The round after which the file has to be as large as it gets.
const LEVEL: usize = 5;

#[tokio::test]
async fn the_file_stops_growing_where_as_much_is_removed_as_comes() {
    let backend = backend().await;
    let gateway = std::sync::Arc::new(Gateway::over(&backend).await);
    let file = gateway.directory().path().join("spigate.db");
    // Beside the gateway that serves from it, as `spigate journal prune` does.
    let visitor = SqliteStore::visit(&file).unwrap();
    let looking = rusqlite::Connection::open(&file).unwrap();
    let number = |sql: &str| looking.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    let mut pages = Vec::new();
    for _ in 0..ROUNDS {
        let mut orders = JoinSet::new();
        for _ in 0..ORDERS {
            let gateway = std::sync::Arc::clone(&gateway);
            orders.spawn(async move { assert_eq!(gateway.order(&create()).await.status, 200) });
        }
        orders.join_all().await;
        backend.forget();
        let now = now();
        let end = now + SignedDuration::from_secs(1);
        let all = Retention { now, replies_before: end, history_before: end, wraps_before: Timestamp::MIN, batch: 500 };
        let pruned = visitor.prune(all).await.unwrap();
        assert_eq!(pruned.deliveries, ORDERS);
        // With what lies in the log only; and those of them that hold something.
        let size = number("PRAGMA page_count");
        pages.push((size, size - number("PRAGMA freelist_count")));
    }
    let (size, used) = pages[LEVEL - 1];
    for (later, later_used) in &pages[LEVEL..] {
        assert!(*later <= size + size / 4 && *later_used <= used + used / 4, "{pages:?}");
    }
    for table in ["keys", "names", "attempts", "aliases"] {
        assert_eq!(number(&format!("SELECT count(*) FROM {table}")), 0, "{table}");
    }
}
