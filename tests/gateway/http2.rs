//! HTTP/2: the same answers as with HTTP/1.1, and bounds that an open network needs.

use std::future::Future;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::support::authority::Authority;
use crate::support::backend::{Backend, CREATED, Gate, Step, json};
use crate::support::gateway::{Gateway, Setup};
use crate::support::order::create;
use crate::support::tls_client::{TlsClient, reply};
use crate::support::within_deadline;

/// A gateway that speaks HTTP/2, and a client of it.
async fn speaking(setup: Setup) -> (Gateway, TlsClient) {
    let authority = Authority::new();
    let gateway = setup.forwarding_all().tls(&authority.certify(&["localhost"])).start().await;
    (gateway, TlsClient::trusting(&authority).offering(&["h2"]))
}

/// Frames as bytes, for what a well-behaved client does not send.
struct Frames(TlsStream<TcpStream>);

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ENHANCE_YOUR_CALM: u32 = 11;
/// `:method: GET`, `:scheme: https`, by their places in HPACK's table.
const GET: &[u8] = &[0x82, 0x87];

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header without Huffman and without a place in the table.
fn header(name: &str, value: &str) -> Vec<u8> {
    let length = |text: &str| {
        let mut bytes = vec![text.len().min(127) as u8];
        if text.len() >= 127 {
            let mut rest = text.len() - 127;
            while rest >= 128 {
                bytes.push((rest % 128 + 128) as u8);
                rest /= 128;
            }
            bytes.push(rest as u8);
        }
        bytes
    };
    [&[0], &*length(name), name.as_bytes(), &*length(value), value.as_bytes()].concat()
}

fn head(target: &str, authority: &str) -> Vec<u8> {
    [GET, &header(":path", target), &header(":authority", authority)].concat()
}

/// A client's window for each stream.
fn window(bytes: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&[0, 4], &bytes.to_be_bytes()[..]].concat())
}

fn request(stream: u32, target: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &head(target, "localhost"))
}

/// A connection that took too long ends at its limit, and not only when whoever lingers on it gives up,
/// five seconds later.
async fn soon<T>(end: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(4), end).await.expect("an end at the limit")
}

impl Frames {
    async fn open(client: &TlsClient, gateway: &Gateway) -> Self {
        let mut frames = Self(client.connect(gateway.listen).await.unwrap());
        frames.send(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, &[])].concat()).await;
        frames
    }

    /// Sends bytes. A gateway that has closed by now shows in what is read.
    async fn send(&mut self, bytes: &[u8]) {
        let _ = within_deadline("sending", async {
            self.0.write_all(bytes).await?;
            self.0.flush().await
        })
        .await;
    }

    /// The next frame: kind, flags, stream, payload; none at the end.
    async fn next(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let read = async {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await.ok()?;
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            self.0.read_exact(&mut payload).await.ok()?;
            Some((head[3], head[4], u32::from_be_bytes(head[5..].try_into().unwrap()), payload))
        };
        within_deadline("a frame or the end", read).await
    }

    /// The body of a stream's answer; none if the stream or the connection ends before.
    async fn body(&mut self, wanted: u32) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let (kind, flags, stream, payload) = self.next().await?;
            match kind {
                DATA if stream == wanted => body.extend(payload),
                RST_STREAM if stream == wanted => return None,
                _ => {}
            }
            if stream == wanted && flags & END_STREAM != 0 {
                return Some(body);
            }
        }
    }

    /// The code of the GOAWAY that ends the connection; none if it ends without.
    async fn goaway(&mut self) -> Option<u32> {
        let mut code = None;
        while let Some((kind, _, _, payload)) = self.next().await {
            if kind == GOAWAY {
                code = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
            }
        }
        code
    }
}

