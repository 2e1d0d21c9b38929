//! An instance id is new with each order: a backend that hands out one twice has given a customer
//! what belongs to another.

use crate::support::backend::{Backend, CREATED, Step, created, json};
use crate::support::gateway::{Gateway, Setup, UNCONFIRMED};
use crate::support::order::{action, create};

const JOURNALS: [&str; 2] = ["sqlite:./spigate.db", "memory:"];
const CREATE: &str = "CreateAppInstance";

#[tokio::test]
async fn an_instance_of_another_order_breaks_the_contract_and_a_new_one_succeeds() {
    for journal in JOURNALS {
        let backend = Backend::in_turn([json(CREATED), json(CREATED), json(CREATED)]).await;
        let gateway = Setup::new(&backend).journal(journal).start().await;
        gateway.order(&create()).await.assert_is(CREATED);
        let order = create();
        for _ in 0..2 {
            let reply = gateway.order(&order).await;
            reply.assert_rejected(502, "backend_contract");
            let line = gateway.access_line(&reply).await;
            assert_eq!((&line["rule"], &line["outcome"]), (&"instance_id_reused".into(), &"unconfirmed".into()));
            // The caller learns nothing of other orders.
            assert!(!reply.text().contains("instance"), "{}", reply.text());
        }
        gateway.wait_for_metric(UNCONFIRMED, |number| number == 1.0).await;
        assert_eq!(gateway.deliveries(CREATE, "unconfirmed").await, 2.0);
        let rule =
            format!("spigate_backend_violations_total{{action=\"{CREATE}\",app=\"crm\",rule=\"instance_id_reused\"}}");
        assert_eq!(gateway.metric(&rule).await, 2.0);
        gateway.order(&order).await.assert_is(&created("ins-4"));
        gateway.order(&order).await.assert_is(&created("ins-4"));
        let attempts = backend.attempts().split_off(1);
        let key = attempts[0].1.clone();
        assert_eq!(attempts, [(1, key.clone()), (2, key.clone()), (3, key)]);
    }
}

#[tokio::test]
async fn copies_that_joined_are_not_given_an_instance_of_another_order_either() {
    for journal in JOURNALS {
        let gate = crate::support::backend::Gate::closed();
        let reused = [vec![Step::Wait(gate.clone())], json(CREATED)].concat();
        let backend = Backend::in_turn([json(CREATED), reused]).await;
        let gateway = Setup::new(&backend).journal(journal).start().await;
        gateway.order(&create()).await.assert_is(CREATED);
        let order = create();
        let copies = [gateway.send(&order), gateway.send(&order), gateway.send(&order)];
        gateway.wait_for_claims(4).await;
        gate.open();
        for copy in copies {
            copy.await.unwrap().assert_rejected(502, "backend_contract");
        }
        assert_eq!(backend.count(), 2);
    }
}

#[tokio::test]
async fn where_unconfirmed_deliveries_are_held_one_with_an_instance_of_another_order_is() {
    let backend = Backend::confirming().await;
    let gateway = Setup::new(&backend).app("on_unconfirmed = \"hold\"").start().await;
    gateway.order(&create()).await.assert_is(CREATED);
    let order = create();
    gateway.order(&order).await.assert_rejected(502, "backend_contract");
    gateway.order(&order).await.assert_rejected(503, "delivery_in_progress");
    assert_eq!(backend.count(), 2);
}

#[tokio::test]
async fn a_trial_run_and_its_order_may_share_an_instance_and_another_order_may_not() {
    for journal in JOURNALS {
        let backend = Backend::confirming().await;
        let gateway = Setup::new(&backend).journal(journal).start().await;
        let order = create();
        gateway.order(&order.clone().with("debug", "1")).await.assert_is(CREATED);
        gateway.order(&order.clone().with("debug", "0")).await.assert_is(CREATED);
        assert_eq!(backend.count(), 2);
        for debug in ["1", "0"] {
            gateway.order(&create().with("debug", debug)).await.assert_rejected(502, "backend_contract");
        }
    }
}

#[tokio::test]
async fn two_purchases_without_an_order_number_need_two_instances() {
    for journal in JOURNALS {
        let backend = Backend::confirming().await;
        let gateway = Setup::new(&backend).journal(journal).start().await;
        let purchase = create().without("order_id");
        gateway.order(&purchase).await.assert_is(CREATED);
        let another = gateway.order(&purchase.clone().seconds_from_now(-20)).await;
        another.assert_rejected(502, "backend_contract");
        gateway.order(&purchase).await.assert_is(CREATED);
        assert_eq!(backend.count(), 2);
    }
}

#[tokio::test]
async fn only_a_create_needs_a_new_instance() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    gateway.order(&create()).await.assert_is(CREATED);
    for name in ["RenewAppInstance", "UpgradeAppInstance", "ExpireAppInstance", "DeleteAppInstance"] {
        gateway.order(&action(name)).await.assert_is(CREATED);
        gateway.order(&action(name)).await.assert_is(CREATED);
    }
    assert_eq!(backend.count(), 9);
}

#[tokio::test]
async fn an_instance_that_a_refused_or_failed_order_named_is_still_new() {
    let refusal = r#"{"success":false,"instanceId":"ins-3"}"#;
    let failure = crate::support::backend::reply("400 No", "Content-Type: application/json\r\n", created("ins-3"));
    let backend = Backend::in_turn([json(refusal), failure]).await;
    let gateway = Gateway::over(&backend).await;
    gateway.order(&create()).await.assert_is(refusal);
    gateway.order(&create()).await.assert_rejected(502, "backend_contract");
    gateway.order(&create()).await.assert_is(&created("ins-3"));
}

#[tokio::test]
async fn two_apps_may_use_the_same_names_for_instances_and_orders() {
    for journal in JOURNALS {
        let backend = Backend::confirming().await;
        let other = format!(
            "[[apps]]\nname = \"other\"\npath = \"/other\"\ndialect = \"qingcloud-appcenter\"\n\
             keys = [{{ id = \"o\", value = \"another-key\" }}]\nbackend = {{ url = \"{}\" }}\n",
            backend.url("/other")
        );
        let gateway = Setup::new(&backend).journal(journal).more(&other).start().await;
        let order = create();
        for _ in 0..2 {
            gateway.order(&order).await.assert_is(CREATED);
            gateway.order(&order.clone().path("/other").key("another-key")).await.assert_is(CREATED);
        }
        let seen = backend.requests();
        assert_eq!(seen.len(), 2);
        assert_ne!(seen[0].attempt().1, seen[1].attempt().1);
    }
}
