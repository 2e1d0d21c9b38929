//! Each order reaches the backend once, and every copy of it gets that call's answer.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::SignedDuration;
use tokio::task::JoinSet;

use crate::support::backend::{Backend, CREATED, Gate, Seen, Step, created, json, reply};
use crate::support::client::{self, Connection, get};
use crate::support::gateway::{Gateway, Setup, UNANSWERED};
use crate::support::order::{action, create, market, now};

/// Both journals that need no server.
const JOURNALS: [&str; 2] = ["sqlite:./spigate.db", "memory:"];

const CREATE: &str = "CreateAppInstance";

/// A backend whose first call waits at the gate, and what it does then.
async fn gated(then: Vec<Step>) -> (Backend, Gate) {
    let gate = Gate::closed();
    let backend = Backend::in_turn([[vec![Step::Wait(gate.clone())], then].concat()]).await;
    (backend, gate)
}

/// Long enough for a loaded machine, short enough to wait for.
const SOON: &str = "answer_within = \"2s\"\nconnect_timeout = \"2s\"";

#[tokio::test]
async fn a_hundred_identical_orders_are_one_call_and_one_answer() {
    for journal in JOURNALS {
        let backend = Backend::in_turn([]).await;
        let gateway = Setup::new(&backend).journal(journal).start().await;
        let (order, mut copies) = (create(), JoinSet::new());
        for number in 0..100 {
            let copy = order.clone().seconds_from_now(-number % 5).target();
            copies.spawn(client::one_reply(gateway.listen, get(&copy, "")));
        }
        for reply in copies.join_all().await {
            reply.assert_is(CREATED);
        }
        backend.only_request();
        assert_eq!(gateway.deliveries(CREATE, "delivered").await, 1.0);
        let joined = gateway.deliveries(CREATE, "joined").await;
        assert_eq!(joined + gateway.deliveries(CREATE, "replayed").await, 99.0);
    }
}

#[tokio::test]
async fn many_orders_at_once_get_each_its_own_answer() {
    for journal in JOURNALS {
        let of_its_order = |seen: &Seen| json(created(seen.json()["order_id"].as_str().unwrap()));
        let backend = Backend::start(of_its_order).await;
        let gateway = Setup::new(&backend).journal(journal).start().await;
        let mut copies = JoinSet::new();
        for _ in 0..40 {
            let order = create();
            for number in 0..3 {
                let (copy, body) = (order.clone().seconds_from_now(-number), created(order.value("order_id")));
                let answer = gateway.send(&copy);
                copies.spawn(async move { answer.await.unwrap().assert_is(&body) });
            }
        }
        copies.join_all().await;
        assert_eq!(backend.count(), 40);
        assert_eq!(gateway.deliveries(CREATE, "delivered").await, 40.0);
    }
}

#[tokio::test]
async fn access_lines_name_the_delivery_and_its_attempt_as_the_backend_knows_them() {
    let (backend, gate) = gated(reply("500 Oops", "", "")).await;
    let gateway = Gateway::over(&backend).await;
    let order = create();
    let (first, joined) = (gateway.send(&order), gateway.send(&order));
    gateway.wait_for_claims(2).await;
    gate.open();
    let mut told = vec![(first.await.unwrap(), 1), (joined.await.unwrap(), 1)];
    told.push((gateway.order(&order).await, 2));
    told.push((gateway.order(&order).await, 2));
    for (reply, attempt) in told {
        let line = gateway.access_line(&reply).await;
        let (_, key) = backend.requests()[0].attempt();
        assert_eq!((&line["delivery"], &line["attempt"]), (&key.into(), &attempt.into()), "{line}");
    }
    // A copy that is refused, too: what it is a copy of can be looked up.
    let conflict = gateway.order(&order.with("user_id", "usr-other")).await;
    conflict.assert_rejected(422, "order_conflict");
    let line = gateway.access_line(&conflict).await;
    assert_eq!(line["delivery"], backend.requests()[0].attempt().1, "{line}");
}

