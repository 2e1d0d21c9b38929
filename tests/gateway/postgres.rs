//! Gateways whose journal is in PostgreSQL: one delivery for all of them, whichever of them is
//! killed, and whenever the server goes away and comes back.

use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::admin_access::{ask, post};
use crate::postgres_server::{EVERYBODY, Server};
use crate::support::backend::{Backend, CREATED, Gate, Seen, Step, created, json};
use crate::support::client::Reply;
use crate::support::gateway::{Gateway, Setup, UNANSWERED, UNCONFIRMED, without_settings};
use crate::support::order::{Order, create};
use crate::support::within_deadline;

/// The server asks nobody for it, so that every test can have one in its URL.
const PASSWORD: &str = "ge-heim-4711";
const KEPT: &str = "a confirmation cannot be recorded: it is kept in memory until it can";

/// A database on a server.
struct Journal {
    server: Arc<Server>,
    database: String,
    url: String,
}

impl Journal {
    /// On the server that all tests share. `None` if there is no PostgreSQL.
    fn new() -> Option<Self> {
        Some(Self::on(Server::shared()?))
    }

    /// On a server that may be stopped.
    fn alone() -> Option<Self> {
        Some(Self::on(Arc::new(Server::start(&[], EVERYBODY)?)))
    }

    fn on(server: Arc<Server>) -> Self {
        let database = server.database();
        let url = server.url(&database).replace("postgres@", &format!("postgres:{PASSWORD}@"));
        Self { server, database, url }
    }

    /// Runs statements behind the gateways' backs.
    fn sql(&self, statements: &str) -> String {
        self.server.sql(&self.database, statements)
    }

    fn setup(&self, backend: &Backend, lease: &str) -> Setup {
        let journal = format!("[journal]\nurl = \"{}\"\nlease = \"{lease}\"\n", self.url);
        Setup::new(backend).top(&journal).top("[shutdown]\ndelay = \"0s\"\n")
    }

    async fn stop(&self) {
        let server = Arc::clone(&self.server);
        tokio::task::spawn_blocking(move || server.stop()).await.unwrap();
    }

    async fn resume(&self) {
        let server = Arc::clone(&self.server);
        tokio::task::spawn_blocking(move || server.resume()).await.unwrap();
    }
}

/// A backend that makes an instance for each order, once the gate is open for those with this user.
async fn backend(gated_user: &'static str) -> (Backend, Gate) {
    let gate = Gate::closed();
    let wait = gate.clone();
    let backend = Backend::start(move |request: &Seen| {
        let order = request.json();
        let reply = json(created(&format!("ins-{}", order["order_id"].as_str().unwrap())));
        if order["user_id"] == gated_user { [vec![Step::Wait(wait.clone())], reply].concat() } else { reply }
    })
    .await;
    (backend, gate)
}

/// What [`backend`] replies.
fn made_for(order: &Order<'_>) -> String {
    created(&format!("ins-{}", order.value("order_id")))
}

