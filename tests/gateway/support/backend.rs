//! A vendor backend that does exactly what a test tells it to, on the level of bytes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::within_deadline;

/// What a valid reply to a create looks like.
pub(crate) const CREATED: &str = r#"{"success":true,"instanceId":"ins-1","message":"开通成功"}"#;

/// The body of a reply to a create that made this instance.
pub(crate) fn created(instance: &str) -> String {
    CREATED.replace("ins-1", instance)
}

/// One thing that a backend does.
#[derive(Clone)]
pub(crate) enum Step {
    /// Writes bytes.
    Send(Vec<u8>),
    /// Writes them one by one.
    Trickle(Vec<u8>),
    /// Does not go on until the gate is open.
    Wait(Gate),
    /// Writes nothing more, but keeps reading.
    HalfClose,
    /// Closes in good order.
    Close,
    /// Closes with a TCP reset.
    Reset,
    /// Keeps the connection and does nothing more.
    Stall,
}

/// Something that a test opens once.
#[derive(Clone)]
pub(crate) struct Gate(watch::Sender<bool>);

impl Gate {
    pub(crate) fn closed() -> Self {
        Self(watch::Sender::new(false))
    }

    pub(crate) fn open(&self) {
        self.0.send_replace(true);
    }

    async fn pass(&self) {
        // The sender lives as long as `self`.
        let _ = self.0.subscribe().wait_for(|open| *open).await;
    }
}

/// A complete reply with a JSON body.
pub(crate) fn json(body: impl AsRef<[u8]>) -> Vec<Step> {
    reply("200 OK", "Content-Type: application/json\r\n", body)
}

/// A complete reply.
pub(crate) fn reply(status: &str, headers: &str, body: impl AsRef<[u8]>) -> Vec<Step> {
    let body = body.as_ref();
    let mut bytes = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n", body.len()).into_bytes();
    bytes.extend_from_slice(body);
    vec![Step::Send(bytes)]
}

/// Bytes as they are.
pub(crate) fn raw(bytes: impl AsRef<[u8]>) -> Vec<Step> {
    vec![Step::Send(bytes.as_ref().to_vec())]
}

/// A request as the backend received it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Head and body, byte for byte.
    pub(crate) bytes: Vec<u8>,
    pub(crate) method: String,
    pub(crate) target: String,
    /// In received order.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// On which of the backend's connections it came.
    pub(crate) connection: usize,
}