#[tokio::test]
async fn copies_get_the_bodys_very_bytes_under_their_own_request_ids() {
    let body = "{ \"success\" : true,\n\"instanceId\":\"i\\u002d1\", \"more\":{\"b\":1.50,\"a\":\"开\"} }\n";
    for journal in JOURNALS {
        let backend = Backend::start(move |_| json(body)).await;
        let gateway = Setup::new(&backend).journal(journal).start().await;
        let order = create();
        let first = gateway.order(&order).await;
        let copy = gateway.order(&order.clone().seconds_from_now(-1)).await;
        first.assert_is(body);
        copy.assert_is(body);
        assert_ne!(first.request_id(), copy.request_id());
        backend.only_request();
        let line = gateway.access_line(&copy).await;
        assert_eq!((&line["outcome"], &line["level"]), (&"replayed".into(), &"INFO".into()), "{line}");
        assert_eq!((&line["instance_id"], &line["order_id"]), (&"i-1".into(), &order.value("order_id").into()));
        assert!(line.get("backend_ms").is_none(), "{line}");
    }
}

#[tokio::test]
async fn a_trial_run_and_its_order_are_two_deliveries_and_may_name_one_instance() {
    for journal in JOURNALS {
        let info = r#"{"frontEndUrl":"f","adminUrl":"a","username":"u","password":"p"}"#;
        let body = format!(r#"{{"instanceId":"i","instanceInfo":{info}}}"#);
        let reply = json(&body);
        let backend = Backend::start(move |_| reply.clone()).await;
        let gateway = Setup::new(&backend).journal(journal).dialect("qingcloud-market").start().await;
        let order = market("CreateInstance");
        for debug in ["1", "0", "1", "0"] {
            gateway.order(&order.clone().with("debug", debug)).await.assert_is(&body);
        }
        let seen = backend.requests();
        let debug: Vec<_> = seen.iter().map(|seen| seen.header("x-spi-debug").unwrap()).collect();
        assert_eq!(debug, ["true", "false"]);
        assert_ne!(seen[0].attempt().1, seen[1].attempt().1);
    }
}

#[tokio::test]
async fn a_debug_flag_that_says_no_is_the_same_as_none() {
    let backend = Backend::in_turn([]).await;
    let gateway = Gateway::over(&backend).await;
    let order = create();
    gateway.order(&order).await.assert_is(CREATED);
    for no in ["False", "false", "0"] {
        gateway.order(&order.clone().with("debug", no)).await.assert_is(CREATED);
    }
    backend.only_request();
    let trial = create();
    for yes in ["True", "true", "1"] {
        gateway.order(&trial.clone().with("debug", yes)).await.assert_is(&created("ins-2"));
    }
    assert_eq!(backend.count(), 2);
}

#[tokio::test]
async fn one_order_number_stands_for_one_delivery_of_each_action() {
    let backend = Backend::in_turn([]).await;
    let gateway = Gateway::over(&backend).await;
    for round in 1..=2 {
        for (number, name) in [CREATE, "RenewAppInstance", "UpgradeAppInstance"].into_iter().enumerate() {
            let order = action(name).with("order_id", "ord-shared");
            let order = if name == CREATE { order } else { order.with("instance_id", "i-1") };
            gateway.order(&order).await.assert_is(&created(&format!("ins-{}", number + 1)));
        }
        assert_eq!(backend.count(), 3, "round {round}");
    }
}

#[tokio::test]
async fn two_purchases_without_an_order_number_are_two_deliveries_and_a_replay_is_none() {
    for journal in JOURNALS {
        let backend = Backend::in_turn([]).await;
        let gateway = Setup::new(&backend).journal(journal).start().await;
        let one = create().without("order_id");
        let two = one.clone().seconds_from_now(-20);
        gateway.order(&one).await.assert_is(&created("ins-1"));
        gateway.order(&two).await.assert_is(&created("ins-2"));
        for _ in 0..2 {
            gateway.order(&one).await.assert_is(&created("ins-1"));
            gateway.order(&two).await.assert_is(&created("ins-2"));
        }
        let keys = backend.attempts();
        assert_eq!((keys.len(), keys[0].0, keys[1].0), (2, 1, 1));
        assert_ne!(keys[0].1, keys[1].1);
    }
}

#[tokio::test]
async fn a_purchase_without_an_order_number_is_only_known_by_its_signature_unless_told_otherwise() {
    let backend = Backend::in_turn([reply("500 Oops", "", "")]).await;
    let gateway = Gateway::over(&backend).await;
    let purchase = create().without("order_id");
    gateway.order(&purchase).await.assert_rejected(502, "backend_error");
    gateway.order(&purchase.clone().seconds_from_now(-20)).await.assert_is(&created("ins-2"));
    gateway.order(&purchase).await.assert_is(&created("ins-3"));
    let attempts = backend.attempts();
    assert_eq!(attempts.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 1, 2]);
    assert!(attempts[0].1 == attempts[2].1 && attempts[0].1 != attempts[1].1);
}

