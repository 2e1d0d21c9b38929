//! Lifecycles are cyclic: an instance expires, is renewed and expires again, and each of these is
//! delivered once.

use crate::support::backend::{Backend, Gate, Step, json, reply};
use crate::support::gateway::{Gateway, Setup};
use crate::support::order::{Order, action, market};
use crate::support::within_deadline;

const JOURNALS: [&str; 2] = ["sqlite:./spigate.db", "memory:"];
const EXPIRE: &str = "ExpireAppInstance";
const DELETE: &str = "DeleteAppInstance";
const RENEW: &str = "RenewAppInstance";
const UPGRADE: &str = "UpgradeAppInstance";
const DONE: &str = r#"{"success":true}"#;

/// An action about the instance of these tests.
fn of_instance(name: &str) -> Order<'static> {
    action(name).with("instance_id", "i-1")
}

async fn confirming() -> Backend {
    Backend::start(|_| json(DONE)).await
}

/// Attempts and keys of what the backend received of an action.
fn received(backend: &Backend, name: &str) -> Vec<(u32, String)> {
    let seen = backend.requests().into_iter().filter(|seen| seen.header("x-spi-action") == Some(name));
    seen.map(|seen| seen.attempt()).collect()
}

/// Asserts that the backend received so many of the action, each the first attempt under a key of
/// its own.
#[track_caller]
fn assert_received(backend: &Backend, name: &str, count: usize) {
    let received = received(backend, name);
    assert_eq!(received.len(), count, "{name}: {received:?}");
    let mut keys: Vec<_> = received.iter().map(|(_, key)| key).collect();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), count, "{name}: {received:?}");
    assert!(received.iter().all(|(attempt, _)| *attempt == 1), "{name}: {received:?}");
}

#[tokio::test]
async fn an_end_is_delivered_once_between_two_renewals() {
    for (journal, end) in JOURNALS.into_iter().flat_map(|journal| [(journal, EXPIRE), (journal, DELETE)]) {
        let backend = confirming().await;
        let gateway = Setup::new(&backend).journal(journal).start().await;
        for round in 1..=3 {
            for copy in 0..3 {
                gateway.order(&of_instance(end).seconds_from_now(-copy)).await.assert_is(DONE);
            }
            assert_received(&backend, end, round);
            let revival = if round == 1 { RENEW } else { UPGRADE };
            gateway.order(&of_instance(revival)).await.assert_is(DONE);
        }
        assert_eq!(gateway.deliveries(end, "delivered").await, 3.0);
        assert_eq!(gateway.deliveries(end, "replayed").await, 6.0);
    }
}

#[tokio::test]
async fn the_cloud_market_has_cycles_too() {
    let backend = confirming().await;
    let gateway = Setup::new(&backend).dialect("qingcloud-market").start().await;
    for round in 1..=2 {
        for name in ["ExpireInstance", "DeleteInstance"] {
            for _ in 0..2 {
                gateway.order(&market(name).with("instance_id", "i-1")).await.assert_is(DONE);
            }
            assert_received(&backend, name, round);
        }
        gateway.order(&market("RenewInstance").with("instance_id", "i-1")).await.assert_is(DONE);
    }
}

