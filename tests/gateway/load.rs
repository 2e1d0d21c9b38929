//! Under more than it takes, the gateway says so, stays observable and recovers.

use std::sync::Arc;

use http_body_util::Empty;
use tokio::task::JoinSet;

use crate::support::authority::Authority;
use crate::support::backend::{Backend, CREATED, Gate, Step, json};
use crate::support::client::{Connection, Reply, get, one_reply};
use crate::support::gateway::{Gateway, Setup};
use crate::support::order::{action, create};
use crate::support::tls_client::{TlsClient, reply};
use crate::support::{has_program, within_deadline};

/// A backend that answers when the gate opens.
async fn gated() -> (Backend, Gate) {
    let gate = Gate::closed();
    let wait = gate.clone();
    let backend = Backend::start(move |_| [vec![Step::Wait(wait.clone())], json(CREATED)].concat()).await;
    (backend, gate)
}

async fn assert_observable(gateway: &Gateway) {
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(one_reply(gateway.admin, get(path, "")).await.status, 200, "{path}");
    }
}

/// One worker: a request that the metrics show as running has come as far as it can, because
/// nothing else runs in between. Without that, a copy could be counted and not have joined yet.
async fn in_single_steps(backend: &Backend) -> Arc<Gateway> {
    Arc::new(Setup::new(backend).environment("TOKIO_WORKER_THREADS", "1").start().await)
}

const RUNNING: &str = "spigate_in_flight_requests{app=\"crm\"}";

/// Sends copies of one order, each signed anew, as the platform does.
async fn copies(gateway: &Arc<Gateway>, count: u32) -> JoinSet<Reply> {
    let (order, mut copies) = (create(), JoinSet::new());
    for number in 0..count {
        let order = order.clone().seconds_from_now(-i64::from(number) % 5);
        let gateway = Arc::clone(gateway);
        copies.spawn(async move { gateway.order(&order).await });
    }
    gateway.wait_for_metric(RUNNING, |running| running == f64::from(count)).await;
    copies
}

#[tokio::test]
async fn a_hundred_identical_orders_at_once_are_one_call_and_one_answer() {
    let (backend, gate) = gated().await;
    let gateway = in_single_steps(&backend).await;
    let copies = copies(&gateway, 100).await;
    gate.open();
    for reply in copies.join_all().await {
        reply.assert_is(CREATED);
    }
    backend.only_request();
    let requests = |outcome: &str| {
        format!("spigate_requests_total{{action=\"CreateAppInstance\",app=\"crm\",outcome=\"{outcome}\"}}")
    };
    assert_eq!(gateway.metric(&requests("delivered")).await, 1.0);
    assert_eq!(gateway.metric(&requests("joined")).await, 99.0);
}

#[tokio::test]
async fn a_hundred_identical_orders_on_all_cores_are_never_two_calls_at_a_time() {
    let (backend, gate) = gated().await;
    let gateway = Arc::new(Setup::new(&backend).environment("TOKIO_WORKER_THREADS", "8").start().await);
    let copies = copies(&gateway, 100).await;
    backend.wait_for(1).await;
    assert_eq!(backend.count(), 1);
    gate.open();
    for reply in copies.join_all().await {
        reply.assert_is(CREATED);
    }
}

#[tokio::test]
async fn copies_share_a_failure_too() {
    let gate = Gate::closed();
    let wait = gate.clone();
    let backend = Backend::start(move |_| vec![Step::Wait(wait.clone()), Step::Reset]).await;
    let gateway = in_single_steps(&backend).await;
    let copies = copies(&gateway, 10).await;
    gate.open();
    for reply in copies.join_all().await {
        reply.assert_rejected(502, "backend_broken_reply");
    }
    assert_eq!(backend.count(), 1);
}

