//! Under a flood somebody can still look, and what cannot be logged is counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::support::backend::{Backend, CREATED, Gate, Step, json};
use crate::support::client::{Connection, get, one_reply};
use crate::support::gateway::Setup;
use crate::support::order::create;
use crate::support::{has_program, within_deadline};

/// Keeps connecting and being refused until told to stop; counts what came of it.
fn flood(listen: std::net::SocketAddr, stop: &Arc<AtomicBool>, refused: &Arc<AtomicUsize>) -> JoinSet<()> {
    let mut floods = JoinSet::new();
    for number in 0..16 {
        let (stop, refused) = (Arc::clone(stop), Arc::clone(refused));
        floods.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let Ok(mut stream) = TcpStream::connect(listen).await else { continue };
                // Every other one hangs up at once.
                if number % 2 == 0 {
                    let request = format!("GET /spi?{} HTTP/1.1\r\nHost: a\r\n\r\n", "a=1&".repeat(40));
                    let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await;
                    refused.fetch_add(usize::from(stream.read_u8().await.is_ok()), Ordering::Relaxed);
                }
            }
        });
    }
    floods
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn admin_answers_while_every_place_is_taken_and_connections_flood_in() {
    const PLACES: usize = 1_024;
    let gate = Gate::closed();
    let wait = gate.clone();
    let backend = Backend::start(move |_| [vec![Step::Wait(wait.clone())], json(CREATED)].concat()).await;
    let setup = Setup::new(&backend).forwarding_all().environment("TOKIO_WORKER_THREADS", "1");
    let limits = "[limits]\nconnections = 1100\nheader_timeout = \"120s\"\nidle_timeout = \"120s\"\n";
    let gateway = setup.top(limits).start().await;

    // Every place of limits.in_flight, with a backend that hangs.
    let mut held = Vec::new();
    for _ in 0..PLACES {
        let mut connection = Connection::open(gateway.listen).await;
        connection.send(get(&create().target(), "")).await;
        held.push(connection);
    }
    gateway.wait_for_metric("spigate_in_flight_requests{app=\"crm\"}", |running| running == PLACES as f64).await;
    let (stop, refused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let floods = flood(gateway.listen, &stop, &refused);
    for _ in 0..20 {
        // The flood has gone on since the last look.
        let before = refused.load(Ordering::Relaxed);
        let goes_on = async {
            while refused.load(Ordering::Relaxed) == before {
                tokio::task::yield_now().await;
            }
        };
        within_deadline("the flood", goes_on).await;
        for path in ["/livez", "/readyz", "/metrics", "/", "/deliveries", "/workbench"] {
            assert_eq!(one_reply(gateway.admin, get(path, "")).await.status, 200, "{path}");
        }
    }
    stop.store(true, Ordering::Relaxed);
    floods.join_all().await;
    assert!(gateway.metric("spigate_rejections_total{app=\"unknown\",code=\"overloaded\"}").await > 0.0);

    gate.open();
    for connection in &mut held {
        connection.reply().await.unwrap().assert_is(CREATED);
    }
    gateway.order(&create()).await.assert_is(CREATED);
}

#[tokio::test]
async fn the_admin_listener_has_a_thread_of_its_own() {
    let backend = Backend::confirming().await;
    let gateway = Setup::new(&backend).environment("TOKIO_WORKER_THREADS", "1").start().await;
    // A thread names itself, after it has begun.
    assert_eq!(one_reply(gateway.admin, get("/livez", "")).await.status, 200);
    let tasks = std::fs::read_dir(format!("/proc/{}/task", gateway.pid())).unwrap();
    // Some threads may end meanwhile.
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok());
    let names: Vec<_> = names.collect();
    assert!(names.iter().any(|name| name.trim() == "admin"), "{names:?}");
}

#[tokio::test]
async fn lines_that_nobody_reads_are_dropped_and_counted_and_cost_no_request() {
    if !has_program("bash") {
        return;
    }
    // Reads on until the gateway is ready, and then not a byte more for as long as it lives.
    let reader = "exec \"$@\" > >(grep --line-buffered --max-count=1 '\"ready\"'; tail --pid=$$ -f /dev/null)";
    let backend = Backend::confirming().await;
    let gateway = Setup::new(&backend).through(&["bash", "-c", reader, "bash"]).start().await;
    let request = get("/nowhere", "");
    let mut connection = Connection::open(gateway.listen).await;
    // More than the queue holds, the pipe and the reader besides.
    for _ in 0..100 {
        connection.send(request.repeat(100)).await;
        for _ in 0..100 {
            connection.reply().await.unwrap().assert_rejected(404, "unknown_app");
        }
    }
    assert!(gateway.metric("spigate_log_dropped_total").await > 0.0);
    gateway.order(&create()).await.assert_is(CREATED);
}
