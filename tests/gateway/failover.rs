//! Several URLs of one backend: a request goes on to the next only where nothing of it was sent.

use crate::support::backend::{Backend, CREATED, Step, created, json, raw, reply};
use crate::support::gateway::{Gateway, Setup};
use crate::support::order::create;

const FAILOVERS: &str = "spigate_backend_failovers_total{app=\"crm\",backend=\"1\"}";

/// A gateway with these URLs, the circuit being out of the way.
fn over(first: &str, others: &[String]) -> Setup {
    Setup::to(first).backend(&format!("failover = {others:?}\nhealth = {{ failures = 0 }}"))
}

async fn assert_failed_over(gateway: &Gateway, second: &Backend) {
    let order = create();
    let answer = gateway.order(&order).await;
    answer.assert_is(CREATED);
    assert_eq!(gateway.access_line(&answer).await["outcome"], "delivered");
    let seen = second.only_request();
    // One delivery, one attempt, told to the host that it reached.
    assert_eq!(seen.attempt().0, 1);
    assert_eq!(seen.header("host"), Some(second.authority().as_str()));
    assert_eq!(seen.target, "/internal/spi");
    assert_eq!(gateway.metric(FAILOVERS).await, 1.0);
    gateway.order(&order).await.assert_is(CREATED);
    assert_eq!(second.count(), 1);
}

#[tokio::test]
async fn an_order_goes_to_the_next_url_if_the_first_refuses_the_connection() {
    let (closed, second) = (Backend::closed(), Backend::confirming().await);
    let gateway = over(&closed.url("/internal/spi"), &[second.url("/internal/spi")]).start().await;
    assert_failed_over(&gateway, &second).await;
}

#[tokio::test]
async fn an_order_goes_to_the_next_url_if_no_connection_comes_about_in_time_or_at_all() {
    // It accepts and says nothing, so that the TLS handshake cannot end; and no TLS at all.
    let silent = Backend::on_connect(vec![Step::Stall]).await;
    let plain = Backend::confirming().await;
    for first in [&silent, &plain] {
        let second = Backend::confirming().await;
        let url = first.url("/internal/spi").replace("http:", "https:");
        let setup = over(&url, &[second.url("/internal/spi")]).backend("connect_timeout = \"300ms\"");
        assert_failed_over(&setup.start().await, &second).await;
        assert_eq!(first.count(), 0);
    }
}

#[tokio::test]
async fn an_order_that_the_first_url_may_have_executed_goes_nowhere_else() {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{";
    for (steps, status, code) in [
        (vec![Step::Reset], 502, "backend_broken_reply"),
        (vec![Step::Close], 502, "backend_broken_reply"),
        ([raw(head), vec![Step::Reset]].concat(), 502, "backend_broken_reply"),
        ([raw(head), vec![Step::Close]].concat(), 502, "backend_broken_reply"),
        (vec![Step::Stall], 504, "backend_timeout"),
        (reply("503 Busy", "Content-Type: application/json\r\n", "{}"), 502, "backend_error"),
        (reply("200 OK", "Content-Type: text/html\r\n", "<html>"), 502, "backend_contract"),
    ] {
        let first = Backend::start(move |_| steps.clone()).await;
        let second = Backend::confirming().await;
        let short = "answer_within = \"500ms\"\ntimeout = \"500ms\"\nconnect_timeout = \"500ms\"";
        let times = if code == "backend_timeout" { short } else { "" };
        let setup = over(&first.url("/internal/spi"), &[second.url("/internal/spi")]).backend(times);
        let setup = setup.journal("memory:");
        let gateway = setup.start().await;
        gateway.order(&create()).await.assert_rejected(status, code);
        assert_eq!((first.count(), second.count(), second.connections()), (1, 0, 0), "{code}");
        assert_eq!(gateway.metric(FAILOVERS).await, 0.0);
    }
}

#[tokio::test]
async fn a_request_that_a_reused_connection_swallowed_goes_nowhere_else() {
    let first = Backend::in_turn([json(created("ins-1")), vec![Step::Reset]]).await;
    let second = Backend::confirming().await;
    let setup = over(&first.url("/internal/spi"), &[second.url("/internal/spi")]).backend("keep_alive = \"60s\"");
    let gateway = setup.start().await;
    gateway.order(&create()).await.assert_is(&created("ins-1"));
    gateway.order(&create()).await.assert_rejected(502, "backend_broken_reply");
    assert_eq!((first.count(), second.connections()), (2, 0));
}

#[tokio::test]
async fn a_backend_of_which_no_url_can_be_reached_is_a_502_that_names_each_by_its_position() {
    let (first, second) = (Backend::closed(), Backend::closed());
    let gateway = over(&first.url("/internal/spi"), &[second.url("/internal/spi")]).start().await;
    let order = create();
    let answer = gateway.order(&order).await;
    answer.assert_rejected(502, "backend_unreachable");
    let line = gateway.access_line(&answer).await;
    assert_eq!(line["outcome"], "failed");
    let cause = line["cause"].as_str().unwrap();
    assert!(cause.contains("backend 0: ") && cause.contains("backend 1: "), "{cause}");
    // Nothing was sent, so the key is open, and the last URL will do.
    let second = second.open();
    gateway.order(&order).await.assert_is(CREATED);
    assert_eq!(second.attempts()[0].0, 2);
}

#[tokio::test]
async fn a_connection_test_is_passed_if_any_url_accepts() {
    let (closed, second) = (Backend::closed(), Backend::confirming().await);
    let setup = over(&closed.url("/internal/spi"), &[second.url("/internal/spi")]);
    let gateway = setup.app("test_connection = \"probe\"").start().await;
    let test = crate::support::order::action("TestConnection");
    gateway.order(&test).await.assert_is(r#"{"success":true}"#);
    assert_eq!(second.count(), 0);
}

#[tokio::test]
async fn urls_that_do_not_belong_together_are_a_problem_of_the_configuration() {
    let first = "http://127.0.0.1:9000/spi";
    let eight: Vec<_> = (0..8).map(|number| format!("http://127.0.0.1:{}/spi", 9_001 + number)).collect();
    for (others, problem) in [
        (vec!["http://127.0.0.1:9001/".to_owned()], "failover[0]: must have the path and query of url"),
        (vec!["http://127.0.0.1:9001/spi?a=b".into()], "failover[0]: must have the path and query of url"),
        (vec!["http://127.0.0.1:9001/spi".into(), first.into()], "failover[1]: names the same host and port"),
        (vec!["127.0.0.1:9001".into()], "failover[0]: must begin with http"),
        (eight, "failover: must have at most 7 URLs"),
    ] {
        let checked = over(first, &others).check();
        assert_eq!(checked.code, 1, "{}", checked.text);
        assert!(checked.text.contains(&format!("apps[0].backend.{problem}")), "{problem}: {}", checked.text);
    }
}