#[tokio::test]
async fn an_unanswered_purchase_without_an_order_number_can_be_continued_by_equal_content() {
    for journal in JOURNALS {
        let (backend, gate) = gated(json(created("ins-1"))).await;
        let setup = Setup::new(&backend).journal(journal).app("without_order_id = \"unanswered\"").backend(SOON);
        let gateway = setup.start().await;
        let purchase = create().without("order_id");
        // Far enough apart that no two have one signature, however long this takes.
        let signed_anew = |number: i64| purchase.clone().seconds_from_now(-20 * number);
        gateway.order(&purchase).await.assert_rejected(504, "backend_timeout");
        // It joins the call, which still runs.
        gateway.order(&signed_anew(1)).await.assert_rejected(503, "delivery_in_progress");
        gateway.hurry_no_more().await;
        // Other content is another purchase.
        gateway.order(&signed_anew(1).with("user_id", "usr-other")).await.assert_is(&created("ins-2"));
        gateway.order(&signed_anew(1).with("debug", "1")).await.assert_is(&created("ins-3"));
        gate.open();
        gateway.wait_for_deliveries(CREATE, "late", 1).await;
        gateway.order(&signed_anew(2)).await.assert_is(&created("ins-1"));
        assert_eq!(backend.count(), 3);
        // Once it was answered, the same content is bought once more.
        gateway.wait_for_metric(UNANSWERED, |unanswered| unanswered == 0.0).await;
        let again = signed_anew(3);
        gateway.order(&again).await.assert_is(&created("ins-4"));
        // Byte-identical replays are copies of what they are copies of.
        gateway.order(&purchase).await.assert_is(&created("ins-1"));
        gateway.order(&again).await.assert_is(&created("ins-4"));
        assert_eq!(backend.count(), 4);
    }
}

#[tokio::test]
async fn a_failed_purchase_without_an_order_number_is_tried_again_by_equal_content() {
    for journal in JOURNALS {
        let backend = Backend::in_turn([reply("500 Oops", "", ""), vec![Step::Reset]]).await;
        let gateway = Setup::new(&backend).journal(journal).app("without_order_id = \"unanswered\"").start().await;
        let purchase = create().without("order_id");
        gateway.order(&purchase).await.assert_rejected(502, "backend_error");
        gateway.order(&purchase.clone().seconds_from_now(-20)).await.assert_rejected(502, "backend_broken_reply");
        gateway.order(&purchase.clone().seconds_from_now(-40)).await.assert_is(&created("ins-3"));
        let attempts = backend.attempts();
        let key = attempts[0].1.clone();
        assert_eq!(attempts, [(1, key.clone()), (2, key.clone()), (3, key)]);
    }
}

#[tokio::test]
async fn an_answered_purchase_is_never_continued_by_the_next_one() {
    for journal in JOURNALS {
        let backend = Backend::in_turn([]).await;
        let gateway = Setup::new(&backend).journal(journal).app("without_order_id = \"unanswered\"").start().await;
        let (purchase, begun) = (create().without("order_id"), now());
        for number in 1..=40 {
            // No two in the same second, however long this takes.
            let next = purchase.clone().signed_at(begun - SignedDuration::from_secs(5 * number));
            gateway.order(&next).await.assert_is(&created(&format!("ins-{number}")));
        }
    }
}