/// Runs `spigate journal` beside a gateway, with its configuration.
fn journal_command(gateway: &Gateway, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spigate"));
    command.arg("journal").args(arguments).arg("--config").arg(gateway.directory().path().join("spigate.toml"));
    without_settings(&mut command).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

fn errors(operation: &str) -> String {
    format!("spigate_journal_errors_total{{operation=\"{operation}\"}}")
}

fn is_rejected(reply: &Reply, code: &str) -> bool {
    reply.status == 503 && reply.json()["code"] == code
}

#[tokio::test]
async fn a_hundred_copies_at_two_gateways_are_one_call() {
    let Some(journal) = Journal::new() else { return };
    let gate = Gate::closed();
    let backend = Backend::in_turn([[vec![Step::Wait(gate.clone())], json(CREATED)].concat()]).await;
    let gateways = [journal.setup(&backend, "10s").start().await, journal.setup(&backend, "10s").start().await];
    let order = create();
    let copies: Vec<_> = gateways.iter().cycle().take(100).map(|gateway| gateway.send(&order)).collect();
    for gateway in &gateways {
        gateway.wait_for_claims(50).await;
    }
    gate.open();
    for copy in copies {
        copy.await.unwrap().assert_is(CREATED);
    }
    backend.only_request();
    for gateway in gateways {
        gateway.wait_for_metric(UNANSWERED, |unanswered| unanswered == 0.0).await;
        assert!(!gateway.stop().await.contains(PASSWORD));
    }
}

#[tokio::test]
async fn what_a_killed_gateway_had_running_is_taken_over_when_its_lease_has_ended() {
    let Some(journal) = Journal::new() else { return };
    let backend = Backend::in_turn([vec![Step::Stall]]).await;
    let mut killed = journal.setup(&backend, "60s").start().await;
    let id = journal.sql("SELECT id FROM spigate_gateways");
    let other = journal.setup(&backend, "60s").start().await;
    let order = create();
    let (_first, joined) = (killed.send(&order), {
        backend.wait_for(1).await;
        other.send(&order)
    });
    other.wait_for_claims(1).await;
    killed.kill();
    // The time of a lease passes, in which the other one keeps its own.
    journal.sql(&format!(
        "UPDATE spigate_gateways SET since = since - interval '1 day';
         UPDATE spigate_gateways SET lease_until = clock_timestamp() - interval '1 second' WHERE id = '{id}'"
    ));
    // It waited for an attempt of which nothing is known any more.
    joined.await.unwrap().assert_rejected(503, "delivery_in_progress");
    let taken_over = within_deadline("the end of the lease", async {
        loop {
            let reply = other.order(&order).await;
            if reply.status == 200 {
                return reply;
            }
            reply.assert_rejected(503, "delivery_in_progress");
        }
    });
    taken_over.await.assert_is(&created("ins-2"));
    let attempts = backend.attempts();
    let key = attempts[0].1.clone();
    assert_eq!(attempts, [(1, key.clone()), (2, key)]);
    other.wait_for_metric(UNCONFIRMED, |number| number == 0.0).await;
}

/// Sends new orders one after the other until it is told to stop; those that it sent.
async fn load(gateway: Arc<Gateway>, stop: Arc<AtomicBool>) -> Vec<Order<'static>> {
    let mut sent = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let order = create();
        let reply = gateway.order(&order).await;
        assert!(reply.status == 200 || is_rejected(&reply, "journal_unavailable"), "{reply:?}");
        sent.push(order);
    }
    sent
}

#[tokio::test]
async fn a_server_that_stops_and_starts_under_load_loses_no_confirmation() {
    let Some(journal) = Journal::alone() else { return };
    let (backend, gate) = backend("slow").await;
    let gateway = Arc::new(journal.setup(&backend, "10s").start().await);
    let slow = create().with("user_id", "slow");
    let first = gateway.send(&slow);
    backend.wait_for(1).await;
    let stop = Arc::new(AtomicBool::new(false));
    let loads: Vec<_> = (0..4).map(|_| tokio::spawn(load(Arc::clone(&gateway), Arc::clone(&stop)))).collect();
    backend.wait_for(40).await;
    journal.stop().await;
    let why = gateway.wait_for_readyz(503).await.text();
    assert!(why.starts_with("not ready: the journal is not available: "), "{why}");
    stop.store(true, Ordering::Relaxed);
    let mut sent = vec![slow.clone()];
    for load in loads {
        sent.extend(load.await.unwrap());
    }
    let before = backend.count();
    for order in [&create(), &create(), &slow] {
        gateway.order(order).await.assert_rejected(503, "journal_unavailable");
    }
    assert_eq!(backend.count(), before);
    // It is done, but nobody may be told what is not recorded.
    gate.open();
    first.await.unwrap().assert_rejected(503, "journal_unavailable");
    gateway.line("the confirmation", |line| line["message"] == KEPT).await;

    journal.resume().await;
    gateway.wait_for_readyz(200).await;
    for order in &sent {
        // Also of what was cut off in the middle it is known by now whether it was sent.
        let delivered = within_deadline("the delivery", async {
            loop {
                let reply = gateway.order(order).await;
                if reply.status == 200 {
                    return reply;
                }
                assert!(is_rejected(&reply, "delivery_in_progress"), "{reply:?}");
            }
        });
        delivered.await.assert_is(&made_for(order));
    }
    let mut keys: Vec<_> = backend.attempts().into_iter().map(|(_, key)| key).collect();
    keys.sort();
    keys.dedup();
    assert_eq!((keys.len(), backend.count()), (sent.len(), sent.len()), "each is sent once");
    let output = Arc::into_inner(gateway).unwrap().stop().await;
    assert!(!output.contains(PASSWORD));
    // Broken connections are no news of their own.
    assert!(!output.contains("recycled"));
}

