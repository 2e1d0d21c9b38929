//! SIGTERM under load: readiness says no, clients move, and every request that was sent is
//! answered.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::{TrySendError, http1};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::support::authority::Authority;
use crate::support::backend::{Backend, CREATED, Gate, Step, json};
use crate::support::client::{Connection, Reply, get};
use crate::support::gateway::{Gateway, Setup};
use crate::support::order::create;
use crate::support::tls_client::{Http2, TlsClient, reply};
use crate::support::within_deadline;

const CLIENTS: usize = 8;

/// What happened to requests.
#[derive(Default)]
struct Tally {
    answered: AtomicUsize,
    /// Requests that GOAWAY turned away, as their client understands it.
    turned_away: AtomicUsize,
    /// What became of those that were sent and got no answer, or not the right one.
    failures: Mutex<Vec<String>>,
    /// Connections made.
    connections: AtomicUsize,
}

impl Tally {
    fn answered(&self, reply: &Reply) {
        if reply.status == 200 {
            self.answered.fetch_add(1, Ordering::Relaxed);
        } else {
            self.failures.lock().unwrap().push(format!("{reply:?}"));
        }
    }

    /// A request came to nothing. It counts unless it is given back, not a byte of it written, or
    /// GOAWAY said before that no new ones are looked at.
    fn unanswered<T>(&self, mut error: TrySendError<T>) {
        let was_sent = error.take_message().is_none();
        let error = format!("{:?}", error.into_error());
        if was_sent && error.contains("GoAway(b\"\", NO_ERROR, Remote)") {
            self.turned_away.fetch_add(1, Ordering::Relaxed);
        } else if was_sent {
            self.failures.lock().unwrap().push(error);
        }
    }

    async fn until_answered(&self, count: usize) {
        let poll = async {
            while self.answered.load(Ordering::Relaxed) < count {
                tokio::task::yield_now().await;
            }
        };
        within_deadline("answers", poll).await;
    }

    fn assert_none_failed(&self) {
        let failures = self.failures.lock().unwrap();
        assert!(failures.is_empty(), "beside {} answers: {failures:#?}", self.answered.load(Ordering::Relaxed));
    }
}

/// Whether the gateway still takes connections, and one of them.
async fn connect(address: SocketAddr, tally: &Tally) -> Option<TcpStream> {
    // Refused is how a client learns that it has to go elsewhere.
    let stream = within_deadline("connecting", TcpStream::connect(address)).await.ok()?;
    tally.connections.fetch_add(1, Ordering::Relaxed);
    Some(stream)
}

/// Sends orders one after the other, on one connection for as long as the gateway lets it.
async fn http1_client(address: SocketAddr, tally: Arc<Tally>) {
    while let Some(stream) = connect(address, &tally).await {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(connection);
        // Ready: the gateway has neither closed nor announced that it will.
        while sender.ready().await.is_ok() {
            let target = create().target();
            let request = http::Request::get(target).header("host", "localhost").body(Empty::<Bytes>::new()).unwrap();
            match within_deadline("an answer", sender.try_send_request(request)).await {
                Ok(response) => {
                    let last = response.headers().get("connection").is_some_and(|value| value == "close");
                    tally.answered(&reply(response).await);
                    if last {
                        break;
                    }
                }
                Err(error) => {
                    tally.unanswered(error);
                    break;
                }
            }
        }
        drop(sender);
        let _ = within_deadline("the end of a connection", connection).await;
    }
}

/// Sends orders on one connection, several at once, until the gateway says goodbye.
async fn http2_client(address: SocketAddr, client: Arc<TlsClient>, tally: Arc<Tally>) {
    while let Some(stream) = connect(address, &tally).await {
        // A handshake that was not finished is no request.
        let Ok(stream) = client.handshake(stream).await else { continue };
        let connection = Http2::over(stream).await;
        let mut streams = JoinSet::new();
        for _ in 0..4 {
            let (mut sender, tally) = (connection.sender.clone(), Arc::clone(&tally));
            streams.spawn(async move {
                while sender.ready().await.is_ok() {
                    let uri = format!("https://localhost{}", create().target());
                    let request = http::Request::get(uri).body(Empty::<Bytes>::new()).unwrap();
                    match within_deadline("an answer", sender.try_send_request(request)).await {
                        Ok(response) => tally.answered(&reply(response).await),
                        Err(error) => {
                            tally.unanswered(error);
                            return;
                        }
                    }
                }
            });
        }
        streams.join_all().await;
    }
}

async fn delayed(backend: &Backend) -> Setup {
    Setup::new(backend).forwarding_all().top("[shutdown]\ndelay = \"1s\"\ngrace = \"25s\"\n")
}

