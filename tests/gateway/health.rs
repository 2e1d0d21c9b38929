//! A URL that fails is left alone for a while; a probe says which one to try first, and
//! `/readyz` may wait for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::backend::{Backend, CREATED, Gate, Step, created, json, reply};
use crate::support::gateway::{Gateway, Setup};
use crate::support::order::create;

const JSON: &str = "Content-Type: application/json\r\n";
/// Never closes by itself within a test.
const FOR_LONG: &str = "open_for = \"1h\"";

fn up(position: usize) -> String {
    format!("spigate_backend_up{{app=\"crm\",backend=\"{position}\"}}")
}

const OPENED: &str = "spigate_backend_circuit_opened_total{app=\"crm\",backend=\"0\"}";

/// How many lines of the log so far say this.
fn told(gateway: &Gateway, what: &str) -> usize {
    gateway.output().lines().filter(|line| line.contains(what)).count()
}

#[tokio::test]
async fn a_circuit_opens_after_failures_in_a_row_and_refuses_at_once() {
    let closed = Backend::closed();
    let setup = Setup::to(closed.url("/")).backend(&format!("health = {{ failures = 3, {FOR_LONG} }}"));
    let gateway = setup.start().await;
    assert_eq!(gateway.metric(&up(0)).await, 1.0);
    for _ in 0..3 {
        let answer = gateway.order(&create()).await;
        answer.assert_rejected(502, "backend_unreachable");
        let cause = gateway.access_line(&answer).await["cause"].to_string();
        assert!(cause.contains("refused"), "{cause}");
    }
    // By now it could be reached, but nobody tries.
    let backend = closed.open();
    for _ in 0..3 {
        let answer = gateway.order(&create()).await;
        answer.assert_rejected(502, "backend_unreachable");
        let line = gateway.access_line(&answer).await;
        assert_eq!(line["outcome"], "failed");
        assert!(line["cause"].as_str().unwrap().contains("circuit is open"), "{line}");
        assert!(!answer.text().contains("circuit"), "{}", answer.text());
    }
    assert_eq!(backend.connections(), 0);
    assert_eq!((gateway.metric(&up(0)).await, gateway.metric(OPENED).await), (0.0, 1.0));
    let line = gateway.line("the opening", |line| line["message"].as_str().unwrap().contains("circuit is open")).await;
    assert_eq!((&line["app"], &line["backend"], &line["level"]), (&"crm".into(), &0.into(), &"WARN".into()));
    assert_eq!(told(&gateway, "circuit is open: too many calls"), 1);
    assert_eq!(gateway.readyz().await.status, 200);
}

#[tokio::test]
async fn a_trial_closes_the_circuit_and_the_order_that_was_refused_is_delivered() {
    let closed = Backend::closed();
    let setup = Setup::to(closed.url("/")).backend("health = { failures = 2, open_for = \"20ms\" }");
    let gateway = setup.start().await;
    let order = create();
    for _ in 0..2 {
        gateway.order(&order).await.assert_rejected(502, "backend_unreachable");
    }
    // The failed trials of a backend that is still away are told by nobody.
    for _ in 0..20 {
        gateway.order(&create()).await.assert_rejected(502, "backend_unreachable");
    }
    let backend = closed.open();
    let delivered = async { while gateway.order(&order).await.status != 200 {} };
    crate::support::within_deadline("a trial", delivered).await;
    // What was refused was an attempt, of which nothing was sent.
    assert_eq!(backend.count(), 1);
    assert!(backend.attempts()[0].0 > 2);
    gateway.order(&create()).await.assert_is(&created("ins-2"));
    assert_eq!((gateway.metric(&up(0)).await, gateway.metric(OPENED).await), (1.0, 1.0));
    gateway.line("the closing", |line| line["message"].as_str().unwrap().contains("circuit is closed")).await;
    assert_eq!((told(&gateway, "circuit is open: too"), told(&gateway, "circuit is closed")), (1, 1));
}

