//! What was recorded outlives the process, whether it ended by itself or not, and the keys of the
//! app with which it was recorded.

use crate::support::backend::{Backend, CREATED, Gate, Step, created, json, reply};
use crate::support::client::{get, one_reply};
use crate::support::gateway::{Setup, UNANSWERED, UNCONFIRMED};
use crate::support::order::{KEY, action, create};
use crate::support::{Directory, within_deadline};

const CREATE: &str = "CreateAppInstance";
const NEXT_KEY: &str = "the-key-after-that-one";
const LAST_KEY: &str = "the-key-after-all-others";

/// A gateway that ends at once and keeps its journal in the directory.
fn setup(backend: &Backend, directory: &Directory) -> Setup {
    Setup::new(backend).journal_in(directory).top("[shutdown]\ndelay = \"0s\"\n")
}

/// With other keys: the first is the active one, the second, if there is one, retired.
fn with_keys(setup: Setup, keys: &[&str]) -> Setup {
    keys.iter().enumerate().fold(setup, |setup, (position, key)| {
        let name = |what: &str| format!("SPIGATE_APPS__0__KEYS__{position}__{what}");
        let setup = setup.environment(&name("ID"), &format!("k-{position}")).environment(&name("VALUE"), key);
        if position == 0 { setup } else { setup.environment(&name("STATE"), "retired") }
    })
}

/// Waits until a gateway says that it is about to end.
async fn until_stopping(admin: std::net::SocketAddr) {
    let stopping = async { while one_reply(admin, get("/readyz", "")).await.status == 200 {} };
    within_deadline("the end of readiness", stopping).await;
}

#[tokio::test]
async fn a_recorded_order_is_replayed_byte_for_byte_without_a_call() {
    let body = "{ \"success\":true,\"instanceId\":\"ins-1\", \"n\": 1.50, \"message\":\"开通成功\" }\r\n";
    let directory = Directory::new();
    let backend = Backend::start(move |_| json(body)).await;
    let order = create();
    let gateway = setup(&backend, &directory).start().await;
    gateway.order(&order).await.assert_is(body);
    gateway.order(&action("ExpireAppInstance").with("instance_id", "i")).await.assert_is(body);
    gateway.stop().await;
    for _ in 0..2 {
        let gateway = setup(&backend, &directory).start().await;
        // That they were answered was recorded, too.
        gateway.wait_for_metric(UNANSWERED, |number| number == 0.0).await;
        gateway.order(&order.clone().seconds_from_now(-1)).await.assert_is(body);
        gateway.order(&action("ExpireAppInstance").with("instance_id", "i")).await.assert_is(body);
        gateway.order(&order.clone().with("user_id", "other")).await.assert_rejected(422, "order_conflict");
        gateway.stop().await;
    }
    assert_eq!(backend.count(), 2);
}

#[tokio::test]
async fn attempts_cycles_and_instances_go_on_where_they_were() {
    let directory = Directory::new();
    let turns = [json(CREATED), reply("500 Oops", "", ""), json(CREATED), json(CREATED), json(CREATED)];
    let backend = Backend::in_turn(turns).await;
    let (order, expire) = (create(), || action("ExpireAppInstance").with("instance_id", "i"));
    let gateway = setup(&backend, &directory).start().await;
    gateway.order(&create()).await.assert_is(CREATED);
    gateway.order(&order).await.assert_rejected(502, "backend_error");
    gateway.order(&expire()).await.assert_is(CREATED);
    gateway.order(&action("RenewAppInstance").with("instance_id", "i")).await.assert_is(CREATED);
    gateway.stop().await;

    let gateway = setup(&backend, &directory).start().await;
    // Still an instance of another order.
    gateway.order(&order).await.assert_rejected(502, "backend_contract");
    gateway.order(&expire()).await.assert_is(&created("ins-6"));
    gateway.stop().await;
    let gateway = setup(&backend, &directory).start().await;
    gateway.wait_for_metric(UNCONFIRMED, |number| number == 1.0).await;
    gateway.order(&order).await.assert_is(&created("ins-7"));
    let seen = backend.attempts();
    let numbers: Vec<_> = seen.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, [1, 1, 1, 1, 2, 1, 3]);
    assert_eq!((&seen[1].1, &seen[1].1), (&seen[4].1, &seen[6].1));
    assert_ne!(seen[2].1, seen[5].1, "two cycles");
}

#[tokio::test]
async fn an_idempotency_key_survives_the_loss_of_the_journal() {
    let backend = Backend::in_turn([]).await;
    let order = create();
    let expire = || action("ExpireAppInstance").with("instance_id", "i");
    for _ in 0..2 {
        let directory = Directory::new();
        let gateway = setup(&backend, &directory).start().await;
        assert_eq!(gateway.order(&order).await.status, 200);
        assert_eq!(gateway.order(&expire()).await.status, 200);
        gateway.stop().await;
    }
    let seen = backend.attempts();
    assert_eq!(seen[..2], seen[2..]);
    assert_ne!(seen[0], seen[1]);
}

