//! A client that sends bytes as they are and reads what comes back.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::within_deadline;

/// An answer of the gateway.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        let value = values.next().map(|(_, value)| value.as_str());
        assert!(values.next().is_none(), "{name} stands twice: {:?}", self.headers);
        value
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    pub(crate) fn request_id(&self) -> &str {
        self.header("x-request-id").unwrap_or_else(|| panic!("no request id: {self:?}"))
    }

    /// Asserts that this is the backend's body in the form that the platform accepts.
    #[track_caller]
    pub(crate) fn assert_is(&self, body: &str) {
        assert_eq!((self.status, self.text().as_str()), (200, body), "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/json"));
    }

    /// Asserts that this is a rejection, complete in every part that design.md names.
    #[track_caller]
    pub(crate) fn assert_rejected(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{code} expected: {} {}", self.status, self.text());
        assert_eq!(self.header("content-type"), Some("application/json"));
        let body = self.json();
        assert_eq!(body["success"], Value::Bool(false), "{body}");
        assert_eq!(body["code"], code, "{body}");
        assert!(body["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
        assert_eq!(body["request_id"], self.request_id());
        assert_eq!(body.as_object().unwrap().len(), 4, "{body}");
        let should_wait = matches!(
            code,
            "overloaded" | "delivery_in_progress" | "journal_unavailable" | "shutting_down" | "too_many_failures"
        );
        assert_eq!(self.header("retry-after").is_some(), should_wait, "{self:?}");
        assert_eq!(self.header("allow"), (status == 405).then_some("GET"));
    }
}

/// Bytes in both directions, by whatever way.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A connection to the gateway.
pub(crate) struct Connection {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
    ended: bool,
    bodiless: bool,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> Self {
        let stream = within_deadline("connecting", TcpStream::connect(address)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::over(stream)
    }

    /// A connection that was made in another way.
    pub(crate) fn over(stream: impl Stream + 'static) -> Self {
        Self { stream: Box::new(stream), buffer: Vec::new(), ended: false, bodiless: false }
    }

    /// Sends bytes. A gateway that has closed by now shows in what is read.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = within_deadline("sending", self.stream.write_all(bytes.as_ref())).await;
    }

    /// Expects answers to HEAD: a length, and no body.
    pub(crate) fn bodiless(mut self) -> Self {
        self.bodiless = true;
        self
    }

    /// Whether the gateway has closed the connection by now.
    pub(crate) async fn has_ended(&mut self) -> bool {
        // The timer's resolution: long enough to see what has come, no wait for anything.
        let read = self.stream.read_buf(&mut self.buffer);
        if let Ok(read) = tokio::time::timeout(std::time::Duration::from_millis(1), read).await {
            self.ended = matches!(read, Ok(0) | Err(_));
        }
        self.ended
    }

    /// The next final answer; `None` if the connection ends before one.
    pub(crate) async fn reply(&mut self) -> Option<Reply> {
        loop {
            if let Some(reply) = self.take_reply() {
                return Some(reply);
            }
            if self.ended {
                assert!(self.buffer.is_empty(), "a partial answer: {}", String::from_utf8_lossy(&self.buffer));
                return None;
            }
            self.read().await;
        }
    }

    /// All further answers until the gateway closes the connection, which it has to.
    pub(crate) async fn until_closed(&mut self) -> Vec<Reply> {
        let mut replies = Vec::new();
        while let Some(reply) = self.reply().await {
            replies.push(reply);
        }
        replies
    }

    async fn read(&mut self) {
        let read = within_deadline("an answer or the end", self.stream.read_buf(&mut self.buffer)).await;
        // A reset is an end too: the gateway may close while bytes of ours are still unread.
        self.ended = matches!(read, Ok(0) | Err(_));
    }

    fn take_reply(&mut self) -> Option<Reply> {
        let head = self.buffer.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
        let text = String::from_utf8(self.buffer[..head].to_vec()).unwrap();
        let mut lines = text.split("\r\n").filter(|line| !line.is_empty());
        let status_line = lines.next()?;
        let status = status_line.split(' ').nth(1)?.parse().unwrap();
        let headers: Vec<(String, String)> = lines
            .map(|line| line.split_once(':').unwrap_or_else(|| panic!("no header: {line}")))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        let length = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        let length = length.unwrap_or_else(|| panic!("an answer without length: {text}")).1.parse::<usize>().unwrap();
        let length = if self.bodiless { 0 } else { length };
        if self.buffer.len() < head + length {
            return None;
        }
        let bytes: Vec<u8> = self.buffer.drain(..head + length).collect();
        Some(Reply { status, headers, body: bytes[head..].to_vec() })
    }
}

/// Sends bytes on a new connection and reads all answers until the gateway closes it.
pub(crate) async fn until_closed(address: SocketAddr, bytes: impl AsRef<[u8]>) -> Vec<Reply> {
    let mut connection = Connection::open(address).await;
    connection.send(bytes).await;
    connection.until_closed().await
}

/// Sends bytes on a new connection and reads one answer.
pub(crate) async fn one_reply(address: SocketAddr, bytes: impl AsRef<[u8]>) -> Reply {
    let mut connection = Connection::open(address).await;
    connection.send(bytes).await;
    connection.reply().await.expect("an answer")
}

/// A plain GET.
pub(crate) fn get(target: &str, headers: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n")
}