impl Seen {
    /// The one value of a header, by any spelling of its name; a header that stands twice is a
    /// failure.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        let value = values.next().map(|(_, value)| value.as_str());
        assert!(values.next().is_none(), "{name} stands twice: {:?}", self.headers);
        value
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Which attempt it is, and the `Idempotency-Key` of its delivery.
    pub(crate) fn attempt(&self) -> (u32, String) {
        let header = |name| self.header(name).unwrap_or_else(|| panic!("no {name}: {}", self.text()));
        (header("x-spi-attempt").parse().unwrap(), header("idempotency-key").to_owned())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

#[derive(Default)]
struct Record {
    requests: Vec<Seen>,
    connections: usize,
    /// Connections that the other side ended.
    ended: usize,
    /// Bytes that came and were no whole request by the time the connection ended.
    stray: Vec<u8>,
}

/// A running backend.
pub(crate) struct Backend {
    address: SocketAddr,
    scheme: &'static str,
    record: watch::Sender<Record>,
    task: tokio::task::JoinHandle<()>,
}

type Script = Arc<dyn Fn(&Seen) -> Vec<Step> + Send + Sync>;

impl Backend {
    /// Answers every request with what `script` says.
    pub(crate) async fn start(script: impl Fn(&Seen) -> Vec<Step> + Send + Sync + 'static) -> Self {
        Self::listen(None, Vec::new(), Arc::new(script)).await
    }

    /// A backend that confirms everything.
    pub(crate) async fn confirming() -> Self {
        Self::start(|_| json(CREATED)).await
    }

    /// Answers the first requests with `turns`, one each, and confirms all others. The request
    /// with the number `n` makes the instance `ins-n`.
    pub(crate) async fn in_turn(turns: impl IntoIterator<Item = Vec<Step>>) -> Self {
        Self::start(in_turn(turns)).await
    }

    /// An address that refuses connections until a backend is made of it.
    pub(crate) fn closed() -> Closed {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        Closed(socket)
    }

    /// Does `steps` on every connection before it reads anything.
    pub(crate) async fn on_connect(steps: Vec<Step>) -> Self {
        Self::listen(None, steps, Arc::new(|_| json(CREATED))).await
    }

    /// Speaks TLS and confirms everything.
    pub(crate) async fn tls(acceptor: TlsAcceptor) -> Self {
        Self::listen(Some(acceptor), Vec::new(), Arc::new(|_| json(CREATED))).await
    }

    async fn listen(tls: Option<TlsAcceptor>, on_connect: Vec<Step>, script: Script) -> Self {
        Self::serve(TcpListener::bind("127.0.0.1:0").await.unwrap(), tls, on_connect, script)
    }

    fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, on_connect: Vec<Step>, script: Script) -> Self {
        let address = listener.local_addr().unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let record = watch::Sender::new(Record::default());
        let recorder = record.clone();
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                recorder.send_modify(|record| record.connections += 1);
                let number = recorder.borrow().connections;
                let (tls, recorder) = (tls.clone(), recorder.clone());
                let (on_connect, script) = (on_connect.clone(), Arc::clone(&script));
                tokio::spawn(async move {
                    stream.set_nodelay(true).unwrap();
                    match tls {
                        None => serve(stream, |tcp| tcp, number, &on_connect, &script, &recorder).await,
                        Some(acceptor) => {
                            // A client that refuses the certificate is the client's test.
                            let Ok(stream) = acceptor.accept(stream).await else { return };
                            serve(stream, |tls| tls.get_ref().0, number, &on_connect, &script, &recorder).await;
                        }
                    }
                });
            }
        });
        Self { address, scheme, record, task }
    }

    /// Where it is.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.address)
    }

    /// `host:port`.
    pub(crate) fn authority(&self) -> String {
        self.address.to_string()
    }

    /// All requests so far.
    pub(crate) fn requests(&self) -> Vec<Seen> {
        self.record.borrow().requests.clone()
    }

    /// Attempt and `Idempotency-Key` of each request so far.
    pub(crate) fn attempts(&self) -> Vec<(u32, String)> {
        self.record.borrow().requests.iter().map(Seen::attempt).collect()
    }

    /// The number of requests so far.
    pub(crate) fn count(&self) -> usize {
        self.record.borrow().requests.len()
    }

    /// The number of connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.record.borrow().connections
    }

    /// Bytes that came and belong to no request.
    pub(crate) fn stray(&self) -> Vec<u8> {
        self.record.borrow().stray.clone()
    }

    /// Begins anew with counting.
    pub(crate) fn forget(&self) {
        self.record.send_modify(|record| record.requests.clear());
    }

    /// The only request so far.
    pub(crate) fn only_request(&self) -> Seen {
        let mut requests = self.requests();
        assert_eq!(requests.len(), 1, "{requests:#?}");
        requests.remove(0)
    }

    /// The last request so far.
    pub(crate) fn last(&self) -> Seen {
        self.requests().pop().expect("a request")
    }

    /// Waits until the gateway has ended so many connections.
    pub(crate) async fn wait_for_ended(&self, count: usize) {
        let mut record = self.record.subscribe();
        let enough = record.wait_for(|record| record.ended >= count);
        within_deadline("ended connections at the backend", enough).await.unwrap();
    }

    /// Waits until so many requests have come.
    pub(crate) async fn wait_for(&self, count: usize) {
        let mut record = self.record.subscribe();
        let enough = record.wait_for(|record| record.requests.len() >= count);
        within_deadline("requests at the backend", enough).await.unwrap();
    }
}

/// See [`Backend::closed`].
pub(crate) struct Closed(TcpSocket);

