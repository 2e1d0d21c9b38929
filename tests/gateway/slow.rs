//! Slow and idle clients are let go, and nobody waits for them.

use std::time::Duration;

use crate::support::authority::Authority;
use crate::support::backend::{Backend, CREATED, json};
use crate::support::client::{Connection, get};
use crate::support::gateway::{Gateway, Setup};
use crate::support::order::create;
use crate::support::tls_client::TlsClient;
use crate::support::{DEADLINE, within_deadline};

async fn impatient(backend: &Backend) -> Gateway {
    Setup::new(backend).top("[limits]\nheader_timeout = \"300ms\"\nidle_timeout = \"300ms\"\n").start().await
}

#[tokio::test]
async fn a_head_that_does_not_end_closes_the_connection() {
    let backend = Backend::confirming().await;
    let gateway = impatient(&backend).await;
    let head = get(&create().target(), "");
    for part in ["", "G", "GET /spi", &head[..head.len() - 2], "\r\n\r\n"] {
        let mut connection = Connection::open(gateway.listen).await;
        connection.send(part).await;
        assert!(connection.until_closed().await.is_empty(), "{part:?}");
    }
    assert_eq!(backend.count(), 0);
    gateway.order(&create()).await.assert_is(CREATED);
}

#[tokio::test]
async fn sending_a_head_byte_by_byte_buys_no_time() {
    let backend = Backend::confirming().await;
    let gateway = impatient(&backend).await;
    let mut connection = Connection::open(gateway.listen).await;
    connection.send("GET /spi HTTP/1.1\r\nX: ").await;
    let trickle = async {
        while !connection.has_ended().await {
            connection.send("x").await;
        }
    };
    within_deadline("the end of a trickled head", trickle).await;
    assert_eq!(backend.count(), 0);
}

/// The machine, or the process alone, stands still for longer than any limit while a request comes.
#[tokio::test]
async fn what_came_in_time_is_answered_however_late_it_is_read() {
    let backend = Backend::confirming().await;
    let limits = "[limits]\nheader_timeout = \"1s\"\nidle_timeout = \"1s\"\n";
    let gateway = Setup::new(&backend).forwarding_all().top(limits).start().await;
    for requests in [1, 2, 1, 2] {
        let mut connection = Connection::open(gateway.listen).await;
        for _ in 1..requests {
            connection.send(get(&create().target(), "")).await;
            connection.reply().await.unwrap().assert_is(CREATED);
        }
        gateway.signal("STOP");
        connection.send(get(&create().target(), "")).await;
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        gateway.signal("CONT");
        connection.reply().await.expect("an answer").assert_is(CREATED);
    }
}

#[tokio::test]
async fn a_second_head_has_no_more_time_than_the_first() {
    let backend = Backend::confirming().await;
    let limits = "[limits]\nheader_timeout = \"300ms\"\nidle_timeout = \"120s\"\n";
    let gateway = Setup::new(&backend).top(limits).start().await;
    let mut connection = Connection::open(gateway.listen).await;
    connection.send(get(&create().target(), "")).await;
    connection.reply().await.unwrap().assert_is(CREATED);
    // When a later connection has been closed, this one has been idle for longer than a head may
    // take, which is its right.
    assert!(gateway.raw("").await.is_empty());
    assert!(!connection.has_ended().await);
    connection.send("GET /spi").await;
    assert!(connection.until_closed().await.is_empty());
}

#[tokio::test]
async fn half_a_head_behind_another_request_has_no_more_time_than_one_alone() {
    let backend = Backend::confirming().await;
    let limits = "[limits]\nheader_timeout = \"300ms\"\nidle_timeout = \"120s\"\n";
    let gateway = Setup::new(&backend).top(limits).start().await;
    let mut connection = Connection::open(gateway.listen).await;
    connection.send(get(&create().target(), "") + "GET /spi").await;
    assert_eq!(connection.until_closed().await.len(), 1);
}