#[tokio::test]
async fn a_slow_backend_costs_a_504_and_its_late_answer_is_there_at_once() {
    for journal in JOURNALS {
        let (backend, gate) = gated(json(CREATED)).await;
        let gateway = Setup::new(&backend).journal(journal).backend(SOON).start().await;
        let order = create();
        let reply = gateway.order(&order).await;
        reply.assert_rejected(504, "backend_timeout");
        assert_eq!(gateway.access_line(&reply).await["outcome"], "unconfirmed");
        gateway.hurry_no_more().await;
        gate.open();
        gateway.wait_for_deliveries(CREATE, "late", 1).await;
        gateway.wait_for_metric(UNANSWERED, |number| number == 1.0).await;
        let line = gateway
            .line("the late end", |line| {
                line["message"] == "a delivery ended when nobody waited for it any more"
                    && line["order_id"] == order.value("order_id")
            })
            .await;
        assert_eq!(line["outcome"], "delivered", "{line}");
        gateway.order(&order.clone().seconds_from_now(-1)).await.assert_is(CREATED);
        gateway.wait_for_metric(UNANSWERED, |unanswered| unanswered == 0.0).await;
        backend.only_request();
        for (outcome, count) in [("delivered", 1.0), ("late", 1.0), ("replayed", 1.0), ("unconfirmed", 0.0)] {
            assert_eq!(gateway.deliveries(CREATE, outcome).await, count, "{outcome}");
        }
    }
}

#[tokio::test]
async fn a_copy_that_comes_while_a_slow_backend_works_gets_its_answer() {
    for journal in JOURNALS {
        let (backend, gate) = gated(json(CREATED)).await;
        let gateway = Setup::new(&backend).journal(journal).backend(SOON).start().await;
        let order = create();
        gateway.order(&order).await.assert_rejected(504, "backend_timeout");
        gateway.hurry_no_more().await;
        let copy = gateway.send(&order);
        gateway.wait_for_claims(2).await;
        gate.open();
        copy.await.unwrap().assert_is(CREATED);
        gateway.wait_for_deliveries(CREATE, "late", 1).await;
        gateway.wait_for_metric(UNANSWERED, |unanswered| unanswered == 0.0).await;
        backend.only_request();
    }
}

#[tokio::test]
async fn what_the_platform_hung_up_on_is_kept_for_its_next_copy() {
    for journal in JOURNALS {
        let (backend, gate) = gated(json(CREATED)).await;
        let gateway = Setup::new(&backend).journal(journal).start().await;
        let order = create();
        let mut caller = Connection::open(gateway.listen).await;
        caller.send(get(&order.target(), "")).await;
        backend.wait_for(1).await;
        drop(caller);
        gateway.wait_for_metric("spigate_callers_gone_total", |gone| gone == 1.0).await;
        gate.open();
        gateway.wait_for_deliveries(CREATE, "delivered", 1).await;
        gateway.wait_for_metric(UNANSWERED, |number| number == 1.0).await;
        gateway.order(&order.clone().seconds_from_now(-1)).await.assert_is(CREATED);
        gateway.wait_for_metric(UNANSWERED, |unanswered| unanswered == 0.0).await;
        backend.only_request();
    }
}

#[tokio::test]
async fn an_order_number_with_other_content_is_a_conflict_and_not_forwarded() {
    for journal in JOURNALS {
        let backend = Backend::in_turn([reply("500 Oops", "", "")]).await;
        let gateway = Setup::new(&backend).journal(journal).start().await;
        let order = create();
        let others = || {
            [
                order.clone().with("user_id", "usr-other"),
                order.clone().with("app_id", "app-other"),
                order.clone().with("spec", &STANDARD.encode("旗舰版")),
                order.clone().with("period", "12_month"),
                order.clone().without("spec_package"),
            ]
        };
        gateway.order(&order).await.assert_rejected(502, "backend_error");
        for other in others() {
            gateway.order(&other).await.assert_rejected(422, "order_conflict");
        }
        gateway.order(&order).await.assert_is(&created("ins-2"));
        for other in others() {
            let reply = gateway.order(&other).await;
            reply.assert_rejected(422, "order_conflict");
            assert_eq!(gateway.access_line(&reply).await["outcome"], "rejected");
        }
        assert_eq!(backend.count(), 2);
        assert_eq!(gateway.deliveries(CREATE, "conflict").await, 10.0);
        gateway.order(&order).await.assert_is(&created("ins-2"));
    }
}