#[tokio::test]
async fn after_an_outage_longer_than_the_lease_no_gateway_takes_what_runs_at_the_other() {
    let Some(journal) = Journal::alone() else { return };
    let (backend, gate) = backend("slow").await;
    let (one, other) = (journal.setup(&backend, "3s").start().await, journal.setup(&backend, "3s").start().await);
    let order = create().with("user_id", "slow");
    let first = one.send(&order);
    backend.wait_for(1).await;
    journal.stop().await;
    for gateway in [&one, &other] {
        // They try it again four times a second.
        gateway.wait_for_metric(&errors("probe"), |errors| errors > 14.0).await;
    }
    journal.resume().await;
    // Whether the other one is back by then or not.
    other.wait_for_readyz(200).await;
    let joined = other.send(&order);
    other.wait_for_claims(1).await;
    one.wait_for_readyz(200).await;
    gate.open();
    first.await.unwrap().assert_is(&made_for(&order));
    joined.await.unwrap().assert_is(&made_for(&order));
    backend.only_request();
}

#[tokio::test]
async fn without_a_server_a_gateway_starts_and_waits_for_it() {
    let Some(journal) = Journal::alone() else { return };
    journal.stop().await;
    let backend = Backend::confirming().await;
    let gateway = journal.setup(&backend, "10s").start().await;
    gateway.wait_for_readyz(503).await;
    let order = create();
    gateway.order(&order).await.assert_rejected(503, "journal_unavailable");
    assert_eq!(backend.count(), 0);
    journal.resume().await;
    gateway.wait_for_readyz(200).await;
    gateway.order(&order).await.assert_is(CREATED);
    gateway.order(&order).await.assert_is(CREATED);
    backend.only_request();
    assert!(!gateway.stop().await.contains(PASSWORD));
}

#[tokio::test]
async fn what_was_recorded_outlives_the_gateway_and_operators_decide_beside_it() {
    let Some(journal) = Journal::new() else { return };
    let body = "{ \"success\":true,\"instanceId\":\"ins-1\", \"n\": 1.50, \"message\":\"开通成功\" }\r\n";
    let backend = Backend::in_turn([json(body), vec![Step::Close]]).await;
    let setup = journal.setup(&backend, "1s").app("on_unconfirmed = \"hold\"");
    let mut gateway = setup.start().await;
    let (done, held) = (create(), create());
    gateway.order(&done).await.assert_is(body);
    gateway.order(&held).await.assert_rejected(502, "backend_broken_reply");
    let mut outputs = vec![gateway.output()];
    gateway.restart().await;
    gateway.order(&done).await.assert_is(body);
    gateway.order(&held).await.assert_rejected(503, "delivery_in_progress");
    assert_eq!(backend.count(), 2);

    let listed = journal_command(&gateway, &["list"]);
    assert!(listed.status.success(), "{}", text(&listed));
    let ids: Vec<_> = backend.attempts().into_iter().map(|(_, key)| key).collect();
    for id in &ids {
        assert!(text(&listed).contains(&id[..8]), "{}", text(&listed));
    }
    let resolved = journal_command(&gateway, &["resolve", &ids[1], "--retry"]);
    assert!(resolved.status.success(), "{}", text(&resolved));
    gateway.order(&held).await.assert_is(&created("ins-3"));
    assert_eq!(backend.attempts()[2], (2, ids[1].clone()));
    let refused = journal_command(&gateway, &["resolve", &ids[1], "--retry"]);
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
    outputs.extend([text(&listed), text(&resolved), text(&refused), gateway.stop().await]);
    assert!(outputs.iter().all(|output| !output.contains(PASSWORD)));
}