fn code(body: &[u8]) -> String {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap();
    body["code"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn many_orders_at_once_on_one_connection_are_all_answered() {
    let gate = Gate::closed();
    let wait = gate.clone();
    let backend = Backend::start(move |_| [vec![Step::Wait(wait.clone())], json(CREATED)].concat()).await;
    let (gateway, client) = speaking(Setup::new(&backend)).await;
    let connection = client.http2(&gateway).await;
    let mut orders = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let mut sender = connection.sender.clone();
        orders.spawn(async move {
            let request = http::Request::get(format!("https://localhost{}", create().target()));
            sender.send_request(request.body(http_body_util::Empty::new()).unwrap()).await.unwrap()
        });
    }
    backend.wait_for(50).await;
    gate.open();
    for answer in orders.join_all().await {
        reply(answer).await.assert_is(CREATED);
    }
    assert_eq!(gateway.metric("spigate_connections").await, 1.0);
}

#[tokio::test]
async fn what_http_1_refuses_http_2_refuses_too() {
    let backend = Backend::confirming().await;
    let (gateway, client) = speaking(Setup::new(&backend)).await;
    let mut connection = client.http2(&gateway).await;
    let target = create().target();
    let request = |method: &str| http::Request::builder().method(method).uri(format!("https://localhost{target}"));
    for method in ["POST", "HEAD", "OPTIONS", "DELETE"] {
        let answer = connection.send(request(method)).await;
        assert_eq!((answer.status, answer.header("allow")), (405, Some("GET")), "{method}");
    }
    connection.send(request("GET").header("host", "other.example")).await.assert_rejected(400, "malformed_request");
    connection.get("/nowhere").await.assert_rejected(404, "unknown_app");
    let many = (0..81).fold(request("GET"), |request, number| request.header(format!("x-{number}"), "1"));
    connection.send(many).await.assert_rejected(431, "headers_too_large");
    let long = request("GET").header("x", "x".repeat(40_000));
    connection.send(long).await.assert_rejected(431, "headers_too_large");
    connection.get(&format!("/spi?{}", "x".repeat(20_000))).await.assert_rejected(414, "uri_too_long");
    // A Host that says the same is fine, and so is the connection after all of this.
    connection.send(request("GET").header("host", "localhost")).await.assert_is(CREATED);
    assert_eq!(backend.count(), 1);
}

#[tokio::test]
async fn a_body_a_strange_authority_and_headers_of_http_1_are_refused() {
    let backend = Backend::confirming().await;
    let (gateway, client) = speaking(Setup::new(&backend)).await;
    let target = create().target();
    let mut frames = Frames::open(&client, &gateway).await;
    // Announced and sent.
    let head_only = frame(HEADERS, END_HEADERS, 1, &head(&target, "localhost"));
    frames.send(&[head_only, frame(DATA, END_STREAM, 1, b"hello")].concat()).await;
    assert_eq!(code(&frames.body(1).await.unwrap()), "body_not_allowed");
    // Said to be empty only after the head: no difference that a proxy in between must keep.
    let head_only = frame(HEADERS, END_HEADERS, 3, &head(&target, "localhost"));
    frames.send(&[head_only, frame(DATA, END_STREAM, 3, b"")].concat()).await;
    assert_eq!(code(&frames.body(3).await.unwrap()), "body_not_allowed");
    for (stream, authority) in [(5, "localhost:x"), (7, "a/b"), (9, "user@localhost")] {
        frames.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &head(&target, authority))).await;
        if let Some(body) = frames.body(stream).await {
            assert!(body.is_empty() || code(&body) == "malformed_request", "{authority}");
        }
    }
    for (name, value) in
        [("connection", "x-spi-app"), ("transfer-encoding", "chunked"), ("X-Upper", "1"), ("content-length", "5")]
    {
        let mut frames = Frames::open(&client, &gateway).await;
        let head = [head(&target, "localhost"), header(name, value)].concat();
        frames.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &head)).await;
        assert_eq!(frames.body(1).await, None, "{name}");
    }
    let pseudo = [GET, &header(":path", &target)].concat();
    let mut frames = Frames::open(&client, &gateway).await;
    frames.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &pseudo)).await;
    assert_eq!(code(&frames.body(1).await.unwrap()), "malformed_request");
    assert_eq!(backend.count(), 0);
    frames.send(&frame(HEADERS, END_HEADERS | END_STREAM, 3, &head(&target, "localhost"))).await;
    assert_eq!(frames.body(3).await.unwrap(), CREATED.as_bytes());
}

#[tokio::test]
async fn streams_that_are_opened_and_reset_at_once_do_not_take_the_gateway_down() {
    let backend = Backend::confirming().await;
    let (mut gateway, client) = speaking(Setup::new(&backend)).await;
    for _ in 0..4 {
        let mut frames = Frames::open(&client, &gateway).await;
        let head = head("/spi", "localhost");
        let mut flood = Vec::new();
        for number in 0..5_000 {
            let stream = 2 * number + 1;
            flood.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &head));
            flood.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        }
        frames.send(&flood).await;
        assert_eq!(frames.goaway().await, Some(ENHANCE_YOUR_CALM));
    }
    for series in ["spigate_connections", "spigate_in_flight_requests{app=\"crm\"}"] {
        gateway.wait_for_metric(series, |running| running == 0.0).await;
    }
    assert!(gateway.lives());
    client.http2(&gateway).await.get(&create().target()).await.assert_is(CREATED);
}

#[tokio::test]
async fn a_head_without_end_ends_the_connection() {
    let backend = Backend::confirming().await;
    let (gateway, client) = speaking(Setup::new(&backend)).await;
    let mut frames = Frames::open(&client, &gateway).await;
    frames.send(&frame(HEADERS, END_STREAM, 1, &head("/spi", "localhost"))).await;
    // CONTINUATION frames, each of which says that more will come.
    let more = frame(9, 0, 1, &header("x", &"x".repeat(16_000)));
    let flood = async {
        loop {
            if frames.0.write_all(&more).await.is_err() {
                return;
            }
        }
    };
    within_deadline("the end of a flooded connection", flood).await;
    client.http2(&gateway).await.get(&create().target()).await.assert_is(CREATED);
}

