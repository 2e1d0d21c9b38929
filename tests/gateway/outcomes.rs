//! How an attempt ended decides what becomes of the next copy: replayed, forwarded again under
//! the same key, or held.

use crate::support::backend::{Backend, CREATED, Seen, Step, created, json, raw, reply};
use crate::support::gateway::{Gateway, Setup, UNCONFIRMED};
use crate::support::order::create;

const JOURNALS: [&str; 2] = ["sqlite:./spigate.db", "memory:"];
const CREATE: &str = "CreateAppInstance";
const JSON: &str = "Content-Type: application/json\r\n";
const REFUSAL: &str = r#"{"success":false,"message":"开通失败"}"#;
const HOLD: &str = "on_unconfirmed = \"hold\"";

/// What a backend does to say that it did nothing, and what the platform is told.
fn failures() -> Vec<(Vec<Step>, &'static str)> {
    vec![
        (reply("500 Oops", "", ""), "backend_error"),
        (reply("503 Unavailable", JSON, CREATED), "backend_error"),
        (reply("429 Too Many", JSON, REFUSAL), "backend_error"),
        (reply("404 Not Found", "Content-Type: text/html\r\n", "<html>"), "backend_contract"),
        (reply("400 Bad Request", JSON, "{}"), "backend_contract"),
        (reply("409 Conflict", JSON, CREATED), "backend_contract"),
    ]
}