#[tokio::test]
async fn an_idle_time_below_that_of_a_head_holds_too() {
    let backend = Backend::confirming().await;
    let limits = "[limits]\nheader_timeout = \"120s\"\nidle_timeout = \"300ms\"\n";
    let gateway = Setup::new(&backend).top(limits).start().await;
    let mut connection = Connection::open(gateway.listen).await;
    // When a later connection has been closed, this one has been looked at before its first request.
    let mut later = Connection::open(gateway.listen).await;
    later.send(get(&create().target(), "")).await;
    assert_eq!(later.until_closed().await.len(), 1);
    connection.send(get(&create().target(), "")).await;
    assert_eq!(connection.until_closed().await.len(), 1);
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_its_answer() {
    let backend = Backend::confirming().await;
    let gateway = impatient(&backend).await;
    let mut connection = Connection::open(gateway.listen).await;
    connection.send(get(&create().target(), "")).await;
    assert_eq!(connection.until_closed().await.len(), 1);
}

#[tokio::test]
async fn a_slow_backend_is_no_reason_to_close_the_callers_connection() {
    let gate = crate::support::backend::Gate::closed();
    let wait = gate.clone();
    let backend =
        Backend::start(move |_| [vec![crate::support::backend::Step::Wait(wait.clone())], json(CREATED)].concat())
            .await;
    let gateway = impatient(&backend).await;
    let mut waiting = Connection::open(gateway.listen).await;
    waiting.send(get(&create().target(), "")).await;
    backend.wait_for(1).await;
    // An idle connection that begins now is closed before the gate opens.
    assert!(gateway.raw("").await.is_empty());
    gate.open();
    waiting.reply().await.unwrap().assert_is(CREATED);
}

#[tokio::test]
async fn a_client_that_does_not_read_its_answer_is_let_go() {
    // More than the socket buffers of both ends take.
    let message = "m".repeat(24 * 1024 * 1024);
    let body = format!(r#"{{"success":true,"instanceId":"i","message":"{message}"}}"#);
    let backend = Backend::start(move |_| json(&body)).await;
    let limits = "[limits]\nheader_timeout = \"300ms\"\nidle_timeout = \"300ms\"\nreply_bytes = \"32MiB\"\n";
    let gateway = Setup::new(&backend).top(limits).start().await;
    let mut connection = Connection::open(gateway.listen).await;
    connection.send(get(&create().target(), "")).await;
    backend.wait_for(1).await;
    gateway.wait_for_metric("spigate_connections", |connections| connections == 0.0).await;
}

#[tokio::test]
async fn ten_thousand_idle_connections_do_not_keep_others_from_being_served() {
    const IDLE: u32 = 10_000;
    if !may_open(u64::from(IDLE) + 2_000) {
        return;
    }
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    let mut idle = Vec::new();
    for number in 0..IDLE {
        let mut connection = Connection::open(gateway.listen).await;
        if number % 2 == 0 {
            connection.send("GET /spi HTTP/1.1\r\n").await;
        }
        idle.push(connection);
    }
    let all = f64::from(IDLE);
    gateway.wait_for_metric("spigate_connections", |connections| connections >= all).await;
    gateway.order(&create()).await.assert_is(CREATED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_idle_and_slow_connections_under_tls_are_let_go_while_others_are_served() {
    const IDLE: usize = 5_000;
    if !may_open(IDLE as u64 + 2_000) {
        return;
    }
    let (authority, backend) = (Authority::new(), Backend::confirming().await);
    let limits = "[limits]\nheader_timeout = \"20s\"\nidle_timeout = \"20s\"\n";
    let setup = Setup::new(&backend).forwarding_all().top(limits).tls(&authority.certify(&["localhost"]));
    let gateway = setup.start().await;
    let client = TlsClient::trusting(&authority);
    let mut kept = Vec::new();
    for number in 0..IDLE {
        // Most have not begun a handshake; handshakes are what costs the tests' machine time.
        let connection = match number % 25 {
            0 => client.http1(&gateway).await,
            1 => {
                let mut connection = client.http1(&gateway).await;
                connection.send("GET /spi HTTP/1.1\r\nX: ").await;
                connection
            }
            2 => {
                let mut connection = Connection::open(gateway.listen).await;
                connection.send([0x16, 3, 1, 2, 0, 1, 0]).await;
                connection
            }
            _ => Connection::open(gateway.listen).await,
        };
        kept.push(connection);
    }
    // On a slow machine the first have gone by the time that the last have come.
    gateway.wait_for_metric("spigate_connections", |connections| connections >= IDLE as f64 * 0.2).await;
    let mut connection = client.http1(&gateway).await;
    connection.send(get(&create().target(), "")).await;
    connection.reply().await.unwrap().assert_is(CREATED);
    drop(connection);
    // Not one after the other: each has its own deadline.
    let all_gone = async {
        for connection in &mut kept {
            assert!(connection.until_closed().await.is_empty());
        }
    };
    tokio::time::timeout(DEADLINE * 4, all_gone).await.expect("the end of all connections");
}

/// Whether this process, and so its children, may have so many files open.
fn may_open(files: u64) -> bool {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    let enough = maximum.is_none_or(|maximum| maximum >= files);
    if enough {
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    } else {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{files} open files are needed in CI");
        println!("skipped: the limit of open files is below {files}");
    }
    enough
}