#[tokio::test]
async fn the_journal_page_of_one_gateway_shows_and_decides_what_another_one_delivered() {
    let Some(journal) = Journal::new() else { return };
    let backend = Backend::in_turn([vec![Step::Close], json(created("ins-2")), json(created("ins-3"))]).await;
    let setup = || journal.setup(&backend, "10s").app("on_unconfirmed = \"hold\"");
    let (one, other) = (setup().start().await, setup().start().await);
    let (held, done) = (create().with("user_id", "usr-<held>"), create().with("user_id", "usr-done"));
    assert_eq!(one.order(&held).await.status, 502);
    one.order(&done).await.assert_is(&created("ins-2"));
    let listed = async |query: &str| {
        let reply = ask(&other, &format!("/api/v1/deliveries?{query}"), "").await;
        assert_eq!(reply.status, 200, "{query}: {reply:?}");
        reply.json()["deliveries"].as_array().unwrap().clone()
    };
    let number = |order: &Order<'_>| order.value("order_id").to_owned();
    for (query, expected) in [
        (String::new(), vec![number(&done), number(&held)]),
        ("limit=1".into(), vec![number(&done)]),
        ("app=crm&since=1h".into(), vec![number(&done), number(&held)]),
        ("until=1h".into(), vec![]),
        (format!("order_id={}", number(&held)), vec![number(&held)]),
        ("instance_id=ins-2".into(), vec![number(&done)]),
        ("user_id=usr-%3Cheld%3E".into(), vec![number(&held)]),
        ("outcome=unconfirmed".into(), vec![number(&held)]),
        ("outcome=done".into(), vec![number(&done)]),
        ("outcome=confirmed&app=crm".into(), vec![number(&done)]),
        ("outcome=open".into(), vec![]),
        ("outcome=running".into(), vec![]),
    ] {
        let found: Vec<_> =
            listed(&query).await.iter().map(|one| one["order_id"].as_str().unwrap().to_owned()).collect();
        assert_eq!(found, expected, "{query}");
    }
    let id = listed("outcome=unconfirmed").await[0]["id"].as_str().unwrap().to_owned();
    let page = ask(&other, &format!("/deliveries/{id}"), "").await.text();
    assert!(page.contains("usr-&#60;held&#62;") && page.contains("held: may have been executed"), "{page}");
    let overview = ask(&other, "/api/v1/overview", "").await.json();
    assert_eq!(
        (&overview["waiting"]["unconfirmed"], &overview["traffic"]["hour"]["deliveries"]),
        (&1.into(), &2.into()),
        "{overview}"
    );
    let decided = post(&other, &format!("/deliveries/{id}/retry"), "by=me&why=it+is+not+there", "").await;
    assert_eq!(decided.status, 303, "{decided:?}");
    let shown = ask(&one, &format!("/api/v1/deliveries/{id}"), "").await.json();
    assert_eq!(
        (&shown["decision"]["by"], &shown["decision"]["why"]),
        (&"me".into(), &"it is not there".into()),
        "{shown}"
    );
    one.order(&held).await.assert_is(&created("ins-3"));
    for outcome in ["unconfirmed", "open"] {
        assert!(listed(&format!("outcome={outcome}")).await.is_empty(), "{outcome}");
    }
}