#[tokio::test]
async fn connections_that_ask_for_nothing_are_let_go() {
    let backend = Backend::confirming().await;
    let limits = "[limits]\nheader_timeout = \"1s\"\nidle_timeout = \"1s\"\n";
    let (gateway, client) = speaking(Setup::new(&backend).top(limits)).await;
    // Not even a preface; no request; half a request; none after the first.
    let mut silent = client.connect(gateway.listen).await.unwrap();
    let mut rest = Vec::new();
    let _ = soon(silent.read_to_end(&mut rest)).await;
    soon(Frames::open(&client, &gateway).await.goaway()).await;
    let mut half = Frames::open(&client, &gateway).await;
    half.send(&frame(HEADERS, END_STREAM, 1, GET)).await;
    soon(half.goaway()).await;
    let mut connection = client.http2(&gateway).await;
    connection.get(&create().target()).await.assert_is(CREATED);
    soon(connection.until_closed()).await;
    let mut idle = Frames::open(&client, &gateway).await;
    idle.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &head(&create().target(), "localhost"))).await;
    assert_eq!(idle.body(1).await.unwrap(), CREATED.as_bytes());
    // Without an error, though this client never answers the gateway's farewell.
    assert_eq!(soon(idle.goaway()).await, Some(0));
    // Who closes, too, is not lingered for.
    drop(idle);
    soon(gateway.wait_for_metric("spigate_connections", |connections| connections == 0.0)).await;
}

/// The machine, or the process alone, stands still for longer than any limit while a request comes.
#[tokio::test]
async fn what_came_in_time_is_answered_however_late_it_is_read() {
    let backend = Backend::confirming().await;
    let limits = "[limits]\nheader_timeout = \"1s\"\nidle_timeout = \"1s\"\n";
    let (gateway, client) = speaking(Setup::new(&backend).top(limits)).await;
    for _ in 0..4 {
        let mut connection = client.http2(&gateway).await;
        gateway.signal("STOP");
        let target = create().target();
        let late = async {
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            gateway.signal("CONT");
        };
        let (answer, ()) = tokio::join!(connection.get(&target), late);
        answer.assert_is(CREATED);
    }
}

/// A gateway whose backend's replies are larger than any window, and a client of it.
async fn answering_at_length(top: &str) -> (Backend, Gateway, TlsClient) {
    let message = "m".repeat(1024 * 1024);
    let body = format!(r#"{{"success":true,"instanceId":"i","message":"{message}"}}"#);
    let backend = Backend::start(move |_| json(&body)).await;
    let (gateway, client) = speaking(Setup::new(&backend).top(top)).await;
    (backend, gateway, client)
}

#[tokio::test]
async fn a_client_that_does_not_take_its_answer_is_let_go() {
    let limits = "[limits]\nheader_timeout = \"1s\"\nidle_timeout = \"1s\"\nreply_bytes = \"2MiB\"\n";
    let (_backend, gateway, client) = answering_at_length(limits).await;
    let mut frames = Frames::open(&client, &gateway).await;
    frames.send(&request(1, &create().target())).await;
    // The window is never opened further.
    assert_eq!(soon(frames.body(1)).await, None);
    drop(frames);
    soon(gateway.wait_for_metric("spigate_connections", |connections| connections == 0.0)).await;
}

#[tokio::test]
async fn small_requests_buy_no_time_for_an_answer_that_is_not_read() {
    let limits = "[limits]\nheader_timeout = \"1s\"\nidle_timeout = \"1s\"\nreply_bytes = \"2MiB\"\n";
    let (_backend, gateway, client) = answering_at_length(limits).await;
    // With a byte the answer leaves its body, and waits to be sent all the same.
    for bytes in [0, 1] {
        let mut frames = Frames::open(&client, &gateway).await;
        frames.send(&[window(bytes), request(1, &create().target())].concat()).await;
        let small_ones = async {
            for stream in (3..).step_by(2) {
                let more = 1000_u32.to_be_bytes();
                let windows = [frame(WINDOW_UPDATE, 0, 0, &more), frame(WINDOW_UPDATE, 0, stream, &more)];
                frames.send(&[request(stream, "/nowhere"), windows.concat()].concat()).await;
                match frames.body(stream).await {
                    Some(body) => assert_eq!(code(&body), "unknown_app"),
                    None => return,
                }
            }
        };
        within_deadline("the end of a connection with an unread answer", small_ones).await;
    }
}

#[tokio::test]
async fn a_stop_waits_for_an_unread_answer_no_longer_than_for_a_head() {
    let limits = "[limits]\nheader_timeout = \"1s\"\nidle_timeout = \"120s\"\nreply_bytes = \"2MiB\"\n";
    let stop = "[shutdown]\ndelay = \"0s\"\ngrace = \"600s\"\n";
    let (_backend, gateway, client) = answering_at_length(&format!("{limits}{stop}")).await;
    let mut frames = Frames::open(&client, &gateway).await;
    frames.send(&[window(0), request(1, &create().target())].concat()).await;
    while frames.next().await.unwrap().0 != HEADERS {}
    gateway.terminate();
    gateway.ended().await;
}

#[tokio::test]
async fn without_tls_there_is_no_http_2() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    let replies = gateway.raw("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    // Closed without a word.
    assert!(replies.is_empty(), "{replies:?}");
    gateway.wait_for_metric("spigate_connections", |connections| connections == 0.0).await;
}