#[tokio::test]
async fn copies_are_not_joined_where_the_operator_switched_it_off() {
    let (backend, gate) = gated().await;
    let gateway = Arc::new(Gateway::forwarding_all(&backend).await);
    let order = create();
    let mut copies = JoinSet::new();
    for _ in 0..3 {
        let (gateway, order) = (Arc::clone(&gateway), order.clone());
        copies.spawn(async move { gateway.order(&order).await });
    }
    backend.wait_for(3).await;
    gate.open();
    for reply in copies.join_all().await {
        reply.assert_is(CREATED);
    }
}

#[tokio::test]
async fn a_caller_that_hangs_up_does_not_end_the_delivery() {
    let (backend, gate) = gated().await;
    let gateway = in_single_steps(&backend).await;
    let order = create();
    let mut first = Connection::open(gateway.listen).await;
    first.send(get(&order.target(), "")).await;
    backend.wait_for(1).await;
    drop(first);
    gateway.wait_for_metric("spigate_callers_gone_total", |gone| gone == 1.0).await;
    let again = Arc::clone(&gateway);
    let second = tokio::spawn(async move { again.order(&order).await });
    gateway.wait_for_metric(RUNNING, |running| running == 1.0).await;
    gate.open();
    second.await.unwrap().assert_is(CREATED);
    assert_eq!(backend.count(), 1);
}

#[tokio::test]
async fn what_became_of_an_order_is_logged_though_its_caller_has_gone() {
    let (backend, gate) = gated().await;
    let gateway = in_single_steps(&backend).await;
    let order = create();
    let mut caller = Connection::open(gateway.listen).await;
    caller.send(get(&order.target(), "")).await;
    backend.wait_for(1).await;
    drop(caller);
    gateway.wait_for_metric("spigate_callers_gone_total", |gone| gone == 1.0).await;
    gate.open();
    let fits = |line: &serde_json::Value| line["order_id"] == order.value("order_id");
    let line = gateway.line("the end of the delivery", fits).await;
    assert_eq!(line["message"], "a delivery ended when nobody waited for it any more");
    assert_eq!((&line["app"], &line["outcome"]), (&"crm".into(), &"delivered".into()));
    assert_eq!(line["instance_id"], serde_json::from_str::<serde_json::Value>(CREATED).unwrap()["instanceId"]);
}

#[tokio::test]
async fn requests_beyond_the_limit_are_told_to_come_again_while_admin_answers() {
    let (backend, gate) = gated().await;
    let setup = Setup::new(&backend).forwarding_all().top("[limits]\nin_flight = 2\n");
    let gateway = Arc::new(setup.start().await);
    let mut running = JoinSet::new();
    for _ in 0..2 {
        let gateway = Arc::clone(&gateway);
        running.spawn(async move { gateway.order(&create()).await });
    }
    backend.wait_for(2).await;
    for _ in 0..10 {
        gateway.order(&create()).await.assert_rejected(503, "overloaded");
        gateway.get("/nowhere").await.assert_rejected(503, "overloaded");
    }
    assert_observable(&gateway).await;
    assert_eq!(gateway.metric("spigate_rejections_total{app=\"unknown\",code=\"overloaded\"}").await, 20.0);
    gate.open();
    for reply in running.join_all().await {
        reply.assert_is(CREATED);
    }
    gateway.order(&create()).await.assert_is(CREATED);
    assert_eq!(backend.count(), 3);
}

#[tokio::test]
async fn connections_beyond_the_limit_are_told_to_come_again_while_admin_answers() {
    let backend = Backend::confirming().await;
    let gateway = Setup::new(&backend).top("[limits]\nconnections = 2\n").start().await;
    let kept = [Connection::open(gateway.listen).await, Connection::open(gateway.listen).await];
    gateway.wait_for_metric("spigate_connections", |connections| connections == 2.0).await;
    let replies = gateway.raw("").await;
    assert_eq!(replies.len(), 1);
    assert_eq!((replies[0].status, replies[0].header("connection")), (503, Some("close")));
    assert!(replies[0].header("retry-after").is_some());
    assert_eq!(replies[0].json()["code"], "overloaded");
    assert_observable(&gateway).await;
    assert_eq!(gateway.metric("spigate_connections_refused_total").await, 1.0);
    drop(kept);
    gateway.wait_for_metric("spigate_connections", |connections| connections == 0.0).await;
    gateway.order(&create()).await.assert_is(CREATED);
}