impl Closed {
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.0.local_addr().unwrap())
    }

    /// Begins to listen and confirms everything, as [`Backend::in_turn`] does.
    pub(crate) fn open(self) -> Backend {
        self.open_in_turn([])
    }

    /// Begins to listen and does what [`Backend::in_turn`] does.
    pub(crate) fn open_in_turn(self, turns: impl IntoIterator<Item = Vec<Step>>) -> Backend {
        Backend::serve(self.0.listen(64).unwrap(), None, Vec::new(), Arc::new(in_turn(turns)))
    }
}

/// See [`Backend::in_turn`].
fn in_turn(turns: impl IntoIterator<Item = Vec<Step>>) -> impl Fn(&Seen) -> Vec<Step> + Send + Sync + 'static {
    let turns: Vec<_> = turns.into_iter().collect();
    let answered = AtomicUsize::new(0);
    move |_| {
        let before = answered.fetch_add(1, Ordering::SeqCst);
        turns.get(before).cloned().unwrap_or_else(|| json(created(&format!("ins-{}", before + 1))))
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves one connection.
async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    tcp: fn(&S) -> &TcpStream,
    connection: usize,
    on_connect: &[Step],
    script: &Script,
    record: &watch::Sender<Record>,
) {
    if !perform(&mut stream, tcp, on_connect).await {
        return;
    }
    let mut buffer = Vec::new();
    loop {
        let seen = loop {
            if let Some(seen) = take_request(&mut buffer, connection) {
                break seen;
            }
            match stream.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => {
                    record.send_modify(|record| {
                        record.stray.extend_from_slice(&buffer);
                        record.ended += 1;
                    });
                    return;
                }
                Ok(_) => {}
            }
        };
        let steps = script(&seen);
        record.send_modify(|record| record.requests.push(seen));
        if !perform(&mut stream, tcp, &steps).await {
            return;
        }
    }
}

/// Does the steps; whether the connection can take another request.
async fn perform<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, tcp: fn(&S) -> &TcpStream, steps: &[Step]) -> bool {
    for step in steps {
        // The gateway may hang up at any time, which is its right.
        let done = match step {
            Step::Send(bytes) => send(stream, bytes).await,
            Step::Trickle(bytes) => {
                for byte in bytes {
                    if send(stream, &[*byte]).await.is_err() {
                        return false;
                    }
                    tokio::task::yield_now().await;
                }
                Ok(())
            }
            Step::Wait(gate) => {
                gate.pass().await;
                Ok(())
            }
            Step::HalfClose => {
                let _ = stream.shutdown().await;
                let mut rest = Vec::new();
                let _ = stream.read_to_end(&mut rest).await;
                return false;
            }
            Step::Close => return false,
            Step::Reset => {
                tcp(stream).set_zero_linger().unwrap();
                return false;
            }
            Step::Stall => {
                let mut rest = Vec::new();
                let _ = stream.read_to_end(&mut rest).await;
                return false;
            }
        };
        if done.is_err() {
            return false;
        }
    }
    true
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> std::io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

/// Takes a complete request from the front of the buffer. Only `Content-Length` bodies: the
/// gateway sends no others, and one that is chunked would show up as stray bytes.
fn take_request(buffer: &mut Vec<u8>, connection: usize) -> Option<Seen> {
    let head = buffer.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let text: String = buffer[..head].iter().map(|&byte| char::from(byte)).collect();
    let mut lines = text.split("\r\n");
    let mut words = lines.next()?.split(' ').map(str::to_owned);
    let headers: Vec<(String, String)> = lines
        .filter(|line| !line.is_empty())
        .map(|line| line.split_once(':').unwrap_or((line, "")))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let end = head + length.map_or(0, |(_, length)| length.parse().unwrap());
    if buffer.len() < end {
        return None;
    }
    let bytes: Vec<u8> = buffer.drain(..end).collect();
    Some(Seen {
        method: words.next().unwrap_or_default(),
        target: words.next().unwrap_or_default(),
        headers,
        body: bytes[head..].to_vec(),
        bytes,
        connection,
    })
}