#[tokio::test]
async fn replies_outlive_the_key_of_the_app_that_was_replaced() {
    let directory = Directory::new();
    let backend = Backend::in_turn([]).await;
    let order = create();
    let start = |keys: &'static [&'static str]| with_keys(setup(&backend, &directory), keys).start();
    let gateway = start(&[KEY]).await;
    gateway.order(&order).await.assert_is(CREATED);
    gateway.stop().await;
    // One after the other: the retired key opens what it sealed, and hands it on to the next.
    for keys in [&[NEXT_KEY, KEY] as &[&str], &[LAST_KEY, NEXT_KEY], &[LAST_KEY]] {
        let gateway = start(keys).await;
        gateway.order(&order).await.assert_rejected(401, "signature_invalid");
        gateway.order(&order.clone().key(keys[0])).await.assert_is(CREATED);
        gateway.stop().await;
    }
    backend.only_request();
}

#[tokio::test]
async fn a_reply_that_no_key_opens_any_more_is_a_503_and_never_delivered_again() {
    let directory = Directory::new();
    let backend = Backend::in_turn([]).await;
    let order = create();
    let gateway = setup(&backend, &directory).start().await;
    gateway.order(&order).await.assert_is(CREATED);
    gateway.stop().await;

    let gateway = with_keys(setup(&backend, &directory), &[NEXT_KEY]).start().await;
    let is_lost = |line: &serde_json::Value| {
        line["level"] == "ERROR" && line["message"].as_str().is_some_and(|message| message.contains("configured keys"))
    };
    assert_eq!(gateway.line("the keys that are lost", is_lost).await["app"], "crm");
    let moved = order.clone().key(NEXT_KEY);
    for _ in 0..2 {
        let reply = gateway.order(&moved).await;
        reply.assert_rejected(503, "journal_unavailable");
        let line = gateway.access_line(&reply).await;
        assert!(line["cause"].as_str().unwrap().contains("retired"), "{line}");
    }
    backend.only_request();
    // It is one reply that is lost, not the journal.
    assert_eq!(gateway.readyz().await.status, 200);
    let later = create().key(NEXT_KEY);
    gateway.order(&later).await.assert_is(&created("ins-2"));
    gateway.order(&later).await.assert_is(&created("ins-2"));
    gateway.stop().await;

    // The key that is put back opens it again.
    let gateway = with_keys(setup(&backend, &directory), &[NEXT_KEY, KEY]).start().await;
    gateway.order(&moved).await.assert_is(CREATED);
    gateway.order(&later).await.assert_is(&created("ins-2"));
    assert_eq!(backend.count(), 2);
}

#[tokio::test]
async fn with_an_encryption_key_all_keys_of_the_app_may_be_replaced_at_once() {
    let directory = Directory::new();
    let backend = Backend::in_turn([]).await;
    let key = "encryption_key = { value = \"a-key-of-no-fewer-than-32-characters\" }\n";
    let start = |keys: &'static [&'static str]| {
        let setup = Setup::new(&backend).journal_in(&directory).top(key).top("[shutdown]\ndelay = \"0s\"\n");
        with_keys(setup, keys).start()
    };
    let order = create();
    let gateway = start(&[KEY]).await;
    gateway.order(&order).await.assert_is(CREATED);
    gateway.stop().await;
    let gateway = start(&[NEXT_KEY]).await;
    gateway.order(&order.clone().key(NEXT_KEY)).await.assert_is(CREATED);
    backend.only_request();
}

#[tokio::test]
async fn an_end_that_cannot_wait_for_a_running_call_leaves_it_unconfirmed_and_says_so() {
    let directory = Directory::new();
    let gate = Gate::closed();
    let backend = Backend::in_turn([vec![Step::Wait(gate.clone()), Step::Reset]]).await;
    let short = "[shutdown]\ndelay = \"0s\"\ngrace = \"500ms\"\n";
    let gateway = Setup::new(&backend).journal_in(&directory).top(short).start().await;
    let order = create();
    let first = gateway.send(&order);
    backend.wait_for(1).await;
    let output = gateway.stop().await;
    // The caller saw the connection end.
    assert!(first.await.is_err());
    let found = output.lines().any(|line| line.contains("still runs") && line.contains(order.value("order_id")));
    assert!(found, "{output}");

    let gateway = setup(&backend, &directory).start().await;
    gateway.wait_for_metric(UNCONFIRMED, |number| number == 1.0).await;
    gateway.order(&order).await.assert_is(&created("ins-2"));
    let attempts = backend.attempts();
    assert_eq!(attempts, [(1, attempts[0].1.clone()), (2, attempts[0].1.clone())]);
    gateway.wait_for_metric(UNCONFIRMED, |number| number == 0.0).await;
    gate.open();
}