/// What a backend does to leave in doubt whether it did something.
fn doubts() -> Vec<(Vec<Step>, &'static str)> {
    let truncated = format!("HTTP/1.1 200 OK\r\n{JSON}Content-Length: {}\r\n\r\n{CREATED}", CREATED.len() + 1);
    vec![
        (vec![Step::Reset], "backend_broken_reply"),
        (vec![Step::Close], "backend_broken_reply"),
        ([raw("HTTP/1.1 200 OK\r\n"), vec![Step::Close]].concat(), "backend_broken_reply"),
        ([raw(truncated), vec![Step::Close]].concat(), "backend_broken_reply"),
        (json(r#"{"success":true}"#), "backend_contract"),
        (json("<html>"), "backend_contract"),
        (reply("200 OK", "Content-Type: text/html\r\n", CREATED), "backend_contract"),
        (reply("302 Found", "Location: /login\r\n", ""), "backend_contract"),
    ]
}

fn attempts(seen: &[Seen]) -> Vec<u32> {
    let key = seen[0].attempt().1;
    assert!(seen.iter().all(|seen| seen.attempt().1 == key), "{seen:#?}");
    seen.iter().map(|seen| seen.attempt().0).collect()
}

/// Sends copies of one order until it is confirmed; each of `turns` has to end as its code says.
async fn retried(setup: impl Fn(&Backend) -> Setup, turns: Vec<(Vec<Step>, &str)>, outcome: &str) {
    let backend = Backend::in_turn(turns.iter().map(|(steps, _)| steps.clone())).await;
    let gateway = setup(&backend).start().await;
    let order = create();
    for (number, (_, code)) in turns.iter().enumerate() {
        let reply = gateway.order(&order).await;
        reply.assert_rejected(502, code);
        assert_eq!(gateway.access_line(&reply).await["outcome"], outcome, "attempt {}", number + 1);
        let unconfirmed = f64::from(u8::from(outcome == "unconfirmed"));
        gateway.wait_for_metric(UNCONFIRMED, |number| number == unconfirmed).await;
    }
    let last = turns.len() + 1;
    for _ in 0..2 {
        gateway.order(&order.clone().seconds_from_now(-1)).await.assert_is(&created(&format!("ins-{last}")));
    }
    let numbers: Vec<u32> = (1..).take(last).collect();
    assert_eq!(attempts(&backend.requests()), numbers);
    let count = gateway.deliveries(CREATE, outcome).await;
    assert_eq!((count as usize, gateway.deliveries(CREATE, "delivered").await), (turns.len(), 1.0));
    gateway.wait_for_metric(UNCONFIRMED, |number| number == 0.0).await;
}

#[tokio::test]
async fn what_the_backend_says_that_it_did_not_do_is_forwarded_again_under_the_same_key() {
    for journal in JOURNALS {
        retried(|backend| Setup::new(backend).journal(journal), failures(), "failed").await;
    }
}

#[tokio::test]
async fn what_may_have_been_done_is_forwarded_again_under_the_same_key() {
    for journal in JOURNALS {
        retried(|backend| Setup::new(backend).journal(journal), doubts(), "unconfirmed").await;
    }
}

#[tokio::test]
async fn where_unconfirmed_deliveries_are_held_failed_ones_are_not() {
    for journal in JOURNALS {
        retried(|backend| Setup::new(backend).journal(journal).app(HOLD), failures(), "failed").await;
    }
}

#[tokio::test]
async fn what_could_not_be_sent_is_forwarded_again() {
    for app in ["", HOLD] {
        let closed = Backend::closed();
        let gateway = Setup::to(closed.url("/")).app(app).start().await;
        let order = create();
        for _ in 0..2 {
            let reply = gateway.order(&order).await;
            reply.assert_rejected(502, "backend_unreachable");
            assert_eq!(gateway.access_line(&reply).await["outcome"], "failed");
        }
        let backend = closed.open();
        gateway.order(&order).await.assert_is(CREATED);
        gateway.order(&order).await.assert_is(CREATED);
        assert_eq!(backend.only_request().attempt().0, 3);
        assert_eq!(gateway.deliveries(CREATE, "failed").await, 2.0);
    }
}

#[tokio::test]
async fn a_refusal_opens_the_order_again_whether_unconfirmed_ones_are_held_or_not() {
    for (journal, app) in JOURNALS.into_iter().flat_map(|journal| [(journal, ""), (journal, HOLD)]) {
        let turns = [json(REFUSAL), reply("400 Bad Request", JSON, REFUSAL)];
        let backend = Backend::in_turn(turns).await;
        let gateway = Setup::new(&backend).journal(journal).app(app).start().await;
        let order = create();
        for _ in 0..2 {
            let reply = gateway.order(&order).await;
            reply.assert_is(REFUSAL);
            assert_eq!(gateway.access_line(&reply).await["outcome"], "refused");
        }
        gateway.order(&order).await.assert_is(&created("ins-3"));
        gateway.order(&order).await.assert_is(&created("ins-3"));
        assert_eq!(attempts(&backend.requests()), [1, 2, 3]);
        assert_eq!(gateway.deliveries(CREATE, "refused").await, 2.0);
    }
}

#[tokio::test]
async fn a_call_that_ran_into_its_timeout_may_have_been_done() {
    for (journal, app) in JOURNALS.into_iter().flat_map(|journal| [(journal, ""), (journal, HOLD)]) {
        let backend = Backend::in_turn([vec![Step::Stall]]).await;
        let short = "answer_within = \"2s\"\nconnect_timeout = \"2s\"\ntimeout = \"2s\"";
        let gateway = Setup::new(&backend).journal(journal).app(app).backend(short).start().await;
        let order = create();
        gateway.order(&order).await.assert_rejected(504, "backend_timeout");
        gateway.wait_for_deliveries(CREATE, "unconfirmed", 1).await;
        gateway.wait_for_metric(UNCONFIRMED, |number| number == 1.0).await;
        if app == HOLD {
            gateway.order(&order).await.assert_rejected(503, "delivery_in_progress");
            assert_eq!(backend.count(), 1);
            continue;
        }
        gateway.hurry_no_more().await;
        gateway.order(&order).await.assert_is(&created("ins-2"));
        assert_eq!(attempts(&backend.requests()), [1, 2]);
        gateway.wait_for_metric(UNCONFIRMED, |number| number == 0.0).await;
    }
}

#[tokio::test]
async fn what_may_have_been_done_waits_for_the_operator_where_he_wants_to_decide() {
    for journal in JOURNALS {
        let turns = doubts();
        let backend = Backend::in_turn(turns.iter().map(|(steps, _)| steps.clone())).await;
        let gateway = Setup::new(&backend).journal(journal).app(HOLD).start().await;
        for (number, (_, code)) in turns.iter().enumerate() {
            let order = create();
            gateway.order(&order).await.assert_rejected(502, code);
            for _ in 0..2 {
                let reply = gateway.order(&order.clone().seconds_from_now(-1)).await;
                reply.assert_rejected(503, "delivery_in_progress");
                let line = gateway.access_line(&reply).await;
                assert!(line["cause"].as_str().unwrap().contains("on_unconfirmed"), "{line}");
            }
            // Not even one with other content.
            gateway.order(&order.with("user_id", "other")).await.assert_rejected(422, "order_conflict");
            assert_eq!(backend.count(), number + 1);
        }
        let count = turns.len() as f64;
        gateway.wait_for_metric(UNCONFIRMED, |number| number == count).await;
        assert_eq!(gateway.deliveries(CREATE, "held").await, 2.0 * count);
        assert_eq!(gateway.deliveries(CREATE, "unconfirmed").await, count);
        // Other orders go on.
        let next = format!("ins-{}", turns.len() + 1);
        gateway.order(&create()).await.assert_is(&created(&next));
    }
}

#[tokio::test]
async fn a_failure_after_an_attempt_in_doubt_leaves_the_doubt_and_a_refusal_ends_it() {
    for journal in JOURNALS {
        let turns = [vec![Step::Reset], reply("500 Oops", "", ""), json(REFUSAL), reply("500 Oops", "", "")];
        let backend = Backend::in_turn(turns).await;
        let gateway = Setup::new(&backend).journal(journal).start().await;
        let order = create();
        for unconfirmed in [1.0, 1.0, 0.0, 0.0] {
            gateway.order(&order).await;
            gateway.wait_for_metric(UNCONFIRMED, |number| number == unconfirmed).await;
        }
        gateway.order(&order).await.assert_is(&created("ins-5"));
        assert_eq!(attempts(&backend.requests()), [1, 2, 3, 4, 5]);
    }
}

#[tokio::test]
async fn a_running_delivery_is_in_doubt_for_nobody() {
    let gate = crate::support::backend::Gate::closed();
    let backend = Backend::in_turn([[vec![Step::Wait(gate.clone())], json(CREATED)].concat()]).await;
    let gateway = Gateway::over(&backend).await;
    let first = gateway.send(&create());
    backend.wait_for(1).await;
    gateway.wait_for_metric(UNCONFIRMED, |number| number == 0.0).await;
    gate.open();
    first.await.unwrap().assert_is(CREATED);
}