#[tokio::test]
async fn a_trial_that_waits_for_its_reply_keeps_no_other_order_waiting() {
    let closed = Backend::closed();
    let setup = Setup::to(closed.url("/")).backend("health = { failures = 1, open_for = \"20ms\" }");
    let gateway = setup.start().await;
    gateway.order(&create()).await.assert_rejected(502, "backend_unreachable");
    let gate = Gate::closed();
    let backend = closed.open_in_turn([[vec![Step::Wait(gate.clone())], json(created("ins-1"))].concat()]);
    let slow = create();
    let mut trial = gateway.send(&slow);
    let arrived = async {
        while backend.count() == 0 {
            // The circuit refused it: once more.
            if trial.is_finished() {
                trial = gateway.send(&slow);
            }
            tokio::task::yield_now().await;
        }
    };
    crate::support::within_deadline("a trial", arrived).await;
    assert_eq!(gateway.metric(&up(0)).await, 1.0);
    gateway.order(&create()).await.assert_is(&created("ins-2"));
    gate.open();
    trial.await.unwrap().assert_is(&created("ins-1"));
}

#[tokio::test]
async fn by_default_only_connections_count_and_a_backend_that_answers_is_called() {
    let short = "answer_within = \"300ms\"\ntimeout = \"300ms\"\nconnect_timeout = \"300ms\"\n";
    for steps in [reply("500 Oops", JSON, "{}"), reply("200 OK", "", "<html>"), vec![Step::Reset], vec![Step::Stall]] {
        let times = if matches!(steps[..], [Step::Stall]) { short } else { "" };
        let health = format!("health = {{ failures = 1, {FOR_LONG} }}\n{times}");
        let backend = Backend::in_turn([steps.clone(), steps]).await;
        let gateway = Setup::new(&backend).journal("memory:").backend(&health).start().await;
        for _ in 0..2 {
            assert_ne!(gateway.order(&create()).await.status, 200);
        }
        assert_eq!(backend.count(), 2);
        // However long its answer takes, it is called.
        gateway.order(&create()).await;
        assert_eq!(backend.count(), 3);
        assert_eq!(gateway.metric(OPENED).await, 0.0);
    }
}