#[tokio::test]
async fn an_end_that_can_wait_answers_and_records_what_runs() {
    let directory = Directory::new();
    let gate = Gate::closed();
    let backend = Backend::in_turn([[vec![Step::Wait(gate.clone())], json(CREATED)].concat()]).await;
    let gateway = setup(&backend, &directory).start().await;
    let order = create();
    let first = gateway.send(&order);
    backend.wait_for(1).await;
    let (admin, stopping) = (gateway.admin, tokio::spawn(gateway.stop()));
    until_stopping(admin).await;
    gate.open();
    first.await.unwrap().assert_is(CREATED);
    let output = stopping.await.unwrap();
    assert!(output.contains("\"stopped\"") && !output.contains("still runs"), "{output}");
    let gateway = setup(&backend, &directory).start().await;
    gateway.order(&order).await.assert_is(CREATED);
    backend.only_request();
}

#[tokio::test]
async fn an_end_waits_for_a_call_that_no_caller_waits_for() {
    let directory = Directory::new();
    let gate = Gate::closed();
    let backend = Backend::in_turn([[vec![Step::Wait(gate.clone())], json(CREATED)].concat()]).await;
    let gateway = setup(&backend, &directory).backend("answer_within = \"2s\"\nconnect_timeout = \"2s\"").start().await;
    let order = create();
    gateway.order(&order).await.assert_rejected(504, "backend_timeout");
    let (admin, stopping) = (gateway.admin, tokio::spawn(gateway.stop()));
    until_stopping(admin).await;
    gate.open();
    let output = stopping.await.unwrap();
    assert!(output.contains("\"stopped\"") && !output.contains("still runs"), "{output}");
    let gateway = setup(&backend, &directory).start().await;
    gateway.order(&order).await.assert_is(CREATED);
    backend.only_request();
}

#[tokio::test]
async fn a_killed_process_leaves_its_running_calls_unconfirmed_and_its_confirmations_recorded() {
    for (hold, count) in [("", 2), ("on_unconfirmed = \"hold\"", 1)] {
        let backend = Backend::in_turn([json(CREATED), vec![Step::Stall]]).await;
        let mut gateway = Setup::new(&backend).app(hold).start().await;
        let (done, running) = (create(), create());
        gateway.order(&done).await.assert_is(CREATED);
        let lost = gateway.send(&running);
        backend.wait_for(2).await;
        gateway.restart().await;
        assert!(lost.await.is_err());
        let taken_over = |line: &serde_json::Value| line["level"] == "WARN" && line["deliveries"] == 1;
        gateway.line("what the process before had running", taken_over).await;
        gateway.wait_for_metric(UNCONFIRMED, |number| number == 1.0).await;
        gateway.order(&done).await.assert_is(CREATED);
        let reply = gateway.order(&running).await;
        if count == 1 {
            reply.assert_rejected(503, "delivery_in_progress");
        } else {
            reply.assert_is(&created("ins-3"));
        }
        let seen = backend.attempts().split_off(1);
        assert_eq!(seen.len(), count);
        assert!(seen.iter().all(|(_, key)| *key == seen[0].1), "{seen:?}");
        assert_eq!(seen.last().unwrap().0, u32::try_from(count).unwrap());
    }
}

#[tokio::test]
async fn what_was_never_answered_is_still_known_after_a_restart() {
    let directory = Directory::new();
    let gate = Gate::closed();
    let backend = Backend::in_turn([[vec![Step::Wait(gate.clone())], json(CREATED)].concat()]).await;
    let gateway = setup(&backend, &directory).backend("answer_within = \"2s\"\nconnect_timeout = \"2s\"").start().await;
    let order = create();
    gateway.order(&order).await.assert_rejected(504, "backend_timeout");
    gate.open();
    gateway.wait_for_deliveries(CREATE, "late", 1).await;
    gateway.stop().await;
    let gateway = setup(&backend, &directory).start().await;
    gateway.wait_for_metric(UNANSWERED, |number| number == 1.0).await;
    gateway.order(&order).await.assert_is(CREATED);
    gateway.wait_for_metric(UNANSWERED, |unanswered| unanswered == 0.0).await;
    backend.only_request();
}

#[tokio::test]
async fn a_second_process_does_not_serve_from_a_journal_that_is_served_from() {
    let directory = Directory::new();
    let backend = Backend::in_turn([]).await;
    let gateway = setup(&backend, &directory).start().await;
    let second = setup(&backend, &directory).refusal().await;
    assert_eq!(second.code, 2, "{}", second.text);
    assert!(second.text.contains("spigate.db"), "{}", second.text);
    // The first one is none the worse for it.
    gateway.order(&create()).await.assert_is(CREATED);
}
