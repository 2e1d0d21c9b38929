//! `enforce = false`: a gateway that looks on while a live backend is moved behind it.

use crate::support::backend::{Backend, CREATED, Step, json, reply};
use crate::support::gateway::{Gateway, Setup};
use crate::support::order::create;

async fn observing(backend: &Backend) -> Gateway {
    Setup::new(backend).app("enforce = false").start().await
}

async fn would_refuse(gateway: &Gateway, code: &str) -> f64 {
    gateway.metric(&format!("spigate_would_refuse_total{{app=\"crm\",code=\"{code}\"}}")).await
}

#[tokio::test]
async fn what_would_be_refused_is_passed_on_as_it_came_counted_and_logged() {
    let backend = Backend::confirming().await;
    let gateway = observing(&backend).await;
    let valid = create();
    for (code, target) in [
        ("signature_invalid", create().key("wrong").target()),
        ("signature_missing", create().unsigned_target()),
        ("timestamp_expired", create().seconds_from_now(-3600).target()),
        ("unknown_action", create().with("action", "MadeUp").target()),
        ("field_invalid", create().with("spec", "not base64!").target()),
        ("malformed_request", format!("{}&a=%zz", valid.target())),
    ] {
        backend.forget();
        let answer = gateway.get(&target).await;
        answer.assert_is(CREATED);
        let seen = backend.only_request();
        let query = target.split_once('?').unwrap().1;
        assert_eq!((seen.method.as_str(), seen.target.as_str()), ("GET", &*format!("/internal/spi?{query}")), "{code}");
        assert_eq!(seen.header("x-spi-app"), Some("crm"));
        assert_eq!(seen.header("x-spi-key-id"), None);
        assert_eq!(would_refuse(&gateway, code).await, 1.0, "{code}");
        let line = gateway.access_line(&answer).await;
        assert_eq!((&line["would_refuse"], &line["status"]), (&code.into(), &200.into()));
        assert!(line["cause"].is_string() && line["code"].is_null(), "{line}");
    }
    assert_eq!(gateway.metric("spigate_rejections_total{app=\"crm\",code=\"signature_invalid\"}").await, 0.0);
}

#[tokio::test]
async fn what_is_right_goes_its_configured_way_and_is_never_recorded() {
    let backend = Backend::confirming().await;
    let gateway = observing(&backend).await;
    let order = create();
    for count in 1..=2 {
        gateway.order(&order).await.assert_is(CREATED);
        assert_eq!(backend.count(), count);
    }
    let seen = &backend.requests()[0];
    assert_eq!(seen.json()["order_id"], order.value("order_id"));
    assert_eq!(seen.header("x-spi-key-id"), Some("k-2026"));
    assert_eq!(gateway.metric("spigate_journal_seconds_count{operation=\"claim\"}").await, 0.0);
    // The same order with other content would be a conflict, were anything recorded.
    let other = create().with("order_id", order.value("order_id")).with("user_id", "somebody-else");
    gateway.order(&other).await.assert_is(CREATED);
}

#[tokio::test]
async fn a_reply_that_breaks_the_contract_reaches_the_platform_as_it_is() {
    for (code, status, steps) in [
        ("backend_contract", 200, reply("200 OK", "Content-Type: text/html\r\n", "<p>ok</p>")),
        ("backend_contract", 302, reply("302 Found", "Location: https://elsewhere/\r\n", "")),
        ("backend_error", 500, reply("500 Oops", "Content-Type: text/plain\r\n", "no")),
        ("backend_contract", 200, json(r#"{"success":true}"#)),
    ] {
        let backend = Backend::start(move |_| steps.clone()).await;
        let gateway = observing(&backend).await;
        let answer = gateway.order(&create()).await;
        assert_eq!(answer.status, status);
        assert_eq!(would_refuse(&gateway, code).await, 1.0);
        assert!(answer.header("location").is_none());
    }
}

#[tokio::test]
async fn a_backend_without_a_reply_has_nothing_that_could_be_passed_on() {
    let backend = Backend::start(|_| vec![Step::Reset]).await;
    let gateway = observing(&backend).await;
    gateway.order(&create()).await.assert_rejected(502, "backend_broken_reply");
}

#[tokio::test]
async fn it_says_so_everywhere_and_a_reload_ends_it() {
    let backend = Backend::confirming().await;
    let setup = Setup::new(&backend).app("enforce = false");
    let checked = setup.check();
    assert!(checked.code == 0 && checked.text.contains("apps[0].enforce: is false: app crm"), "{}", checked.text);
    let gateway = setup.start().await;
    gateway.line("the warning", |line| line["message"].as_str().unwrap_or("").contains("apps[0].enforce")).await;
    let ready = gateway.readyz().await;
    assert!(ready.status == 200 && ready.text().contains("app crm is only observed"), "{}", ready.text());
    gateway.order(&create().key("wrong")).await.assert_is(CREATED);
    gateway.reconfigure(|text| text.replace("enforce = false", "")).await;
    gateway.order(&create().key("wrong")).await.assert_rejected(401, "signature_invalid");
    assert_eq!(gateway.readyz().await.text(), "ok\n");
}

#[tokio::test]
async fn what_would_be_refused_is_told_without_an_access_log_too() {
    let backend = Backend::confirming().await;
    let gateway = Setup::new(&backend).app("enforce = false").top("[log]\naccess = false\n").start().await;
    gateway.order(&create().key("wrong")).await.assert_is(CREATED);
    let line = gateway.line("the refusal", |line| line["code"] == "signature_invalid").await;
    assert_eq!((&line["level"], &line["app"]), (&"WARN".into(), &"crm".into()));
}

#[tokio::test]
async fn the_backends_time_and_broken_rules_are_counted() {
    let backend = Backend::start(|_| json(r#"{"success":true}"#)).await;
    let gateway = observing(&backend).await;
    gateway.order(&create()).await;
    let calls = "spigate_backend_seconds_count{action=\"CreateAppInstance\",app=\"crm\",outcome=\"unconfirmed\"}";
    assert_eq!(gateway.metric(calls).await, 1.0);
    let rule = "rule=\"instance_id_missing\"";
    let series = format!("spigate_backend_violations_total{{action=\"CreateAppInstance\",app=\"crm\",{rule}}}");
    assert_eq!(gateway.metric(&series).await, 1.0);
}

#[tokio::test]
async fn two_signatures_reach_the_backend_as_two() {
    let backend = Backend::confirming().await;
    let gateway = observing(&backend).await;
    let headers = "app_signature: AAA\r\napp_signature: BBB\r\n";
    gateway.get_with(&create().unsigned_target(), headers).await.assert_is(CREATED);
    let text = backend.only_request().text();
    assert!(text.contains("app_signature: AAA\r\n") && text.contains("app_signature: BBB\r\n"), "{text}");
    assert_eq!(would_refuse(&gateway, "malformed_request").await, 1.0);
}