#[tokio::test]
async fn if_told_so_failed_replies_count_but_refusals_do_not() {
    let health = format!("health = {{ failures = 2, {FOR_LONG}, count = \"any\" }}");
    let failing = reply("503 Busy", JSON, "{}");
    let refusing = reply("404 No", JSON, r#"{"success":false,"message":"no"}"#);
    let broken = vec![Step::Reset];
    let well = [failing.clone(), refusing.clone(), broken.clone(), refusing.clone()];
    let backend = Backend::in_turn(well.into_iter().chain([failing, broken])).await;
    let gateway = Setup::new(&backend).backend(&health).start().await;
    for status in [502, 200, 502, 200, 502, 502] {
        assert_eq!(gateway.order(&create()).await.status, status);
    }
    gateway.order(&create()).await.assert_rejected(502, "backend_unreachable");
    assert_eq!((backend.count(), gateway.metric(OPENED).await), (6, 1.0));
}

#[tokio::test]
async fn while_a_circuit_is_open_orders_go_to_the_next_url() {
    let first = Backend::start(|_| reply("503 Busy", JSON, "{}")).await;
    let second = Backend::in_turn([]).await;
    let urls = format!("failover = [{:?}]", second.url("/internal/spi"));
    let health = format!("health = {{ failures = 2, {FOR_LONG}, count = \"any\" }}");
    let gateway = Setup::new(&first).backend(&urls).backend(&health).start().await;
    for _ in 0..2 {
        gateway.order(&create()).await.assert_rejected(502, "backend_error");
    }
    for number in 1..=3 {
        gateway.order(&create()).await.assert_is(&created(&format!("ins-{number}")));
    }
    assert_eq!((first.count(), second.count()), (2, 3));
    assert_eq!((gateway.metric(&up(0)).await, gateway.metric(&up(1)).await), (0.0, 1.0));
    assert_eq!(gateway.metric("spigate_backend_failovers_total{app=\"crm\",backend=\"1\"}").await, 3.0);
}

/// Confirms orders; at `/healthz` it says whether it is well.
async fn with_healthz() -> (Backend, Arc<AtomicBool>) {
    let well = Arc::new(AtomicBool::new(true));
    let says = Arc::clone(&well);
    let backend = Backend::start(move |seen| match seen.target.as_str() {
        "/healthz?deep=1" if says.load(Ordering::SeqCst) => reply("302 Found", "Location: /\r\n", ""),
        "/healthz?deep=1" => reply("503 Busy", "", "no"),
        _ => json(CREATED),
    });
    (backend.await, well)
}

/// Requests that are no probes.
fn orders(backend: &Backend) -> usize {
    backend.requests().iter().filter(|seen| seen.method == "POST").count()
}

#[tokio::test]
async fn a_url_whose_probe_fails_is_tried_last_until_it_succeeds_again() {
    let ((first, is_well), second) = (with_healthz().await, Backend::confirming().await);
    let urls = format!("failover = [{:?}]", second.url("/internal/spi"));
    let probe = "probe = { path = \"/healthz?deep=1\", every = \"20ms\", timeout = \"60s\" }";
    let gateway = Setup::new(&first).forwarding_all().backend(&urls).backend(probe).start().await;
    for round in 1..=2 {
        is_well.store(true, Ordering::SeqCst);
        gateway.wait_for_metric(&up(0), |up| up == 1.0).await;
        gateway.order(&create()).await.assert_is(CREATED);
        assert_eq!((orders(&first), orders(&second)), (round, round - 1));
        is_well.store(false, Ordering::SeqCst);
        gateway.wait_for_metric(&up(0), |up| up == 0.0).await;
        gateway.order(&create()).await.assert_is(CREATED);
        assert_eq!((orders(&first), orders(&second)), (round, round));
    }
    let probe = first.requests().into_iter().find(|seen| seen.method == "GET").unwrap();
    assert_eq!(probe.header("host"), Some(first.authority().as_str()));
    // Once for each change, however often it was looked; lines come a little later than metrics.
    let lines = || (told(&gateway, "probe fails"), told(&gateway, "probe succeeds again"));
    let last = async {
        while lines().0 < 2 {
            tokio::task::yield_now().await;
        }
    };
    crate::support::within_deadline("the last line", last).await;
    assert_eq!(lines(), (2, 1));
    assert_eq!(gateway.metric(OPENED).await, 0.0);
}

#[tokio::test]
async fn a_probe_that_fails_refuses_no_order() {
    let (backend, is_well) = with_healthz().await;
    is_well.store(false, Ordering::SeqCst);
    let gateway = Setup::new(&backend).backend("probe = { path = \"/healthz?deep=1\", every = \"20ms\" }");
    let gateway = gateway.start().await;
    gateway.wait_for_metric(&up(0), |up| up == 0.0).await;
    gateway.order(&create()).await.assert_is(CREATED);
}

#[tokio::test]
async fn a_probe_that_succeeds_closes_the_circuit_without_an_order() {
    let closed = Backend::closed();
    let keys = format!("health = {{ failures = 2, {FOR_LONG} }}\nprobe = {{ every = \"20ms\" }}");
    let gateway = Setup::to(closed.url("/")).backend(&keys).start().await;
    for _ in 0..2 {
        gateway.order(&create()).await.assert_rejected(502, "backend_unreachable");
    }
    let backend = closed.open();
    gateway.wait_for_metric(&up(0), |up| up == 1.0).await;
    assert_eq!(backend.count(), 0);
    gateway.order(&create()).await.assert_is(CREATED);
}

#[tokio::test]
async fn readyz_waits_for_the_backend_only_where_it_is_told_to_and_calls_nobody() {
    let (closed, other) = (Backend::closed(), Backend::confirming().await);
    let more = |requires: bool| {
        format!(
            "[[apps]]\nname = \"b\"\npath = \"/b\"\ndialect = \"qingcloud-appcenter\"\n\
             ready_requires_backend = {requires}\nkeys = [{{ id = \"k\", value = \"k-of-b\" }}]\n\
             [apps.backend]\nurl = \"{}\"\nprobe = {{ every = \"20ms\" }}\n",
            closed.url("/")
        )
    };
    let indifferent = Setup::new(&other).more(&more(false)).start().await;
    indifferent.wait_for_metric("spigate_backend_up{app=\"b\",backend=\"0\"}", |up| up == 0.0).await;
    assert_eq!(indifferent.readyz().await.status, 200);

    let once = "probe = { every = \"1h\" }";
    let setup = Setup::new(&other).app("ready_requires_backend = true").backend(once).more(&more(true));
    let gateway = setup.start().await;
    let unready = gateway.wait_for_readyz(503).await;
    gateway.line("the probe", |line| line["message"] == "the backend's probe fails" && line["app"] == "b").await;
    // The first look at the other app's backend may still be under way.
    let of_one = async { while !gateway.readyz().await.text().ends_with("of app b\n") {} };
    crate::support::within_deadline("the first probe", of_one).await;
    assert!(unready.text().contains("backend"), "{}", unready.text());
    // Orders of the other app pass all the same.
    gateway.order(&create()).await.assert_is(CREATED);
    let before = other.connections();
    for _ in 0..20 {
        gateway.readyz().await;
    }
    assert_eq!(other.connections(), before);
    let _backend = closed.open();
    gateway.wait_for_readyz(200).await;
}

#[tokio::test]
async fn one_apps_open_circuit_is_no_other_apps() {
    let (closed, well) = (Backend::closed(), Backend::in_turn([]).await);
    let more = format!(
        "[[apps]]\nname = \"b\"\npath = \"/b\"\ndialect = \"qingcloud-appcenter\"\n\
         keys = [{{ id = \"k\", value = \"{}\" }}]\n[apps.backend]\nurl = \"{}\"\nhealth = {{ failures = 1, {FOR_LONG} }}\n",
        crate::support::order::KEY,
        closed.url("/")
    );
    let setup = Setup::new(&well).backend(&format!("health = {{ failures = 1, {FOR_LONG} }}")).more(&more);
    let gateway = setup.start().await;
    for number in 1..=3 {
        gateway.order(&create().path("/b")).await.assert_rejected(502, "backend_unreachable");
        gateway.order(&create()).await.assert_is(&created(&format!("ins-{number}")));
    }
    assert_eq!(gateway.metric("spigate_backend_up{app=\"b\",backend=\"0\"}").await, 0.0);
    assert_eq!(gateway.metric(&up(0)).await, 1.0);
}

#[tokio::test]
async fn what_cannot_be_looked_for_is_a_problem_of_the_configuration() {
    let backend = Backend::confirming().await;
    for (keys, problem) in [
        ("health = { failures = 5000 }", "apps[0].backend.health.failures: must be from 0 to 1000"),
        ("health = { open_for = \"0s\" }", "apps[0].backend.health.open_for: must be more than zero"),
        ("health = { count = \"all\" }", "apps[0].backend.health.count: "),
        ("probe = { path = \"healthz\" }", "apps[0].backend.probe.path: must begin with /"),
        ("probe = { every = \"0s\" }", "apps[0].backend.probe.every: must be more than zero"),
    ] {
        let checked = Setup::new(&backend).backend(keys).check();
        assert_eq!(checked.code, 1, "{}", checked.text);
        assert!(checked.text.contains(problem), "{problem}: {}", checked.text);
    }
}

#[tokio::test]
async fn a_backend_that_readyz_waits_for_is_probed_without_being_told_to() {
    let closed = Backend::closed();
    let gateway = Setup::to(closed.url("/")).app("ready_requires_backend = true").start().await;
    let unready = gateway.wait_for_readyz(503).await;
    assert!(unready.text().contains("of app crm"), "{}", unready.text());
    let _backend = closed.open();
    gateway.wait_for_readyz(200).await;
}