/// Holds connections until the gateway has no descriptor left for another, and lets them go.
async fn exhaust_descriptors(gateway: &Gateway) {
    let mut kept = Vec::new();
    for _ in 0..60 {
        kept.push(Connection::open(gateway.listen).await);
    }
    gateway
        .line("the refused accept", |line| {
            line["message"].as_str().is_some_and(|message| message.starts_with("cannot accept a connection"))
        })
        .await;
}

#[tokio::test]
async fn accepting_recovers_once_file_descriptors_are_free_again() {
    if !has_program("prlimit") {
        return;
    }
    let backend = Backend::confirming().await;
    let gateway = Setup::new(&backend).through(&["prlimit", "--nofile=48:48"]).start().await;
    exhaust_descriptors(&gateway).await;
    gateway.order(&create()).await.assert_is(CREATED);
    assert!(gateway.metric("spigate_accept_errors_total").await > 0.0);
}

#[tokio::test]
async fn accepting_recovers_under_tls_too() {
    if !has_program("prlimit") {
        return;
    }
    let (authority, backend) = (Authority::new(), Backend::confirming().await);
    let setup = Setup::new(&backend).tls(&authority.certify(&["localhost"]));
    let gateway = setup.through(&["prlimit", "--nofile=48:48"]).start().await;
    exhaust_descriptors(&gateway).await;
    let mut connection = TlsClient::trusting(&authority).offering(&["h2"]).http2(&gateway).await;
    connection.get(&create().target()).await.assert_is(CREATED);
}

#[tokio::test]
async fn requests_beyond_the_limit_on_one_http_2_connection_are_told_to_come_again() {
    let (authority, (backend, gate)) = (Authority::new(), gated().await);
    let setup = Setup::new(&backend).forwarding_all().top("[limits]\nin_flight = 2\n");
    let gateway = setup.tls(&authority.certify(&["localhost"])).start().await;
    let mut connection = TlsClient::trusting(&authority).offering(&["h2"]).http2(&gateway).await;
    let mut running = JoinSet::new();
    for _ in 0..2 {
        let mut sender = connection.sender.clone();
        let request = http::Request::get(format!("https://localhost{}", create().target()));
        running.spawn(async move { sender.send_request(request.body(Empty::new()).unwrap()).await.unwrap() });
    }
    backend.wait_for(2).await;
    for _ in 0..10 {
        connection.get(&create().target()).await.assert_rejected(503, "overloaded");
    }
    assert_observable(&gateway).await;
    gate.open();
    for answer in running.join_all().await {
        reply(answer).await.assert_is(CREATED);
    }
}

#[tokio::test]
async fn a_storm_of_mixed_requests_leaves_nothing_running() {
    let backend = Backend::confirming().await;
    let mut gateway = Gateway::forwarding_all(&backend).await;
    let (listen, mut storm) = (gateway.listen, JoinSet::new());
    for number in 0..200 {
        let request = match number % 4 {
            0 => get(&create().target(), ""),
            1 => get(&create().key("wrong").target(), ""),
            2 => get(&action("TestConnection").target(), ""),
            _ => "GET /spi HTTP/1.1\nX\r\n\r\n".into(),
        };
        storm.spawn(async move { one_reply(listen, request).await.status });
    }
    let mut statuses = storm.join_all().await;
    statuses.sort_unstable();
    assert_eq!(statuses, [[200; 100].as_slice(), &[400; 50], &[401; 50]].concat());
    for series in [RUNNING, "spigate_connections"] {
        gateway.wait_for_metric(series, |running| running == 0.0).await;
    }
    assert!(gateway.lives());
    within_deadline("one more", gateway.order(&create())).await.assert_is(CREATED);
}