async fn assert_not_ready(gateway: &Gateway) {
    let said = gateway.wait_for_readyz(503).await;
    assert!(said.text().contains("shutting down"), "{}", said.text());
}

/// Whether so many more were answered before the delay was over; a machine may have stood still for all
/// of it, which shows nothing.
async fn is_delayed(gateway: &Gateway, tally: &Tally, clients: &mut JoinSet<()>) -> bool {
    let goal = tally.answered.load(Ordering::Relaxed) + 100;
    let ended = async { while clients.join_next().await.is_some() {} };
    let served = async {
        assert_not_ready(gateway).await;
        tally.until_answered(goal).await;
    };
    tokio::select! {
        () = served => true,
        () = ended => false,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_of_http_1_clients_that_keep_their_connections_is_lost() {
    loop {
        let backend = Backend::confirming().await;
        let gateway = delayed(&backend).await.start().await;
        let (tally, mut clients) = (Arc::new(Tally::default()), JoinSet::new());
        for _ in 0..CLIENTS {
            clients.spawn(http1_client(gateway.listen, Arc::clone(&tally)));
        }
        let all = async {
            while tally.connections.load(Ordering::Relaxed) < CLIENTS {
                tokio::task::yield_now().await;
            }
        };
        within_deadline("the connections", all).await;
        tally.until_answered(100).await;
        assert_eq!(tally.connections.load(Ordering::Relaxed), CLIENTS);
        gateway.terminate();
        // Still served, on new connections.
        let was_delayed = is_delayed(&gateway, &tally, &mut clients).await;
        within_deadline("the clients", clients.join_all()).await;
        tally.assert_none_failed();
        let output = gateway.ended().await;
        assert!(output.contains("\"stopped\""), "{output}");
        assert_eq!(backend.count(), tally.answered.load(Ordering::Relaxed));
        if was_delayed {
            return assert!(tally.connections.load(Ordering::Relaxed) > CLIENTS);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_of_http_2_clients_is_lost() {
    let authority = Authority::new();
    let client = Arc::new(TlsClient::trusting(&authority).offering(&["h2"]));
    loop {
        let backend = Backend::confirming().await;
        let gateway = delayed(&backend).await.tls(&authority.certify(&["localhost"])).start().await;
        let (tally, mut clients) = (Arc::new(Tally::default()), JoinSet::new());
        for _ in 0..CLIENTS / 2 {
            clients.spawn(http2_client(gateway.listen, Arc::clone(&client), Arc::clone(&tally)));
        }
        tally.until_answered(100).await;
        gateway.terminate();
        let was_delayed = is_delayed(&gateway, &tally, &mut clients).await;
        // HTTP/2 has no need to connect anew before the end.
        assert_eq!(tally.connections.load(Ordering::Relaxed), CLIENTS / 2);
        within_deadline("the clients", clients.join_all()).await;
        tally.assert_none_failed();
        let output = gateway.ended().await;
        assert!(output.contains("\"stopped\""), "{output}");
        // What GOAWAY turned away was really not looked at.
        let (answered, away) = (tally.answered.load(Ordering::Relaxed), tally.turned_away.load(Ordering::Relaxed));
        assert_eq!(backend.count(), answered, "beside {away} turned away\n{output}");
        if was_delayed {
            return;
        }
    }
}

#[tokio::test]
async fn what_was_begun_is_finished_and_idle_connections_are_closed_at_once() {
    let gate = Gate::closed();
    let wait = gate.clone();
    let backend = Backend::start(move |seen| {
        let waits = seen.text().contains("slow");
        [if waits { vec![Step::Wait(wait.clone())] } else { vec![] }, json(CREATED)].concat()
    })
    .await;
    let setup = Setup::new(&backend).forwarding_all().top("[shutdown]\ndelay = \"0s\"\ngrace = \"25s\"\n");
    let gateway = setup.start().await;
    let mut idle = Connection::open(gateway.listen).await;
    idle.send(get(&create().target(), "")).await;
    idle.reply().await.unwrap().assert_is(CREATED);
    let mut silent = Connection::open(gateway.listen).await;
    let mut half = Connection::open(gateway.listen).await;
    let head = get(&create().target(), "");
    half.send(&head[..20]).await;
    let mut behind = Connection::open(gateway.listen).await;
    behind.send(get(&create().target(), "") + &head[..20]).await;
    behind.reply().await.unwrap().assert_is(CREATED);
    let mut busy = Connection::open(gateway.listen).await;
    busy.send(get(&create().with("zone", "slow").signed_at(crate::support::order::now()).target(), "")).await;
    backend.wait_for(3).await;
    gateway.wait_for_metric("spigate_connections", |connections| connections == 5.0).await;
    gateway.terminate();
    assert!(idle.until_closed().await.is_empty());
    assert!(silent.until_closed().await.is_empty());
    assert!(TcpStream::connect(gateway.listen).await.is_err());
    // Two heads were on their way, one order is with the backend.
    for begun in [&mut half, &mut behind] {
        begun.send(&head[20..]).await;
        let answer = begun.reply().await.unwrap();
        answer.assert_is(CREATED);
        assert_eq!(answer.header("connection"), Some("close"));
    }
    assert!(!busy.has_ended().await);
    gate.open();
    let answer = busy.reply().await.unwrap();
    answer.assert_is(CREATED);
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(busy.until_closed().await.is_empty() && half.until_closed().await.is_empty());
    gateway.ended().await;
}

/// Two phases of a stop follow one another at once; nobody must hear of the first alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_many_connections_are_idle_all_are_closed() {
    let backend = Backend::confirming().await;
    let stop = "[shutdown]\ndelay = \"0s\"\ngrace = \"600s\"\n";
    for _ in 0..4 {
        let gateway = Setup::new(&backend).forwarding_all().top(stop).start().await;
        let mut idle = Vec::new();
        for _ in 0..400 {
            let mut connection = Connection::open(gateway.listen).await;
            connection.send(get("/nowhere", "")).await;
            connection.reply().await.unwrap().assert_rejected(404, "unknown_app");
            idle.push(connection);
        }
        gateway.terminate();
        for connection in &mut idle {
            assert!(connection.until_closed().await.is_empty());
        }
        gateway.ended().await;
    }
}

#[tokio::test]
async fn requests_that_wait_unread_when_the_end_comes_are_served() {
    let (authority, backend) = (Authority::new(), Backend::confirming().await);
    for tls in [false, true] {
        let mut setup = Setup::new(&backend).forwarding_all().top("[shutdown]\ndelay = \"0s\"\ngrace = \"25s\"\n");
        if tls {
            setup = setup.tls(&authority.certify(&["localhost"]));
        }
        let gateway = setup.start().await;
        let client = TlsClient::trusting(&authority);
        let mut kept = Vec::new();
        for _ in 0..10 {
            let mut connection =
                if tls { client.http1(&gateway).await } else { Connection::open(gateway.listen).await };
            connection.send(get(&create().target(), "")).await;
            connection.reply().await.unwrap().assert_is(CREATED);
            kept.push(connection);
        }
        // As a busy machine does: it does not run, and does not know.
        gateway.signal("STOP");
        for connection in &mut kept {
            connection.send(get(&create().target(), "")).await;
        }
        // Nobody has accepted these.
        let mut new = Vec::new();
        for _ in 0..10 {
            let mut connection = Connection::open(gateway.listen).await;
            if !tls {
                connection.send(get(&create().target(), "")).await;
            }
            new.push(connection);
        }
        gateway.terminate();
        gateway.signal("CONT");
        for connection in &mut kept {
            connection.reply().await.expect("an answer on a kept connection").assert_is(CREATED);
        }
        if !tls {
            for connection in &mut new {
                connection.reply().await.expect("an answer on a new connection").assert_is(CREATED);
            }
        }
        drop(new);
        gateway.ended().await;
    }
}

#[tokio::test]
async fn a_connection_that_asks_for_nothing_does_not_hold_up_the_end() {
    let (authority, backend) = (Authority::new(), Backend::confirming().await);
    let setup = Setup::new(&backend).forwarding_all().tls(&authority.certify(&["localhost"]));
    let gateway = setup.top("[shutdown]\ndelay = \"0s\"\ngrace = \"600s\"\n").start().await;
    let mut connection = TlsClient::trusting(&authority).offering(&["h2"]).http2(&gateway).await;
    connection.get(&create().target()).await.assert_is(CREATED);
    let silent = TlsClient::trusting(&authority).http1(&gateway).await;
    // No preface, no handshake, and half of one.
    let no_preface = TlsClient::trusting(&authority).offering(&["h2"]).connect(gateway.listen).await.unwrap();
    let no_handshake = TcpStream::connect(gateway.listen).await.unwrap();
    let mut half = Connection::open(gateway.listen).await;
    half.send([0x16, 3, 1, 2, 0, 1, 0]).await;
    gateway.wait_for_metric("spigate_connections", |connections| connections == 5.0).await;
    gateway.terminate();
    connection.until_closed().await;
    gateway.ended().await;
    drop((silent, no_preface, no_handshake, half));
}