#[tokio::test]
async fn a_renewal_that_was_forwarded_counts_whatever_became_of_it() {
    let failures = || [reply("500 Oops", "", ""), vec![Step::Reset], json(r#"{"success":false}"#), json("{}")];
    for (journal, revival) in JOURNALS.into_iter().flat_map(|journal| [(journal, RENEW), (journal, UPGRADE)]) {
        let turns = failures().into_iter().flat_map(|failure| [json(DONE), failure]);
        let backend = Backend::in_turn(turns).await;
        let gateway = Setup::new(&backend).journal(journal).start().await;
        for round in 1..=failures().len() {
            gateway.order(&of_instance(EXPIRE)).await.assert_is(DONE);
            gateway.order(&of_instance(EXPIRE)).await.assert_is(DONE);
            assert_received(&backend, EXPIRE, round);
            let reply = gateway.order(&of_instance(revival)).await;
            assert_ne!(reply.text(), DONE);
        }
    }
}

#[tokio::test]
async fn a_renewal_that_was_not_forwarded_does_not_count() {
    for journal in JOURNALS {
        let backend = confirming().await;
        let gateway = Setup::new(&backend).journal(journal).start().await;
        let renewal = of_instance(RENEW);
        gateway.order(&renewal).await.assert_is(DONE);
        gateway.order(&of_instance(EXPIRE)).await.assert_is(DONE);
        // A copy of the renewal before, one of other content, one of another instance.
        gateway.order(&renewal).await.assert_is(DONE);
        gateway.order(&renewal.with("period", "9_year")).await.assert_rejected(422, "order_conflict");
        gateway.order(&action(RENEW)).await.assert_is(DONE);
        gateway.order(&of_instance(EXPIRE)).await.assert_is(DONE);
        assert_received(&backend, EXPIRE, 1);
    }
}

#[tokio::test]
async fn a_late_end_does_not_swallow_the_one_after_the_renewal() {
    for (journal, end) in JOURNALS.into_iter().flat_map(|journal| [(journal, EXPIRE), (journal, DELETE)]) {
        let gate = Gate::closed();
        let slow = [vec![Step::Wait(gate.clone())], json(DONE)].concat();
        let backend = Backend::in_turn([slow, json(DONE), json(DONE)]).await;
        let short = "answer_within = \"2s\"\nconnect_timeout = \"2s\"";
        let gateway = Setup::new(&backend).journal(journal).backend(short).start().await;
        gateway.order(&of_instance(end)).await.assert_rejected(504, "backend_timeout");
        gateway.hurry_no_more().await;
        gateway.order(&of_instance(RENEW)).await.assert_is(DONE);
        gate.open();
        gateway.wait_for_deliveries(end, "late", 1).await;
        gateway.order(&of_instance(end)).await.assert_is(DONE);
        gateway.order(&of_instance(end)).await.assert_is(DONE);
        assert_received(&backend, end, 2);
    }
}

#[tokio::test]
async fn an_end_that_failed_is_tried_again_in_its_cycle() {
    for journal in JOURNALS {
        let turns = [json(DONE), json(DONE), reply("500 Oops", "", ""), vec![Step::Reset], json(DONE)];
        let backend = Backend::in_turn(turns).await;
        let gateway = Setup::new(&backend).journal(journal).start().await;
        gateway.order(&of_instance(EXPIRE)).await.assert_is(DONE);
        gateway.order(&of_instance(RENEW)).await.assert_is(DONE);
        gateway.order(&of_instance(EXPIRE)).await.assert_rejected(502, "backend_error");
        gateway.order(&of_instance(EXPIRE)).await.assert_rejected(502, "backend_broken_reply");
        gateway.order(&of_instance(EXPIRE)).await.assert_is(DONE);
        gateway.order(&of_instance(EXPIRE)).await.assert_is(DONE);
        let received = received(&backend, EXPIRE);
        let (first, second) = (received[0].1.clone(), received[1].1.clone());
        assert_ne!(first, second);
        assert_eq!(received, [(1, first), (1, second.clone()), (2, second.clone()), (3, second)]);
    }
}

#[tokio::test]
async fn a_recorded_end_is_replayed_for_as_long_as_configured_and_then_forwarded_again() {
    for (journal, end) in JOURNALS.into_iter().flat_map(|journal| [(journal, EXPIRE), (journal, DELETE)]) {
        let backend = confirming().await;
        let short = "lifecycle_replay = \"1s\"\n";
        let gateway = Setup::new(&backend).journal(journal).top(short).start().await;
        for round in 1..=3 {
            let forwarded = async {
                while backend.count() < round {
                    gateway.order(&of_instance(end)).await.assert_is(DONE);
                }
            };
            within_deadline("an end that is forwarded again", forwarded).await;
        }
        assert_received(&backend, end, 3);
    }
}

#[tokio::test]
async fn ends_of_two_instances_two_kinds_and_a_trial_run_are_deliveries_of_their_own() {
    let backend = confirming().await;
    let gateway = Gateway::over(&backend).await;
    for _ in 0..2 {
        gateway.order(&of_instance(EXPIRE)).await.assert_is(DONE);
        gateway.order(&of_instance(DELETE)).await.assert_is(DONE);
        gateway.order(&of_instance(EXPIRE).with("instance_id", "i-2")).await.assert_is(DONE);
        gateway.order(&of_instance(EXPIRE).with("debug", "1")).await.assert_is(DONE);
    }
    assert_received(&backend, EXPIRE, 3);
    assert_received(&backend, DELETE, 1);
}