#[tokio::test]
async fn cloud_info_and_what_nobody_documented_never_conflict_and_are_logged() {
    for journal in JOURNALS {
        let backend = Backend::in_turn([]).await;
        let gateway = Setup::new(&backend).journal(journal).start().await;
        let order = create();
        gateway.order(&order).await.assert_is(CREATED);
        for other in [
            order.clone().with("cloud_info", &STANDARD.encode(r#"{"sso_server":"moved.example"}"#)),
            order.clone().with("platform", "qingcloud"),
            order.clone().with("note", "1").and("note", "2"),
        ] {
            let reply = gateway.order(&other).await;
            reply.assert_is(CREATED);
            let differs = |line: &serde_json::Value| {
                let is_notice = line["message"].as_str().is_some_and(|message| message.contains("do not count"));
                is_notice && line["request_id"] == reply.request_id()
            };
            let line = gateway.line("that the copy differs", differs).await;
            assert_eq!(line["order_id"], order.value("order_id"), "{line}");
        }
        let equal = gateway.order(&order.seconds_from_now(-1)).await;
        equal.assert_is(CREATED);
        gateway.access_line(&equal).await;
        backend.only_request();
        let output = gateway.output();
        assert_eq!(output.matches("do not count").count(), 3, "{output}");
        assert!(!output.contains("moved.example"), "{output}");
    }
}

#[tokio::test]
async fn copies_that_join_are_told_of_a_failure_and_start_no_call_of_their_own() {
    for journal in JOURNALS {
        let (backend, gate) = gated(reply("500 Oops", "", "")).await;
        let gateway = Setup::new(&backend).journal(journal).start().await;
        let order = create();
        let copies: Vec<_> = (0..8).map(|number| gateway.send(&order.clone().seconds_from_now(-number % 4))).collect();
        gateway.wait_for_claims(8).await;
        backend.wait_for(1).await;
        gate.open();
        for copy in copies {
            copy.await.unwrap().assert_rejected(502, "backend_error");
        }
        assert_eq!(backend.count(), 1);
        assert_eq!(gateway.deliveries(CREATE, "failed").await, 1.0);
        assert_eq!(gateway.deliveries(CREATE, "joined").await, 7.0);
    }
}

#[tokio::test]
async fn copies_that_join_are_told_of_a_refusal() {
    let refusal = r#"{"success":false,"message":"开通失败"}"#;
    for journal in JOURNALS {
        let (backend, gate) = gated(json(refusal)).await;
        let gateway = Setup::new(&backend).journal(journal).start().await;
        let order = create();
        let copies = [gateway.send(&order), gateway.send(&order), gateway.send(&order)];
        gateway.wait_for_claims(3).await;
        gate.open();
        for copy in copies {
            copy.await.unwrap().assert_is(refusal);
        }
        assert_eq!(backend.count(), 1);
    }
}

#[tokio::test]
async fn a_copy_waits_for_the_running_call_no_longer_than_its_own_deadline() {
    for journal in JOURNALS {
        let (backend, gate) = gated(json(CREATED)).await;
        let gateway = Setup::new(&backend).journal(journal).backend(SOON).start().await;
        let order = create();
        let first = gateway.send(&order);
        backend.wait_for(1).await;
        let reply = gateway.order(&order).await;
        reply.assert_rejected(503, "delivery_in_progress");
        assert_eq!(gateway.access_line(&reply).await["outcome"], "joined");
        first.await.unwrap().assert_rejected(504, "backend_timeout");
        assert_eq!(backend.count(), 1);
        gateway.hurry_no_more().await;
        gate.open();
        gateway.wait_for_deliveries(CREATE, "late", 1).await;
        gateway.order(&order).await.assert_is(CREATED);
        assert_eq!(backend.count(), 1);
    }
}

#[tokio::test]
async fn where_deliver_once_is_off_every_copy_is_forwarded_and_nothing_recorded() {
    let directory = crate::support::Directory::new();
    let backend = Backend::confirming().await;
    let quick = "[shutdown]\ndelay = \"0s\"\n";
    let setup = || Setup::new(&backend).journal_in(&directory).top(quick);
    let gateway = setup().app("deliver_once = false").start().await;
    let (order, other) = (create(), create());
    for order in [&order, &order, &other, &order.clone().with("user_id", "usr-other")] {
        gateway.order(order).await.assert_is(CREATED);
    }
    let attempts = backend.attempts();
    assert_eq!(attempts.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 1, 1, 1]);
    assert_eq!((&attempts[0].1, &attempts[0].1), (&attempts[1].1, &attempts[3].1));
    assert_ne!(attempts[0].1, attempts[2].1);
    assert!(!gateway.metrics().await.contains("spigate_deliveries_total{"));
    gateway.stop().await;
    // A gateway that delivers once knows nothing of them: neither the order nor its instance.
    let gateway = setup().start().await;
    gateway.order(&other).await.assert_is(CREATED);
    assert_eq!(backend.requests().last().unwrap().attempt(), attempts[2]);
    assert_eq!(backend.count(), 5);
}

#[tokio::test]
async fn a_connection_test_is_never_recorded() {
    for journal in JOURNALS {
        let backend = Backend::in_turn([]).await;
        let gateway = Setup::new(&backend).journal(journal).start().await;
        let test = action("TestConnection");
        for number in 1..=3 {
            gateway.order(&test).await.assert_is(&created(&format!("ins-{number}")));
            assert_eq!(backend.requests().last().unwrap().attempt().0, 1);
        }
        // Not even the instances that it named.
        gateway.order(&create().with("debug", "1")).await.assert_is(&created("ins-4"));
        let metrics = gateway.metrics().await;
        assert!(!metrics.lines().any(|line| line.starts_with("spigate_deliveries_total{") && line.contains("Test")));
    }
}

#[tokio::test]
async fn the_journal_can_be_seen_to_work() {
    for journal in JOURNALS {
        let backend = Backend::in_turn([]).await;
        let gateway = Setup::new(&backend).journal(journal).start().await;
        let ready = gateway.readyz().await;
        assert_eq!((ready.status, ready.text().as_str()), (200, "ok\n"));
        let order = create();
        gateway.order(&order).await.assert_is(CREATED);
        gateway.order(&order).await.assert_is(CREATED);
        for (operation, count) in [("claim", 2.0), ("finish", 1.0)] {
            let series = format!("spigate_journal_seconds_count{{operation=\"{operation}\"}}");
            assert_eq!(gateway.metric(&series).await, count, "{journal}: {operation}");
        }
        // A batch is a transaction of a file.
        let batches = gateway.metric("spigate_journal_batch_size_count").await;
        assert_eq!(batches > 0.0, journal.starts_with("sqlite"), "{batches}");
        let metrics = gateway.metrics().await;
        let mut errors = metrics.lines().filter(|line| line.starts_with("spigate_journal_errors_total{"));
        assert!(errors.all(|line| line.ends_with(" 0")), "{metrics}");
    }
}

#[tokio::test]
async fn a_byte_identical_replay_of_a_copy_that_continued_a_purchase_is_no_purchase() {
    for journal in JOURNALS {
        let backend = Backend::in_turn([reply("500 Oops", "", "")]).await;
        let gateway = Setup::new(&backend).journal(journal).app("without_order_id = \"unanswered\"").start().await;
        let purchase = create().without("order_id");
        gateway.order(&purchase).await.assert_rejected(502, "backend_error");
        let copy = purchase.clone().seconds_from_now(-20);
        gateway.order(&copy).await.assert_is(&created("ins-2"));
        gateway.wait_for_metric(UNANSWERED, |unanswered| unanswered == 0.0).await;
        gateway.order(&purchase).await.assert_is(&created("ins-2"));
        gateway.order(&copy).await.assert_is(&created("ins-2"));
        assert_eq!(backend.count(), 2);
    }
}
